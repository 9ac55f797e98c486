"""Data: every form is read, fitted to the model and split; bad input gets a clear error."""

import gzip
import io
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from hasten.data.preprocess import PREPROCESSING, resolve
from hasten.errors import BadInput
from hasten.task import Task
from tests.conftest import model_of

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def pictures():
    """A model of 8 × 8 colour pictures, NCHW, 3 classes."""
    return model_of(
        "g (float[N, 3, 8, 8] x) => (float[N, 3] y) { f = Flatten (x)\n y = MatMul (f, w) }", {"w": RNG.standard_normal((192, 3))}
    )


@pytest.fixture(scope="module")
def table():
    """A model of 4 features, 3 classes."""
    return model_of("g (float[N, 4] x) => (float[N, 3] y) { y = MatMul (x, w) }", {"w": RNG.standard_normal((4, 3))})


def labels(count):
    return np.arange(count) % 3


def feeds(split, count=3):
    return next(iter(split.batches(count)))


def jpeg(value: int, size=(8, 8)) -> bytes:
    body = io.BytesIO()
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(body, "PNG")
    return body.getvalue()


def test_npz_with_a_test_split_of_its_own(tmp_path, pictures):
    x = RNG.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x_train=x[:30], y_train=labels(30), x_test=x[30:], y_test=labels(10))
    task = Task(tmp_path / "d.npz").bind(pictures)
    assert len(task.test) == 10
    assert "layout: NHWC data to the model's NCHW" in task.notes
    assert any("own test split" in n for n in task.notes)
    np.testing.assert_allclose(feeds(task.test, 10)["x"], x[30:].transpose(0, 3, 1, 2) / np.float32(255), rtol=1e-6)


def test_splits_are_seeded_and_disjoint(table):
    x = RNG.standard_normal((100, 4)).astype(np.float32)
    task = Task((x, labels(100))).bind(table)
    parts = [set(s.indices.tolist()) for s in (task.calibrate, task.validate, task.test)]
    assert sum(map(len, parts)) == 100
    assert set.union(*parts) == set(range(100))
    again, other = Task((x, labels(100))).bind(table), Task((x, labels(100)), seed=1).bind(table)
    assert again.digest == task.digest != other.digest
    assert set(other.test.indices.tolist()) != parts[2]
    assert (task.test.labels == labels(100)[task.test.indices]).all()


def test_the_mnist_folder_is_scaled_shaped_and_keeps_its_test_split(shared_data):
    model = model_of("g (float[N, 784] x) => (float[N, 10] y) { y = MatMul (x, w) }", {"w": RNG.standard_normal((784, 10))})
    task = Task(shared_data / "mnist").bind(model)
    assert (len(task.calibrate), len(task.validate), len(task.test)) == (512, 10_000, 10_000)
    assert task.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert "shape: 28×28 to the model's 784" in task.notes
    batch = feeds(task.test)["x"]
    assert batch.shape == (3, 784)
    assert batch.max() == 1.0


def test_a_small_idx_folder_and_one_that_is_cut_off(tmp_path):
    model = model_of("g (float[N, 1, 2, 2] x) => (float[N, 3] y) { f = Flatten (x)\n y = MatMul (f, w) }", {"w": np.ones((4, 3))})
    images = struct.pack(">HBBIII", 0, 8, 3, 12, 2, 2) + bytes(range(48))
    marks = struct.pack(">HBBI", 0, 8, 1, 12) + bytes(i % 3 for i in range(12))
    for name, data in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", marks)):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data))
    assert len(Task(tmp_path).bind(model).test) > 0
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(images[:-5]))
    with pytest.raises(BadInput, match="cut off"):
        Task(tmp_path).bind(model)


def test_a_zip_of_pictures_with_labels_and_one_of_another_size(tmp_path, pictures):
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for i in range(9):
            archive.writestr(f"im/{i}.png", jpeg(i * 20, (16, 12) if i == 4 else (16, 16)))
        archive.writestr("labels.csv", "file,class_index,name\n" + "".join(f"{i}.png,{i % 3},x\n" for i in range(9)))
    task = Task(tmp_path / "p.zip", preprocess="imagenet-caffe").bind(pictures)
    assert any("8 × 8" in n for n in task.notes)
    batch = task.test.samples.take(np.arange(9))["x"]
    assert batch.shape == (9, 3, 8, 8)
    np.testing.assert_allclose(batch[3, :, 0, 0], 60 - np.array([104, 117, 123]))
    (tmp_path / "l.csv").write_text("0.png,0\nmissing.png,1\n")
    with pytest.raises(BadInput, match="row 2"):
        Task(tmp_path / "p.zip", labels=tmp_path / "l.csv").bind(pictures)
    with pytest.raises(BadInput, match="does not exist"):
        Task(tmp_path / "p.zip", labels=tmp_path / "gone.csv").bind(pictures)


def test_labels_that_are_there_can_be_left_out(tmp_path, pictures, table):
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for i in range(9):
            archive.writestr(f"im/{i}.png", jpeg(i * 20, (8, 8)))
        archive.writestr("labels.csv", "file,class_index\nmissing.png,1\n")
    with pytest.raises(BadInput, match="row 1"):
        Task(tmp_path / "p.zip").bind(pictures)
    (tmp_path / "t.csv").write_text("a,b,c,d,label\n" + "1,2,3,4,0\n" * 9)
    x = RNG.standard_normal((20, 4)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=labels(20), x_test=x, y_test=labels(20))
    for data, model in ((tmp_path / "p.zip", pictures), (tmp_path / "t.csv", table), (tmp_path / "d.npz", table), ((x, labels(20)), table)):
        task = Task(data, labels=False).bind(model)
        assert [s.labels for s in (task.calibrate, task.validate, task.test)] == [None, None, None]
        assert "no labels: fidelity to the original is judged, by agreement" in task.notes
    assert len(Task(tmp_path / "p.zip", labels=False).bind(pictures).test) > 0
    assert Task((x, labels(20)), labels=False).bind(table).digest == Task(x).bind(table).digest != Task((x, labels(20))).bind(table).digest


def test_one_subfolder_a_class(tmp_path, pictures):
    for number, name in enumerate(("cat", "dog", "eel")):
        (tmp_path / name).mkdir()
        for i in range(4):
            (tmp_path / name / f"{i}.png").write_bytes(jpeg(number * 50 + i))
    task = Task(tmp_path).bind(pictures)
    everything = np.concatenate([task.calibrate.labels, task.validate.labels, task.test.labels])
    assert sorted(everything.tolist()) == [0] * 4 + [1] * 4 + [2] * 4


def test_csv_by_label_column(tmp_path, table):
    rows = ["a,b,c,d,kind", *(f"{i},{i / 2},1,2,{'xyz'[i % 3]}" for i in range(30))]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    task = Task(tmp_path / "t.csv", label="kind").bind(table)
    assert feeds(task.test)["x"].shape == (3, 4)
    with pytest.raises(BadInput, match="column 'kind' is not numeric"):
        Task(tmp_path / "t.csv").bind(table)
    with pytest.raises(BadInput, match="no column 'sort'; it has a, b, c, d, kind"):
        Task(tmp_path / "t.csv", label="sort").bind(table)


def test_python_objects(tmp_path, table):
    x, y = RNG.standard_normal((30, 4)), labels(30)
    batches = [(x[i : i + 10], y[i : i + 10]) for i in range(0, 30, 10)]
    (tmp_path / "mine.py").write_text(
        "import numpy as np\ndef data():\n    return np.ones((30, 4)), np.arange(30) % 3\ndef bad():\n    raise RuntimeError('no luck')\n"
    )
    for data in ((x, y), {"x": x, "y": y}, iter(batches), lambda: (x, y), f"{tmp_path}/mine.py:data"):
        task = Task(data).bind(table)
        assert feeds(task.validate)["x"].dtype == np.float32
        assert task.metric.name == "accuracy"
    assert Task(x).bind(table).metric.name == "agreement"
    assert Task(x, metric="cosine").bind(table).metric.name == "cosine"
    assert Task(x, metric=lambda outputs, originals: 1.0).bind(table).metric.name == "<lambda>"
    with pytest.raises(BadInput, match="raised RuntimeError: no luck"):
        Task(f"{tmp_path}/mine.py:bad").bind(table)
    with pytest.raises(BadInput, match="has no 'gone'"):
        Task(f"{tmp_path}/mine.py:gone").bind(table)


def test_a_data_loader(table):
    torch = pytest.importorskip("torch")
    set_ = torch.utils.data.TensorDataset(torch.ones(20, 4), torch.arange(20) % 3)
    task = Task(torch.utils.data.DataLoader(set_, batch_size=8)).bind(table)
    assert len(task.calibrate) + len(task.validate) + len(task.test) == 20


GOOD = np.ones((30, 4))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ((np.ones((30, 5)), labels(30)), "wants samples of shape 4, the data has 5"),
        ((np.array([["a"] * 4] * 30), labels(30)), "is not numbers"),
        ((GOOD, labels(29)), "30 samples and 29 labels"),
        ((GOOD, labels(30) + 1), "labels run from 1 to 3, output 'y' has 3 classes .*subtract 1"),
        ((GOOD, labels(30) - 1), "labels run from -1"),
        ((GOOD, labels(30) + 0.5), "class numbers"),
        ((np.full((30, 4), np.nan), labels(30)), "NaN or infinite values in 30 of 30"),
        ((GOOD[:0], labels(0)), "empty"),
        ((GOOD[:1], labels(1)), "has 1 samples; at least 6"),
        (np.array(7.0), "."),
        (object(), "not understood"),
        ([], "gave nothing"),
    ],
)
def test_bad_arrays_are_refused(table, data, text):
    with pytest.raises(BadInput, match=text):
        Task(data).bind(table)


def test_floats_for_whole_numbers_are_refused():
    model = model_of("g (int64[N, 4] ids) => (float[N, 4, 2] y) { y = Gather (t, ids) }", {"t": np.ones((5, 2))})
    with pytest.raises(BadInput, match="wants int64"):
        Task((GOOD * 0.5, None)).bind(model)


def test_bad_files_are_refused(tmp_path, table):
    for name, content, text in (
        ("a.npz", b"nonsense", "can't be read"),
        ("a.zip", b"nonsense", "can't be read"),
        ("a.txt", b"x", "is not data that hasten reads"),
        ("a.csv", b"a,b\n", "1 lines"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=text):
            Task(tmp_path / name).bind(table)
    with pytest.raises(BadInput, match="does not exist"):
        Task(tmp_path / "gone.npz").bind(table)
    np.savez(tmp_path / "o.npz", x=np.array([{}] * 8, object))
    with pytest.raises(BadInput, match="pickled"):
        Task(tmp_path / "o.npz").bind(table)


def test_preprocessing_by_name_and_by_numbers():
    pixels = np.full((1, 2, 2, 3), 255, np.uint8)
    pixels[..., 0] = 0
    torch_like = PREPROCESSING["imagenet-torch"](pixels)
    np.testing.assert_allclose(torch_like[0, 0, 0], (np.array([0, 1, 1]) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], rtol=1e-5)
    _, numbers = resolve("mean=104,117,123;color=BGR;scale=1")
    np.testing.assert_array_equal(numbers(pixels), PREPROCESSING["imagenet-caffe"](pixels))
    for text, message in (
        ("imagenet", "no preprocessing 'imagenet'; use one of unit"),
        ("mean=x", "expected numbers"),
        ("men=1", "has no 'men'"),
    ):
        with pytest.raises(BadInput, match=message):
            resolve(text)
