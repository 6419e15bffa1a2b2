"""Draw what ``benchmarks/superb.py`` has measured: error against bytes.

python -m benchmarks.superb_plot results/superb.json results/superb.svg

One panel for each task; the error is 100 % minus the accuracy for tasks that
have one, so lower is better everywhere. Bars are 95 % intervals of each
encoder; differences between encoders are known better than these suggest, see
the table. What follows a hyphen in a label (``W3-GPTQ``) is its series.
"""

import itertools
import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

from speechbrain_stablequant.report.plots.style import (
    COLORS,
    save_figure,
    styled,
)

SERIES = [
    COLORS[name] for name in ("red", "ink", "sky", "green", "blue", "purple")
] + [COLORS["yellow"]]


def errors(result: dict) -> tuple[float, float, float]:
    """Return the error in percent and the ends of its interval."""
    value, low, high = (result[key] for key in ("value", "low", "high"))
    if result["metric"] == "accuracy":
        value, low, high = 100 - value, 100 - high, 100 - low
    return value, low, high


def draw(table: dict) -> Figure:
    """Return the figure.

    Arguments
    ---------
    table : dict
        What the benchmark wrote.

    Returns
    -------
    matplotlib.figure.Figure
        A panel for each task.
    """
    rows = table["rows"]
    tasks = list(dict.fromkeys(t for row in rows for t in row["tasks"]))
    with styled():
        figure = Figure(figsize=(3.2 * len(tasks), 3), layout="constrained")
        for task, axes in zip(
            tasks, figure.subplots(1, len(tasks), squeeze=False)[0]
        ):
            _panel(axes, task, [row for row in rows if task in row["tasks"]])
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=len(labels)
        )
    return figure


def series_of(label: str) -> tuple[str, str]:
    """Return what a label calls the point, and the series that it is in.

    Example
    -------
    >>> series_of("W3-GPTQ"), series_of("float")
    (('W3', 'GPTQ'), ('float', 'float'))
    """
    name, _, method = label.partition("-")
    return name, method or label


def _panel(axes, task: str, rows: list) -> None:
    names = list(dict.fromkeys(series_of(row["label"])[1] for row in rows))
    colors = dict(zip(names, itertools.cycle(SERIES)))
    named: list[float] = []
    for row in rows:
        name, series = series_of(row["label"])
        value, low, high = errors(row["tasks"][task])
        megabytes = row["num_bytes"] / 1e6
        # Series stand side by side where their bytes are the same.
        place = megabytes * 1.025 ** (names.index(series) - len(names) / 2)
        axes.errorbar(
            place,
            value,
            yerr=[[value - low], [high - value]],
            fmt="o",
            color=colors[series],
            elinewidth=1,
            markersize=4,
            label=series if series not in axes.get_legend_handles_labels()[1]
            else None,
        )  # fmt: skip
        if not any(abs(other / megabytes - 1) < 0.02 for other in named):
            named.append(megabytes)
            axes.annotate(
                name,
                (place, high),
                xytext=(0, 3),
                textcoords="offset points",
                fontsize=7,
                ha="center",
            )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.15)
    axes.set_title(task)
    axes.set_xlabel("bytes on disk (MB)")
    metric = rows[0]["tasks"][task]["metric"]
    axes.set_ylabel("WER (%)" if metric == "WER" else "error (%)")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    found = json.loads(Path(sys.argv[1]).read_text())
    stem = Path(sys.argv[2]).with_suffix("")
    with styled():
        for written in save_figure(draw(found), stem):
            print(written)
