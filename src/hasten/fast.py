"""hasten.load: the chosen model as a function, in its runtime, with its threads and settings, its digests checked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten import runtimes
from hasten.errors import BadInput
from hasten.folder import MODEL, Folder
from hasten.measure.worker import run_batched
from hasten.runtimes import Target


class Fast:
    """A model ready to run. Call it with an array (one input) or a dict of arrays by input name; it gives likewise.

    Any number of samples: where the runtime was compiled for one batch, they go through in pieces of it.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.inputs: tuple[str, ...] = tuple(p["name"] for p in manifest["inputs"])
        self._names = frozenset(self.inputs)
        self.outputs: tuple[str, ...] = tuple(p["name"] for p in manifest["outputs"])
        self.runtime: str = manifest["runtime"]
        self.target = Target(**manifest["target"])
        self._session = runtimes.get(self.runtime).compile(folder / MODEL, self.target)

    def __call__(self, x: NDArray[Any] | dict[str, NDArray[Any]]) -> Any:
        """Raises BadInput for an input that is missing or not the model's."""
        if isinstance(x, dict):
            feeds = x
            if feeds.keys() != self._names:
                raise BadInput(f"got inputs {', '.join(sorted(feeds))}; the model takes {', '.join(self.inputs)}")
        elif len(self.inputs) == 1:
            feeds = {self.inputs[0]: x}
        else:
            raise BadInput(f"the model has {len(self.inputs)} inputs, {', '.join(self.inputs)}; give a dict of arrays by these names")
        batch = self._session.batch
        if batch is None or all(len(v) == batch for v in feeds.values()):
            outputs = self._session.run(feeds)
        else:
            outputs = run_batched(self._session, {k: np.asarray(v) for k, v in feeds.items()}, batch)
        return outputs if isinstance(x, dict) or len(outputs) > 1 else outputs[self.outputs[0]]


def load(folder: str | os.PathLike[str]) -> Fast:
    """Open a folder that `optimize` wrote. Raises BadInput where it is none, ClaimFailed where a file in it was changed."""
    place = Folder(Path(folder))
    return Fast(place.path, place.check())
