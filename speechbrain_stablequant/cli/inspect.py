"""``stablequant inspect``: what is quantized, how, and what was measured."""

from speechbrain_stablequant.cli.output import (
    coverage_lines,
    environment_line,
    metric_lines,
    size_lines,
)
from speechbrain_stablequant.core.format import align, megabytes

NAME = "inspect"
HELP = "Show how a model is quantized, and what was measured."
EXAMPLES = """
stablequant inspect results/wav2vec2/1986          # an experiment
stablequant inspect results/wav2vec2/1986 --layers # every layer
stablequant inspect ptq/checkpoint/wav2vec2.ckpt
stablequant inspect user/asr-wav2vec2-w8a8 --json  # from the hub
"""


def add_arguments(parser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "source",
        help="experiment or ptq folder, published folder or hub name, "
        "checkpoint (*.ckpt), domain, plan.json or report.json",
    )
    parser.add_argument(
        "--layers",
        action="store_true",
        help="a row for each layer instead of each search unit",
    )


def run(arguments) -> dict:
    """Read the source."""
    from speechbrain_stablequant.report.layers import (
        by_scheme,
        by_unit,
        describe_layer,
    )
    from speechbrain_stablequant.report.sources import read_source

    source = read_source(arguments.source)
    result = {
        "source": source.name,
        "kind": source.kind,
        "path": str(source.path),
        "method": source.method or None,
        "settings": dict(source.settings),
        "about": source.about,
        "files": source.files,
        "shows": "layers" if arguments.layers else "units",
    }
    if source.layers is not None:
        rows = [
            describe_layer(name, plan, source.sizes.get(name))
            for name, plan in source.layers.items()
        ]
        result["widths"] = by_scheme(rows)
        result[result["shows"]] = rows if arguments.layers else by_unit(rows)
    if source.coverage is not None:
        result["coverage"] = _of_coverage(source.coverage)
    if source.report is not None:
        result["report"] = _of_report(source.report)
    return result


def _of_coverage(coverage: dict) -> dict:
    """Return how much is quantized, and what is not."""
    rows = coverage["parameters"]
    rest = [row for row in rows if row["status"] != "quantized"]
    return {
        "fraction": coverage["fraction"],
        "not_quantized": [row for row in rest if row["is_weight"]],
        "kept_num_bytes": sum(row["num_bytes"] for row in rest),
    }


def _of_report(report: dict) -> dict:
    """Return the part of a report that is shown."""
    return {
        "label": report["label"],
        "tests": report["tests"],
        "unreached_layers": report.get("unreached_layers") or [],
        "environment": report.get("environment") or {},
    }


def lines(result: dict) -> list[str]:
    """Return the tables."""
    head = f"{result['source']}: {result['kind']}"
    if result["method"]:
        head += f", method {result['method']}"
    found = [head, *(f"  {k}: {v}" for k, v in result["about"].items())]
    if result["files"]:
        found += ["", *size_lines(result["files"])]
    for key, show in (
        ("widths", _width_lines),
        ("units", _unit_lines),
        ("layers", _layer_lines),
        ("coverage", coverage_lines),
        ("report", _report_lines),
    ):
        if result.get(key):
            found += ["", *show(result[key])]
    if result["shows"] == "units" and result.get("units"):
        found += ["", "every layer: --layers"]
    return found


def _width_lines(groups: list[dict]) -> list[str]:
    rows = [("weights", "inputs", "layers", "bytes")]
    for group in groups:
        size, count = megabytes(group["num_bytes"]), str(group["layers"])
        rows.append((group["weights"], group["inputs"], count, size))
    return align(rows, left=[0, 1])


def _unit_lines(units: list[dict]) -> list[str]:
    head = "search unit", "weights", "inputs", "layers", "bytes"
    rows = [(*head, "percentile")]
    for unit in units:
        start = unit["name"], unit["weights"], unit["inputs"]
        size, count = megabytes(unit["num_bytes"]), str(unit["layers"])
        rows.append((*start, count, size, _percent(unit["lowest_percentile"])))
    return align(rows, left=range(3))


def _layer_lines(layers: list[dict]) -> list[str]:
    head = "layer", "kind", "weights", "rounding", "input", "range"
    rows = [(*head, "percentile", "clipped")]
    for layer in layers:
        start = layer["name"], layer["kind"] or "-"
        start += layer["weights"], layer["rounding"]
        if not layer["inputs"]:
            rows.append((*start, "float", "-", "-", "-"))
        for name, given in layer["inputs"].items():
            low, high = given["range"]
            scheme, ends = given["scheme"], f"{low:.4g} to {high:.4g}"
            cut, clipped = _percent(given["percentile"]), given["clipped"]
            rows.append(
                (*start, f"{name}: {scheme}", ends, cut, f"{clipped:.2%}")
            )
    return align(rows, left=range(5))


def _percent(value) -> str:
    return "-" if value is None else f"{value:g}"


def _report_lines(report: dict) -> list[str]:
    found = [f"measured: {report['label']}"]
    found += metric_lines(report["tests"])
    if report["unreached_layers"]:
        count = len(report["unreached_layers"])
        found.append(f"  inputs stay float in {count} layers never reached")
    return [*found, *environment_line(report["environment"])]
