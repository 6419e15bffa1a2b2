"""Count and time the encoders of ``benchmarks/superb.py``, column by column.

    python -m benchmarks.superb_accounting results/superb.json \
        float=ENCODER_FLOAT W2A8=ENCODER_W2A8 student=STUDENT_QUANTIZED

For each encoder: bytes on disk (measured); the storage rule and the ESTIMATED
run time of arXiv 2301.00652, see `benchmarks.storage`; and the
time of 10 seconds of audio, measured, relative to the first encoder on
PyTorch. Encoders take turns, so that what else the machine does meets all of
them. Quantized ones run on OpenVINO, whose integer kernels have 8 bits: fewer
bits in a weight save bytes, not time. Adds ``accounting`` to the JSON.
"""

import json
import statistics
import sys
from pathlib import Path

import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.inference.encoders import WaveformEncoder

from benchmarks.storage import storage_of
from speechbrain_stablequant import accelerate, read_header, runtime_report
from speechbrain_stablequant.errors import CheckpointError
from speechbrain_stablequant.metrics.turns import in_turns, timed
from speechbrain_stablequant.report.data import environment

SECONDS, TURNS = 10, 15


def plan_of(source: str):
    """Return the plan of a published folder, None if it is in float."""
    try:
        return read_header(Path(source) / "encoder.ckpt")["plan"]
    except CheckpointError:
        return None


def count(source: str) -> dict:
    """Return the accounting of a published folder."""
    # The architecture alone: weights are counted as the float ones they were.
    with open(Path(source) / "hyperparams.yaml", encoding="utf-8") as file:
        model = load_hyperpyyaml(file)["encoder"]
    storage = storage_of(model, plan_of(source))
    return {
        "num_bytes": (Path(source) / "encoder.ckpt").stat().st_size,
        "num_parameters": storage.num_parameters,
        "num_quantized": storage.num_quantized,
        "paper_num_bytes": storage.paper_num_bytes,
        "estimated_run_time": storage.estimated_run_time,
    }


def load(source: str) -> torch.nn.Module:
    """Return the encoder of a published folder, on integer kernels."""
    interface = WaveformEncoder.from_hparams(source=source)
    encoder = interface.mods.encoder.eval()
    return encoder if plan_of(source) is None else accelerate(encoder)


def median_seconds(models: dict) -> dict:
    """Return the seconds of each model, the median of all turns."""
    torch.manual_seed(1986)
    wavs, lens = torch.randn(1, SECONDS * 16000), torch.ones(1)
    timers = {
        label: lambda _, model=model: timed(model, wavs, lens)[0]
        for label, model in models.items()
    }
    with torch.inference_mode():
        seconds = in_turns(timers, TURNS + 2)
    # The first two turns compile.
    return {label: statistics.median(s[2:]) for label, s in seconds.items()}


def main(path: Path, encoders: dict) -> None:
    """Print a row for each encoder and add them to the JSON."""
    table = json.loads(path.read_text()) if path.is_file() else {}
    found = {label: count(source) for label, source in encoders.items()}
    models = {label: load(source) for label, source in encoders.items()}
    for label, seconds in median_seconds(models).items():
        found[label]["seconds"] = seconds
        if plan_of(encoders[label]) is not None:
            layers = runtime_report(models[label]).layers
            found[label]["int8_layers"] = sum(
                layer.precision == "int8" for layer in layers
            )
            found[label]["planned_layers"] = len(layers)
    first = next(iter(encoders))
    head = ["encoder", "MB on disk", "MB, paper's rule"]
    head += ["ESTIMATED run time", "times as fast, measured"]
    print("| " + " | ".join(head) + " |\n|---" + "|---:" * 4 + "|")
    for label, row in found.items():
        faster = found[first]["seconds"] / row["seconds"]
        # The rule knows bits, not how many layers there are.
        same = row["num_parameters"] == found[first]["num_parameters"]
        estimate = f"{row['estimated_run_time']:.2f}" if same else "-"
        print(
            f"| {label} | {row['num_bytes'] / 1e6:.3f} | "
            f"{row['paper_num_bytes'] / 1e6:.3f} | "
            f"{estimate} | {faster:.2f} |"
        )
    table["accounting"] = {"rows": found, "environment": environment()}
    path.write_text(json.dumps(table) + "\n", encoding="utf-8")
    print(", ".join(f"{k} {v}" for k, v in environment().items()))


if __name__ == "__main__":
    if len(sys.argv) < 3 or not all("=" in a for a in sys.argv[2:]):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), dict(a.split("=", 1) for a in sys.argv[2:]))
