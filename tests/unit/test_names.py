"""Short names, as users write them in Python and in YAML files."""

import importlib
import inspect

import pytest
from hyperpyyaml import load_hyperpyyaml

PACKAGES = (
    "speechbrain_stablequant",
    "speechbrain_stablequant.models",
    "speechbrain_stablequant.metrics",
)
NAMES = [
    (package, name)
    for package in PACKAGES
    for name in importlib.import_module(package).__all__
]


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_each_short_name_is_there(package, name):
    module = importlib.import_module(package)
    value = getattr(module, name)
    assert inspect.isclass(value) or inspect.isfunction(value)
    assert value.__name__ == name
    assert value.__doc__
    assert name in dir(module)


@pytest.mark.parametrize("package", PACKAGES)
def test_other_names_are_an_error_as_of_any_module(package):
    with pytest.raises(AttributeError, match="NoSuchThing"):
        importlib.import_module(package).NoSuchThing  # noqa: B018


YAML = """
checkpointer: !new:speechbrain.utils.checkpoints.Checkpointer
    checkpoints_dir: {folder}
ptq: !new:speechbrain_stablequant.PostTrainingQuantizer
    checkpointer: !ref <checkpointer>
trunk: !new:speechbrain.lobes.models.transformer.TransformerLM.TransformerLM
    vocab: 20
    d_model: 16
    nhead: 2
    num_encoder_layers: 1
lm: !new:speechbrain_stablequant.models.MultiDomainLM
    trunk: !ref <trunk>
    domains:
        music: !new:speechbrain_stablequant.models.DomainConfig
            bottleneck: 4
scorer: !new:speechbrain_stablequant.models.TransformerLMScorerWithCache
    language_model: !ref <lm>
perplexity: !name:speechbrain_stablequant.metrics.PerplexityStats
load: !name:speechbrain_stablequant.load_quantized
"""


def test_a_yaml_file_builds_objects_by_their_short_names(tmp_path):
    hparams = load_hyperpyyaml(YAML.format(folder=tmp_path))
    assert type(hparams["ptq"]).__name__ == "PostTrainingQuantizer"
    assert list(hparams["lm"].domains) == ["music"]
    assert hparams["lm"].domains["music"].config.bottleneck == 4
    assert hparams["scorer"].lm is hparams["lm"]
    assert hparams["perplexity"]().ids == []
    assert callable(hparams["load"])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("Wav2Vec2", "wav2vec2"), ("HuBERT", "hubert"), ("WavLM", "wavlm")],
)
def test_a_yaml_file_builds_encoders_by_their_short_names(name, kind):
    pytest.importorskip("transformers")
    yaml = f"""
encoder: !new:speechbrain_stablequant.models.{name}
    source:
        model_type: {kind}
        hidden_size: 16
        num_hidden_layers: 1
        num_attention_heads: 2
        intermediate_size: 16
        conv_dim: [8, 8]
        conv_kernel: [10, 3]
        conv_stride: [5, 4]
        num_feat_extract_layers: 2
        num_conv_pos_embeddings: 8
        num_conv_pos_embedding_groups: 2
"""
    assert type(load_hyperpyyaml(yaml)["encoder"]).__name__ == name
