"""The Keras door, each conversion compared with Keras' own prediction (in the door's own process)."""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
import pytest
from keras import layers as kl

from hasten import check
from hasten.doors import load
from hasten.errors import BadInput, Unsupported
from hasten.runtimes import Target, get
from hasten.runtimes.keras import open_origin
from tests.conftest import operators


def cnn():
    image = keras.Input((16, 16, 3), name="image")
    x = kl.Conv2D(8, 3, padding="same", use_bias=False)(image)
    x = kl.ReLU()(kl.BatchNormalization()(x))
    y = kl.Activation("relu6")(kl.BatchNormalization()(kl.DepthwiseConv2D(3, padding="same")(x)))
    x = kl.MaxPooling2D()(kl.Add()([x, y]))
    x = kl.LeakyReLU()(kl.SeparableConv2D(8, 3, strides=2, padding="same")(x))
    x = kl.UpSampling2D()(kl.Cropping2D(1)(kl.ZeroPadding2D(1)(kl.Conv2DTranspose(4, 2, strides=2)(x))))
    x = kl.PReLU(shared_axes=[1, 2])(kl.AveragePooling2D(2, padding="same")(x))
    return keras.Model(image, kl.Dense(10, activation="softmax")(kl.Dropout(0.3)(kl.GlobalAveragePooling2D()(x))))


def attention():
    ids = keras.Input((12,), dtype="int32", name="ids")
    x = kl.Embedding(30, 16)(ids)
    x = kl.LayerNormalization()(kl.Add()([x, kl.MultiHeadAttention(2, 8)(x, x)]))
    return keras.Model(ids, kl.Dense(2)(kl.GlobalAveragePooling1D()(kl.Dense(16, activation="gelu")(x))))


def two_inputs():
    a, b = keras.Input((16, 4), name="a"), keras.Input((3,), name="b")
    x = kl.MaxPooling1D()(kl.Conv1D(8, 3, padding="causal", activation="elu")(a))
    x = kl.Dense(8, activation="swish")(kl.Normalization(mean=0.5, variance=2.0)(kl.Reshape((64,))(kl.Permute((2, 1))(x))))
    x = kl.Concatenate()([x, kl.Rescaling(1 / 255.0)(b)])
    return keras.Model([a, b], [kl.Dense(4)(x), kl.Multiply()([x, x])])


@pytest.mark.parametrize("make", [cnn, attention, two_inputs])
def test_keras_models_keep_their_predictions(make, tmp_path):
    model = make()
    model.save(tmp_path / "m.keras")
    loaded = load(tmp_path / "m.keras", workdir=tmp_path)
    assert any("compared with Keras' prediction at batch 1, 2, 5" in n for n in loaded.notes)
    rng = np.random.default_rng(1)
    feeds = {
        p.name: rng.integers(0, 30, (3, *p.shape[1:])).astype(p.dtype)
        if p.dtype == "int32"
        else rng.random((3, *p.shape[1:])).astype(p.dtype)
        for p in loaded.model.inputs
    }
    inputs = list(feeds.values())
    expected = model.predict(inputs if len(inputs) > 1 else inputs[0], verbose=0)
    found = check.oracle(loaded.model).run(None, feeds)
    for a, b in zip(expected if isinstance(expected, list) else [expected], found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    own = open_origin(loaded.origin.path, 1, compiled=False).run(feeds)
    np.testing.assert_allclose(next(iter(own.values())), found[0], atol=1e-4)
    session = get("torch").compile(loaded.model, Target(1))
    for a, b in zip(found, session.run(feeds).values(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())
    if make is cnn:
        assert operators(loaded.model).count("BatchNormalization") == 2
        assert loaded.model.inputs[0].shape == ("batch", 16, 16, 3)


def test_a_model_in_memory_goes_the_same_road():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3)])
    assert load(model).model.outputs[0].shape == ("batch", 3)


def test_recurrent_layers_lambdas_and_free_axes_are_refused_by_name(tmp_path):
    x = keras.Input((5, 4))
    keras.Model(x, kl.LSTM(3, name="memory")(x)).save(tmp_path / "lstm.keras")
    with pytest.raises(Unsupported, match=r"layer 'memory' \(LSTM\) is recurrent"):
        load(tmp_path / "lstm.keras")
    keras.Model(x, kl.Lambda(lambda t: t * 2, name="mine")(x)).save(tmp_path / "lambda.keras")
    with pytest.raises(Unsupported, match="Lambda"):
        load(tmp_path / "lambda.keras")
    free = keras.Input((None, 4), name="free")
    keras.Model(free, kl.Dense(3)(free)).save(tmp_path / "free.keras")
    with pytest.raises(Unsupported, match="no fixed size"):
        load(tmp_path / "free.keras")


def test_files_that_are_no_keras_model_are_refused(tmp_path):
    (tmp_path / "bad.keras").write_bytes(b"nonsense")
    with pytest.raises(BadInput, match="the Keras file can't be read"):
        load(tmp_path / "bad.keras")
    with pytest.raises(BadInput, match="does not exist or is empty"):
        load(tmp_path / "gone.keras")
