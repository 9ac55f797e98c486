"""packing: the bytes of one tensor as pieces that compress well, and back. What pieces there are is decided by size alone.

A tensor is n elements of 1, 2, 4 or 8 bytes, taken as whole numbers: the same bits come back. It is laid out in its own order or with its first
axis last, then

    where its zeros are    nowhere (they are values like others) | MASK, one bit an element | GAPS between those that are not zero
    its values             RAW bytes | PLANES: the first byte of each, the second … | a BOOK of at most 256 values and CODES into it

A piece is (kind, bytes). The same kinds of all tensors are one stream each (see packed.py), and a kind's bytes are alike.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

NONE, MASK, GAPS = 0, 1, 2
RAW, PLANES, CODES = 0, 1, 2

K_MASK, K_GAPS, K_CODES = 1, 2, 3
K_RAW, K_PLANE, K_BOOK, K_BITS = 0x10, 0x20, 0x80, 0x40
"""Kinds of pieces. K_RAW + log2 of the element's bytes; K_PLANE + 8 · log2 + the byte's number, K_BOOK + likewise; K_BITS + bits of a code."""

LONG = 255
"""In GAPS: 255 elements of zero and none behind them. A smaller byte g: g of zero, and one that is not."""

FEW = 256
"""Entries of a code book, at most."""

SPARSE = 0.125
"""Share of zeros from which on their places are stored."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a tensor is laid out: what is needed beside its shape to read it. `nonzero`, `book`, `gaps`: lengths."""

    zeros: int = NONE
    values: int = RAW
    turned: bool = False
    bits: int = 8
    nonzero: int = 0
    book: int = 0
    gaps: int = 0


Pieces = list[tuple[int, bytes]]


def choose(data: bytes, size: int, first: int) -> tuple[Layout, Pieces]:
    """The layout of the least estimated size and its pieces. `size`: bytes of an element; `first`: length of the first axis."""
    elements = np.frombuffer(data, f"<u{size}")
    ways: list[tuple[float, Layout, Pieces]] = []
    nonzero = int(np.count_nonzero(elements))
    sparse = len(elements) >= 16 and nonzero <= (1 - SPARSE) * len(elements)
    book = _book(elements)
    for turned in (False, True) if 1 < first < len(elements) and len(elements) % first == 0 else (False,):
        laid = _turn(elements, first) if turned else elements
        for where in (NONE, MASK, GAPS) if sparse else (NONE,):
            places = _places(laid, where)
            kept = laid[laid != 0] if where else laid
            base = Layout(where, RAW, turned, 8, nonzero if where else 0, 0, len(places[0][1]) if where == GAPS else 0)
            cost = sum(estimate(piece) for _, piece in places)
            for layout, pieces in _values(kept, size, base, book):
                ways.append((cost + sum(estimate(piece) for _, piece in pieces) + 2, layout, places + pieces))
    _, layout, pieces = min(ways, key=lambda way: way[0])
    return layout, pieces


def tight(data: bytes, size: int) -> int:
    """The least bytes of a tensor with positions and codes of a fixed number of bits, before any entropy coding."""
    elements = np.frombuffer(data, f"<u{size}")
    count, nonzero = len(elements), int(np.count_nonzero(elements))
    book = _book(elements)
    ways = [8 * size * count, count + 8 * size * nonzero]
    gap_bits = _gap_bits(elements, nonzero)
    ways.append(gap_bits + 8 * size * nonzero)
    if book is not None:
        kept = len(book) - bool(nonzero < count)
        ways.append(count * _bits(len(book)) + 8 * size * len(book))
        ways.append(min(count, gap_bits) + nonzero * _bits(kept) + 8 * size * kept)
    return -(-min(ways) // 8)


def pieces_of(layout: Layout, size: int, count: int) -> list[tuple[int, int]]:
    """(kind, length) of each piece of a tensor of `count` elements. Raises ValueError where the layout can't be of such a tensor."""
    places: list[tuple[int, int]] = []
    kept = count
    if layout.zeros:
        kept = layout.nonzero
        if kept > count:
            raise ValueError(f"{kept} of {count} elements are not zero")
        if layout.zeros == MASK:
            places = [(K_MASK, -(-count // 8))]
        else:
            if layout.gaps > kept + count // LONG + 1:
                raise ValueError(f"{layout.gaps} gaps for {count} elements")
            places = [(K_GAPS, layout.gaps)]
    power = size.bit_length() - 1
    if layout.values == RAW:
        return [*places, (K_RAW + power, kept * size)]
    if layout.values == PLANES:
        return [*places, *((K_PLANE + 8 * power + byte, kept) for byte in range(size))]
    if not 0 < layout.book <= FEW or not _bits(layout.book) <= layout.bits <= 8:
        raise ValueError(f"a book of {layout.book} numbers with codes of {layout.bits} bits")
    codes = (K_CODES, kept) if layout.bits == 8 else (K_BITS + layout.bits, -(-kept * layout.bits // 8))
    return [*places, *((K_BOOK + 8 * power + byte, layout.book) for byte in range(size)), codes]


def restore(layout: Layout, size: int, first: int, count: int, pieces: list[bytes]) -> bytes:
    """The tensor's bytes from its pieces. Raises ValueError where they do not fit together."""
    todo = iter(pieces)
    flags: Array | None = None
    if layout.zeros == MASK:
        flags = np.unpackbits(np.frombuffer(next(todo), np.uint8), count=count).astype(bool)
    elif layout.zeros == GAPS:
        steps = np.frombuffer(next(todo), np.uint8)
        ends = steps != LONG
        at = np.cumsum(steps, dtype=np.int64) + np.cumsum(ends) - 1
        flags = np.zeros(count, bool)
        if len(at) and at[-1] >= count:
            raise ValueError("a gap leads out of its tensor")
        flags[at[ends]] = True
    if flags is not None and int(np.count_nonzero(flags)) != layout.nonzero:
        raise ValueError("the places of the elements are not as many as the elements")
    kept = layout.nonzero if flags is not None else count
    if layout.values == RAW:
        values = np.frombuffer(next(todo), f"<u{size}")
    elif layout.values == PLANES:
        values = _join([next(todo) for _ in range(size)], size)
    else:
        book = _join([next(todo) for _ in range(size)], size)
        codes = np.frombuffer(next(todo), np.uint8)
        codes = codes if layout.bits == 8 else _unpack(codes, layout.bits, kept)
        if len(codes) and int(codes.max()) >= len(book):
            raise ValueError("a code has no number in its book")
        values = book[codes]
    elements = values
    if flags is not None:
        elements = np.zeros(count, f"<u{size}")
        elements[flags] = values
    if layout.turned:
        if first < 1 or count % first:
            raise ValueError("a tensor of no such shape is turned")
        elements = np.ascontiguousarray(elements.reshape(-1, first).T)
    return elements.tobytes()


def estimate(piece: bytes) -> float:
    """About how many bytes a compressor makes of it: the quickest one's answer, or the entropy of single bytes."""
    return min(float(len(piece)), float(len(zlib.compress(piece, 1))), entropy(piece) + 8) if piece else 0.0


def entropy(piece: bytes) -> float:
    """Bytes that a piece of independent symbols has at least: its length times the entropy of its bytes."""
    if not piece:
        return 0.0
    counts = np.bincount(np.frombuffer(piece, np.uint8))
    shares = counts[counts > 0] / len(piece)
    return float(-(shares * np.log2(shares)).sum()) * len(piece) / 8


def _turn(elements: Array, first: int) -> Array:
    """The first axis last."""
    return np.ascontiguousarray(elements.reshape(first, -1).T).ravel()


def _book(elements: Array) -> Array | None:
    """The distinct values in ascending order (of their bits), None where they are too many for a book."""
    if len(np.unique(elements[: 4 * FEW])) > FEW:
        return None
    found = np.unique(elements)
    return found if 0 < len(found) <= FEW else None


def _places(laid: Array, where: int) -> Pieces:
    if where == MASK:
        return [(K_MASK, np.packbits(laid != 0).tobytes())]
    return [(K_GAPS, _gaps(np.flatnonzero(laid)))] if where == GAPS else []


def _gaps(at: Array) -> bytes:
    """The numbers of zeros before each element that is not one, long ones with as many LONG before them as they need."""
    gaps = np.diff(at, prepend=-1) - 1
    longs = gaps // LONG
    out = np.full(len(gaps) + int(longs.sum()), LONG, np.uint8)
    out[np.arange(len(gaps)) + np.cumsum(longs)] = gaps % LONG
    return out.tobytes()


def _values(kept: Array, size: int, base: Layout, book: Array | None) -> list[tuple[Layout, Pieces]]:
    """The values as each of the kinds that there are for them."""
    power = size.bit_length() - 1
    found: list[tuple[Layout, Pieces]] = [(base, [(K_RAW + power, kept.tobytes())])]
    if size > 1:
        planes = [(K_PLANE + 8 * power + byte, plane) for byte, plane in enumerate(_planes(kept, size))]
        found.append((dataclasses.replace(base, values=PLANES), planes))
    if book is None or not len(kept) or (size == 1 and len(book) > 128):
        return found
    own = book[book != 0] if base.zeros else book
    codes = np.searchsorted(own, kept).astype(np.uint8)
    numbers = [(K_BOOK + 8 * power + byte, plane) for byte, plane in enumerate(_planes(own, size))]
    layout = dataclasses.replace(base, values=CODES, book=len(own))
    found.append((layout, [*numbers, (K_CODES, codes.tobytes())]))
    if (bits := _bits(len(own))) < 8:
        found.append((dataclasses.replace(layout, bits=bits), [*numbers, (K_BITS + bits, _pack(codes, bits))]))
    return found


def _planes(elements: Array, size: int) -> list[bytes]:
    return [plane.tobytes() for plane in elements.view(np.uint8).reshape(-1, size).T]


def _join(planes: list[bytes], size: int) -> Array:
    rows = np.stack([np.frombuffer(plane, np.uint8) for plane in planes], axis=1)
    return np.ascontiguousarray(rows).view(f"<u{size}").ravel()


def _bits(entries: int) -> int:
    """Bits of a code into a book of so many entries, at least 1."""
    return max(1, math.ceil(math.log2(entries))) if entries > 1 else 1


def _pack(codes: Array, bits: int) -> bytes:
    """Codes of so many bits one behind the other, the highest bit first."""
    return np.packbits(np.unpackbits(codes[:, None], axis=1)[:, 8 - bits :]).tobytes()


def _unpack(packed: Array, bits: int, count: int) -> Array:
    digits = np.unpackbits(packed, count=count * bits).reshape(count, bits)
    return np.packbits(np.pad(digits, [(0, 0), (8 - bits, 0)]), axis=1).ravel()


def _gap_bits(elements: Array, nonzero: int) -> int:
    """Bits of the gaps between nonzero elements, each of the width that makes their sum least; a gap that is longer takes several."""
    if not nonzero:
        return 0
    gaps = np.diff(np.flatnonzero(elements), prepend=-1) - 1
    return min(int(width * (len(gaps) + (gaps // ((1 << width) - 1)).sum())) for width in range(1, 17))
