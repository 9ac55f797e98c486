"""Passes: the same function, a better graph. One technique a file."""

CLEAN = (
    "cleanup",
    "fold_constants",
    "resolve_shapes",
    "fold_branches",
    "remove_noops",
    "fuse_operators",
    "simplify_algebra",
    "push_transposes",
    "fold_activations",
)
"""What every recipe begins with, in order."""

FOLD = ("fold_affine", "fold_batchnorm", "fold_scales", "merge_linear")
"""What follows where no training does."""
