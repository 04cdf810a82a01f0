"""Posteriors q(z | x): Components with `init(key, x)` and `apply(params, x)`."""

import jax.numpy as jnp

from vi_jax.distributions import Bernoulli, Categorical, Normal
from vi_jax.math import soft_bound
from vi_jax.types import Array, Component, Params

# Scales stay within exp(+-7.5), 0.0006 to 1800: no overflow, no collapse to a point.
LOG_VAR_BOUND = 15.0


def normal(network: Component) -> Component:
    """Diagonal Gaussian from a network [..] -> [2 d]: means, then log-variances.

    log_var = B tanh(h / B), B = 15. It is bounded where q is made, so that sampling,
    log q and the KL all see the same q.
    Raises ValueError, when called, where the network gives an odd number.
    """

    def apply(params: Params, x: Array) -> Normal:
        h = network.apply(params, x)
        if h.shape[-1] % 2:
            raise ValueError(
                f"the network of q(z | x) has {h.shape[-1]} outputs: it needs 2 d, "
                "the means and the log-variances of d latents"
            )
        loc, h = jnp.split(h, 2, axis=-1)
        return Normal(loc, jnp.exp(0.5 * soft_bound(h, LOG_VAR_BOUND)))

    return Component(network.init, apply)


def bernoulli(network: Component) -> Component:
    """Independent coins, the network giving their logits; z is 0s and 1s, as floats.

    Samples carry no gradient: `estimators.vimco`, or `enumeration` of a few coins.
    """
    apply = lambda params, x: Bernoulli(network.apply(params, x))
    return Component(network.init, apply)


def categorical(network: Component) -> Component:
    """One of c classes, the network giving their logits [c]; z is an integer [].

    A network takes an integer for one number, not for a class: decode it one-hot, as
    Component(lambda key, z: decoder.init(key, jax.nn.one_hot(z, c)),
              lambda params, z: decoder.apply(params, jax.nn.one_hot(z, c))).
    Samples carry no gradient: `estimators.enumeration`, or `vimco` for many classes.
    """
    apply = lambda params, x: Categorical(network.apply(params, x))
    return Component(network.init, apply)
