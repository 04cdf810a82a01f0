"""The backward pass of few of many samples, at no bias."""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from vi_jax.bounds import Bound
from vi_jax.distributions import Distribution
from vi_jax.model import Terms, TermsFn, log_weight
from vi_jax.types import Array, Key, Latents, Params


def of_few(
    terms: TermsFn,
    bound: Bound,
    key: Key,
    *,
    num_backward: int,
    beta: float | Array = 1.0,
) -> TermsFn:
    """The Terms of all k samples, with the gradient of `num_backward` of them.

    sum_i c_i dlog w_i, where c_i = dbound/dlog w_i, becomes the sum over the drawn of
    c_i dlog w_i / p_i, with p_i the probability with which i is drawn: of the same mean
    for every estimator, since the Terms are what these differentiate. Of uneven c, such
    as the normalised weights of IWAE, the drawn few are nearly all. `terms` runs over
    the k without keeping anything for the gradient, then over the drawn once more.
    Ref: Burda et al. 2016, arXiv:1509.00519, section 3, draw one in proportion to c.
    """

    def few_of(params: Params, q: Distribution, z: Latents) -> Terms:
        every = stop_gradient(terms(params, q, z))
        log_w = jax.vmap(lambda t: log_weight(t, beta))(every)
        shares = abs(jax.grad(bound)(log_w))
        # No share is 0, since an estimator may weigh by another bound (`paired`).
        largest = jnp.max(shares)
        shares = jnp.where(largest > 0, jnp.maximum(shares, 1e-6 * largest), 1.0)
        # A copy, since an estimator may ask more than once, and gets the same draw.
        drawn, p = draw_few(jax.random.clone(key), shares, num_backward)
        few = terms(params, q, jax.tree.map(lambda a: a[drawn], z))

        def with_gradient(every: Array, few: Array) -> Array:
            weight = jnp.expand_dims(1 / p, range(1, few.ndim))
            # Of an impossible sample the weight is 0, but -inf less -inf is nan.
            few = weight * jnp.where(few == -jnp.inf, 0.0, few)
            return every.at[drawn].add((few - stop_gradient(few)).astype(every.dtype))

        return jax.tree.map(with_gradient, every, few)

    return few_of


def draw_few(key: Key, shares: Array, num: int) -> tuple[Array, Array]:
    """`num` different indices into shares [k], and the probability of each, [num].

    i is drawn with p_i = min(1, shares_i / c), c such that these add up to num: large
    shares are always drawn, the others in proportion. With shares_i / p_i for the drawn
    and 0 for the others, that has each share as its mean, and of all ways to have it
    with num entries the least squared error. Shares are positive, num is below k.
    Ref: Fearnhead & Clifford 2003, doi:10.1111/1467-9868.00421.
    """
    shares = shares.astype(jnp.promote_types(shares.dtype, jnp.float32))
    # The j largest are drawn for sure, and num - j of the rest, for the first j at
    # which the largest of the rest has a probability of at most 1.
    falling = jnp.sort(shares, descending=True)
    rest = jnp.cumsum(falling[::-1])[::-1][:num]
    c = rest / (num - jnp.arange(num))
    c = c[jnp.argmax(falling[:num] <= c)]
    p = jnp.minimum(1.0, shares / c)
    # Points at distance 1 on the line of the p, end to end: none of these has two.
    points = jax.random.uniform(key) + jnp.arange(num)
    drawn = jnp.searchsorted(jnp.cumsum(p), points, side="right", method="compare_all")
    drawn = jnp.minimum(drawn, shares.size - 1)  # the p add up to num but for rounding
    return drawn, p[drawn]
