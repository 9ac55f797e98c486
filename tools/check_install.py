"""Install hasten from this checkout into fresh environments, with a compiler and without, as a user does; needs pip's index.

python tools/check_install.py
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOOK = "import hasten, importlib.util; print(hasten.__version__, 'with' if importlib.util.find_spec('hasten._native') else 'without', 'the engine')"


def install(place: Path, variables: dict[str, str]) -> str:
    """What a fresh environment has after `pip install .`; hasten's own dependencies are left out."""
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    python = place / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", ROOT], check=True, env={**os.environ, **variables})
    return subprocess.run([python, "-c", LOOK], cwd=place, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = install(Path(folder) / "compiled", {})
        print("with a compiler:", found)
        assert " with the engine" in found
        found = install(Path(folder) / "pure", {"CC": "/bin/false", "CXX": "/bin/false"})
        print("without:", found)
        assert " without the engine" in found


if __name__ == "__main__":
    main()
