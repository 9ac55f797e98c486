"""parallel: a training divided among processes of this machine, data-parallel: each takes its share of every batch, and the gradients' mean
is what all of them step by (torch.distributed, gloo). The first process is the one that was started; it alone judges, records and saves.

With equal shares the mean of the gradients is the gradient of the whole batch, so losses are those of one process up to the order of sums.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from hasten.errors import OutOfResources
from hasten.learn.checkpoint import CHECKPOINT
from hasten.model import Model
from hasten.task import BoundTask, Split, without_data

if TYPE_CHECKING:
    from hasten.learn.loop import Loop

PATIENCE = datetime.timedelta(minutes=10)
"""How long a process waits for the others; judging, which only the first does, takes less."""

PIECE = 512


@dataclasses.dataclass(frozen=True)
class Team:
    """The processes that train together: this one's rank, how many there are, the checkpoint that the training goes on from (None: none)."""

    rank: int = 0
    size: int = 1
    begun: Path | None = None

    def agree(self, number: int) -> int:
        """What the first process says."""
        if self.size == 1:
            return number
        said = torch.tensor([number])
        torch.distributed.broadcast(said, 0)
        return int(said)

    def mean_gradients(self, parameters: Iterable[nn.Parameter], loss: float) -> float:
        """Replace each gradient by its mean over the processes, in one exchange. Returns the mean of the losses."""
        if self.size == 1:
            return loss
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([*(g.reshape(-1) for g in gradients), torch.tensor([loss])])
        torch.distributed.all_reduce(flat)
        flat /= self.size
        for gradient, part in zip(gradients, flat[:-1].split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
        return float(flat[-1])


ALONE = Team()


@contextlib.contextmanager
def team(technique: str, model: Model, settings: Loop, task: BoundTask, split: Split) -> Iterator[Team]:
    """The team of `settings.processes`; the others are started here and end with the block. Raises OutOfResources where one of them fails."""
    if settings.processes == 1:
        yield ALONE
        return
    with tempfile.TemporaryDirectory(prefix="hasten-team-") as private:
        place = Path(private)
        _hand_out(place, technique, model, settings, task, split)
        others = [_start(place, rank) for rank in range(1, settings.processes)]
        try:
            _wait_for(place, others)
            _join(place, 0, settings.processes)
            yield Team(0, settings.processes)
        except RuntimeError as e:
            if _ended(others):
                raise _early_end(place, others) from e
            raise
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            for other in others:
                try:
                    other.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    other.kill()
                    other.wait()


def _start(place: Path, rank: int) -> subprocess.Popen[bytes]:
    """One more process; what it has to complain about goes into a file."""
    with (place / f"{rank}.err").open("wb") as complaints:
        command = [sys.executable, "-m", "hasten.learn.parallel", str(place), str(rank)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=complaints)


def _hand_out(place: Path, technique: str, model: Model, settings: Loop, task: BoundTask, split: Split) -> None:
    """Write what the others need: the model, the settings, the samples as files that are mapped into memory, the teacher."""
    model.save(place / "model.onnx")
    if task.place is not None and (task.place / CHECKPOINT).exists():
        shutil.copyfile(task.place / CHECKPOINT, place / CHECKPOINT)
    if task.teacher is not None:
        task.teacher.save(place / "teacher.onnx")
    given = {"technique": technique, "settings": dataclasses.asdict(settings), "output": task.output, "metric": task.metric.name}
    arrays: dict[str, Any] = {}
    for start in range(0, len(split), PIECE):
        taken = split.samples.take(split.indices[start : start + PIECE])
        for number, (name, part) in enumerate(taken.items()):
            if start == 0:
                arrays[name] = np.lib.format.open_memmap(place / f"{number}.npy", "w+", part.dtype, (len(split), *part.shape[1:]))
            arrays[name][start : start + len(part)] = part
    for array in arrays.values():
        array.flush()
    if split.labels is not None:
        np.save(place / "labels.npy", split.labels)
    (place / "job.json").write_text(json.dumps(given | {"columns": list(arrays)}))


def _wait_for(place: Path, others: list[subprocess.Popen[bytes]]) -> None:
    """Until all the others are ready to join: a join that one of them can't come to takes the whole of PATIENCE. Raises OutOfResources."""
    late = time.monotonic() + PATIENCE.total_seconds()
    while not all((place / f"{rank}.ready").exists() for rank in range(1, len(others) + 1)):
        if _ended(others):
            raise _early_end(place, others)
        if time.monotonic() > late:
            raise OutOfResources(f"the processes of the training were not ready after {PATIENCE}; use fewer --processes")
        time.sleep(0.02)


def _ended(others: list[subprocess.Popen[bytes]]) -> list[int]:
    """The ranks of those that failed."""
    return [rank for rank, other in enumerate(others, 1) if other.poll() not in (None, 0)]


def _early_end(place: Path, others: list[subprocess.Popen[bytes]]) -> OutOfResources:
    rank = _ended(others)[0]
    said = (place / f"{rank}.err").read_text(errors="replace").strip().splitlines()
    last = said[-1] if said else f"it was killed with code {others[rank - 1].returncode}"
    return OutOfResources(f"process {rank + 1} of the training ended early: {last[:300]}; use fewer --processes")


def _join(place: Path, rank: int, size: int) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{place / 'rendezvous'}", rank=rank, world_size=size, timeout=PATIENCE)


def main() -> None:
    """Entry of `python -m hasten.learn.parallel FOLDER RANK`: take part in a training."""
    from hasten import metrics, plan
    from hasten.data.source import Arrays
    from hasten.learn.loop import fit

    place, rank = Path(sys.argv[1]), int(sys.argv[2])
    job = json.loads((place / "job.json").read_text())
    settings = plan.make_settings(job["technique"], job["settings"])
    columns = {name: np.load(place / f"{number}.npy", mmap_mode="r") for number, name in enumerate(job["columns"])}
    labels = np.load(place / "labels.npy") if (place / "labels.npy").exists() else None
    samples = Arrays(columns)
    split = Split(samples, labels, np.arange(len(samples)))
    metric = next((m for m in metrics.METRICS if m.name == job["metric"]), without_data().metric)
    teacher = Model.load(place / "teacher.onnx") if (place / "teacher.onnx").exists() else None
    task = dataclasses.replace(without_data(), train=split, metric=metric, output=job["output"], teacher=teacher)
    model = Model.load(place / "model.onnx")
    trainee = importlib.import_module(f"hasten.learn.{job['technique']}").prepare(model, settings, task)
    (place / f"{rank}.ready").touch()
    _join(place, rank, settings.processes)
    begun = place / CHECKPOINT
    fit(trainee, split, settings, task, "", Team(rank, settings.processes, begun if begun.exists() else None))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
