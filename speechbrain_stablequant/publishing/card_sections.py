"""The sections of a model card, each a list of Markdown paragraphs."""

import json
from collections.abc import Sequence
from typing import Optional

from speechbrain_stablequant import __version__
from speechbrain_stablequant.core.format import (
    decimals,
    interval,
    megabytes,
    number,
    times_as_fast,
)
from speechbrain_stablequant.core.plan import QuantizationPlan
from speechbrain_stablequant.publishing.check import Check
from speechbrain_stablequant.publishing.interfaces import Interface
from speechbrain_stablequant.publishing.options import About

__all__ = [
    "METRICS",
    "coverage",
    "how_to_load",
    "measured_on",
    "quantization",
    "reproduce",
    "results",
    "summary",
]

# Names of the hub for metrics of recipes
METRICS = {
    "WER": ("wer", "Word error rate, in percent"),
    "CER": ("cer", "Character error rate, in percent"),
    "EER": ("eer", "Equal error rate, in percent"),
    "minDCF": ("min_dcf", "Minimum detection cost, times 100"),
    "error": ("error_rate", "Classification error (1 is all)"),
    "PPL": ("perplexity", "Perplexity"),
    "BPC": ("bits_per_character", "Bits per character"),
}
_CALLS = {
    "EncoderASR": 'print(model.transcribe_file("{audio}"))',
    "EncoderDecoderASR": 'print(model.transcribe_file("{audio}"))',
    "SpeakerRecognition": (
        'score, same_speaker = model.verify_files("{audio}", "other.wav")'
    ),
    "EncoderClassifier": (
        'probabilities, score, index, label = model.classify_file("{audio}")'
    ),
    "WaveformEncoder": 'states = model.encode_file("{audio}")',
    "LanguageModel": 'print(model.perplexity(["a sentence of the domain"]))',
}


def summary(interface, report, plan) -> str:
    """Say what it is, and how large."""
    files = report["files"]
    before = sum(file["float_num_bytes"] for file in files)
    after = sum(file["num_bytes"] for file in files)
    size = (
        f" Its files have {megabytes(after)}, {after / before:.1%} of the float "
        f"ones ({megabytes(before)})."
        if before
        else ""
    )
    return (
        f"{interface.title}, quantized with speechbrain_stablequant "
        f"({report['label']}): {_widths(plan)}.{size}"
    )


def _widths(plan: QuantizationPlan) -> str:
    """Return how many layers have which widths."""
    counts: dict[str, int] = {}
    for layer in plan.layers.values():
        inputs = {i.scheme.bits for i in layer.inputs.values()}
        text = f"{layer.weight.bits}-bit weights"
        if inputs:
            text += f" and {'/'.join(map(str, sorted(inputs)))}-bit inputs"
        counts[text] = counts.get(text, 0) + 1
    return ", ".join(
        f"{count} layer{'' if count == 1 else 's'} with {text}"
        for text, count in sorted(counts.items(), key=lambda kv: -kv[1])
    )


def results(report: dict, about: About) -> list[str]:
    """Return the table of both passes."""
    rows = []
    for test in report["tests"]:
        for name, row in test["metrics"].items():
            if name == "loss" and len(test["metrics"]) > 1:
                continue
            digits = decimals(row["float"], row["quantized"])
            _, words = METRICS.get(name, (name, name))
            rows.append(
                [
                    test["name"],
                    words,
                    number(row["float"], digits),
                    number(row["quantized"], digits),
                    interval(row, digits)
                    if row.get("change") is not None
                    else "",
                ]
            )
        rows += _speed_row(test)
    if not rows:
        return []
    head = [
        "test set",
        "metric",
        "float",
        "quantized",
        "change [95 % interval]",
    ]
    parts = [
        "## Results",
        _table(head, rows),
        "Float and quantized model were scored on the same utterances; intervals "
        "are from a paired bootstrap.",
    ]
    if about.departures:
        parts.append(
            f"Not so with the model here: {'; '.join(about.departures)}. Its "
            "own results differ."
        )
    return parts


def _speed_row(test: dict) -> list[list[str]]:
    before, after = test.get("float_speed"), test.get("quantized_speed")
    factors = [
        None if speed is None else speed.get("real_time_factor")
        for speed in (before, after)
    ]
    if None in factors or not factors[1]:
        return []
    times = f"{times_as_fast(*factors)}, one pass each"
    runtime = (test.get("runtime") or {}).get("runtime", "a runtime")
    name = f"Real-time factor, quantized with accelerate ({runtime})"
    return [[test["name"], name, *(f"{f:.4f}" for f in factors), times]]


def how_to_load(about: About, interface: Interface) -> list[str]:
    """Return how to load and run it."""
    source = about.repo or "path/to/this/folder"
    call = _CALLS[interface.name].format(audio=about.example or "speech.wav")
    theirs = interface.module.startswith("speechbrain.")
    whose = (
        "SpeechBrain's own interface"
        if theirs
        else "an interface of the package"
    )
    parts = [
        "## Use",
        f"It needs the Python package `speechbrain_stablequant` ({__version__} "
        "made it) beside SpeechBrain.",
        f"```python\nfrom {interface.module} import {interface.name}\n\n"
        f"model = {interface.name}.from_hparams(source={json.dumps(source)})\n"
        f"{call}\n```",
        f"That is {whose}; the package has the hooks that `hyperparams.yaml` "
        "names and that read the packed integers. Nothing in the quantized files "
        "(safetensors) is executed. So it runs in plain PyTorch, no faster than "
        "the float model; on integer kernels:",
        "```python\nfrom speechbrain_stablequant import accelerate\n\n"
        "accelerate(model)\n```",
    ]
    if about.exports:
        names = ", ".join(f"`{name}/`" for name in about.exports)
        parts.append(
            f"Without PyTorch: {names}, each with an `export.json` that lists "
            "inputs and results."
        )
    return parts


def quantization(
    report: dict, plan: QuantizationPlan, sizes: dict[str, int]
) -> list[str]:
    """Return the files, and the method."""
    rows = [
        [
            f"`{file['name']}.ckpt`",
            megabytes(file["float_num_bytes"]),
            megabytes(file["num_bytes"]),
            f"{file['num_bytes'] / file['float_num_bytes']:.1%}",
        ]
        for file in report["files"]
    ]
    quantized = {f"{file['name']}.ckpt" for file in report["files"]}
    rows += [
        [f"`{name}`", "-", megabytes(size), "as it is"]
        for name, size in sizes.items()
        if name.endswith(".ckpt") and name not in quantized
    ]
    text = f"Method: `{plan.method}`. Layer by layer: `plan.json`"
    if "report.html" in sizes:
        text += (
            "; figures, sensitivities and pictures: `report.html`, which needs "
            "no network"
        )
    text += "."
    return [
        "## Quantization",
        _table(["file", "float", "quantized", "bytes"], rows),
        text,
    ]


def coverage(report: dict) -> list[str]:
    """Return what became of the parameters, and which weights stay float."""
    sums: dict[str, list[int]] = {}
    rest = []
    for row in report["coverage"]["parameters"]:
        total = sums.setdefault(row["status"], [0, 0, 0])
        total[0] += 1
        total[1] += row["num_bytes"]
        total[2] += row["quantized_num_bytes"]
        if row["is_weight"] and row["status"] != "quantized":
            rest.append(row)
    rows = [
        [status, str(count), megabytes(before), megabytes(after)]
        for status, (count, before, after) in sorted(sums.items())
    ]
    parts = [
        "## Coverage",
        f"{report['coverage']['fraction']:.1%} of the bytes of the weights that "
        "the recipe quantized, without buffers and headers of files:",
        _table(["parameters", "number", "float", "quantized"], rows),
    ]
    if rest:
        lines = [f"- `{row['name']}`: {row['detail']}" for row in rest[:20]]
        more = len(rest) - 20
        lines += [f"- and {more} more, see `report.json`"] if more > 0 else []
        parts.append("Weights in float:\n\n" + "\n".join(lines))
    return parts


def measured_on(report: dict, check: Optional[Check]) -> list[str]:
    """Say on what the figures were measured, and what the check found."""
    about = report.get("environment") or {}
    names = {
        "processor": "processor",
        "threads": "threads",
        "python": "Python",
        "torch": "torch",
        "speechbrain": "SpeechBrain",
        "openvino": "OpenVINO",
        "onnxruntime": "ONNX Runtime",
    }
    text = ", ".join(
        f"{words} {about[key]}" for key, words in names.items() if key in about
    )
    parts = ["## Measured on", f"{text[:1].upper()}{text[1:]}."]
    if check is not None:
        parts.append(
            "Before it was published, this folder was loaded in a process of "
            f"its own: {check.line()}."
        )
    return parts


def reproduce(about: About, plan: QuantizationPlan) -> list[str]:
    """Say how it was made."""
    parts = ["## Reproduce"]
    if about.foreign:
        parts.append(
            f"Not trained in the recipe: {', '.join(about.foreign)}, which its "
            "pretrainer has."
        )
    if about.trained_with:
        parts.append(f"Trained and quantized with: {about.trained_with}")
    if all(layer.rounding == "nearest" for layer in plan.layers.values()):
        parts.append(
            "In the recipe, `plan: plan.json` in the `ptq` block applies the "
            "same plan to a float checkpoint, without calibration and search."
        )
    else:
        parts.append(
            "`plan.json` says how each layer is quantized; its integers were "
            "found on data and are in the files here only."
        )
    return parts


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; names in it are text, whatever they are."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(map(_cell, line)) + " |" for line in lines
    )


def _cell(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text.replace("<", "&lt;").replace(">", "&gt;")
