"""Moments: sums over batches are those over all rows; only the products are of the rows' own precision."""

import numpy as np
import pytest

from hasten.shrink.moments import Moments


@pytest.mark.parametrize("whole", [True, False])
def test_sums_over_batches(whole):
    rows = np.random.default_rng(0).standard_normal((2, 60, 5)).astype(np.float32)
    found = Moments(whole)
    for start in (0, 20, 40):
        found.add(rows[:, start : start + 20])
    second = np.einsum("gni,gnj->gij", rows, rows, dtype=np.float64)
    np.testing.assert_allclose(found.second, second if whole else np.einsum("gii->gi", second), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.first, rows.sum(1, dtype=np.float64), rtol=1e-12)
    assert (found.count, found.second.dtype, found.first.dtype) == (60, np.float64, np.float64)
