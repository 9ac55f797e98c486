"""What low rank, zeros and code books make of a model, untrained: `python benchmarks/low_rank.py`, some minutes.

factorize: the digits' CNN, and ResNet-20 on CIFAR-10's whole test set, by plain SVD and by the one that sees calibration samples.
packed: bytes of the digits' CNN as it is, with 90 % zeros, and clustered. Nothing is timed. One JSON line each in `results/low_rank.jsonl`.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "low_rank.jsonl"
MODELS = ROOT / "src" / "hasten" / "models"


def factorized(name: str, model: Any, bound: Any, shares: tuple[float, ...], smallest: int) -> Iterator[dict[str, Any]]:
    """Accuracy with every layer of at least `smallest` weights at each share of its MACs, without and with data."""
    from benchmarks.pruning import outputs

    from hasten import plan
    from hasten.search.candidates import GRAPH, Recipe
    from hasten.shrink.factorize import Factorize, factorize

    model = plan.run(Recipe("", GRAPH).plan(model), model, bound)[0]

    def accuracy(made: Any) -> float:
        return float(bound.metric.value(outputs(made, bound), bound.test.labels))

    whole = accuracy(model)
    for share in shares:
        settings = Factorize(keep_macs=share, smallest=smallest, time=False)
        plain, data = (accuracy(factorize(model, settings, task)) for task in (None, bound))
        yield {"what": "factorize", "model": name, "share": share, "original": whole, "plain": plain, "data": data}


def packed_sizes(model: Any) -> Iterator[dict[str, Any]]:
    """Bytes of the model: raw, packed, and as the packed file."""
    from hasten import packed
    from hasten.shrink.cluster_weights import ClusterWeights, cluster_weights
    from hasten.shrink.prune_weights import PruneWeights, prune_weights

    sparse = prune_weights(model, PruneWeights(0.9, first_last=True), None)
    made = {"as it is": model, "90 % zeros": sparse}
    made |= {f"90 % zeros, {bits} bits": cluster_weights(sparse, ClusterWeights(bits=bits), None) for bits in (5, 4)}
    for way, one in made.items():
        yield {"what": "packed", "model": "digits_cnn", "way": way, **dataclasses.asdict(packed.sizes(one))}


def main() -> None:
    from benchmarks.qat import bound_to

    from hasten.model import Model
    from hasten.task import Task

    digits = Model.load(MODELS / "digits_cnn.onnx")
    lines = [
        *factorized("digits_cnn", digits, Task(MODELS / "digits.npz").bind(digits), (0.5, 0.25, 0.1), 4096),
        *factorized("cifar10_resnet20", *bound_to("cifar10_resnet20"), (0.75, 0.5), 1000),
        *packed_sizes(digits),
    ]
    with RESULTS.open("a") as file:
        for line in lines:
            print(json.dumps(line), flush=True)
            file.write(json.dumps({**line, "date": datetime.date.today().isoformat()}) + "\n")


if __name__ == "__main__":
    main()
