"""Live: the voice on a terminal. Sentences scroll; below them stand the table of candidates so far and a bar a stage with the time left."""

from __future__ import annotations

import dataclasses
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live as RichLive
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from hasten.report.numbers import seconds as spelled
from hasten.voice import Voice

SHOWN = 12
"""Candidates in the table, the fastest first; the others are counted."""


@dataclasses.dataclass
class _Row:
    seconds: float | None = None
    speed: float | None = None
    judged: tuple[str, float] | None = None
    note: str = ""


class Live(Voice):
    """A context manager around the job; what it shows last disappears when the job ends, sentences stay."""

    def __init__(self, verbose: bool = False, console: Console | None = None) -> None:
        self._verbose = verbose
        self._console = console or Console(highlight=False)
        self._rows: dict[str, _Row] = {}
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=self._console,
        )
        self._stages: dict[str, TaskID] = {}
        self._live = RichLive(console=self._console, get_renderable=self._picture, refresh_per_second=5, transient=True)

    def __enter__(self) -> Live:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)

    def detail(self, line: str) -> None:
        if self._verbose:
            self.say(line)

    def step(self, what: str, done: int, total: int) -> None:
        if what not in self._stages:
            self._stages[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._stages[what], completed=done, total=total)
        if done >= total:
            self._progress.remove_task(self._stages.pop(what))

    def candidate(
        self,
        name: str,
        seconds: float | None = None,
        speed: float | None = None,
        judged: tuple[str, float] | None = None,
        note: str = "",
    ) -> None:
        before = self._rows.get(name, _Row())
        self._rows[name] = _Row(
            before.seconds if seconds is None else seconds,
            before.speed if speed is None else speed,
            before.judged if judged is None else judged,
            note or before.note,
        )

    def _picture(self) -> Group:
        return Group(self._table(), self._progress) if self._rows else Group(self._progress)

    def _table(self) -> Table:
        metric = next((row.judged[0] for row in self._rows.values() if row.judged), "metric")
        table = Table("candidate", "time", "speed-up", metric, "", box=None, padding=(0, 2, 0, 0))
        rows = sorted(self._rows.items(), key=lambda item: -(item[1].speed or 0.0))
        for name, row in rows[:SHOWN]:
            table.add_row(
                name,
                spelled(row.seconds),
                f"× {row.speed:.2f}" if row.speed is not None else "–",
                f"{row.judged[1]:.4f}" if row.judged is not None else "–",
                Text(row.note, overflow="ellipsis", no_wrap=True),
                style="bold" if row.speed is not None and row.speed > 1 and not row.note else "dim" if row.note else "",
            )
        if len(rows) > SHOWN:
            table.add_row(f"… and {len(rows) - SHOWN} more")
        return table
