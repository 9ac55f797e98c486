"""The Python binding: what it takes, what it gives, and what it says, on an engine that returns its inputs (rectified where they are floats)."""

import sys
import threading
import time
import tracemalloc
from types import MappingProxyType

import numpy as np
import pytest

from tests.native.echo import echo_module

F32, U8, I8, I32, I64 = 1, 2, 3, 4, 5
ONE = "input x 1 -1 16\noutput y 1 -1 16\n"
TWO = "input a 1 -1 2 3\ninput b 2 -1\noutput c 1 -1 2 3\noutput d 2 -1\n"


@pytest.fixture(scope="module")
def native():
    return echo_module()


@pytest.fixture(scope="module")
def one(native):
    return native.Model.from_bytes(ONE.encode(), max_batch=4)


@pytest.fixture(scope="module")
def two(native):
    return native.Model.from_bytes(TWO.encode(), max_batch=4)


def some(*shape, dtype=np.float32):
    return np.random.default_rng(0).integers(-9, 9, shape).astype(dtype)


def test_a_model_describes_itself(native):
    model = native.Model.from_bytes((TWO + "weights 640\n").encode(), threads=2, max_batch=8)
    assert model.inputs == (("a", "float32", (-1, 2, 3)), ("b", "uint8", (-1,)))
    assert model.outputs == (("c", "float32", (-1, 2, 3)), ("d", "uint8", (-1,)))
    assert (model.threads, model.max_batch, model.steps, model.weights, model.arena, model.isa) == (2, 8, 2, 640, 0, "scalar")
    assert (native.abi(), native.isa()) == (2, "scalar")


def test_arrays_by_name_and_in_order(two):
    a, b = some(3, 2, 3), some(3, dtype=np.uint8)
    found = two.run({"b": b, "a": a})
    assert list(found) == ["c", "d"]
    for c, d in (found.values(), two.run_list([a, b]), two.run_list((a, b)), two.run(MappingProxyType({"a": a, "b": b})).values()):
        np.testing.assert_array_equal(c, np.maximum(a, 0), strict=True)
        np.testing.assert_array_equal(d, b, strict=True)
        assert c.flags.owndata and c.flags.writeable


@pytest.mark.parametrize(
    ("number", "dtype"), [(F32, "float32"), (U8, "uint8"), (I8, "int8"), (I32, "int32"), (I64, "int64"), (I64, np.longlong)]
)
def test_every_type(native, number, dtype):
    model = native.Model.from_bytes(f"input x {number} 2 3\noutput y {number} 2 3\n".encode())
    x = abs(some(2, 3, dtype=dtype))
    (y,) = model.run_list([x])
    np.testing.assert_array_equal(x, y)
    assert y.dtype == np.dtype(dtype)


def test_a_model_without_a_batch_and_one_number(native):
    model = native.Model.from_bytes(b"input x 1\noutput y 1\n")
    assert model.inputs == (("x", "float32", ()),)
    assert model.run({"x": np.array(2, np.float32)})["y"] == 2


def test_more_arrays_than_a_call_has_room_for(native):
    count = 20
    model = native.Model.from_bytes("".join(f"input x{i} 1 2\noutput y{i} 1 2\n" for i in range(count)).encode())
    found = model.run_list([np.full(2, i, np.float32) for i in range(count)])
    assert [y[1] for y in found] == list(range(count))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: np.asfortranarray(x),
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        lambda x: x[::-1],
        lambda x: np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape),
        lambda x: np.broadcast_to(x[:1], x.shape),
    ],
    ids=["dense", "fortran", "strided", "reversed", "unaligned", "broadcast"],
)
def test_any_layout(one, view):
    x = view(some(3, 16))
    x.flags.writeable = False
    np.testing.assert_array_equal(one.run({"x": x})["y"], np.maximum(x, 0), strict=True)


def test_a_dense_array_is_not_copied(native):
    model = native.Model.from_bytes(b"input x 1 -1 1000000\noutput y 1 -1 4\n")
    x = some(1, 1000000)

    def taken(array):
        tracemalloc.start()
        model.run_list([array])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert taken(x) < x.nbytes / 2 <= taken(np.repeat(x, 2, axis=1)[:, ::2])


@pytest.mark.parametrize(
    ("feeds", "says"),
    [
        (
            {"x": some(2, 16, dtype=np.float64)},
            "input 'x' is float64 [2, 16], expected float32 [N, 16]; convert it with .astype(\"float32\")",
        ),
        ({"x": some(2, 16).astype(">f4")}, "input 'x' is >f4 [2, 16], expected float32 [N, 16]; convert it with .astype(\"float32\")"),
        ({"x": some(2, 15)}, "input 'x' is float32 [2, 15], expected float32 [N, 16]; N is the batch"),
        ({"x": some(16)}, "input 'x' is float32 [16], expected float32 [N, 16]; N is the batch"),
        ({"x": [1.0]}, "input 'x' is list, expected float32 [N, 16]; give a numpy array"),
        ({"x": None}, "input 'x' is NoneType, expected float32 [N, 16]; give a numpy array"),
        ({"x": some(5, 16)}, "a batch of 5 came, the model was loaded for 1 to 4"),
        ({"x": some(0, 16)}, "a batch of 0 came, the model was loaded for 1 to 4"),
        ({"z": some(1, 16)}, "arrays came for ['z'], the model takes 'x'"),
        ({"x": some(1, 16), "z": 0}, "arrays came for ['x', 'z'], the model takes 'x'"),
        ({}, "arrays came for [], the model takes 'x'"),
    ],
)
def test_what_does_not_fit_is_named(one, feeds, says):
    with pytest.raises(ValueError) as e:
        one.run(feeds)
    assert str(e.value) == says


def test_inputs_of_unlike_batches_and_lists_of_another_length(two):
    with pytest.raises(ValueError, match="input 'b' has a batch of 2, the inputs before it of 3"):
        two.run_list([some(3, 2, 3), some(2, dtype=np.uint8)])
    with pytest.raises(ValueError, match="1 arrays came, the model takes 'a', 'b'"):
        two.run_list([some(3, 2, 3)])
    with pytest.raises(TypeError, match="run_list takes a list or tuple of arrays, not dict"):
        two.run_list({})
    with pytest.raises(TypeError, match="run takes arrays by input name, not list; run_list takes them in order"):
        two.run([])


@pytest.mark.parametrize(("status", "kind"), [(1, ValueError), (2, ValueError), (3, NotImplementedError), (4, MemoryError)])
def test_what_the_engine_refuses(native, tmp_path, status, kind):
    with pytest.raises(kind, match=f"refused: fail {status}"):
        native.Model.from_bytes(f"fail {status}".encode())
    (tmp_path / "plan").write_text(f"fail {status}")
    with pytest.raises(kind, match=f"refused: fail {status}"):
        native.Model.load(str(tmp_path / "plan"))


def test_a_file_of_any_name(native, tmp_path):
    for name in ("plan", "plän\udcff"):
        (tmp_path / name).write_text(ONE)
        assert native.Model.load(tmp_path / name, max_batch=3).max_batch == 3
    with pytest.raises(ValueError, match="nowhere: there is no such file"):
        native.Model.load("nowhere")
    for wrong in (5, None, "a\0b"):
        with pytest.raises((TypeError, ValueError)):
            native.Model.load(wrong)
    with pytest.raises(TypeError):
        native.Model.from_bytes(bytearray(ONE.encode()))  # it could change while the engine reads it
    with pytest.raises(TypeError):
        native.Model()


def test_nothing_is_kept(one):
    x = some(1, 16)
    feeds = {"x": x}
    before = sys.getrefcount(x), sys.getrefcount(feeds)
    for _ in range(100):
        one.run(feeds)
        one.run_list([x])
        with pytest.raises(ValueError):
            one.run({"x": x, "z": x})
        with pytest.raises(ValueError):
            one.run({"z": x})
    assert (sys.getrefcount(x), sys.getrefcount(feeds)) == before
    y = one.run(feeds)["y"]
    assert sys.getrefcount(y) == 2


@pytest.mark.parametrize(("weights", "others_run"), [(1 << 20, True), (0, False)])
def test_a_long_run_lets_other_threads_in(native, weights, others_run):
    model = native.Model.from_bytes(f"{ONE}weights {weights}\nsleep 300\n".encode())
    done, turns = threading.Event(), 0

    def run():
        model.run({"x": some(1, 16)})
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    while not done.is_set():
        time.sleep(0.002)
        turns += 1
    thread.join()
    assert (turns > 10) == others_run


def test_threads_share_a_model(native):
    model = native.Model.from_bytes(f"{ONE}weights {1 << 20}\n".encode())
    wrong = []

    def run(value):
        x = np.full((1, 16), value, np.float32)
        for _ in range(2000):
            if not (model.run({"x": x})["y"] == x).all():
                wrong.append(value)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []
