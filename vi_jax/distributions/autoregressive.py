"""Binary events of which each entry depends on those before it."""

import dataclasses
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp

from vi_jax.distributions.base import register
from vi_jax.math import bernoulli_log_prob
from vi_jax.types import Array, Component, Key, Latents, Params


@register
class AutoregressiveBernoulli:
    """log p(x | z) = sum_i log Bernoulli(x_i; sigmoid(logits_i(x_0 ... x_(i-1), z))).

    `network.apply(params, (x, z))` gives all the logits, shaped as x, in one pass;
    entry i of them, in row-major order, must not depend on x_i or a later one
    (`networks.made`). Events have `shape` and are 0 or 1 as floats. `vmap` what uses
    the distribution, not what makes it: each of many would hold params of its own.
    """

    params: Params
    z: Latents
    network: Component = dataclasses.field(metadata={"static": True})
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    pathwise: ClassVar[bool] = False

    def sample(self, key: Key) -> Array:
        """Ancestral: a pass of the network for each entry of x."""
        dtype = jax.eval_shape(self._logits, jnp.zeros(self.shape)).dtype
        return self._walk(jax.random.logistic(key, self.shape, dtype))[0]

    def log_prob(self, x: Array) -> Array:
        chex.assert_shape(x, self.shape)
        return bernoulli_log_prob(x, self._logits(x))

    def mean(self) -> Array:
        """The probabilities of 1 along the greedy path, each entry the likelier value.

        For pictures. It is not E[x], which is a sum over 2^D events and which an
        average of samples estimates: a single path is sharper than a mean.
        """
        return jax.nn.sigmoid(self._walk(jnp.zeros(self.shape))[1])

    def _walk(self, noise: Array) -> tuple[Array, Array]:
        """x and the logits that it came from: x_i is 1 where logits_i + noise_i > 0."""

        def step(x: Array, i: Array) -> tuple[Array, None]:
            logit = jnp.ravel(self._logits(x.reshape(self.shape)))[i]
            return x.at[i].set((logit + noise.ravel()[i] > 0).astype(x.dtype)), None

        x, _ = jax.lax.scan(step, jnp.zeros_like(noise).ravel(), jnp.arange(noise.size))
        x = x.reshape(self.shape)
        return x, self._logits(x)

    def _logits(self, x: Array) -> Array:
        logits = self.network.apply(self.params, (x, self.z))
        chex.assert_equal_shape([x, logits])
        return logits
