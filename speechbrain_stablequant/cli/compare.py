"""``stablequant compare``: quantized models side by side."""

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
    cells = [_metric_cells(row) for row in rows]
    # With different float models, losses have different references: show each
    own = any(len(set(before) - {"-"}) > 1 for before, _ in cells)
    head = ["test set", "metric"]
    head += [f"float {name}" for name in letters] if own else ["float"]
    head.append(letters[0])
    for name in letters[1:]:
        head += [name, f"{name} - A [95 %]"]
    found = [head]
    for row, (before, after) in zip(rows, cells):
        if not own:
            before = [next((cell for cell in before if cell != "-"), "-")]
        found.append([row["test"], row["metric"], *before, *after])
    return align(found, left=[0, 1])


def _metric_cells(row: dict) -> tuple[list[str], list[str]]:
    """Return the float values, and the quantized ones with differences to A."""
    values = [value or {} for value in row["values"]]
    sides = [[v.get(key) for v in values] for key in ("float", "quantized")]
    digits = decimals(*sides[0], *sides[1])
    before, after = ([number(v, digits) for v in side] for side in sides)
    cells = after[:1]
    for cell, change in zip(after[1:], row["differences"][1:]):
        cells += [cell, "-" if change is None else interval(change, digits)]
    return before, cells


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
