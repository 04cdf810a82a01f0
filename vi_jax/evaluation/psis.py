"""How heavy the tail of importance weights is: the k-hat of a generalised Pareto."""

import jax
import jax.numpy as jnp

from vi_jax.types import Array

# Above it an importance-sampling estimate, and its standard error, can't be trusted.
RELIABLE_PARETO_K = 0.7
# The tail of 5,000 samples; more samples keep it, so that memory does not grow.
MAX_TAIL = 212
# Weights that agree to this many nats, or to 32 units in the last place of their
# logarithms, have no tail, only rounding.
ROUNDING = 1e-4


def tail_length(num_samples: int) -> int:
    """How many of the largest of k weights are their tail: min(k / 5, 3 sqrt(k), 212).

    Ref: Vehtari et al. 2024, arXiv:1507.02646.
    """
    return int(min(num_samples / 5, 3 * num_samples**0.5, MAX_TAIL))


def pareto_k(top: Array, even: bool | Array = False) -> Array:
    """The shape k-hat of the tail whose log-weights are top [m + 1], []; no unit.

    top are the m + 1 largest of a sample, the smallest of them the threshold that the
    others exceed. Below 0.5 the variance of the weights is finite; above 0.7 estimates
    cannot be trusted. Zhang and Stephens' estimate, drawn towards 0.5 as by 10 more
    weights; 0 where all weights agree, nan for m < 5.
    Discrete latents have a few different weights, in which a fit finds any shape. Where
    all weights are `even`, by another measure, it would be a false alarm and is nan: if
    a quarter of the tail ties with its threshold, not by rounding, and fewer than
    3 sqrt(m) and m / 2 of its weights differ.
    Ref: Zhang & Stephens 2009; Vehtari et al. 2024, arXiv:1507.02646.
    """
    m = top.shape[0] - 1
    if m < 5:
        return jnp.full((), jnp.nan, top.dtype)
    top = jnp.sort(top)
    x = jnp.exp(top[1:] - top[-1]) - jnp.exp(top[0] - top[-1])  # [m], rising
    unit = jnp.finfo(top.dtype).eps * abs(top[-1])
    varies = top[-1] - top[0] > ROUNDING + 32 * unit
    x = jnp.where(varies, x, jnp.linspace(1.0, 2.0, m, dtype=x.dtype))
    count = 30 + int(m**0.5)
    grid = 1 - jnp.sqrt(count / (jnp.arange(1, count + 1) - 0.5))
    quarter = int(m / 4 + 0.5)
    # Weights that tie with the threshold are above it by less than a unit.
    quartile = jnp.maximum(x[quarter - 1], jnp.exp(top[0] - top[-1]) * unit)
    theta = 1 / x[-1] + grid / (3 * jnp.maximum(quartile, 1e-30))
    shape = jnp.mean(jnp.log1p(-theta[:, None] * x[None]), axis=1)
    log_profile = m * (jnp.log(-theta / shape) - shape - 1)
    mean_theta = jax.nn.softmax(log_profile) @ theta
    found = (m * jnp.mean(jnp.log1p(-mean_theta * x)) + 10 * 0.5) / (m + 10)
    different = 1 + jnp.sum(jnp.diff(top) > unit)
    # Rounding ties weights too, but leaves more than one in 16 of its own steps.
    few = 16 * different * unit < top[-1] - top[0]
    few &= different < min(m / 2, 3 * m**0.5)
    tied = few & (top[quarter] - top[0] <= unit)
    found = jnp.where(even & tied, jnp.nan, found)
    # Where a quarter of the tail underflows beside its largest, no tail is heavier.
    underflows = top[quarter] - top[-1] < jnp.log(1e-30)
    return jnp.where(varies, jnp.where(underflows, jnp.inf, found), 0.0)
