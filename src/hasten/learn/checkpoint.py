"""checkpoint: where a training stands, as one safetensors file: tensors by name, the rest as JSON in its metadata. Written atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hasten.errors import BadInput
from hasten.folder import write_atomically

CHECKPOINT = "checkpoint.safetensors"
"""In the training's folder, until its result is written."""


def write(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """All or nothing. Raises OutOfResources where the disk is full."""
    write_atomically(path, save({k: v.detach().contiguous() for k, v in tensors.items()}, metadata={"state": json.dumps(state)}))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, state). Raises BadInput where the file is not one of ours."""
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, json.loads((file.metadata() or {})["state"])  # noqa: SIM118 - no mapping
    except (SafetensorError, KeyError, ValueError, OSError) as e:
        raise BadInput(f"{path.name} is not a checkpoint that can be read ({type(e).__name__}: {e}); remove it to start afresh") from e
