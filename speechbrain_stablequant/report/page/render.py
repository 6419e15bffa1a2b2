"""The page: read the files of a run, draw, and fill the template."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Union

import jinja2
from markupsafe import Markup, escape

from speechbrain_stablequant.artifacts.report_schema import read_run_file
from speechbrain_stablequant.core.format import megabytes, number
from speechbrain_stablequant.errors import ExperimentError
from speechbrain_stablequant.report.page import facts
from speechbrain_stablequant.report.page.svg import inline_svg
from speechbrain_stablequant.report.rows import (
    cost_line,
    cut_text,
    search_lines,
    speed_rows,
    weights_line,
)

__all__ = ["fill_page", "make_page", "render_page", "write_page"]

PAGE, PLOTS = "report.html", "plots"
_TEMPLATES = Path(__file__).parent / "template"
# What data of another shape leads to, anywhere on the way to a page
_HOLES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    jinja2.TemplateError,
)


# -- from files ------------------------------------------------------------


def write_page(folder: Union[str, Path], published: bool = False) -> Path:
    """Make ``report.html`` and the pictures of ``plots`` again.

    Without ``histograms.json`` the page has no histograms.

    Arguments
    ---------
    folder : str or Path
        The ``ptq`` folder, with its ``report.json``.
    published : bool
        Whether it is a published folder: ``plots`` is left out, and the page
        names no files that such a folder does not have.

    Returns
    -------
    Path
        The page; it opens without a network.

    Raises
    ------
    ExperimentError
        If the report is missing, or a file damaged or not of this package.
    """
    return make_page(folder, published)[0]


def make_page(
    folder: Union[str, Path], published: bool = False
) -> tuple[Path, dict[str, Path]]:
    """Do the same as `write_page`; also return the PNG of each picture."""
    from speechbrain_stablequant.report.page.pictures import draw_pictures
    from speechbrain_stablequant.report.plots import save_figure

    folder = Path(folder)
    report, histograms = _read(folder)
    try:
        pictures = draw_pictures(report, histograms)
        html = fill_page(report, pictures, published)
    except _HOLES as err:
        raise ExperimentError(
            f"{folder / 'report.json'} is damaged, or of another version of "
            f"this package ({type(err).__name__}: {err}). Run the recipe "
            "again with --test_only."
        ) from err
    saved = {
        picture.name: save_figure(
            picture.figure, folder / PLOTS / picture.name, picture.svg
        )[0]
        for picture in pictures
        if picture.is_file and not published
    }
    page = folder / PAGE
    page.write_text(html, encoding="utf-8")
    return page, saved


def _read(folder: Path) -> tuple[dict, list[dict]]:
    path = folder / "report.json"
    if not path.is_file():
        hint = "Run the recipe with the ptq block, to its end."
        if (folder / "ptq" / "report.json").is_file():
            hint = f"Did you mean {folder / 'ptq'}?"
        raise ExperimentError(f"{path} is not there. {hint}")
    report = read_run_file(path, "report")
    # Always this name: a report from elsewhere must not name another file.
    histograms = folder / "histograms.json"
    if not report.get("histograms") or not histograms.is_file():
        return report, []  # the page says that there are none
    return report, read_run_file(histograms, "histograms")


# -- from data ------------------------------------------------------------


def render_page(
    report: dict, histograms: Sequence[dict] = (), published: bool = False
) -> str:
    """Return a report as one page of HTML, pictures included.

    Arguments
    ---------
    report : dict
        As in ``report.json``.
    histograms : sequence of dict
        As in ``histograms.json``; without, the page says so.
    published : bool
        Whether the page is for a published folder, which has the plan and the
        report but not the other files of a run.

    Returns
    -------
    str
        The page; nothing in it is loaded from elsewhere.
    """
    from speechbrain_stablequant.report.page.pictures import draw_pictures

    return fill_page(report, draw_pictures(report, histograms), published)


def fill_page(report: dict, pictures: Sequence, published: bool = False) -> str:
    """Return a report as one page of HTML.

    Arguments
    ---------
    report : dict
        As in ``report.json``.
    pictures : sequence of Picture
        What was drawn.
    published : bool
        As in `render_page`.

    Returns
    -------
    str
        The page.
    """
    return _template().render(
        report=report,
        published=published,
        style=Markup((_TEMPLATES / "style.css").read_text("utf-8")),
        script=Markup((_TEMPLATES / "search.js").read_text("utf-8")),
        pictures={p.name: _inline(p) for p in pictures},
        groups=[p for p in pictures if not p.is_file],
        **_facts(report),
    )


def _facts(report: dict) -> dict:
    """Return the other variables of the template."""
    search = report["search"]
    weights, cost = report.get("weights"), search.get("cost")
    return {
        "plan": report.get("plan") or {"method": "", "settings": {}},
        "verdict": facts.verdict(report),
        "main": facts.main_results(report),
        "results": facts.result_rows(report),
        "needs_checkpoint": facts.needs_checkpoint(report),
        "widths": {row["bits"] for row in report.get("layers", ())},
        "rest": facts.REST in facts.size_parts(report)["quantized"],
        "speed": [
            (f"{test['name']} {label}", *cells)
            for test in report["tests"]
            for label, *cells in speed_rows(test)
        ],
        "clipping": facts.most_clipped(report["clipping"]),
        "coverage": facts.coverage_rows(report),
        "search_lines": search_lines(search),
        "cost": None if cost is None else cost_line(cost),
        "weights": None if weights is None else weights_line(weights),
    }


def _inline(picture) -> Markup:
    return Markup(inline_svg(picture.svg, picture.name, escape(picture.title)))


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["megabytes"] = megabytes
    environment.filters["cut"] = cut_text
    environment.filters["signed"] = lambda value: number(value, signed=True)
    return environment.get_template("report.html")
