"""Where the bytes of a checkpoint go."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from speechbrain_stablequant.report.plots.style import COLORS, bare, styled

__all__ = ["sizes_figure"]

# Part, its colour, and the colour of text on it
_PARTS = (
    ("integers", "blue", "on_accent"),
    ("scales", "yellow", "on_light"),
    ("weights in float", "grey", "on_light"),
    ("biases, norms, gains", "purple", "on_accent"),
    ("buffers and header", "sky", "on_light"),
)


@styled()
def sizes_figure(sizes: Mapping[str, Mapping[str, int]]) -> Figure:
    """Draw bytes by part, in float and quantized.

    Arguments
    ---------
    sizes : dict
        For ``float`` and ``quantized``: bytes by part (``integers``,
        ``scales``, ``weights in float``, ``biases, norms, gains``, and
        ``buffers and header`` where these are known).

    Returns
    -------
    matplotlib.figure.Figure
        The figure.
    """
    figure = Figure(figsize=(7.2, 1.75), layout="constrained")
    axes = figure.add_subplot()
    bare(axes)
    largest = max(sum(parts.values()) for parts in sizes.values()) or 1
    for place, parts in enumerate(sizes.values()):
        _draw_bar(axes, place, parts, largest)
    axes.set_yticks(range(len(sizes)), list(sizes))
    axes.set_ylim(len(sizes) - 0.5, -0.5)
    axes.set_xlim(0, largest / 1e6 * 1.2)
    has_rest = all("buffers and header" in parts for parts in sizes.values())
    axes.set_xlabel("MB, files" if has_rest else "MB, tensors of all modules")
    shown = [p for p in _PARTS if any(s.get(p[0]) for s in sizes.values())]
    handles = [axes.barh(0, 0, color=COLORS[color]) for _, color, _ in shown]
    figure.legend(
        handles, [name for name, _, _ in shown], loc="outside upper left",
        ncols=5, frameon=False, handlelength=1, columnspacing=1.2,
    )  # fmt: skip
    return figure


def _draw_bar(axes, place: int, parts, largest: int) -> None:
    start = 0.0
    for name, color, ink in _PARTS:
        value = parts.get(name, 0)
        if not value:
            continue
        axes.barh(
            place, value / 1e6, 0.62, left=start / 1e6, color=COLORS[color],
            gid=name.split()[0].strip(","),
        )  # fmt: skip
        if value > 0.1 * largest:
            axes.text(
                (start + value / 2) / 1e6, place, f"{value / 1e6:.3g}",
                ha="center", va="center", fontsize=8, color=COLORS[ink],
            )  # fmt: skip
        start += value
    axes.annotate(
        f"{start / 1e6:.3f} MB", (start / 1e6, place), xytext=(5, 0),
        textcoords="offset points", va="center", fontsize=8,
    )  # fmt: skip
