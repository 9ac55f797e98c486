"""What the training scripts share: a small loop with a log of JSON lines. Not part of the package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn


class LeNetLike(nn.Module):
    """Conv 5×5 (32) → batch norm → ReLU → pool → conv 5×5 (64) → batch norm → ReLU → pool → 1024 → 128 → 10."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 5), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(image))


class Mlp(nn.Module):
    """784 → 128 → 10."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image)


def train(
    model: nn.Module,
    x: np.ndarray,
    y: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    log: Path,
    checkpoint: Path,
    epochs: int,
    batch: int = 128,
    rate: float = 2e-3,
) -> float:
    """AdamW with a one-cycle rate on (N, 1, 28, 28) floats; resumes from its checkpoint. Returns the test accuracy."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-3)
    steps = -(-len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps * epochs)
    done = 0
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        done = state["epoch"]
    accuracy = evaluate(model, x_test, y_test)
    for epoch in range(done, epochs):
        model.train()
        order = torch.from_numpy(np.random.default_rng(epoch).permutation(len(x)))
        total = 0.0
        for start in range(0, len(x), batch):
            index = order[start : start + batch].numpy()
            loss = nn.functional.cross_entropy(model(torch.from_numpy(x[index])), torch.from_numpy(y[index]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(index)
        accuracy = evaluate(model, x_test, y_test)
        line = {"epoch": epoch + 1, "loss": round(total / len(x), 5), "test_accuracy": round(accuracy, 5)}
        with log.open("a") as f:
            f.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        torch.save(
            {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), "epoch": epoch + 1},
            checkpoint,
        )
    return accuracy


def evaluate(model: nn.Module, x: np.ndarray, y: np.ndarray) -> float:
    """Accuracy in eval mode."""
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(torch.from_numpy(x[i : i + 1000])).argmax(1).numpy() == y[i : i + 1000]).sum()) for i in range(0, len(x), 1000)
        )
    return right / len(x)
