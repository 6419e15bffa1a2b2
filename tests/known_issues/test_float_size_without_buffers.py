"""The float size left out a model's buffers.

A small language model's table of positions is most of its file: the report
compared the quantized file with a fraction of the float one.
"""

import json

import torch
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.utils.parameter_transfer import Pretrainer

from speechbrain_stablequant import PostTrainingQuantizer


def test_float_size_has_the_buffers_of_a_language_model(tmp_path):
    options = {"d_model": 8, "nhead": 2, "num_encoder_layers": 1, "d_ffn": 16}
    models = [TransformerLM(vocab=20, **options) for _ in range(2)]
    path = tmp_path / "lm_model.ckpt"
    torch.save(models[0].state_dict(), path)
    pretrainer = Pretrainer(
        loadables={"lm_model": models[1]}, paths={"lm_model": str(path)}
    )
    tokens = torch.randint(1, 20, (2, 5))
    folder = tmp_path / "ptq"
    PostTrainingQuantizer(
        pretrainer=pretrainer,
        calibration_batches=[tokens],
        output_folder=str(folder),
    )
    pretrainer.collect_files()
    pretrainer.load_collected()
    (file,) = json.loads((folder / "report.json").read_text())["files"]
    expected = sum(
        t.numel() * t.element_size() for t in models[0].state_dict().values()
    )
    assert file["float_num_bytes"] == expected
    assert file["num_bytes"] < 1.1 * path.stat().st_size
