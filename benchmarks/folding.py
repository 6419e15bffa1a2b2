"""Measure what moving BatchNorm forward does to quantization error.

    python benchmarks/folding.py --annotation save/dev.csv \
        --checkpoint save/CKPT+.../embedding_model.ckpt
    python benchmarks/folding.py --annotation save/dev.csv --gains 0.5

The first line is for a trained ECAPA-TDNN, the second for x-vectors with random
weights and log-normal gains of BatchNorm. Utterances are drawn from the
annotation and cut to equal lengths. Prints a Markdown table of the squared
distance of embeddings to those of the float model, over their squared length,
and writes JSON (``--json``). ``--repeats 30`` adds the time of each row at W8A8
on OpenVINO. What moves where is in ``folding_moves.py``.
"""

import argparse
import copy
import csv
import functools
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

import soundfile
import torch
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.lobes.models.Xvector import Xvector
from speechbrain.processing.features import InputNormalization
from torch import nn

from speechbrain_stablequant.layers import Conversion, cached_weights
from speechbrain_stablequant.methods.pipeline import make_plan
from speechbrain_stablequant.methods.settings import Settings
from speechbrain_stablequant.metrics.turns import in_turns, timed
from speechbrain_stablequant.report.data import environment
from speechbrain_stablequant.runtime import accelerate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.folding_moves import (
    ecapa_groups,
    equalize,
    fold,
    gains,
    offsets,
    xvector_groups,
)

WIDTHS = ("W8A8", "W4A8", "W8A6", "W8A4")
AFFINE = {"activation_symmetric": False, "activation_signed": False}
SECONDS = 2.5
BATCH = 10


# -- rows of the table ---------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """A row of the table: where, how, and with which knobs."""

    places: tuple[str, ...] = ()
    change: Optional[Callable] = None
    affine: bool = False


def _variants(places, folded) -> dict[str, Variant]:
    """Return the rows for a model; whole folds need groups of one."""
    rows = {"as it is": Variant(), "affine inputs": Variant(affine=True)}
    for place in folded:
        rows[f"{place}: folded"] = Variant((place,), fold)
        rows[f"{place}: gains"] = Variant((place,), gains)
    for place in places:
        if place not in ("residual", "mfa"):
            rows[f"{place}: offsets"] = Variant((place,), offsets)
            rows[f"{place}: offsets, affine inputs"] = Variant(
                (place,), offsets, True
            )
    for alpha in (0.25, 0.5):
        change = functools.partial(equalize, alpha=alpha)
        for place in places:
            rows[f"{place}: equalized {alpha}"] = Variant((place,), change)
        if len(places) > 1:
            rows[f"all: equalized {alpha}"] = Variant(tuple(places), change)
    return rows


# -- models and data -----------------------------------------------------------


def read_features(annotation: Path, count: int, seed: int) -> torch.Tensor:
    """Return features of utterances drawn at random, cut to equal lengths."""
    with open(annotation, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows = [r for r in rows if float(r["duration"]) >= SECONDS]
    if len(rows) < count:
        raise SystemExit(
            f"{annotation} has {len(rows)} utterances of {SECONDS} s or more; "
            f"{count} are needed."
        )
    features = Fbank(n_mels=80)
    normalize = InputNormalization(norm_type="sentence", std_norm=False)
    found = []
    for row in random.Random(seed).sample(rows, count):
        start = int(row["start"])
        stop = start + int(16000 * SECONDS)
        wave, _ = soundfile.read(
            row["wav"], start=start, stop=stop, dtype="float32"
        )
        frames = features(torch.from_numpy(wave)[None])
        found.append(normalize(frames, torch.ones(1)))
    return torch.cat(found)


def trained_ecapa(checkpoint: Path) -> ECAPA_TDNN:
    """Return a trained model; sizes are those of its weights."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    sizes = {k: v.shape for k, v in state.items() if k.endswith(".weight")}
    first = sizes["blocks.0.conv.conv.weight"]
    blocks = len({k.split(".")[1] for k in sizes if k.startswith("blocks.")})
    width = sizes["mfa.conv.conv.weight"][0]
    model = ECAPA_TDNN(
        first[1],
        channels=[first[0]] * blocks + [width],
        attention_channels=sizes["asp.conv.conv.weight"][1],
        lin_neurons=sizes["fc.conv.weight"][0],
    )
    model.load_state_dict(state)
    return model.eval()


def random_xvector(features: torch.Tensor, spread: float) -> Xvector:
    """Return a model with random weights and the statistics of features."""
    model = Xvector(in_channels=features.shape[2])
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d):
            norm.momentum = None  # the mean of all batches
            nn.init.normal_(norm.bias, std=0.3)
            norm.weight.normal_().mul_(spread).exp_()
    embed(model.train(), features)
    return model.eval()


def embed(model: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Return embeddings, (utterances, values)."""
    return torch.cat([model(batch)[:, 0] for batch in features.split(BATCH)])


def input_magnitudes(model, features) -> dict[str, torch.Tensor]:
    """Return the largest value of each input channel of convolutions."""
    found: dict[str, torch.Tensor] = {}

    def observe(name):
        def hook(conv, args):
            seen = args[0].abs().amax((0, 2))
            found[name] = torch.maximum(found.get(name, seen), seen)

        return hook

    hooks = [
        conv.register_forward_pre_hook(observe(name))
        for name, conv in model.named_modules()
        if isinstance(conv, nn.Conv1d)
    ]
    embed(model, features)
    for hook in hooks:
        hook.remove()
    return found


# -- measuring -----------------------------------------------------------------


def relative(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the squared distance over the squared length."""
    power = expected.square().sum()
    return float((result - expected).square().sum() / power)


def changed(model, variant: Variant, groups, magnitudes) -> nn.Module:
    """Return a copy of a model with BatchNorm moved."""
    twin = copy.deepcopy(model)
    if variant.change is not None:
        by_place = groups(twin)
        seen = {id(twin.get_submodule(n)): m for n, m in magnitudes.items()}
        for place in variant.places:
            variant.change(by_place[place], seen)
    return twin


def quantized_errors(model, variant, calibration, test, expected, widths):
    """Return errors by width: as a float model first, then quantized."""
    errors = {"float": relative(embed(model, test), expected)}
    statistics = None
    for bits in widths:
        with Conversion(model) as conversion:
            planned = _quantize(
                conversion, variant, bits, calibration, statistics
            )
            statistics = planned.statistics
            with cached_weights(model):
                errors[bits] = relative(embed(model, test), expected)
    return errors


def _quantize(conversion, variant, bits, calibration, statistics=None):
    knobs = {"bits": bits, "method": "uniform"}
    if variant.affine:
        knobs.update(AFFINE)
    planned = make_plan(
        conversion,
        Settings.from_knobs(knobs),
        lambda: embed(conversion.root, calibration),
        None,
        progress=False,
        statistics=statistics,
    )
    conversion.apply_plan(planned.plan)
    return planned


def speeds(models, variants, calibration, test, repeats: int):
    """Return seconds at W8A8 on OpenVINO, and how often they were taken.

    Models take turns, so that what else the machine does meets all of them.
    """
    for name, model in models.items():
        _quantize(Conversion(model), variants[name], "W8A8", calibration)
        accelerate(model, threads=1)
        model(test[:1])
    timers = {
        name: lambda turn, model=model: timed(
            model, test[turn % len(test)][None]
        )[0]
        for name, model in models.items()
    }
    return in_turns(timers, repeats)


# -- the table -----------------------------------------------------------------


def markdown(rows: dict[str, dict], widths) -> str:
    """Return a table: errors, and times those of the first row."""
    lines = ["| | " + " | ".join(widths) + " |", "|---" * (len(widths) + 1)]
    lines[-1] += "|"
    first = next(iter(rows.values()))
    for name, errors in rows.items():
        cells = [
            f"{errors[w]:.2g} ({errors[w] / first[w]:.2f}x)" for w in widths
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def arguments():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--annotation", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, help="of an ECAPA-TDNN")
    parser.add_argument("--gains", type=float, default=0.5, help="x-vectors")
    parser.add_argument("--widths", nargs="+", default=WIDTHS)
    parser.add_argument("--rows", nargs="+", help="of the table; all")
    parser.add_argument("--calibration", type=int, default=40)
    parser.add_argument("--test", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=0, help="for speed")
    parser.add_argument("--seed", type=int, default=1986)
    parser.add_argument("--json", type=Path, default=Path("folding.json"))
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    """Measure all rows."""
    options = arguments()
    torch.manual_seed(options.seed)
    features = read_features(
        options.annotation, options.calibration + options.test, options.seed
    )
    calibration = features[: options.calibration]
    test = features[options.calibration :]
    if options.checkpoint is not None:
        model, groups = trained_ecapa(options.checkpoint), ecapa_groups
        variants = _variants(("fc", "res2", "residual", "mfa"), ("fc",))
    else:
        model = random_xvector(calibration, options.gains)
        groups, variants = xvector_groups, _variants(("blocks",), ("blocks",))
    variants = {n: variants[n] for n in options.rows or variants}
    expected = embed(model, test)
    magnitudes = input_magnitudes(model, calibration)
    rows, models = {}, {}
    for name, variant in variants.items():
        models[name] = changed(model, variant, groups, magnitudes)
        rows[name] = quantized_errors(
            models[name], variant, calibration, test, expected, options.widths
        )
        print(name, rows[name], flush=True)
    times = {}
    if options.repeats:
        times = speeds(models, variants, calibration, test, options.repeats)
    found = {"errors": rows, "seconds": times, "environment": environment()}
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(markdown(rows, options.widths))
    for name, seconds in times.items():
        first = next(iter(times.values()))
        ratios = sorted(b / a for a, b in zip(first, seconds))
        print(f"{name}: {ratios[len(ratios) // 2]:.2f}x the time")
    print(", ".join(f"{k} {v}" for k, v in environment().items()))


if __name__ == "__main__":
    main()
