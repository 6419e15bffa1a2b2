"""Allocation: which layer gets which bit width, for a number of bytes.

A multiple-choice knapsack: each layer takes one of its options, an option has
a size and a cost, costs add up. Solved exactly, up to the resolution of the
grid of sizes, by dynamic programming.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from speechbrain_stablequant.errors import StableQuantError

__all__ = ["Allocator", "Option"]

_STEPS = 1 << 15  # sizes are rounded up to this part of the largest total


class Option(NamedTuple):
    """One way to store a layer.

    Arguments
    ---------
    bits : str
        Its name: ``W4A8``.
    num_bytes : int
        Size of the layer's weights.
    cost : float
        What it does to the output; 0 for float.
    """

    bits: str
    num_bytes: int
    cost: float


class Allocator:
    """Chooses an option for each layer; one table serves all sizes.

    Arguments
    ---------
    options : dict
        A list of `Option` by layer name.

    Raises
    ------
    StableQuantError
        If a layer has no option.

    Example
    -------
    >>> options = {
    ...     "a": [Option("W4", 4, 1.0), Option("W8", 8, 0.1)],
    ...     "b": [Option("W4", 4, 9.0), Option("W8", 8, 0.2)],
    ... }
    >>> Allocator(options).allocate(12)
    {'a': 'W4', 'b': 'W8'}
    """

    def __init__(self, options: Mapping[str, Sequence[Option]]):
        for name, choices in options.items():
            if not choices:
                raise StableQuantError(f"Layer '{name}' has no candidate.")
        # Of equal costs the smallest comes first, and is taken.
        self.options = {
            name: sorted(choices, key=lambda o: (o.num_bytes, o.cost))
            for name, choices in options.items()
        }
        self.smallest = self._total(min)
        self.largest = self._total(max)
        self._step = max(1, -(-self.largest // _STEPS))
        self._choices = self._solve()

    def _total(self, pick) -> int:
        return sum(
            pick(o.num_bytes for o in choices)
            for choices in self.options.values()
        )

    def _solve(self) -> list[np.ndarray]:
        """Return, layer by layer, the best option for each total so far."""
        # Sizes are rounded up, so that no plan on the grid takes more bytes
        # than its place says. Each layer can add a step by that: without as
        # many more, the largest plan would fall off the grid.
        self._size = self.largest // self._step + len(self.options) + 1
        best = np.zeros(self._size)
        tables = []
        for choices in self.options.values():
            costs = np.full((len(choices), self._size), np.inf)
            for row, option in zip(costs, choices):
                steps = -(-option.num_bytes // self._step)
                row[steps:] = best[: self._size - steps] + option.cost
            # Only the choice is kept for each total; `allocate` walks the tables
            # backwards from the last layer to find the plan.
            tables.append(costs.argmin(axis=0).astype(np.int16))
            best = costs.min(axis=0)
        self._best = best
        return tables

    def allocate(self, num_bytes: int) -> dict[str, str]:
        """Return the cheapest choice of options within a total size.

        Arguments
        ---------
        num_bytes : int
            Limit of the total.

        Returns
        -------
        dict
            Name of the option by layer.

        Raises
        ------
        StableQuantError
            If even the smallest options are larger.
        """
        if num_bytes < self.smallest:
            raise StableQuantError(
                f"The smallest candidates take {self.smallest:,} bytes, more "
                f"than {num_bytes:,}."
            )
        place = min(num_bytes // self._step, self._size - 1)
        if not np.isfinite(self._best[place]):
            # It fits, but its size rounded up does not: only the smallest plan
            # is that small.
            return {name: o[0].bits for name, o in self.options.items()}
        chosen = {}
        for (name, choices), table in reversed(
            list(zip(self.options.items(), self._choices))
        ):
            option = choices[table[place]]
            chosen[name] = option.bits
            place -= -(-option.num_bytes // self._step)
        return {name: chosen[name] for name in self.options}

    def option(self, name: str, bits: str) -> Option:
        """Return an option of a layer by its name."""
        return next(o for o in self.options[name] if o.bits == bits)

    def num_bytes(self, choice: Mapping[str, str]) -> int:
        """Return the total size of a choice."""
        return sum(self.option(n, b).num_bytes for n, b in choice.items())

    def cost(self, choice: Mapping[str, str]) -> float:
        """Return the total cost of a choice."""
        return sum(self.option(n, b).cost for n, b in choice.items())
