"""Which pictures a page has, and drawing them from the data of a report."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Callable

from speechbrain.utils.logger import get_logger

from speechbrain_stablequant.report import plots
from speechbrain_stablequant.report.mixed_precision import layer_type
from speechbrain_stablequant.report.page.facts import (
    clipped_histograms,
    most_clipped,
    size_parts,
    speed_table,
)
from speechbrain_stablequant.report.pareto import Front

__all__ = ["Picture", "draw_pictures"]

logger = get_logger(__name__)

_MOST_INPUTS = 30  # of the overview of histograms
_GROUP = 10  # histograms of a foldable section, at least


@dataclass(frozen=True)
class Picture:
    """A picture of a page.

    Arguments
    ---------
    name : str
        Name of its files and of its place in the page.
    title : str
        One line.
    svg : str
        The document.
    figure : matplotlib.figure.Figure
        The figure.
    """

    name: str
    title: str
    svg: str
    figure: object

    @property
    def is_file(self) -> bool:
        """Whether it is saved in ``plots`` too; inputs in groups are not."""
        return not self.name.startswith("inputs-")


def draw_pictures(report: dict, histograms: Sequence[dict]) -> list[Picture]:
    """Draw all that a report has data for.

    Arguments
    ---------
    report : dict
        As in ``report.json``.
    histograms : sequence of dict
        As in ``histograms.json``.

    Returns
    -------
    list of Picture
        A picture that fails is left out, with a warning: the others are still
        of use.
    """
    found = []
    for name, title, draw in _drawings(report, histograms):
        try:
            figure = draw()
            svg = plots.svg_text(figure)
        except Exception as err:
            logger.warning(
                "The picture '%s' could not be drawn (%s: %s); the page is "
                "made without it.",
                name,
                type(err).__name__,
                err,
            )
            continue
        found.append(Picture(name, title, svg, figure))
    return found


Drawing = tuple[str, str, Callable]


def _drawings(report: dict, histograms) -> Iterator[Drawing]:
    """Yield name, title and what draws, in the order of the page."""
    yield (
        "sizes",
        "Bytes of float and quantized checkpoints by part",
        lambda: plots.sizes_figure(size_parts(report)),
    )
    label, rows = speed_table(report)
    if rows:
        yield (
            "speed",
            f"Float and quantized pass, {label}",
            lambda: plots.speed_figure(label, rows),
        )
    yield from _search_drawings(report)
    if report.get("layers"):
        yield (
            "bits",
            "Bit widths and size of each layer",
            lambda: plots.bits_figure(report["layers"], layer_type),
        )
    if histograms:
        yield from _histogram_drawings(clipped_histograms(report, histograms))


def _search_drawings(report: dict) -> Iterator[Drawing]:
    search = report["search"]
    if "front" in search:
        yield (
            "front",
            "Metric against size, and what was chosen",
            lambda: plots.front_figure(Front.from_search(search)),
        )
        yield (
            "sensitivity",
            "Change of the output by layer and bit widths",
            lambda: plots.sensitivity_figure(
                search, report["chosen_bits"], report["layers"]
            ),
        )
    elif "flagged" in search:
        threshold = report["plan"]["settings"].get("flag_threshold")
        unit = _unit(report, search)
        yield (
            "sensitivity",
            "Change of the metric, each search unit quantized alone",
            lambda: plots.units_figure(search, threshold, unit),
        )


def _unit(report: dict, search: dict) -> str:
    metric = (search.get("joint") or {}).get("metric")
    tests = (test["metrics"] for test in report["tests"])
    row = next((rows[metric] for rows in tests if metric in rows), {})
    return row.get("unit") or ""


def _histogram_drawings(rows: list[dict]) -> Iterator[Drawing]:
    """Yield an overview of the most clipped, then all, in groups of units."""
    shown = most_clipped(rows)[:_MOST_INPUTS]
    title = f"Inputs of layers; {len(shown)} of {len(rows)}, clipped most first"
    if len(shown) == len(rows):
        title = f"Inputs of layers, all {len(rows)}, clipped most first"
    yield "histograms", title, lambda: plots.histograms_figure(shown, title)
    if len(rows) <= _MOST_INPUTS:
        return
    for index, group in enumerate(_groups(rows)):
        first, last = group[0]["unit"], group[-1]["unit"]
        name = first if first == last else f"{first} … {last}"
        # A default binds the group now; else all would draw the last one.
        yield (
            f"inputs-{index}",
            name,
            lambda group=group: plots.histograms_figure(group),
        )


def _groups(rows: list[dict]) -> list[list[dict]]:
    """Split rows at search units into groups of at least ten."""
    groups: list[list[dict]] = []
    for row in rows:
        last = groups[-1] if groups else []
        if last and (last[-1]["unit"] == row["unit"] or len(last) < _GROUP):
            last.append(row)
        else:
            groups.append([row])
    return groups
