"""The checks of options: what they let through, and what they say."""

import math

import pytest

from speechbrain_stablequant.core.options import (
    check_choice,
    check_list,
    check_names,
    check_number,
    check_numbers,
    check_whole_number,
)
from speechbrain_stablequant.errors import KnobError, PlanError


class Defaults:
    low: float = 1
    unset = None


def test_what_is_right_passes():
    check_choice("method", "uniform", ["uniform"])
    check_names("ptq", {"bits": 8}, ["bits"])
    check_number("subset", 0, 0, 1)
    check_number("max_drop", 1e9, 0)
    check_whole_number("epochs", 3, 1)
    check_list("stages", [], "[4, 2]")
    check_list("stages", (4, 2), "[4, 2]")
    check_numbers(Defaults(), [("low", 0, 2), ("unset", 0, 2)])


@pytest.mark.parametrize("value", [math.nan, -0.1, 1.1, True, "1", None, [1]])
def test_a_number_out_of_range_is_refused_with_both(value):
    with pytest.raises(KnobError, match="^subset is"):
        check_number("subset", value, 0, 1)


@pytest.mark.parametrize("value", [1.0, 0, True, "two"])
def test_a_whole_number_is_needed(value):
    with pytest.raises(PlanError, match=f"^group_size is {value!r}"):
        check_whole_number("group_size", value, 1, error=PlanError)


@pytest.mark.parametrize("value", [[], {}, None, "unifrm"])
def test_any_value_may_be_compared_with_choices(value):
    with pytest.raises(KnobError, match="method .* is unknown.*uniform"):
        check_choice("method", value, {"uniform": 1})


@pytest.mark.parametrize("value", [3, "abc", {"a": 1}, None])
def test_a_single_value_is_no_list(value):
    with pytest.raises(KnobError, match=r"stages is .*list.*\[4, 2\]"):
        check_list("stages", value, "[4, 2]")


def test_null_is_refused_where_it_is_not_the_default():
    settings = Defaults()
    settings.low = None
    with pytest.raises(KnobError, match="training: low is None"):
        check_numbers(settings, [("low", 0, 2)], "training: ")
