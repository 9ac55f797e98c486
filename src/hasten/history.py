"""History: what was done to a model, step by step, and what was left alone. Light: the worker processes start without onnx_ir."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Skip:
    """A node that a technique (or a runtime) left alone, and why, in one sentence."""

    node: str
    why: str


@dataclasses.dataclass(frozen=True)
class Step:
    """One technique that ran: its name, its settings (plain JSON values), how many nodes it changed, what it left alone."""

    name: str
    settings: dict[str, Any]
    changed: int
    skipped: tuple[Skip, ...] = ()
