"""Frozen encoders: loading, mixing, caching, distilling, publishing."""

import json

import pytest
import soundfile as sf
import torch

pytest.importorskip("transformers")

from speechbrain.inference.encoders import WaveformEncoder

from speechbrain_stablequant import quantize, save_quantized
from speechbrain_stablequant.models.huggingface import HuBERT, Wav2Vec2
from tests.recipes.superb import FOLDER, SMALL, rows_of, write_tone

LENGTHS = torch.tensor([1.0, 0.6])


@pytest.fixture(autouse=True)
def _beside_the_script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER / "Encoder"))
    torch.manual_seed(1986)


def encoder(**changes):
    """A random encoder as the tasks use it."""
    from downstream import show_hidden_states

    torch.manual_seed(3)
    model = Wav2Vec2({**SMALL, **changes}, freeze=True)
    show_hidden_states(model)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def wav(tmp_path_factory):
    path = tmp_path_factory.mktemp("audio") / "tone.wav"
    write_tone(path, 5)
    return str(path)


# -- hidden states and their mixture --------------------------------------------


def test_hidden_states_end_with_the_output(wav):
    model, signal = encoder(), torch.randn(2, 4000)
    states = model(signal, LENGTHS)
    assert states.shape[:2] == (3, 2)
    model.output_all_hiddens = False
    # Also where a layer norm follows the last layer
    assert torch.equal(states[-1], model(signal, LENGTHS))


def test_weighted_sum_is_a_softmax_mixture():
    from downstream import WeightedSum

    mixture, feats = WeightedSum(encoder()), torch.randn(2, 5, 3, 32)
    torch.testing.assert_close(mixture(feats), feats.mean(2))
    with torch.no_grad():
        mixture.weights.copy_(torch.tensor([1.0, -2.0, 0.5]))
    exponentials = [torch.e**1.0, torch.e**-2.0, torch.e**0.5]
    expected = sum(
        w / sum(exponentials) * feats[:, :, n]
        for n, w in enumerate(exponentials)
    )
    torch.testing.assert_close(mixture(feats), expected)


@pytest.mark.parametrize("pooling", [None, "mean", 2])
def test_cache_changes_nothing_and_encodes_once(wav, pooling, monkeypatch):
    from downstream import FrozenFeatures

    model = encoder()
    plain = FrozenFeatures(model, pooling, cache_features=False)
    cached = FrozenFeatures(model, pooling)
    expected = plain(wav)
    torch.testing.assert_close(
        cached(wav).float(), expected, rtol=1e-3, atol=1e-4
    )
    frames = plain.encode(torch.from_numpy(sf.read(wav, dtype="float32")[0]))
    assert torch.equal(frames, expected)
    monkeypatch.setattr(model, "forward", None)
    assert cached(wav).dtype == torch.float16
    with pytest.raises(TypeError):
        plain(wav)


def test_mean_comes_before_a_linear_head_as_well_as_after(wav):
    from downstream import FrozenFeatures, WeightedSum

    model, head = encoder(), torch.nn.Linear(32, 4)
    mixture = WeightedSum(model)
    frames = FrozenFeatures(model, None, False)(wav)[None]
    pooled = FrozenFeatures(model, "mean", False)(wav)[None]
    torch.testing.assert_close(
        head(mixture(frames)).mean(1), head(mixture(pooled))[:, 0]
    )


def test_wrong_features_say_what_to_do(wav, monkeypatch):
    from downstream import FrozenFeatures

    with pytest.raises(ValueError, match="use mean"):
        FrozenFeatures(encoder(), "max")
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: object())
    with pytest.raises(ValueError, match="num_workers: 0"):
        FrozenFeatures(encoder())(wav)


# -- encoders in folders ----------------------------------------------------------


def publish(model, weights, out):
    from publish_encoder import config_of, write_encoder

    write_encoder(config_of(model), weights, out)
    return out


def test_float_folder_loads_with_stock_speechbrain(tmp_path):
    from downstream import load_encoder

    model, signal = encoder(), torch.randn(2, 4000)
    torch.save(model.state_dict(), tmp_path / "float.ckpt")
    folder = publish(model, tmp_path / "float.ckpt", tmp_path / "out")
    stock = WaveformEncoder.from_hparams(source=str(folder))
    states = model(signal, LENGTHS)
    torch.testing.assert_close(stock(signal, LENGTHS), states[-1])
    loaded = load_encoder(str(folder))
    assert torch.equal(loaded(signal, LENGTHS), states)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_quantized_folder_gives_the_states_of_the_model_in_memory(tmp_path):
    from downstream import load_encoder

    model, signal = encoder(), torch.randn(2, 4000)
    before = model(signal, LENGTHS)
    run = lambda m, batch: m(batch, LENGTHS)  # noqa: E731
    result = quantize(model, [signal], run, bits="W4A8", progress=False)
    save_quantized(model, tmp_path / "q.ckpt", result.plan)
    folder = publish(model, tmp_path / "q.ckpt", tmp_path / "out")
    states = load_encoder(str(folder))(signal, LENGTHS)
    torch.testing.assert_close(states, model(signal, LENGTHS))
    assert not torch.allclose(states, before)


def test_folder_of_transformers_loads(tmp_path):
    from downstream import load_encoder

    config = {**SMALL, "model_type": "hubert", "do_stable_layer_norm": False}
    model = HuBERT(config).eval()
    model.model.save_pretrained(tmp_path)
    model.feature_extractor.save_pretrained(tmp_path)
    loaded = load_encoder(str(tmp_path))
    signal = torch.randn(1, 4000)
    states = loaded(signal, torch.ones(1))
    torch.testing.assert_close(states[-1], model(signal, torch.ones(1)))
    with pytest.raises(FileNotFoundError, match="publish_encoder"):
        load_encoder(str(FOLDER))


def test_experiment_of_another_recipe_is_published(tmp_path):
    from publish_encoder import publish_encoder

    model, signal = encoder(), torch.randn(1, 4000)
    checkpoint = tmp_path / "run" / "save" / "CKPT+2026-01-01+00-00-00+00"
    checkpoint.mkdir(parents=True)
    (checkpoint / "CKPT.yaml").write_text("unixtime: 1.0\nWER: 3.0\n")
    torch.save(model.state_dict(), checkpoint / "wav2vec2.ckpt")
    (tmp_path / "run" / "hyperparams.yaml").write_text(
        "prepare: !name:no_such_module.prepare\n"
        "wav2vec2: &id001 !new:speechbrain_stablequant.models.Wav2Vec2\n"
        f"  source: {json.dumps(SMALL)}\n"
        "modules: {wav2vec2: *id001}\n"
    )
    for source in (tmp_path / "run", checkpoint):
        publish_encoder(str(source), str(tmp_path / "out"))
        stock = WaveformEncoder.from_hparams(source=str(tmp_path / "out"))
        states = model(signal, torch.ones(1))
        torch.testing.assert_close(stock(signal, torch.ones(1)), states[-1])
    with pytest.raises(FileNotFoundError, match="hubert"):
        publish_encoder(str(tmp_path / "run"), str(tmp_path), "hubert")


# -- distillation -----------------------------------------------------------------


def test_student_starts_as_the_first_layers_of_the_teacher():
    from distillation import make_student

    teacher = encoder(num_hidden_layers=4, layerdrop=0.5)
    student = make_student(teacher, 2)
    values, expected = student.state_dict(), teacher.state_dict()
    left_out = {k.split(".")[3] for k in expected.keys() - values.keys()}
    assert left_out == {"2", "3"}
    assert all(torch.equal(v, expected[k]) for k, v in values.items())
    signal = torch.randn(2, 4000)
    states = student.train()(signal, LENGTHS)
    assert len(states) == 3
    assert states.requires_grad
    assert len(teacher(signal, LENGTHS)) == 5
    with pytest.raises(ValueError, match="teacher has 4"):
        make_student(teacher, 5)


def test_loss_is_that_of_distilhubert():
    from distillation import hidden_state_loss

    own, his = torch.randn(3, 2, 5, 8), torch.randn(3, 2, 5, 8)
    losses = hidden_state_loss(own, his, LENGTHS, cosine_weight=0.5)
    cosine = torch.cosine_similarity(own[1, 1, :3], his[1, 1, :3], dim=-1)
    distance = (own[1, 1, :3] - his[1, 1, :3]).abs().mean(-1)
    expected = (distance - 0.5 * cosine.sigmoid().log()).mean()
    torch.testing.assert_close(losses[1, 1], expected)


def test_loss_of_a_student_falls():
    from distillation import PredictionHeads, hidden_state_loss, make_student

    teacher = encoder(num_hidden_layers=3)
    student, heads = make_student(teacher, 1), PredictionHeads(teacher)
    assert heads.target_layers == [1, 2, 3]
    optimizer = torch.optim.AdamW(
        [*student.parameters(), *heads.parameters()], lr=1e-3
    )
    signal, losses = torch.randn(4, 3000), []
    lengths = torch.ones(4)
    target = teacher(signal, lengths)[heads.target_layers]
    for _ in range(30):
        predicted = heads(student(signal, lengths))
        loss = hidden_state_loss(predicted, target, lengths).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_unlabelled_speech_keeps_speakers_apart(tmp_path):
    from unlabelled_prepare import prepare_unlabelled, speaker_of

    for speaker in range(40):
        for take in range(2):
            name = f"{speaker}_nohash_{take}.wav"
            write_tone(tmp_path / "up" / name, speaker)
    (tmp_path / "veri.txt").write_text("1 7/a/0.wav 8/a/1.wav\n")
    options = {
        "audio_patterns": [str(tmp_path / "*" / "*.wav")],
        "dev_share": 0.2,
        "test_share": 0.2,
        "exclude_speakers": ["3", str(tmp_path / "veri.txt")],
    }
    prepare_unlabelled(save_folder=str(tmp_path), **options)
    splits = [
        {row["spk_id"] for row in rows_of(tmp_path / f"{split}.csv")}
        for split in ("train", "dev", "test")
    ]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 37
    assert not set.union(*splits) & {"3", "7", "8"}
    assert speaker_of("/data/wav/id10270/5r0dWxy17C8/00001.wav") == "id10270"
    with pytest.raises(FileNotFoundError, match="audio_patterns"):
        prepare_unlabelled(["/nowhere/*.wav"], str(tmp_path))
