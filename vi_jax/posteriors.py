"""Posteriors q(z | x): Components with `init(key, x)` and `apply(params, x)`."""

import jax.numpy as jnp

from vi_jax.distributions import Normal
from vi_jax.math import soft_bound
from vi_jax.types import Array, Component, Params

# Scales stay within exp(+-7.5), 0.0006 to 1800: no overflow, no collapse to a point.
LOG_VAR_BOUND = 15.0


def normal(network: Component) -> Component:
    """Diagonal Gaussian from a network [..] -> [2 d]: means, then log-variances.

    log_var = B tanh(h / B), B = 15. It is bounded where q is made, so that sampling,
    log q and the KL all see the same q.
    """

    def apply(params: Params, x: Array) -> Normal:
        loc, h = jnp.split(network.apply(params, x), 2, axis=-1)
        return Normal(loc, jnp.exp(0.5 * soft_bound(h, LOG_VAR_BOUND)))

    return Component(network.init, apply)
