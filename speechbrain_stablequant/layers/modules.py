"""Find the modules to quantize and put them into one ModuleDict."""

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn

from speechbrain_stablequant.errors import KnobError, StableQuantError

__all__ = ["evaluating", "as_module_dict"]


def as_module_dict(modules: dict) -> nn.ModuleDict:
    """Return modules as one ModuleDict, out of DDP and torch.compile."""
    plain = {}
    for name, module in modules.items():
        if not isinstance(module, nn.Module):
            raise KnobError(
                f"modules: '{name}' is a {type(module).__name__}, not a module."
            )
        module = getattr(module, "_orig_mod", module)  # torch.compile
        if isinstance(module, nn.parallel.DistributedDataParallel):
            module = module.module
        plain[name] = module
    if not plain:
        raise StableQuantError("There is no module to quantize.")
    return nn.ModuleDict(plain)


@contextlib.contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put modules into evaluation mode, and back as each part of them was.

    Fresh modules are in training mode: normalization would learn.
    """
    modes = {part: part.training for m in modules for part in m.modules()}
    for part in modes:
        part.training = False
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
