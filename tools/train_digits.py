"""Makes what travels with the package: scikit-learn's handwritten digits at 28 × 28 and a LeNet-like CNN trained on them.

    python tools/train_digits.py

Writes src/hasten/models/digits.npz (uint8 0..255, x_train, y_train, x_test, y_test) and digits_cnn.onnx (batch norm kept, input 0..1).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from training import LeNetLike, train

from hasten.doors import load

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "src" / "hasten" / "models"
SIZE = 28


def digits() -> dict[str, np.ndarray]:
    """The 1,797 scans (8 × 8, 0..16) scaled to 28 × 28 bytes (bilinear); a seeded third is the test split."""
    bunch = load_digits()
    scans = (bunch.images * 255 / 16).astype(np.uint8)
    images = np.stack([np.asarray(Image.fromarray(s).resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for s in scans])
    order = np.random.default_rng(0).permutation(len(images))
    test, rest = order[:600], order[600:]
    labels = bunch.target.astype(np.int64)
    return {"x_train": images[rest], "y_train": labels[rest], "x_test": images[test], "y_test": labels[test]}


def main() -> None:
    torch.set_num_threads(1)
    PLACE.mkdir(parents=True, exist_ok=True)
    data = digits()
    np.savez_compressed(PLACE / "digits.npz", **data)
    x, x_test = ((data[k][:, None].astype(np.float32) / 255) for k in ("x_train", "x_test"))
    torch.manual_seed(0)
    model = LeNetLike()
    log = ROOT / "tools" / "logs" / "digits_cnn.jsonl"
    accuracy = train(model, x, data["y_train"], x_test, data["y_test"], log, ROOT / "build" / "digits_cnn.pt", epochs=15, batch=64)
    model.eval()
    load(model, example_inputs=x[:2]).model.save(PLACE / "digits_cnn.onnx")
    print(f"test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
