"""The colours of pictures.

The page replaces them with variables of its style sheet (``--plot-blue``), so
that pictures follow its light and dark theme.
"""

__all__ = ["COLORS"]

# By Okabe and Ito: distinguishable with any kind of colour vision.
COLORS = {
    "blue": "#0072b2",
    "red": "#d55e00",
    "green": "#009e73",
    "purple": "#a2558a",
    "yellow": "#c69214",
    "sky": "#4a9fd0",
    "ink": "#333333",
    "grey": "#9a9a9a",
    "light": "#e6e6e6",
    "paper": "#ffffff",
    "frame": "#1f6feb",  # visible on yellow, on red and on a dark page
    "on_accent": "#fefefd",  # on blue or grey
    # On a patch of colour, where the theme of the page must not change it
    "on_light": "#222222",
    "on_dark": "#fefefe",
}
