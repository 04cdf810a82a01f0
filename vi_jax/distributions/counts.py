"""How often each of several things was chosen."""

from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

from vi_jax.distributions.base import register
from vi_jax.types import Array, Key


@register
class Multinomial:
    """How often each item was chosen, x [items], given the total n = sum_i x_i.

    log p(x | n) = log n! - sum_i log x_i! + sum_i x_i log softmax(logits)_i, which sums
    to 1 over all x of the same total. p is of x given n, and n is read from x: it is
    no model of how many choices there are. The first two terms do not depend on the
    logits, so that the gradient is that of the last one. Logits must be finite.
    Ref: Liang et al. 2018, arXiv:1802.05814, without the first two terms.
    """

    logits: Array
    pathwise: ClassVar[bool] = False

    def sample(self, key: Key) -> Array:
        """One choice, one-hot [items]: a draw for the total n = 1."""
        chosen = jax.random.categorical(key, self.logits)
        dtype = jnp.result_type(self.logits)
        return jax.nn.one_hot(chosen, self.logits.size, dtype=dtype)

    def log_prob(self, x: Array) -> Array:
        chex.assert_equal_shape([x, self.logits])
        arrangements = gammaln(jnp.sum(x) + 1) - jnp.sum(gammaln(x + 1))
        return arrangements + jnp.sum(x * jax.nn.log_softmax(self.logits))

    def mean(self) -> Array:
        """The probabilities [items] of one choice, which are the mean of x / n."""
        return jax.nn.softmax(self.logits)
