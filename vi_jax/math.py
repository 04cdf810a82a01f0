"""The few numerical tools that everything else is written with."""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from vi_jax.types import Array


def known(*values: float | Array) -> list:
    """Those that have a value yet: what `vmap` or `jit` traces has none."""
    return [value for value in values if not isinstance(value, jax.core.Tracer)]


def log_mean_exp(a: Array, axis: int = -1) -> Array:
    """log mean exp(a) along one axis, without overflow."""
    return jax.nn.logsumexp(a, axis=axis) - jnp.log(a.shape[axis])


def effective_sample_size(log_w: Array) -> Array:
    """(sum w)^2 / sum w^2 of log-weights [k], in [1, k]."""
    return jnp.exp(2 * jax.nn.logsumexp(log_w) - jax.nn.logsumexp(2 * log_w))


@jax.custom_jvp
def scale_gradient(x: Array, factor: Array) -> Array:
    """x, whose derivative is multiplied by `factor`, of a shape that broadcasts."""
    del factor
    return x


@scale_gradient.defjvp
def _scale_gradient_jvp(primals, tangents):
    (x, factor), (dx, _) = primals, tangents
    return x, (factor * dx).astype(dx.dtype)


def with_gradient_of(value: Array, surrogate: Array) -> Array:
    """A number that equals `value` exactly and differentiates as `surrogate`."""
    # The parentheses keep the value exact: surrogate - surrogate is 0.
    return stop_gradient(value) + (surrogate - stop_gradient(surrogate))


def soft_bound(a: Array, bound: float) -> Array:
    """bound * tanh(a / bound): smooth, monotone, near a for |a| << bound."""
    return bound * jnp.tanh(a / bound)


def bernoulli_log_prob(x: Array, logits: Array) -> Array:
    """sum of x log s(logits) + (1 - x) log s(-logits), [] for any event shape.

    Written as (x - 1/2) l - |l| / 2 - log1p(exp(-|l|)): finite for every finite logit,
    exact where one of the outcomes is certain, and right for x between 0 and 1. Its
    derivative at 0 is right whatever that of abs is there. x is not looked at, which
    would cost a step of training 6% at k = 50, but for its type: raises ValueError for
    unsigned integers, which are mostly pixels up to 255, and log p would be above 0.
    """
    if jnp.issubdtype(dtype := jnp.result_type(x), jnp.unsignedinteger):
        raise ValueError(
            f"coins are 0 or 1, as floats, and these are {dtype}: binarize pixels, or "
            "divide them by 255; of 0 and 1 make floats"
        )
    size = abs(logits)
    return jnp.sum((x - 0.5) * logits - 0.5 * size - jnp.log1p(jnp.exp(-size)))


def exp_remainder(x: Array) -> Array:
    """e^x - 1 - x, never negative and accurate relative to itself near 0 too."""
    near = abs(x) < 0.5
    t = jnp.where(near, x, 0.0)
    series = jnp.ones_like(t)
    for n in range(14, 2, -1):  # x^2 / 2 (1 + x / 3 (1 + x / 4 (...)))
        series = 1 + t / n * series
    return jnp.where(near, 0.5 * t**2 * series, jnp.expm1(x) - x)


def log_ratio(a: Array, b: Array) -> Array:
    """log(a / b) of positive numbers, accurate relative to itself near a = b too."""
    near = abs(a - b) < 0.5 * b
    excess = jnp.where(near, (a - b) / b, 0.0)  # a - b is exact there
    return jnp.where(near, jnp.log1p(excess), jnp.log(a) - jnp.log(b))
