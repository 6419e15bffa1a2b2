"""``stablequant compare``: quantized models side by side."""

from typing import Optional

from speechbrain_stablequant.core.format import (
    align,
    decimals,
    interval,
    letter,
    megabytes,
    number,
)

NAME = "compare"
HELP = "Put experiments, reports or plans side by side."
EXAMPLES = """
stablequant compare results/w8a8/1986 results/w4a8/1986
stablequant compare plan.json edited.json          # which layers differ
stablequant compare a/ptq/report.json b/ptq/report.json --json
"""
SHOWN = 20  # layers; all of them with --layers


def add_arguments(parser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "first", metavar="A", help="what the others are compared with"
    )
    parser.add_argument(
        "others",
        metavar="B",
        nargs="+",
        help="experiments, plans, reports, checkpoints or published folders",
    )
    parser.add_argument(
        "--layers",
        action="store_true",
        help=f"all layers that differ, not only the first {SHOWN}",
    )


def run(arguments) -> dict:
    """Read the sources and compare them."""
    from speechbrain_stablequant.report.comparison import compare
    from speechbrain_stablequant.report.sources import read_source

    names = [arguments.first, *arguments.others]
    result = compare([read_source(name) for name in names])
    shown = len(result["layers"]) if arguments.layers else SHOWN
    return {**result, "shown_layers": shown}


def lines(result: dict) -> list[str]:
    """Return the tables."""
    letters = [letter(i) for i in range(len(result["sources"]))]
    found = _source_lines(letters, result["sources"])
    if result["metrics"]:
        found += ["", *_metric_lines(letters, result["metrics"])]
    if result["speeds"]:
        found += ["", *_speed_lines(letters, result["speeds"])]
    found += ["", *_layer_lines(letters, result)]
    return found + [f"note: {text}" for text in result["notes"]]


def _source_lines(letters, sources) -> list[str]:
    rows = [("", "", "quantization", "layers", "bytes", "of float")]
    for name, source in zip(letters, sources):
        size, before = source["num_bytes"], source["float_num_bytes"]
        rows.append(
            (
                name,
                source["name"],
                source["label"] or source["method"] or source["kind"],
                _or_dash(source["quantized_layers"]),
                megabytes(size),
                f"{size / before:.1%}" if size and before else "-",
            )
        )
    return align(rows, left=range(3))


def _metric_lines(letters, rows) -> list[str]:
    floats = [_float_cells(row) for row in rows]
    # With different float models, losses have different references: show each
    own = any(len(set(cells) - {"-"}) > 1 for cells in floats)
    head = ["test set", "metric"]
    head += [f"float {name}" for name in letters] if own else ["float"]
    for i, name in enumerate(letters):
        head += [name] if i == 0 else [name, f"{name} - A [95 %]"]
    found = [head]
    for row, before in zip(rows, floats):
        if not own:
            before = [next((c for c in before if c != "-"), "-")]
        cells = [row["test"], row["metric"], *before]
        found.append([*cells, *_quantized_cells(row)])
    return align(found, left=[0, 1])


def _digits(row: dict) -> int:
    values = row["values"]
    return decimals(
        *(_value(value, "float") for value in values),
        *(_value(value, "quantized") for value in values),
    )


def _float_cells(row: dict) -> list[str]:
    digits = _digits(row)
    return [number(_value(v, "float"), digits) for v in row["values"]]


def _quantized_cells(row: dict) -> list[str]:
    digits, cells = _digits(row), []
    for i, value in enumerate(row["values"]):
        cells.append(number(_value(value, "quantized"), digits))
        if i:
            change = row["differences"][i]
            cells.append("-" if change is None else interval(change, digits))
    return cells


def _value(row: Optional[dict], key: str):
    return None if row is None else row.get(key)


def _speed_lines(letters, rows) -> list[str]:
    found = [("test set", "speed", *letters)]
    for row in rows:
        cells = (number(value, 4) for value in row["values"])
        found.append((row["test"], row["measure"], *cells))
    return align(found, left=[0, 1])


def _layer_lines(letters, result) -> list[str]:
    layers, shown = result["layers"], result["shown_layers"]
    if all(s["quantized_layers"] is None for s in result["sources"]):
        return ["no plans to compare"]
    if not layers:
        return ["all layers are quantized alike"]
    rows = [("layer", "", *letters)]
    for layer in layers[:shown]:
        name = layer["name"]
        for key, values in layer["differs"].items():
            rows.append((name, key, *map(_text, values)))
            name = ""  # once is enough
    found = align(rows, left=[0, 1])
    if len(layers) > shown:
        found.append(f"... and {len(layers) - shown} more layers: --layers")
    return [f"{len(layers)} layers differ", *found]


def _text(value) -> str:
    if isinstance(value, (list, tuple)):
        return " to ".join(f"{end:.4g}" for end in value)
    return _or_dash(value)


def _or_dash(value) -> str:
    return "-" if value is None else str(value)
