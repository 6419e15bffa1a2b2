"""The options below ``training``."""

import pytest

from speechbrain_stablequant.errors import KnobError
from speechbrain_stablequant.methods.settings import Settings
from speechbrain_stablequant.methods.training_settings import TrainingSettings

WRONG = {
    "epochs": (0, "epochs is 0"),
    "lr_factor": (-1, "lr_factor"),
    "step_lr": ("fast", "number"),
    "warmup": (1.0, "warmup"),
    "stages": ([2, 4], "widest first"),
    "temperature": (0, "temperature"),
    "lowering": (True, "number"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_names_its_knob(name):
    value, match = WRONG[name]
    with pytest.raises(KnobError, match=match):
        TrainingSettings.from_options({name: value})


def test_half_an_epoch_is_none():
    with pytest.raises(KnobError, match="epochs is 1.5: a whole number"):
        TrainingSettings(epochs=1.5)


def test_stages_are_widths():
    with pytest.raises(KnobError, match="stages is 16: use 1 to 8"):
        TrainingSettings(stages=[16])


def test_an_unknown_knob_points_to_the_nearest():
    with pytest.raises(KnobError, match="hidden_weight"):
        TrainingSettings.from_options({"hiden_weight": 1})


@pytest.mark.parametrize("value", [None, 3, "epochs: 3", [1]])
def test_knobs_come_in_a_mapping(value):
    with pytest.raises(KnobError, match="maps options to values"):
        Settings(method="quantization_aware", training=value)


def test_something_must_be_learned_from():
    with pytest.raises(KnobError, match="nothing to train by"):
        TrainingSettings(task_weight=0, hidden_weight=0, output_weight=0)


def test_knobs_of_training_are_checked_for_any_method():
    """A recipe may switch methods from the command line."""
    assert Settings(training={"epochs": 2}).training_settings.epochs == 2
    with pytest.raises(KnobError, match="epochs"):
        Settings(training={"epoch": 2})


@pytest.mark.parametrize(
    "knobs",
    [{"rounding": "gptq"}, {"plan": "plan.json"}, {"weight_symmetric": False}],
)
def test_knobs_that_contradict_training(knobs):
    with pytest.raises(KnobError, match="quantization_aware"):
        Settings(method="quantization_aware", **knobs)


def test_widths_fall_to_the_target():
    assert TrainingSettings().bit_widths(2) == [4, 2]
    assert TrainingSettings().bit_widths(3) == [3]
    assert TrainingSettings(stages=[8, 4, 2]).bit_widths(3) == [8, 4, 3]
    assert TrainingSettings(stages=[]).bit_widths(1) == [1]


def test_stages_share_the_time_of_lowering():
    settings = TrainingSettings(lowering=0.4)
    stages = [settings.stage(i / 100, 3) for i in range(101)]
    assert [stages.count(i) for i in range(3)] == [20, 20, 61]
    assert stages == sorted(stages)
    assert TrainingSettings(lowering=0).stage(0.0, 3) == 2


def test_rates_rise_then_fall():
    settings = TrainingSettings(warmup=0.1)
    rates = [settings.rate(i / 100) for i in range(101)]
    assert rates[0] == 0
    assert rates[100] == 0
    assert max(rates) == rates[10] == 1
    assert rates[10:] == sorted(rates[10:], reverse=True)
