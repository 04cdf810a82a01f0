"""Bounds on log p(x) from log-weights: `[k] -> []`, nats, higher is better.

log_w[i] = log p(x, z_i) - log q(z_i | x) with z_i ~ q(z | x). A bound sees neither a
model, nor a key, nor a batch. Hyper-parameters are keyword-only: bind them with
`functools.partial`.
"""

from collections.abc import Callable

import jax.numpy as jnp

from vi_jax.math import log_mean_exp
from vi_jax.types import Array

Bound = Callable[[Array], Array]


def _checked(log_w: Array) -> Array:
    log_w = jnp.asarray(log_w)
    if log_w.ndim != 1 or log_w.shape[0] == 0:
        raise ValueError(
            f"a bound takes the log-weights [k] of one example with k >= 1, got shape "
            f"{log_w.shape}: use jax.vmap for a batch"
        )
    return log_w


def elbo(log_w: Array) -> Array:
    """Evidence lower bound, mean log w.

    log_w is [k]; the value has the same expectation for every k.
    Ref: Jordan et al. 1999; Kingma & Welling 2014, arXiv:1312.6114.
    """
    return jnp.mean(_checked(log_w))


def iwae(log_w: Array) -> Array:
    """Importance-weighted bound, log mean w.

    log_w is [k]; in expectation it rises with k towards log p(x).
    Ref: Burda et al. 2016, arXiv:1509.00519.
    """
    return log_mean_exp(_checked(log_w))


def renyi(log_w: Array, *, alpha: float) -> Array:
    """Variational Renyi bound, log mean w^(1 - alpha) / (1 - alpha).

    log_w is [k]. alpha -> 1 is the ELBO, alpha = 0 is IWAE; a negative alpha is an
    upper bound in the limit of large k. Raises ValueError at alpha = 1.
    Ref: Li & Turner 2016, arXiv:1602.02311.
    """
    if alpha == 1:
        raise ValueError("renyi is undefined at alpha = 1, its limit: use bounds.elbo")
    return log_mean_exp((1 - alpha) * _checked(log_w)) / (1 - alpha)
