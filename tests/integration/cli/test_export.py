"""Files that run without PyTorch."""

import json
import subprocess
import sys

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml

from speechbrain_stablequant import quantize, save_quantized
from tests.integration.folders import strict_json


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_exported_recognizer_runs_alone(
    published, stablequant, tmp_path, runtime
):
    output = tmp_path / "exported"
    code, out, _ = stablequant(
        "export", published, "--to", runtime, "--output", output, "--json"
    )
    data = strict_json(out)
    assert code == 0
    assert json.loads((output / "export.json").read_text())["ok"] is True
    assert data["sample_rate"] == 16000
    assert sum(file["num_int8"] for file in data["files"]) == sum(
        file["num_planned_int8"] for file in data["files"]
    )
    for file in data["files"]:
        assert (output / file["file"]).is_file()
        assert len(file["checks"]) == 2
        shapes = [tuple(c["shapes"].values()) for c in file["checks"]]
        assert shapes[0] != shapes[1]
        assert all(c["snr"] is None or c["snr"] > 20 for c in file["checks"])


def test_exported_code_runs(published, stablequant, tmp_path):
    output = tmp_path / "exported"
    code, out, _ = stablequant(
        "export", published, "--to", "onnx", "--output", output
    )
    assert code == 0
    lines = out.partition("to run it:\n")[2].splitlines()
    assert len(lines) == 5
    source = "\n".join(line.strip() for line in lines)
    arrays = "np.zeros((1, 16000), 'f4')", "np.ones(1, 'f4')"
    for array in arrays:
        source = source.replace("...", array, 1)
    done = subprocess.run(
        [sys.executable, "-c", f"import numpy as np\n{source}"],
        cwd=output,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[(1, ")


def test_exported_speaker_model(speaker, stablequant, tmp_path):
    code, out, _ = stablequant(
        "export",
        speaker[0],
        "--to",
        "onnx",
        "--output",
        tmp_path / "o",
        "--json",
    )
    files = strict_json(out)["files"]
    assert code == 0
    assert [file["module"] for file in files] == ["embedding_model"]
    assert files[0]["inputs"][0]["example_shape"][-1] == 24


def test_failed_check_of_an_export(
    published, stablequant, tmp_path, monkeypatch
):
    from speechbrain_stablequant.publishing import export as exporting

    monkeypatch.setattr(exporting, "LOWEST_SNR", 500.0)
    arguments = [
        "export",
        published,
        "--to",
        "onnx",
        "--output",
        tmp_path / "o",
    ]
    code, out, _ = stablequant(*arguments)
    assert code == 1
    assert "CHECK FAILED" in out


def test_export_does_not_overwrite(published, stablequant, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    arguments = ["export", published, "--to", "openvino", "--output", output]
    code, _, err = stablequant(*arguments)
    assert code == 2
    assert "not empty" in err
    code, _, _ = stablequant(*arguments, "--overwrite")
    assert code == 0
    assert (output / "mine.txt").read_text() == "mine"
    assert (output / "export.json").is_file()


def test_export_in_another_format_leaves_nothing_stale(
    published, stablequant, tmp_path
):
    output = tmp_path / "out"
    arguments = ["export", published, "--output", output]
    assert stablequant(*arguments, "--to", "openvino")[0] == 0
    (output / "mine.bin").write_text("mine")
    code, _, err = stablequant(*arguments, "--to", "onnx")
    assert code == 2
    assert "--overwrite" in err
    assert any(output.glob("*.xml"))
    assert stablequant(*arguments, "--to", "onnx", "--overwrite")[0] == 0
    left = sorted(path.name for path in output.iterdir())
    assert "mine.bin" in left
    assert {name.rpartition(".")[2] for name in left} == {"bin", "json", "onnx"}
    assert [name for name in left if name.endswith(".bin")] == ["mine.bin"]


class Letters:
    """A tokenizer with as much as an interface asks for."""

    def encode_as_ids(self, text):
        return [ord(letter) % 20 + 3 for letter in text]


LM_YAML = """
lm: !new:speechbrain.lobes.models.transformer.TransformerLM.TransformerLM
    vocab: 24
    d_model: 16
    nhead: 2
    num_encoder_layers: 2
    num_decoder_layers: 0
    d_ffn: 32
    activation: !name:torch.nn.GELU
    normalize_before: True
modules:
    lm: !ref <lm>
tokenizer: !new:tests.integration.cli.test_export.Letters
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        lm: !ref <lm>
    custom_hooks:
        lm: !name:speechbrain_stablequant.load_quantized
"""


def publish_lm(folder):
    lm = load_hyperpyyaml(LM_YAML)["lm"].eval()
    data = [torch.randint(1, 24, (2, 9))]
    plan = quantize(lm, data, bits="W8A8", progress=False).plan
    folder.mkdir()
    save_quantized(lm, folder / "lm.ckpt", plan)
    (folder / "hyperparams.yaml").write_text(LM_YAML)
    return folder


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_exported_language_model(stablequant, tmp_path, runtime):
    folder = publish_lm(tmp_path / "lm")
    code, out, _ = stablequant(
        "export", folder, "--to", runtime, "--output", tmp_path / "o", "--json"
    )
    assert code == 0
    file = strict_json(out)["files"][0]
    assert file["module"] == "lm"
    assert file["inputs"][0]["dtype"] == "int64"
    assert file["num_int8"] == file["num_planned_int8"] > 5
