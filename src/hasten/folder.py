"""The output folder: what is in it, how it is written so that nothing is ever half there, and how it is checked when read."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from hasten.errors import BadInput, ClaimFailed, HastenError, OutOfResources

MODEL, PACKED, C, ORIGINAL, PLAN, RECORDS, MANIFEST, RUN, REPORT, WORK = (
    "model.onnx",
    "model.packed",
    "c",
    "original.onnx",
    "plan.json",
    "records.jsonl",
    "manifest.json",
    "run.py",
    "report.html",
    ".work",
)
C_FILES = (f"{C}/model.h", f"{C}/model.c", f"{C}/model_test.c")
OURS = (MODEL, f"{MODEL}.data", PACKED, *C_FILES, ORIGINAL, f"{ORIGINAL}.data", PLAN, RECORDS, MANIFEST, RUN, REPORT, WORK)
FINISHED, UNFINISHED = "finished", "unfinished"
FIELDS = {"state", "chosen", "runtime", "target", "inputs", "outputs", "judged", "machine", "digests"}
"""What every manifest holds, finished or not."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclasses.dataclass(frozen=True)
class Folder:
    """An output folder of `hasten optimize`."""

    path: Path

    @property
    def work(self) -> Path:
        return self.path / WORK

    def file(self, name: str) -> Path:
        return self.path / name

    @property
    def state(self) -> str | None:
        """None: nothing of hasten's is here; else whether the run that made it was finished."""
        if not self.file(MANIFEST).exists():
            return UNFINISHED if self.file(RECORDS).exists() else None
        state: str = self.manifest()["state"]
        return state

    def manifest(self) -> dict[str, Any]:
        """Raises BadInput where there is none or it can't be read."""
        file = self.file(MANIFEST)
        if not file.is_file():
            raise BadInput(f"{self.path} has no {MANIFEST}; expected a folder that `hasten optimize` wrote")
        try:
            manifest: dict[str, Any] = json.loads(file.read_text())
        except ValueError as e:
            raise BadInput(f"{file} can't be read ({e}); make the folder again with `hasten optimize --force`") from e
        if not isinstance(manifest, dict) or not manifest.keys() >= FIELDS:
            raise BadInput(f"{file} is not a manifest of hasten; make the folder again with `hasten optimize --force`")
        return manifest

    def prepare(self, force: bool) -> None:
        """Make the folder, or with `force` clear what hasten wrote there. Raises BadInput, and changes nothing, where that can't be."""
        if self.path.exists() and not self.path.is_dir():
            raise BadInput(f"{self.path} is a file; -o expects a folder")
        if self.path.exists() and self.state is None and any(self.path.iterdir()):
            raise BadInput(f"{self.path} is not empty and not hasten's; give -o a new folder")
        try:
            if force and self.path.exists():
                self.clear()
            self.work.mkdir(parents=True, exist_ok=True)
            probe = self.work / f"probe.{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as e:
            raise unwritable(self.path, e, "give -o a folder that can") from e

    def clear(self) -> None:
        """Remove what hasten wrote, and nothing else."""
        for name in OURS:
            path = self.file(name)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if self.file(C).is_dir() and not any(self.file(C).iterdir()):
            self.file(C).rmdir()

    def write(self, name: str, text: str) -> None:
        """Write a text file atomically."""
        write_atomically(self.file(name), text.encode())

    def check(self) -> dict[str, Any]:
        """The manifest, once every file's digest was found to agree; raises ClaimFailed naming the file that does not."""
        manifest = self.manifest()
        for name, expected in manifest["digests"].items():
            file = self.file(name)
            if not file.is_file():
                raise ClaimFailed(f"{self.path}: {name} is missing; the manifest lists it")
            if (found := file_digest(file)) != expected:
                raise ClaimFailed(f"{self.path}: {name} has digest {found[:12]}…, the manifest says {expected[:12]}…: it was changed")
        return manifest


def unwritable(place: str | Path, error: OSError, instead: str) -> HastenError:
    """What to raise where a place can't be written: OutOfResources if the disk is full, else BadInput."""
    if error.errno in FULL:
        return OutOfResources(f"{place} can't be written ({error.strerror}); free space and run the same command again")
    return BadInput(f"{place} can't be written ({error.strerror}); {instead}")


def write_atomically(path: Path, data: bytes) -> None:
    """All or nothing: a full disk or a kill leaves the file as it was. Raises OutOfResources when it can't be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        raise OutOfResources(f"{path.name} can't be written: {e.strerror}; nothing finished was lost, run the same command again") from e
    finally:
        temporary.unlink(missing_ok=True)


def file_digest(path: Path) -> str:
    """SHA-256 of the file's bytes."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
