"""Metrics by their definitions, and the user's own in both kinds."""

import numpy as np
import pytest

from hasten.errors import BadInput
from hasten.metrics import AGREEMENT, METRICS, decide, resolve

BY_NAME = {m.name: m for m in METRICS}
SCORES = np.array([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]])
LABELS = np.array([0, 1, 1, 0])


def test_accuracy_of_classes_one_hot_and_binary_scores():
    accuracy = BY_NAME["accuracy"]
    assert accuracy.value(SCORES, LABELS) == 0.75
    assert accuracy.value(SCORES, np.eye(3)[LABELS]) == 0.75
    assert accuracy.value(np.array([0.9, 0.2, 0.6]), np.array([1, 0, 0])) == pytest.approx(2 / 3)
    assert accuracy.value(np.array([[-3.0], [2.0]]), np.array([0, 1])) == 1.0
    assert accuracy.chance(SCORES, LABELS) == 0.5


def test_the_others_agree_with_scikit_learn():
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 3, 200), rng.random((200, 3)).round(1)
    scores /= scores.sum(1, keepdims=True) + 1e-9
    assert BY_NAME["f1"].value(scores, labels) == pytest.approx(sk.f1_score(labels, scores.argmax(1), average="macro"))
    binary = rng.integers(0, 2, 200)
    assert BY_NAME["auc"].value(scores[:, 0], binary) == pytest.approx(sk.roc_auc_score(binary, scores[:, 0]))
    logits = rng.standard_normal((200, 3))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert BY_NAME["nll"].value(logits, labels) == pytest.approx(sk.log_loss(labels, p))
    x, y = rng.standard_normal((2, 50, 4))
    assert BY_NAME["mse"].value(x, y) == pytest.approx(sk.mean_squared_error(y, x))
    assert BY_NAME["rmse"].value(x, y) == pytest.approx(sk.mean_squared_error(y, x) ** 0.5)
    assert BY_NAME["cosine"].value(x, 3 * x) == pytest.approx(1)
    assert BY_NAME["top-5"].value(rng.random((50, 5)), rng.integers(0, 5, 50)) == 1.0


def test_agreement_is_of_classes_or_a_cosine():
    assert AGREEMENT.value(SCORES, SCORES + 1) == 1.0
    assert AGREEMENT.value(np.ones((3, 2, 4)), np.ones((3, 2, 4))) == pytest.approx(1)


def test_agreement_of_normalised_embeddings_is_the_cosine_and_not_a_class():
    x = np.random.default_rng(0).standard_normal((50, 16))
    embeddings = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    turned = np.roll(embeddings, 1, axis=1)
    assert AGREEMENT.value(turned, embeddings) == pytest.approx(float(np.mean((turned * embeddings).sum(1))))
    assert AGREEMENT.value(x, x + 1) == 1.0  # not normalised: these may be class scores


def test_a_function_of_the_user_is_of_either_kind(tmp_path):
    (tmp_path / "m.py").write_text(
        "import numpy as np\ndef each(o, y):\n    return (o.argmax(1) == y) * 1.0\ndef all_(o, y):\n    return float(np.mean(o))\n"
        "def odd(o, y):\n    return np.ones((2, 2))\n"
    )
    each = decide(resolve(f"{tmp_path}/m.py:each"), SCORES, LABELS)
    assert each.per_sample is not None
    assert each.value(SCORES, LABELS) == 0.75
    whole = decide(resolve(f"{tmp_path}/m.py:all_", higher_is_better=False), SCORES, LABELS)
    assert whole.whole_set is not None
    assert not whole.higher_is_better
    with pytest.raises(BadInput, match=r"gave shape \(2, 2\) for 4 samples"):
        decide(resolve(f"{tmp_path}/m.py:odd"), SCORES, LABELS)


def test_unknown_metrics_are_refused_with_what_there_is():
    with pytest.raises(BadInput, match="no metric 'acuracy'; use one of accuracy"):
        resolve("acuracy")
    with pytest.raises(BadInput, match="must be a name"):
        resolve(3)
