"""The YAML files of the project: blocks, recipes, and what they promise."""

import dataclasses
import inspect
from pathlib import Path

import pytest
from hyperpyyaml import load_hyperpyyaml

from speechbrain_stablequant import PostTrainingQuantizer
from speechbrain_stablequant.errors import KnobError
from speechbrain_stablequant.methods.settings import Settings
from speechbrain_stablequant.methods.training_settings import TrainingSettings

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = sorted((ROOT / "hparams").rglob("*.yaml"))
# recipes/<Dataset>/<Task> or recipes/<Dataset>/<Task>/<Method>
RECIPES = sorted((ROOT / "recipes").rglob("hparams/*.yaml"))
SCRIPTS = sorted((ROOT / "recipes").rglob("*.py"))
TRAINING = [
    p
    for p in RECIPES
    if p.name != "inference.yaml" and not p.name.startswith("verification_")
]
# One trains on a model that is quantized already, and so do the tasks of SUPERB,
# whose heads are tiny; the others are the recognizer that language models are
# compared with
NOT_QUANTIZED = (
    "adapters_quantized_trunk.yaml",
    "commands.yaml",
    "keywords.yaml",
    "librispeech.yaml",
    "speakers.yaml",
    "xvector.yaml",
    "ctc_synthetic.yaml",
    "recognize.yaml",
)
PTQ = [p for p in TRAINING if p.name not in NOT_QUANTIZED]
# What a block may refer to in the recipe that it is appended to
RECIPE = """
output_folder: {folder}
train_data: {folder}/train.csv
compute_features: !new:speechbrain.lobes.features.Fbank
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
checkpointer: !new:speechbrain.utils.checkpoints.Checkpointer
   checkpoints_dir: {folder}
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
"""


def name(path):
    return str(path.relative_to(ROOT))


def load_block(path, folder, overrides=None):
    text = RECIPE.format(folder=folder) + path.read_text()
    return load_hyperpyyaml(text, overrides)["ptq"]


@pytest.mark.parametrize("path", BLOCKS, ids=name)
def test_block_loads(path, tmp_path):
    assert isinstance(load_block(path, tmp_path), PostTrainingQuantizer)


def test_all_options_are_listed_with_their_defaults(tmp_path):
    path = ROOT / "hparams" / "ptq_all_options.yaml"
    settings = load_block(path, tmp_path).settings
    assert {k: _plain(v) for k, v in vars(settings).items()} == {
        k: _plain(v) for k, v in vars(Settings()).items()
    }
    text = path.read_text()
    own = inspect.signature(PostTrainingQuantizer).parameters
    through_pretrainer = {
        "pretrainer",
        "calibration_batches",
        "calibration_forward",
    }
    names = [f.name for f in dataclasses.fields(Settings)]
    names += [
        name
        for name, parameter in own.items()
        if name not in through_pretrainer
        and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    for name in names:
        assert f"   {name}: " in text, f"{name} is not in {path.name}"


def test_all_options_of_training_are_listed_with_their_defaults(tmp_path):
    path = ROOT / "hparams" / "quantization_aware.yaml"
    training = load_block(path, tmp_path).settings.training
    defaults = dataclasses.asdict(TrainingSettings())
    assert dict(training) == {k: _plain(v) for k, v in defaults.items()}


def _plain(value):
    return list(value) if isinstance(value, (list, tuple)) else value


def test_flat_options_work_from_the_command_line(tmp_path):
    path = ROOT / "hparams/LibriSpeech/ASR/CTC/ptq_wav2vec2.yaml"
    block = load_block(path, tmp_path, {"ptq_bits": "W4A6"})
    assert block.settings.bits == "W4A6"


def test_pretrainer_block_needs_no_metric_and_no_list_yet(tmp_path):
    path = ROOT / "hparams/VoxCeleb/SpeakerRec/ptq_verification_ecapa.yaml"
    block = load_block(path, tmp_path, {"ptq_runtime": "reference"})
    assert block.settings.method == "uniform"
    assert block.settings.plan is None
    batches, forward = block.calibration
    assert forward is None
    assert not batches.source.exists()
    assert [type(f).__name__ for f in batches.front_end] == [
        "Fbank",
        "InputNormalization",
    ]


def test_a_wrong_option_on_the_command_line_names_the_nearest(tmp_path):
    path = ROOT / "hparams" / "ptq.yaml"
    with pytest.raises(KnobError, match="calibration_utterances"):
        load_block(path, tmp_path, {"ptq": {"calibration_utterence": 3}})


@pytest.mark.parametrize("path", PTQ, ids=name)
def test_every_training_recipe_has_a_block(path):
    assert "!new:speechbrain_stablequant.PostTrainingQuantizer" in (
        path.read_text()
    )


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_recipe_yaml_looks_like_speechbrain(path):
    text = path.read_text()
    assert text.startswith("# ####"), "the header box is missing"
    if path in TRAINING:
        assert "\nseed: 1986\n__set_seed: !apply:" in text
        assert "\noutput_folder: !ref results/" in text


@pytest.mark.parametrize("path", PTQ, ids=name)
def test_block_of_recipe_loads(path, tmp_path):
    """With all options of the block where they can be set flatly."""
    _, marker, block = path.read_text().partition("# Quantization #")
    assert marker, "the section of quantization is missing"
    text = RECIPE.format(folder=tmp_path) + block.partition("\n")[2]
    assert isinstance(load_hyperpyyaml(text)["ptq"], PostTrainingQuantizer)


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_recipe_script_compiles(path):
    compile(path.read_text(), str(path), "exec")


@pytest.mark.parametrize(
    "folder", sorted({p.parents[1] for p in RECIPES}), ids=name
)
def test_recipe_is_complete(folder):
    """A README that names every YAML to run, and a training script."""
    readme = (folder / "README.md").read_text()
    for path in folder.glob("hparams/*.yaml"):
        if path.name != "inference.yaml":
            assert path.name in readme, f"{path.name} is not in the README"
    scripts = {path.name for path in folder.glob("*.py")}
    assert any(script.startswith("train") for script in scripts)
