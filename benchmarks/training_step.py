"""A training step of the executor against the same model written in torch: forward, loss, backward, step of SGD with momentum.

    python benchmarks/training_step.py                 # the three models, about ten minutes
    python benchmarks/training_step.py mlp --rounds 9

Each contestant (torch, executor; eager, compiled) has a process of its own, and in each round each of them makes a few steps, in an order that
is reversed every second round; what counts is the median of the rounds' ratios, over several sets of fresh processes. The executor's model is
what the torch door made of the module. The losses before and after the first update must agree, or nothing is compared.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
BUILT, RESULTS = ROOT / "build" / "training_step", ROOT / "benchmarks" / "results" / "training_step.jsonl"
CONTESTANTS = ("torch", "executor", "torch compiled", "executor compiled")
WARM_UP = 3
SECONDS = 0.7
"""A contestant's part of a round takes about this long, and at least one step."""


class Mlp(nn.Sequential):
    """784-128-10."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


class Block(nn.Module):
    """Two 3 × 3 convolutions and a shortcut; where the shape changes, a 1 × 1 convolution (He et al., arXiv 1512.03385, option B)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.one, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.two, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.short = (
            nn.Identity()
            if inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm1(self.one(x)))
        return torch.relu(self.norm2(self.two(y)) + self.short(x))


class ResNet20(nn.Sequential):
    def __init__(self) -> None:
        widths = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)] + [(64, 64, 1)] * 2
        super().__init__(
            nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), *(Block(*w) for w in widths),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip


class Inverted(nn.Module):
    """Expand, depthwise, project (Sandler et al., arXiv 1801.04381)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        widen = [nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()] if expand != 1 else []
        self.inner = nn.Sequential(
            *widen, nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(),
            nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x) if self.shortcut else self.inner(x)


class MobileNetV2(nn.Sequential):
    def __init__(self) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()]
        inputs = 32
        stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
        for expand, outputs, count, stride in stages:
            for number in range(count):
                layers.append(Inverted(inputs, outputs, stride if number == 0 else 1, expand))
                inputs = outputs
        layers += [
            nn.Conv2d(320, 1280, 1, bias=False),
            nn.BatchNorm2d(1280),
            nn.ReLU6(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(1280, 10),
        ]
        super().__init__(*layers)


MODELS = {"mlp": (Mlp, (128, 784)), "resnet20": (ResNet20, (128, 3, 32, 32)), "mobilenetv2": (MobileNetV2, (16, 3, 96, 96))}
"""Name → (module, shape of a batch)."""


def module_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name][0]()


def export(name: str) -> Path:
    """The module through hasten's torch door."""
    from hasten.doors import load

    BUILT.mkdir(parents=True, exist_ok=True)
    path = BUILT / f"{name}.onnx"
    load(module_of(name), example_inputs=np.zeros((2, *MODELS[name][1][1:]), np.float32)).model.save(path)
    return path


def work(name: str, contestant: str, threads: int) -> None:
    """A contestant: each line of standard input is a number of steps; the answer is the seconds a step, and the last loss."""
    torch.set_num_threads(threads)
    if contestant.startswith("torch"):
        module: Any = module_of(name)
        parameters, first = list(module.parameters()), False
    else:
        from hasten.learn.executor import build
        from hasten.model import Model

        executor = build(Model.load(BUILT / f"{name}.onnx"))
        module, parameters, first = executor.module, list(executor.weights.values()), True
    module.train()
    forward = torch.compile(module) if contestant.endswith("compiled") else module
    optimizer = torch.optim.SGD(parameters, 0.01, momentum=0.9)
    rng = np.random.default_rng(0)
    shape = MODELS[name][1]
    x = torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
    y = torch.from_numpy(rng.integers(0, 10, shape[0]))

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        output = forward(x)
        loss = nn.functional.cross_entropy(output[0] if first else output, y)
        loss.backward()
        optimizer.step()
        return loss

    print(json.dumps([step().item() for _ in range(WARM_UP)]), flush=True)
    for line in sys.stdin:
        count = int(line)
        start = time.perf_counter()
        for _ in range(count):
            loss = step()
        print(json.dumps([(time.perf_counter() - start) / count, loss.item()]), flush=True)


class Contestant:
    """A process that makes steps when asked."""

    def __init__(self, name: str, contestant: str, threads: int) -> None:
        command = [sys.executable, __file__, name, "--work", contestant, "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.losses: list[float] = self._answer()
        self.count = 1

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(map(str, self.process.args))} ended: see above")  # type: ignore[arg-type]
        return json.loads(line)

    def time(self) -> float:
        """Seconds a step."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{self.count}\n")
        self.process.stdin.flush()
        seconds: float = self._answer()[0]
        self.count = max(1, round(SECONDS / seconds))
        return seconds

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(name: str, sets: int, rounds: int, threads: int) -> dict[str, Any]:
    """Medians of the seconds a step and of the rounds' ratios."""
    export(name)
    found: dict[str, list[float]] = {c: [] for c in CONTESTANTS}
    for number in range(sets):
        running = {c: Contestant(name, c, threads) for c in CONTESTANTS}
        for contestant, process in running.items():
            # The second loss comes after one update. Later ones drift apart: through batch norm, float errors grow about forty times a step.
            if not np.allclose(process.losses[:2], running["torch"].losses[:2], rtol=1e-3):
                raise SystemExit(f"{name}: the losses of {contestant} are {process.losses}, torch's are {running['torch'].losses}")
        for process in running.values():
            process.time()  # learns how many steps a round takes
        for turn in range(rounds):
            order = list(CONTESTANTS) if turn % 2 == 0 else list(reversed(CONTESTANTS))
            for contestant in order:
                found[contestant].append(running[contestant].time())
        for process in running.values():
            process.end()
        print(f"  {name}: set {number + 1} of {sets}", file=sys.stderr)

    def ratio(one: str, other: str) -> float:
        return round(statistics.median(a / b for a, b in zip(found[one], found[other], strict=True)), 4)

    return {
        "model": name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "batch": MODELS[name][1][0],
        "threads": threads,
        "torch": torch.__version__,
        "sets": sets,
        "rounds": rounds,
        "ms": {c: round(1e3 * statistics.median(v), 3) for c, v in found.items()},
        "executor_to_torch": ratio("executor", "torch"),
        "compiled_to_torch": ratio("executor compiled", "torch"),
        "compiled_to_torch_compiled": ratio("executor compiled", "torch compiled"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), help=", ".join(MODELS))
    parser.add_argument("--sets", type=int, default=2, help="sets of fresh processes")
    parser.add_argument("--rounds", type=int, default=7, help="rounds in each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", choices=CONTESTANTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.models[0], given.work, given.threads)
        return
    lines = []
    for name in given.models:
        lines.append(measure(name, given.sets, given.rounds, given.threads))
        with RESULTS.open("a") as f:
            f.write(json.dumps(lines[-1]) + "\n")
        print(json.dumps(lines[-1]))
    if len(lines) > 1:
        print(f"geometric mean of executor / torch, eager: {statistics.geometric_mean(line['executor_to_torch'] for line in lines):.3f}")


if __name__ == "__main__":
    main()
