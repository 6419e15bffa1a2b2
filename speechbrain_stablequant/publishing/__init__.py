"""Exports an experiment as a Hub repository."""

from speechbrain_stablequant.core.lazy import lazy_names

# Imported when first used: the block of every recipe imports this package.
_HOMES = {
    "Check": "check",
    "Publication": "publish",
    "PublishOptions": "options",
    "interface_of": "load",
    "load_published": "load",
    "make_folder": "publish",
    "model_card": "card",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
