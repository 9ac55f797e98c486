"""`file.py:name`: a Python object of the user's own, for data, metrics and models. It runs the user's code, as the user asked."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from hasten.errors import BadInput


def is_reference(text: str) -> bool:
    """Whether the text is of the form `file.py:name`."""
    file, _, name = text.rpartition(":")
    return file.endswith(".py") and name.isidentifier()


def load_object(reference: str) -> Any:
    """The object `name` of `path/file.py:name`. Raises BadInput where file or name are missing, or the file raises."""
    file, _, name = reference.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise BadInput(f"{reference}: there is no file {file!r}; expected path/file.py:name")
    spec = importlib.util.spec_from_file_location(f"_hasten_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        raise BadInput(f"{reference}: the file raised {type(e).__name__}: {e}") from e
    finally:
        sys.path.pop(0)
    if not hasattr(module, name):
        raise BadInput(
            f"{reference}: the file has no {name!r}; it has {', '.join(n for n in vars(module) if not n.startswith('_')) or 'nothing'}"
        )
    return getattr(module, name)


def call(reference: str, function: Any, *arguments: Any) -> Any:
    """Call the user's function. Raises BadInput where it raises."""
    try:
        return function(*arguments)
    except Exception as e:
        raise BadInput(f"{reference} raised {type(e).__name__}: {e}") from e
