"""packed: every model comes back to the bit, what is pruned and clustered is near its entropy, and no file can do harm."""

import contextlib
import hashlib
import lzma
import struct
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten import check, doors, packed, packing
from hasten.doors.onnx import from_proto, load_onnx
from hasten.errors import BadInput, Unsupported
from hasten.graph import add_weight
from hasten.model import Model
from hasten.plan import TECHNIQUES
from hasten.shrink.cluster_weights import ClusterWeights, cluster_weights
from hasten.task import Task
from tests.conftest import MODELS, mlp_model, model_of, proto_of
from tests.test_packing import arrays

RNG = np.random.default_rng(0)
HEAD = packed.HEAD


def there_and_back(model: Model, place: Path) -> int:
    """Bytes of the file. What comes out of it is the ONNX file that `model.save` writes, byte for byte, unless that has weights in float_data; and
    so the very same model."""
    file = place / "m.packed"
    found = packed.save(model, file)
    exact = all(t.HasField("raw_data") for t in onnx.load_from_string(model.to_bytes()).graph.initializer)
    assert (packed.unpack(file.read_bytes()) == model.to_bytes()) == exact
    (place / "m.onnx").write_bytes(model.to_bytes())
    assert load_onnx(file).digest == load_onnx(place / "m.onnx").digest
    (place / "m.onnx").unlink()
    assert found.entropy_coded == file.stat().st_size
    assert [p.name for p in place.iterdir()] == [file.name]
    return file.stat().st_size


def pruned(model: Model, share: float) -> Model:
    """The model with that share of each matrix and kernel exactly 0."""
    edited = model.edit()
    for name, value in list(edited.graph.initializers.items()):
        array = value.const_value.numpy()
        if array.ndim > 1:
            zeroed = add_weight(
                edited.graph, name, np.where(np.abs(array) < np.quantile(np.abs(array), share), 0, array).astype(array.dtype)
            )
            ir.convenience.replace_all_uses_with(value, zeroed)
            del edited.graph.initializers[name]
    return Model(edited)


def lenet(seed: int = 0) -> Model:
    """LeNet-5 as Deep Compression has it: 431,080 weights, here random."""
    rng = np.random.default_rng(seed)
    shapes = {
        "w1": (20, 1, 5, 5),
        "b1": (20,),
        "w2": (50, 20, 5, 5),
        "b2": (50,),
        "w3": (500, 800),
        "b3": (500,),
        "w4": (10, 500),
        "b4": (10,),
    }
    return model_of(
        """lenet (float[N, 1, 28, 28] x) => (float[N, 10] y) {
            a = Conv (x, w1, b1)
            b = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a)
            c = Conv (b, w2, b2)
            d = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c)
            e = Flatten (d)
            f = Gemm <transB = 1> (e, w3, b3)
            g = Relu (f)
            y = Gemm <transB = 1> (g, w4, b4)
        }""",
        {name: rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:])) for name, shape in shapes.items()},
    )


def ideal(model: Model) -> float:
    """Bytes that an ideal coder of independent values needs: each tensor's own frequencies, and its distinct values once."""
    total = 0.0
    for tensor in packed._tensors(packed._proto(model)):
        elements = np.frombuffer(tensor.raw_data, f"<u{packed._element(tensor)}")
        _, counts = np.unique(elements, return_counts=True)
        bits = -(counts * np.log2(counts / max(1, len(elements)))).sum()
        total += min(len(tensor.raw_data), bits / 8 + len(counts) * elements.itemsize)
    return total


def skeleton_bytes(model: Model) -> int:
    proto = packed._proto(model)
    for tensor in packed._tensors(proto):
        tensor.raw_data = b""
    return len(packed._block(proto.SerializeToString(deterministic=True)))


# --- there and back


@settings(max_examples=25, deadline=None)
@given(several=st.lists(arrays(), min_size=1, max_size=6))
def test_a_model_of_any_tensors_comes_back(several):
    """Also two models of one: as initializers, and within nodes."""
    proto = proto_of("m (float[N, 2] x) => (float[N, 2] y) { y = Identity (x) }")
    for number, array in enumerate(several):
        name = f"t{number}"
        if number % 2:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        else:
            proto.graph.node.append(onnx.helper.make_node("Constant", [], [name], f"c{number}", value=onnx.numpy_helper.from_array(array)))
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape))
    model = from_proto(proto)
    again = from_proto(onnx.load_from_string(packed.unpack(packed.pack(model))))
    assert again.digest == model.digest
    assert again.to_bytes() == model.to_bytes()


def test_types_that_numpy_lacks_strings_and_subgraphs_come_back(tmp_path):
    proto = proto_of(
        """m (float[N, 2] x, bool c) => (float[N, 2] y) {
            y = If (c) <then_branch = t () => (a) { a = Add (x, u) }, else_branch = e () => (b) { k = Constant <value = float[2] {1, 2}> ()
                b = Add (x, k) }>
        }""",
        {"u": np.ones(2)},
    )
    for kind, count in (("INT4", 7), ("UINT4", 8), ("BFLOAT16", 5), ("FLOAT8E4M3FN", 6)):
        bits = 4 if "4" in kind and "8" not in kind else 16 if "16" in kind else 8
        raw = RNG.integers(1, 60, -(-count * bits // 8), np.uint8).tobytes()
        proto.graph.initializer.append(onnx.TensorProto(name=kind, data_type=getattr(onnx.TensorProto, kind), dims=[count], raw_data=raw))
    there_and_back(from_proto(proto), tmp_path)
    proto.graph.initializer.append(onnx.helper.make_tensor("names", onnx.TensorProto.STRING, [2], [b"a", b"bb"]))
    model = from_proto(proto)
    assert packed.unpack(packed.pack(model)) == model.to_bytes()


def test_weights_that_are_not_in_raw_data_are_packed_too(tmp_path):
    """Old exporters write float_data. The digest is over values, so it is the same; the file that comes back has raw_data."""
    proto = proto_of("m (float[N, 64] x) => (float[N, 64] y) { y = MatMul (x, w) }")
    values = RNG.choice([1.0, -1.0, 0.0], 4096)
    proto.graph.initializer.append(onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [64, 64], values))
    model = from_proto(proto)
    assert packed.save(model, tmp_path / "m.packed").entropy_coded < 1500
    assert load_onnx(tmp_path / "m.packed").digest == model.digest


def test_external_data_comes_inside(tmp_path):
    proto = proto_of("m (float[N, 64] x) => (float[N, 64] y) { y = MatMul (x, w) }", {"w": RNG.standard_normal((64, 64))})
    inside = from_proto(proto).digest
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    model = load_onnx(tmp_path / "m.onnx")
    model_digest = model.digest
    packed.save(model, tmp_path / "m.packed")
    for name in ("m.onnx", "m.data"):
        (tmp_path / name).unlink()
    assert load_onnx(tmp_path / "m.packed").digest == model_digest == inside


@pytest.mark.parametrize("file", sorted(MODELS.glob("*.onnx")), ids=lambda f: f.name)
def test_the_models_that_travel_with_the_package(file, tmp_path):
    assert there_and_back(load_onnx(file), tmp_path) < file.stat().st_size


@pytest.mark.parametrize("row", [r for r in TECHNIQUES if not r.learns and r.name != "factorize"], ids=lambda r: r.name)
def test_what_each_technique_makes(row, digits_cnn, digits, tmp_path):
    model = load_onnx(digits_cnn)
    there_and_back(row.apply(model, row.settings(), Task(digits).bind(model) if row.observes else None), tmp_path)


def test_the_models_of_shared_data(shared_data, tmp_path):
    """All that are small enough for a quick test."""
    for file in sorted((shared_data / "models").glob("*.onnx")):
        if file.stat().st_size < 900_000:
            size = there_and_back(load_onnx(file), tmp_path)
            assert size < 0.9 * file.stat().st_size, file.name


# --- how small


def test_a_pruned_and_clustered_model_is_near_its_entropy(tmp_path):
    """The gap to an ideal coder of independent values: 5 % would ask for a coder of our own. See docs/storage.md."""
    model = cluster_weights(pruned(lenet(), 0.9), ClusterWeights(bits=4), None)
    size = there_and_back(model, tmp_path)
    found = packed.sizes(model)
    assert found.raw == len(model.to_bytes()) > 1_700_000
    assert found.entropy_coded == size < found.packed < 60_000
    assert size - skeleton_bytes(model) < 1.02 * ideal(model)


def test_sizes_of_a_plain_model_are_not_larger_than_the_file():
    found = packed.sizes(mlp_model())
    assert found.entropy_coded < found.packed <= found.raw + 8


def test_a_kind_is_one_stream_where_that_is_smaller():
    rng = np.random.default_rng(0)
    alike = [rng.choice(np.array([1, 2, 3], np.uint8), 500).tobytes() for _ in range(4)]
    unlike = [rng.choice(rng.permutation(256).astype(np.uint8)[:8], 4000, p=[0.93, *[0.01] * 7]).tobytes() for _ in range(40)]
    for pieces in (alike, unlike):
        joint, blocks = packed._stream(pieces, packed.SYMBOLS)
        assert len(blocks) == (1 if joint else len(pieces))
        ways = len(packed._block(b"".join(pieces))), sum(len(packed._block(piece)) for piece in pieces)
        assert sum(map(len, blocks)) <= 1.03 * min(ways)
    assert packed._stream(alike, packed.SYMBOLS)[0] == 1


# --- files that are no good


@pytest.fixture(scope="module")
def good() -> bytes:
    return packed.pack(cluster_weights(pruned(mlp_model(), 0.8), ClusterWeights(bits=3), None))


def signed(body: bytes) -> bytes:
    """A file whose checksum agrees with whatever it holds."""
    return packed.MAGIC + bytes([packed.VERSION]) + hashlib.sha256(body).digest() + body


def refused(data: bytes, place: Path | None = None) -> str:
    with pytest.raises(BadInput) as caught:
        packed.unpack(data, "bad.packed")
    return str(caught.value)


def test_a_file_that_is_none_says_what_it_is(good, tmp_path):
    assert "is not a packed model" in refused(b"PK\3\4" + good)
    assert "cut off after 20 bytes" in refused(good[:20])
    assert "agree with its checksum" in refused(good[:-1])
    assert "agree with its checksum" in refused(good + b"\0")
    newer = bytearray(good)
    newer[len(packed.MAGIC)] = 9
    assert "version 9 of the packed format, this hasten reads 1" in refused(bytes(newer))
    for name, data, says in (("a.packed", b"text", "a.packed is not a packed model"), ("b.packed", b"", "b.packed is empty")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadInput, match=says):
            doors.load(tmp_path / name)
    (tmp_path / "other.name").write_bytes(good)
    assert load_onnx(tmp_path / "other.name").inputs[0].name == "x"


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_changed_file_is_refused_in_one_sentence(good, data):
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        bad[data.draw(st.integers(0, len(bad) - 1))] ^= data.draw(st.integers(1, 255))
    bad = bad[: data.draw(st.sampled_from([len(bad)]) | st.integers(0, len(bad)))]
    if bytes(bad) != good:
        assert "\n" not in refused(bytes(bad))


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_hostile_file_is_refused_or_read_and_nothing_else(good, data):
    """The checksum is right, the body is not: flipped, cut, or with bytes put in."""
    body = bytearray(good[HEAD:])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(body) - 1)))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "huge"]))
        if kind == "flip" and body:
            body[at] ^= data.draw(st.integers(1, 255))
        elif kind == "cut":
            del body[at : at + data.draw(st.integers(1, 40))]
        else:
            body[at:at] = b"\xff" * 7 + b"\x01" if kind == "huge" else data.draw(st.binary(min_size=1, max_size=4))
    with contextlib.suppress(BadInput):
        packed.unpack(signed(bytes(body)))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_hostile_graph_is_refused_or_read_and_nothing_else(good, tmp_path_factory, data):
    """The checksum is right and all lengths agree: the graph itself is flipped."""
    reader = packed._Reader(good, HEAD)
    raw = reader.number()
    skeleton = bytearray(reader.block(raw))
    for _ in range(data.draw(st.integers(1, 3))):
        skeleton[data.draw(st.integers(0, len(skeleton) - 1))] ^= data.draw(st.integers(1, 255))
    rest = good[reader._at :]
    file = tmp_path_factory.mktemp("hostile") / "m.packed"
    file.write_bytes(signed(packed._number(raw) + packed._block(bytes(skeleton)) + rest))
    with contextlib.suppress(BadInput, Unsupported):
        load_onnx(file)


def body_of(proto: onnx.ModelProto, layouts: bytes, streams: bytes = b"", raw: int = 10_000) -> bytes:
    """A file by hand."""
    return signed(packed._number(raw) + packed._block(proto.SerializeToString()) + packed._block(layouts) + streams)


def shell(dims: list[int], kind: int = onnx.TensorProto.FLOAT) -> onnx.ModelProto:
    proto = proto_of("m (float[N] x) => (float[N] y) { y = Identity (x) }")
    proto.graph.initializer.append(onnx.TensorProto(name="w", data_type=kind, dims=dims, raw_data=b""))
    return proto


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (lambda: body_of(shell([1]), b"\0", raw=1 << 40), "it claims to unpack to 1099511627776 bytes"),
        (lambda: body_of(shell([1 << 40]), b"\0"), "its tensors have 4398046511104 bytes"),
        (lambda: body_of(shell([1 << 62] * 40), b"\0"), "its tensors have"),
        (lambda: body_of(shell([-4]), b"\0"), r"has shape \[-4\]"),
        (lambda: body_of(shell([2] * 65), b"\0"), "has shape"),
        (lambda: body_of(shell([2], onnx.TensorProto.STRING), b"\0"), "a tensor of type 8"),
        (lambda: body_of(shell([2], 99), b"\0"), "99"),
        (lambda: body_of(shell([4]), b""), "it ends too early"),
        (lambda: body_of(shell([4]), b"\0\0"), "more layouts than tensors"),
        (lambda: body_of(shell([4]), b"\xff"), "there is no layout 255"),
        (lambda: body_of(shell([4]), b"\x01\x09"), "9 of 4 elements are not zero"),
        (lambda: body_of(shell([4]), b"\x02\x01\x63"), "99 gaps for 4 elements"),
        (lambda: body_of(shell([4]), b"\x08\x02\x09"), "a book of 9 numbers with codes of 2 bits"),
        (lambda: body_of(shell([4]), b"\0", bytes([0x12, 1]) + packed._block(bytes(15))), "a block claims 15 bytes, 16 were expected"),
        (lambda: body_of(shell([4]), b"\0", bytes([0x13, 1]) + packed._block(bytes(16))), "stream 19 stands where 18 was expected"),
        (lambda: body_of(shell([4]), b"\0", bytes([0x12, 2]) + packed._block(bytes(16))), "stream 18 stands"),
        (lambda: body_of(shell([4]), b"\0", bytes([0x12, 1]) + packed._block(bytes(16)) + b"more"), "more in it than its tensors need"),
        (lambda: body_of(shell([4]), b"\0", bytes([0x12, 1]) + packed._block(bytes(16))), "bytes, and 10000 were expected"),
        (lambda: body_of(shell([4]), b"\0", bytes([0x12, 1, 77, 16, 16]) + bytes(16)), "there is no codec 77"),
        (lambda: body_of(shell([4]), b"\0", bytes([0x12, 1, 3, 16, 16]) + bytes([255] * 16)), "can't be unpacked"),
        (lambda: signed(b"\xff" * 20), "a number is too long"),
    ],
)
def test_what_a_file_may_claim(data, says):
    import re

    assert re.search(says, refused(data()))


def test_a_bomb_is_not_unpacked():
    """A block of zeros that says 16 bytes and would be 40 MB: no more than 17 are made of it."""
    import tracemalloc

    bomb = lzma.compress(bytes(40 << 20), lzma.FORMAT_RAW, filters=packed._filters(16, 3, 0))
    stream = bytes([0x12, 1, packed.FIRST_LZMA]) + packed._number(16) + packed._number(len(bomb)) + bomb
    file = body_of(shell([4]), b"\0", stream)
    refused(file)  # what is imported at the first time is not counted
    tracemalloc.start()
    try:
        assert "a block has 17 bytes or more, and 16 were expected" in refused(file)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_codes_and_gaps_that_lead_nowhere():
    book = b"".join(bytes([0x80 + 16 + b, 1]) + packed._block(bytes([1, 2])) for b in range(4))
    codes = bytes([packing.K_CODES, 1]) + packed._block(bytes([0, 1, 2, 0]))
    assert "a code has no number in its book" in refused(body_of(shell([4]), b"\x08\x08\x02", codes + book))
    gaps = bytes([packing.K_GAPS, 1]) + packed._block(bytes([9]))
    values = bytes([0x12, 1]) + packed._block(struct.pack("<f", 1.0))
    assert "a gap leads out of its tensor" in refused(body_of(shell([4]), b"\x02\x01\x01", gaps + values))
    mask = bytes([packing.K_MASK, 1]) + packed._block(b"\xff")
    assert "not as many as the elements" in refused(body_of(shell([4]), b"\x01\x01", mask + values))


def test_what_would_not_be_read_is_not_written(monkeypatch):
    monkeypatch.setattr(packed, "ALWAYS", 1000)
    model = model_of("m (float[N, 512] x) => (float[N, 512] y) { y = MatMul (x, w) }", {"w": np.zeros((512, 512))})
    with pytest.raises(Unsupported, match="hardly anything but zeros: 10"):
        packed.pack(model)
    monkeypatch.setattr("hasten.model.EXTERNAL_ABOVE", 1000)
    with pytest.raises(Unsupported, match=r"GB of weights; up to 1.5 GB can be packed"):
        packed.pack(model)


def test_a_place_that_can_not_be_written_leaves_nothing(tmp_path):
    with pytest.raises(OSError):
        packed.save(mlp_model(), tmp_path / "nowhere" / "m.packed")
    (tmp_path / "m.packed").mkdir()
    with pytest.raises(OSError):
        packed.save(mlp_model(), tmp_path / "m.packed")
    assert [p.name for p in tmp_path.iterdir()] == ["m.packed"]


def test_the_packed_model_computes_the_same(digits_cnn, tmp_path):
    model = load_onnx(digits_cnn)
    packed.save(model, tmp_path / "m.packed")
    check.same(model, load_onnx(tmp_path / "m.packed"), within=check.BITS)
