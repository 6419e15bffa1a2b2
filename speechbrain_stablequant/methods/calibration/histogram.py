"""A histogram of activations that does not depend on the order of batches."""

import math

import torch

from speechbrain_stablequant.errors import CalibrationError

__all__ = ["NUM_BINS", "ActivationHistogram"]

# For each sign. The 2048 of pytorch-quantization leave few bins for the bulk of
# the values where outliers are a hundred times larger, as in wav2vec 2.0.
NUM_BINS = 16384
_CHUNK = 1 << 20
_NARROWEST = -120  # exponent; the inverse of a width must fit into float32


class ActivationHistogram:
    """Streaming histogram of one input of one layer.

    Bins are ``2 ** exponent`` wide. A value beyond the range doubles the
    width, which merges neighbouring bins exactly; so the result depends on
    which values came, never on their order or on how they were batched. (The
    usual collectors derive the width from whichever batch comes first.)
    Memory is bounded: 2 x 16384 counters of 8 bytes, 256 KiB a layer input.

    Example
    -------
    >>> a, b = ActivationHistogram(), ActivationHistogram()
    >>> x, y = torch.tensor([0.1, -0.2]), torch.tensor([100.0])
    >>> a.observe(x), a.observe(y)
    (None, None)
    >>> b.observe(y), b.observe(x)
    (None, None)
    >>> a == b, a.count, a.maximum
    (True, 3, 100.0)
    """

    def __init__(self):
        self.exponent = None
        self.counts = torch.zeros(2, NUM_BINS, dtype=torch.int64)
        self.minimum = math.inf
        self.maximum = -math.inf
        self._zeros = 0  # zeros seen before a first value sets the width

    @property
    def count(self) -> int:
        """Number of values seen."""
        return int(self.counts.sum()) + self._zeros

    @property
    def amax(self) -> float:
        """Largest absolute value seen."""
        return max(-self.minimum, self.maximum, 0.0)

    @property
    def width(self) -> float:
        """Width of a bin, in units of the activation."""
        return 2.0 ** (0 if self.exponent is None else self.exponent)

    def magnitudes(self) -> torch.Tensor:
        """Return counts of absolute values, (bins,) int64."""
        counts = self.counts.sum(0)
        counts[0] += self._zeros
        return counts

    def coarse(self, most_bins: int = 120) -> dict:
        """Return the histogram with few bins, as plain data for a picture.

        Arguments
        ---------
        most_bins : int
            Limit of the number of bins; they span the values seen.

        Returns
        -------
        dict
            ``low``, the lower end of the first bin; ``bin_width``, both in
            units of the activation; ``counts``.

        Example
        -------
        >>> histogram = ActivationHistogram()
        >>> histogram.observe(torch.tensor([-1.0, 0.25, 0.3, 3.0]))
        >>> histogram.coarse(4)
        {'low': -1.000244140625, 'bin_width': 1.000244140625, 'counts': [1, 2, 0, 1]}
        """
        if not self.count:
            return {"low": 0.0, "bin_width": 1.0, "counts": []}
        width = self.width
        signed = torch.cat([self.counts[1].flip(0), self.counts[0]])
        signed[NUM_BINS] += self._zeros
        seen = signed.nonzero()
        first, last = int(seen[0]), int(seen[-1])
        factor = -(-(last + 1 - first) // most_bins)
        part = signed[first : last + 1]
        rest = -len(part) % factor
        part = torch.nn.functional.pad(part, (0, rest)).view(-1, factor)
        return {
            "low": (first - NUM_BINS) * width,
            "bin_width": factor * width,
            "counts": part.sum(1).tolist(),
        }

    def observe(self, x: torch.Tensor) -> None:
        """Add the values of a tensor.

        Raises
        ------
        CalibrationError
            If a value is not finite.
        """
        x = x.detach().reshape(-1).to(torch.float32)
        if x.numel() == 0:
            return
        low, high = (float(v) for v in torch.aminmax(x))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CalibrationError("An activation is not finite (NaN or inf).")
        self.minimum = min(self.minimum, low)
        self.maximum = max(self.maximum, high)
        peak = max(-low, high)
        if peak == 0:
            self._zeros += x.numel()
            return
        # frexp: peak / NUM_BINS < 2 ** exponent, exactly.
        self._widen(max(math.frexp(peak / NUM_BINS)[1], _NARROWEST))
        inverse = 2.0**-self.exponent
        for chunk in x.split(_CHUNK):
            index = (chunk.abs() * inverse).to(torch.int64)
            index += (chunk < 0) * NUM_BINS
            counts = torch.bincount(index, minlength=2 * NUM_BINS)
            self.counts += counts.view(2, NUM_BINS).to(self.counts.device)

    def _widen(self, exponent: int) -> None:
        """Make the bins at least ``2 ** exponent`` wide."""
        if self.exponent is None:
            self.exponent = exponent
        steps = exponent - self.exponent
        if steps <= 0:
            return
        factor = 2 ** min(steps, int(math.log2(NUM_BINS)))
        merged = self.counts.view(2, NUM_BINS // factor, factor).sum(-1)
        self.counts = torch.zeros_like(self.counts)
        self.counts[:, : merged.shape[1]] = merged
        self.exponent = exponent

    def merge(self, other: "ActivationHistogram") -> None:
        """Add all values that another histogram has seen."""
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)
        self._zeros += other._zeros
        if other.exponent is None:
            return
        exponent = max(
            other.exponent,
            other.exponent if self.exponent is None else self.exponent,
        )
        self._widen(exponent)
        wider = ActivationHistogram()
        wider.exponent, wider.counts = other.exponent, other.counts
        wider._widen(exponent)
        self.counts = self.counts + wider.counts

    def __eq__(self, other) -> bool:
        return (
            isinstance(other, ActivationHistogram)
            and self.exponent == other.exponent
            and self.minimum == other.minimum
            and self.maximum == other.maximum
            and bool(torch.equal(self.magnitudes(), other.magnitudes()))
            and bool(torch.equal(self.counts[1], other.counts[1]))
        )

    __hash__ = None
