"""What a model is, what a log-weight is, and what one does with a trained model.

Every function is written for one example x; `jax.vmap` adds samples and batches.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from vi_jax import sharding
from vi_jax.distributions import Distribution
from vi_jax.divergences import kl
from vi_jax.types import Array, Key, Latents, Params


class Model(NamedTuple):
    """p(x, z) and its amortised q(z | x), as pure functions of one example."""

    init: Callable[[Key, Array], Params]  # from one example x
    prior: Callable[[Params], Distribution]  # p(z)
    posterior: Callable[[Params, Array], Distribution]  # q(z | x)
    likelihood: Callable[[Params, Latents], Distribution]  # p(x | z)


class ExactModel(NamedTuple):
    """A `Model` whose posterior is the exact p(z | x) and whose p(x) is known.

    It serves wherever a Model does. `Model(exact.init, exact.prior, q,
    exact.likelihood)` is the same p(x, z) with an approximate posterior.
    """

    init: Callable[[Key, Array], Params]  # from one example x
    prior: Callable[[Params], Distribution]  # p(z)
    posterior: Callable[[Params, Array], Distribution]  # p(z | x)
    likelihood: Callable[[Params, Latents], Distribution]  # p(x | z)
    marginal: Callable[[Params], Distribution]  # p(x)


class Terms(NamedTuple):
    """The log densities of one (x, z), in nats."""

    log_lik: Array  # []         log p(x | z)
    log_prior: Array  # [] or [g]  log p(z), per group of latents
    log_post: Array  # [] or [g]  log q(z | x)


TermsFn = Callable[[Params, Distribution, Latents], Terms]
"""(params, q, z [k, ...]) -> Terms of [k] each: what an estimator differentiates."""


def log_weight(terms: Terms, beta: float | Array = 1.0) -> Array:
    """log w = log p(x | z) + beta (log p(z) - log q(z | x)), [].

    beta = 1 gives bounds on log p(x); any other beta tempers the KL term, which makes
    every bound its beta version. Raises ValueError for the terms of several samples.
    Ref: Higgins et al. 2017 (beta-VAE).
    """
    if jnp.ndim(terms.log_lik):
        # Their samples would be taken for groups of latents, and summed.
        raise ValueError(
            f"log_weight takes the terms of one sample, and log_lik has the shape "
            f"{jnp.shape(terms.log_lik)}: use jax.vmap over the samples"
        )
    chex.assert_equal_shape([terms.log_prior, terms.log_post])
    return terms.log_lik + beta * jnp.sum(terms.log_prior - terms.log_post)


def sampled_terms(model: Model, x: Array, *, num_chunks: int = 1) -> TermsFn:
    """The log densities of x at each z: right for every bound and estimator.

    num_chunks > 1 takes k / num_chunks samples at a time, which training has to hold
    in memory, and computes them again for the gradient; the values are the same.
    Raises ValueError from the function where num_chunks does not divide k.
    """

    def terms(params: Params, q: Distribution, z: Latents) -> Terms:
        prior = model.prior(params)

        def one(z: Latents) -> Terms:
            log_lik = model.likelihood(params, z).log_prob(x)
            return Terms(log_lik, prior.log_prob(z), q.log_prob(z))

        some = lambda z: jax.vmap(one)(sharding.split(z, "samples"))
        return sharding.in_parts(some, num_chunks)(z)

    return terms


def analytic_terms(model: Model, x: Array) -> TermsFn:
    """As `sampled_terms`, with log p(z) - log q(z | x) replaced by its mean, -KL.

    The variance of the KL term is gone. Right for the ELBO only: the other bounds need
    the log-weight of each sample. Raises ValueError where the KL has no closed form.
    """

    def terms(params: Params, q: Distribution, z: Latents) -> Terms:
        log_lik = jax.vmap(lambda z: model.likelihood(params, z).log_prob(x))(z)
        rate = jnp.full(log_lik.shape, kl(q, model.prior(params)))
        return Terms(log_lik, -rate, jnp.zeros_like(rate))

    return terms


def log_joint(model: Model, params: Params, x: Array, z: Latents) -> Array:
    """log p(x, z) = log p(x | z) + log p(z), []."""
    _check_context(model)
    log_prior = jnp.sum(model.prior(params).log_prob(z))
    return model.likelihood(params, z).log_prob(x) + log_prior


def generate(model: Model, params: Params, key: Key) -> Array:
    """The mean of p(x | z) at one draw z ~ p(z), shaped as x.

    For a draw of x itself: `model.likelihood(params, z).sample(key)`. For a temperature
    t: `model._replace(prior=...)`, such as `Normal(zeros, t * ones)`.
    """
    _check_context(model)
    return model.likelihood(params, model.prior(params).sample(key)).mean()


def infer(model: Model, params: Params, x: Array) -> Distribution:
    """The approximate posterior q(z | x) of one example."""
    _check_context(model)
    return model.posterior(params, x)


def reconstruct(model: Model, params: Params, key: Key, x: Array) -> Array:
    """The mean of p(x' | z) at one draw z ~ q(z | x), shaped as x."""
    z = infer(model, params, x).sample(key)
    return model.likelihood(params, z).mean()


def _check_context(model: Model) -> None:
    if callable(model):
        raise ValueError(
            "a conditional model is the Model of an example once it has its context: "
            "pass model(c), c one-hot of the class, say"
        )


def linear(a: Array, b: Array, t: Array) -> Array:
    """The straight path (1 - t) a + t b."""
    return (1 - t) * a + t * b


def spherical(a: Array, b: Array, t: Array) -> Array:
    """The great-circle path from a to b, at their length where they have the same.

    (sin((1 - t) w) a + sin(t w) b) / sin w, where w is the angle between a and b; the
    straight path where they are parallel or opposite (to 0.08 degrees) or one is 0.
    A straight path between draws of a wide Gaussian passes through its nearly empty
    middle; this one stays where the draws are. Ref: White 2016, arXiv:1609.04468.
    """
    squares = jnp.sum(a * a) * jnp.sum(b * b)
    cosine = jnp.sum(a * b) / jnp.sqrt(jnp.where(squares > 0, squares, 1.0))
    curved = (squares > 0) & (abs(cosine) < 1 - 1e-6)
    # A harmless angle where it is not used, so that gradients are finite there too.
    angle = jnp.arccos(jnp.where(curved, cosine, 0.0))
    arc = (jnp.sin((1 - t) * angle) * a + jnp.sin(t * angle) * b) / jnp.sin(angle)
    return jnp.where(curved, arc, linear(a, b, t))


def interpolate(
    model: Model,
    params: Params,
    x_a: Array,
    x_b: Array,
    *,
    num_points: int = 8,
    path: Callable[[Array, Array, Array], Array] = spherical,
) -> Array:
    """Decode a path between the posterior means of two examples, [num_points, ...].

    `path` is `linear` or `spherical`. The first and last points are the
    reconstructions, from the posterior mean, of x_a and x_b. For batches use jax.vmap:
    the angle of `spherical` is that of all that it is given.
    """
    z_a, z_b = infer(model, params, x_a).mean(), infer(model, params, x_b).mean()
    between = lambda t: jax.tree.map(lambda a, b: path(a, b, t), z_a, z_b)
    decode = lambda t: model.likelihood(params, between(t)).mean()
    return jax.vmap(decode)(jnp.linspace(0.0, 1.0, num_points))


def traverse(
    model: Model, params: Params, x: Array, *, num_points: int = 8, limit: float = 2.0
) -> Array:
    """Decode the posterior mean of x with one latent moved, [d, num_points, ...].

    Row j has z_j from -limit to limit, in equal steps, and the other latents at the
    mean of q(z | x). Raises ValueError where z is not one array [d].
    """
    z = infer(model, params, x).mean()
    if not isinstance(z, jax.Array) or z.ndim != 1:
        raise ValueError(f"needed: latents [d], got {jax.tree.map(jnp.shape, z)}")

    def decode(j: Array, value: Array) -> Array:
        return model.likelihood(params, z.at[j].set(value)).mean()

    values = jnp.linspace(-limit, limit, num_points)
    along = jax.vmap(decode, in_axes=(None, 0))
    return jax.vmap(along, in_axes=(0, None))(jnp.arange(z.size), values)
