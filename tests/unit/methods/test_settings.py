"""Options: what is accepted, and what is said of the rest."""

import pytest

from speechbrain_stablequant.errors import KnobError
from speechbrain_stablequant.methods.settings import Settings

WRONG = {
    "method": ("stablequnt", "stablequant"),
    "observer": ("percentil", "percentile"),
    "weight_observer": ("entropy", "max"),
    "weight_levels": ("tenary", "ternary"),
    "tail": ("cut", "drop"),
    "percentile": (101, "percentile is 101"),
    "min_coverage": (1.5, "0 to 1"),
    "subset": ("half", "number"),
    "flag_threshold": (-1, "at least 0"),
    "calibration_utterances": (0, "at least 1"),
    "search_utterances": (True, "number"),
    "search_num_bytes": (-1, "search_num_bytes"),
    "percentiles": (99.9, "list"),
    "bits": ("W0", "bits"),
    "layer_bits": ({"*.head": "W99"}, r"\*\.head"),
    "weight_granularity": ("per_group", "weight_group_size"),
    "weight_group_size": (4, "weight_granularity"),
    "weight_symmetric": ("no", "weight_symmetric is 'no'.*True or False"),
    "activation_symmetric": (0, "activation_symmetric is 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_names_its_knob(name):
    value, match = WRONG[name]
    with pytest.raises(KnobError, match=match):
        Settings.from_options({name: value})


def test_an_unknown_knob_points_to_the_nearest():
    with pytest.raises(KnobError, match="ptq has no option.*min_coverage"):
        Settings.from_options({"min_covrage": 1}, "ptq")


def test_the_last_pattern_that_matches_counts():
    settings = Settings(layer_bits={"enc.*": "W4", "*.head": "W16A8"})
    assert settings.bit_widths("dec.w") == (8, 8)
    assert settings.bit_widths("enc.w") == (4, 32)
    assert settings.bit_widths("enc.head") == (16, 8)


def test_one_name_to_keep_may_stand_alone():
    assert Settings(keep="enc.*").kept_by("enc.w") == "enc.*"
    assert Settings(keep="enc.*").kept_by("dec.w") is None


def test_schemes_follow_the_knobs():
    settings = Settings(activation_symmetric=False, activation_signed=False)
    scheme = settings.activation_scheme(8)
    assert (scheme.qmin, scheme.qmax) == (0, 255)
    assert settings.activation_scheme(32) is None
    assert settings.weight_scheme(4).qmin == -7


def test_the_two_set_scheme_goes_by_what_was_seen():
    settings = Settings(activation_signed="auto", bits="W4A4")
    relu, gelu = (settings.activation_scheme(4, low) for low in (0.0, -0.17))
    assert (relu.qmin, relu.qmax) == (0, 15)
    assert (gelu.qmin, gelu.qmax) == (-7, 7)
    assert settings.activation_scheme(4).signed
    with pytest.raises(KnobError, match="activation_signed"):
        Settings(activation_signed="maybe")


@pytest.mark.parametrize(
    ("levels", "widths"), [("odd", (1, 2, 3, 4)), ("ternary", (2,))]
)
def test_levels_are_for_low_widths(levels, widths):
    settings = Settings(weight_levels=levels, bits="W2A8")
    for bits in (*range(1, 9), 16):
        expected = levels if bits in widths else "integer"
        assert settings.weight_scheme(bits).levels == expected
    assert settings.activation_scheme(2).levels == "integer"
    assert settings.search_identity()["weight_levels"] == levels


@pytest.mark.parametrize("levels", ["odd", "ternary"])
def test_levels_do_not_go_with_affine_weights(levels):
    with pytest.raises(KnobError, match=f"{levels}.*weight_symmetric: True"):
        Settings(weight_levels=levels, weight_symmetric=False)
