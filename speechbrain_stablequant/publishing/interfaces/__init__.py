"""Which stock interface loads an experiment, and what its YAML needs."""

from speechbrain_stablequant.publishing.interfaces.base import Interface
from speechbrain_stablequant.publishing.interfaces.blueprint import (
    Blueprint,
    make_blueprint,
)
from speechbrain_stablequant.publishing.interfaces.registry import (
    INTERFACES,
    choose,
    interface,
    recognize,
)

__all__ = [
    "INTERFACES",
    "Blueprint",
    "Interface",
    "choose",
    "interface",
    "make_blueprint",
    "recognize",
]
