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

    sum_i c_i dlog w_i, where c_i = dbound/dlog w_i, becomes the sum over those drawn of
    c_i dlog w_i / p_i, where p_i is the probability of drawing i: the mean is the same,
    for every estimator, since the Terms are what these differentiate. Where c is as
    uneven as the normalised weights of IWAE are, few samples hold nearly all of it.
    `terms` runs over all k, keeping nothing for the gradient, then over the few again.
    Raises ValueError, when called, where `terms` does not take so many samples.
    Ref: Burda et al. 2016, arXiv:1509.00519, section 3, draw one in proportion to c.
    """

    def few_of(params: Params, q: Distribution, z: Latents) -> Terms:
        every = stop_gradient(terms(params, q, z))
        log_w = jax.vmap(lambda t: log_weight(t, beta))(every)
        # What is no scalar is an error where the estimator's value is looked at.
        slopes = jax.grad(lambda log_w: jnp.sum(bound(log_w)))(log_w)
        shares = stop_gradient(abs(slopes))
        largest = jnp.max(shares)
        shares = jnp.where(largest > 0, jnp.maximum(shares, 1e-6 * largest), 1.0)
        # A copy, since an estimator may ask more than once, and gets the same draw.
        drawn, p = draw_few(jax.random.clone(key), shares, num_backward)
        try:
            few = terms(params, q, jax.tree.map(lambda a: a[drawn], z))
        except ValueError as error:  # not of all k, so it is their number
            raise ValueError(f"num_backward is {num_backward}: {error}") from error

        def with_gradient(every: Array, few: Array) -> Array:
            weight = jnp.expand_dims(1 / p, range(1, few.ndim))
            # Of an impossible sample the weight is 0, but -inf less -inf is nan.
            few = weight * jnp.where(few == -jnp.inf, 0.0, few)
            return every.at[drawn].add((few - stop_gradient(few)).astype(every.dtype))

        return jax.tree.map(with_gradient, every, few)

    return few_of


def draw_few(key: Key, shares: Array, num: int) -> tuple[Array, Array]:
    """`num` different indices into shares [k], and the probability of each, [num].

    i is drawn with p_i = min(1, shares_i / t), t such that these add up to num: large
    shares are always drawn, the others in proportion. With shares_i / p_i for the drawn
    and 0 for the others, that has each share as its mean, and of all ways to have it
    with num entries the least squared error. Shares are positive, num is below k;
    where rounding adds up, at k = 50,000, an index may come twice.
    Ref: Fearnhead & Clifford 2003, doi:10.1111/1467-9868.00421.
    """
    shares = shares.astype(jnp.promote_types(shares.dtype, jnp.float32))
    # The j largest are drawn for sure, and num - j of the rest, for the first j at
    # which the largest of the rest has a probability of at most 1.
    falling = jnp.sort(shares, descending=True)
    rest = jax.lax.cumsum(falling, reverse=True)[:num]
    t = rest / (num - jnp.arange(num))
    t = t[jnp.argmax(falling[:num] <= t)]
    p = jnp.minimum(1.0, shares / t)
    # Points at distance 1 on the line of the p, end to end: none of these has two.
    points = jax.random.uniform(key) + jnp.arange(num)
    ends = jnp.cumsum(p)
    drawn = jnp.searchsorted(ends, points, side="right", method="scan_unrolled")
    drawn = jnp.minimum(drawn, shares.size - 1)  # the p add up to num but for rounding
    return drawn, p[drawn]
