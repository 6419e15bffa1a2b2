"""A folder that a stranger loads in one line, from an experiment."""

from speechbrain_stablequant.core.lazy import lazy_names

# Imported when first used: the block of every recipe passes by here.
_HOMES = {
    "About": "options",
    "Check": "check",
    "Destination": "destination",
    "Publication": "publish",
    "PublishKnobs": "schedule",
    "PublishOptions": "publish",
    "interface_of": "load",
    "load": "load",
    "make_folder": "publish",
    "model_card": "card",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
