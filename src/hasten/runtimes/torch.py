"""torch (extra `torch`), eager or compiled: any Model through the executor of `learn`, and a model that came as an nn.Module as it was.

`torch-compiled` asks for a C++ compiler and takes 15 to 60 s to compile a model, so `optimize` tries these two only where `--runtimes` names
them.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.errors import Unsupported
from hasten.history import Skip
from hasten.runtimes import Feeds, Outputs, Target
from hasten.runtimes.onnxruntime import one_line

if TYPE_CHECKING:
    from hasten.model import Model


class Torch:
    """The executor's module in eval mode, in float32. A file `.pt2` is what the torch door kept of a model: the baseline."""

    hints = ("float32",)

    def __init__(self, name: str, compiled: bool) -> None:
        self.name, self.compiled = name, compiled

    def unsupported(self, model: Model, target: Target) -> tuple[Skip, ...]:
        if importlib.util.find_spec("torch") is None:
            return (Skip("", "torch is not installed: pip install 'hasten[torch]'"),)
        if target.precision != "float32":
            return (Skip("", f"torch computes here in float32, not in {target.precision}: convert the model instead"),)
        from hasten.learn.executor import refusals

        return refusals(model)

    def compile(self, model: Model | Path, target: Target) -> TorchSession | OriginSession:
        """Compiled: the first call compiles, for random inputs of the target's batch, and is part of this one."""
        if importlib.util.find_spec("torch") is None:
            raise Unsupported("torch is not installed: pip install 'hasten[torch]'")
        if isinstance(model, Path) and model.suffix == ".pt2":
            return OriginSession(model, target.threads, self.compiled)
        from hasten.model import Model

        return TorchSession(Model.load(model) if isinstance(model, Path) else model, target, self.compiled)


class TorchSession:
    """A model as a function of numpy arrays. `batch`: compiled, it is compiled again for every other batch."""

    def __init__(self, model: Model, target: Target, compiled: bool) -> None:
        import torch

        from hasten.learn.executor import build

        torch.set_num_threads(target.threads)
        executor = build(model)
        self._inputs, self._outputs = executor.inputs, executor.outputs
        self._module: Any = executor.module.requires_grad_(False)
        self.batch: int | None = None
        if compiled:
            from hasten import check

            if any(port.shape and not isinstance(port.shape[0], int) for port in model.inputs):
                self.batch = target.batch
            self._module = torch.compile(executor.module, dynamic=False, options={"freezing": True})
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # torch's compiler warns of its own insides
                    self.run(check.random_feeds(model, target.batch))
            except Exception as e:
                raise Unsupported(f"torch can't compile the model: {one_line(e)}") from e

    def run(self, feeds: Feeds) -> Outputs:
        import torch

        with torch.no_grad():
            values = self._module(*(_tensor(feeds[name]) for name in self._inputs))
        return {name: value.numpy() for name, value in zip(self._outputs, values, strict=True)}


class OriginSession:
    """An ExportedProgram as a function of numpy arrays. Names are those of the ONNX model that the door made of it, read beside the file."""

    batch: int | None = None

    def __init__(self, path: Path, threads: int, compiled: bool) -> None:
        import torch

        torch.set_num_threads(threads)
        inputs, outputs = path.with_suffix(".names").read_text().split("\n\n")
        self._inputs, self._outputs = inputs.split("\n"), outputs.strip().split("\n")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(path)
            module = program.module()
        _, kwargs = program.example_inputs or ((), {})
        self._named = list(kwargs)
        self._module: Any = torch.compile(module) if compiled else module

    def run(self, feeds: Feeds) -> Outputs:
        import torch

        tensors = [_tensor(feeds[name]) for name in self._inputs]
        split = len(tensors) - len(self._named)
        with torch.inference_mode():
            value = self._module(*tensors[:split], **dict(zip(self._named, tensors[split:], strict=True)))
        leaves = torch.utils._pytree.tree_leaves(value)
        return {name: leaf.numpy() for name, leaf in zip(self._outputs, leaves, strict=True)}


def _tensor(array: Any) -> Any:
    """torch takes no array that may not be written to, so such a one is copied."""
    import torch

    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


RUNTIME = Torch("torch", compiled=False)
COMPILED = Torch("torch-compiled", compiled=True)
