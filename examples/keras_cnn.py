"""A Keras 3 CNN: trained on scikit-learn's digits, optimised, and run without Keras.

KERAS_BACKEND=torch python examples/keras_cnn.py     (needs the extra keras, and scikit-learn)
"""

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

import hasten

digits = load_digits()
x, y = (digits.images / 16).astype(np.float32)[..., None], digits.target  # (1797, 8, 8, 1), channels last
x_train, y_train, x_new, y_new = x[:897], y[:897], x[897:], y[897:]

block = [layers.Conv2D(32, 3, padding="same"), layers.BatchNormalization(), layers.ReLU()]
head = [layers.Conv2D(64, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten(), layers.Dense(10, activation="softmax")]
model = keras.Sequential([keras.Input((8, 8, 1)), *block, *head])
model.compile("adam", "sparse_categorical_crossentropy")
model.fit(x_train, y_train, epochs=8, verbose=0)

# Samples that training never saw: hasten splits them to calibrate, to choose and to judge.
task = hasten.Task((x_new, y_new), metric="accuracy")
result = hasten.optimize(model, task, max_drop=0.02, out="keras_cnn.hasten", force=True, say=print)
print(result.best.name, result.best.ratio or result.reason)
print("against Keras itself:", result.best.own_ratios)

fast = hasten.load("keras_cnn.hasten")  # numpy in, numpy out; Keras is not needed here
print(f"accuracy {np.mean(fast(x_new).argmax(1) == y_new):.4f} on {len(x_new)} digits")
