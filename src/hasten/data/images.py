"""Pictures in a folder or a zip, decoded when they are needed; labels from a CSV, or from one subfolder a class."""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import io
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.data.source import Source
from hasten.errors import BadInput

Array = NDArray[Any]
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
LABELS_FILE = "labels.csv"
LARGEST = 1 << 28
"""Bytes that one picture may have, packed or unpacked: more is a mistake or an attack."""


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Columns `x` of (H, W, 3) uint8 RGB, all of `size` (height, width): short side resized (bilinear), centre cut out."""

    place: Path
    names: tuple[str, ...]
    size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: NDArray[np.intp]) -> dict[str, Array]:
        pictures = [self._decode(self.names[i]) for i in indices]
        if len({p.shape for p in pictures}) > 1:
            raise BadInput(f"the pictures have several sizes, such as {pictures[0].shape[:2]}, and the model's input has none of its own")
        return {"x": np.stack(pictures)}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"x": self.take(np.array([0]))["x"].shape[1:]}

    def digest(self) -> str:
        h = hashlib.sha256(str(self.size).encode())
        for name in self.names:
            h.update(hashlib.sha256(self._bytes(name)).digest())
        return h.hexdigest()

    @functools.cached_property
    def _zip(self) -> zipfile.ZipFile | None:
        return zipfile.ZipFile(self.place) if self.place.is_file() else None

    def _bytes(self, name: str) -> bytes:
        if self._zip is None:
            file = self.place / name
            size = file.stat().st_size
            data = file.read_bytes() if size <= LARGEST else b""
        else:
            size = self._zip.getinfo(name).file_size
            data = self._zip.read(name) if size <= LARGEST else b""
        if size > LARGEST:
            raise BadInput(f"picture number {self.names.index(name)} has {size} bytes; at most {LARGEST} are read")
        return data

    def _decode(self, name: str) -> Array:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(io.BytesIO(self._bytes(name))) as picture:
                if picture.width * picture.height * 3 > LARGEST:
                    raise BadInput(f"picture number {self.names.index(name)} has {picture.width} × {picture.height} points: too many")
                rgb = picture.convert("RGB")
        except (UnidentifiedImageError, OSError) as e:
            raise BadInput(
                f"picture number {self.names.index(name)} can't be decoded ({type(e).__name__}); remove it or save it again"
            ) from e
        if self.size is not None and (rgb.height, rgb.width) != self.size:
            height, width = self.size
            scale = max(height / rgb.height, width / rgb.width)
            rgb = rgb.resize((max(width, round(rgb.width * scale)), max(height, round(rgb.height * scale))), Image.Resampling.BILINEAR)
            left, top = (rgb.width - width) // 2, (rgb.height - height) // 2
            rgb = rgb.crop((left, top, left + width, top + height))
        return np.asarray(rgb)


def read_images(path: Path, label: str | None, labels: Any) -> Source:
    """Raises BadInput where there is no picture, a labelled file is missing, or the labels can't be read. `labels` False: none are looked for."""
    if path.is_file():
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if _is_image(n)]
            inner = next((n for n in archive.namelist() if PurePosixPath(n).name == LABELS_FILE), None)
            text = archive.read(inner).decode() if inner and labels is None else None
    else:
        names = [p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file() and _is_image(p.name)]
        text = (path / LABELS_FILE).read_text() if (path / LABELS_FILE).is_file() and labels is None else None
    if not names:
        raise BadInput(f"{path} holds no pictures; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    if isinstance(labels, (str, Path)):
        if not Path(labels).is_file():
            raise BadInput(f"{labels} does not exist; expected a CSV with the columns file,class_index")
        text = Path(labels).read_text()
    if text is not None:
        order, marks = _match(text, names)
        return Source(Images(path, order), marks, images=True)
    folders = sorted({PurePosixPath(n).parent.as_posix() for n in names})
    if len(folders) > 1 and labels is None:
        numbers = {folder: i for i, folder in enumerate(folders)}
        ordered = tuple(sorted(names))
        marks = np.array([numbers[PurePosixPath(n).parent.as_posix()] for n in ordered])
        return Source(
            Images(path, ordered), marks, images=True, notes=(f"labels: {len(folders)} subfolders, numbered by their sorted names",)
        )
    return Source(Images(path, tuple(sorted(names))), None if labels is None or labels is False else np.asarray(labels), images=True)


def _match(text: str, names: list[str]) -> tuple[tuple[str, ...], Array]:
    """Files and their labels in the CSV's order: columns file,class_index, or the first two."""
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    if not rows or len(rows[0]) < 2:
        raise BadInput("the labels can't be read: expected a CSV with the columns file,class_index")
    header = [c.strip().lower() for c in rows[0]]
    file_column, label_column = 0, 1
    if "file" in header or not rows[0][1].strip().lstrip("-").isdigit():
        file_column = header.index("file") if "file" in header else 0
        label_column = next((header.index(c) for c in ("class_index", "label", "class") if c in header), 1)
        rows = rows[1:]
    by_name = {PurePosixPath(n).name: n for n in names} | {n: n for n in names}
    order, marks = [], []
    for number, row in enumerate(rows, 1):
        file = row[file_column].strip()
        if file not in by_name:
            raise BadInput(f"the labels name a file in row {number} that is not among the {len(names)} pictures")
        try:
            marks.append(int(row[label_column]))
        except (ValueError, IndexError) as e:
            raise BadInput(f"the labels' row {number} has no whole number as class ({e}); expected file,class_index") from e
        order.append(by_name[file])
    return tuple(order), np.array(marks)


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES and not PurePosixPath(name).name.startswith(".")
