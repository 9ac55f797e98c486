"""live_memory: the bytes of activations that live at once while torch runs a graph node by node in the order of the file, measured.

`memory.peak` computes what a graph needs from shapes alone. Here it runs: every storage that an operator of torch makes is counted from its making to
its end, views once. Inputs count, weights do not. What an operator needs inside itself is among it, where torch makes a tensor for it.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hasten.graph import Array
from hasten.learn.executor import build
from hasten.model import Model


def measured_peak(model: Model, feeds: Mapping[str, Array]) -> int:
    """Bytes. Raises Unsupported for what the executor can't run."""
    executor = build(model)
    weights = {t.untyped_storage().data_ptr() for t in (*executor.module.parameters(), *executor.module.buffers())}
    inputs = [torch.from_numpy(feeds[name].copy()) for name in executor.inputs]
    watch = _Watch(weights)
    for tensor in inputs:
        watch.see(tensor)
    with torch.no_grad(), watch:
        executor.module(*inputs)
    return watch.most


class _Watch(TorchDispatchMode):
    """Counts storages alive. `known`: addresses that do not count."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known, self.alive, self.most = known, 0, 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.see(leaf)
        return result

    def see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self.known or storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.alive += size
        self.most = max(self.most, self.alive)
        weakref.finalize(storage, self._end, size)

    def _end(self, size: int) -> None:
        self.alive -= size
