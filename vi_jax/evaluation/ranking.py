"""How well scores rank what a user has not seen, for one user, and over users."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from vi_jax.types import Array


def recall_at(scores: Array, held: Array, seen: Array, k: int) -> Array:
    """The share of the held-out items among the k best, of those that fit there, [].

    |best k of the unseen that are held out| / min(k, |held out|), so that the best
    ranking has 1 for every k. scores is [items], higher is better; `held` and `seen`
    are masks [items] (numbers other than 0 count). Seen items are never ranked; of
    equal scores the first item goes first. nan where nothing is held out or the score
    of an unseen item is nan.
    Raises ValueError where k is outside [1, items].
    Ref: Liang et al. 2018, arXiv:1802.05814.
    """
    hits, num_held = _hits(scores, held, seen, k)
    return jnp.sum(hits) / jnp.minimum(k, num_held)


def ndcg_at(scores: Array, held: Array, seen: Array, k: int) -> Array:
    """The discounted gain of the k best, as a share of the best possible one, [].

    DCG = sum_{r = 1..k} [the item at place r is held out] / log2(r + 1), divided by
    the same sum over r = 1..min(k, |held out|), which is its largest value. Arguments,
    nan and errors as in `recall_at`.
    Ref: Jarvelin & Kekalainen 2002; Liang et al. 2018, arXiv:1802.05814.
    """
    hits, num_held = _hits(scores, held, seen, k)
    place = jnp.arange(1, k + 1)
    gain = 1 / jnp.log2(place + 1.0)
    best = jnp.sum(jnp.where(place <= num_held, gain, 0.0))
    return jnp.sum(hits * gain) / best


def _hits(scores: Array, held: Array, seen: Array, k: int) -> tuple[Array, Array]:
    """Whether each of the k best is held out, float [k], and how many are held out."""
    chex.assert_rank(scores, 1)
    chex.assert_equal_shape([scores, held, seen])
    if not 1 <= k <= scores.size:
        raise ValueError(f"k is {k}: it must lie in [1, {scores.size}], the items")
    held, seen = held != 0, seen != 0
    # An unseen item that is impossible still comes before the seen ones.
    possible = jnp.maximum(scores, jnp.finfo(jnp.result_type(scores, float)).min)
    best = jax.lax.top_k(jnp.where(seen, -jnp.inf, possible), k)[1]
    hits = (held & ~seen)[best].astype(scores.dtype)
    # A nan would be ranked as the best of all.
    bad = jnp.any(jnp.isnan(scores) & ~seen)
    return jnp.where(bad, jnp.nan, hits), jnp.sum(held & ~seen)


class Interval(NamedTuple):
    """A mean over users, and where the mean of all such users is to be expected."""

    mean: float
    stderr: float
    low: float
    high: float


def mean_interval(values: np.ndarray, *, level: float = 0.95) -> Interval:
    """mean +- t stderr over values [n] of independent users, or of random splits.

    stderr is the standard deviation (of n - 1) / sqrt(n), t the quantile of Student's t
    with n - 1 degrees of freedom. Raises ValueError where there are fewer than two
    values, one is not finite (it is named), or the level is outside (0, 1).
    """
    from scipy import stats  # slow to import

    values = np.asarray(values, float)
    if values.ndim != 1 or len(values) < 2 or not 0 < level < 1:
        raise ValueError(
            "needed: values [n], n >= 2, and a level in (0, 1), got shape "
            f"{list(values.shape)} and {level}"
        )
    finite = np.isfinite(values)
    if not finite.all():
        i = int(finite.argmin())
        raise ValueError(f"value {i} is {values[i]}: every value must be finite")
    mean, stderr = values.mean(), values.std(ddof=1) / len(values) ** 0.5
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * stderr
    return Interval(*(float(v) for v in (mean, stderr, mean - half, mean + half)))
