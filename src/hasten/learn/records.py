"""records: what a training wrote down of itself, read without torch."""

from __future__ import annotations

from hasten.measure.record import Records

RECORDS = "training.jsonl"
"""In the training's folder: a Record of kind `epoch` for each epoch, and one of kind `training` at the end."""


def time_to(records: Records, value: float, higher_is_better: bool = True) -> float | None:
    """Seconds of training until the metric on `validate` first reached `value`, None if it never did."""
    spent = 0.0
    for record in sorted((r for r in records if r.kind == "epoch"), key=lambda r: r.values["epoch"]):
        spent += record.values["seconds"]
        reached = record.values["value"]
        if reached is not None and (reached >= value if higher_is_better else reached <= value):
            return spent
    return None
