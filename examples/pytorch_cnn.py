"""A PyTorch CNN for a server of two cores: two threads, batches of 16, throughput counts.

python examples/pytorch_cnn.py     (needs the extra torch, and scikit-learn)
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import hasten

digits = load_digits()
x, y = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], torch.tensor(digits.target)  # (1797, 1, 8, 8)

torch.manual_seed(0)
model = nn.Sequential(
    *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
    *(nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Flatten(), nn.Linear(576, 10)),
)
optimizer = torch.optim.Adam(model.parameters(), 2e-3)
for step in range(200):
    batch = slice(step * 64 % 832, step * 64 % 832 + 64)
    loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

task = hasten.Task((x[897:], y[897:]))
server = {"threads": 2, "batch": 16, "objective": "throughput", "max_drop": 0.02}
result = hasten.optimize(model.eval(), task, example_inputs=x[:2], out="pytorch_cnn.hasten", force=True, say=print, **server)
print(result.best.name, result.best.ratio or result.reason)
print("against torch itself:", result.best.own_ratios)

fast = hasten.load("pytorch_cnn.hasten")
print(f"accuracy {np.mean(fast(x[897:].numpy()).argmax(1) == y[897:].numpy()):.4f}")
