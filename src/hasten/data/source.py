"""Source: what a reader gives before anything is known of the model; and the samples made of it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Columns(Protocol):
    """Raw samples: `take` gives a batch by column name; `digest` identifies their content."""

    def __len__(self) -> int: ...

    def take(self, indices: NDArray[np.intp]) -> dict[str, Array]: ...

    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    def digest(self) -> str: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """Columns in memory: arrays with the samples along the first axis."""

    columns: Mapping[str, Array]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def take(self, indices: NDArray[np.intp]) -> dict[str, Array]:
        return {k: v[indices] for k, v in self.columns.items()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {k: v.shape[1:] for k, v in self.columns.items()}

    def digest(self) -> str:
        h = hashlib.sha256()
        for name in sorted(self.columns):
            array = np.ascontiguousarray(self.columns[name])
            h.update(f"{array.dtype}{array.shape}".encode())
            h.update(array.view(np.uint8).reshape(-1).data if array.size else b"")
        return h.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Samples with labels or without; `test` is the data set's own test split. `scale`: what a value of full brightness is (255, 1, None).

    `images`: the samples are pictures, (H, W, C) or (H, W), to which preprocessing applies.
    """

    samples: Columns
    labels: Array | None
    test: tuple[Columns, Array | None] | None = None
    images: bool = False
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """Samples made fit for a model: columns renamed, preprocessed, laid out and cast as its inputs want them."""

    columns: Columns
    convert: Callable[[dict[str, Array]], dict[str, Array]]

    def __len__(self) -> int:
        return len(self.columns)

    def take(self, indices: NDArray[np.intp]) -> dict[str, Array]:
        return self.convert(self.columns.take(indices))
