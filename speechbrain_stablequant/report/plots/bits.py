"""Bit widths and size of each layer."""

from collections.abc import Sequence

from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from speechbrain_stablequant.core.bit_width import parse_bits
from speechbrain_stablequant.report.plots.style import (
    COLORS,
    map_and_bytes,
    styled,
)

__all__ = ["bits_figure"]

_MOST_LAYERS = 48  # one row each; beyond, layers of a type share one


@styled()
def bits_figure(rows: Sequence[dict], type_of) -> Figure:
    """Draw the bit widths of each layer, beside its bytes before and after.

    In models with many layers those of one type share a row, with the number
    of layers that have each bit width.

    Arguments
    ---------
    rows : sequence of dict
        ``layers`` of the report.
    type_of : callable
        Returns the type of a layer from its name.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.
    """
    many = len({row["layer"] for row in rows}) > _MOST_LAYERS
    table = _grouped(rows, type_of if many else str)
    names = list(table)
    widths = sorted({row["bits"] for row in rows}, key=parse_bits)
    rows_of = [sum(found.values(), []) for found in table.values()]
    size = 7.2, 1.1 + 0.2 * max(len(names), 3)
    figure, cells, _ = map_and_bytes(names, widths, rows_of, "quantized", size)
    _draw_cells(cells, table, widths, with_counts=many)
    figure.legend(
        loc="outside lower right", ncols=2, frameon=False, handlelength=1
    )
    return figure


def _grouped(rows, type_of) -> dict[str, dict[str, list[dict]]]:
    """Return rows by layer (or type) and bit widths."""
    table: dict[str, dict[str, list[dict]]] = {}
    for row in rows:
        found = table.setdefault(type_of(row["layer"]), {})
        found.setdefault(row["bits"], []).append(row)
    return table


def _draw_cells(axes, table, widths, with_counts: bool) -> None:
    patches, colors = [], []
    for place, found in enumerate(table.values()):
        for bits, rows in found.items():
            column = widths.index(bits)
            patches.append(Rectangle((column + 0.06, place + 0.1), 0.88, 0.8))
            is_float = parse_bits(bits)[0] >= 16
            colors.append(COLORS["grey" if is_float else "blue"])
            if with_counts:
                axes.text(
                    column + 0.5, place + 0.53, str(len(rows)), ha="center",
                    va="center", fontsize=6.5, gid="count",
                    color=COLORS["on_light" if is_float else "on_accent"],
                )  # fmt: skip
    axes.add_collection(
        PatchCollection(patches, facecolors=colors, linewidths=0, gid="widths")
    )
    axes.grid(axis="y", color=COLORS["light"], linewidth=0.5)
    axes.set_axisbelow(True)
