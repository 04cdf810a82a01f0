"""Distributions over one example, as pytrees that hold their parameters.

Each has `sample(key) -> event`, `log_prob(event) -> []` in nats summed over the event,
`mean()`, and the class constant `pathwise`: whether a sample carries the gradient of
the parameters. `vmap` adds samples and batches.
"""

import dataclasses
import math
from typing import ClassVar, Protocol

import chex
import jax
import jax.numpy as jnp

from vi_jax.math import bernoulli_log_prob
from vi_jax.types import Array, Key

LOG_2PI = math.log(2 * math.pi)


class Distribution(Protocol):
    """What the rest of the library asks of a distribution over one example."""

    pathwise: ClassVar[bool]

    def sample(self, key: Key) -> Array: ...
    def log_prob(self, x: Array) -> Array: ...
    def mean(self) -> Array: ...


def _distribution(cls):
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@_distribution
class Normal:
    """Gaussian with independent coordinates, N(loc, diag(scale^2)), any event shape."""

    loc: Array
    scale: Array
    pathwise: ClassVar[bool] = True

    def sample(self, key: Key) -> Array:
        noise = jax.random.normal(key, jnp.shape(self.loc), jnp.result_type(self.loc))
        return self.loc + self.scale * noise

    def log_prob(self, x: Array) -> Array:
        chex.assert_equal_shape([x, self.loc])
        u = (x - self.loc) / self.scale
        return jnp.sum(-0.5 * u**2 - jnp.log(self.scale) - 0.5 * LOG_2PI)

    def mean(self) -> Array:
        return self.loc


@_distribution
class FullNormal:
    """Gaussian N(loc, L L^T): loc [d], lower-triangular L = scale_tril [d, d]."""

    loc: Array
    scale_tril: Array
    pathwise: ClassVar[bool] = True

    def sample(self, key: Key) -> Array:
        noise = jax.random.normal(key, self.loc.shape, self.loc.dtype)
        return self.loc + self.scale_tril @ noise

    def log_prob(self, x: Array) -> Array:
        chex.assert_equal_shape([x, self.loc])
        u = jax.scipy.linalg.solve_triangular(self.scale_tril, x - self.loc, lower=True)
        log_det = jnp.sum(jnp.log(jnp.diagonal(self.scale_tril)))
        return -0.5 * jnp.sum(u**2) - log_det - 0.5 * x.size * LOG_2PI

    def mean(self) -> Array:
        return self.loc


@_distribution
class Bernoulli:
    """Independent coins from logits, any event shape; events are 0 or 1 as floats."""

    logits: Array
    pathwise: ClassVar[bool] = False

    def sample(self, key: Key) -> Array:
        draw = jax.random.bernoulli(key, self.mean())
        return draw.astype(jnp.result_type(self.logits))

    def log_prob(self, x: Array) -> Array:
        chex.assert_equal_shape([x, self.logits])
        return bernoulli_log_prob(x, self.logits)

    def mean(self) -> Array:
        return jax.nn.sigmoid(self.logits)


@_distribution
class Categorical:
    """One of c classes from logits [c]; the event is an integer []."""

    logits: Array
    pathwise: ClassVar[bool] = False

    def sample(self, key: Key) -> Array:
        return jax.random.categorical(key, self.logits)

    def log_prob(self, x: Array) -> Array:
        chex.assert_rank(x, 0)
        return jax.nn.log_softmax(self.logits)[x]

    def mean(self) -> Array:
        """The class probabilities [c], which are the mean of the one-hot event."""
        return jax.nn.softmax(self.logits)


@_distribution
class Mixture:
    """sum_m softmax(logits)_m components_m; leaves of `components` lead with [m]."""

    logits: Array
    components: Distribution
    pathwise: ClassVar[bool] = False

    def sample(self, key: Key) -> Array:
        key_m, key_x = jax.random.split(key)
        m = jax.random.categorical(key_m, self.logits)
        return jax.tree.map(lambda leaf: leaf[m], self.components).sample(key_x)

    def log_prob(self, x: Array) -> Array:
        each = jax.vmap(lambda c: c.log_prob(x))(self.components)  # [m]
        return jax.nn.logsumexp(jax.nn.log_softmax(self.logits) + each)

    def mean(self) -> Array:
        means = jax.vmap(lambda c: c.mean())(self.components)  # [m, ...]
        return jnp.tensordot(jax.nn.softmax(self.logits), means, axes=1)


def _kl_normal(q: Normal, p: Normal) -> Array:
    log_ratio = jnp.log(q.scale) - jnp.log(p.scale)
    shift = (q.loc - p.loc) / p.scale
    # expm1(2 r) - 2 r is accurate where q and p nearly agree.
    return 0.5 * jnp.sum(jnp.expm1(2 * log_ratio) - 2 * log_ratio + shift**2)


def _kl_full_normal(q: FullNormal, p: FullNormal) -> Array:
    solve = lambda b: jax.scipy.linalg.solve_triangular(p.scale_tril, b, lower=True)
    trace = jnp.sum(solve(q.scale_tril) ** 2)
    shift = jnp.sum(solve(q.loc - p.loc) ** 2)
    log_det = lambda d: jnp.sum(jnp.log(jnp.diagonal(d.scale_tril)))
    return 0.5 * (trace + shift - q.loc.size) + log_det(p) - log_det(q)


def _kl_bernoulli(q: Bernoulli, p: Bernoulli) -> Array:
    chex.assert_equal_shape([q.logits, p.logits])
    prob = jax.nn.sigmoid(q.logits)
    return bernoulli_log_prob(prob, q.logits) - bernoulli_log_prob(prob, p.logits)


def _kl_categorical(q: Categorical, p: Categorical) -> Array:
    log_q, log_p = jax.nn.log_softmax(q.logits), jax.nn.log_softmax(p.logits)
    # A class that q excludes adds 0, where 0 * -inf would add nan.
    return jnp.sum(jnp.where(log_q > -jnp.inf, jnp.exp(log_q) * (log_q - log_p), 0.0))


_CLOSED_FORM_KL = {
    (Normal, Normal): _kl_normal,
    (FullNormal, FullNormal): _kl_full_normal,
    (Bernoulli, Bernoulli): _kl_bernoulli,
    (Categorical, Categorical): _kl_categorical,
}


def has_closed_form_kl(q: Distribution, p: Distribution) -> bool:
    """Whether `kl(q, p)` exists."""
    return (type(q), type(p)) in _CLOSED_FORM_KL


def kl(q: Distribution, p: Distribution) -> Array:
    """KL(q || p) = E_q[log q - log p] in closed form, [] in nats.

    Raises ValueError for a pair that has none, never falling back on samples.
    """
    if not has_closed_form_kl(q, p):
        raise ValueError(
            f"KL({type(q).__name__} || {type(p).__name__}) has no closed form here: "
            "estimate it from samples of log q(z) - log p(z)"
        )
    return _CLOSED_FORM_KL[type(q), type(p)](q, p)
