"""Maximum likelihood: the empirical log-likelihood, its closed-form maxima, its loss.

The mean of log p(x_i) over a data set is -H(data) - KL(data || p): to maximise the one
is to minimise the other.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vi_jax.distributions import (
    Distribution,
)
from vi_jax.types import Array, Batch, Key, LossFn, Metrics, Params


def log_likelihood(d: Distribution, x: Array) -> Array:
    """The empirical log-likelihood, mean_i log d(x_i) over x [n, ...], [] in nats."""
    return jnp.mean(jax.vmap(d.log_prob)(x))


def negative_log_likelihood(
    distribution: Callable[[Params], Distribution],
    *,
    preprocess: Callable[[Key, Batch], Array] = lambda key, batch: batch["x"],
) -> LossFn:
    """-mean_i log p(x_i; params) of a batch, in nats; lower is better.

    `distribution(params)` is the model's p(x), such as `ExactModel.marginal`;
    `preprocess(key, batch) -> x [n, ...]`. The metric is `log_likelihood`.
    """

    def loss(params: Params, key: Key, batch: Batch) -> tuple[Array, Metrics]:
        value = log_likelihood(distribution(params), preprocess(key, batch))
        return -value, {"log_likelihood": value}

    return loss


def forward_kl_loss(
    target: Distribution, model: Callable[[Params], Distribution], *, num_samples: int
) -> LossFn:
    """KL(target || model) by samples of the target, in nats: covers its mass.

    Its gradient is that of maximum likelihood on fresh data. The batch is not used.
    """

    def loss(params: Params, key: Key, batch: Batch) -> tuple[Array, Metrics]:
        del batch
        x = jax.vmap(target.sample)(jax.random.split(key, num_samples))
        value = log_likelihood(target, x) - log_likelihood(model(params), x)
        return value, {"kl": value}

    return loss


def reverse_kl_loss(
    target: Distribution, model: Callable[[Params], Distribution], *, num_samples: int
) -> LossFn:
    """KL(model || target) by reparametrised samples of the model: seeks a mode.

    This is variational inference, in nats. The batch is not used. Raises ValueError
    where samples of the model carry no gradient.
    """

    def loss(params: Params, key: Key, batch: Batch) -> tuple[Array, Metrics]:
        del batch
        d = model(params)
        if not d.pathwise:
            raise ValueError(f"samples of {type(d).__name__} carry no gradient")
        x = jax.vmap(d.sample)(jax.random.split(key, num_samples))
        value = log_likelihood(d, x) - log_likelihood(target, x)
        return value, {"kl": value}

    return loss
