"""The forms of a report, and where one is written."""

from __future__ import annotations

import importlib
from pathlib import Path

from hasten.errors import BadInput, OutOfResources
from hasten.folder import OURS, REPORT, Folder, unwritable, write_atomically
from hasten.search.result import Result

FORMS = {"html": "page", "markdown": "markdown", "card": "card"}
"""Form of the report → the function that makes it, in the file of that name."""


def make(result: Result, form: str = "html") -> str:
    """The report as text. Raises BadInput for a form that does not exist."""
    known(form)
    text: str = getattr(importlib.import_module(f"hasten.report.{FORMS[form]}"), FORMS[form])(result)
    return text


def known(form: str) -> None:
    """Raises BadInput for a form that does not exist."""
    if form not in FORMS:
        raise BadInput(f"there is no report of form {form!r}; use one of {', '.join(FORMS)}")


def write(folder: str | Path, form: str = "html", out: str | Path | None = None) -> Path:
    """Make the report of a finished folder and write it: to `out`, else into the folder (only the page has a place there).

    The folder's digests are checked first (ClaimFailed). Raises BadInput where `out` can't be written, or is a file of the run's own.
    """
    known(form)
    place = Folder(Path(folder))
    place.check()
    target = Path(out) if out is not None else place.file(REPORT)
    if target.is_dir():
        raise BadInput(f"{target} is a folder; -o expects a file")
    if target.resolve().parent == place.path.resolve() and target.name in OURS and (target.name != REPORT or form != "html"):
        raise BadInput(f"{target.name} in {place.path} is the run's own file; give -o another name")
    text = make(Result.load(place.path), form)
    try:
        write_atomically(target, text.encode())
    except OutOfResources as e:
        cause = e.__cause__ if isinstance(e.__cause__, OSError) else OSError(str(e))
        raise unwritable(target, cause, "give -o a place that can") from e
    return target
