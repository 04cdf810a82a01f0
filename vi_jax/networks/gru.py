"""Gated recurrent units over token sequences: an encoder, and a decoder given z."""

import jax
import jax.numpy as jnp
from flax import linen

from vi_jax.checks import at_least
from vi_jax.networks.linen import from_linen
from vi_jax.networks.transformer import LatentMap, sequence_network
from vi_jax.sequences import PAD, true_tokens
from vi_jax.types import Array, Component, Latents, SequenceNetwork


class Gru(linen.Module):
    """One step: h' = u h + (1 - u) n, with n = tanh(a_n + r (W h)_n), h [w].

    a [3 w] is what the input brings to the gates r and u and to n, so that it is one
    product for a whole sequence. Ref: Cho et al. 2014, arXiv:1406.1078.
    """

    width: int

    @linen.compact
    def __call__(self, h: Array, a: Array) -> Array:
        kernel_init = linen.initializers.orthogonal()
        recurrent = linen.Dense(3 * self.width, kernel_init=kernel_init)(h)
        a_r, a_u, a_n = jnp.split(a, 3)
        h_r, h_u, h_n = jnp.split(recurrent, 3)
        r, u = jax.nn.sigmoid(a_r + h_r), jax.nn.sigmoid(a_u + h_u)
        return u * h + (1 - u) * jnp.tanh(a_n + r * h_n)


def _scan(gru: Gru, h: Array, a: Array, reads: Array) -> tuple[Array, Array]:
    """The last state, and the state after each place; where reads is False it stays."""

    def step(gru: Gru, h: Array, now) -> tuple[Array, Array]:
        a, reads = now
        h = jnp.where(reads, gru(h, a), h)
        return h, h

    over_places = linen.scan(
        step, variable_broadcast="params", split_rngs={"params": False}
    )
    return over_places(gru, h, (a, reads))


def _rows(table: Array, x: Array) -> Array:
    """Rows x [t] of table [v, w], nan for a token beyond it, as `linen.Embed` does."""
    return jnp.take(table, x, axis=0, mode="fill")


class _Encoder(linen.Module):
    vocabulary: int
    outputs: int
    width: int

    @linen.compact
    def __call__(self, x: Array) -> Array:
        x = true_tokens(x)
        embed = linen.Embed(self.vocabulary, self.width)
        ends = []
        for order in (slice(None), slice(None, None, -1)):
            # A product for each token of the vocabulary, not for each place of x.
            a = _rows(linen.Dense(3 * self.width)(embed.embedding), x[order])
            h = jnp.zeros(self.width, a.dtype)
            ends.append(_scan(Gru(self.width), h, a, (x != PAD)[order])[0])
        return linen.Dense(self.outputs)(jnp.concatenate(ends))


class _Decoder(linen.Module):
    vocabulary: int
    width: int
    layers: int

    def setup(self):
        small = linen.initializers.normal(0.02)
        self.embed = linen.Embed(self.vocabulary, self.width, embedding_init=small)
        self.begin = self.param("begin", small, (1, self.width))
        self.first = LatentMap(self.layers * self.width)
        self.always = LatentMap(3 * self.width)
        self.inputs = [linen.Dense(3 * self.width) for _ in range(self.layers)]
        self.grus = [Gru(self.width) for _ in range(self.layers)]
        self.narrow = linen.Dense(self.width)
        self.bias = self.param("bias", linen.initializers.zeros, (self.vocabulary,))

    def logits(self, z: Latents, x: Array) -> Array:
        """[t, v], row i from z and x[:i]."""
        states, always = self._of_latents(z)
        # A product for each token of the vocabulary, the beginning in front.
        table = self.inputs[0](jnp.concatenate([self.begin, self.embed.embedding]))
        before = jnp.concatenate([jnp.zeros(1, x.dtype), x[:-1] + 1])
        a, reads = _rows(table, before) + always[None], jnp.ones(x.shape, bool)
        h = _scan(self.grus[0], states[0], a, reads)[1]
        above = zip(states[1:], self.grus[1:], self.inputs[1:], strict=True)
        for state, gru, inputs in above:
            h = _scan(gru, state, inputs(h), reads)[1]
        return self._scores(h)

    def start(self, z: Latents):
        """The cache before any token, and the logits of the first."""
        return self._advance(self._of_latents(z), self.begin[0])

    def step(self, cache, token: Array):
        """The cache with one more token, and the logits of the next."""
        return self._advance(cache, self.embed(token))

    def _advance(self, cache, h: Array):
        states, always = cache
        for i, (gru, inputs) in enumerate(zip(self.grus, self.inputs, strict=True)):
            h = gru(states[i], inputs(h) + (always if i == 0 else 0.0))
            states = states.at[i].set(h)
        return (states, always), self._scores(h[None])[0]

    def _of_latents(self, z: Latents) -> tuple[Array, Array]:
        """The first states [layers, w], and what z adds at every place, [3 w]."""
        states = jnp.tanh(self.first(z)).reshape(self.layers, self.width)
        return states, self.always(z)

    def _scores(self, h: Array) -> Array:
        return self.embed.attend(self.narrow(h)) + self.bias[None]


def gru_encoder(vocabulary: int, outputs: int, *, width: int = 256) -> Component:
    """Tokens x int32 [t] -> [outputs], from the last states of both directions.

    At PAD a state stays as it is. Raises ValueError where a number is below 1.
    """
    at_least(1, vocabulary=vocabulary, outputs=outputs, width=width)
    return from_linen(_Encoder(vocabulary, outputs, width))


def gru_decoder(
    vocabulary: int, *, width: int = 256, layers: int = 1
) -> SequenceNetwork:
    """A GRU over tokens, given z: any array or tree of them, flattened.

    z makes the first states and adds to the input of the first layer at every place; z
    [0] leaves a plain language model. Scores are products with the embeddings of the
    tokens. Raises ValueError where a number is below 1.
    """
    at_least(1, vocabulary=vocabulary, width=width, layers=layers)
    return sequence_network(_Decoder(vocabulary, width, layers))
