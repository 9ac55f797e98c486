"""Quantization: observers and calibration, static and dynamic int8. One arithmetic: `numerics`."""

VARIANTS = (
    ("static minmax", {"method": "minmax"}),
    ("static mse", {"method": "mse"}),
    ("static percentile", {"method": "percentile"}),
    ("static mse attention", {"method": "mse", "attention": True}),
)
"""Settings of quantize_static that the search tries, by name."""
