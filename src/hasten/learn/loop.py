"""loop: the one training loop. Every technique that trains makes a Trainee and gives it to `fit`.

AdamW (Loshchilov and Hutter, arXiv 1711.05101) or SGD with Nesterov momentum; the rate warms up linearly and falls along a half cosine
(arXiv 1608.03983); gradients are clipped by their norm; an exponential moving average of the weights may stand in for them (Polyak and Juditsky,
1992). What an interruption must not lose is in a checkpoint; batches, augmentation and schedule depend on seed and step alone, so a resumed
training takes the very steps that it would have taken. Zeros that are meant stay zeros, and `sparsity` makes some (learn/zeros.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hasten.errors import BadInput, Diverged, OutOfResources
from hasten.learn import checkpoint
from hasten.learn.augment import Mixup, parse
from hasten.learn.batches import Batch, Batches, Teach, pieces
from hasten.learn.checkpoint import CHECKPOINT
from hasten.learn.device import DEVICES, device_of, move
from hasten.learn.executor import Executor
from hasten.learn.objective import Objective
from hasten.learn.parallel import ALONE, Team
from hasten.learn.records import RECORDS
from hasten.learn.spatial import Dropout
from hasten.learn.zeros import Zeros, goal_of
from hasten.measure.machine import cores
from hasten.measure.record import Record, Records
from hasten.measure.worker import peak_memory
from hasten.model import Model
from hasten.plan import NOT_THE_RESULT
from hasten.shrink.masks import SCOPES
from hasten.task import BoundTask, Split
from hasten.voice import voice

SAVE_EVERY = 60.0
"""Seconds between two checkpoints inside an epoch."""

LOOK, COMPILE_PAYS = 12, 90.0
"""After so many eager steps their median tells how long the rest takes; above so many seconds a compiled step is tried (compiling takes 15 to
30 s) and kept where it is faster."""

JUDGED_AT_ONCE = 256
MEMORY = {"cpu": "resident, of this process", "cuda": "allocated on the GPU"}
OPTIMIZERS, PRECISIONS, COMPILE = ("adamw", "sgd"), ("float32", "bfloat16"), ("auto", "always", "never")


@dataclasses.dataclass(frozen=True)
class Loop:
    """What every training has. `batch` samples a step, in `accumulate` pieces one after the other (less memory, the same step). `rate` is the
    largest learning rate, reached after the share `warm_up` of all steps. `clip`: the largest norm of the gradient, 0 for none. `average`:
    decay of the moving average of the weights, 0 for none. `patience`: epochs without a better value on `validate` before it stops, 0 for
    never. `until`: the metric's value at which it stops. `seconds`: of training at most, for which the number of steps is cut as soon as it is
    known how long one takes; 0 for no limit. `cuts`: such cuts as a plan remembers them, so that it replays: step:steps, the number of all steps from
    that step on. `device`: cuda trains on a GPU. `compile`: auto takes torch.compile where it was measured to pay. `augment`:
    shift:2, crop:4, flip, rotate:10, zoom:0.1, mixup:0.2, or file.py:function. `workers`: threads that make batches ready ahead. `processes`:
    data-parallel processes (torch.distributed), among which a batch is divided. `sparsity`: the share of each layer's weights that are zero from
    60 % of the steps on, the smallest first, 0 for none. `pattern`: unstructured, N:M (2:4: at most two of four inputs stay), or blocks of
    outputs x inputs (4x1). `scope`: layer; global or adaptive for the share of all weights together, under one threshold on the
    magnitudes or on layer-adaptive ones (LAMP, arXiv 2010.07611), small first and last layers too.
    """

    epochs: int = 10
    batch: int = 128
    rate: float = 1e-3
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    warm_up: float = 0.05
    accumulate: int = 1
    clip: float = 1.0
    average: float = 0.0
    patience: int = 0
    until: float | None = None
    seconds: float = 0.0
    cuts: tuple[str, ...] = ()
    precision: str = "float32"
    device: str = "cpu"
    compile: str = "auto"
    augment: tuple[str, ...] = ()
    workers: int = 0
    processes: int = 1
    seed: int = 0
    sparsity: float = 0.0
    pattern: str = "unstructured"
    scope: str = "layer"

    def __post_init__(self) -> None:
        verb = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()
        for name, least in (("epochs", 0), ("batch", 1), ("accumulate", 1), ("patience", 0), ("workers", 0), ("processes", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise BadInput(f"{verb}: {name} is {getattr(self, name)}, expected at least {least}")
        for name, high in (
            ("rate", math.inf),
            ("weight_decay", math.inf),
            ("clip", math.inf),
            ("seconds", math.inf),
            ("warm_up", 1.0),
            ("average", 1.0),
        ):
            value = getattr(self, name)
            if not 0 <= value < high or (name == "rate" and value == 0):
                raise BadInput(f"{verb}: {name} is {value}, expected a number {'above' if name == 'rate' else 'from'} 0 below {high:g}")
        for name, known in (
            ("optimizer", OPTIMIZERS),
            ("precision", PRECISIONS),
            ("device", DEVICES),
            ("compile", COMPILE),
            ("scope", SCOPES),
        ):
            if getattr(self, name) not in known:
                raise BadInput(f"{verb}: {name} {getattr(self, name)!r} is unknown; use one of {', '.join(known)}")
        if self.batch % (self.accumulate * self.processes):
            raise BadInput(
                f"{verb}: batch {self.batch} can't be divided into {self.accumulate} pieces in each of {self.processes} processes; "
                f"use a multiple of {self.accumulate * self.processes}"
            )
        if sum(isinstance(parse(text), Mixup) for text in self.augment) > 1:
            raise BadInput(f"{verb}: mixup was given twice; give it once, with the amount that it should have")
        for text in self.cuts:
            if not all(part.isdigit() for part in text.partition(":")[::2]):
                raise BadInput(f"{verb}: the cut {text!r} is not understood; expected step:steps, such as 12:480")
        goal = goal_of(verb, self)
        if goal is None and self.pattern != "unstructured":
            raise BadInput(f"{verb}: pattern {self.pattern} was given and no sparsity; give --sparsity, the share of zeros")
        if self.scope != "layer" and (goal is None or goal.pattern.of):
            why = "no sparsity" if goal is None else f"pattern {self.pattern}, which gives every layer the same sparsity"
            raise BadInput(f"{verb}: scope {self.scope} was given and {why}; leave it out, or give --sparsity without N:M")


class Tied(Protocol):
    """Weights that share a number: what makes their gradients one before a step, and them one after it, in tensors by the parameters' names."""

    def tensors(self) -> Iterable[Tensor]: ...
    def share_gradients(self) -> None: ...
    def tie(self, tensors: Mapping[str, Tensor]) -> None: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Trainee:
    """What is trained, and towards what. `judged`: the module's output that the metric judges. `more`: parameters beside the model's own (a
    distillation's adapters). `teach`: a teacher. `after_step`: called after each step (weights kept within bounds, say). `proximal`: the same,
    with the step's learning rate. `rates`: factors of the learning rate by name of a parameter. `input_gradients`: the objective takes
    gradients by the inputs, so no step is compiled. `keep_last`: the last epoch's weights are kept, where the metric is not all that counts.
    `zeros`: what is zero and stays so, and what becomes zero. `tied`: weights that share one number and go on to.
    """

    executor: Executor
    objective: Objective
    judged: int = 0
    more: dict[str, nn.Parameter] = dataclasses.field(default_factory=dict)
    teach: Teach | None = None
    after_step: Callable[[], None] | None = None
    proximal: Callable[[float], None] | None = None
    rates: dict[str, float] = dataclasses.field(default_factory=dict)
    input_gradients: bool = False
    keep_last: bool = False
    zeros: Zeros = dataclasses.field(default_factory=Zeros)
    tied: Tied | None = None

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return {**self.executor.weights, **{f"more/{k}": v for k, v in self.more.items()}}

    def tensors(self) -> Iterator[Tensor]:
        """All that a step computes with, the batch aside."""
        yield from self.executor.module.parameters()
        yield from self.executor.module.buffers()
        yield from self.more.values()
        yield from self.zeros.masks.values()
        if self.tied is not None:
            yield from self.tied.tensors()


@dataclasses.dataclass(frozen=True)
class Trained:
    """How a training went. `value`, `epoch`: the kept weights' value on `validate` (None without labels to judge by) and where it was reached.

    seconds: wall time of all steps, judging aside, interruptions not counted. step_seconds: the median. peak_memory: bytes.
    """

    value: float | None
    epoch: int
    epochs: int
    seconds: float
    step_seconds: float
    peak_memory: int
    compiled: bool
    cuts: tuple[str, ...] = ()


def fit(trainee: Trainee, split: Split, settings: Loop, task: BoundTask, identity: str, team: Team = ALONE) -> Trained:
    """Train in place; the weights that were best on `validate` are what the trainee holds afterwards.

    identity: what a checkpoint must have been begun with to be gone on with. Raises BadInput (data, checkpoint), Diverged where the loss is no
    finite number, OutOfResources where not even one sample at a time fits in memory.
    """
    return _Training(trainee, split, settings, task, identity, team).run()


class _Training:
    """The state of one training."""

    def __init__(self, trainee: Trainee, split: Split, settings: Loop, task: BoundTask, identity: str, team: Team) -> None:
        self.trainee, self.settings, self.task, self.team = trainee, settings, task, team
        said = {k: v for k, v in dataclasses.asdict(settings).items() if k not in NOT_THE_RESULT}
        self.identity = hashlib.sha256(f"{identity}|{said}".encode()).hexdigest()
        if team.rank == 0 and (settings.patience or settings.until is not None) and (task.validate is None or task.validate.labels is None):
            raise BadInput("--patience and --until want labels to judge by, and there are none; leave them out")
        self.device = device_of(settings.device, settings.processes)
        move(trainee.tensors(), self.device)
        torch.set_num_threads(max(1, _threads() // team.size))
        torch.manual_seed(settings.seed)
        self.batches = Batches(
            split,
            trainee.executor.inputs,
            _batch_that_fits(settings, len(split)),
            changes=tuple(parse(text) for text in settings.augment),
            teach=trainee.teach,
            workers=settings.workers,
            seed=settings.seed,
            share=(team.rank, team.size),
            device=self.device,
        )
        self.parameters = trainee.parameters
        self.optimizer = _optimizer(self.parameters, trainee.rates, settings)
        self.average = {k: p.detach().clone() for k, p in self.parameters.items()} if settings.average else None
        self.zeros = trainee.zeros
        self.drops = any(isinstance(m, Dropout) for m in trainee.executor.module.modules())
        self.steps = self.batches.steps * settings.epochs
        self.done = 0
        self.cuts = list(settings.cuts)
        self.pieces = settings.accumulate
        self.losses: list[float] = []
        self.epoch_seconds, self.seconds = 0.0, 0.0
        self.times: list[float] = []
        self.compiled: bool | None = False if trainee.input_gradients else {"auto": None, "always": True, "never": False}[settings.compile]
        self.forward: Callable[..., Any] = torch.compile(trainee.executor.module) if self.compiled else trainee.executor.module
        self.best: dict[str, Tensor] | None = None
        self.best_value: float | None = None
        self.best_epoch = 0
        place = task.place if team.rank == 0 else None
        if place is not None:
            place.mkdir(parents=True, exist_ok=True)
        self.checkpoint = place / CHECKPOINT if place and self.steps else None
        self.records = Records(place / RECORDS if place else None)
        self.saved = time.monotonic()

    def run(self) -> Trained:
        if self.checkpoint is not None and not self.checkpoint.exists():
            self._save()
        elif source := self.checkpoint or self.team.begun:
            self._resume(source)
        self.done, self.steps = self.team.agree(self.done), self.team.agree(self.steps)
        while self.done < self.steps:
            epoch, start = divmod(self.done, self.batches.steps)
            self.trainee.executor.module.train()
            begun = time.perf_counter()
            for batch in self.batches.epoch(epoch, start):
                if self.done >= self.steps:
                    break
                self._step(batch, epoch)
                now = time.perf_counter()
                self.times.append(now - begun)
                self.epoch_seconds += now - begun
                begun = now
                voice().step(f"training, epoch {epoch + 1}", self.done % self.batches.steps or self.batches.steps, self.batches.steps)
                if time.monotonic() - self.saved > SAVE_EVERY:
                    self._save()
                self._choose_compiled()
            if self._end_epoch(epoch):
                break
        return self._finish()

    # --- one step

    def _step(self, batch: Batch, epoch: int) -> None:
        rate = self.settings.rate * _share_of_rate(self.done, self.steps, self.settings.warm_up)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        if self.drops:  # what is dropped depends on the step alone, so a resumed training drops the same
            torch.manual_seed(int(np.random.SeedSequence((self.settings.seed, self.done, self.team.rank)).generate_state(1)[0]))
        while True:
            try:
                loss = self._gradients(batch)
                break
            except (RuntimeError, MemoryError) as e:
                self._smaller_pieces(e, len(batch.feeds[0]))
        loss = self.team.mean_gradients(self.parameters.values(), loss)
        if not math.isfinite(loss):
            where = self._first_not_finite(batch)
            raise Diverged(
                f"the loss is {loss} at step {self.done + 1} of {self.steps} (epoch {epoch + 1}); {where}. The last good checkpoint is kept; "
                f"try a lower --rate than {self.settings.rate:g}, a longer --warm-up, or --clip"
            )
        self.zeros.mask_gradients()
        if self.trainee.tied is not None:
            self.trainee.tied.share_gradients()
        if self.settings.clip:
            nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip)
        self.optimizer.step()
        if self.trainee.after_step is not None:
            with torch.no_grad():
                self.trainee.after_step()
        if self.trainee.proximal is not None:
            with torch.no_grad():
                self.trainee.proximal(rate)
        self.zeros.after_step(self.done + 1, self.steps)
        self._tie(self.parameters)
        if self.average is not None:
            decay = min(self.settings.average, (self.done + 1) / (self.done + 10))
            torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.parameters.values()], 1 - decay)
            self.zeros.clear(self.average)
            self._tie(self.average)
        self.losses.append(loss)
        self.done += 1

    def _tie(self, tensors: Mapping[str, Tensor]) -> None:
        if self.trainee.tied is not None:
            self.trainee.tied.tie(tensors)

    def _gradients(self, batch: Batch) -> float:
        """The mean loss of the batch, its gradients left in the parameters."""
        self.optimizer.zero_grad(set_to_none=True)
        total, count = 0.0, len(batch.feeds[0])
        for piece in pieces(batch, self.pieces):
            if self.trainee.input_gradients:
                piece.feeds[0].requires_grad_()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
                outputs = self.forward(*piece.feeds)
            loss = self.trainee.objective(outputs, piece) * (len(piece.feeds[0]) / count)
            loss.backward()
            total += float(loss.detach())
        return total

    def _smaller_pieces(self, error: Exception, samples: int) -> None:
        """Out of memory: the same step in twice as many pieces. Raises what is not about memory, OutOfResources where nothing is left to divide."""
        if not isinstance(error, MemoryError) and not any(
            word in str(error).lower() for word in ("can't allocate memory", "out of memory", "bad_alloc")
        ):
            raise error
        if self.pieces * 2 > samples:
            raise OutOfResources(
                f"out of memory with {self.pieces} pieces of a batch of {samples}; use a smaller --batch or a smaller model"
            ) from error
        self.pieces *= 2
        voice().say(f"out of memory: each batch of {samples} is now computed in {self.pieces} pieces, which gives the same step")

    def _first_not_finite(self, batch: Batch) -> str:
        """Which node of the graph gives the first value that is not finite, in a sentence."""
        from hasten.learn.trace import first_not_finite

        weights = [name for name, p in self.parameters.items() if not torch.isfinite(p).all()]
        if weights:
            return f"the weights {weights[0]!r} are not finite since the step before"
        node = first_not_finite(self.trainee.executor.module, batch.feeds)
        return (
            f"the first value that is not finite comes from node {node!r}"
            if node
            else "every node's values are finite, so the loss itself overflows"
        )

    def _choose_compiled(self) -> None:
        """After LOOK eager steps: compile where the rest is long enough, and keep it where it was faster in the same number of steps."""
        self._cut()
        if len(self.times) in (LOOK, 2 * LOOK) and self.settings.seconds and not self.settings.cuts:
            self._fit_into(self.settings.seconds - self.seconds - self.epoch_seconds, statistics.median(self.times[2:][-LOOK + 2 :]))
        if self.compiled is not None or len(self.times) < LOOK:
            return
        eager = statistics.median(self.times[2:LOOK])
        if len(self.times) == LOOK:
            left = (self.steps - self.done) * eager
            self.compiled = None if left > COMPILE_PAYS else False
            if self.compiled is None:
                voice().detail(f"training: {left:.0f} s are left at {eager * 1e3:.1f} ms a step: a compiled step is tried")
                self.forward = torch.compile(self.trainee.executor.module)
        elif len(self.times) == 2 * LOOK:
            compiled = statistics.median(self.times[LOOK + 2 :])
            self.compiled = compiled < eager
            if not self.compiled:
                self.forward = self.trainee.executor.module
            voice().say(
                f"training: a compiled step takes {compiled / eager:.2f} × the time of an eager one: {'kept' if self.compiled else 'not kept'}"
            )

    def _fit_into(self, seconds: float, a_step: float) -> None:
        """Cut the number of steps, and with it the schedule of the rate, to what the time allows."""
        allowed = self.team.agree(self.done + max(0, int(seconds / a_step)))
        if allowed < self.steps:
            voice().say(f"training: {allowed} of {self.steps} steps fit into {self.settings.seconds:g} s")
            self.cuts.append(f"{self.done}:{allowed}")
            self.steps = allowed

    def _cut(self) -> None:
        """As the plan remembers it."""
        for text in self.settings.cuts:
            step, _, steps = text.partition(":")
            if int(step) == self.done:
                self.steps = int(steps)

    # --- one epoch

    def _end_epoch(self, epoch: int) -> bool:
        """Judge, keep the best, record, save. Whether to stop. An epoch before the final sparsity is neither kept nor a reason to stop."""
        stop = False
        if self.done >= self.steps:
            self._settle()
        if self.team.rank == 0:
            value = self._value()
            if self.zeros.settled and (self.trainee.keep_last or self._better(value)):
                self.best, self.best_value, self.best_epoch = self._tensors(averaged=True), value, epoch + 1
            loss = float(np.mean(self.losses)) if self.losses else float("nan")
            name = self.task.metric.name
            self.records.add(
                Record(
                    f"epoch:{epoch + 1}",
                    "epoch",
                    "training",
                    f"wall time of the steps; {name} on validate in torch, eval mode",
                    {
                        "epoch": epoch + 1,
                        "loss": loss,
                        "value": value,
                        "seconds": self.epoch_seconds,
                        "steps": len(self.losses),
                        "samples": len(self.losses) * self.batches.size,
                        "step_seconds": statistics.median(self.times) if self.times else None,
                        "peak_memory": self._peak_memory(),
                        "compiled": bool(self.compiled),
                    },
                )
            )
            judged = "" if value is None else f", {name} {value:.4f} on validate"
            voice().say(f"epoch {epoch + 1} of {self.settings.epochs}: loss {loss:.4f}{judged}, {self.epoch_seconds:.1f} s")
            until = self.settings.until
            reached = until is not None and value is not None and (value >= until if self.task.metric.higher_is_better else value <= until)
            waited = self.settings.patience and value is not None and epoch + 1 - self.best_epoch >= self.settings.patience
            if self.zeros.settled and (reached or waited):
                voice().say(
                    f"stopped: {f'{name} reached {until:g}' if reached else f'no better value for {self.settings.patience} epochs'}"
                )
                stop = True
        self.seconds += self.epoch_seconds
        self.epoch_seconds, self.losses = 0.0, []
        if stop := bool(self.team.agree(int(stop))):
            self.steps = self.done
        self._save()
        return stop

    def _settle(self) -> None:
        """The last masks, where the steps ended before they were reached (there were none, or the time did)."""
        self.zeros.settle()
        if self.average is not None:
            self.zeros.clear(self.average)

    def _better(self, value: float | None) -> bool:
        if value is None or self.best_value is None:
            return True
        return value >= self.best_value if self.task.metric.higher_is_better else value <= self.best_value

    def _value(self) -> float | None:
        """The metric on `validate` with the averaged weights, None where there are no labels."""
        split = self.task.validate
        if split is None or split.labels is None:
            return None
        with _standing_in(self.parameters, self.average):
            return self.task.metric.value(predict(self.trainee, split), split.labels)

    def _tensors(self, averaged: bool) -> dict[str, Tensor]:
        """Copies of the weights (the average of them where there is one) and of the running statistics."""
        weights = self.average if averaged and self.average is not None else self.parameters
        return {
            k: v.detach().clone() for k, v in {**weights, **{f"buffer/{k}": b for k, b in self.trainee.executor.buffers.items()}}.items()
        }

    def _put(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])
            for name, buffer in self.trainee.executor.buffers.items():
                buffer.copy_(tensors[f"buffer/{name}"])

    def _finish(self) -> Trained:
        self._settle()
        if self.best is not None:
            self._put(self.best)
        elif self.average is not None:
            self._put(self._tensors(averaged=True))
        self.trainee.executor.module.eval()
        move(self.trainee.tensors(), torch.device("cpu"))
        trained = Trained(
            self.best_value,
            self.best_epoch,
            -(-self.done // self.batches.steps) if self.batches.steps else 0,
            self.seconds,
            statistics.median(self.times) if self.times else float("nan"),
            self._peak_memory(),
            bool(self.compiled),
            tuple(self.cuts),
        )
        if self.team.rank == 0:
            method = f"wall time of all steps, judging aside; median step; peak memory, {MEMORY[self.device.type]}"
            values = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in dataclasses.asdict(trained).items()}
            self.records.add(Record("training", "training", "training", method, values))
        return trained

    def _peak_memory(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else peak_memory()

    # --- what an interruption must not lose

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        tensors = {f"now/{k}": v for k, v in self._tensors(averaged=False).items()}
        tensors |= {f"average/{k}": v for k, v in (self.average or {}).items()}
        tensors |= {f"best/{k}": v for k, v in (self.best or {}).items()}
        tensors |= {f"mask/{k}": v for k, v in self.zeros.state().items()}
        for name, parameter in self.parameters.items():
            tensors |= {
                f"optimizer/{key}/{name}": value for key, value in self.optimizer.state[parameter].items() if isinstance(value, Tensor)
            }
        state = {
            "identity": self.identity,
            "done": self.done,
            "steps": self.steps,
            "cuts": self.cuts,
            "pieces": self.pieces,
            "losses": self.losses,
            "epoch_seconds": self.epoch_seconds,
            "seconds": self.seconds,
            "compiled": self.compiled,
            "best_value": self.best_value,
            "best_epoch": self.best_epoch,
            "settled": self.zeros.settled,
        }
        checkpoint.write(self.checkpoint, tensors, state)
        self.saved = time.monotonic()

    def _resume(self, path: Path) -> None:
        tensors, state = checkpoint.read(path)
        if self.team.rank == 0 and state["identity"] != self.identity:
            raise BadInput(
                f"{path.parent.name} holds the checkpoint of another training (model, data or settings differ); "
                "give the same to go on with it, remove that folder to start afresh, or write elsewhere"
            )
        self._put(_under("now/", tensors))
        if self.average is not None:
            self.average = {k: tensors[f"average/{k}"].to(self.device, copy=True) for k in self.parameters}
        self.best = _under("best/", tensors) or None
        self.zeros.restore({k: mask.to(self.device) for k, mask in _under("mask/", tensors).items()}, state["settled"])
        for key, value in tensors.items():
            kind, _, rest = key.partition("/")
            if kind == "optimizer":
                field, _, name = rest.partition("/")
                self.optimizer.state[self.parameters[name]][field] = value.to(self.device) if value.ndim else value
        self.done, self.steps, self.pieces, self.losses = state["done"], state["steps"], state["pieces"], state["losses"]
        self.cuts = state["cuts"]
        self.epoch_seconds, self.seconds = state["epoch_seconds"], state["seconds"]
        self.best_value, self.best_epoch = state["best_value"], state["best_epoch"]
        if state["compiled"] is not None and state["compiled"] != self.compiled:
            self.compiled = state["compiled"]
            self.forward = torch.compile(self.trainee.executor.module) if self.compiled else self.trainee.executor.module
        voice().say(f"resumed at step {self.done} of {self.steps}")


def predict(trainee: Trainee, split: Split) -> np.ndarray:
    """The judged output on a split, (N, ...), in eval mode."""
    module, parts = trainee.executor.module, []
    device = next((t.device for t in trainee.tensors()), torch.device("cpu"))
    module.eval()
    with torch.no_grad():
        for feeds in split.batches(JUDGED_AT_ONCE):
            tensors = [torch.from_numpy(np.ascontiguousarray(feeds[name])).to(device) for name in trainee.executor.inputs]
            parts.append(module(*tensors)[trainee.judged].cpu().numpy())
    module.train()
    return np.concatenate(parts)


class _standing_in:
    """Within this block the parameters hold other values (none: their own)."""

    def __init__(self, parameters: dict[str, nn.Parameter], values: dict[str, Tensor] | None) -> None:
        self.parameters, self.values = parameters, values
        self.own: dict[str, Tensor] = {}

    def __enter__(self) -> None:
        self._swap(self.values)

    def __exit__(self, *_: object) -> None:
        self._swap(self.own)

    def _swap(self, values: dict[str, Tensor] | None) -> None:
        if values is None:
            return
        own = {k: p.detach().clone() for k, p in self.parameters.items()} if values is not self.own else {}
        with torch.no_grad():
            for name, value in values.items():
                self.parameters[name].copy_(value)
        self.own = own


def _threads() -> int:
    """The cores that this process may use, fewer where OMP_NUM_THREADS says so: threads that wait for a core spin, and cost more than they bring."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores(), int(asked)) if asked.isdecimal() and int(asked) > 0 else cores()


def _batch_that_fits(settings: Loop, samples: int) -> int:
    """The batch of the settings; where there are fewer samples, all that can be divided evenly, and a sentence about it."""
    shares = settings.accumulate * settings.processes
    if samples >= settings.batch or samples < shares:
        return settings.batch
    fitting = samples - samples % shares
    voice().say(f"training: {samples} samples are fewer than a batch of {settings.batch}; a batch has {fitting}")
    return fitting


def _optimizer(parameters: dict[str, nn.Parameter], rates: dict[str, float], settings: Loop) -> torch.optim.Optimizer:
    """Groups by whether weight decay applies (matrices and kernels, not biases, scales and norms) and by the factor of the rate."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decay = settings.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((decay, rates.get(name, 1.0)), []).append(parameter)
    listed = [{"params": p, "weight_decay": decay, "factor": factor} for (decay, factor), p in groups.items()]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(listed, settings.rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(listed, settings.rate, foreach=True)


def _share_of_rate(step: int, steps: int, warm_up: float) -> float:
    """From 0 to 1 over the first `warm_up` of the steps, then along a half cosine to 0."""
    warm = warm_up * steps
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1.0, steps - warm)))


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def identity_of(model: Model, task: BoundTask, technique: str) -> str:
    """What a training is begun with, its settings aside: the technique, the model, the data, the teacher."""
    return json.dumps([technique, model.digest, task.digest, "" if task.teacher is None else task.teacher.digest])


def remove_checkpoint(place: Path | None) -> None:
    """Once the result is written."""
    if place is not None:
        (place / CHECKPOINT).unlink(missing_ok=True)
