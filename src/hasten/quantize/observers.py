"""Observers: what a tensor's values are like, seen batch by batch in memory that does not grow with the number of samples."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.numerics import Format, affine, dequantize, quantize, symmetric

Array = NDArray[Any]

BINS = 4096
"""Bins of a histogram, half of them on either side of zero."""

SAMPLED = 1 << 16
"""Values of a batch that enter a tensor's histogram, at most, taken at even steps; minimum, maximum and means see them all."""

CLIPS = np.concatenate([np.linspace(0.2, 0.9, 29), np.linspace(0.905, 1.0, 20)])
"""Shares of the whole range that the mse method tries."""


class Means:
    """The mean of each channel along an axis."""

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._sums: Array | None = None
        self._count = 0

    def see(self, x: Array) -> None:
        """One batch."""
        axis = self._axis % x.ndim
        sums = x.sum(axis=tuple(a for a in range(x.ndim) if a != axis), dtype=np.float64)
        self._sums = sums if self._sums is None else self._sums + sums
        self._count += x.size // x.shape[axis]

    def means(self) -> list[float]:
        """(channels,) means of all that was seen."""
        assert self._sums is not None
        return [float(v) for v in self._sums / self._count]


class Observer:
    """Minimum and maximum (of all, and their means over samples) and a histogram over [−R, R), R a power of two that doubles as values ask for it."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self._samples = 0
        self._mean_low, self._mean_high = 0.0, 0.0
        self._range = 0.0
        self._bins = np.zeros(BINS, np.int64)

    def see(self, x: Array) -> None:
        """One batch of the tensor's values. Raises ValueError where one is not finite."""
        low, high = float(x.min()), float(x.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("a value is NaN or infinite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        each = x.reshape(len(x), -1) if x.ndim > 1 else x.reshape(1, -1)
        self._samples += len(each)
        self._mean_low += float(each.min(axis=1).sum())
        self._mean_high += float(each.max(axis=1).sum())
        self._widen(max(-low, high))
        flat = x.reshape(-1)
        flat = flat[:: -(-flat.size // SAMPLED)]
        index = ((flat / self._range + 1) * (BINS // 2)).astype(np.int64)
        self._bins += np.bincount(np.clip(index, 0, BINS - 1), minlength=BINS)

    def minmax(self) -> tuple[float, float]:
        return self.low, self.high

    def mean(self) -> tuple[float, float]:
        """The mean over samples of each one's minimum and maximum: milder than the extremes of all, and independent of their number."""
        return self._mean_low / self._samples, self._mean_high / self._samples

    def percentile(self, q: float) -> tuple[float, float]:
        """The range that leaves a share of (100 − q) % of the values outside, half on either side where the values have both signs."""
        share = np.cumsum(self._bins) / self._bins.sum()
        outside = (100 - q) / 100
        edges = self._edges()
        low = self.low if self.low >= 0 else edges[int(np.searchsorted(share, outside / 2, side="right"))]
        high = self.high if self.high <= 0 else edges[min(BINS, int(np.searchsorted(share, 1 - outside / 2)) + 1)]
        return max(float(low), self.low), min(float(high), self.high)

    def mse(self, to: Format) -> tuple[float, float]:
        """The range, a share of the whole one on either side, whose codes have the least mean squared error on the histogram."""
        edges = self._edges()
        used = np.flatnonzero(self._bins)
        centres, weights = (edges[used] + edges[used + 1]) / 2, self._bins[used].astype(np.float64)
        # The outermost bins' centres may lie outside of what was seen.
        centres = np.clip(centres, self.low, self.high)
        best, chosen = np.inf, (self.low, self.high)
        shares = CLIPS if self.low < 0 < self.high else None
        for high_share in CLIPS:
            for low_share in shares[shares >= high_share][:1] if shares is not None else CLIPS[-1:]:
                low, high = self.low * low_share, self.high * high_share
                scale, zero = affine(low, high, to)
                codes = np.clip(np.rint(centres / scale) + float(zero), to.lo, to.hi)
                error = float(np.sum(weights * (scale * (codes - float(zero)) - centres) ** 2))
                if error < best:
                    best, chosen = error, (low, high)
        return float(chosen[0]), float(chosen[1])

    def _edges(self) -> Array:
        return np.linspace(-self._range, self._range, BINS + 1)

    def _widen(self, largest: float) -> None:
        """Let the range hold `largest`: two bins become one at every doubling, so no count is lost."""
        if self._range == 0.0:
            self._range = float(2.0 ** np.ceil(np.log2(max(largest, 1e-30))))
        while largest > self._range:
            inner = self._bins.reshape(-1, 2).sum(axis=1)
            self._bins = np.zeros(BINS, np.int64)
            self._bins[BINS // 4 : 3 * BINS // 4] = inner
            self._range *= 2


def symmetric_mse(rows: Array, to: Format) -> Array:
    """For each row (C, N) the symmetric scale, a share of that of its whole range, whose codes have the least squared error. (C,) float32."""
    largest = np.abs(rows).max(axis=1)
    best, chosen = np.full(len(rows), np.inf), symmetric(largest, to)
    for share in CLIPS[::-1]:
        scale = symmetric(largest * share, to)
        codes = dequantize(quantize(rows, scale[:, None], 0, to), scale[:, None], 0)
        error = np.sum((codes - rows).astype(np.float64) ** 2, axis=1)
        chosen = np.where(error < best, scale, chosen)
        best = np.minimum(best, error)
    return chosen
