"""Files that run without PyTorch."""

import contextlib
import io
import json
import subprocess
import sys

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml

from speechbrain_stablequant import quantize, save_quantized
from speechbrain_stablequant.cli import export, main
from speechbrain_stablequant.publishing import export as exporting
from tests.integration.folders import strict_json
from tests.integration.publishing import publish_asr


@pytest.fixture(scope="module")
def exports(block_run, tmp_path_factory):
    """Export a recognizer once for each runtime: folder and JSON result."""
    place = tmp_path_factory.mktemp("exports")
    source = publish_asr(block_run[0], place / "published")
    found = {}
    for runtime in ("onnx", "openvino"):
        command = ["export", str(source), "--to", runtime]
        command += ["--output", str(place / runtime), "--json"]
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert main(command) == 0
        found[runtime] = place / runtime, strict_json(out.getvalue())
    return found


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_exported_recognizer_agrees(exports, runtime):
    output, data = exports[runtime]
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


def test_exported_code_runs(exports):
    output, data = exports["onnx"]
    code = "\n".join(export.lines(data)).partition("to run it:\n")[2]
    lines = code.splitlines()
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


def test_speaker_model_whose_check_fails(
    speaker, stablequant, tmp_path, monkeypatch
):
    """All is written and shown; the exit code says that a check failed."""
    monkeypatch.setattr(exporting, "LOWEST_SNR", 500.0)
    command = ["export", speaker[0], "--to", "onnx"]
    code, out, _ = stablequant(*command, "--output", tmp_path / "o", "--json")
    data = strict_json(out)
    assert code == 1
    assert "CHECK FAILED" in "\n".join(export.lines(data))
    (file,) = data["files"]
    assert file["module"] == "embedding_model"
    assert file["inputs"][0]["example_shape"][-1] == 24
    assert all(c["snr"] is None or c["snr"] > 20 for c in file["checks"])


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


def test_language_model_in_one_format_and_then_the_other(stablequant, tmp_path):
    """Nothing is replaced unasked, and nothing of the first export is left."""
    folder = publish_lm(tmp_path / "lm")
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine.bin").write_text("mine")
    command = ["export", folder, "--output", output, "--json", "--to"]
    for runtime, ending in (("openvino", "xml"), ("onnx", "onnx")):
        code, _, err = stablequant(*command, runtime)
        assert code == 2
        assert "not empty" in err
        assert "--overwrite" in err
        code, out, _ = stablequant(*command, runtime, "--overwrite")
        assert code == 0
        (file,) = strict_json(out)["files"]
        assert file["module"] == "lm"
        assert file["inputs"][0]["dtype"] == "int64"
        assert file["num_int8"] == file["num_planned_int8"] > 5
        assert any(output.glob(f"*.{ending}"))
        assert (output / "mine.bin").read_text() == "mine"
    left = {path.name for path in output.iterdir()}
    assert {name.rpartition(".")[2] for name in left} == {"bin", "json", "onnx"}
    assert {name for name in left if name.endswith(".bin")} == {"mine.bin"}
