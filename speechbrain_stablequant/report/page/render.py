"""Fill the template of the page."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from speechbrain_stablequant.core.format import cost_line, megabytes, number
from speechbrain_stablequant.report.page import facts
from speechbrain_stablequant.report.page.svg import inline_svg
from speechbrain_stablequant.report.rows import (
    cut_text,
    search_lines,
    speed_rows,
    weights_line,
)

__all__ = ["fill_page", "render_page"]

_TEMPLATES = Path(__file__).parent / "template"
_METHODS = {
    "stablequant": (
        "Each unit was quantized alone with ranges by max; for those that "
        "cost the metric more than the threshold, the percentile at which "
        "their activations are cut was searched."
    ),
    "mixed_precision": (
        "Each layer was quantized alone to each width; of the plans that "
        "looked best, the one chosen keeps the budget when measured as a "
        "whole."
    ),
    "uniform": "All layers have the same widths and the same observer.",
    "quantization_aware": (
        "The model was trained on with quantized layers before it was scored."
    ),
    "manual": "The plan was given.",
}


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
    """Return the rest of what the template names."""
    search, files = report["search"], report["files"]
    plan = report.get("plan") or {"method": "", "settings": {}}
    weights, cost = report.get("weights"), search.get("cost")
    return {
        "plan": plan,
        "method": _METHODS.get(plan["method"], ""),
        "verdict": facts.verdict(report),
        "main": facts.main_results(report),
        "results": facts.result_rows(report),
        "directions": facts.directions(report),
        "needs_checkpoint": facts.needs_checkpoint(report),
        "widths": {row["bits"] for row in report.get("layers", ())},
        "rest": facts.REST in facts.size_parts(report)["quantized"],
        "speed": [r for test in report["tests"] for r in speed_rows(test)],
        "num_bytes": sum(file["num_bytes"] for file in files),
        "float_num_bytes": sum(file["float_num_bytes"] for file in files),
        "clipping": facts.clipping_rows(report),
        "coverage": facts.coverage_rows(report),
        "search_lines": search_lines(search),
        "cost": None if cost is None else cost_line(cost),
        "weights": None if weights is None else weights_line(weights),
        "int8": _int8(report.get("runtime")),
    }


def _int8(runtime) -> list[dict]:
    """Return the layers that the plan quantizes but did not run in int8."""
    return [
        row
        for row in (runtime or {}).get("layers", ())
        if row["planned_int8"] and row["precision"] != "int8"
    ]


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
