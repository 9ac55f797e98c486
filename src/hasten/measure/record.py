"""Record: one thing that was measured, and the file that keeps them. Appended line by line, so that a kill loses nothing finished."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hasten.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Record:
    """What was measured (`kind`), of what (`subject`, the candidate's name), how (`method`), and what came out (`values`, SI units).

    `key` identifies the measurement: a resumed run takes the record instead of measuring again.
    """

    key: str
    kind: str
    subject: str
    method: str
    values: dict[str, Any]


class Records:
    """An append-only list of records, on disk as JSON lines where `path` is given. The last record of a key counts."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._by_key: dict[str, Record] = {}
        if path is not None and path.exists():
            self._read(path)

    def get(self, key: str) -> Record | None:
        return self._by_key.get(key)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._by_key.values())

    def __len__(self) -> int:
        return len(self._by_key)

    def add(self, record: Record) -> Record:
        """Keep the record; on disk it is whole or absent, and there before this returns."""
        self._by_key[record.key] = record
        if self._path is not None:
            with self._path.open("ab") as f:
                f.write(json.dumps(dataclasses.asdict(record), sort_keys=True).encode() + b"\n")
                f.flush()
                os.fsync(f.fileno())
        return record

    def _read(self, path: Path) -> None:
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = Record(**json.loads(line))
            except (ValueError, TypeError) as e:
                raise BadInput(f"{path.name}, line {number}, is not a record ({e}); use --force to start afresh") from e
            self._by_key[record.key] = record
        if len(whole) != len(text):
            # A kill in the middle of a write leaves half a line: that measurement was not finished.
            with path.open("r+b") as f:
                f.truncate(len(whole))
