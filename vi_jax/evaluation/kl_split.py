"""The rate of n examples in three parts, with the exact density of their aggregate."""

from typing import NamedTuple

import jax.numpy as jnp

from vi_jax.distributions import Normal
from vi_jax.divergences import Estimate
from vi_jax.evaluation.latents import at_draws, check_diagonal, estimate
from vi_jax.total_correlation import KlParts, kl_parts
from vi_jax.types import Array, Key


class KlSplit(NamedTuple):
    """The rate of n examples and its three parts, in nats, from the same draws."""

    rate: Estimate  # mean_i KL(q(z | x_i) || p(z)), the sum of the next three
    mutual_information: Estimate  # mean_i KL(q(z | x_i) || q(z)), at most log n
    total_correlation: Estimate  # KL(q(z) || prod_j q(z_j))
    dimension_wise_kl: Estimate  # sum_j KL(q(z_j) || p(z_j))
    marginal_kl: Estimate  # KL(q(z_j) || p(z_j)) of each latent, [d]


def kl_split(
    key: Key,
    posteriors: Normal,
    prior: Normal,
    *,
    num_samples: int = 1,
    chunk: int = 50,
) -> KlSplit:
    """The rate as I(x; z) + TC(z) + sum_j KL(q(z_j) || p(z_j)) over n examples.

    q(z) is mean_i q(z | x_i), and TC(z) = KL(q(z) || prod_j q(z_j)).
    `split_rate` with KL(q(z) || p(z)) in two: what the latents [d] share with each
    other, and what each has beside its prior. The densities of q(z) and of each q(z_j)
    are the exact sums of their n components: n^2 num_samples d densities, chunk n
    num_samples d of them at a time. For the errors see `split_rate`. A few examples
    with narrow posteriors lie apart in several latents at once, so that their total
    correlation is far above that of the population: compare it at one n.
    Raises ValueError where posteriors [n, d] and prior [d] are no diagonal Gaussians,
    and as `split_rate` does.
    Ref: Chen et al. 2018, arXiv:1802.04942, equation 2.
    """
    check_diagonal(posteriors, prior)
    n = posteriors.loc.shape[0]
    log_weights = -jnp.log(jnp.full(n, n, posteriors.loc.dtype))

    def at(z: Array, i: Array) -> KlParts:
        return kl_parts(posteriors, prior, z, i, log_weights)

    parts = at_draws(at, key, posteriors, num_samples=num_samples, chunk=chunk)
    information, correlation, marginal = parts  # [n, k], [n, k], [n, k, d]
    dimension_wise = jnp.sum(marginal, -1)
    return KlSplit(
        rate=estimate(information + correlation + dimension_wise),
        mutual_information=estimate(information),
        total_correlation=estimate(correlation),
        dimension_wise_kl=estimate(dimension_wise),
        marginal_kl=estimate(marginal),
    )
