"""Passes over a Brain: float, then quantized, each leaving no trace."""

from torch import nn

from speechbrain_stablequant.errors import KnobError, nearest

__all__ = ["find_module"]


def find_module(brain, name: str) -> nn.Module:
    """Return a module of the Brain or of its hparams by name."""
    if name in brain.modules:
        return brain.modules[name]
    module = getattr(brain.hparams, name, None)
    if isinstance(module, nn.Module):
        return module
    known = [
        *brain.modules,
        *(
            k
            for k, v in vars(brain.hparams).items()
            if isinstance(v, nn.Module)
        ),
    ]
    raise KnobError(f"modules: there is no '{name}'." + nearest(name, known))
