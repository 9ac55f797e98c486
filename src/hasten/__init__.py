"""hasten makes a trained neural network faster and smaller on the machine where it runs, within an accuracy budget, and proves both.

result = hasten.optimize("model.onnx", hasten.Task("digits.npz"), max_drop=0.005, out="out.hasten")
fast = hasten.load("out.hasten"); y = fast(x)
"""

import os
from typing import TYPE_CHECKING, Any

from hasten.version import __version__

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
"""From 1.29 on onnxruntime tells its maker which models are opened (file name, hashes) unless this is set before it is imported."""

if TYPE_CHECKING:
    from hasten.fast import load
    from hasten.model import Model
    from hasten.plan import Plan
    from hasten.search.budget import Budget
    from hasten.search.extras import Extras
    from hasten.search.optimize import optimize
    from hasten.search.result import Result
    from hasten.single import apply
    from hasten.task import Metric, Task

__all__ = ["Budget", "Extras", "Metric", "Model", "Plan", "Result", "Task", "__version__", "apply", "load", "optimize"]

_WHERE = {
    "Budget": "hasten.search.budget",
    "Extras": "hasten.search.extras",
    "Metric": "hasten.task",
    "Model": "hasten.model",
    "Plan": "hasten.plan",
    "Result": "hasten.search.result",
    "Task": "hasten.task",
    "apply": "hasten.single",
    "load": "hasten.fast",
    "optimize": "hasten.search.optimize",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used: `import hasten` loads no library."""
    if name not in _WHERE:
        raise AttributeError(f"module 'hasten' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_WHERE[name]), name)
