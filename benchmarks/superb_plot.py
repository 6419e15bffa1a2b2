"""Draw what ``benchmarks/superb.py`` has measured: error against bytes.

python benchmarks/superb_plot.py results/superb.json results/superb.svg

One panel for each task; the error is 100 % minus the accuracy for tasks that
have one, so lower is better everywhere. Bars are 95 % intervals of each
encoder; differences between encoders are known better than these suggest, see
the table.
"""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

from speechbrain_stablequant.report.plots.style import (
    COLORS,
    save_figure,
    styled,
)


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
    return figure


def _panel(axes, task: str, rows: list) -> None:
    for row in rows:
        megabytes = row["num_bytes"] / 1e6
        value, low, high = errors(row["tasks"][task])
        color = COLORS["red" if row is rows[0] else "blue"]
        axes.errorbar(
            megabytes,
            value,
            yerr=[[value - low], [high - value]],
            fmt="o",
            color=color,
            elinewidth=1,
            markersize=4,
        )
        axes.annotate(
            row["label"],
            (megabytes, value),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=7,
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
