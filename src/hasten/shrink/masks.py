"""masks: which weights go, from scores and a pattern. All on matrices (outputs, inputs) as in `weights`; `prune_weights` and the trainings share it.

`unstructured`: each weight for itself. `N:M` (2:4): at most N of every M inputs side by side stay, the form that sparse tensor cores read (Mishra et
al., arXiv 2104.08378). `RxC` (4x1): blocks of R outputs × C inputs go or stay whole (Gray et al., 2017), and their score is the sum of their squares.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from hasten.errors import BadInput
from hasten.graph import Array
from hasten.shrink.weights import Weight

SCOPES = ("layer", "global", "adaptive")
"""Where scores are compared: within each layer, across all of them, or across all as `_adaptive` weighs them."""

TOLERANCE = 0.005
"""A sparsity that is given beside N:M may differ by so much from the one that N:M has (0.67 for 1:3)."""


@dataclasses.dataclass(frozen=True)
class Pattern:
    """N:M: `kept` of every `of` inputs stay; of = 0: blocks of `rows` × `columns` (1 × 1 is unstructured)."""

    text: str
    kept: int = 0
    of: int = 0
    rows: int = 1
    columns: int = 1

    @property
    def sparsity(self) -> float | None:
        """The one that N:M has, None for others."""
        return 1 - self.kept / self.of if self.of else None

    def refusal(self, weight: Weight) -> str:
        """Why the pattern does not fit a weight, empty where it does."""
        if self.of and weight.width % self.of:
            return f"{self.of} of {self.text} does not divide its {weight.width} inputs"
        if weight.width % self.columns:
            return f"blocks of {self.text} need inputs in multiples of {self.columns}, and it has {weight.width}"
        if weight.height % self.rows:
            return f"blocks of {self.text} need outputs in multiples of {self.rows}, and it has {weight.height}"
        return ""


def pattern_of(verb: str, text: str) -> Pattern:
    """The pattern of that name. Raises BadInput."""
    if text == "unstructured":
        return Pattern(text)
    if (found := re.fullmatch(r"(\d+):(\d+)", text)) and 0 < int(found[1]) < int(found[2]):
        return Pattern(text, kept=int(found[1]), of=int(found[2]))
    if (found := re.fullmatch(r"(\d+)x(\d+)", text)) and int(found[1]) > 0 and int(found[2]) > 0:
        return Pattern(text, rows=int(found[1]), columns=int(found[2]))
    raise BadInput(
        f"{verb}: pattern {text!r} is not understood; expected unstructured, N:M with N below M (2:4: two of four inputs stay), "
        "or a block of outputs x inputs (4x1)"
    )


def share_of(verb: str, sparsity: float | None, pattern: Pattern) -> float | None:
    """The share of zeros that is asked for: N:M has its own. None where neither says. Raises BadInput where they contradict each other."""
    own = pattern.sparsity
    if sparsity is None:
        return own
    if not 0 < sparsity < 1:
        raise BadInput(f"{verb}: sparsity is {sparsity}, expected the share of zeros, above 0 and below 1")
    if own is not None and abs(own - sparsity) > TOLERANCE:
        raise BadInput(f"{verb}: pattern {pattern.text} has a sparsity of {own:g}, and sparsity {sparsity:g} was given; leave it out")
    return sparsity if own is None else own


def mask(scores: Array, pattern: Pattern, share: float, *, by_row: bool = False) -> Array:
    """True where a weight goes: the smallest scores (rows, columns), `share` of all of them to the nearest whole number, ties from the left.

    by_row: the same share of every row (of blocks). With N:M a share below its own prunes so many groups, those that lose least.
    """
    if pattern.of:
        return _n_of_m(scores, pattern, share)
    units = _units(scores, pattern)
    if by_row:
        count = round(share * units.shape[1])
        chosen = np.zeros(units.shape, bool)
        np.put_along_axis(chosen, np.argsort(units, axis=1, kind="stable")[:, :count], True, axis=1)
    else:
        chosen = smallest(units.ravel(), round(share * units.size)).reshape(units.shape)
    return _whole(chosen, pattern)


def masks_of_all(scores: Sequence[Array], pattern: Pattern, share: float, *, adaptive: bool = False) -> list[Array]:
    """The same with one threshold for several matrices; adaptive: on what each would lose of its own (magnitudes alone). Not for N:M."""
    units = [_units(s, pattern) for s in scores]
    if adaptive:
        units = [_adaptive(np.square(u, dtype=np.float64) if pattern.rows == pattern.columns == 1 else u) for u in units]
    chosen = smallest(np.concatenate([u.ravel() for u in units]), round(share * sum(u.size for u in units)))
    parts = np.split(chosen, np.cumsum([u.size for u in units])[:-1])
    return [_whole(part.reshape(u.shape), pattern) for part, u in zip(parts, units, strict=True)]


def smallest(values: Array, count: int) -> Array:
    """True at the `count` smallest of (N,) values; of equal ones the first."""
    chosen = np.zeros(len(values), bool)
    if count <= 0:
        return chosen
    threshold = np.partition(values, count - 1)[count - 1]
    chosen[values < threshold] = True
    chosen[np.flatnonzero(values == threshold)[: count - int(chosen.sum())]] = True
    return chosen


def _adaptive(squares: Array) -> Array:
    """Layer-adaptive magnitudes (Lee et al., LAMP, arXiv 2010.07611): of squares in ascending order x_i / Σ_{j ≥ i} x_j.

    It is what a layer loses of what it still has when the smaller ones are gone: the largest has 1, so every layer keeps some.
    """
    order = np.argsort(squares, axis=None, kind="stable")
    ascending = squares.ravel()[order]
    left = np.cumsum(ascending[::-1])[::-1]
    found = np.empty_like(ascending)
    found[order] = ascending / np.where(left > 0, left, 1)
    return found.reshape(squares.shape)


def _units(scores: Array, pattern: Pattern) -> Array:
    """The scores of what goes or stays whole."""
    if pattern.rows == pattern.columns == 1:
        return scores
    rows, columns = scores.shape
    blocks = scores.reshape(rows // pattern.rows, pattern.rows, columns // pattern.columns, pattern.columns)
    return np.square(blocks, dtype=np.float64).sum(axis=(1, 3))


def _whole(chosen: Array, pattern: Pattern) -> Array:
    return np.repeat(np.repeat(chosen, pattern.rows, axis=0), pattern.columns, axis=1)


def _n_of_m(scores: Array, pattern: Pattern, share: float) -> Array:
    groups = scores.reshape(-1, pattern.of)
    order = np.argsort(groups, axis=1, kind="stable")[:, : pattern.of - pattern.kept]
    chosen = np.zeros(groups.shape, bool)
    np.put_along_axis(chosen, order, True, axis=1)
    assert pattern.sparsity is not None
    if share < pattern.sparsity:
        lost = np.where(chosen, np.square(groups, dtype=np.float64), 0).sum(axis=1)
        chosen &= smallest(lost, round(share / pattern.sparsity * len(groups)))[:, None]
    return chosen.reshape(scores.shape)
