"""sparsegpt: which weights of one matrix go, and what the others become, so that its outputs on given inputs change least.

‖X (M − M̂)ᵀ‖² of a row w is (w − ŵ) H (w − ŵ)ᵀ with H = XᵀX. Setting w_j to 0 costs w_j² / [H⁻¹]_jj at best, when the columns behind j take
δ = −(w_j / [H⁻¹]_jj) [H⁻¹]_j,: (optimal brain surgeon, Hassibi and Stork, 1993). All rows share H, so SparseGPT (Frantar and Alistarh, arXiv
2301.00774) goes through the columns from left to right once: with U the upper Cholesky factor of H⁻¹, row j of U is what is needed of the inverse
once the columns before j are settled (its d = U_jj is the root of [H⁻¹]_jj there). Which weights go is chosen for BLOCK columns at a time by
w² / d²; the columns behind a block are updated once, by one product.
"""

from __future__ import annotations

import numpy as np

from hasten.graph import Array
from hasten.shrink.masks import Pattern, mask

BLOCK, DAMPING = 128, 0.01
"""Columns that are chosen among at a time; the share of its mean diagonal that is added to H's, so that it can be inverted."""


def solve(matrix: Array, hessian: Array, pattern: Pattern, share: float) -> Array:
    """The sparse matrix (rows, columns) in float64, `share` of it zero; zeros that it has stay. hessian: XᵀX (columns, columns).

    Memory: three matrices of the Hessian's size; time: columns³ + rows · columns².
    """
    left, zero = np.array(matrix, np.float64), matrix == 0
    upper, silent = _factor(hessian)
    columns = left.shape[1]
    step = max(1, BLOCK // max(1, pattern.of, pattern.columns)) * max(1, pattern.of, pattern.columns)
    done = 0
    for start in range(0, columns, step):
        end = min(start + step, columns)
        here, inner = left[:, start:end], upper[start:end, start:end]
        d = np.diagonal(inner)
        scores = np.where(silent[start:end] | zero[:, start:end], 0, np.square(here / d))
        if pattern.of:
            gone = mask(np.sqrt(scores), pattern, share)
        else:  # so many that all blocks together have the share
            units = left.shape[0] * end // (pattern.rows * pattern.columns)
            mine = left.shape[0] * (end - start) // (pattern.rows * pattern.columns)
            gone = mask(np.sqrt(scores), pattern, (round(share * units) - done) / mine)
            done = round(share * units)
        gone |= zero[:, start:end]
        errors = np.zeros_like(here)
        for j in range(end - start):
            errors[:, j] = np.where(gone[:, j], here[:, j], 0) / d[j]
            here[:, j:] -= np.outer(errors[:, j], inner[j, j:])
            here[gone[:, j], j] = 0
        left[:, end:] -= errors @ upper[start:end, end:]
    left[zero] = 0
    return left


def _factor(hessian: Array) -> tuple[Array, Array]:
    """(U with UᵀU = H⁻¹, the inputs that are always 0). These have no part in H, and what their weights are does not matter."""
    h = np.array(hessian, np.float64)
    silent = np.diagonal(h) == 0
    damping = DAMPING * float(np.mean(np.diagonal(h)[~silent])) if not silent.all() else 1.0
    h[np.diag_indices_from(h)] += damping
    upper: Array = np.linalg.cholesky(np.linalg.inv(h)).T
    return upper, silent
