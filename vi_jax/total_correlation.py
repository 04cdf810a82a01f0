"""The KL of a VAE in three parts, from one batch: what x and z share, what the latents
share with each other, and how far each of them alone is from its prior.

log q(z | x_i) / p(z) = log q(z | x_i) / q(z)           index-code mutual information
                      + log q(z) / prod_j q(z_j)        total correlation
                      + sum_j log q(z_j) / p(z_j)       dimension-wise KL

q(z) is the mean of q(z | x) over N examples, of which a batch has M: its density at a
draw z ~ q(z | x_i) is a weighted sum over the batch, with weights that depend on i, as
the batch is sure to have x_i. Ref: Chen et al. 2018, arXiv:1802.04942.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vi_jax.distributions import Normal
from vi_jax.types import Array, Key

LogWeights = Callable[[int, int], Array]
"""(M, N) -> [M, M], entry [i, j] the log-weight of q(z | x_j) at a z ~ q(z | x_i)."""


def minibatch_stratified(batch_size: int, num_data: int) -> Array:
    """1/N for x_i itself, (N - 1) / (N (M - 1)) for each other example, in logs.

    Unbiased for q(z) and every q(z_j), over batches of x_i with M - 1 others drawn
    without replacement; 1/N throughout where the batch is all the data. Their
    logarithms are too low in the mean (Jensen), by less the larger M is.
    These are the weights of the paper's appendix averaged over the order of the others,
    one of which it singles out: the same mean, and never more variance.
    Raises ValueError where M is below 2 or N below M.
    """
    _check(batch_size, num_data, at_least=2)
    own = jnp.eye(batch_size, dtype=bool)
    others = (num_data - 1) / (num_data * (batch_size - 1))
    return jnp.log(jnp.where(own, 1 / num_data, others))


def minibatch_weighted(batch_size: int, num_data: int) -> Array:
    """1 / (N M) for every example, in logs.

    Biased: q(z) comes out as about q(z | x_i) / (N M) plus q(z) / N. At M = N, log q(z)
    and every log q(z_j) are log N too low, and so the total correlation of d latents is
    (d - 1) log N too high, the mutual information log N; neither has a gradient.
    Raises ValueError where M is below 1 or N below M.
    """
    _check(batch_size, num_data, at_least=1)
    return -jnp.log(jnp.full((batch_size, batch_size), float(num_data * batch_size)))


def _check(batch_size: int, num_data: int, at_least: int) -> None:
    if not at_least <= batch_size <= num_data:
        raise ValueError(
            f"needed: a batch of at least {at_least} examples and num_data, the size "
            f"of the training set, no smaller; got {batch_size} and {num_data}"
        )


class KlParts(NamedTuple):
    """The parts of log q(z | x) / p(z) at one z, in nats."""

    mutual_information: Array  # []   log q(z | x) / q(z)
    total_correlation: Array  # []   log q(z) / prod_j q(z_j)
    marginal_kl: Array  # [d]  log q(z_j) / p(z_j)


def kl_parts(
    posteriors: Normal, prior: Normal, z: Array, i: Array, log_weights: Array
) -> KlParts:
    """The parts at one z [d] ~ q(z | x_i), by q(z) = sum_j w_j q(z | x_j).

    posteriors are [m, d], the prior [d], log_weights log w [m]. Whatever the weights,
    the parts add up to log q(z | x_i) / p(z).
    """
    each_latent = jax.vmap(lambda q, z: q.log_prob(z))
    log_q = jax.vmap(each_latent, in_axes=(0, None))(posteriors, z)  # [m, d]
    log_aggregate = jax.nn.logsumexp(log_weights + jnp.sum(log_q, 1))
    log_marginals = jax.nn.logsumexp(log_weights[:, None] + log_q, axis=0)  # [d]
    return KlParts(
        mutual_information=jnp.sum(log_q[i]) - log_aggregate,
        total_correlation=log_aggregate - jnp.sum(log_marginals),
        marginal_kl=log_marginals - each_latent(prior, z),
    )


def batch_kl_parts(
    posteriors: Normal,
    prior: Normal,
    z: Array,
    *,
    num_data: int,
    log_weights: LogWeights = minibatch_stratified,
) -> KlParts:
    """`kl_parts` of a batch: z [M, d] with row i from row i of posteriors [M, d].

    Leaves lead with [M]. Raises ValueError as log_weights does.
    """
    m = z.shape[0]
    weights = log_weights(m, num_data)
    of_row = lambda z, i, w: kl_parts(posteriors, prior, z, i, w)
    return jax.vmap(of_row)(z, jnp.arange(m), weights)


def permute_latents(key: Key, z: Array) -> Array:
    """z [n, d] with each latent permuted over the n examples, by itself.

    From draws of q(z), draws of nearly prod_j q(z_j): the latents of a row come from
    different examples, but for one chance in n of any two of them.
    Ref: Kim & Mnih 2018, arXiv:1802.05983, algorithm 1.
    """
    return jax.random.permutation(key, z, axis=0, independent=True)
