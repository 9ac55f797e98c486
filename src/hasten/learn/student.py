"""student: a smaller model of the teacher's kind, its weights inherited. No training, no data, no torch: what is left out is left out of the graph.

- `narrow:0.5` keeps half of the channels (units, heads, places of the hidden state) of every group that can lose some (shrink/groups.py): those of
  the largest L2 norm, each weight's share of it taken relative to the whole weight, so that no large layer speaks for all (Li et al., arXiv
  1608.08710; the sum over a group as in DepGraph, arXiv 2301.12900). At least one is left; 16 or more become a multiple of 8, which kernels like.
- `shallow:0.25` leaves out a quarter of the residual blocks whose input and output have the same shape (the block becomes its shortcut), spread
  evenly over the depth, for each kind of block apart, so that a transformer loses whole layers (Sanh et al., DistilBERT, arXiv 1910.01108). A model
  without such blocks loses hidden layers with their activation, where they map a shape to itself.

When: a user has one model and wants a smaller one; distillation then brings back what it can. Cost: the student starts far worse than the teacher.
"""

from __future__ import annotations

import dataclasses
import math

from hasten import check
from hasten.errors import BadInput, Refused
from hasten.graph import finish
from hasten.model import Model, Skip
from hasten.passes.fold_constants import FoldConstants, fold_constants
from hasten.shrink.blocks import Block, hidden_layers, remove, residual_blocks
from hasten.shrink.groups import Group, couple
from hasten.shrink.importance import magnitude, strongest
from hasten.shrink.keep import keep

ROUND = 8
"""Twice so many channels and more become a multiple of it."""


@dataclasses.dataclass(frozen=True)
class Student:
    """`recipe`: narrow:SHARE keeps that share of the channels, shallow:SHARE leaves out that share of the blocks; above 0, below 1."""

    recipe: str

    def __post_init__(self) -> None:
        if self.way not in ("narrow", "shallow") or not 0 < self.share < 1:
            raise BadInput(
                f"student {self.recipe!r} is not understood; expected narrow:SHARE (keeps that share of the channels) or shallow:SHARE "
                "(leaves out that share of the blocks), SHARE above 0 and below 1, such as narrow:0.5"
            )

    @property
    def way(self) -> str:
        return self.recipe.partition(":")[0]

    @property
    def share(self) -> float:
        try:
            return float(self.recipe.partition(":")[2])
        except ValueError:
            return math.nan


def make(teacher: Model, recipe: str) -> Model:
    """The student that `recipe` makes of the teacher; its last Step says what was left out and what could not be.

    Raises BadInput where the recipe is not understood, Refused where nothing can be left out.
    """
    settings = Student(recipe)
    # Exports compute shapes and transposed weights while running; folded, a channel can be followed through them.
    model = fold_constants(teacher, FoldConstants(), None)
    student = (narrow if settings.way == "narrow" else shallow)(model, settings)
    if student.fits_in_memory:
        check.oracle(student)
    return student


def narrow(model: Model, settings: Student) -> Model:
    """The model with that share of every group's channels."""
    coupled = couple(model)
    kept = {
        g.name: strongest(magnitude(coupled.model, g), count) for g in coupled.groups if (count := _count(g, settings.share)) < g.channels
    }
    if not kept:
        why = "; ".join(skip.why for skip in coupled.frozen[:2]) or "it has no layer between two others"
        raise Refused(f"student {settings.recipe}: no channels of this model can be left out ({why}); try shallow:{settings.share:g}")
    inexact = [
        Skip(g.node, f"{g.name}: narrowed, but not as if zeroed: {g.inexact}") for g in coupled.groups if g.name in kept and g.inexact
    ]
    return finish(coupled.model, keep(coupled, kept), settings, "student", len(kept), [*coupled.frozen, *inexact])


def _count(group: Group, share: float) -> int:
    """How many channels stay."""
    wish = share * group.channels
    rounded = ROUND * round(wish / ROUND) if wish >= 2 * ROUND else math.floor(wish + 0.5)
    return max(1, min(rounded, group.channels))


def shallow(model: Model, settings: Student) -> Model:
    """The model without that share of its residual blocks, or of its hidden layers where it has no such block."""
    edited = model.edit()
    blocks, skipped = residual_blocks(edited.graph)
    if not blocks:
        blocks = list(hidden_layers(edited.graph))
    chosen = _chosen(blocks, settings.share)
    if not chosen:
        found = f"{len(blocks)} of them are too few for this share" if blocks else "it has none"
        raise Refused(
            f"student {settings.recipe}: only residual blocks, or hidden layers, that map a shape to itself can be left out, and {found}; "
            f"try narrow:{1 - settings.share:g}"
        )
    remove(edited.graph, chosen)
    skipped += [Skip(b.name, "kept: others of its kind are left out") for b in blocks if b not in chosen]
    return finish(model, edited, settings, "student", len(chosen), skipped)


def _chosen(blocks: list[Block], share: float) -> list[Block]:
    """That share of the blocks of each kind; where there are too few of each, of all together."""
    kinds = [[b for b in blocks if b.kind == kind] for kind in dict.fromkeys(b.kind for b in blocks)]
    found = [b for kind in kinds for b in _spread(kind, math.ceil(share * len(kind) - 0.5))]
    return found or _spread(blocks, math.floor(share * len(blocks) + 0.5))


def _spread(blocks: list[Block], count: int) -> list[Block]:
    """So many of the blocks, at even distances."""
    return [blocks[int((i + 0.5) * len(blocks) / count)] for i in range(count)]
