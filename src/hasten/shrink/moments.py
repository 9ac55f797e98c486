"""moments: sums over the rows that a layer reads: Σ x xᵀ and Σ x, for each group apart."""

from __future__ import annotations

import numpy as np

from hasten.graph import Array


class Moments:
    """`second`: Σ x xᵀ (groups, numbers, numbers), or its diagonal alone (groups, numbers); `first`: Σ x (groups, numbers); over `count` rows."""

    def __init__(self, whole: bool = True) -> None:
        self.whole, self.count = whole, 0
        self.second, self.first = np.zeros(()), np.zeros(())

    def add(self, rows: Array) -> None:
        """rows: (groups, rows, numbers). A product is of the rows' own precision, the sums are of float64."""
        if self.whole:
            self.second = self.second + (rows.transpose(0, 2, 1) @ rows).astype(np.float64, copy=False)
        else:
            self.second = self.second + np.square(rows, dtype=np.float64).sum(axis=1)
        self.first = self.first + rows.sum(axis=1, dtype=np.float64)
        self.count += rows.shape[1]
