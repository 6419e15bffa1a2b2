"""Time quantized ECAPA-TDNN checkpoints against the float model, in turns.

    python -m benchmarks.speaker_speed --annotation save/test.csv --channels 512 \
        --checkpoint save/CKPT+.../embedding_model.ckpt \
        ptq/checkpoint/embedding_model.ckpt ...

Single utterances, drawn from the annotation; float on PyTorch, quantized
checkpoints on OpenVINO. All models take turns on each utterance, so that what
else the machine does meets all of them. Prints a Markdown table: real-time
factor and how many times as fast, median and quartiles over utterances.
"""

import argparse
import csv
import random
import statistics
import time
from pathlib import Path

import soundfile
import torch
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.processing.features import InputNormalization

from speechbrain_stablequant import accelerate, load_quantized, runtime_report
from speechbrain_stablequant.report.data import environment


def build(channels: int) -> ECAPA_TDNN:
    """Return SpeechBrain's model, as in the recipe."""
    return ECAPA_TDNN(
        80,
        channels=[channels] * 4 + [3 * channels],
        attention_channels=128,
        lin_neurons=192,
    ).eval()


def utterances(annotation: str, count: int, seed: int):
    """Yield features, relative lengths and seconds of random utterances."""
    with open(annotation, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    features = Fbank(n_mels=80)
    norm = InputNormalization(norm_type="sentence", std_norm=False)
    for row in random.Random(seed).sample(rows, min(count, len(rows))):
        wav = soundfile.read(row["wav"], dtype="float32")[0]
        lens = torch.ones(1)
        feats = norm(features(torch.from_numpy(wav)[None]), lens)
        yield feats, lens, len(wav) / 16000


def seconds_of(model, feats, lens) -> float:
    """Return the time of a call, the best of two: the first may compile."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        model(feats, lens)
        times.append(time.perf_counter() - start)
    return min(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--annotation", required=True)
    parser.add_argument("--checkpoint", required=True, help="float")
    parser.add_argument("--channels", type=int, default=1024)
    parser.add_argument("--utterances", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1986)
    parser.add_argument("quantized", nargs="+", type=Path)
    options = parser.parse_args()

    models = {"float32, PyTorch": build(options.channels)}
    weights = torch.load(options.checkpoint, weights_only=True)
    next(iter(models.values())).load_state_dict(weights)
    for path in options.quantized:
        model = build(options.channels)
        load_quantized(model, path)
        accelerate(model)
        models[path.parents[1].name] = model
    factors = {name: [] for name in models}
    with torch.inference_mode():
        for feats, lens, seconds in utterances(
            options.annotation, options.utterances, options.seed
        ):
            for name, model in models.items():
                took = seconds_of(model, feats, lens)
                factors[name].append(took / seconds)
    base = factors["float32, PyTorch"]
    print("| model | real-time factor | times as fast (quartiles) | int8 |")
    print("|---|---:|---|---|")
    for name, found in factors.items():
        low, middle, high = statistics.quantiles(
            [b / f for b, f in zip(base, found)], n=4
        )
        int8 = ""
        if name != "float32, PyTorch":
            report = runtime_report(models[name])
            int8 = f"{report.num_int8} of {report.num_planned}"
        print(
            f"| {name} | {statistics.median(found):.4f} "
            f"| {middle:.2f} ({low:.2f}-{high:.2f}) | {int8} |"
        )
    print(", ".join(f"{k} {v}" for k, v in environment().items()))


if __name__ == "__main__":
    main()
