"""The inference YAML of recipes of many kinds, without running them."""

import io

import pytest
import yaml
from hyperpyyaml import load_hyperpyyaml

from speechbrain_stablequant.errors import PublishError
from speechbrain_stablequant.publishing.interfaces import (
    choose,
    interface,
    make_blueprint,
)

LABELS = "'a' => 0\n'b' => 1\n================\n'starting_index' => 0\n"
TOKENIZER = "ptq/checkpoint/tokenizer.ckpt"
CTC = """
output_neurons: 2
sample_rate: 16000
front: &front !new:torch.nn.Linear {in_features: 4, out_features: 4}
lin: &lin !new:torch.nn.Linear {in_features: 4, out_features: 2}
label_encoder: &labels !new:speechbrain.dataio.encoder.CTCTextEncoder
compute_features: &features !new:speechbrain.lobes.features.Fbank
normalize: &normalize !new:speechbrain.processing.features.InputNormalization
model: &model !new:torch.nn.ModuleList
- [*front, *lin]
modules:
  compute_features: *features
  normalize: *normalize
  enc: *front
  ctc_lin: *lin
blank_index: 1
lr: 1.e-8
data_folder: /data/speech
opt: !name:torch.optim.Adam {lr: 1.e-8}
checkpointer: !new:speechbrain.utils.checkpoints.Checkpointer
  checkpoints_dir: /results/save
  recoverables: {model: *model, tokenizer: *labels}
"""
SPEAKER = """
sample_rate: 16000
compute_features: &features !new:speechbrain.lobes.features.Fbank
mean_var_norm: &norm !new:speechbrain.processing.features.InputNormalization
modules:
  compute_features: *features
  mean_var_norm: *norm
  embedding_model: &ecapa !new:torch.nn.Linear {in_features: 4, out_features: 4}
  classifier: &lin !new:torch.nn.Linear {in_features: 4, out_features: 2}
checkpointer: !new:speechbrain.utils.checkpoints.Checkpointer
  checkpoints_dir: /results/save
  recoverables: {embedding_model: *ecapa, classifier: *lin}
"""


def blueprint(recipe, name=None):
    return make_blueprint(choose(recipe, name), recipe)


def objects(found):
    """Return what the YAML makes, as SpeechBrain would load it."""
    return load_hyperpyyaml(io.StringIO(found.text))


def test_what_is_taken_over(make_recipe):
    found = blueprint(make_recipe(CTC, others={TOKENIZER: LABELS}))
    assert found.interface.name == "EncoderASR"
    assert sorted(found.files) == ["model", "tokenizer"]
    made = objects(found)
    assert "opt" not in made
    assert "/" not in found.text.partition("\n\n")[2]
    assert made["model"][1] is made["encoder"].ctc_lin
    assert list(made["encoder"].keys()) == [
        *("compute_features", "normalize", "enc", "ctc_lin", "log_softmax")
    ]
    assert made["decoding_function"].keywords == {"blank_id": 1}
    hooks = made["pretrainer"].custom_hooks
    assert list(hooks) == ["model"]


def test_another_sampling_rate(make_recipe):
    text = CTC.replace("16000", "8000.0")
    found = blueprint(make_recipe(text, others={TOKENIZER: LABELS}))
    assert objects(found)["audio_normalizer"].sample_rate == 8000


def test_another_sampling_rate_of_speakers(make_recipe):
    text = SPEAKER.replace("16000", "8000")
    recipe = make_recipe(text, ("embedding_model",))
    found = make_blueprint(interface("SpeakerRecognition"), recipe)
    assert objects(found)["audio_normalizer"].sample_rate == 8000


def test_a_sampling_rate_that_is_none(make_recipe):
    text = CTC.replace("16000", "8000.5")
    recipe = make_recipe(text, others={TOKENIZER: LABELS})
    with pytest.raises(PublishError, match="whole number is needed"):
        blueprint(recipe)


def test_an_encoder_of_that_name(make_recipe):
    """The whole encoder gets another name, and stays the module encoder."""
    text = CTC.replace("front:", "encoder:")
    found = blueprint(make_recipe(text, others={TOKENIZER: LABELS}))
    made = objects(found)
    assert made["modules"]["encoder"] is made["asr_encoder"]
    assert made["asr_encoder"].enc is made["encoder"]


def test_modules_without_a_name_of_their_own(make_recipe):
    recipe = make_recipe(SPEAKER, ("embedding_model", "classifier"))
    made = objects(make_blueprint(interface("SpeakerRecognition"), recipe))
    module = made["modules"]["embedding_model"]
    assert made["pretrainer"].loadables["embedding_model"] is module


def test_an_object_that_two_share_stays_one(make_recipe):
    text = CTC.replace(
        "front: &front !new:torch.nn.Linear {in_features: 4, out_features: 4}",
        "front: &front !new:torch.nn.Sequential\n- &inner !new:torch.nn.ReLU",
    ).replace(
        "lin: &lin !new:torch.nn.Linear {in_features: 4, out_features: 2}",
        "lin: &lin !new:torch.nn.Sequential\n- *inner",
    )
    made = objects(blueprint(make_recipe(text, others={TOKENIZER: LABELS})))
    encoder = made["encoder"]
    assert encoder.enc[0] is encoder.ctc_lin[0]


def test_search_of_the_test(make_recipe):
    beam = "test_beam_search: {beam_size: 7, kenlm_model_path: null}\n"
    found = blueprint(make_recipe(CTC + beam, others={TOKENIZER: LABELS}))
    made = objects(found)
    assert made["decoding_function"].__name__ == "CTCBeamSearcher"
    assert made["test_beam_search"] == {"beam_size": 7}
    assert not found.left_out


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("test_beam_search: {kenlm_model_path: a.bin}", "n-gram"),
        ("rescorer: !new:torch.nn.ReLU", "rescored"),
    ],
)
def test_what_the_interface_leaves_out_is_said(make_recipe, extra, said):
    found = blueprint(make_recipe(CTC + extra, others={TOKENIZER: LABELS}))
    (step,) = found.left_out
    assert said in step


@pytest.mark.parametrize("switch", ["amp_to_db: True", "upsampling: True"])
def test_features_that_no_interface_computes(make_recipe, switch):
    recipe = make_recipe(CTC + switch, others={TOKENIZER: LABELS})
    with pytest.raises(PublishError, match=f"{switch}.*other features"):
        blueprint(recipe)


def test_labels_beside_an_empty_encoder(make_recipe):
    empty = "================\n'starting_index' => 0\n"
    others = {TOKENIZER: empty, "save/label_encoder.txt": LABELS}
    recipe = make_recipe(CTC, others=others)
    blueprint(recipe)
    assert recipe.files["tokenizer"].name == "label_encoder.txt"


def test_a_tokenizer_that_the_recipe_makes_in_python(make_recipe):
    text = CTC.replace(", tokenizer: *labels", "").replace(
        "label_encoder: &labels !new:speechbrain.dataio.encoder.CTCTextEncoder",
        "token_type: unigram",
    )
    others = {"save/2_unigram.model": "x", "save/5_unigram.model": "y"}
    recipe = make_recipe(text, others=others)
    found = blueprint(recipe)
    assert recipe.files["tokenizer"].name == "2_unigram.model"
    assert "!new:sentencepiece.SentencePieceProcessor" in found.text


def test_no_tokenizer_at_all(make_recipe):
    text = CTC.replace(", tokenizer: *labels", "").replace(
        "label_encoder: &labels !new:speechbrain.dataio.encoder.CTCTextEncoder",
        "token_type: unigram",
    )
    with pytest.raises(PublishError, match=r"Copy it to .*tokenizer\.ckpt"):
        blueprint(make_recipe(text))


def test_what_was_not_trained_here(make_recipe):
    text = CTC.replace(", tokenizer: *labels", "") + (
        "pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer\n"
        "  loadables: {tokenizer: *labels}\n"
        "  paths: {tokenizer: other/tokenizer.ckpt}\n"
    )
    others = {"save/label_encoder.txt": LABELS}
    found = blueprint(make_recipe(text, others=others))
    assert list(found.pretrained) == ["tokenizer"]


def test_unknown_interfaces_and_modules(make_recipe):
    recipe = make_recipe(CTC.replace("ctc_lin:", "output_layer:"))
    with pytest.raises(PublishError, match="which interface loads"):
        choose(recipe)
    with pytest.raises(PublishError, match="Did you mean 'EncoderASR'"):
        choose(recipe, "EncoderAsr")


def test_the_yaml_is_plain_yaml(make_recipe):
    """Values keep their text: numbers, tuples and words that look like others."""
    text = CTC.replace(
        "in_features: 4, out_features: 2",
        "in_features: 4, out_features: 2, bias: yes",
    )
    found = blueprint(make_recipe(text, others={TOKENIZER: LABELS}))
    node = yaml.compose(found.text)
    assert node is not None
    assert "bias: yes" in found.text


def test_an_encoder_has_no_results_of_its_own(make_recipe):
    text = CTC.replace(
        "front: &front !new:torch.nn.Linear {in_features: 4, out_features: 4}",
        "front: &front !new:speechbrain_stablequant.models.Wav2Vec2\n"
        "  source: {model_type: wav2vec2, hidden_size: 32, "
        "num_hidden_layers: 1, num_attention_heads: 2}\n  freeze: False",
    ).replace("{model: *model,", "{wav2vec2: *front,")
    recipe = make_recipe(text, ("wav2vec2",))
    found = blueprint(recipe, "WaveformEncoder")
    assert list(found.files) == ["wav2vec2"]
    assert "part of" in found.left_out[0]
    assert "freeze" not in found.text
