"""The model card: metadata of the hub, and what was measured."""

from typing import Any, Optional

from huggingface_hub import EvalResult, ModelCardData

from speechbrain_stablequant.core.plan import QuantizationPlan
from speechbrain_stablequant.publishing.card_sections import (
    METRICS,
    coverage,
    how_to_load,
    measured_on,
    quantization,
    reproduce,
    results,
    summary,
)
from speechbrain_stablequant.publishing.check import Check
from speechbrain_stablequant.publishing.interfaces import Interface
from speechbrain_stablequant.publishing.options import About

__all__ = ["model_card"]


def model_card(
    about: About,
    interface: Interface,
    report: dict[str, Any],
    plan: QuantizationPlan,
    sizes: dict[str, int],
    check: Optional[Check] = None,
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
    sizes : dict
        Bytes of the files in the folder, by name.
    check : Check, optional
        What a clean process found.

    Returns
    -------
    str
    """
    report = _of_folder(report, sizes)
    parts = [
        f"# {_name(about)}",
        summary(interface, report, plan),
        *results(report, about),
        *how_to_load(about, interface),
        *quantization(report, plan, sizes),
        *coverage(report),
        *measured_on(report, check),
        *reproduce(about, plan),
    ]
    metadata = _metadata(about, interface, report, plan)
    return f"---\n{metadata}\n---\n\n" + "\n\n".join(parts) + "\n"


def _of_folder(report: dict, sizes: dict[str, int]) -> dict:
    """Return a report about those files only that are in the folder."""
    files = [f for f in report["files"] if f"{f['name']}.ckpt" in sizes]
    return {**report, "files": files}


def _name(about: About) -> str:
    return (about.repo or "model").rpartition("/")[2]


def _metadata(about, interface, report, plan) -> str:
    """Return the YAML that the hub reads."""
    # Results of a test that did more than the model does are not its own.
    measured = [
        result
        for test in ([] if about.departures else report["tests"])
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
        metrics=list(dict.fromkeys(r.metric_type for r in measured)) or None,
        model_name=_name(about) if measured else None,
        eval_results=measured or None,
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
        metric, words = METRICS.get(name, (name.lower(), name))
        of_recipe = "validation" if test["name"] == "validation" else "test"
        dataset = about.dataset or f"{of_recipe} set of the recipe"
        yield EvalResult(
            task_type=interface.task,
            dataset_type=dataset if "/" in dataset else "custom",
            dataset_name=dataset,
            dataset_split=test["name"],
            metric_type=metric,
            metric_name=words,
            metric_value=round(row["quantized"], 4),
        )
