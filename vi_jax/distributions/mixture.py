"""Mixtures of any distribution with itself."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from vi_jax.distributions.base import Distribution, register
from vi_jax.types import Array, Key


def is_continuous(d: Distribution) -> bool:
    """Whether draws follow a path: of a mixture they carry none, but its parts' may."""
    while isinstance(d, Mixture):
        d = d.components
    return d.pathwise


@register
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
        each = jax.vmap(lambda c: jnp.sum(c.log_prob(x)))(self.components)  # [m]
        return jax.nn.logsumexp(jax.nn.log_softmax(self.logits) + each)

    def mean(self) -> Array:
        means = jax.vmap(lambda c: c.mean())(self.components)  # [m, ...]
        return jnp.tensordot(jax.nn.softmax(self.logits), means, axes=1)
