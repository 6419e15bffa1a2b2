"""The model card: metadata of the hub, and what was measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

from huggingface_hub import EvalResult, ModelCardData

from speechbrain_stablequant.plan import QuantizationPlan
from speechbrain_stablequant.publishing.check import Check
from speechbrain_stablequant.publishing.interfaces import Interface
from speechbrain_stablequant.report.tables import (
    decimals,
    interval,
    megabytes,
    number,
)

__all__ = ["About", "model_card"]

# Names of the hub for metrics of recipes
_METRICS = {
    "WER": ("wer", "Word error rate, in percent"),
    "CER": ("cer", "Character error rate, in percent"),
    "EER": ("eer", "Equal error rate, in percent"),
    "minDCF": ("min_dcf", "Minimum detection cost, times 100"),
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


@dataclass(frozen=True)
class About:
    """What only the user knows of a model.

    Arguments
    ---------
    repo : str, optional
        ``user/name`` on the hub.
    language, license, dataset : str, optional
        For the metadata: ISO 639 code, licence of the hub's list, data set
        that the test sets belong to.
    base_model : str, optional
        What it was fine-tuned from.
    example : str, optional
        Name of the audio file in the folder.
    trained_with : str, optional
        How it was trained, for people: a command, or an address.
    exports : tuple of str
        Folders with models for runtimes alone.
    """

    repo: Optional[str] = None
    language: Optional[str] = None
    license: Optional[str] = None
    dataset: Optional[str] = None
    base_model: Optional[str] = None
    example: Optional[str] = None
    trained_with: Optional[str] = None
    exports: tuple[str, ...] = ()


def model_card(
    about: About,
    interface: Interface,
    report: dict[str, Any],
    plan: QuantizationPlan,
    check: Optional[Check],
) -> str:
    """Return the card, Markdown behind YAML metadata.

    Arguments
    ---------
    about : About
        What the user says.
    interface : Interface
        What loads the model.
    report : dict
        The report of the test passes.
    plan : QuantizationPlan
        What is quantized.
    check : Check, optional
        What a clean process found.

    Returns
    -------
    str
    """
    parts = [
        f"# {_name(about)}",
        _summary(interface, report, plan),
        *_results(report),
        *_how_to_load(about, interface),
        *_quantization(report, plan),
        *_coverage(report),
        *_measured_on(report, check),
        *_reproduce(about),
    ]
    metadata = _metadata(about, interface, report, plan)
    return f"---\n{metadata}\n---\n\n" + "\n\n".join(parts) + "\n"


def _name(about: About) -> str:
    return (about.repo or "model").rpartition("/")[2]


def _metadata(about, interface, report, plan) -> str:
    """Return the YAML that the hub reads."""
    results = [
        result
        for test in report["tests"]
        for result in _eval_results(about, interface, test)
    ]
    known = {
        "language": about.language,
        "license": about.license,
        "base_model": about.base_model,
        "datasets": [about.dataset]
        if about.dataset and "/" in about.dataset
        else None,
    }
    extra = {}
    if about.base_model:
        extra["base_model_relation"] = "quantized"
    data = ModelCardData(
        library_name="speechbrain",
        pipeline_tag=interface.task,
        tags=_tags(interface, plan),
        metrics=list(dict.fromkeys(r.metric_type for r in results)) or None,
        model_name=_name(about) if results else None,
        eval_results=results or None,
        **{key: value for key, value in known.items() if value},
        **extra,
    )
    return data.to_yaml()


def _tags(interface: Interface, plan: QuantizationPlan) -> list[str]:
    widths = sorted({layer.weight.bits for layer in plan.layers.values()})
    return [
        "speechbrain",
        "speechbrain_stablequant",
        "quantized",
        *(f"{bits}-bit" for bits in widths if bits < 16),
        interface.name,
        "safetensors",
    ]


def _eval_results(about, interface, test: dict):
    for name, row in test["metrics"].items():
        if name == "loss" or row["quantized"] is None:
            continue
        metric, words = _METRICS.get(name, (name.lower(), name))
        dataset = about.dataset or "test set of the recipe"
        yield EvalResult(
            task_type=interface.task,
            dataset_type=dataset if "/" in dataset else "custom",
            dataset_name=dataset,
            dataset_split=test["name"],
            metric_type=metric,
            metric_name=words,
            metric_value=round(row["quantized"], 4),
        )


# -- the text ------------------------------------------------------------------


def _summary(interface, report, plan) -> str:
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


def _results(report: dict) -> list[str]:
    rows = []
    for test in report["tests"]:
        for name, row in test["metrics"].items():
            if name == "loss" and len(test["metrics"]) > 1:
                continue
            digits = decimals(row["float"], row["quantized"])
            _, words = _METRICS.get(name, (name, name))
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
    return [
        "## Results",
        _table(head, rows),
        "Float and quantized model were scored on the same utterances; intervals "
        "are from a paired bootstrap.",
    ]


def _speed_row(test: dict) -> list[list[str]]:
    before, after = test.get("float_speed"), test.get("quantized_speed")
    factors = [
        None if speed is None else speed.get("real_time_factor")
        for speed in (before, after)
    ]
    if None in factors or not factors[1]:
        return []
    times = f"{factors[0] / factors[1]:.2f} times as fast, one pass each"
    name = "Real-time factor of the test pass"
    return [[test["name"], name, *(f"{f:.4f}" for f in factors), times]]


def _how_to_load(about: About, interface: Interface) -> list[str]:
    source = about.repo or "path/to/this/folder"
    call = _CALLS[interface.name].format(audio=about.example or "speech.wav")
    parts = [
        "## Use",
        "```shell\npip install speechbrain_stablequant\n```",
        f"```python\nfrom {interface.module} import {interface.name}\n\n"
        f'model = {interface.name}.from_hparams(source="{source}")\n{call}\n```',
        "That is SpeechBrain's own interface; the package has the hooks that "
        "`hyperparams.yaml` names and that read the packed integers. Nothing in "
        "the quantized files (safetensors) is executed. On integer kernels:",
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


def _quantization(report: dict, plan: QuantizationPlan) -> list[str]:
    rows = [
        [
            f"`{file['name']}.ckpt`",
            megabytes(file["float_num_bytes"]),
            megabytes(file["num_bytes"]),
            f"{file['num_bytes'] / file['float_num_bytes']:.1%}",
        ]
        for file in report["files"]
    ]
    text = (
        f"Method: `{plan.method}`. Layer by layer: `plan.json`; figures, "
        "sensitivities and pictures: `report.html`, which needs no network."
    )
    return [
        "## Quantization",
        _table(["file", "float", "quantized", "bytes"], rows),
        text,
    ]


def _coverage(report: dict) -> list[str]:
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
        f"{report['coverage']['fraction']:.1%} of the bytes of weights are "
        "quantized.",
        _table(["parameters", "number", "float", "here"], rows),
    ]
    if rest:
        lines = [f"- `{row['name']}`: {row['detail']}" for row in rest[:20]]
        more = len(rest) - 20
        lines += [f"- and {more} more, see `report.json`"] if more > 0 else []
        parts.append("Weights in float:\n\n" + "\n".join(lines))
    return parts


def _measured_on(report: dict, check: Optional[Check]) -> list[str]:
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


def _reproduce(about: About) -> list[str]:
    parts = ["## Reproduce"]
    if about.trained_with:
        parts.append(f"Trained and quantized with: {about.trained_with}")
    parts.append(
        "In the recipe, `plan: plan.json` in the `ptq` block applies the same "
        "plan to a float checkpoint, without calibration and search."
    )
    return parts


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; bars in names do not break it."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
        for line in lines
    )
