"""Reuse what comes before the quantized block.

While one block is quantized and the rest is float, everything that runs before
that block's first call gives what it gave in the float pass. A `PrefixCache`
keeps the blocks' outputs of one float pass and replays them.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, Optional

import torch
from torch import nn

__all__ = ["PrefixCache", "tensors_in"]


class _Call(NamedTuple):
    block: str
    output: Any
    versions: tuple
    seconds: float


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield all tensors in nested tuples, lists, dicts and model outputs."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)


def _versions(value: Any) -> tuple:
    """Return how often each tensor was changed in place, as autograd counts.

    Comparing it with an earlier count tells whether a kept output still has
    its values, at no cost; inference tensors are not counted.
    """
    return tuple(t._version for t in tensors_in(value) if not t.is_inference())


def _is_plain(value: Any) -> bool:
    """Whether later changes of a value, in place, would show."""
    if isinstance(value, torch.Tensor):
        return not value.is_inference()
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


class PrefixCache:
    """Record and replay the outputs of blocks, one batch at a time.

    An output that does not fit, or that a later module changes in place, is
    not kept, nor is that of a block that changes its own inputs: the block is
    then computed again, which is always right.

    Arguments
    ---------
    root : torch.nn.Module
        The model.
    blocks : iterable of str
        Names of modules, none inside another.
    num_bytes : int
        Memory for outputs.

    Example
    -------
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> x = torch.ones(1, 2)
    >>> with torch.no_grad(), PrefixCache(model, ["0", "1"]) as cache:
    ...     with cache.record():
    ...         y = model(x)
    ...     _ = model[0].weight.fill_(7)  # unseen: replayed, not computed
    ...     with cache.replay(before="1"):
    ...         bool(torch.equal(model(x), y))
    True
    """

    def __init__(self, root: nn.Module, blocks, num_bytes: int = 1 << 31):
        self.root, self.blocks, self.num_bytes = root, list(blocks), num_bytes
        self._mode = "off"
        self._calls: list[_Call] = []
        self._previous: dict = {}
        self._index = self._stop = self._used = 0

    def __enter__(self) -> "PrefixCache":
        for name in self.blocks:
            module = self.root.get_submodule(name)
            self._previous[name] = module.__dict__.get("forward")
            module.__dict__["forward"] = self._wrap(name, module)
        return self

    def __exit__(self, *exc_info) -> None:
        for name in self.blocks:
            attributes = self.root.get_submodule(name).__dict__
            attributes.pop("forward", None)
            if self._previous[name] is not None:
                attributes["forward"] = self._previous[name]
        self._calls.clear()

    def _wrap(self, name: str, module: nn.Module):
        def forward(*args, **kwargs):
            # Looked up at each call: conversion changes the class.
            live = type(module).forward
            if self._mode == "record":
                return self._record(name, live, module, args, kwargs)
            if self._mode == "replay" and self._index < self._stop:
                call = self._calls[self._index]
                self._index += 1
                if call.output is not None:
                    return call.output
            return live(module, *args, **kwargs)

        return forward

    def _record(self, name, live, module, args, kwargs):
        given = (args, kwargs)
        before = _versions(given)
        start = time.perf_counter()
        output = live(module, *args, **kwargs)
        seconds = time.perf_counter() - start
        size = sum(t.nbytes for t in tensors_in(output))
        keep = (
            self._used + size <= self.num_bytes
            and _is_plain(given)
            and _is_plain(output)
            and _versions(given) == before
        )
        self._used += size if keep else 0
        kept = output if keep else None
        self._calls.append(_Call(name, kept, _versions(output), seconds))
        return output

    def _drop_changed(self) -> None:
        """Forget outputs that were changed in place after they were kept."""
        self._calls = [
            c if _versions(c.output) == c.versions else c._replace(output=None)
            for c in self._calls
        ]

    @contextlib.contextmanager
    def record(self) -> Iterator[None]:
        """Keep the outputs of the float pass inside the block."""
        self._calls.clear()
        self._used, self._mode = 0, "record"
        try:
            yield
        finally:
            self._mode = "off"
            self._drop_changed()

    @contextlib.contextmanager
    def replay(self, before: Optional[str]) -> Iterator[None]:
        """Replay what ran before a block's first call, then compute.

        With None, everything is computed.
        """
        self._index, self._stop = 0, self._first_call(before)
        self._mode = "replay"
        try:
            yield
        finally:
            self._mode = "off"
            self._drop_changed()

    def _first_call(self, block: Optional[str]) -> int:
        for index, call in enumerate(self._calls):
            if call.block == block:
                return index
        # Never called as a module; somebody may read its weights all the same.
        return 0

    def live_fraction(self, before: Optional[str]) -> float:
        """Return the share of a forward pass that a replay has to compute.

        Measured on the recorded pass, over the time spent inside blocks.
        """
        total = sum(call.seconds for call in self._calls)
        stop = self._first_call(before)
        replayed = sum(
            c.seconds for c in self._calls[:stop] if c.output is not None
        )
        return 1.0 - replayed / total if total else 1.0
