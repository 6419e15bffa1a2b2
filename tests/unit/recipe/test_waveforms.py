import csv
import json

import pytest
import torch
from speechbrain.dataio import audio_io
from speechbrain.lobes.features import Fbank
from speechbrain.processing.features import InputNormalization

from speechbrain_stablequant import WaveformBatches
from speechbrain_stablequant.errors import CalibrationError, KnobError

RATE = 16000


@pytest.fixture
def folder(tmp_path):
    """Write six files of 0.3 to 0.8 seconds; their level tells them apart."""
    for index in range(6):
        wav = torch.full((1, RATE * (3 + index) // 10), 0.1 + index / 10)
        path = tmp_path / "wav" / f"s{index}" / "a.wav"
        path.parent.mkdir(parents=True)
        audio_io.save(path, wav, RATE)
    return tmp_path / "wav"


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def levels(batches):
    return [round(float(b.inputs.mean()) * 10) for b in batches]


def test_folder(folder):
    batches = list(WaveformBatches(folder))
    assert sorted(levels(batches)) == [1, 2, 3, 4, 5, 6]
    for (inputs, lens), level in zip(batches, levels(batches)):
        assert inputs.shape == (1, RATE * (2 + level) // 10)
        assert torch.equal(lens, torch.ones(1))


def test_order_is_random_and_the_same_each_time(folder):
    batches = WaveformBatches(folder, num_utterances=4, max_seconds=0.2)
    first, second = list(batches), list(batches)
    assert levels(first) == levels(second) != sorted(levels(first))
    assert len(first) == 4
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(first, second))
    other = WaveformBatches(folder, num_utterances=4, seed=7)
    assert levels(other) != levels(first)


def test_list_of_a_recipe(folder, tmp_path):
    """As ``prepare_voxceleb`` writes it: chunks of files, in samples."""
    rows = [
        {
            "ID": f"s{i}",
            "duration": 0.1,
            "wav": f"$data_root/s{i}/a.wav",
            "start": 1600,
            "stop": 3200 + 160 * i,
            "spk_id": f"s{i}",
        }
        for i in range(3)
    ]
    batches = WaveformBatches(
        write_csv(tmp_path / "train.csv", rows),
        replacements={"data_root": folder},
    )
    shapes = {
        level: b.inputs.shape for level, b in zip(levels(batches), batches)
    }
    assert shapes == {1 + i: (1, 1600 + 160 * i) for i in range(3)}


def test_json_list(folder, tmp_path):
    path = tmp_path / "train.json"
    part = {"file": str(folder / "s1" / "a.wav"), "start": 0, "stop": 800}
    whole = str(folder / "s2" / "a.wav")
    path.write_text(json.dumps({"a": {"wav": part}, "b": {"wav": whole}}))
    batches = list(WaveformBatches(path))
    assert sorted(b.inputs.shape[1] for b in batches) == [800, RATE // 2]


def test_list_may_be_written_later(folder, tmp_path):
    path = tmp_path / "later.csv"
    batches = WaveformBatches(path)
    with pytest.raises(CalibrationError, match=r"later\.csv.*preparation"):
        next(iter(batches))
    write_csv(path, [{"ID": "a", "wav": folder / "s0" / "a.wav"}])
    assert levels(batches) == [1]


def test_front_end_is_applied_without_a_trace(folder):
    features = Fbank(n_mels=24)
    norm = InputNormalization(norm_type="global")
    with torch.no_grad():
        norm(torch.randn(4, 50, 24), torch.ones(4), epoch=1)
    count, mean = norm.count, norm.glob_mean.clone()
    batches = WaveformBatches(folder, [features, norm, torch.relu])
    (inputs, lens), *_ = list(batches)
    assert inputs.shape[0] == len(lens) == 1
    assert inputs.shape[2] == 24
    assert float(inputs.min()) >= 0.0
    assert features.training
    assert norm.training
    assert norm.count == count
    assert torch.equal(norm.glob_mean, mean)


def test_sentence_normalization_takes_lengths(folder):
    norm = InputNormalization(norm_type="sentence", std_norm=False)
    for batch in WaveformBatches(folder, [Fbank(n_mels=24), norm]):
        assert torch.allclose(
            batch.inputs.mean(1), torch.zeros(1, 24), atol=1e-3
        )


def test_channels_are_averaged(tmp_path):
    stereo = torch.stack([torch.full((800,), 0.2), torch.full((800,), 0.4)])
    audio_io.save(tmp_path / "a.wav", stereo, RATE)
    ((inputs, _),) = WaveformBatches(tmp_path)
    assert inputs.shape == (1, 800)
    assert torch.allclose(inputs, torch.tensor(0.3), atol=1e-3)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (
            [{"ID": "a", "wave": "a.wav"}],
            "no column 'wav'.*Did you mean 'wave'",
        ),
        ([{"id": "a", "wav": "a.wav"}], "not a data list.*'ID'"),
        (
            [{"ID": "a", "wav": "$root/a.wav"}],
            r"not a data list.*\$root.*replace",
        ),
        ([{"ID": "a", "wav": "gone.wav"}], "cannot read 'a'.*gone"),
        ([{"ID": "a", "wav": "a.wav", "start": "x"}], "'x'"),
    ],
)
def test_wrong_lists_are_named(tmp_path, rows, problem):
    path = write_csv(tmp_path / "list.csv", rows)
    with pytest.raises(CalibrationError, match=problem) as caught:
        next(iter(WaveformBatches(path)))
    assert "list.csv" in str(caught.value)


def test_empty_sources_are_named(tmp_path):
    with pytest.raises(CalibrationError, match="no audio files"):
        next(iter(WaveformBatches(tmp_path)))
    empty = tmp_path / "empty.csv"
    empty.write_text("ID,wav\n")
    with pytest.raises(CalibrationError, match=r"empty\.csv' has no utter"):
        next(iter(WaveformBatches(empty)))


def test_another_sample_rate_is_an_error(folder):
    with pytest.raises(CalibrationError, match="16000 Hz.*takes 8000 Hz"):
        next(iter(WaveformBatches(folder, sample_rate=8000)))


@pytest.mark.parametrize("knob", ["num_utterances", "max_seconds"])
def test_numbers_are_positive(folder, knob):
    with pytest.raises(KnobError, match=knob):
        WaveformBatches(folder, **{knob: 0})
