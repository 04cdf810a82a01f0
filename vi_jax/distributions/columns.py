"""A row of a table: independent continuous, binary and categorical columns."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np

from vi_jax.distributions.base import LOG_2PI, register
from vi_jax.types import Array, Key


@register
class MixedColumns:
    """Independent columns of one row x [columns]; a NaN entry is a missing value.

    num_logits says what each column is: 0 a Gaussian N(loc, scale^2), 1 a coin from one
    logit, m >= 2 a category from m logits; codes are integers from 0, as floats.
    loc and scale [g] are of the Gaussians and logits [sum of num_logits] of the others,
    each in the order of the columns.

    log p(x) = the sum over the entries that are not NaN of log p(x_j): since columns
    are independent given the parameters, to leave a term out is to integrate, or sum,
    over its entry. Ref: Nazabal et al. 2020, arXiv:1807.03653.
    """

    loc: Array
    scale: Array
    logits: Array
    num_logits: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    pathwise: ClassVar[bool] = False

    def log_probs(self, x: Array) -> Array:
        """log p(x_j) of each column, [columns], in nats; 0 where x_j is NaN.

        -inf for a code that is none of the column's.
        """
        return self._terms(x)[places(self.num_logits).order]

    def log_prob(self, x: Array) -> Array:
        return jnp.sum(self._terms(x))

    def _terms(self, x: Array) -> Array:
        """log p(x_j), the continuous columns first, then binary and categorical."""
        chex.assert_shape(x, (len(self.num_logits),))
        chex.assert_shape(self.logits, (sum(self.num_logits),))
        seen = ~jnp.isnan(x)
        # Filled before any arithmetic: the gradient of where(seen, f(nan), 0) is nan.
        x = jnp.where(seen, x, 0.0)
        at = places(self.num_logits)
        u = (x[at.gaussian] - self.loc) / self.scale
        of_gaussians = -0.5 * u**2 - jnp.log(self.scale) - 0.5 * LOG_2PI
        logits, coin = self._coin_logits(), x[at.coin]
        of_coins = jax.nn.log_sigmoid(jnp.where(coin == 1, logits, -logits))
        of_coins = jnp.where((coin == 0) | (coin == 1), of_coins, -jnp.inf)
        code = x[at.category]
        index = jnp.clip(jnp.round(code), 0, at.size - 1).astype(int)[:, None]
        of_codes = jnp.take_along_axis(self._category_log_probs(), index, 1)[:, 0]
        of_codes = jnp.where(index[:, 0] == code, of_codes, -jnp.inf)
        terms = jnp.concatenate([of_gaussians, of_coins, of_codes])
        return jnp.where(seen[at.columns], terms, 0.0)

    def sample(self, key: Key) -> Array:
        """A row [columns], complete; codes as floats."""
        of_gaussian, of_coin, of_category = jax.random.split(key, 3)
        dtype = jnp.result_type(self.loc)
        noise = jax.random.normal(of_gaussian, self.loc.shape, dtype)
        coins = jax.random.bernoulli(of_coin, jax.nn.sigmoid(self._coin_logits()))
        codes = jax.random.categorical(of_category, self._category_log_probs())
        return self._row(self.loc + self.scale * noise, coins, codes)

    def mean(self) -> Array:
        """The mean of continuous and binary columns, the likeliest code of the others.

        [columns]. A mean of codes would mean nothing; `probabilities` has all of them.
        """
        coins = jax.nn.sigmoid(self._coin_logits())
        codes = jnp.argmax(self._category_log_probs(), -1)
        return self._row(self.loc, coins, codes)

    def probabilities(self) -> tuple[Array | None, ...]:
        """The probabilities of each column's codes: [2], [m], or None if continuous."""
        stops = np.cumsum(self.num_logits)

        def one(size: int, stop: int) -> Array | None:
            logits = self.logits[stop - size : stop]
            if size == 1:
                logits = jnp.concatenate([jnp.zeros_like(logits), logits])
            return jax.nn.softmax(logits) if size else None

        return tuple(
            one(*each) for each in zip(self.num_logits, stops.tolist(), strict=True)
        )

    def _coin_logits(self) -> Array:
        return self.logits[places(self.num_logits).coin_logit]

    def _category_log_probs(self) -> Array:
        """[categorical columns, the most categories], -inf where there is none."""
        at = places(self.num_logits)
        return jax.nn.log_softmax(
            jnp.where(at.is_category, self.logits[at.category_logit], -jnp.inf)
        )

    def _row(self, gaussians: Array, coins: Array, codes: Array) -> Array:
        parts = [a.astype(self.loc.dtype) for a in (gaussians, coins, codes)]
        return jnp.concatenate(parts)[places(self.num_logits).order]


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the columns of each kind, and their logits, are: integers, not traced."""

    columns: np.ndarray  # [columns], the continuous ones first, then coins, categories
    order: np.ndarray  # [columns], which puts them back
    gaussian: np.ndarray  # [g], columns
    coin: np.ndarray  # [b], columns
    coin_logit: np.ndarray  # [b], places in the logits
    category: np.ndarray  # [q], columns
    category_logit: np.ndarray  # [q, size], places in the logits
    is_category: np.ndarray  # bool [q, size], False beyond a column's own categories
    size: np.ndarray  # [q], categories of each


def places(num_logits: Sequence[int]) -> Places:
    """Where the columns that `num_logits` describes, and their logits, are.

    Raises ValueError where there is no column or a number is negative.
    """
    sizes = np.array(num_logits, int)
    if sizes.ndim != 1 or not sizes.size or (sizes < 0).any():
        raise ValueError(
            "num_logits must be 0 (continuous), 1 (binary) or the number of categories "
            f"for each column, got {tuple(num_logits)}"
        )
    starts = np.cumsum(sizes) - sizes
    coin, category = np.flatnonzero(sizes == 1), np.flatnonzero(sizes >= 2)
    place = np.arange(max(sizes.max(), 2))
    inside = place[None, :] < sizes[category][:, None]
    logit = np.where(inside, starts[category][:, None] + place[None, :], 0)
    columns = np.concatenate([np.flatnonzero(sizes == 0), coin, category])
    return Places(
        columns=columns,
        order=np.argsort(columns),
        gaussian=np.flatnonzero(sizes == 0),
        coin=coin,
        coin_logit=starts[coin],
        category=category,
        category_logit=logit,
        is_category=inside,
        size=sizes[category],
    )
