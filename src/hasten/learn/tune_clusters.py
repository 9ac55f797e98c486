"""tune_clusters: the numbers of the code books are trained, every weight keeping its code. Effect: trained.

It starts from what `cluster_weights` makes of the model: the weights of a layer are c[k(w)], c its code book. Then the loss is minimised over the
c (and whatever was not clustered), the codes k and the exact zeros staying as they are (Han et al., Deep Compression, arXiv 1510.00149, section
3.3). A step moves all weights of one code alike: each gets the mean of their gradients,

    g(w) = 1/n Σ_{k(v) = k(w)} ∂L/∂v,

which is the gradient projected onto the weights that the codes allow, and for AdamW, blind to its scale, the paper's sum.

The model as it came, not clustered, teaches: T² KL(softmax(v/T) ‖ softmax(z/T)) to its scores v (arXiv 1503.02531), no labels needed; or another
teacher does. A model that is clustered already keeps its clusters, and needs another teacher, or labels (`hard`).

When: behind pruning and its recovery, in place of `cluster-weights` where few bits (2 to 4) cost accuracy and there is data to train on.
Cost: a step takes hardly longer than one of `distill`; a few epochs are enough. Nothing at run time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from hasten.errors import BadInput
from hasten.graph import finish
from hasten.learn import job
from hasten.learn.executor import build
from hasten.learn.guided import guide
from hasten.learn.loop import Loop, Trainee
from hasten.learn.objective import logits
from hasten.learn.zeros import zeros
from hasten.model import Model
from hasten.shrink.cluster_weights import ClusterWeights, cluster_weights, clustered
from hasten.task import BoundTask


@dataclasses.dataclass(frozen=True)
class TuneClusters(Loop):
    __doc__ = (Loop.__doc__ or "") + (
        "\n    `bits`, `bits_conv`, `bits_bias`, `start`, `samples`, `exclude`: of the clustering that it starts from (see cluster-weights); "
        "training\n    samples calibrate. `soft`: the weight of the unclustered model's scores (of the teacher's, where there is one) at "
        "`temperature`;\n    `hard`: that of the task's own loss.\n"
    )
    weight_decay: float = 0.0
    bits: int = 4
    bits_conv: int = 0
    bits_bias: int = 0
    start: str = "optimal"
    samples: int = 128
    exclude: tuple[str, ...] = ()
    temperature: float = 4.0
    soft: float = 1.0
    hard: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sparsity or self.pattern != "unstructured":
            raise BadInput(
                "tune_clusters: codes stay as they are, so nothing is pruned here; prune before, and leave --sparsity and --pattern out"
            )
        for name in ("soft", "hard"):
            if getattr(self, name) < 0:
                raise BadInput(f"tune_clusters: the weight {name} is {getattr(self, name)}, expected 0 (none) or more")
        if not self.soft and not self.hard:
            raise BadInput("tune_clusters: soft and hard are both 0; give at least one of them a weight")
        if not self.temperature > 0:
            raise BadInput(f"tune_clusters: temperature is {self.temperature}, expected a number above 0")
        self.clustering()

    def clustering(self) -> ClusterWeights:
        """The settings of the clustering that this training starts from."""
        return ClusterWeights(self.bits, self.bits_conv, self.bits_bias, self.start, self.samples, self.exclude)


def tune_clusters(model: Model, settings: TuneClusters, task: BoundTask | None) -> Model:
    """The clustered model, its code books trained. Raises Refused without training data, and what `loop.fit` raises."""
    trainee, trained = job.run("tune_clusters", prepare, model, settings, task)
    settings = job.as_it_ran(settings, trained)
    assert isinstance(trainee, Tuned)
    notes = [*trainee.start.history[-1].skipped, *trainee.zeros.notes()]
    return finish(model, trainee.executor.into(trainee.start), settings, "tune_clusters", len(trainee.clusters.names), notes)


def prepare(model: Model, settings: TuneClusters, task: BoundTask) -> Tuned:
    """The clustered graph as a module, and the model as it came as its teacher."""
    split = job.training_data("tune_clusters", task)
    seen = dataclasses.replace(task, calibrate=job.spread(split, settings.samples), observation=None)
    start = cluster_weights(model, settings.clustering(), seen)
    if settings.soft and task.teacher is None and not start.history[-1].changed:
        raise BadInput(
            "tune_clusters: there is nothing left to cluster, so the model would teach itself what it does already; give --teacher, the model "
            "before it was clustered, say, or --soft 0 --hard 1 for the labels"
        )
    value, final = logits(start, task.output)
    executor = build(start, taps=(value,) if final else ())
    judged = executor.outputs.index(task.output)
    losses, teach = guide("tune_clusters", model, task, executor, len(executor.outputs) - 1 if final else judged, settings)
    clusters = Clusters({name: executor.weights[name] for name in clustered(start, settings.clustering()) if name in executor.weights})
    held = zeros("tune_clusters", start, executor.weights, settings)
    return Tuned(executor, losses, judged, teach=teach, zeros=held, tied=clusters, start=start, clusters=clusters)


class Clusters:
    """Weights that share a number when a training begins share one in every step of it; exact zeros stay."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        self._shared = {name: _Shared(p.detach()) for name, p in parameters.items()}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._parameters)

    def tensors(self) -> Iterator[Tensor]:
        for shared in self._shared.values():
            yield from (shared.at, shared.codes, shared.first, shared.counts)

    def share_gradients(self) -> None:
        """Each weight gets the mean gradient of its cluster."""
        for name, shared in self._shared.items():
            gradient = self._parameters[name].grad
            if gradient is not None:
                shared.put(gradient, torch.bincount(shared.codes, gradient.flatten()[shared.at], len(shared.first)) / shared.counts)

    def tie(self, tensors: Mapping[str, Tensor]) -> None:
        """Give each weight the number of its cluster's first, in tensors by the parameters' names: vector arithmetic may round a last digit
        of equal numbers differently."""
        with torch.no_grad():
            for name, shared in self._shared.items():
                shared.put(tensors[name], tensors[name].flatten()[shared.first])


class _Shared:
    """at: flat places of the weights that are not zero; codes: the cluster of each; first: the place of each cluster's first; counts: sizes."""

    def __init__(self, weight: Tensor) -> None:
        flat = weight.numpy().ravel()
        at = np.flatnonzero(flat)
        _, first, codes, counts = np.unique(flat[at], return_index=True, return_inverse=True, return_counts=True)
        self.at, self.codes, self.first = torch.from_numpy(at), torch.from_numpy(codes), torch.from_numpy(at[first])
        self.counts = torch.from_numpy(counts).to(weight.dtype)

    def put(self, target: Tensor, numbers: Tensor) -> None:
        """Write each cluster's number to all of its places, and zeros between."""
        filled = torch.zeros_like(target).flatten()
        filled[self.at] = numbers.to(target.dtype)[self.codes]
        target.copy_(filled.view(target.shape))


@dataclasses.dataclass(frozen=True, eq=False)
class Tuned(Trainee):
    """A trainee whose weights share numbers, and the clustered model that it began as."""

    start: Model = dataclasses.field(kw_only=True)
    clusters: Clusters = dataclasses.field(kw_only=True)
