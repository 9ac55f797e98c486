"""hasten makes a trained neural network faster and smaller on the machine where it runs, and proves it."""

from hasten.version import __version__

__all__ = ["__version__"]
