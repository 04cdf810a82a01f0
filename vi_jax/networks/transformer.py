"""Transformers over token sequences: an encoder, and a causal decoder given z.

Layer norm comes before each part (Xiong et al. 2020, arXiv:2002.04745), positions are
learned, and padding is masked exactly.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen

from vi_jax.checks import at_least
from vi_jax.networks.linen import from_linen, init_variables
from vi_jax.sequences import PAD, true_tokens
from vi_jax.types import Array, Component, Key, Latents, Params, SequenceNetwork


def attend(q: Array, k: Array, v: Array, keep: Array, heads: int) -> Array:
    """softmax(q k^T / sqrt(d)) v for each head, [a, w] of q [a, w], k and v [s, w].

    Row i sees the places where keep [a, s] is True, of which there must be one.
    """
    q, k, v = (a.reshape(a.shape[0], heads, -1) for a in (q, k, v))
    scores = jnp.einsum("ahd,shd->has", q, k) / jnp.sqrt(q.shape[-1])
    lowest = jnp.finfo(scores.dtype).min
    weights = jax.nn.softmax(jnp.where(keep[None], scores, lowest))
    return jnp.einsum("has,shd->ahd", weights, v).reshape(q.shape[0], -1)


class Block(linen.Module):
    """Attention and an MLP, each added to what it reads, h [a, w]."""

    width: int
    heads: int

    def setup(self):
        self.norm_of_attention, self.norm_of_mlp = linen.LayerNorm(), linen.LayerNorm()
        self.read = linen.Dense(3 * self.width)
        self.write = linen.Dense(self.width)
        self.widen, self.narrow = linen.Dense(4 * self.width), linen.Dense(self.width)

    def project(self, h: Array) -> tuple[Array, Array, Array]:
        """Queries, keys and values, [a, w] each."""
        return tuple(jnp.split(self.read(self.norm_of_attention(h)), 3, axis=-1))

    def combine(self, h: Array, q: Array, k: Array, v: Array, keep: Array) -> Array:
        h += self.write(attend(q, k, v, keep, self.heads))
        return h + self.narrow(jax.nn.gelu(self.widen(self.norm_of_mlp(h))))


class _Encoder(linen.Module):
    vocabulary: int
    length: int
    outputs: int
    width: int
    layers: int
    heads: int

    @linen.compact
    def __call__(self, x: Array) -> Array:
        _require_room(x, self.length)
        x = true_tokens(x)
        is_token = x != PAD
        h = linen.Embed(self.vocabulary, self.width)(x)
        h += _positions(self, self.length, self.width)[: x.size]
        keep = jnp.broadcast_to(is_token, (x.size, x.size))
        for _ in range(self.layers):
            block = Block(self.width, self.heads)
            h = block.combine(h, *block.project(h), keep)
        h = linen.LayerNorm()(h)
        # The mean over what is there, and none of what is not.
        total = jnp.sum(jnp.where(is_token[:, None], h, 0.0), axis=0)
        return linen.Dense(self.outputs)(total / jnp.maximum(jnp.sum(is_token), 1))


class LatentMap(linen.Module):
    """A linear map of all latents, flattened; of none, a language model's, a bias."""

    features: int

    @linen.compact
    def __call__(self, z: Latents) -> Array:
        bias = self.param("bias", linen.initializers.zeros, (self.features,))
        flat = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(z)])
        if not flat.size:
            return bias
        return linen.Dense(self.features, use_bias=False)(flat) + bias


def _positions(module: linen.Module, length: int, width: int) -> Array:
    init = linen.initializers.normal(0.02)
    return module.param("positions", init, (length, width))


class _Decoder(linen.Module):
    vocabulary: int
    length: int
    width: int
    layers: int
    heads: int
    latent: str
    slots: int

    def setup(self):
        small = linen.initializers.normal(0.02)
        self.embed = linen.Embed(self.vocabulary, self.width, embedding_init=small)
        self.positions = _positions(self, self.length, self.width)
        self.begin = self.param("begin", small, (1, self.width))
        self.of_latents = LatentMap(self.slots * self.width)
        self.blocks = [Block(self.width, self.heads) for _ in range(self.layers)]
        self.norm = linen.LayerNorm()
        self.bias = self.param("bias", linen.initializers.zeros, (self.vocabulary,))

    def logits(self, z: Latents, x: Array) -> Array:
        """[t, v], row i from z and x[:i]."""
        _require_room(x, self.length, num_unread=1)
        h = self._before(z)
        h = jnp.concatenate([h, self._read(x[:-1], self.positions[: x.size - 1])])
        h, _, _ = self._through(h, self._memory(z))
        return self._scores(h[-x.size :])

    def start(self, z: Latents):
        """The cache before any token, and the logits of the first."""
        h, keys, values = self._through(self._before(z), self._memory(z))
        room = [(0, 0), (0, self.length), (0, 0)]
        place = jnp.full((), keys.shape[1])  # the next row of the cache
        cache = (jnp.pad(keys, room), jnp.pad(values, room), place, jnp.zeros((), int))
        return cache, self._scores(h[-1:])[0]

    def step(self, cache, token: Array):
        """The cache with one more token, and the logits of the next."""
        keys, values, place, i = cache
        h = self._read(token[None], self.positions[i][None])
        keep = (jnp.arange(keys.shape[1]) <= place)[None]
        for layer, block in enumerate(self.blocks):
            q, k, v = block.project(h)
            keys = keys.at[layer, place].set(k[0])
            values = values.at[layer, place].set(v[0])
            h = block.combine(h, q, keys[layer], values[layer], keep)
        return (keys, values, place + 1, i + 1), self._scores(h)[0]

    def _of_latents(self, z: Latents) -> Array:
        return self.of_latents(z).reshape(self.slots, self.width)

    def _before(self, z: Latents) -> Array:
        """What stands before the first token and goes through the layers, [a, w]."""
        return self._of_latents(z) if self.latent == "prefix" else self.begin

    def _memory(self, z: Latents) -> Array:
        """What every layer sees beside, as it is, [m, w]."""
        if self.latent == "prefix":
            return jnp.zeros((0, self.width), self.begin.dtype)
        return self._of_latents(z)

    def _read(self, x: Array, positions: Array) -> Array:
        return self.embed(x) + positions

    def _through(self, h: Array, memory: Array) -> tuple[Array, Array, Array]:
        """All layers, causally; h [a, w], keys and values [layers, m + a, w]."""
        a, m = len(h), len(memory)
        keep = jnp.concatenate(
            [jnp.ones((a, m), bool), jnp.tril(jnp.ones((a, a), bool))], axis=1
        )
        keys, values = [], []
        for block in self.blocks:
            q, k, v = block.project(jnp.concatenate([memory, h]))
            h = block.combine(h, q[m:], k, v, keep)
            keys.append(k)
            values.append(v)
        return h, jnp.stack(keys), jnp.stack(values)

    def _scores(self, h: Array) -> Array:
        return self.embed.attend(self.norm(h)) + self.bias[None]


def transformer_encoder(
    vocabulary: int,
    length: int,
    outputs: int,
    *,
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
) -> Component:
    """Tokens x int32 [t], t <= length -> [outputs], from the mean over the tokens.

    Every token sees every other, and none sees PAD. Raises ValueError where a number is
    below 1 or heads does not divide width, and from `apply` for a longer x.
    Ref: Vaswani et al. 2017, arXiv:1706.03762.
    """
    at_least(1, vocabulary=vocabulary, length=length, outputs=outputs, layers=layers)
    _check_heads(width, heads)
    return from_linen(_Encoder(vocabulary, length, outputs, width, layers, heads))


def transformer_decoder(
    vocabulary: int,
    length: int,
    *,
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    latent: Literal["prefix", "memory"] = "memory",
    slots: int = 1,
) -> SequenceNetwork:
    """A causal Transformer over tokens, given z: any array or tree of them, flattened.

    A linear map of z makes `slots` vectors. As a `prefix` they stand before the first
    token and go through the layers with it; as `memory` every layer attends to them as
    they are. z [0] leaves a plain language model. Scores are products with the
    embeddings of the tokens. At most `length` tokens are read, so that x has one more
    at most, the last one being only predicted. Raises ValueError as
    `transformer_encoder`, and where `latent` is another word.
    Ref: Vaswani et al. 2017, arXiv:1706.03762; Li et al. 2020, arXiv:2004.04092.
    """
    at_least(1, vocabulary=vocabulary, length=length, slots=slots, layers=layers)
    _check_heads(width, heads)
    if latent not in ("prefix", "memory"):
        raise ValueError(f"latent must be 'prefix' or 'memory', got {latent!r}")
    module = _Decoder(vocabulary, length, width, layers, heads, latent, slots)
    return sequence_network(module)


def sequence_network(module: linen.Module) -> SequenceNetwork:
    """The functions of a Linen module that has `logits`, `start` and `step`."""

    def init(key: Key, z: Latents) -> Params:
        one_token = jnp.full(1, PAD, jnp.int32)
        return init_variables(module, key, z, one_token, method="logits")["params"]

    def method(name: str):
        return lambda params, *a: module.apply({"params": params}, *a, method=name)

    return SequenceNetwork(init, method("logits"), method("start"), method("step"))


def _require_room(x: Array, length: int, *, num_unread: int = 0) -> None:
    if x.size > length + num_unread:
        raise ValueError(
            f"{x.size} tokens are too many for a Transformer of length {length}: make "
            "it with a greater length"
        )


def _check_heads(width: int, heads: int) -> None:
    at_least(1, width=width, heads=heads)
    if width % heads:
        raise ValueError(f"heads must divide the width, got {heads} and {width}")
