"""A model without labels: the original is the teacher, and 99 of 100 answers must stay the same.

python examples/no_labels.py
"""

from importlib import resources

import numpy as np

import hasten

place = resources.files("hasten") / "models"  # a CNN for handwritten digits, which travels with the package
with np.load(place / "digits.npz") as data:
    pictures = data["x_train"]  # (1197, 28, 28) bytes; no label is read

task = hasten.Task(pictures, preprocess="unit")
result = hasten.optimize(str(place / "digits_cnn.onnx"), task, min_agreement=0.99, out="no_labels.hasten", force=True, say=print)

best = result.best
print(best.name, best.ratio or result.reason)
if best.test:
    print(f"the same answer on {best.test['value']:.2%} of {best.test['samples']} new pictures: {best.verdict['state']}")
