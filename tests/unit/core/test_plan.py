"""Plans: JSON and back, and errors that name the file and the field."""

import json

import pytest

from speechbrain_stablequant.core.plan import (
    InputPlan,
    LayerPlan,
    QuantizationPlan,
    QuantizationScheme,
)
from speechbrain_stablequant.errors import PlanError

TENSOR = QuantizationScheme(4, False, False, "per_tensor", narrow_range=False)
PLAN = QuantizationPlan(
    {
        "a.b": LayerPlan(
            QuantizationScheme(3, granularity="per_group", group_size=32),
            kind="Linear",
            unit="a",
            inputs={"input": InputPlan(TENSOR, -0.1, 3.7, "mse", 99.9, 0.001)},
        ),
        "c": LayerPlan(QuantizationScheme(16, dtype="float16")),
    },
    "stablequant",
    {"seed": 1, "keep": ["x"]},
)


def test_json_and_back(tmp_path):
    assert QuantizationPlan.from_json(PLAN.to_json()) == PLAN
    path = PLAN.save(tmp_path / "new" / "plan.json")
    assert QuantizationPlan.load(path) == PLAN


LAYER, WEIGHT = ("layers", "a.b"), ("layers", "a.b", "weight")
INPUT = ("layers", "a.b", "inputs", "input")
WRONG = {
    "top-field": (("setings",), {}, "setings.*settings"),
    "format": (("format",), "other", "format"),
    "version": (("version",), 2, "version 2"),
    "version-type": (("version",), "1", "version"),
    "method": (("method",), 3, "method"),
    "settings": (("settings",), 5, "settings"),
    "layers": (("layers",), [], "layers"),
    "layer": (LAYER, 3, "a.b.*object"),
    "layer-field": ((*LAYER, "unitt"), "", "unitt.*unit"),
    "weight": (WEIGHT, 8, "a.b.*object"),
    "weight-field": ((*WEIGHT, "bit"), 8, "'bit'.*bits"),
    "bits-text": ((*WEIGHT, "bits"), "8", "'bits'.*whole number"),
    "bits-float": ((*WEIGHT, "bits"), 8.0, "'bits'.*whole number"),
    "bits-true": ((*WEIGHT, "bits"), True, "'bits'.*whole number"),
    "bits-range": ((*WEIGHT, "bits"), 9, "bits is 9"),
    "symmetric": ((*WEIGHT, "symmetric"), 1, "symmetric.*true or false"),
    "granularity": ((*WEIGHT, "granularity"), "per_row", "granularity"),
    "group": ((*WEIGHT, "group_size"), None, "group_size"),
    "group-zero": ((*WEIGHT, "group_size"), 0, "group_size is 0"),
    "levels": ((*WEIGHT, "levels"), "od", "'od' is unknown.*odd"),
    "levels-type": ((*WEIGHT, "levels"), 2, "'levels'.*text"),
    "levels-width": ((*WEIGHT, "levels"), "ternary", "bits: 2, not 3"),
    "dtype": ((*WEIGHT, "dtype"), "float16", "dtype"),
    "observer": ((*LAYER, "weight_observer"), "mean", "weight_observer"),
    "percentile": ((*LAYER, "weight_percentile"), 101, "weight_percentile"),
    "inputs": ((*LAYER, "inputs"), [1], "inputs"),
    "input": (INPUT, {}, "input.*scheme"),
    "low": ((*INPUT, "low"), 1.0, "range"),
    "high": ((*INPUT, "high"), "3", "high.*number"),
    "infinite": ((*INPUT, "high"), float("inf"), "range"),
    "nan": ((*INPUT, "low"), float("nan"), "range"),
    "too-long": ((*INPUT, "high"), 10**400, "high"),
    "per-channel": (
        (*INPUT, "scheme", "granularity"),
        "per_channel",
        "per tensor",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_field_is_named_with_its_file(case, tmp_path):
    keys, value, match = WRONG[case]
    data = PLAN.to_dict()
    place = data
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(data))
    with pytest.raises(PlanError, match=match) as info:
        QuantizationPlan.load(path)
    assert "edited.json" in str(info.value)


@pytest.mark.parametrize(
    "keys", [("layers",), WEIGHT, (*INPUT, "scheme"), (*INPUT, "high")], ids=str
)
def test_a_missing_part_is_named(keys):
    data = PLAN.to_dict()
    place = data
    for key in keys[:-1]:
        place = place[key]
    del place[keys[-1]]
    with pytest.raises(PlanError, match=f"mine.json.*{keys[-1]}"):
        QuantizationPlan.from_dict(data, "mine.json")


CONTENTS = {
    "empty": b"",
    "cut": b'{"layers"',
    "list": b"[]",
    "not-utf8": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "long-number": b"1" * 5000,
}


@pytest.mark.parametrize("case", CONTENTS)
def test_a_file_that_is_no_plan(case, tmp_path):
    path = tmp_path / "broken.json"
    path.write_bytes(CONTENTS[case])
    with pytest.raises(PlanError, match=r"broken\.json"):
        QuantizationPlan.load(path)


def test_a_file_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(PlanError, match=path.name):
            QuantizationPlan.load(path)


@pytest.mark.parametrize("bits", [0, 9, 32, -1, 4.0, "4", None, True])
def test_widths_that_do_not_exist(bits):
    with pytest.raises(PlanError, match="bits"):
        QuantizationScheme(bits=bits)


@pytest.mark.parametrize(
    ("levels", "bits"),
    [("odd", 5), ("odd", 8), ("odd", 16), *(("ternary", b) for b in (1, 3, 8))],
)
def test_levels_that_a_width_does_not_have(levels, bits):
    with pytest.raises(PlanError, match=f"'{levels}' needs bits.*not {bits}"):
        QuantizationScheme(bits, levels=levels)


@pytest.mark.parametrize("field", ["symmetric", "signed"])
@pytest.mark.parametrize("levels", ["odd", "ternary"])
def test_levels_that_are_neither_affine_nor_unsigned(levels, field):
    with pytest.raises(PlanError, match=f"{field} is False"):
        QuantizationScheme(2, levels=levels, **{field: False})


@pytest.mark.parametrize("levels", ["odd", "ternary"])
def test_inputs_have_integer_levels(levels):
    scheme = QuantizationScheme(2, granularity="per_tensor", levels=levels)
    with pytest.raises(PlanError, match=f"{levels} levels.*levels: integer"):
        InputPlan(scheme, -1.0, 1.0)


def test_levels_are_named_and_stay_in_json():
    odd = QuantizationScheme(2, levels="odd")
    assert odd.describe() == "int2 odd symmetric per channel"
    assert QuantizationScheme(2).describe() == "int2 symmetric per channel"
    plan = QuantizationPlan({"a": LayerPlan(odd)})
    assert QuantizationPlan.from_json(plan.to_json()) == plan


def test_a_plan_from_before_there_were_levels_has_integers():
    data = PLAN.to_dict()
    del data["layers"]["a.b"]["weight"]["levels"]
    assert QuantizationPlan.from_dict(data) == PLAN
