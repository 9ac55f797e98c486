"""zeros: weights that stay zero through a training, and weights that a training makes so, step by step.

**Zeros hold.** Where the history says that zeros are meant (`prune_weights`, `sparsify`, a training with a `sparsity`), every layer's weight that is
zero when a training begins is zero in every step of it: its gradient is zeroed before the clipping, the weight and its moving average after the
step. There is no file of masks: the history says that zeros are meant, and the weights say where.

**Gradual pruning** (Zhu and Gupta, arXiv 1710.01878). Of each layer the weights of the smallest magnitude are masked, a share that rises with the
step t from the end of the warm-up (t₀) to END of all steps (t₁):

    s_t = s (1 − (1 − (t − t₀) / (t₁ − t₀))³)

Depthwise convolutions stay dense, and so does a first or last layer with less than 5 % of the weights.

With the scope `global` or `adaptive` s is the share of all weights together, under one threshold, the small first and last layers among them: on
|w|, or on what a layer would lose of what is left of it (LAMP, Lee et al., arXiv 2010.07611), its weights in ascending order of magnitude:

    score(w_i) = w_i² / Σ_{j ≥ i} w_j²

The largest weight of each layer has the score 1, so no layer goes whole, and a weight of a small layer counts for more than one of a large layer.

The masks are renewed every RENEWED of the steps; between, masked weights are set to zero after each step. Their gradients go on until t₁, so one
that the loss pulls at can stand above the threshold at a renewal and come back. From t₁ on the masks are fixed, as held zeros are. Only epochs that
end behind t₁ are kept, and count for `patience` and `until`.

Everything follows from the weights, the step and the masks, which are in the checkpoint: a resumed training has the same bits, and so has each of
several processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from hasten.errors import Refused
from hasten.history import Skip, Step
from hasten.learn.device import beside
from hasten.shrink.masks import Pattern, mask, masks_of_all, pattern_of, share_of
from hasten.shrink.weights import Weight, small_ends, weights

if TYPE_CHECKING:
    from hasten.learn.loop import Loop
    from hasten.model import Model

END, RENEWED = 0.6, 0.01
"""Shares of all steps: where the final sparsity is reached (at the latest half way between the warm-up and the end), and between two renewals."""

MAKERS = ("prune_weights", "sparsify")


def meant(history: Iterable[Step]) -> bool:
    """Whether a step made zeros that are to stay."""
    return any(step.name in MAKERS or step.settings.get("sparsity") or ":" in str(step.settings.get("pattern", "")) for step in history)


@dataclasses.dataclass(frozen=True)
class Goal:
    """What a training's weights are to become: so large a share of zeros in this pattern, of each layer or of all together, after a warm-up."""

    pattern: Pattern
    share: float
    warm_up: float
    scope: str = "layer"

    def span(self, steps: int) -> tuple[int, int]:
        """(step after which pruning begins, step at which it is done), of so many."""
        end = max(1, round(max(END, (1 + self.warm_up) / 2) * steps))
        return min(round(self.warm_up * steps), end - 1), end

    def at(self, done: int, steps: int) -> float:
        """s_t after so many steps."""
        begin, end = self.span(steps)
        passed = min(max((done - begin) / (end - begin), 0.0), 1.0)
        return self.share * (1 - (1 - passed) ** 3)

    def renews(self, done: int, steps: int) -> bool:
        begin, _ = self.span(steps)
        return done > begin and (done - begin) % max(1, round(RENEWED * steps)) == 0


def goal_of(verb: str, settings: Loop) -> Goal | None:
    """The goal that the settings say, None for none. Raises BadInput."""
    pattern = pattern_of(verb, settings.pattern)
    share = share_of(verb, settings.sparsity or None, pattern)
    return None if share is None else Goal(pattern, share, settings.warm_up, settings.scope)


class Zeros:
    """The masks of a training. `masks`: True where a parameter is zero. `settled`: none of them changes any more."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter] | None = None,
        held: Mapping[str, Tensor] | None = None,
        goal: Goal | None = None,
        layers: Sequence[Weight] = (),
        skipped: Sequence[Skip] = (),
        names: Mapping[str, str] | None = None,
    ) -> None:
        """held: masks that never change. layers: the weights that are to reach the goal, by the names of their parameters. names: of the
        layers, for people, by the same.
        """
        self._parameters, self._goal, self._layers, self._skipped = dict(parameters or {}), goal, tuple(layers), tuple(skipped)
        self._held, self._names = dict(held or {}), dict(names or {})
        self.masks = dict(self._held)
        self.settled = goal is None

    def mask_gradients(self) -> None:
        for name, gone in (self.masks if self.settled else self._held).items():
            gradient = self._parameters[name].grad
            if gradient is not None:
                gradient.masked_fill_(gone, 0)

    def after_step(self, done: int, steps: int) -> None:
        """Renew the masks where it is time, and set to zero what they mask."""
        if self._goal is not None and not self.settled:
            if done >= self._goal.span(steps)[1]:
                self.settle()
            elif self._goal.renews(done, steps):
                self._renew(self._goal.at(done, steps))
        self.clear(self._parameters)

    def settle(self) -> None:
        """The final masks, at once where they are not yet reached."""
        if self._goal is not None and not self.settled:
            self._renew(self._goal.share)
            self.settled = True
            self.clear(self._parameters)

    def clear(self, tensors: Mapping[str, Tensor]) -> None:
        """Set to zero what is masked, in tensors by the parameters' names."""
        with torch.no_grad():
            for name, gone in self.masks.items():
                tensors[name].masked_fill_(gone, 0)

    def _renew(self, share: float) -> None:
        assert self._goal is not None
        matrices = [layer.matrix(self._parameters[layer.name].detach().abs().cpu().numpy()) for layer in self._layers]
        if self._goal.scope == "layer":
            chosen = [mask(m, self._goal.pattern, share) for m in matrices]
        else:
            chosen = masks_of_all(matrices, self._goal.pattern, share, adaptive=self._goal.scope == "adaptive")
        for layer, matrix in zip(self._layers, chosen, strict=True):
            gone = beside(torch.from_numpy(np.ascontiguousarray(layer.back(matrix))), self._parameters[layer.name])
            self.masks[layer.name] = gone | self._held[layer.name] if layer.name in self._held else gone

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold: the masks that are not there from the beginning."""
        return {layer.name: self.masks[layer.name] for layer in self._layers if layer.name in self.masks}

    def restore(self, masks: Mapping[str, Tensor], settled: bool) -> None:
        self.masks = {**self._held, **masks}
        self.settled = settled or self._goal is None

    def notes(self) -> list[Skip]:
        """What stayed dense, and how many weights are zero at the end, in sentences for the history."""
        if not self.masks and not self._skipped:
            return []
        zero, total = sum(int(m.sum()) for m in self.masks.values()), sum(m.numel() for m in self.masks.values())
        said = "reached zero" if self._goal is not None else "were zero before and stayed so"
        each = ", ".join(f"{self._names.get(name, name)} {float(m.float().mean()):.1%}" for name, m in self.masks.items())
        return [*self._skipped, Skip("", f"{zero} of {total} weights {said} ({zero / max(1, total):.1%}): {each}")]


def zeros(verb: str, model: Model, parameters: Mapping[str, nn.Parameter], settings: Loop, layers: Sequence[Weight] | None = None) -> Zeros:
    """What holds, and what is to become zero, when `model` is trained. layers: its weights under the names of the parameters, where those differ.

    Raises Refused where a sparsity is asked for and no layer can have it.
    """
    found, skipped = weights(model.ir.graph) if layers is None else (list(layers), [])
    trained = {w.name: w for w in found if w.name in parameters}
    names, held = {name: w.node for name, w in trained.items()}, {}
    if meant(model.history):
        held = {name: gone for name in trained if (gone := parameters[name].detach() == 0).any()}
    goal = goal_of(verb, settings)
    if goal is None:
        return Zeros(parameters, held, names=names)
    ends = small_ends(model.ir.graph, list(trained.values())) if goal.scope == "layer" else {}
    chosen = []
    for w in trained.values():
        if why := w.why or goal.pattern.refusal(w) or ends.get(w.node, ""):
            skipped.append(Skip(w.node, why))
        else:
            chosen.append(w)
    if not chosen:
        reasons = "; ".join(f"{s.node}: {s.why}" for s in skipped[:4])
        raise Refused(
            f"{verb}: there is nothing to prune to a sparsity of {goal.share:g} ({reasons or 'the model has no layer with weights'})"
        )
    return Zeros(parameters, held, goal, chosen, skipped, names)
