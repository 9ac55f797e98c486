"""Passes: the same function, a better graph. One technique a file."""
