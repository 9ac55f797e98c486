"""Quantization: observers and calibration, static and dynamic int8. One arithmetic: `numerics`."""

from typing import Any

VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (("static", {}), ("static attention", {"attention": True}))
"""Settings of quantize_static that the search tries, by name."""
