"""The student in Keras 3, trained by Keras itself: `python in_keras.py DATA.npz OUT.keras EPOCHS` prints seconds of training and accuracy."""

import json
import os
import sys
import time

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np


def main(data: str, out: str, epochs: int) -> None:
    keras.utils.set_random_seed(0)
    with np.load(data) as arrays:
        x, y, x_test, y_test = (arrays[k] for k in ("x_train", "y_train", "x_test", "y_test"))
    x, x_test = (a.reshape(len(a), 28, 28).astype(np.float32) / 255 for a in (x, x_test))
    layers = [keras.Input((28, 28)), keras.layers.Flatten(), keras.layers.Dense(128, activation="relu"), keras.layers.Dense(10)]
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=loss, metrics=["accuracy"])
    start = time.perf_counter()
    model.fit(x, y, batch_size=128, epochs=epochs, verbose=0)
    seconds = time.perf_counter() - start
    model.save(out)
    print(json.dumps({"seconds": seconds, "accuracy": float(np.mean(model.predict(x_test, verbose=0).argmax(1) == y_test))}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
