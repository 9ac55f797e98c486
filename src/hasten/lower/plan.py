"""The plan: tensors and ops of the native engine, and the file that holds them (native/src/plan.h is the other half of this page).

Activations lie pixel by pixel (rows, pixels, channels), perhaps within a halo of zeros. A tensor may be a *view*: part of another one's memory,
seen with other strides. The batch is in none of this: a plan is made for one sample, and the engine takes as many as it is given.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import zlib
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from hasten.graph import Array

MAGIC, VERSION, ALIGN = b"hastenpl", 2, 64
TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 4, "int64": 5}
MAX_DIMS, MAX_INPUTS, NUMBERS, FLOATS, BLOBS = 8, 4, 24, 8, 6

HEADER = struct.Struct("<8sIIQIIIIIIQQQQQQQQ")
TENSOR = struct.Struct("<III6i4iiQQ")
OP = struct.Struct(f"<Ii{MAX_INPUTS}ii{NUMBERS}i{FLOATS}f4x{2 * BLOBS}Q")
PORT = struct.Struct(f"<QQIi{MAX_DIMS}q")
ARENA, INPUT, OUTPUT, CONSTANT = range(4)


@dataclasses.dataclass(eq=False)
class Tensor:
    """h rows of w pixels of c channels. `stride` (rows, pixels) is counted in the strides of `base`, from its pixel `start`, channel `channel`.

    halo: top, left, bottom, right; only a base has one, and it grows while the model is lowered. fill: the halo's code. wide: channels that a
    pixel takes, c or more. port: (INPUT or OUTPUT, number) for what the caller gives or gets: an image in planes, else row by row. constant: float32
    (h, w, c), stored in the plan. dense: a view of all of `base` as another shape over the same numbers in the same order; `base` is flat then and
    gets no halo.
    """

    h: int
    w: int
    c: int
    type: str = "uint8"
    fill: int = 0
    wide: int = 0
    port: tuple[int, int] | None = None
    base: Tensor | None = None
    start: tuple[int, int] = (0, 0)
    stride: tuple[int, int] = (1, 1)
    channel: int = 0
    constant: Array | None = None
    dense: bool = False
    flat: bool = False
    halo: tuple[int, int, int, int] = (0, 0, 0, 0)
    offset: int = 0

    @property
    def root(self) -> Tensor:
        """The tensor whose memory this is."""
        return self if self.base is None else self.base.root

    @property
    def item(self) -> int:
        return np.dtype(self.type).itemsize

    @property
    def pixel(self) -> int:
        """Elements from a pixel to the next."""
        if self.dense:
            return self.c
        return self.base.pixel * self.stride[1] if self.base is not None else max(self.wide, self.c)

    @property
    def row(self) -> int:
        """Elements from a row to the next."""
        if self.dense:
            return self.w * self.c
        if self.base is not None:
            return self.base.row * self.stride[0]
        return (self.halo[1] + self.w + self.halo[3]) * self.pixel

    @property
    def origin(self) -> int:
        """Elements from the beginning of the memory to pixel (0, 0)."""
        if self.base is not None:
            return self.base.origin + self.start[0] * self.base.row + self.start[1] * self.base.pixel + self.channel
        return self.halo[0] * self.row + self.halo[1] * self.pixel

    @property
    def bytes(self) -> int:
        """Of one sample, with the halo; in the arena a multiple of 64."""
        root = self.root
        if self.port is not None or root.constant is not None:
            return self.h * self.w * self.c * self.item
        if root.port is not None:
            return root.bytes
        return -(-(root.halo[0] + root.h + root.halo[2]) * root.row * root.item // ALIGN) * ALIGN

    def need_halo(self, top: int, left: int, bottom: int, right: int) -> None:
        """Let the halo be at least so wide."""
        assert not self.flat
        self.halo = tuple(max(a, b) for a, b in zip(self.halo, (top, left, bottom, right), strict=True))  # type: ignore[assignment]

    def view(self, h: int, w: int, c: int, start: tuple[int, int] = (0, 0), stride: tuple[int, int] = (1, 1), channel: int = 0) -> Tensor:
        """A part of this tensor, or another look at it."""
        return Tensor(h, w, c, self.type, self.fill, base=self, start=start, stride=stride, channel=channel)

    def as_shape(self, h: int, w: int, c: int) -> Tensor:
        """The same numbers in the same order in another shape; the memory never gets a halo then."""
        assert not any(self.root.halo) and h * w * c == self.h * self.w * self.c
        self.root.flat = True
        return Tensor(h, w, c, self.type, self.fill, base=self, dense=True)


@dataclasses.dataclass(frozen=True)
class Record:
    """An op as the file has it: its kind, numbers, floats and constants, as native/src/program.cpp names them."""

    kind: int
    numbers: tuple[int, ...]
    floats: tuple[float, ...] = ()
    blobs: tuple[Array, ...] = ()


class Op(Protocol):
    """One kernel's call: the tensors it reads and the one it writes; `record` is asked for when every tensor has its place."""

    @property
    def reads(self) -> tuple[Tensor, ...]: ...

    @property
    def y(self) -> Tensor: ...

    def record(self) -> Record: ...


@dataclasses.dataclass(frozen=True)
class Port:
    """An input or output of the model, in the order of ONNX; dims[0] is −1 where the batch is free."""

    name: str
    type: str
    dims: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What a model was lowered to. `requantize`: "float" (onnxruntime's arithmetic to the bit) or "fixed" (whole numbers alone).

    names: for each op the node of the graph that it was made for.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    ops: tuple[Any, ...]
    requantize: str
    names: tuple[str, ...] = ()

    @property
    def dynamic(self) -> bool:
        return self.inputs[0].dims[:1] == (-1,)

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor and view that an op names, each once, in the order of first use."""
        return list(dict.fromkeys(t for op in self.ops for t in (*op.reads, op.y, op.y.root)))

    def to_bytes(self) -> bytes:
        """The plan file. Tensors get their places in the arena here."""
        from hasten.lower.arena import place

        arena = place(self.ops)
        tensors = self.tensors
        number = {t: i for i, t in enumerate(tensors)}
        data = _Constants()
        for tensor in tensors:
            if tensor.root.constant is not None:
                tensor.root.offset, _ = data.add(tensor.root.constant)
        last = {op.y.root: i for i, op in enumerate(self.ops)}
        ops = []
        for i, op in enumerate(self.ops):
            record = op.record()
            halo = number[op.y.root] if any(op.y.root.halo) and last[op.y.root] == i else -1
            reads = [number[t] for t in op.reads] + [-1] * (MAX_INPUTS - len(op.reads))
            numbers = [int(n) for n in record.numbers] + [0] * (NUMBERS - len(record.numbers))
            floats = [float(f) for f in record.floats] + [0.0] * (FLOATS - len(record.floats))
            blobs = [x for blob in record.blobs for x in data.add(blob)] + [0, 0] * (BLOBS - len(record.blobs))
            ops.append(OP.pack(record.kind, halo, *reads, number[op.y], *numbers, *floats, *blobs))
        names = b"".join(p.name.encode() for p in (*self.inputs, *self.outputs))
        sections = [[b"".join(map(_tensor, tensors))], [b"".join(ops)], [self._ports()], [names], data.pieces]
        places, parts, at = [], [], HEADER.size
        for section in sections:
            gap = -at % ALIGN
            places.append(at + gap)
            parts += [bytes(gap), *section]
            at += gap + sum(map(len, section))
        checksum = 0
        for part in parts:
            checksum = zlib.crc32(part, checksum)
        counts = (len(tensors), len(ops), len(self.inputs), len(self.outputs))
        sizes = (len(names), data.size, arena)
        header = HEADER.pack(MAGIC, VERSION, HEADER.size, at, checksum, self.dynamic, *counts, *places, *sizes)
        return b"".join((header, *parts))

    def _ports(self) -> bytes:
        records, at = [], 0
        for port in (*self.inputs, *self.outputs):
            length = len(port.name.encode())
            records.append(PORT.pack(at, length, TYPES[port.type], len(port.dims), *port.dims, *[0] * (MAX_DIMS - len(port.dims))))
            at += length
        return b"".join(records)


class _Constants:
    """The constants' section: each array once, every one at a multiple of 64. Models may be large: no piece is held twice."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.size = 0
        self._known: dict[bytes, tuple[int, int]] = {}

    def add(self, array: Array) -> tuple[int, int]:
        """(place, bytes)."""
        piece = np.ascontiguousarray(array).tobytes()
        key = hashlib.blake2b(piece).digest()
        if key not in self._known:
            self._known[key] = (self.size, len(piece))
            self.pieces += [piece, bytes(-len(piece) % ALIGN)]
            self.size += -(-len(piece) // ALIGN) * ALIGN
        return self._known[key]


def _tensor(t: Tensor) -> bytes:
    kind, port = t.root.port or (CONSTANT if t.root.constant is not None else ARENA, 0)
    halo = (0, 0, 0, 0) if t.base is not None else t.halo
    return TENSOR.pack(kind, TYPES[t.type], port, t.h, t.w, t.c, t.pixel, t.row, t.origin, *halo, t.fill, t.root.offset, t.bytes)


def reads_of(ops: Iterable[Any]) -> set[Tensor]:
    """The memory that any of these ops reads."""
    return {t.root for op in ops for t in op.reads}
