"""The demo, from the sample on very few strings."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

pytest.importorskip("espeakng_loader")
RECIPE = Path(__file__).resolve().parents[2] / "recipes/DigitStrings/ASR/CTC"


@pytest.fixture
def recipe(monkeypatch):
    """Let the modules of the recipe be imported."""
    monkeypatch.syspath_prepend(str(RECIPE))


@pytest.mark.slow
def test_demo_quantizes_publishes_and_loads_the_sample(tmp_path):
    """Its own checks pass, and it takes one thread where nobody says."""
    command = [sys.executable, "demo.py", "--output_folder", str(tmp_path)]
    command += ["--n_strings", "[1, 8, 12]", "--noprogressbar"]
    command += ["--ptq", "{plots: False}"]
    done = subprocess.run(
        command,
        cwd=RECIPE,
        env={k: v for k, v in os.environ.items() if not k.startswith("OMP_")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Publishable: EncoderASR loads it" in done.stdout
    assert "12 test strings" in done.stdout
    assert "1 threads" in done.stdout
    report = json.loads((tmp_path / "ptq" / "report.json").read_text())
    assert report["runtime"]["settings"]["threads"] == 1
    wer = report["tests"][0]["metrics"]["WER"]
    assert wer["float"] < 20
    assert wer["quantized"] < wer["float"] + 10
    assert (tmp_path / "ptq" / "hub" / "wav2vec2.ckpt").is_file()


def contents(path):
    """Return what a file holds; safetensors order their notes as they like."""
    if path.suffix != ".safetensors":
        return path.read_text(encoding="utf-8")
    with safe_open(path, "pt") as file:
        weights = {k: file.get_tensor(k).tolist() for k in file.keys()}  # noqa: SIM118
        return file.metadata(), weights


def test_sample_is_the_checkpoint_that_it_was_made_from(recipe, tmp_path):
    from float_sample import SAMPLE, restore_sample, write_sample

    restore_sample(tmp_path / "experiment")
    write_sample(tmp_path / "experiment", tmp_path / "sample")
    for name in ("model.safetensors", "label_encoder.txt"):
        assert contents(tmp_path / "sample" / name) == contents(SAMPLE / name)


def test_test_strings_do_not_depend_on_the_training_set(recipe, tmp_path):
    from digit_strings_prepare import prepare_digit_strings

    found = []
    for n in (1, 3):
        folder = tmp_path / str(n)
        prepare_digit_strings(folder, folder / "audio", n_strings=(n, 2, 2))
        with open(folder / "test.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        found.append([(row["spk_id"], row["wrd"]) for row in rows])
    assert found[0] == found[1]
