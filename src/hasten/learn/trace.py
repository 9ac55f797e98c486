"""trace: which node of a graph gives the first value that is not finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx


def first_not_finite(module: fx.GraphModule, feeds: tuple[Tensor, ...]) -> str | None:
    """The name of the ONNX node (of the fx node, where there is none), None where all values are finite."""
    for name, x in zip((n.name for n in module.graph.nodes if n.op == "placeholder"), feeds, strict=False):
        if not _finite(x):
            return f"input {name}"
    tracer = _Tracer(module)
    with torch.no_grad():
        tracer.run(*feeds)
    return tracer.found


class _Tracer(fx.Interpreter):
    """Runs node by node and remembers the first one."""

    found: str | None = None

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if self.found is None and n.op.startswith("call") and not _finite(value):
            self.found = str(n.meta.get("onnx") or n.name)
        return value


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    return all(_finite(v) for v in value) if isinstance(value, (tuple, list)) else True
