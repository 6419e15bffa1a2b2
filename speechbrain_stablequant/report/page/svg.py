"""SVG documents as elements of the page: themed, scalable, with unique ids."""

import re

from speechbrain_stablequant.report.colors import COLORS

__all__ = ["inline_svg"]

_HEAD = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_METADATA = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>", re.DOTALL)
_SIZE = re.compile(r'(<svg\b[^>]*?) width="([\d.]+)pt"| height="[\d.]+pt"')
_FONT = re.compile(r"(font: [^;\"]*?px|font-family:) [^;\"]+")
_REFERENCE = re.compile(r'(href="#|url\(#)([^")]+)')
_ID = re.compile(r' id="([^"]*)"')
_PATH = re.compile(r' d="[^"]*"')
_DECIMALS = re.compile(r"(\.\d\d)\d+")
_VARIABLES = {
    **{value: f"var(--plot-{name})" for name, value in COLORS.items()},
    "#000000": "var(--plot-ink)",
}
_COLORS = re.compile("|".join(_VARIABLES))


def inline_svg(svg: str, name: str, label: str) -> str:
    """Turn an SVG document into an element of a page.

    Arguments
    ---------
    svg : str
        As `svg_text` returns it; what stands in it is escaped.
    name : str
        Prefix of each id: a page has many pictures.
    label : str
        Alternative text, already escaped.

    Returns
    -------
    str
        An ``<svg>`` that follows the colours, the font and the width of the
        page.
    """
    svg = _METADATA.sub("", _HEAD.sub("", svg, count=1))
    width = _SIZE.search(svg)
    # Somewhat larger than on paper
    pixels = float(width.group(2)) * 1.7 if width else 900.0
    svg = _SIZE.sub(lambda m: m.group(1) or "", svg, count=2)
    # Half of the bytes are decimals of paths, too fine for any screen.
    svg = _PATH.sub(lambda m: _DECIMALS.sub(r"\1", m.group()), svg)
    svg = _FONT.sub(r"\1 var(--font)", svg)
    svg = _COLORS.sub(lambda m: _VARIABLES[m.group()], svg)
    svg = _named(svg, name)
    head = (
        f'<svg role="img" aria-label="{label}" '
        f'style="max-width: {pixels:.0f}px"'
    )
    return svg.replace("<svg", head, 1)


def _named(svg: str, name: str) -> str:
    """Prefix the ids that something refers to; drop the others."""
    used = {match.group(2) for match in _REFERENCE.finditer(svg)}
    svg = _REFERENCE.sub(rf"\g<1>{name}-\g<2>", svg)
    return _ID.sub(
        lambda m: f' id="{name}-{m.group(1)}"' if m.group(1) in used else "",
        svg,
    )
