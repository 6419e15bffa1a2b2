"""The model card: metadata of the hub, and what was measured."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from speechbrain_stablequant import __version__
from speechbrain_stablequant.artifacts.experiment import Experiment
from speechbrain_stablequant.core.format import megabytes, times_as_fast
from speechbrain_stablequant.core.plan import QuantizationPlan
from speechbrain_stablequant.publishing.check import Check
from speechbrain_stablequant.publishing.folder import HubFolder
from speechbrain_stablequant.publishing.interfaces import Blueprint
from speechbrain_stablequant.publishing.options import PublishOptions
from speechbrain_stablequant.report.rows import size_row, test_rows

__all__ = ["model_card"]

TEMPLATE = Path(__file__).with_name("model_card.md")
# Names of the hub for metrics of recipes
_METRICS = {
    "WER": ("wer", "Word error rate, in percent"),
    "CER": ("cer", "Character error rate, in percent"),
    "EER": ("eer", "Equal error rate, in percent"),
    "minDCF": ("min_dcf", "Minimum detection cost, times 100"),
    "error": ("error_rate", "Classification error (1 is all)"),
    "PPL": ("perplexity", "Perplexity"),
    "BPC": ("bits_per_character", "Bits per character"),
}


def model_card(
    options: PublishOptions,
    blueprint: Blueprint,
    experiment: Experiment,
    folder: HubFolder,
    check: Optional[Check] = None,
) -> ModelCard:
    """Return the card of a folder.

    Arguments
    ---------
    options : PublishOptions
        What only the user knows: language, licence, data set, ...
    blueprint : Blueprint
        What loads the model, and what it leaves out.
    experiment : Experiment
        Its report and its plan.
    folder : HubFolder
        The files.
    check : Check, optional
        What a clean process found.

    Returns
    -------
    ModelCard
    """
    report, plan = experiment.report, experiment.plan
    sizes = folder.sizes()
    packed = [f for f in report["files"] if f"{f['name']}.ckpt" in sizes]
    return ModelCard.from_template(
        _metadata(options, blueprint, report, plan),
        template_path=str(TEMPLATE),
        # formats
        table=_table,
        megabytes=megabytes,
        percent="{:.1%}".format,
        # facts
        name=_name(options),
        version=__version__,
        source=json.dumps(options.repo or "path/to/this/folder"),
        call=blueprint.interface.call.format(
            audio=folder.example or "speech.wav"
        ),
        blueprint=blueprint,
        trained_with=options.trained_with,
        check=check,
        report=report,
        plan=plan,
        bit_widths=_bit_widths(plan),
        results=_results(report),
        packed=packed,
        sizes=sizes,
        exports=[
            name.partition("/")[0]
            for name in sizes
            if name.endswith("/export.json")
        ],
        files=_files(packed, sizes),
        coverage=_coverage(report),
    )


def _name(options: PublishOptions) -> str:
    return (options.repo or "model").rpartition("/")[2]


# -- metadata ------------------------------------------------------------------


def _metadata(
    options: PublishOptions,
    blueprint: Blueprint,
    report: dict[str, Any],
    plan: QuantizationPlan,
) -> ModelCardData:
    """Return the YAML that the hub reads."""
    interface = blueprint.interface
    # Results of a test that did more than the model does are not its own.
    measured = [
        result
        for test in ([] if blueprint.left_out else report["tests"])
        for result in _eval_results(options, interface.task, test)
    ]
    base_model = options.base_model or blueprint.base_model
    dataset = options.dataset or ""
    known = {
        "language": options.language,
        "license": options.license,
        "base_model": base_model,
        "base_model_relation": "quantized" if base_model else None,
        "datasets": [dataset] if "/" in dataset else None,
    }
    widths = sorted({layer.weight.bits for layer in plan.layers.values()})
    return ModelCardData(
        library_name="speechbrain",
        pipeline_tag=interface.task,
        tags=[
            *("speechbrain", "speechbrain_stablequant", "quantized"),
            *(f"{bits}-bit" for bits in widths if bits < 16),
            *(interface.name, "safetensors"),
        ],
        metrics=list(dict.fromkeys(r.metric_type for r in measured)) or None,
        model_name=_name(options) if measured else None,
        eval_results=measured or None,
        **{key: value for key, value in known.items() if value},
    )


def _eval_results(
    options: PublishOptions, task: str, test: dict
) -> Iterator[EvalResult]:
    for name, row in test["metrics"].items():
        if name == "loss" or row["quantized"] is None:
            continue
        metric, words = _METRICS.get(name, (name.lower(), name))
        of_recipe = "validation" if test["name"] == "validation" else "test"
        dataset = options.dataset or f"{of_recipe} set of the recipe"
        yield EvalResult(
            task_type=task,
            dataset_type=dataset if "/" in dataset else "custom",
            dataset_name=dataset,
            dataset_split=test["name"],
            metric_type=metric,
            metric_name=words,
            metric_value=round(row["quantized"], 4),
        )


# -- facts of the text -----------------------------------------------------------


def _bit_widths(plan: QuantizationPlan) -> str:
    """Return how many layers have which bit widths."""
    counts: Counter[str] = Counter()
    for layer in plan.layers.values():
        inputs = {i.scheme.bits for i in layer.inputs.values()}
        text = f"{layer.weight.bits}-bit weights"
        if inputs:
            text += f" and {'/'.join(map(str, sorted(inputs)))}-bit inputs"
        counts[text] += 1
    return ", ".join(
        f"{count} layer{'' if count == 1 else 's'} with {text}"
        for text, count in counts.most_common()
    )


def _results(report: dict[str, Any]) -> list[list[str]]:
    """Return the rows of both test passes."""
    rows = []
    for test in report["tests"]:
        for name, *figures in test_rows(test):
            if name != "loss" or len(test["metrics"]) == 1:
                title = _METRICS.get(name, (name, name))[1]
                rows.append([test["name"], title, *figures])
        factors = [
            (test.get(key) or {}).get("real_time_factor")
            for key in ("float_speed", "quantized_speed")
        ]
        if None not in factors and factors[1]:
            runtime = (test.get("runtime") or {}).get("runtime", "a runtime")
            title = f"Real-time factor, quantized with accelerate ({runtime})"
            times = f"{times_as_fast(*factors)}, one pass each"
            rows.append(
                [test["name"], title, *(f"{f:.4f}" for f in factors), times]
            )
    return rows


def _files(packed: list[dict], sizes: dict[str, int]) -> list[list[str]]:
    """Return the rows of the files: quantized ones, then the others."""
    rows = {name: row for name, *row in map(size_row, packed)}
    for name, size in sizes.items():
        if name.endswith(".ckpt"):
            rows.setdefault(name, ["-", megabytes(size), "as it is"])
    return [[f"`{name}`", *row] for name, row in rows.items()]


def _coverage(report: dict[str, Any]) -> list[list[str]]:
    """Return number and bytes of the parameters by what became of them."""
    sums: dict[str, list[int]] = {}
    for row in report["coverage"]["parameters"]:
        total = sums.setdefault(row["status"], [0, 0, 0])
        total[0] += 1
        total[1] += row["num_bytes"]
        total[2] += row["quantized_num_bytes"]
    return [
        [status, str(count), megabytes(before), megabytes(after)]
        for status, (count, before, after) in sorted(sums.items())
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table in which all characters stand for themselves."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(map(_cell, line)) + " |" for line in lines
    )


def _cell(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text.replace("<", "&lt;").replace(">", "&gt;")
