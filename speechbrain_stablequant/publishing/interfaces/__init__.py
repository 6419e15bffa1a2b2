"""Which stock interface loads an experiment, and what its YAML needs."""

from speechbrain_stablequant.publishing.interfaces.base import (
    Blueprint,
    Interface,
)
from speechbrain_stablequant.publishing.interfaces.registry import (
    INTERFACES,
    choose,
    interface,
)

__all__ = ["INTERFACES", "Blueprint", "Interface", "choose", "interface"]
