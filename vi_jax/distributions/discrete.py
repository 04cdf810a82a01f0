"""Probabilities of coins and classes."""

from typing import ClassVar

import chex
import jax
import jax.numpy as jnp

from vi_jax.distributions.base import register
from vi_jax.math import bernoulli_log_prob, with_gradient_of
from vi_jax.types import Array, Key


@register
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


@register
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


@register
class Categorical:
    """One of c classes from logits [c]; the event is an integer [] in [0, c).

    log_prob of another integer is -inf, and of what is no integer a ValueError.
    """

    logits: Array
    pathwise: ClassVar[bool] = False

    def sample(self, key: Key) -> Array:
        return jax.random.categorical(key, self.logits)

    def log_prob(self, x: Array) -> Array:
        chex.assert_rank(x, 0)
        if not jnp.issubdtype(jnp.result_type(x), jnp.integer):
            raise ValueError(f"a class is an integer, got {jnp.result_type(x)}")
        # Else the number of classes would wrap in a type of 8 bits.
        x = jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.int32))
        # By itself an index counts -1 from the end, and stops at the end.
        is_class = (x >= 0) & (x < self.logits.size)
        return jnp.where(is_class, jax.nn.log_softmax(self.logits)[x], -jnp.inf)

    def mean(self) -> Array:
        """The class probabilities [c], which are the mean of the one-hot event."""
        return jax.nn.softmax(self.logits)


@register
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
        num = self.logits.size.bit_length() - 1
        if self.logits.size != 2**num:
            raise ValueError(f"{self.logits.size} logits are not those of 2^d outcomes")
        return num

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
