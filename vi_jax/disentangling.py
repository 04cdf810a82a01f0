"""Objectives that ask for latents independent of each other, or for q(z) at the prior.

q(z) is the aggregate posterior, the mean of q(z | x) over the data: these objectives
couple the examples of a batch. For beta-VAE and annealed capacity see
`objectives.batch_loss` and `objectives.capacity_loss`.

Each is a `LossFn` with the metrics of `objectives.batch_loss`, where `bound` is minus
the loss and `elbo`, `rate` and `distortion` are those at beta = 1, in nats.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from vi_jax.distributions import Normal
from vi_jax.divergences import kl
from vi_jax.math import known
from vi_jax.model import Model, sampled_terms
from vi_jax.objectives import EncodedBatch, penalised_loss
from vi_jax.total_correlation import (
    KlParts,
    LogWeights,
    batch_kl_parts,
    minibatch_stratified,
    permute_latents,
)
from vi_jax.types import Array, Batch, Component, Key, LossFn, Metrics, Params

Preprocess = Callable[[Key, Batch], Array]


def beta_tc_loss(
    model: Model,
    *,
    preprocess: Preprocess,
    num_data: int,
    alpha: float = 1.0,
    beta: float = 6.0,
    gamma: float = 1.0,
    log_weights: LogWeights = minibatch_stratified,
    num_samples: int = 1,
) -> LossFn:
    """Distortion + alpha I(x; z) + beta TC(z) + gamma sum_j KL(q(z_j) || p(z_j)).

    The parts are those of `total_correlation.batch_kl_parts`, logged under their names;
    `num_data` is the size of the training set, and `log_weights` is
    `minibatch_stratified` or `minibatch_weighted`. All weights at 1 are -ELBO, to
    rounding and for any log_weights; the rate is the sampled one, the sum of the parts.
    Raises ValueError where a weight is negative, and from the loss where prior and
    posterior are no diagonal Gaussians, or the batch is of one or above num_data.
    Ref: Chen et al. 2018, arXiv:1802.04942.
    """
    _check_weights(alpha=alpha, beta=beta, gamma=gamma)

    def penalty(key: Key, encoded: EncodedBatch) -> tuple[Array, Metrics]:
        del key
        q, prior = _diagonal(encoded)

        def of_draws(z: Array) -> KlParts:
            how = {"num_data": num_data, "log_weights": log_weights}
            return batch_kl_parts(q, prior, z, **how)

        parts = jax.vmap(of_draws, in_axes=1)(encoded.z)  # [k, n, ...]
        information = jnp.mean(parts.mutual_information)
        correlation = jnp.mean(parts.total_correlation)
        dimension_wise = jnp.mean(jnp.sum(parts.marginal_kl, -1))
        value = alpha * information + beta * correlation + gamma * dimension_wise
        return value, {
            "mutual_information": information,
            "total_correlation": correlation,
            "dimension_wise_kl": dimension_wise,
        }

    return penalised_loss(
        model,
        preprocess=preprocess,
        penalty=penalty,
        num_samples=num_samples,
        terms=sampled_terms,
    )


def with_discriminator(model: Model, discriminator: Component) -> Model:
    """`model` over {"model": ..., "discriminator": ...}, the params of `factor_loss`.

    To start the training, and to evaluate what comes of it: `init` makes the parameters
    of the discriminator, a Component [d] -> [2], too; nothing else reads them.
    """

    def init(key: Key, x: Array) -> Params:
        key_model, key_z, key_discriminator = jax.random.split(key, 3)
        params = model.init(key_model, x)
        z = model.posterior(params, x).sample(key_z)
        return {
            "model": params,
            "discriminator": discriminator.init(key_discriminator, z),
        }

    return Model(
        init,
        prior=lambda params: model.prior(params["model"]),
        posterior=lambda params, x: model.posterior(params["model"], x),
        likelihood=lambda params, z: model.likelihood(params["model"], z),
    )


def factor_loss(
    model: Model,
    discriminator: Component,
    *,
    preprocess: Preprocess,
    gamma: float,
    num_samples: int = 1,
) -> LossFn:
    """FactorVAE: -ELBO + gamma TC(z), with the TC that a classifier of z sees.

    The parameters are those of `with_discriminator`. The discriminator's logits [2] are
    of z ~ q(z) and of z ~ prod_j q(z_j), and TC = mean(logit 0 - logit 1) over draws of
    q(z), which is the total correlation itself at the best discriminator. Its own loss,
    the cross-entropy in nats, is added: the gradient of the sum is, for each of the two
    players, that of its own loss alone, and `bound` leaves the discriminator's out.
    The draws of prod_j q(z_j) are fresh draws of the same batch's posteriors, each
    latent permuted over the batch by itself (the paper takes a second batch).
    Metrics: `total_correlation` and `discriminator_loss` (log 2 where it sees nothing).
    Raises ValueError where gamma is negative, and from the loss for a batch of one, for
    other than 2 logits, or where the KL has no closed form or samples no gradient.
    Ref: Kim & Mnih 2018, arXiv:1802.05983.
    """
    _check_weights(gamma=gamma)

    def loss(params: Params, key: Key, batch: Batch) -> tuple[Array, Metrics]:
        def logits(params: Params, z: Array) -> Array:
            return _logits(discriminator, params["discriminator"], z)

        def penalty(key: Key, encoded: EncodedBatch) -> tuple[Array, Metrics]:
            _check_batch(encoded)
            # The encoder learns from the discriminator, which does not learn from it.
            seen = logits(stop_gradient(params), encoded.z)
            correlation = jnp.mean(seen[..., 0] - seen[..., 1])
            apart = _fresh_and_permuted(key, encoded)
            joint, product = (
                jnp.mean(jax.nn.log_softmax(logits(params, stop_gradient(z))), (0, 1))
                for z in (encoded.z, apart)
            )
            return _rate(encoded) + gamma * correlation, {
                "total_correlation": correlation,
                "discriminator_loss": -0.5 * (joint[0] + product[1]),
            }

        of_model = penalised_loss(
            model, preprocess=preprocess, penalty=penalty, num_samples=num_samples
        )
        value, metrics = of_model(params["model"], key, batch)
        return value + metrics["discriminator_loss"], stop_gradient(metrics)

    return loss


def _logits(discriminator: Component, params: Params, z: Array) -> Array:
    """Those of z [n, k, d], [n, k, 2]."""
    found = jax.vmap(jax.vmap(lambda z: discriminator.apply(params, z)))(z)
    if found.shape[2:] != (2,):
        raise ValueError(
            f"the discriminator gives {list(found.shape[2:])}: needed are 2 logits, of "
            "z ~ q(z) and of z with each latent permuted"
        )
    return found


def _fresh_and_permuted(key: Key, encoded: EncodedBatch) -> Array:
    """New draws of the posteriors, each latent permuted by itself, [n, k, d]."""
    key_z, key_permute = jax.random.split(key)
    n, k = encoded.z.shape[:2]
    draws = jax.vmap(lambda q, keys: jax.vmap(q.sample)(keys))
    z = draws(encoded.posterior, jax.random.split(key_z, (n, k)))
    permute = jax.vmap(permute_latents, in_axes=(0, 1), out_axes=1)
    return permute(jax.random.split(key_permute, k), z)


def covariance_of_means(posteriors: Normal) -> Array:
    """Cov_x(E[z | x]) of posteriors [n, d], divided by n - 1, [d, d]: DIP-VAE-I."""
    return jnp.atleast_2d(jnp.cov(posteriors.loc, rowvar=False))


def covariance_of_latents(posteriors: Normal) -> Array:
    """Cov(z) = Cov_x(E[z | x]) + E_x Var(z | x) under q(z), [d, d]: DIP-VAE-II."""
    within = jnp.diag(jnp.mean(posteriors.scale**2, 0))
    return covariance_of_means(posteriors) + within


def dip_loss(
    model: Model,
    *,
    preprocess: Preprocess,
    covariance: Callable[[Normal], Array],
    lambda_offdiag: float,
    lambda_diag: float,
    num_samples: int = 1,
) -> LossFn:
    """-ELBO + l_o sum_{i != j} C_ij^2 + l_d sum_i (C_ii - 1)^2, C that of a batch.

    C is `covariance_of_means` (DIP-VAE-I; the paper has l_d = 10 l_o) or
    `covariance_of_latents` (DIP-VAE-II; l_d = l_o). Metric: `covariance_penalty`, both
    weighted sums together.
    Raises ValueError where a weight is negative, and from the loss where prior and
    posterior are no diagonal Gaussians over [d], or for a batch of one.
    Ref: Kumar et al. 2018, arXiv:1711.00848.
    """
    _check_weights(lambda_offdiag=lambda_offdiag, lambda_diag=lambda_diag)

    def penalty(key: Key, encoded: EncodedBatch) -> tuple[Array, Metrics]:
        del key
        _check_batch(encoded)
        c = covariance(_diagonal(encoded)[0])
        variances = jnp.diagonal(c)
        off_diagonal = jnp.sum((c - jnp.diag(variances)) ** 2)
        of_c = lambda_offdiag * off_diagonal + lambda_diag * jnp.sum(
            (variances - 1) ** 2
        )
        return _rate(encoded) + of_c, {"covariance_penalty": of_c}

    return penalised_loss(
        model, preprocess=preprocess, penalty=penalty, num_samples=num_samples
    )


Kernel = Callable[[Array, Array], Array]
"""(a [d], b [d]) -> [], positive definite and 1 at a = b."""


def gaussian_kernel(bandwidth: float) -> Kernel:
    """exp(-|a - b|^2 / (2 bandwidth^2)). Raises ValueError for a bandwidth <= 0."""
    _check_positive("bandwidth", bandwidth)
    return lambda a, b: jnp.exp(-0.5 * jnp.sum(((a - b) / bandwidth) ** 2))


def inverse_multiquadratic_kernel(scale: float) -> Kernel:
    """1 / (1 + |a - b|^2 / scale^2), whose tails still tell points far apart.

    scale = sqrt(2 d) is usual for d latents under N(0, I).
    Raises ValueError for a scale <= 0. Ref: Tolstikhin et al. 2018, arXiv:1711.01558.
    """
    _check_positive("scale", scale)
    return lambda a, b: 1 / (1 + jnp.sum(((a - b) / scale) ** 2))


def mmd_squared(kernel: Kernel, a: Array, b: Array) -> Array:
    """The squared maximum mean discrepancy of the laws of a [n, d] and b [m, d], [].

    E k(a, a') + E k(b, b') - 2 E k(a, b), each a mean over pairs of different draws
    (the U-statistic): unbiased, so that it is below 0 about half the time where the
    laws agree. Raises ValueError where either has fewer than 2 draws.
    Ref: Gretton et al. 2012, JMLR 13, lemma 6.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(
            f"needed: at least 2 draws of each law, got {len(a)} and {len(b)}"
        )
    gram = lambda a, b: jax.vmap(lambda a: jax.vmap(lambda b: kernel(a, b))(b))(a)

    def within(a: Array) -> Array:
        k = gram(a, a)
        return (jnp.sum(k) - jnp.trace(k)) / (len(a) * (len(a) - 1))

    return within(a) + within(b) - 2 * jnp.mean(gram(a, b))


def mmd_loss(
    model: Model,
    *,
    preprocess: Preprocess,
    kernel: Kernel,
    alpha: float,
    lambda_mmd: float,
    num_samples: int = 1,
) -> LossFn:
    """InfoVAE: distortion + (1 - alpha) rate + (alpha + lambda - 1) MMD^2(q(z), p(z)).

    alpha = 1 is the MMD-VAE, whose posteriors are free to be as narrow as they like;
    alpha = 0 and lambda = 1 the ELBO. MMD^2 is `mmd_squared`, between the draws of the
    batch, one for each example, and as many draws of the prior, anew for each of the
    num_samples. It is at most 2, so that lambda is of the order of the distortion.
    Metric: `mmd_squared`.
    Raises ValueError where alpha is above 1 or alpha + lambda below 1, and from the
    loss for a batch of one, or where the KL has no closed form or samples no gradient.
    Ref: Zhao et al. 2019, arXiv:1706.02262.
    """
    _check_weights(
        **{"1 - alpha": 1 - alpha, "alpha + lambda_mmd - 1": alpha + lambda_mmd - 1}
    )

    def penalty(key: Key, encoded: EncodedBatch) -> tuple[Array, Metrics]:
        _check_batch(encoded)
        keys = jax.random.split(key, encoded.z.shape[1::-1])  # [k, n]
        of_prior = jax.vmap(jax.vmap(encoded.prior.sample))(keys)
        of_draw = lambda z, of_prior: mmd_squared(kernel, z, of_prior)
        discrepancy = jnp.mean(jax.vmap(of_draw, in_axes=(1, 0))(encoded.z, of_prior))
        value = (1 - alpha) * _rate(encoded) + (alpha + lambda_mmd - 1) * discrepancy
        return value, {"mmd_squared": discrepancy}

    return penalised_loss(
        model, preprocess=preprocess, penalty=penalty, num_samples=num_samples
    )


def _rate(encoded: EncodedBatch) -> Array:
    return jnp.mean(jax.vmap(lambda q: kl(q, encoded.prior))(encoded.posterior))


def _diagonal(encoded: EncodedBatch) -> tuple[Normal, Normal]:
    """The posteriors [n, d] and the prior [d], or ValueError."""
    q, prior = encoded.posterior, encoded.prior
    if not (type(q) is type(prior) is Normal and prior.loc.ndim == 1):
        raise ValueError(
            "the parts of the KL and the covariance of latents need diagonal Gaussians "
            f"over [d], got a posterior {type(q).__name__} and a prior "
            f"{type(prior).__name__}: use `factor_loss` or `mmd_loss`"
        )
    return q, prior


def _check_batch(encoded: EncodedBatch) -> None:
    shape = jnp.shape(encoded.z)
    if shape[0] < 2 or len(shape) != 3:
        raise ValueError(
            "needed: a batch of at least 2 examples with latents [d], got "
            f"{shape[0]} with latents {list(shape[2:])}"
        )


def _check_weights(**weights: float) -> None:
    for name, value in weights.items():
        if not all(0 <= v < float("inf") for v in known(value)):
            raise ValueError(f"{name} must be at least 0 and finite, got {value}")


def _check_positive(name: str, value: float) -> None:
    if not all(0 < v < float("inf") for v in known(value)):
        raise ValueError(f"{name} must be positive and finite, got {value}")
