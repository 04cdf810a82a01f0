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
from jax.scipy.special import betaln, gammaln

from vi_jax.math import bernoulli_log_prob, with_gradient_of
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
        # A product, not a solve: under vmap over x the inverse is taken once.
        eye = jnp.eye(x.size, dtype=self.scale_tril.dtype)
        inverse = jax.scipy.linalg.solve_triangular(self.scale_tril, eye, lower=True)
        u = inverse @ (x - self.loc)
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
class StraightThroughBernoulli:
    """`Bernoulli` whose samples are 0 or 1 but carry the gradient of a relaxed coin.

    The hard coin is s > 0 with s = logits + logistic noise, the relaxed one
    sigmoid(s / temperature); its gradient is biased, so that `pathwise` is False and
    only `estimators.straight_through` takes it.
    Ref: Bengio et al. 2013, arXiv:1308.3432; Jang et al. 2017, arXiv:1611.01144.
    """

    logits: Array
    temperature: Array
    pathwise: ClassVar[bool] = False

    def sample(self, key: Key) -> Array:
        shape, dtype = jnp.shape(self.logits), jnp.result_type(self.logits)
        s = self.logits + jax.random.logistic(key, shape, dtype)
        return with_gradient_of(
            (s > 0).astype(dtype), jax.nn.sigmoid(s / self.temperature)
        )

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
class JointBernoulli:
    """d coins that may depend on each other, from the logits [2^d] of all outcomes.

    Outcome i is row i of `binary_states(d)`; events are [d] of 0 and 1 as floats.
    """

    logits: Array
    pathwise: ClassVar[bool] = False

    def sample(self, key: Key) -> Array:
        return self._states()[jax.random.categorical(key, self.logits)]

    def log_prob(self, x: Array) -> Array:
        chex.assert_shape(x, (self._num_coins(),))
        index = jnp.round(x).astype(int) @ 2 ** jnp.arange(x.size)
        return jax.nn.log_softmax(self.logits)[index]

    def mean(self) -> Array:
        return jax.nn.softmax(self.logits) @ self._states()

    def _num_coins(self) -> int:
        return self.logits.size.bit_length() - 1

    def _states(self) -> Array:
        return binary_states(self._num_coins()).astype(jnp.result_type(self.logits))


def binary_states(num_coins: int) -> Array:
    """All outcomes of d coins, float [2^d, d]: coin j of row i is bit j of i.

    Raises ValueError above 20 coins, a million outcomes.
    """
    if not 0 <= num_coins <= 20:
        raise ValueError(
            f"{num_coins} coins have too many outcomes to list (20 at most)"
        )
    rows, bits = jnp.arange(2**num_coins)[:, None], jnp.arange(num_coins)[None, :]
    return ((rows >> bits) & 1).astype(float)


@_distribution
class Gamma:
    """Independent Gamma(concentration, rate), any event shape; events are positive."""

    concentration: Array
    rate: Array
    pathwise: ClassVar[bool] = True

    def sample(self, key: Key) -> Array:
        return jax.random.gamma(key, self.concentration) / self.rate

    def log_prob(self, x: Array) -> Array:
        chex.assert_equal_shape([x, self.concentration, self.rate])
        a, b = self.concentration, self.rate
        log_norm = gammaln(a) - a * jnp.log(b)
        return jnp.sum((a - 1) * jnp.log(x) - b * x - log_norm)

    def mean(self) -> Array:
        return self.concentration / self.rate


@_distribution
class Beta:
    """Independent Beta(a, b), any event shape; events lie strictly between 0 and 1."""

    a: Array
    b: Array
    pathwise: ClassVar[bool] = True

    def sample(self, key: Key) -> Array:
        return jax.random.beta(key, self.a, self.b)

    def log_prob(self, x: Array) -> Array:
        chex.assert_equal_shape([x, self.a, self.b])
        powers = (self.a - 1) * jnp.log(x) + (self.b - 1) * jnp.log1p(-x)
        return jnp.sum(powers - betaln(self.a, self.b))

    def mean(self) -> Array:
        return self.a / (self.a + self.b)


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
