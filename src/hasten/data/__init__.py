"""Data: where samples come from. `read` tries the forms below in order; each has a file of its own."""
