"""What a registry takes, and what it tells whoever extends it."""

import pytest

from speechbrain_stablequant.core.plan import ROUNDINGS as PLAN_ROUNDINGS
from speechbrain_stablequant.core.registry import Registry
from speechbrain_stablequant.methods.calibration import OBSERVERS
from speechbrain_stablequant.methods.registry import METHODS, ROUNDINGS


@pytest.fixture
def registry():
    return Registry("rule", ("counts", "tail"))


def test_a_function_is_found_under_its_name(registry):
    registry["any"] = print
    registry["lazy"] = "math:pow"
    assert list(registry) == ["any", "lazy"]
    assert registry["lazy"](2, 3) == 8


@pytest.mark.parametrize(
    ("name", "entry", "match"),
    [
        ("my rule", print, "'my rule' cannot name a rule"),
        (3, print, "3 cannot name a rule"),
        ("none", None, "'none' must be a function, not a NoneType"),
        ("short", lambda counts: 0, r"'short'.*\(counts, tail\).*\(counts\)"),
        ("long", lambda a, b, c: 0, r"'long'.*\(counts, tail\).*\(a, b, c\)"),
        ("path", "math.pow", "'math.pow': write 'package.module:function'"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(registry, name, entry, match):
    with pytest.raises(TypeError, match=match):
        registry[name] = entry
    assert not registry


def test_what_is_imported_late_is_checked_late(registry):
    registry["constant"] = "math:pi"
    with pytest.raises(TypeError, match="'constant' must be a function"):
        registry["constant"]


@pytest.mark.parametrize("known", [METHODS, OBSERVERS, ROUNDINGS])
def test_all_entries_of_the_package_load(known):
    assert all(callable(known[name]) for name in known)


def test_a_plan_can_carry_every_rounding():
    assert {"nearest", "trained", *ROUNDINGS} == set(PLAN_ROUNDINGS)
