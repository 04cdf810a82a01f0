"""What a semi-supervised model of images has learned, in numbers and pictures.

For `experiments.mnist_ssvae`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from scipy import special, stats

from experiments.ssvae_inputs import Data, Inputs
from vi_jax import evaluation, models, plots
from vi_jax.data.labels import MISSING
from vi_jax.models import SemiSupervised
from vi_jax.types import Array, Key, Params

NUM_SAMPLES = 50  # of z per image and class


def classifier(model: SemiSupervised) -> Callable[[Params, Array], np.ndarray]:
    """(params, x [n, d]) -> logits of q(y | x), [n, c]."""
    of = jax.jit(
        lambda params, x: jax.vmap(lambda x: model.classifier(params, x).logits)(x)
    )
    return lambda params, x: np.asarray(of(params, x), np.float64)


def report(
    params: Params, inputs: Inputs, model: SemiSupervised, data: Data, label: np.ndarray
) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Errors in %, calibration, what the model says of (x, y); and pictures.

    `label` is that of the training images, of which the MISSING ones are imputed.
    """
    classify = classifier(model)
    valid, test, train = (
        classify(params, inputs.classified(images))
        for images in (data.valid, data.test, data.train[label == MISSING])
    )
    temperature = evaluation.fit_temperature(valid, data.valid_label)
    probs = lambda logits, t: special.softmax(logits / t, axis=1)
    error = lambda scores, right: 100 * float(np.mean(scores.argmax(1) != right))
    ece = lambda probs, right: evaluation.expected_calibration_error(
        probs, right, num_bins=min(15, len(right))
    )
    hidden = data.train_label[label == MISSING]
    joint = log_joints(model, params, jnp.asarray(inputs.modelled(data.test)))
    log_px = special.logsumexp(joint, axis=1)
    n = np.arange(len(joint))
    others = (data.test_label + 1 + n % (data.num_classes - 1)) % data.num_classes
    surprise = lambda y: joint[n, y] - log_px  # log p(y | x) by Bayes' rule
    numbers = {
        "error": error(test, data.test_label),
        "valid_error": error(valid, data.valid_label),
        "imputed_error": error(train, hidden),
        "bayes_error": error(joint, data.test_label),
        "temperature": temperature,
        "ece": ece(probs(test, 1.0), data.test_label),
        "ece_calibrated": ece(probs(test, temperature), data.test_label),
        "ece_imputed": ece(probs(train, temperature), hidden),
        "log_px": float(log_px.mean()),
        "log_px_stderr": float(log_px.std(ddof=1) / np.sqrt(len(n))),
        "num_samples": NUM_SAMPLES,
        "pair_auroc": auroc(surprise(data.test_label), surprise(others)),
    }
    confidence = {
        "q(y | x)": probs(test, 1.0),
        f"calibrated, T = {temperature:.2f}": probs(test, temperature),
    }
    figures = pictures(params, inputs, model, data, test)
    figures["reliability.png"] = plots.reliability(
        confidence, data.test_label, num_bins=min(15, len(n))
    )
    return numbers, figures


def log_joints(model: SemiSupervised, params: Params, x: Array) -> np.ndarray:
    """log p(x, y) of every image and class, [n, c]."""

    def one(key: Key, x: Array) -> Array:
        return evaluation.class_log_joints(
            model.given, model.log_prior, params, key, x, num_samples=NUM_SAMPLES
        )

    keys = jax.random.split(jax.random.key(123), len(x))
    each = jax.jit(
        lambda keys, x: jax.lax.map(lambda a: one(*a), (keys, x), batch_size=50)
    )
    return np.asarray(each(keys, x), np.float64)


def auroc(right: np.ndarray, wrong: np.ndarray) -> float:
    """The probability that a right pair scores above a wrong one."""
    found = stats.mannwhitneyu(right, wrong).statistic
    return float(found / (len(right) * len(wrong)))


def pictures(
    params: Params,
    inputs: Inputs,
    model: SemiSupervised,
    data: Data,
    logits: np.ndarray,
) -> dict[str, Figure]:
    """Style and content apart, draws of each class, and odd pairs of (x, y).

    The last are test images whose label q(y | x) finds least likely, each beside its
    reconstruction as that label and as what q takes it for.
    """
    classes = jnp.eye(data.num_classes)
    as_images = lambda pixels: np.asarray(pixels).reshape(-1, *data.shape)
    likelihood = lambda y, z: inputs.as_image(
        model.given(y).likelihood(params, z).mean()
    )
    x, guess = jnp.asarray(inputs.modelled(data.test)), logits.argmax(1)

    def written_as(x: Array, y: Array, as_classes: Array) -> Array:
        z = model.given(y).posterior(params, x).mean()
        there = lambda c: models.moved(model.given, params, z, y, c)
        return jax.vmap(lambda c: likelihood(c, there(c)))(as_classes)

    def drawn(key: Key) -> Array:
        of = lambda y: likelihood(y, model.given(y).prior(params).sample(key))
        return jax.vmap(of)(classes)

    rows = np.arange(min(10, len(x)))
    hands = jax.vmap(written_as, (0, 0, None))(x[rows], classes[guess[rows]], classes)
    originals = data.test[rows, None].astype(np.float32) / 255
    draws = jax.vmap(drawn)(jax.random.split(jax.random.key(0), 10))
    log_q = special.log_softmax(logits, axis=1)[np.arange(len(x)), data.test_label]
    odd = np.argsort(log_q)[:40]
    pairs = jnp.stack([classes[data.test_label[odd]], classes[guess[odd]]], 1)
    decoded = jax.vmap(written_as)(x[odd], classes[guess[odd]], pairs)
    oddities = np.concatenate([data.test[odd, None] / 255, decoded], 1)
    return {
        "analogies.png": plots.image_grid(
            as_images(np.concatenate([originals, hands], 1)),
            columns=data.num_classes + 1,
        ),
        "samples.png": plots.image_grid(as_images(draws), columns=data.num_classes),
        "odd_pairs.png": plots.image_grid(as_images(oddities), columns=15),
    }


def classify_features(inputs: Inputs, data: Data, label: np.ndarray) -> dict[str, Any]:
    """M1: labels spread over the neighbourhoods of the features (scikit-learn)."""
    try:
        from sklearn.semi_supervised import LabelSpreading
    except ImportError as error:
        raise ValueError("m1 needs: pip install '.[applications]'") from error
    spread = LabelSpreading(kernel="knn", n_neighbors=10, alpha=0.2)
    with np.errstate(invalid="ignore"):  # of images that no label reaches
        spread.fit(inputs.columns["loc"], label)
    wrong = lambda image, right: (
        100
        * float(np.mean(spread.predict(np.asarray(inputs.classified(image))) != right))
    )
    return {
        "error": wrong(data.test, data.test_label),
        "valid_error": wrong(data.valid, data.valid_label),
    }
