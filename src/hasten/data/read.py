"""read: samples and labels from a path or a Python object. FORMS is the whole list of files that are understood."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten import pyfile
from hasten.data.images import IMAGE_SUFFIXES, read_images
from hasten.data.source import Arrays, Source
from hasten.errors import BadInput, OutOfResources

Array = NDArray[Any]
LABEL_NAMES = ("y", "labels", "label", "targets", "target")
INPUT_NAMES = ("x", "data", "images", "inputs", "features", "X")


def read(source: Any, label: str | None = None, labels: Any = None) -> Source:
    """Raises BadInput for what is not there or not understood.

    `label`: a CSV's label column; `labels`: a labels file for images, an array, or False: whatever labels the data has are left out.
    """
    found = _read_path(str(source), label, labels) if isinstance(source, (str, Path)) else _read_object(source, labels)
    if labels is False:
        return dataclasses.replace(found, labels=None, test=None if found.test is None else (found.test[0], None))
    return found


def _read_path(text: str, label: str | None, labels: Any) -> Source:
    if pyfile.is_reference(text):
        found = pyfile.load_object(text)
        return _read_object(pyfile.call(text, found) if callable(found) else found, labels)
    path = Path(text)
    if not path.exists():
        raise BadInput(f"{text} does not exist; expected data: {', '.join(name for name, _, _ in FORMS)}, or file.py:function")
    for _, fits, reader in FORMS:
        if fits(path):
            try:
                return reader(path, label, labels)
            except (OSError, EOFError, zipfile.BadZipFile, struct.error, UnicodeDecodeError) as e:
                raise BadInput(f"{path} can't be read ({type(e).__name__}: {e}); it is cut off or of another format") from e
    raise BadInput(f"{path} is not data that hasten reads; expected {', '.join(name for name, _, _ in FORMS)}, or file.py:function")


def _read_npz(path: Path, label: str | None, labels: Any) -> Source:
    _fits_in_memory(path, _npz_size(path))
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {k: archive[k] for k in archive.files}
    except ValueError as e:
        raise BadInput(f"{path} can't be read ({e}); expected an .npz of plain arrays, saved without pickled objects") from e
    return from_arrays(arrays, label, labels, str(path.name))


def _read_npy(path: Path, label: str | None, labels: Any) -> Source:
    try:
        array = np.load(path, allow_pickle=False)
    except ValueError as e:
        raise BadInput(f"{path} can't be read ({e}); expected an .npy of a plain array") from e
    if array.ndim == 0:
        raise BadInput(f"{path} is a single number; expected an array with the samples along its first axis")
    return Source(Arrays({"x": array}), _labels_beside(labels), images=_pictures(array))


def from_arrays(arrays: Mapping[str, Array], label: str | None, labels: Any, what: str) -> Source:
    """A Source from arrays by name: columns for the model, a label column, perhaps a test split (`x_test`, `y_test`)."""
    test_names = {k for k in arrays if k.endswith("_test")}
    plain = {k.removesuffix("_train"): v for k, v in arrays.items() if k not in test_names}
    columns, found = _split_label(plain, label, what)
    given = _labels_beside(labels)
    test = None
    if test_names:
        test_columns, test_labels = _split_label({k.removesuffix("_test"): arrays[k] for k in test_names}, label, what)
        test = (Arrays(test_columns), test_labels)
    one = next(iter(columns.values()))
    return Source(Arrays(columns), given if given is not None else found, test, images=len(columns) == 1 and _pictures(one))


def _split_label(arrays: Mapping[str, Array], label: str | None, what: str) -> tuple[dict[str, Array], Array | None]:
    if label is not None and label not in arrays:
        raise BadInput(f"{what} has no array {label!r} for labels; it has {', '.join(arrays) or 'none'}")
    name = label or next((n for n in LABEL_NAMES if n in arrays), None)
    counts = {len(v) for k, v in arrays.items() if v.ndim and k != "classes"}
    labels = np.atleast_1d(arrays[name]) if name else None
    longest = max((len(v) for k, v in arrays.items() if k != name and v.ndim), default=0)
    columns = {k: v for k, v in arrays.items() if k != name and v.ndim and len(v) == longest and k != "classes" and v.dtype.kind in "fiub"}
    if not columns:
        kinds = ", ".join(f"{k} {v.dtype}{list(v.shape)}" for k, v in arrays.items())
        raise BadInput(f"{what} has no samples: it holds {kinds or 'no arrays'}; expected numbers with the samples along the first axis")
    if labels is not None and len(labels) != longest:
        raise BadInput(f"{what} has {longest} samples and {len(labels)} labels; expected one label for each sample")
    del counts
    return columns, labels


def _labels_beside(labels: Any) -> Array | None:
    """Labels given apart: an array, or a .npy or one-column text file."""
    if labels is None or labels is False:
        return None
    if isinstance(labels, (str, Path)):
        path = Path(labels)
        if not path.is_file():
            raise BadInput(f"{labels} does not exist; expected a file of labels")
        try:
            return np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.loadtxt(path, dtype=np.int64, delimiter=",", ndmin=1)
        except ValueError as e:
            raise BadInput(f"{labels} can't be read as labels ({e}); expected .npy, or one whole number a line") from e
    return np.asarray(labels)


def _pictures(array: Array) -> bool:
    """Bytes with the axes of pictures: (N, H, W), (N, H, W, C) or (N, C, H, W)."""
    return array.dtype == np.uint8 and array.ndim in (3, 4)


MNIST_FILES = (("train-images-idx3-ubyte", "train-labels-idx1-ubyte"), ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"))


def _is_idx_folder(path: Path) -> bool:
    return path.is_dir() and any(_idx_file(path, images) is not None for images, _ in MNIST_FILES)


def _idx_file(folder: Path, name: str) -> Path | None:
    for candidate in (folder / f"{name}.gz", folder / name, folder / name.replace("-idx", ".idx")):
        if candidate.is_file():
            return candidate
    return None


def _read_idx_folder(path: Path, label: str | None, labels: Any) -> Source:
    """The four idx files of MNIST and its kin; `t10k` is the data set's own test split. The pictures become 0..1."""
    splits = []
    for images, marks in MNIST_FILES:
        files = _idx_file(path, images), _idx_file(path, marks)
        if files[0] is None:
            continue
        pictures = _read_idx(files[0])
        marked = _read_idx(files[1]).astype(np.int64) if files[1] is not None else None
        if marked is not None and len(marked) != len(pictures):
            raise BadInput(f"{path} has {len(pictures)} pictures in {images} and {len(marked)} labels; expected one label for each")
        splits.append((Arrays({"x": pictures}), marked))
    note = "idx files: pictures scaled to 0..1 unless --preprocess says otherwise"
    return Source(splits[0][0], splits[0][1], splits[1] if len(splits) > 1 else None, images=True, notes=(note,))


def _read_idx(path: Path) -> Array:
    """An idx file: two zero bytes, type, number of axes, sizes (big-endian), values."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as f:
        zero, kind, axes = struct.unpack(">HBB", f.read(4))
        if zero != 0 or kind != 8:
            raise BadInput(f"{path} is not an idx file of bytes: its first four bytes are {zero:#06x} {kind} {axes}")
        shape = struct.unpack(f">{axes}I", f.read(4 * axes))
        size = int(np.prod(shape, dtype=object))
        if size > 8 << 30:
            raise BadInput(f"{path} claims {size} bytes; expected less than 8 GiB")
        data = f.read(size)
    if len(data) != size:
        raise BadInput(f"{path} is cut off: it claims {size} bytes and has {len(data)}; copy it again")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _read_table(path: Path, label: str | None, labels: Any) -> Source:
    """A CSV or TSV with a header; one column is the label, all others are numbers."""
    with path.open(newline="", encoding="utf-8-sig") as f:
        rows = list(csv.reader(f, delimiter="\t" if path.suffix == ".tsv" else ","))
    if len(rows) < 2:
        raise BadInput(f"{path} has {len(rows)} lines; expected a header and at least one row")
    header, body = rows[0], rows[1:]
    if any(len(row) != len(header) for row in body):
        number = next(i for i, row in enumerate(body, 2) if len(row) != len(header))
        raise BadInput(f"{path}, line {number}, has {len(body[number - 2])} fields; the header has {len(header)}")
    name = label or next((n for n in LABEL_NAMES if n in header), None)
    if label is not None and label not in header:
        raise BadInput(f"{path} has no column {label!r}; it has {', '.join(header)}")
    columns = {column: [row[i] for row in body] for i, column in enumerate(header)}
    marks = _label_column(columns.pop(name)) if name else None
    values = {}
    for column, texts in columns.items():
        try:
            values[column] = np.array(texts, np.float64).astype(np.float32)
        except ValueError as e:
            raise BadInput(
                f"{path}: column {column!r} is not numeric ({e}); encode it as numbers, or name it as the label with --label"
            ) from e
    if not values:
        raise BadInput(f"{path} has no column but the label; expected at least one of features")
    given = _labels_beside(labels)
    return Source(Arrays(values), given if given is not None else marks)


def _label_column(texts: list[str]) -> Array:
    """Whole numbers where all are, floats where all are numbers, else the rank of each text among the sorted ones."""
    for dtype in (np.int64, np.float32):
        try:
            return np.array(texts, dtype)
        except ValueError:
            continue
    return np.unique(texts, return_inverse=True)[1].astype(np.int64)


def _read_object(source: Any, labels: Any) -> Source:
    """Arrays, (x, y), dicts, iterables of samples or batches, DataLoaders, callables that give one of these."""
    if isinstance(source, Source):
        return source
    if hasattr(source, "__array__") and not isinstance(source, (list, tuple)):
        array = _array(source)
        if array.ndim == 0:
            raise BadInput("the data is a single number; expected an array with the samples along its first axis")
        return Source(Arrays({"x": array}), _labels_beside(labels), images=_pictures(array))
    if isinstance(source, Mapping):
        return from_arrays({k: _array(v) for k, v in source.items()}, None, labels, "the dict")
    if isinstance(source, tuple) and len(source) == 2:
        x, y = source
        columns = {k: _array(v) for k, v in x.items()} if isinstance(x, Mapping) else {"x": _array(x)}
        marks = None if y is None else _array(y)
        if marks is not None and any(len(c) != len(marks) for c in columns.values()):
            raise BadInput(
                f"there are {len(next(iter(columns.values())))} samples and {len(marks)} labels; expected one label for each sample"
            )
        return Source(Arrays(columns), marks, images=len(columns) == 1 and _pictures(next(iter(columns.values()))))
    if callable(source) and not isinstance(source, Iterable):
        return _read_object(pyfile.call("the data function", source), labels)
    if isinstance(source, Iterable):
        return _read_batches(source, labels)
    raise BadInput(
        f"data of type {type(source).__name__} is not understood; give arrays, (x, y), a dict, an iterable of batches, or a path"
    )


def _read_batches(source: Iterable[Any], labels: Any) -> Source:
    """Batches (x, y), dicts or arrays, one after the other."""
    xs: list[dict[str, Array]] = []
    ys: list[Array] = []
    for item in source:
        pair = isinstance(item, (tuple, list)) and len(item) == 2
        x, y = item if pair else (item, None)
        columns = {k: np.atleast_1d(_array(v)) for k, v in x.items()} if isinstance(x, Mapping) else {"x": np.atleast_1d(_array(x))}
        if y is not None and np.ndim(_array(y)) == 0:
            columns, y = {k: v[None] for k, v in columns.items()}, np.atleast_1d(_array(y))
        xs.append(columns)
        if y is not None:
            ys.append(_array(y))
    if not xs:
        raise BadInput("the data is empty: the iterable gave nothing; expected batches (x, y)")
    joined = {k: np.concatenate([x[k] for x in xs]) for k in xs[0]}
    if ys:
        return _read_object((joined, np.concatenate(ys)), labels)
    return from_arrays(joined, None, labels, "the iterable")


def _array(value: Any) -> Array:
    """A numpy array of numbers from anything array-like, torch tensors included. Raises BadInput for objects."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise BadInput(f"data of type {array.dtype} is not numbers; expected floats or whole numbers")
    return array


def _npz_size(path: Path) -> int:
    with zipfile.ZipFile(path) as archive:
        return sum(i.file_size for i in archive.infolist())


def _fits_in_memory(path: Path, size: int) -> None:
    import psutil

    available = psutil.virtual_memory().available
    if size > available * 0.8:
        raise OutOfResources(f"{path.name} needs {size >> 20} MiB and {available >> 20} MiB are free; use a smaller sample of it")


def _is_table(path: Path) -> bool:
    return path.is_file() and path.suffix in (".csv", ".tsv")


FORMS: tuple[tuple[str, Callable[[Path], bool], Callable[[Path, str | None, Any], Source]], ...] = (
    (".npz", lambda p: p.is_file() and p.suffix == ".npz", _read_npz),
    (".npy", lambda p: p.is_file() and p.suffix == ".npy", _read_npy),
    ("a folder of MNIST's idx files", _is_idx_folder, _read_idx_folder),
    (".csv or .tsv", _is_table, _read_table),
    (f"a folder or zip of pictures ({', '.join(IMAGE_SUFFIXES)})", lambda p: p.is_dir() or p.suffix == ".zip", read_images),
)
