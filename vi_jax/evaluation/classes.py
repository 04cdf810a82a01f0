"""Classes: Bayes' rule from a generative model, and calibrated probabilities."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vi_jax.evaluation.likelihood import log_likelihood
from vi_jax.math import known
from vi_jax.models import Conditional
from vi_jax.types import Array, Key, Params


def class_log_joints(
    conditional: Conditional,
    log_prior: Sequence[float],
    params: Params,
    key: Key,
    x: Array,
    *,
    num_samples: int = 500,
    chunk: int = 5,
) -> Array:
    """log p(x, y) = log p(x | y) + log p(y) of one example for every class, [c], nats.

    log p(x | y) by importance sampling from q(z | x, y), `num_samples` for each class
    and `chunk` of them held at a time. The softmax is Bayes' p(y | x), without any
    classifier; the logsumexp is log p(x); log p(x, y) of a pair that does not belong
    together is low. log_prior is [c], in nats.
    Raises ValueError as `log_likelihood` does, and where the prior's probabilities do
    not sum to 1. Ref: Kingma et al. 2014, arXiv:1406.5298.
    """
    for given in known(log_prior):
        if not abs(np.logaddexp.reduce(np.asarray(given, np.float64))) < 1e-3:
            raise ValueError(
                f"log_prior must be logarithms of probabilities that sum to 1, got "
                f"{given}"
            )
    log_prior = jnp.asarray(log_prior)
    classes = jnp.arange(log_prior.size)

    def of_class(key: Key, y: Array) -> Array:
        given = conditional(jax.nn.one_hot(y, log_prior.size))
        how = {"num_samples": num_samples, "chunk": chunk}
        return log_likelihood(given, params, key, x, **how).log_px

    return log_prior + jax.vmap(of_class)(jax.random.split(key, classes.size), classes)


def expected_calibration_error(
    probs: np.ndarray, label: np.ndarray, *, num_bins: int = 15
) -> float:
    """How far confidence is from accuracy, sum_b (n_b / n) |accuracy_b - confidence_b|.

    probs is [n, c], label [n]; the bins are of equally many examples, by the largest
    probability, so that none is empty; examples of equal confidence count alike, in
    whatever order they come. It is above 0 by chance alone, by some
    0.3 / sqrt(n / num_bins). Raises ValueError where the shapes do not fit, a row is
    no distribution or num_bins is not in [1, n].
    Ref: Guo et al. 2017, arXiv:1706.04599; Nguyen & O'Connor 2015, arXiv:1508.05154
    (bins of equal counts).
    """
    probs, label = _fitting(probs, label)
    if not 1 <= num_bins <= len(label):
        raise ValueError(f"num_bins must be in [1, {len(label)}], got {num_bins}")
    if not (np.all(probs >= 0) and np.allclose(probs.sum(1), 1, atol=1e-2)):
        raise ValueError("probs must be probabilities, rows that sum to 1: no logits")
    confidence, right = np.max(probs, 1), np.argmax(probs, 1) == label
    # Bins cut through ties, which would stand in the order of the data: each is given
    # the accuracy of all.
    _, group, size = np.unique(confidence, return_inverse=True, return_counts=True)
    accuracy = (np.bincount(group, right) / size)[group]
    excess = (accuracy - confidence)[np.argsort(confidence)]
    return float(
        sum(abs(b.sum()) for b in np.array_split(excess, num_bins)) / len(label)
    )


def fit_temperature(logits: np.ndarray, label: np.ndarray) -> float:
    """The T > 0 for which softmax(logits / T) gives the labels most probability.

    Fitted on held-out labels, it calibrates the confidence of a classifier and changes
    none of its decisions. logits is [n, c], label [n]; T is sought between exp(-5) and
    exp(5). Raises ValueError where the shapes do not fit.
    Ref: Guo et al. 2017, arXiv:1706.04599.
    """
    from scipy import optimize, special  # half of what importing vi_jax would take

    logits, label = _fitting(logits, label)

    def mean_nll(log_t: float) -> float:
        log_q = special.log_softmax(logits / np.exp(log_t), axis=1)
        return -np.mean(log_q[np.arange(len(label)), label])

    found = optimize.minimize_scalar(mean_nll, bounds=(-5.0, 5.0), method="bounded")
    return float(np.exp(found.x))


def _fitting(scores: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, label = np.asarray(scores, np.float64), np.asarray(label)
    if scores.ndim != 2 or label.shape != scores.shape[:1] or not label.size:
        raise ValueError(
            f"scores of shape {scores.shape} and labels of {label.shape} do not fit: "
            "needed are [n, c] and [n], n > 0"
        )
    if not np.issubdtype(label.dtype, np.integer):
        raise ValueError(f"labels must be integers, got {label.dtype}")
    if np.isnan(scores).any():
        raise ValueError(f"row {np.isnan(scores).any(1).argmax()} of scores has a NaN")
    if label.min() < 0 or label.max() >= scores.shape[1]:
        raise ValueError(f"a label is outside the {scores.shape[1]} classes")
    return scores, label
