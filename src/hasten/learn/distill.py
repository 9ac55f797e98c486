"""distill: a student learns from a teacher, by losses that add up with weights. Effect: trained.

With scores z of the student and v of the teacher, T a temperature, h and g values inside them:

- `soft`: T² KL(softmax(v/T) ‖ softmax(z/T)); T² keeps the gradients' size (Hinton, Vinyals and Dean, arXiv 1503.02531);
- `hard`: the task's own loss on the labels; `scores`: mean (z − v)², the limit of `soft` for large T (Ba and Caruana, arXiv 1312.6184);
- `feature`: mean (A h − g)² / mean g², A a learned linear map of the channels (Romero et al., arXiv 1412.6550);
- `attention`: ‖ q(h)/‖q(h)‖ − q(g)/‖q(g)‖ ‖², q the mean of squares over channels, or of a Softmax over heads (arXiv 1612.03928);
- `gradient`: the same distance of the gradients of the teacher's largest score by the input (Jacobian matching, arXiv 1803.00443);
- `relation`: Huber loss of the distances between the samples of a batch, each scaled by their mean (arXiv 1904.05068).

When: the model is small and a larger or an ensemble of models does better; after pruning; without labels, the original teaching.
Cost: that of `train`, and one prediction of the teacher for each sample (for each sample and epoch with augmentation); `gradient` doubles it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional

from hasten.errors import BadInput, Refused
from hasten.graph import finish
from hasten.learn import job
from hasten.learn.batches import Batch
from hasten.learn.executor import Executor, build
from hasten.learn.loop import Loop, Trainee
from hasten.learn.objective import Objective, logits, task_loss
from hasten.learn.student import Student, make
from hasten.learn.teacher import Teacher
from hasten.learn.zeros import zeros
from hasten.model import Model, Skip
from hasten.task import BoundTask

WEIGHTS = ("soft", "hard", "scores", "feature", "attention", "gradient", "relation")
INNER = ("feature", "attention")


@dataclasses.dataclass(frozen=True)
class Distill(Loop):
    __doc__ = (
        (Loop.__doc__ or "")
        + """
    The weights of the losses: `soft` (teacher's scores at `temperature`), `hard` (labels), `scores`, `feature`, `attention`, `gradient`,
    `relation`. `pairs`: values of student and teacher for feature and attention, as student=teacher; none: matched by depth. `class_map`:
    where the classes differ, student's=teacher's number for each class that both know. `student`: narrow:0.5 keeps half of the model's
    channels, shallow:0.5 leaves out half of its blocks, and the model itself teaches what is left (learn/student.py).
    """
    )
    temperature: float = 4.0
    soft: float = 0.9
    hard: float = 0.1
    scores: float = 0.0
    feature: float = 0.0
    attention: float = 0.0
    gradient: float = 0.0
    relation: float = 0.0
    pairs: tuple[str, ...] = ()
    class_map: tuple[str, ...] = ()
    student: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise BadInput(f"distill: temperature is {self.temperature}, expected a number above 0")
        for name in WEIGHTS:
            if getattr(self, name) < 0:
                raise BadInput(f"distill: the weight {name} is {getattr(self, name)}, expected 0 (none) or more")
        if not any(getattr(self, name) for name in WEIGHTS):
            raise BadInput(f"distill: every weight is 0; give at least one of {', '.join(WEIGHTS)}")
        for text in self.pairs:
            if not all(text.partition("=")[::2]):
                raise BadInput(f"distill: the pair {text!r} is not understood; expected student's value=teacher's value")
        _class_map(self.class_map)
        if self.student:
            Student(self.student)
        if self.gradient and self.compile == "always":
            raise BadInput("distill: torch.compile has no second derivative, which `gradient` needs; leave --compile out")


def distill(model: Model, settings: Distill, task: BoundTask | None) -> Model:
    """The student, taught. Raises Refused without training data or teacher, BadInput for two students, and what `loop.fit` raises."""
    split = job.training_data("distill", task)
    assert task is not None
    if settings.student:
        if task.teacher is not None:
            raise BadInput("distill: --student makes the student of the model, which then is the teacher, and a teacher came too; give one")
        task, model = dataclasses.replace(task, teacher=model), make(model, settings.student)
    trainee, trained = job.run("distill", prepare, model, settings, task)
    settings = job.as_it_ran(settings, trained)
    notes = [*job.without_norm(model), *trainee.zeros.notes()]
    if settings.hard and split.labels is None:
        notes.append(Skip("", "the training data has no labels: the teacher alone taught"))
    return finish(model, trainee.executor.into(model), settings, "distill", len(trainee.executor.weights), notes)


def prepare(model: Model, settings: Distill, task: BoundTask) -> Trainee:
    """The student as a module, the teacher, and the sum of the losses."""
    teacher = task.teacher
    if teacher is None:
        raise Refused(
            "distill needs a teacher, and none came; give --teacher, or --student narrow:0.5 to make a student of the model itself"
        )
    split = job.training_data("distill", task)
    pairs = _pairs(model, teacher, settings) if any(getattr(settings, name) for name in INNER) else ()
    value, _ = logits(model, task.output)
    output = task.output if task.output in {p.name for p in teacher.outputs} else teacher.outputs[0].name
    taught, _ = logits(teacher, output)
    executor = build(model, taps=(value, *(mine for mine, _ in pairs)))
    names = (taught, *(theirs for _, theirs in pairs))
    teach = Teacher(teacher, executor.inputs, names, taught if settings.gradient else "")
    at = len(executor.outputs) - 1 - len(pairs)
    teach.check_scores("distill", executor, at, split, _class_map(settings.class_map))
    teach.get_ready(split, executor.inputs, settings)
    labels = task_loss(model, task, split, at) if settings.hard and split.labels is not None else None
    if labels is None and not any(getattr(settings, name) for name in WEIGHTS if name != "hard"):
        raise BadInput(
            "distill: the labels have the only weight, and the training data has none; give labels, or a weight such as --soft 1"
        )
    adapters = _adapters(executor, teach, task, at, len(pairs)) if settings.feature else {}
    return Trainee(
        executor,
        Taught(settings, at, len(pairs), labels, adapters),
        executor.outputs.index(task.output),
        more=adapters,
        teach=teach,
        input_gradients=bool(settings.gradient),
        zeros=zeros("distill", model, executor.weights, settings),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Taught:
    """The sum of the losses. The student's scores are output number `at`, its inner values follow; the teacher's come in the same order."""

    settings: Distill
    at: int
    pairs: int
    labels: Objective | None
    adapters: dict[str, nn.Parameter]

    def __call__(self, outputs: tuple[Tensor, ...], batch: Batch) -> Tensor:
        settings, z, v = self.settings, outputs[self.at].float(), batch.taught[0].float()
        mapped = _class_map(settings.class_map)
        mine, theirs = (z, v) if not mapped else (z[..., list(mapped)], v[..., list(mapped.values())])
        total = z.new_zeros(())
        if settings.soft:
            total = total + settings.soft * soft(mine, theirs, settings.temperature)
        if settings.hard and self.labels is not None:
            total = total + settings.hard * self.labels(outputs, batch)
        if settings.scores:
            total = total + settings.scores * functional.mse_loss(mine, theirs)
        inner = list(zip(outputs[self.at + 1 :], batch.taught[1:], strict=False))[: self.pairs]
        if settings.feature:
            total = total + settings.feature * sum(feature(h, g, self.adapters[str(i)]) for i, (h, g) in enumerate(inner)) / len(inner)
        if settings.attention:
            total = total + settings.attention * sum(attention(h, g) for h, g in inner) / len(inner)
        if settings.gradient:
            total = total + settings.gradient * gradient(z, v, batch.feeds[0], batch.taught[-1])
        if settings.relation:
            total = total + settings.relation * relation(*(inner[-1] if inner else (mine, theirs)))
        return total


def soft(z: Tensor, v: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(v/T) ‖ softmax(z/T)), a mean over all but the class axis. One score: the two classes of its sigmoid."""
    if z.shape[-1] == 1:
        z, v = torch.cat([z, torch.zeros_like(z)], -1), torch.cat([v, torch.zeros_like(v)], -1)
    q, p = ((x / temperature).flatten(0, -2) for x in (z, v))
    return temperature**2 * functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="batchmean", log_target=True)


def feature(h: Tensor, g: Tensor, adapter: Tensor) -> Tensor:
    """mean (A h − g)² / mean g², the channels first where there are more than three axes; the larger map is averaged to the smaller one's size."""
    if h.ndim == 4:
        h, g = _same_size(h, g)
        mapped = torch.einsum("nchw,dc->ndhw", h.float(), adapter)
    else:
        mapped = h.float() @ adapter.T
    return functional.mse_loss(mapped, g.float()) / g.float().square().mean().clamp(min=1e-12)


def attention(h: Tensor, g: Tensor) -> Tensor:
    """Squared distance of the normalised maps, a mean over the batch."""
    if h.ndim == 4:
        h, g = _same_size(h, g)
    return _distance(_map(h), _map(g))


def gradient(z: Tensor, v: Tensor, x: Tensor, taught: Tensor) -> Tensor:
    """Squared distance of the normalised gradients, of the score that is the teacher's largest, by the input."""
    chosen = z.flatten(1).gather(1, v.flatten(1).argmax(1, keepdim=True)).sum()
    (mine,) = torch.autograd.grad(chosen, x, create_graph=True)
    return _distance(mine.flatten(1), taught.flatten(1))


def relation(h: Tensor, g: Tensor) -> Tensor:
    """Huber loss of the pairwise distances, each set scaled by its mean."""

    def distances(x: Tensor) -> Tensor:
        found = torch.pdist(x.float().flatten(1))
        return found / found.mean().clamp(min=1e-12)

    return functional.smooth_l1_loss(distances(h), distances(g))


def _map(x: Tensor) -> Tensor:
    """(N, M): where the energy is. Channels first (N, C, ...): the mean of squares over the channels (or heads); else over the last axis."""
    squared = x.float().square()
    return (squared.mean(1) if x.ndim == 4 else squared.mean(-1)).flatten(1)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    a, b = functional.normalize(a.float(), dim=1), functional.normalize(b.float(), dim=1)
    return (a - b).square().sum(1).mean()


def _same_size(h: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps at the smaller height and width of the two."""
    size = (min(h.shape[2], g.shape[2]), min(h.shape[3], g.shape[3]))
    return tuple(x if x.shape[2:] == size else functional.adaptive_avg_pool2d(x, size) for x in (h, g))


def _adapters(executor: Executor, teach: Teacher, task: BoundTask, at: int, pairs: int) -> dict[str, nn.Parameter]:
    """One linear map for each pair, from the student's channels to the teacher's; the identity where they are as many."""
    assert task.train is not None
    positions = torch.arange(2).numpy()
    taken = task.train.samples.take(task.train.indices[positions])
    feeds = tuple(torch.from_numpy(taken[name]) for name in executor.inputs)
    executor.module.eval()
    with torch.no_grad():
        outputs, taught = executor.module(*feeds), teach(positions, feeds)
    generator = torch.Generator().manual_seed(0)
    adapters = {}
    for number in range(pairs):
        h, g = outputs[at + 1 + number], taught[1 + number]
        axis = 1 if h.ndim == 4 else -1
        if h.ndim != g.ndim:
            raise BadInput(f"distill: pair {number + 1} joins values of {h.ndim} and {g.ndim} axes; choose others with --pairs")
        rows, columns = g.shape[axis], h.shape[axis]
        start = torch.eye(rows) if rows == columns else torch.randn(rows, columns, generator=generator) / columns**0.5
        adapters[str(number)] = nn.Parameter(start)
    return adapters


def _pairs(model: Model, teacher: Model, settings: Distill) -> tuple[tuple[str, str], ...]:
    """The pairs that were named; else the ends of the layers at a third, two thirds and the end of the depth of each model."""
    if settings.pairs:
        named = tuple((text.partition("=")[0], text.partition("=")[2]) for text in settings.pairs)
        known = {o.name for node in model.ir.graph for o in node.outputs}
        if unknown := [mine for mine, _ in named if mine not in known]:
            raise BadInput(f"the student has no value {unknown[0]!r}; `hasten inspect` lists its layers")
        return named
    found: list[tuple[str, str]] = []
    for share in (1 / 3, 2 / 3, 1.0):
        mine, theirs = (_at_depth(list(_layers(m)), share) for m in (model, teacher))
        if mine is not None and theirs is not None and (mine, theirs) not in found:
            found.append((mine, theirs))
    if not found:
        raise BadInput("distill: no layers of student and teacher could be matched; name values with --pairs student=teacher")
    return tuple(found)


def _layers(model: Model) -> Iterator[str]:
    """What the activations behind layers with weights give, the last layer's scores left out."""
    behind = False
    for node in model.ir.graph:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            behind = True
        elif behind and node.op_type in ("Relu", "Clip", "LeakyRelu", "Gelu", "Sigmoid", "Tanh", "HardSwish", "LayerNormalization"):
            behind = False
            if _reads_on(node):
                yield node.outputs[0].name or ""


def _reads_on(node: ir.Node) -> bool:
    return not node.outputs[0].is_graph_output()


def _at_depth(layers: list[str], share: float) -> str | None:
    return layers[max(0, round(len(layers) * share) - 1)] if layers else None


def _class_map(texts: tuple[str, ...]) -> dict[int, int]:
    """`3=7` … as {3: 7}. Raises BadInput."""
    found = {}
    for text in texts:
        mine, _, theirs = text.partition("=")
        if not mine.isdecimal() or not theirs.isdecimal():
            raise BadInput(f"distill: the class map {text!r} is not understood; expected student's=teacher's class number, such as 0=3")
        found[int(mine)] = int(theirs)
    return found
