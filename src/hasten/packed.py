"""packed: a model in few bytes, for storage and transport, and back to the very same model (Deep Compression, arXiv 1510.00149, section 4).

A pruned and clustered model is an ONNX file of full size. Here its weights become places of nonzero numbers, code books and codes (`packing.py`),
and these go through the standard library's compressors: DEFLATE, bzip2 and LZMA, the shortest result counts. Nothing is rounded: any model packs.

    file     magic (8 bytes), version (1 byte), SHA-256 of the body (32 bytes), body
    body     number: bytes of the ONNX file · block: skeleton · block: table · streams until the end
    skeleton the ONNX file without the contents of its tensors, history and all; `raw_data` that was taken out is there and empty
    table    for each of those tensors, in the order in which they stand: byte zeros | values << 2 | turned << 4;
             if zeros: number of nonzero elements; if GAPS: number of gap bytes; if CODES: byte bits, number of book entries
    stream   byte kind · byte joint · if joint 1: one block, the pieces of all tensors end to end; if 0: a block for each tensor that has some
    block    byte codec · number: bytes unpacked · number: bytes packed · the packed bytes
    number   7 bits a byte, the lowest first, the highest bit set where more follow

docs/storage.md says the same at length.
"""

from __future__ import annotations

import bz2
import dataclasses
import functools
import hashlib
import lzma
import math
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from hasten.errors import BadInput, Unsupported
from hasten.model import Model
from hasten.packing import CODES, GAPS, K_PLANE, K_RAW, Layout, choose, estimate, pieces_of, restore, tight

SUFFIX = ".packed"
MAGIC, VERSION = b"\x89hasten\n", 1
HEAD = len(MAGIC) + 1 + 32

ALWAYS, RATIO = 64 << 20, 1000
"""A file may unpack to ALWAYS bytes, or to RATIO times its own if that is more: what claims more is not read, and not written."""

DICTIONARY = 64 << 20
"""Of LZMA, at most: what a decoder allocates."""

LZMA = ((3, 0), (0, 0), (0, 2))
"""(lc, lp) of the LZMA codecs: high bits of the byte before, low bits of the place, that choose the statistics of a byte."""

ELEMENT_BYTES: dict[int, int] = {
    onnx.TensorProto.FLOAT: 4, onnx.TensorProto.INT32: 4, onnx.TensorProto.UINT32: 4,
    onnx.TensorProto.FLOAT16: 2, onnx.TensorProto.BFLOAT16: 2, onnx.TensorProto.INT16: 2, onnx.TensorProto.UINT16: 2,
    onnx.TensorProto.DOUBLE: 8, onnx.TensorProto.INT64: 8, onnx.TensorProto.UINT64: 8, onnx.TensorProto.COMPLEX64: 8,
}  # fmt: skip
"""Bytes that are taken as one element; 1 for every other type, whatever it stands for."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Bytes of the same model: `raw`, the ONNX file; `packed`, its places and codes of a fixed number of bits, and its graph; `entropy_coded`, the
    file that `save` writes, which went through the compressors."""

    raw: int
    packed: int
    entropy_coded: int


def sizes(model: Model) -> Sizes:
    """The three sizes. It packs the model, which takes about a second for each few MB of weights."""
    proto = _proto(model)
    return _sizes(proto, _pack(proto))


def _sizes(proto: onnx.ModelProto, data: bytes) -> Sizes:
    contents = [(len(tensor.raw_data), tight(tensor.raw_data, _element(tensor))) for tensor in _tensors(proto)]
    raw = proto.ByteSize()
    return Sizes(raw, raw - sum(before - after for before, after in contents), len(data))


def pack(model: Model) -> bytes:
    """The packed file. Raises Unsupported for a model above 2 GB, and for one that holds hardly anything but zeros."""
    return _pack(_proto(model))


def unpack(data: bytes, name: str = "the file") -> bytes:
    """The ONNX file of a packed one. Raises BadInput, before much is allocated, where it is not one, was changed, or claims what can't be."""
    if not data.startswith(MAGIC):
        raise BadInput(f"{name} is not a packed model of hasten's; expected a file that `hasten convert --to packed` wrote")
    if len(data) < HEAD:
        raise BadInput(f"{name} is cut off after {len(data)} bytes; copy it again")
    if data[len(MAGIC)] != VERSION:
        raise BadInput(f"{name} has version {data[len(MAGIC)]} of the packed format, this hasten reads {VERSION}; pack the model again")
    if hashlib.sha256(data[HEAD:]).digest() != data[len(MAGIC) + 1 : HEAD]:
        raise BadInput(f"{name} does not agree with its checksum: it is cut off or was changed; copy it again")
    try:
        return _unpack(data)
    except (ValueError, DecodeError, lzma.LZMAError, zlib.error, OSError, EOFError, RecursionError) as e:
        raise BadInput(f"{name} can't be unpacked ({' '.join(str(e).split())[:200]}); pack the model again") from e


def save(model: Model, path: str | os.PathLike[str]) -> Sizes:
    """Write the packed file atomically, once it was seen to unpack to the same bytes. Errors as `pack`, and OSError."""
    proto = _proto(model)
    expected = hashlib.sha256(proto.SerializeToString(deterministic=True)).digest()
    data = _pack(proto)
    if hashlib.sha256(unpack(data)).digest() != expected:
        raise AssertionError("the packed model does not unpack to the same bytes")
    target = Path(path)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as place:
        written = Path(place) / target.name
        written.write_bytes(data)
        os.replace(written, target)
    return _sizes(proto, data)


# --- the model as a proto


def _proto(model: Model) -> onnx.ModelProto:
    """The proto that `model.save` writes, external data inside, every initializer's contents in raw_data."""
    if not model.fits_in_memory:
        raise Unsupported(f"the model has {model.weight_bytes / 1e9:.1f} GB of weights; up to 1.5 GB can be packed")
    proto = onnx.load_from_string(model.to_bytes())
    found = model.ir.graph.initializers
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.STRING or tensor.HasField("raw_data"):
            continue
        data = found[tensor.name].const_value
        assert data is not None
        shell = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=data.tobytes())
        tensor.CopyFrom(shell)
    return proto


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor whose contents are in raw_data, in the order of the file: initializers, then what nodes hold, graphs within graphs."""
    yield from _of_graph(proto.graph)
    for function in proto.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from (tensor for tensor in graph.initializer if tensor.HasField("raw_data"))
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Any) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (t for t in (attribute.t, *attribute.tensors) if t.HasField("raw_data"))
            for graph in (attribute.g, *attribute.graphs):
                yield from _of_graph(graph)


def _element(tensor: onnx.TensorProto) -> int:
    return ELEMENT_BYTES.get(tensor.data_type, 1)


def _bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor's contents by its shape and type. Raises ValueError for a type or a shape that can't be."""
    opaque = tensor.data_type in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING)
    if opaque or len(tensor.dims) > 64 or any(d < 0 for d in tensor.dims):
        raise ValueError(f"a tensor of type {tensor.data_type} has shape {list(tensor.dims[:64])}")
    bits = ir.DataType(tensor.data_type).bitwidth
    return -(-math.prod(tensor.dims) * bits // 8)


def _first(tensor: onnx.TensorProto) -> int:
    return tensor.dims[0] if tensor.dims else 1


# --- packing


def _pack(proto: onnx.ModelProto) -> bytes:
    raw = proto.ByteSize()
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(proto)
    table = bytearray()
    streams: dict[int, list[bytes]] = {}
    for tensor in _tensors(skeleton):
        try:
            expected = _bytes(tensor)
        except ValueError as e:
            raise Unsupported(f"tensor {tensor.name!r} can't be packed: {e}") from e
        if len(tensor.raw_data) != expected:
            raise Unsupported(f"tensor {tensor.name!r} has {len(tensor.raw_data)} bytes, its shape and type make {expected}")
        layout, pieces = choose(tensor.raw_data, _element(tensor), _first(tensor))
        table += _written(layout)
        for kind, piece in pieces:
            if piece:
                streams.setdefault(kind, []).append(piece)
        tensor.raw_data = b""
    parts = [_number(raw), _block(skeleton.SerializeToString(deterministic=True), REPEATED), _block(bytes(table))]
    for kind in sorted(streams):
        joint, blocks = _stream(streams[kind], REPEATED if K_RAW < kind < K_PLANE else SYMBOLS)
        parts += [bytes([kind, joint]), *blocks]
    body = b"".join(parts)
    if raw > _limit(HEAD + len(body)):
        raise Unsupported(
            f"the model holds hardly anything but zeros: {raw} bytes would become {len(body)}, and a file that unpacks to more than {RATIO} times "
            "its size is not read; remove what is zero"
        )
    return MAGIC + bytes([VERSION]) + hashlib.sha256(body).digest() + body


def _stream(pieces: list[bytes], encoders: Sequence[Encoder]) -> tuple[int, list[bytes]]:
    """The pieces of one kind as one block or as a block each, whichever is smaller."""
    whole = b"".join(pieces)
    if len(pieces) == 1:
        return 1, [_block(whole, encoders)]
    joint, apart = estimate(whole), sum(estimate(piece) + 5 for piece in pieces)
    if len(whole) > TRIED and not CLOSE * joint <= apart <= joint / CLOSE:
        return (1, [_block(whole, encoders)]) if joint <= apart else (0, [_block(piece, encoders) for piece in pieces])
    together, single = _block(whole, encoders), [_block(piece, encoders) for piece in pieces]
    return (1, [together]) if len(together) <= sum(map(len, single)) else (0, single)


TRIED, CLOSE = 1 << 16, 0.99
"""Streams of more bytes are compressed in the way that is estimated to be smaller, in both where the estimates are that close."""


def _written(layout: Layout) -> bytes:
    out = bytes([layout.zeros | layout.values << 2 | layout.turned << 4])
    out += _number(layout.nonzero) if layout.zeros else b""
    out += _number(layout.gaps) if layout.zeros == GAPS else b""
    return out + (bytes([layout.bits]) + _number(layout.book) if layout.values == CODES else b"")


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


# --- codecs


def _deflate(data: bytes, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    coder = zlib.compressobj(6, zlib.DEFLATED, -15, 9, strategy)
    return coder.compress(data) + coder.flush()


QUICK = {"nice_len": 32, "depth": 8, "mf": lzma.MF_HC4}
THOROUGH = {"nice_len": 273, "depth": 64, "mf": lzma.MF_BT4}
"""How long LZMA's encoder looks for repetitions; no part of the format."""


def _filters(size: int, lc: int, lp: int, search: dict[str, int] = QUICK) -> list[dict[str, Any]]:
    """LZMA's filter for a block of so many bytes."""
    room = min(DICTIONARY, max(4096, 1 << max(0, size - 1).bit_length()))
    return [{"id": lzma.FILTER_LZMA1, "dict_size": room, "lc": lc, "lp": lp, "pb": lp, "mode": lzma.MODE_NORMAL, **search}]


def _lzma(data: bytes, lc: int, lp: int, search: dict[str, int]) -> bytes:
    return lzma.compress(data, lzma.FORMAT_RAW, filters=_filters(len(data), lc, lp, search))


STORED, DEFLATE, BZIP2, FIRST_LZMA = 0, 1, 2, 3
Encoder = tuple[int, Callable[[bytes], bytes]]


def _encoders(search: dict[str, int]) -> tuple[Encoder, ...]:
    return (
        (STORED, bytes),
        (DEFLATE, _deflate),
        (DEFLATE, functools.partial(_deflate, strategy=zlib.Z_HUFFMAN_ONLY)),
        (BZIP2, functools.partial(bz2.compress, compresslevel=9)),
        *((FIRST_LZMA + number, functools.partial(_lzma, lc=lc, lp=lp, search=search)) for number, (lc, lp) in enumerate(LZMA)),
    )


SYMBOLS, REPEATED = _encoders(QUICK), _encoders(THOROUGH)
"""What a block is tried with: codes, places and planes, which are nearly independent symbols; graphs and RAW elements, in which much comes again."""

HOPELESS = 0.998
"""From this estimated share of its size on, a block of a page or more is stored as it is: mantissas of floats."""

LARGE, HUGE = 1 << 15, 1 << 20
"""A block of weights of more bytes than LARGE is tried with the two encoders that do best on samples of it, above HUGE with the best one."""


def _block(data: bytes, encoders: Sequence[Encoder] = SYMBOLS) -> bytes:
    """The shortest of what the encoders make."""
    hopeless = len(data) >= 4096 and estimate(data) >= HOPELESS * len(data)
    tried = encoders[:1] if hopeless or len(data) < 8 else encoders
    if len(data) > LARGE and not hopeless:
        keep, size = (1, 1 << 15) if len(data) > HUGE else (2, 1 << 12)
        sample = b"".join(data[at : at + size] for at in range(0, len(data) - size, len(data) // 4))
        tried = tuple(sorted(encoders, key=lambda way: len(way[1](sample)))[:keep])
    codec, packed = min(((codec, encode(data)) for codec, encode in tried), key=lambda way: len(way[1]))
    return bytes([codec]) + _number(len(data)) + _number(len(packed)) + packed


def _decoded(codec: int, packed: bytes, size: int) -> bytes:
    """The block's bytes, `size` of them and not one more. Raises ValueError, or the decoder's error."""
    if codec == STORED:
        data = packed
    elif codec == DEFLATE:
        data = zlib.decompressobj(-15).decompress(packed, size + 1)
    elif codec == BZIP2:
        data = bz2.BZ2Decompressor().decompress(packed, size + 1)
    elif codec < FIRST_LZMA + len(LZMA):
        lc, lp = LZMA[codec - FIRST_LZMA]
        data = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(size, lc, lp)).decompress(packed, size + 1)
    else:
        raise ValueError(f"there is no codec {codec}")
    if len(data) != size:
        raise ValueError(f"a block has {len(data)} bytes or more, and {size} were expected")
    return data


# --- unpacking


class _Reader:
    """Reads a body from front to back. Its methods raise ValueError where it ends too early."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self._data, self._at = memoryview(data), at

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise ValueError("it ends too early")
        self._at += count
        return bytes(self._data[self._at - count : self._at])

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 56:
                raise ValueError("a number is too long")

    def block(self, limit: int, expected: int | None = None) -> bytes:
        codec, size = self.byte(), self.number()
        packed = self.take(self.number())
        if size > limit or (expected is not None and size != expected):
            raise ValueError(f"a block claims {size} bytes, {limit if expected is None else expected} were expected")
        return _decoded(codec, packed, size)


def _limit(size: int) -> int:
    """What a packed file of so many bytes may unpack to."""
    return min((1 << 31) - 1, max(ALWAYS, RATIO * size))


def _unpack(data: bytes) -> bytes:
    reader = _Reader(data, HEAD)
    raw = reader.number()
    if raw > _limit(len(data)):
        raise ValueError(f"it claims to unpack to {raw} bytes, more than a file of {len(data)} may")
    proto = onnx.ModelProto.FromString(reader.block(raw))
    tensors = list(_tensors(proto))
    counts = [_bytes(tensor) for tensor in tensors]
    if sum(counts) > raw:
        raise ValueError(f"its tensors have {sum(counts)} bytes, the whole has {raw}")
    table = _Reader(reader.block(raw))
    layouts = [_read_layout(table) for _ in tensors]
    if table:
        raise ValueError("there are more layouts than tensors")
    wanted = [
        pieces_of(layout, _element(tensor), count // _element(tensor))
        for layout, tensor, count in zip(layouts, tensors, counts, strict=True)
    ]
    streams = _read_streams(reader, wanted)
    for tensor, layout, count, pieces in zip(tensors, layouts, counts, wanted, strict=True):
        size = _element(tensor)
        found = [next(streams[kind]) if length else b"" for kind, length in pieces]
        tensor.raw_data = restore(layout, size, _first(tensor), count // size, found)
    if proto.ByteSize() != raw:
        raise ValueError(f"it unpacks to {proto.ByteSize()} bytes, and {raw} were expected")
    return proto.SerializeToString(deterministic=True)


def _read_layout(table: _Reader) -> Layout:
    flags = table.byte()
    zeros, values, turned = flags & 3, flags >> 2 & 3, bool(flags >> 4)
    if zeros > GAPS or values > CODES or flags > 31:
        raise ValueError(f"there is no layout {flags}")
    nonzero = table.number() if zeros else 0
    gaps = table.number() if zeros == GAPS else 0
    bits, book = (table.byte(), table.number()) if values == CODES else (8, 0)
    return Layout(zeros, values, turned, bits, nonzero, book, gaps)


def _read_streams(reader: _Reader, wanted: list[list[tuple[int, int]]]) -> dict[int, Iterator[bytes]]:
    """The pieces of each kind in the order of the tensors."""
    lengths: dict[int, list[int]] = {}
    for pieces in wanted:
        for kind, length in pieces:
            if length:
                lengths.setdefault(kind, []).append(length)
    streams: dict[int, Iterator[bytes]] = {}
    for kind in sorted(lengths):
        found, joint = reader.byte(), reader.byte()
        if found != kind or joint > 1:
            raise ValueError(f"stream {found} stands where {kind} was expected")
        if joint:
            whole = _Reader(reader.block(sum(lengths[kind]), sum(lengths[kind])))
            streams[kind] = iter([whole.take(length) for length in lengths[kind]])
        else:
            streams[kind] = iter([reader.block(length, length) for length in lengths[kind]])
    if reader:
        raise ValueError("there is more in it than its tensors need")
    return streams
