"""benchmark: contestants side by side, in rounds of fresh processes, with the noise floor measured the same way."""

from __future__ import annotations

import dataclasses
import statistics as stats
from collections.abc import Sequence
from typing import Any

from hasten.measure import judge
from hasten.measure.contestant import Contestant
from hasten.measure.cost import check_price, price_per_million
from hasten.measure.judge import Failure, Timing
from hasten.measure.statistics import Interval, noise_floor, ratio_interval
from hasten.measure.worker import Arrays
from hasten.voice import voice


@dataclasses.dataclass(frozen=True)
class Standing:
    """One contestant: medians over its processes (seconds, bytes), and `ratio`: how many times faster than the first one. `failed`: why not.

    `price_per_million`: of a million predictions, computed where a price was given.
    """

    name: str
    seconds: float | None = None
    percentiles: dict[str, float] | None = None
    throughput: float | None = None
    peak_memory: int | None = None
    load_seconds: float | None = None
    size: int | None = None
    ratio: Interval | None = None
    failed: str = ""
    price_per_million: float | None = None


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Standings in the order given, and the A/A noise floor as a share: differences below it say nothing."""

    standings: tuple[Standing, ...]
    noise_floor: float
    rounds: int
    price_per_hour: float | None = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def benchmark(
    contestants: Sequence[Contestant],
    feeds: Sequence[Arrays],
    rounds: int = judge.PAIRS,
    price_per_hour: float | None = None,
) -> Benchmark:
    """Measure them all. `feeds`: one batch for each. The first is run twice a round: its second run gives the noise floor.

    Raises BadInput for a price that makes no sense.
    """
    if price_per_hour is not None:
        check_price(price_per_hour)
    entries = [*zip(contestants, feeds, strict=True), (contestants[0], feeds[0])]
    measured: list[list[Timing | Failure]] = [[] for _ in entries]
    for turn in range(rounds):
        order = range(len(entries)) if turn % 2 == 0 else reversed(range(len(entries)))
        for i in order:
            measured[i].append(judge.time_once(entries[i][0].subject, entries[i][1]))
        voice().step("rounds of fresh processes", turn + 1, rounds)
    first = measured[0]
    standings = tuple(_standing(c, times, first, price_per_hour) for c, times in zip(contestants, measured[:-1], strict=True))
    floor = noise_floor(_pairs(first, measured[-1])) if not standings[0].failed else float("nan")
    return Benchmark(standings, floor, rounds, price_per_hour)


def _standing(contestant: Contestant, times: list[Timing | Failure], first: list[Timing | Failure], price: float | None) -> Standing:
    good = [t for t in times if isinstance(t, Timing)]
    if len(good) < len(times):
        return Standing(contestant.name, failed=next(t.reason for t in times if isinstance(t, Failure)))
    seconds = stats.median(t.seconds for t in good)
    pairs = _pairs(first, times)
    return Standing(
        contestant.name,
        seconds,
        {q: stats.median(t.percentiles[q] for t in good) for q in good[0].percentiles},
        contestant.subject.target.batch / seconds,
        round(stats.median(t.peak_memory for t in good)),
        stats.median(t.load_seconds for t in good),
        contestant.subject.path.stat().st_size,
        ratio_interval(pairs) if len(pairs) == len(times) else None,
        price_per_million=None if price is None else price_per_million(seconds, contestant.subject.target.batch, price),
    )


def _pairs(one: list[Timing | Failure], other: list[Timing | Failure]) -> list[tuple[float, float]]:
    return [(a.seconds, b.seconds) for a, b in zip(one, other, strict=True) if isinstance(a, Timing) and isinstance(b, Timing)]
