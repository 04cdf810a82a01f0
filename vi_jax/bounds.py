"""Bounds on log p(x) from log-weights: `[k] -> []`, nats, higher is better.

log_w[i] = log p(x, z_i) - log q(z_i | x) with z_i ~ q(z | x). A bound sees neither a
model, nor a key, nor a batch. Hyper-parameters are keyword-only: bind them with
`functools.partial`.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from vi_jax.math import known, log_mean_exp
from vi_jax.types import Array

Bound = Callable[[Array], Array]


def _checked(log_w: Array) -> Array:
    log_w = jnp.asarray(log_w)
    if log_w.ndim != 1 or log_w.shape[0] == 0:
        raise ValueError(
            f"a bound takes the log-weights [k] of one example with k >= 1, got shape "
            f"{log_w.shape}: use jax.vmap for a batch"
        )
    # Integers would make integers of what a bound mixes them with.
    return log_w.astype(jnp.result_type(log_w, float))


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
    upper bound in the limit of large k. Raises ValueError at alpha = 1
    and where it is not finite.
    Ref: Li & Turner 2016, arXiv:1602.02311.
    """
    if 1 in known(alpha):
        raise ValueError("renyi is undefined at alpha = 1, its limit: use bounds.elbo")
    if not all(abs(a) <= float(jnp.finfo(jnp.float32).max) for a in known(alpha)):
        raise ValueError(f"alpha is {alpha}: it must be finite, in float32 too")
    log_w = _checked(log_w)
    plain = log_mean_exp((1 - alpha) * log_w) / (1 - alpha)
    near = abs(1 - alpha) <= 0.01
    if not all(known(near)):
        return plain
    # Near the ELBO the logarithm is near 0, and the division needs all of its digits.
    mean = stop_gradient(jnp.mean(log_w))
    scaled = (1 - alpha) * (log_w - mean)
    small = near & jnp.all(abs(scaled) < 0.5)  # not where a sample is impossible
    excess = jnp.mean(jnp.expm1(jnp.where(small, scaled, 0.0)))
    return jnp.where(small, mean + jnp.log1p(excess) / (1 - alpha), plain)


def miwae(log_w: Array, *, groups: int) -> Array:
    """Mean of `groups` importance-weighted bounds, each of k / groups samples.

    log_w is [k]. groups = k is the ELBO, groups = 1 is IWAE; the gradient of the
    posterior keeps more of its signal than IWAE's. Raises ValueError where groups does
    not divide k. Ref: Rainforth et al. 2018, arXiv:1802.04537.
    """
    log_w = _checked(log_w)
    k = log_w.shape[0]
    if groups < 1 or k % groups:
        raise ValueError(f"groups is {groups}: it must divide the {k} samples")
    return jnp.mean(log_mean_exp(jnp.reshape(log_w, (groups, -1))))


def ciwae(log_w: Array, *, mix: float) -> Array:
    """The combination mix ELBO + (1 - mix) IWAE.

    log_w is [k]. Raises ValueError where mix is outside [0, 1].
    Ref: Rainforth et al. 2018, arXiv:1802.04537.
    """
    if not all(0 <= m <= 1 for m in known(mix)):
        raise ValueError(f"mix is {mix}: it must lie in [0, 1]")
    return mix * elbo(log_w) + (1 - mix) * iwae(log_w)


def cubo(log_w: Array, *, order: float = 2.0) -> Array:
    """Chi upper bound, log mean w^order / order: an upper bound, so lower is better.

    log_w is [k]; order = 2 is the chi-squared bound. Above log p(x) for k -> infinity:
    the estimate from k samples is biased low, and may fall below log p(x) where few
    samples carry the second moment. Raises ValueError for an order of 1 or below.
    Ref: Dieng et al. 2017, arXiv:1611.00328.
    """
    if not all(o > 1 for o in known(order)):
        raise ValueError(f"order is {order}: an upper bound needs one above 1")
    return renyi(log_w, alpha=1 - order)


def tvo(log_w: Array, *, betas: Sequence[float]) -> Array:
    """Thermodynamic objective, sum_j (beta_j+1 - beta_j) E_beta_j[log w].

    log p(x) is the integral over beta in [0, 1] of E[log w] under p(x, z)^beta
    q(z | x)^(1 - beta), which rises with beta: the left Riemann sum is a lower bound,
    and [0, 1] alone is the ELBO. log_w is [k]; the expectations weigh the samples by
    w^beta, consistently as k grows. Raises ValueError where betas do not rise from 0 to
    1. Ref: Masrani et al. 2019, arXiv:1907.00031.
    """
    steps = np.diff(betas)
    if len(betas) < 2 or betas[0] != 0 or betas[-1] != 1 or not np.all(steps > 0):
        raise ValueError(f"betas must rise from 0 to 1, got {tuple(betas)}")
    log_w = _checked(log_w)
    # Measured from the top, so that slopes keep their digits at +-1e4 nats.
    top = stop_gradient(jnp.max(log_w, initial=-1e30))

    def mean_under(beta: Array) -> Array:
        weights = jax.nn.softmax(beta * log_w)
        # An impossible sample has no weight but at beta = 0, where the mean is -inf.
        return top + jnp.sum(jnp.where(weights > 0, weights * (log_w - top), 0.0))

    rest = jax.vmap(mean_under)(jnp.asarray(betas[1:-1], log_w.dtype))
    first = steps[0] * jnp.mean(log_w)
    return first + jnp.sum(jnp.asarray(steps[1:], log_w.dtype) * rest)
