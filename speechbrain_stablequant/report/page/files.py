"""Read the files of a ``ptq`` folder and write its page."""

import json
from pathlib import Path
from typing import Union

import jinja2

from speechbrain_stablequant.artifacts.report_schema import read_report
from speechbrain_stablequant.errors import ExperimentError
from speechbrain_stablequant.report.page.render import fill_page

__all__ = ["make_page", "write_page"]

PAGE, PLOTS = "report.html", "plots"
# What data of another shape leads to, anywhere in the making of a page
_HOLES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    jinja2.TemplateError,
)


def write_page(folder: Union[str, Path], published: bool = False) -> Path:
    """Make ``report.html`` and the pictures of ``plots`` again.

    Without ``histograms.json`` the page is made without these pictures.

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
    """Do what `write_page` does; return the PNG of each picture as well."""
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
            picture.figure, folder / PLOTS / picture.name
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
    report = read_report(path)
    name = report.get("histograms")
    if not name:
        return report, []
    # Not the name in the file: a report from elsewhere names no other file.
    return report, _read_histograms(folder / "histograms.json")


def _read_histograms(path: Path) -> list[dict]:
    advice = "Run the recipe again with --test_only"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []  # the page says so
    except (OSError, ValueError, RecursionError) as err:
        raise ExperimentError(
            f"Cannot read the histograms {path}: {err}. {advice}."
        ) from err
    if not isinstance(rows, list) or not all(map(_is_histogram, rows)):
        raise ExperimentError(
            f"{path} has no histograms of this package. {advice}."
        )
    return rows


def _is_histogram(row) -> bool:
    return (
        isinstance(row, dict)
        and all(isinstance(row.get(k), str) for k in ("layer", "input"))
        and all(
            isinstance(row.get(k), (int, float)) for k in ("low", "bin_width")
        )
        and isinstance(row.get("counts"), list)
        and all(isinstance(c, int) and c >= 0 for c in row["counts"])
    )
