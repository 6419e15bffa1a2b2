"""How far the output of a quantized model is from that of the float model.

The distance is cheap and smooth where a metric over a few hundred utterances
is neither: it ranks candidates, the metric decides between those that are
left.
"""

import contextlib
from collections.abc import Iterator
from typing import Optional

import torch
from torch import nn

from speechbrain_stablequant.methods.search.prefix import tensors_in

__all__ = ["OutputDistance"]


class OutputDistance:
    """Compares outputs: squared distance over squared length.

    Watched is the module that is called last in a pass: of a Brain's modules,
    or of the entries of a ``ModuleDict`` otherwise, or the model itself. For a
    speaker model that is the embedding, for a recognizer the logits.

    Arguments
    ---------
    root : torch.nn.Module
        The model.
    num_bytes : int
        Memory for outputs of one float pass; what is beyond is not compared.

    Example
    -------
    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> x = torch.ones(1, 2)
    >>> with torch.no_grad(), OutputDistance(model) as distance:
    ...     with distance.record():
    ...         _ = model(x)
    ...     model[0].weight.mul_(2), model[0].bias.mul_(2)
    ...     with distance.compare():
    ...         _ = model(x)
    ...     distance.error / distance.power
    (...)
    1.0
    """

    def __init__(self, root: nn.Module, num_bytes: int = 1 << 28):
        self.root, self.num_bytes = root, num_bytes
        self.error = self.power = 0.0
        self._mode = "off"
        self._outputs: dict[str, list[torch.Tensor]] = {}
        self._last: Optional[str] = None
        self._used = self._index = 0
        self._hooks = contextlib.ExitStack()

    def __enter__(self) -> "OutputDistance":
        watched = {"": self.root}
        if isinstance(self.root, nn.ModuleDict):
            watched = {
                name: module
                for name, module in self.root.items()
                if any(True for _ in module.parameters())
            }
        for name, module in watched.items():
            hook = module.register_forward_hook(self._hook(name))
            self._hooks.enter_context(hook)
        return self

    def __exit__(self, *exc_info) -> None:
        self._hooks.close()
        self._outputs.clear()

    def _hook(self, name: str):
        def hook(module, args, output):
            if self._mode == "off":
                return
            floats = (t for t in tensors_in(output) if t.is_floating_point())
            tensor = next(floats, None)
            if tensor is None:
                return
            if self._mode == "record":
                self._keep(name, tensor)
            elif name == self._last:
                self._add(tensor)

        return hook

    def _keep(self, name: str, tensor: torch.Tensor) -> None:
        self._last = name
        if self._used + tensor.nbytes <= self.num_bytes:
            self._used += tensor.nbytes
            self._outputs.setdefault(name, []).append(tensor.detach().clone())

    def _add(self, tensor: torch.Tensor) -> None:
        references = self._outputs.get(self._last, ())
        if self._index >= len(references):
            return
        reference = references[self._index].double()
        self._index += 1
        power = float(reference.square().sum())
        self.power += power
        if tensor.shape != reference.shape:
            # Decoding went another way: as far off as no output at all.
            self.error += power
        else:
            change = tensor.detach().double() - reference
            # nan and infinity are as bad as no output at all.
            error = float(change.square().sum())
            self.error += error if error < float("inf") else power

    @contextlib.contextmanager
    def record(self) -> Iterator[None]:
        """Keep the outputs of the float pass inside the block."""
        self._outputs.clear()
        self._used, self._last, self._mode = 0, None, "record"
        try:
            yield
        finally:
            self._mode = "off"
            if self._last is not None:
                self._outputs = {self._last: self._outputs.get(self._last, [])}

    @contextlib.contextmanager
    def compare(self) -> Iterator[None]:
        """Sum ``error`` and ``power`` over the pass inside the block."""
        self.error = self.power = 0.0
        self._index, self._mode = 0, "compare"
        try:
            yield
        finally:
            self._mode = "off"
