"""Encoders from a configuration: the dict says what is wrong with it."""

import pytest

from speechbrain_stablequant.errors import KnobError
from speechbrain_stablequant.models.huggingface import HuBERT, Wav2Vec2

SMALL = {
    "model_type": "wav2vec2",
    "conv_dim": [16] * 7,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def test_a_misspelt_option_names_the_nearest():
    with pytest.raises(KnobError, match="hidden_size"):
        Wav2Vec2({**SMALL, "hiden_size": 32})


def test_an_unknown_model_type_names_some():
    with pytest.raises(KnobError, match="hubert"):
        HuBERT({"model_type": "hubbert"})


@pytest.mark.parametrize("normalize", [True, False])
def test_do_normalize_is_read(normalize):
    model = Wav2Vec2({**SMALL, "do_normalize": normalize})
    assert model.normalize_wav is normalize


def test_the_users_dict_is_not_changed():
    config = dict(SMALL, do_normalize=True)
    before = dict(config)
    Wav2Vec2(config)
    assert config == before


def test_a_folder_with_the_configuration_alone_is_enough(tmp_path):
    Wav2Vec2(SMALL).model.config.save_pretrained(tmp_path)
    Wav2Vec2(SMALL).feature_extractor.save_pretrained(tmp_path)
    model = Wav2Vec2(str(tmp_path), str(tmp_path / "save"))
    assert model.model.config.hidden_size == 32
    assert not list(tmp_path.glob("*.safetensors"))
