"""A folder that a stranger loads in one line, from an experiment."""

import importlib
from typing import Any

# Imported when first used: the block of every recipe passes by here.
_HOMES = {
    "About": "card",
    "Check": "check",
    "Destination": "destination",
    "Publication": "publish",
    "PublishKnobs": "at_exit",
    "PublishOptions": "publish",
    "interface_of": "published",
    "load": "published",
    "make_folder": "publish",
    "model_card": "card",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{home}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
