"""Probabilities of token sequences, one token given those before it."""

import dataclasses
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp

from vi_jax import decoding
from vi_jax.distributions.base import register
from vi_jax.sequences import PAD, readable_tokens, true_tokens
from vi_jax.types import Array, Key, Latents, Params, SequenceNetwork


@register
class TokenSequence:
    """p(x) = prod_i p(x_i | x_0 .. x_{i-1}, z) over x int32 [length], see `sequences`.

    PAD adds nothing, and the end is predicted like a token: the probabilities of all
    sequences that end within `length`, and of the beginnings of those that do not, add
    up to 1.
    """

    params: Params
    z: Latents
    network: SequenceNetwork = dataclasses.field(metadata={"static": True})
    length: int = dataclasses.field(metadata={"static": True})
    pathwise: ClassVar[bool] = False

    def sample(self, key: Key) -> Array:
        return self.decode(key, decoding.sampled)

    def decode(self, key: Key, choose: decoding.Choose) -> Array:
        """A sequence whose tokens are taken by `choose`, int32 [length]."""
        how = {"length": self.length, "choose": choose}
        return decoding.decode(self.network, self.params, self.z, key, **how)

    def log_prob(self, x: Array) -> Array:
        """log p(x), []; x may be shorter than `length`, and marked by word dropout."""
        chex.assert_rank(x, 1)
        logits = self.network.logits(self.params, self.z, readable_tokens(x))
        logits = jax.vmap(decoding.without_pad)(logits)
        x = true_tokens(x)
        chosen = jnp.take_along_axis(logits, x[:, None], axis=1)[:, 0]
        log_p = chosen - jax.nn.logsumexp(logits, axis=1)
        return jnp.sum(jnp.where(x == PAD, 0.0, log_p))

    def mean(self) -> Array:
        """The sequence of the likeliest next tokens: words have no mean."""
        unused = jax.random.key(0)
        return self.decode(unused, decoding.greedy)
