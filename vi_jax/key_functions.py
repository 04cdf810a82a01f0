"""Three functions that every VAE tutorial has, pure and with nothing dropped.

Each sums over the last axis and keeps the axes before it, so it takes one example [d]
as well as a batch [n, d]. All in nats.
"""

import jax
import jax.numpy as jnp

from vi_jax.distributions import LOG_2PI
from vi_jax.types import Array, Key


def sample_gaussian(key: Key, mu: Array, log_var: Array) -> Array:
    """mu + exp(log_var / 2) e with e ~ N(0, I): a draw that carries gradient."""
    # The shape of both: one of them may be a scalar, and the draws must not be shared.
    shape = jnp.broadcast_shapes(jnp.shape(mu), jnp.shape(log_var))
    noise = jax.random.normal(key, shape, jnp.result_type(float, mu, log_var))
    return mu + jnp.exp(0.5 * log_var) * noise


def log_normal(x: Array, mu: Array, log_var: Array) -> Array:
    """log N(x; mu, exp(log_var)), summed over the last axis.

    -1/2 sum(log 2 pi + log_var + (x - mu)^2 / exp(log_var)).
    """
    square = (x - mu) ** 2 * jnp.exp(-log_var)
    return -0.5 * jnp.sum(LOG_2PI + log_var + square, axis=-1)


def negative_elbo_bound(x: Array, logits: Array, mu: Array, log_var: Array) -> Array:
    """-ELBO of a VAE with Bernoulli pixels: a loss per example, lower is better.

    sum_pixels(softplus(logits) - x logits) + KL(N(mu, exp(log_var)) || N(0, I)), with
    x and logits [..., pixels], mu and log_var [..., latents], and logits decoded from a
    draw `sample_gaussian(key, mu, log_var)`. Ref: Kingma & Welling 2014, appendix B.
    """
    cross_entropy = jnp.sum(jax.nn.softplus(logits) - x * logits, axis=-1)
    kl = 0.5 * jnp.sum(mu**2 + jnp.expm1(log_var) - log_var, axis=-1)
    return cross_entropy + kl
