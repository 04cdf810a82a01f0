"""The semi-supervised VAE (M2): labels are latent where they are missing."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from vi_jax.distributions import Categorical
from vi_jax.models.conditional import Conditional
from vi_jax.types import Array, Component, Key, Params


class SemiSupervised(NamedTuple):
    """p(y) p(x, z | y), with q(z | x, y) and a classifier q(y | x), for one example."""

    init: Callable[[Key, Array], Params]  # from one example x
    given: Conditional  # one-hot y -> the Model of p(x, z | y) over the same Params
    classifier: Callable[[Params, Array], Categorical]  # q(y | x)
    log_prior: np.ndarray  # [c], log p(y)


def m2(
    conditional: Conditional, classifier: Component, class_probs: Sequence[float]
) -> SemiSupervised:
    """M2 from a conditional model, a network x -> logits [c], and p(y), c numbers.

    params are those of the conditional model and "classifier".
    Raises ValueError where class_probs is no distribution over 2 or more classes, all
    of them possible, and from `init` where the logits have another shape.
    Ref: Kingma et al. 2014, arXiv:1406.5298.
    """
    probs = np.asarray(class_probs, np.float32)
    if probs.ndim != 1 or probs.size < 2 or not np.all(probs > 0):
        raise ValueError(f"class_probs must be 2 or more positive numbers, got {probs}")
    if abs(probs.sum() - 1) > 1e-4:
        raise ValueError(f"class_probs must sum to 1, not to {probs.sum()}")
    log_prior = np.log(probs)

    def init(key: Key, x: Array) -> Params:
        key_p, key_q = jax.random.split(key)
        params = conditional(jax.nn.one_hot(0, len(log_prior))).init(key_p, x)
        params["classifier"] = classifier.init(key_q, x)
        shape = classifier.apply(params["classifier"], x).shape
        if shape != log_prior.shape:
            raise ValueError(
                f"the classifier gives logits {shape} for {len(log_prior)} classes"
            )
        return params

    def of(params: Params, x: Array) -> Categorical:
        return Categorical(classifier.apply(params["classifier"], x))

    return SemiSupervised(init, conditional, of, log_prior)
