"""What the latents of a trained model carry, from the posteriors of n examples.

`posteriors` is q(z | x_i) with a leading n in every leaf, as `jax.vmap` makes it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vi_jax.checks import at_least
from vi_jax.distributions import Distribution, Normal
from vi_jax.divergences import Estimate, kl
from vi_jax.math import log_mean_exp
from vi_jax.types import Array, Key, Metrics

ACTIVE_VARIANCE = 0.01


def active_units(means: Array) -> Array:
    """Which latents vary with x: Var_x E_q[z | x] > 0.01, bool [d] from means [n, d].

    Ref: Burda et al. 2016, arXiv:1509.00519, section 5.
    """
    return jnp.var(means, axis=0) > ACTIVE_VARIANCE


def kl_per_latent(posteriors: Normal, prior: Normal) -> Array:
    """The rate of each latent, mean_i KL(q(z_j | x_i) || p(z_j)), [d] in nats.

    posteriors [n, d] and prior [d] have independent coordinates, so that the sum is the
    rate. Raises ValueError where they are no diagonal Gaussians of these shapes.
    """
    check_diagonal(posteriors, prior)
    each = jax.vmap(jax.vmap(kl), in_axes=(0, None))(posteriors, prior)  # [n, d]
    return jnp.mean(each, axis=0)


def check_diagonal(posteriors: Distribution, prior: Distribution) -> None:
    """Raise ValueError unless these are diagonal Gaussians over [n, d] and [d]."""
    if not (type(posteriors) is type(prior) is Normal):
        raise ValueError(
            "the KL splits over latents for diagonal Gaussians only, got "
            f"{type(posteriors).__name__} and {type(prior).__name__}: use `split_rate`"
        )
    if posteriors.loc.ndim != 2 or posteriors.loc.shape[1:] != prior.loc.shape:
        raise ValueError(
            "needed: posteriors [n, d] and a prior [d], got "
            f"{posteriors.loc.shape} and {prior.loc.shape}"
        )


class RateSplit(NamedTuple):
    """The rate of n examples and its two parts, in nats, from the same draws."""

    rate: Estimate  # mean_i KL(q(z | x_i) || p(z)), the sum of the other two
    mutual_information: Estimate  # mean_i KL(q(z | x_i) || q(z)), at most log n
    aggregate_kl: Estimate  # KL(q(z) || p(z))


def split_rate(
    key: Key,
    posteriors: Distribution,
    prior: Distribution,
    *,
    num_samples: int = 1,
    chunk: int = 50,
) -> RateSplit:
    """The rate as I(x; z) + KL(q(z) || p(z)), q(z) = mean_i q(z | x_i) over n examples.

    From num_samples draws of each posterior, the density of q(z) being the exact sum of
    its n components: n^2 num_samples densities, chunk n num_samples of them at a time.
    Latents may be a tuple of layers.

    I(x; z) of n examples is at most log n, and in expectation below that of the
    population: compare it at one n. The errors are those of the draws, for these very
    n, and too wide rather than too narrow (each posterior has its share of the draws).
    Raises ValueError below 2 examples, 1 sample or a chunk of 1.
    Ref: Hoffman & Johnson 2016 (ELBO surgery); Makhzani et al. 2016, arXiv:1511.05644.
    """
    z, log_q, log_aggregate = _log_densities(key, posteriors, num_samples, chunk)
    log_prior = jax.vmap(jax.vmap(lambda z: jnp.sum(prior.log_prob(z))))(z)
    return RateSplit(
        rate=estimate(log_q - log_prior),
        mutual_information=estimate(log_q - log_aggregate),
        aggregate_kl=estimate(log_aggregate - log_prior),
    )


def mutual_information(
    key: Key, posteriors: Distribution, *, num_samples: int = 1, chunk: int = 50
) -> Estimate:
    """I_q(x; z) of n examples, mean_i KL(q(z | x_i) || q(z)) in nats, at most log n.

    That of `split_rate`, where there is no prior to compare with. Raises as it does.
    """
    _, log_q, log_aggregate = _log_densities(key, posteriors, num_samples, chunk)
    return estimate(log_q - log_aggregate)


def aggregate_kl(
    key: Key,
    posteriors: Distribution,
    prior: Distribution,
    *,
    num_samples: int = 1,
    chunk: int = 50,
) -> Estimate:
    """KL(q(z) || p(z)) of the aggregate posterior of n examples, as in `split_rate`."""
    how = {"num_samples": num_samples, "chunk": chunk}
    return split_rate(key, posteriors, prior, **how).aggregate_kl


def collapse_report(key: Key, posteriors: Distribution, prior: Distribution) -> Metrics:
    """What shows whether the posterior collapses, to log in training.

    `active_units` [], of all layers; `mutual_information` and `aggregate_kl` [], nats,
    of the n examples; and, for diagonal Gaussians, `kl_per_latent` [d].
    Raises ValueError as `split_rate` does.
    """
    means = jax.tree.leaves(jax.vmap(lambda q: q.mean())(posteriors))
    split = split_rate(key, posteriors, prior)
    report = {
        "active_units": sum(jnp.sum(active_units(layer)) for layer in means),
        "mutual_information": split.mutual_information.value,
        "aggregate_kl": split.aggregate_kl.value,
    }
    if type(posteriors) is type(prior) is Normal:
        report["kl_per_latent"] = kl_per_latent(posteriors, prior)
    return report


def _log_densities(
    key: Key, posteriors: Distribution, num_samples: int, chunk: int
) -> tuple[Array, Array, Array]:
    """z ~ q(z | x_i), log q(z | x_i) and log q(z), leading with [n, num_samples]."""

    def at(z: Array, i: Array) -> tuple[Array, Array, Array]:
        each = jax.vmap(lambda q: jnp.sum(q.log_prob(z)))(posteriors)  # [n]
        return z, each[i], log_mean_exp(each)

    return at_draws(at, key, posteriors, num_samples=num_samples, chunk=chunk)


def at_draws(
    f: Callable,
    key: Key,
    posteriors: Distribution,
    *,
    num_samples: int,
    chunk: int,
):
    """f(z, i) at num_samples draws z of each q(z | x_i), leading [n, num_samples].

    Of `chunk` examples at a time. Raises ValueError as `split_rate` does.
    """
    n = jax.tree.leaves(posteriors)[0].shape[0]
    at_least(2, examples=n)
    at_least(1, num_samples=num_samples, chunk=chunk)

    def of_example(i_and_keys):
        i, keys = i_and_keys
        z = jax.vmap(jax.tree.map(lambda leaf: leaf[i], posteriors).sample)(keys)
        return jax.vmap(f, in_axes=(0, None))(z, i)

    keys = jax.random.split(key, (n, num_samples))
    return jax.lax.map(of_example, (jnp.arange(n), keys), batch_size=min(chunk, n))


def estimate(values: Array) -> Estimate:
    """The mean of values [n, k, ...] over the draws n k, and its standard error."""
    draws = values.shape[0] * values.shape[1]
    return Estimate(
        jnp.mean(values, (0, 1)), jnp.std(values, (0, 1), ddof=1) / draws**0.5
    )
