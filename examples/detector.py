"""An object detector without labels and with a metric of one's own: the same boxes. HASTEN_DATA=../shared/data python examples/detector.py"""

import os
import zipfile

import numpy as np
from PIL import Image

import hasten

DATA, COUNT = os.environ["HASTEN_DATA"], int(os.environ.get("SAMPLES", 160))


def boxes(output):
    """FastestDet's grid (85, 22, 22) as corners (n, 4) in shares of the picture; boxes of different classes are moved far apart."""
    row, column = np.nonzero(output[0] ** 0.6 * output[5:].max(0) ** 0.4 > 0.5)
    x, y, width, height = output[1:5, row, column]
    centre = np.stack([column + np.tanh(x), row + np.tanh(y)]) / output.shape[1] + 10 * output[5:, row, column].argmax(0)
    half = 0.5 / (1 + np.exp(-np.stack([width, height])))
    return np.concatenate([centre - half, centre + half]).T


def same_boxes(outputs, originals):
    """For each picture the share of both models' boxes that the other one has too, at an IoU of 0.5; 1 where neither has any."""
    shares = []
    for a, b in zip(map(boxes, outputs), map(boxes, originals), strict=True):
        both = (np.minimum(a[:, None, 2:], b[:, 2:]) - np.maximum(a[:, None, :2], b[:, :2])).clip(0).prod(-1)
        sizes = [(c[:, 2:] - c[:, :2]).prod(-1) for c in (a, b)]
        same = both >= 0.5 * (sizes[0][:, None] + sizes[1] - both)
        shares.append(np.mean([*same.any(1), *same.any(0)] or [1.0]))
    return np.array(shares)


with zipfile.ZipFile(f"{DATA}/imagenet_sample/imagenet_sample_even.zip") as archive:
    files = sorted(n for n in archive.namelist() if not n.endswith(".csv"))[:COUNT]
    pictures = np.stack([np.asarray(Image.open(archive.open(n)).resize((352, 352))) for n in files])  # (160, 352, 352, 3) bytes
task = hasten.Task(pictures, metric=same_boxes, preprocess="color=BGR")  # no labels: the metric gets the original's outputs
result = hasten.optimize(f"{DATA}/models/fastestdet.onnx", task, min_agreement=0.9, out="detector.hasten", force=True, say=print)
print(result.best.name, result.best.ratio or result.reason)
