"""taylor: how much the outputs change, to first order, when a channel is switched off. Gradients of the outputs alone, no labels.

A gate of 1 on a channel, before the weights that read it: ∂z/∂gate = Σ w ∂z/∂w over those weights' places (Molchanov et al., arXiv 1906.10771,
take the loss in place of z). Of a residual r drawn for each sample with E[r rᵀ] = F, E[(Σ w ∂(r·z)/∂w)²] = ∂z/∂gateᵀ F ∂z/∂gate, so one backward
pass serves all channels, and of a small batch too, since the draws of different samples are independent. F is the Fisher metric of what the model
ends in: for class scores r = onehot(y) − softmax(z) with y drawn from softmax(z) (Martens, arXiv 1412.1193); for other outputs r is normal.
"""

from __future__ import annotations

import numpy as np
import torch

from hasten.graph import Array
from hasten.learn.executor import build
from hasten.learn.objective import logits
from hasten.metrics import CLASSES
from hasten.shrink.groups import Coupled
from hasten.task import BoundTask
from hasten.voice import voice

BATCH = 8


def taylor(coupled: Coupled, task: BoundTask, samples: int, seed: int) -> dict[str, Array]:
    """By group: a score for each channel. Raises Unsupported where the model has an operator without a gradient here."""
    assert task.calibrate is not None
    model = coupled.model
    value, final = logits(model, task.output) if task.output in {p.name for p in model.outputs} else (model.outputs[0].name, "")
    executor = build(model, taps=(value,))
    executor.module.eval()
    classes = final == "Softmax" or task.metric.name in CLASSES
    generator = torch.Generator().manual_seed(seed)
    scores = {g.name: np.zeros(g.channels) for g in coupled.groups}
    seen, total = 0, min(samples, len(task.calibrate))
    for feeds in task.calibrate.batches(BATCH):
        if seen >= total:
            break
        voice().step("importance", seen, total)
        z = executor.module(*(torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in executor.inputs))[-1].float()
        seen += len(z)
        with torch.no_grad():
            if classes and z.ndim == 2 and z.shape[1] > 1:
                p = torch.softmax(z, 1)
                drawn = torch.multinomial(p, 1, generator=generator)
                r = torch.zeros_like(p).scatter_(1, drawn, 1.0) - p
            else:
                r = torch.randn(z.shape, generator=generator)
        executor.module.zero_grad(set_to_none=True)
        (r * z).sum().backward()
        moved = {name: (w.detach() * w.grad).double().numpy() for name, w in executor.weights.items() if w.grad is not None and w.ndim > 1}
        for group in coupled.groups:
            change = np.zeros(group.channels)
            for member in group.members:
                if member.reads and member.weight in moved:
                    along = np.moveaxis(moved[member.weight], member.axis, 0).reshape(moved[member.weight].shape[member.axis], -1).sum(1)
                    change += along[member.positions].sum(1)
            scores[group.name] += np.square(change)
    voice().step("importance", total, total)
    return {name: score / seen for name, score in scores.items()}
