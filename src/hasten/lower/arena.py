"""The static memory plan: tensors whose lives don't overlap share memory (greedy by size, as in arXiv 2001.03288, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hasten.lower.plan import Tensor


def lives(ops: Sequence[Any]) -> dict[Tensor, tuple[int, int]]:
    """(first op, last op) in whose time each base in the arena holds something."""
    found: dict[Tensor, tuple[int, int]] = {}
    for i, op in enumerate(ops):
        for tensor in (op.y, *op.reads):
            if tensor.root.port is None and tensor.root.constant is None:
                first, _ = found.get(tensor.root, (i, i))
                found[tensor.root] = (first, i)
    return found


def place(ops: Sequence[Any]) -> int:
    """Give every tensor its offset; the bytes of the arena for one sample."""
    when = lives(ops)
    placed: list[Tensor] = []
    for tensor in sorted(when, key=lambda t: (-t.bytes, when[t])):
        first, last = when[tensor]
        beside = sorted((p.offset, p.offset + p.bytes) for p in placed if when[p][0] <= last and first <= when[p][1])
        at = 0
        for begin, end in beside:
            if begin - at >= tensor.bytes:
                break
            at = max(at, end)
        tensor.offset = at
        placed.append(tensor)
    return max((t.offset + t.bytes for t in placed), default=0)
