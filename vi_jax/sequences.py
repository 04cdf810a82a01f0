"""Token sequences: what the first ids mean, padding, and word dropout.

A sequence is int32 [t]: its tokens, END, then PAD up to t. Where there is no END it was
cut at t. A token with a minus sign is one that a decoder may not read: see
`word_dropout`.
"""

import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vi_jax.math import known
from vi_jax.types import Array, Key

PAD, END, UNKNOWN = 0, 1, 2
FIRST_TOKEN = 3
"""The tokens of a vocabulary begin here."""


def pad(sequences: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """Each sequence with END and PAD behind it, int32 [n, length].

    Raises ValueError that names the first sequence that is empty, has an id that is no
    token, or is longer than length - 1, TypeError for an id that is no integer.
    """
    rows = np.full((len(sequences), length), PAD, np.int32)
    for i, tokens in enumerate(sequences):
        if not 1 <= len(tokens) < length:
            raise ValueError(
                f"sequence {i} has {len(tokens)} tokens: needed are 1 to {length - 1}, "
                "which leaves a place for the end"
            )
        tokens = [operator.index(token) for token in tokens]
        for token in (min(tokens), max(tokens)):
            if not UNKNOWN <= token < 2**31:
                raise ValueError(
                    f"sequence {i} has the id {token}, which is no token: those of a "
                    f"vocabulary begin at {FIRST_TOKEN}; {UNKNOWN} is an unknown one"
                )
        rows[i, : len(tokens)] = tokens
        rows[i, len(tokens)] = END
    return rows


def unpad(x: Array) -> list[list[int]]:
    """The tokens of each row of x [n, t], without END and what follows it.

    Raises ValueError where x has another rank.
    """
    if np.ndim(x) != 2:
        raise ValueError(f"x must be [n, t], got shape {np.shape(x)}")
    rows = []
    for row in np.asarray(x):
        ends = np.flatnonzero(row == END)
        rows.append(row[: ends[0] if len(ends) else len(row)].tolist())
    return rows


def word_dropout(key: Key, x: Array, rate: float | Array) -> Array:
    """x with some of its tokens marked, each with probability `rate`, shaped as x.

    A decoder reads UNKNOWN in place of a marked token when it predicts those behind it;
    that token is still to be predicted, and an encoder reads it as it is. The decoder
    cannot lean on its own words alone then, and has to ask z. Raises ValueError where
    a rate that is not traced is outside [0, 1].
    Ref: Bowman et al. 2016, arXiv:1511.06349.
    """
    if not all(np.all((0 <= r) & (r <= 1)) for r in map(np.asarray, known(rate))):
        raise ValueError(f"the rate of word dropout must be in [0, 1], got {rate}")
    marked = jax.random.bernoulli(key, rate, x.shape) & (x != END)
    return jnp.where(marked, -abs(x), x)


def true_tokens(x: Array) -> Array:
    """x as an encoder sees it, and as a decoder has to predict it: without marks."""
    return abs(x)


def readable_tokens(x: Array) -> Array:
    """x as a decoder reads it: UNKNOWN where a token is marked."""
    return jnp.where(x < 0, UNKNOWN, x)
