"""teacher: what a larger model says of the training samples. It runs in onnxruntime, so it may hold any operator; its gradients come from torch.
Where the samples are on a GPU it runs there, in torch.

Without augmentation it says the same of a sample in every epoch: then it is asked once, before the training, and its answers are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from hasten.errors import BadInput
from hasten.learn.executor import Executor, build, refusals
from hasten.model import Model
from hasten.task import Split
from hasten.voice import voice

KEPT = 2 << 30
"""Answers of at most so many bytes are kept; beyond, the teacher is asked for each batch."""

ASKED = 256


class Asking(Protocol):
    """Settings that say whether a teacher's answers can be kept."""

    @property
    def augment(self) -> tuple[str, ...]: ...
    @property
    def epochs(self) -> int: ...


class Teacher:
    """Named values of a model for a batch: (positions in the split, feeds) → tensors in the order of `names`.

    Raises BadInput where the model has no such value, or wants other inputs than the student has.
    """

    def __init__(self, model: Model, inputs: tuple[str, ...], names: tuple[str, ...], gradients_of: str = "") -> None:
        """`gradients_of`: a value of class scores; its largest one's gradient by the first input is one more answer, the last."""
        self._inputs = _matched(model, inputs)
        self._names = names
        self._model, self._session = model, _session(model, names)
        self._on_gpu: Executor | None = None
        self._executor = build(model, taps=(gradients_of,)) if gradients_of else None
        if self._executor is not None:
            self._executor.module.eval()
        self._kept: tuple[Tensor, ...] | None = None

    def __call__(self, positions: NDArray[np.intp], feeds: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self._kept is not None:
            return tuple(x[torch.from_numpy(positions)].to(feeds[0].device) for x in self._kept)
        return self._ask(feeds) if feeds[0].device.type == "cpu" else self._ask_on_gpu(feeds)

    def get_ready(self, split: Split, order: tuple[str, ...], settings: Asking) -> None:
        """Ask once about every sample of the split, where there is something to learn, nothing changes the samples, and the answers can be kept.

        `order`: the names of the student's inputs.
        """
        if not settings.epochs or settings.augment:
            return
        parts: list[tuple[Tensor, ...]] = []
        done = 0
        for feeds in split.batches(ASKED):
            tensors = tuple(torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in order)
            parts.append(self._ask(tensors))
            if not done and sum(x.nbytes for x in parts[0]) / len(tensors[0]) * len(split) > KEPT:
                voice().detail("distill: the teacher's answers are too large to keep; it is asked for each batch")
                return
            done += len(tensors[0])
            voice().step("asking the teacher", done, len(split))
        self._kept = tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def check_scores(self, technique: str, student: Executor, at: int, split: Split, classes: Mapping[int, int] | None = None) -> None:
        """Raises BadInput where the teacher does not take the student's samples, or where the student's output number `at` and the first answer are
        not of the same classes. `classes`: which are, if not all."""
        positions = np.arange(min(2, len(split)))
        taken = split.samples.take(split.indices[positions])
        feeds = tuple(torch.from_numpy(np.ascontiguousarray(taken[name])) for name in student.inputs)
        student.module.eval()
        with torch.no_grad():
            mine = student.module(*feeds)[at].shape
            try:
                theirs = self._ask(feeds)[0].shape
            except Exception as e:
                raise BadInput(f"{technique}: the teacher does not take the student's samples: {' '.join(str(e).split())[:300]}") from e
        if not classes and mine != theirs:
            raise BadInput(
                f"{technique}: the student gives scores {list(mine[1:])}, the teacher {list(theirs[1:])}; "
                + ("say which classes are the same with --class-map 0=3" if technique == "distill" else "both need the same classes")
            )
        for whose, numbers, count in (("student", classes or (), mine[-1]), ("teacher", (classes or {}).values(), theirs[-1])):
            if high := [n for n in numbers if n >= count]:
                raise BadInput(f"{technique}: the class map names the {whose}'s class {high[0]}; it has {count} (0 to {count - 1})")

    def _ask(self, feeds: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        given = {name: x.detach().numpy() for name, x in zip(self._inputs, feeds, strict=True)}
        answers = tuple(torch.from_numpy(x) for x in self._session.run(list(self._names), given))
        return answers if self._executor is None else (*answers, self._gradient(feeds))

    def _ask_on_gpu(self, feeds: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """In torch; an operator that torch can't run is one for onnxruntime, on the CPU."""
        if self._on_gpu is None and not refusals(self._model):
            self._on_gpu = build(self._model, taps=self._names)
            self._on_gpu.module.to(feeds[0].device)
        if self._on_gpu is None or self._executor is not None:
            return tuple(x.to(feeds[0].device) for x in self._ask(tuple(x.cpu() for x in feeds)))
        by_name = dict(zip(self._inputs, feeds, strict=True))
        with torch.no_grad():
            return tuple(self._on_gpu.module(*(by_name[name] for name in self._on_gpu.inputs))[-len(self._names) :])

    def _gradient(self, feeds: tuple[Tensor, ...]) -> Tensor:
        """∂(largest score)/∂(first input), (N, ...)."""
        assert self._executor is not None
        by_name = dict(zip(self._inputs, feeds, strict=True))
        ordered = [by_name[name].detach() for name in self._executor.inputs]
        ordered[0] = ordered[0].clone().requires_grad_()
        with torch.enable_grad():
            scores = self._executor.module(*ordered)[-1].flatten(1)
            (gradient,) = torch.autograd.grad(scores.max(1).values.sum(), ordered[0])
        return gradient


def _matched(model: Model, inputs: tuple[str, ...]) -> tuple[str, ...]:
    """The teacher's inputs in the order of the student's: by name, the only one to the only one, else by their order."""
    names = tuple(p.name for p in model.inputs)
    if set(names) == set(inputs):
        return inputs
    if len(names) == len(inputs):
        return names
    raise BadInput(f"the teacher has inputs {', '.join(names)}, the student {', '.join(inputs)}; both must take the same samples")


def _session(model: Model, names: tuple[str, ...]) -> Any:
    """An onnxruntime session that gives these values, inner ones too."""
    import onnxruntime as ort

    edited = model.edit()
    known: dict[str | None, ir.Value] = {o.name: o for node in edited.graph for o in node.outputs}
    outputs = {o.name for o in edited.graph.outputs}
    for name in names:
        if name in outputs:
            continue
        if name not in known:
            raise BadInput(f"the teacher has no value {name!r}; `hasten inspect` lists its layers")
        edited.graph.outputs.append(known[name])
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(Model(edited).to_bytes(), options, providers=["CPUExecutionProvider"])
