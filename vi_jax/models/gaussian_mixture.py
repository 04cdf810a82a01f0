"""The Gaussian mixture: a latent class z, and x | z Gaussian; every sum is finite.

params = {"logits": [m], "loc": [m, D], "scale": ...}, where "scale" is unconstrained:
the log of a standard deviation, or a lower-triangular factor of the covariance whose
diagonal is held as its log.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from vi_jax.checks import at_least
from vi_jax.distributions import Categorical, Distribution, FullNormal, Mixture, Normal
from vi_jax.model import ExactModel
from vi_jax.types import Array, Key, Params

Covariance = Literal["spherical", "diagonal", "tied", "full"]


def gaussian_mixture(
    num_components: int, *, covariance: Covariance = "full"
) -> ExactModel:
    """The mixture of m Gaussians with its exact posterior and marginal.

    p(z) = Categorical, p(x | z) = N(mu_z, C_z), p(x) = sum_z p(z) p(x | z), and
    p(z | x), the responsibilities, by Bayes' rule. "scale" is [m] (spherical), [m, D]
    (diagonal), [D, D] (tied: all share one) or [m, D, D] (full).
    Raises ValueError where num_components is below 1 or covariance is another word.
    """
    at_least(1, num_components=num_components)
    if covariance not in get_args(Covariance):
        raise ValueError(
            f"covariance is {covariance!r}: it must be one of {get_args(Covariance)}"
        )

    def init(key: Key, x: Array) -> Params:
        shapes = {
            "spherical": (num_components,),
            "diagonal": (num_components, x.size),
            "tied": (x.size, x.size),
            "full": (num_components, x.size, x.size),
        }
        return {
            "logits": jnp.zeros(num_components, x.dtype),
            "loc": jax.random.normal(key, (num_components, x.size), x.dtype),
            "scale": jnp.zeros(shapes[covariance], x.dtype),
        }

    def components(params: Params) -> Distribution:  # leaves [m, ...]
        loc, scale = params["loc"], params["scale"]
        if covariance == "spherical":
            scale = jnp.broadcast_to(scale[:, None], loc.shape)
        if covariance in ("spherical", "diagonal"):
            return Normal(loc, jnp.exp(scale))
        tril = scale_tril(scale)
        return FullNormal(loc, jnp.broadcast_to(tril, (*loc.shape, loc.shape[1])))

    def likelihood(params: Params, z: Array) -> Distribution:
        return jax.tree.map(lambda leaf: leaf[z], components(params))

    def posterior(params: Params, x: Array) -> Categorical:
        log_lik = jax.vmap(lambda c: c.log_prob(x))(components(params))
        return Categorical(jax.nn.log_softmax(params["logits"]) + log_lik)

    return ExactModel(
        init,
        prior=lambda params: Categorical(params["logits"]),
        posterior=posterior,
        likelihood=likelihood,
        marginal=lambda params: Mixture(params["logits"], components(params)),
    )


def scale_tril(scale: Array) -> Array:
    """The lower-triangular L of a covariance L L^T from unconstrained [..., D, D]."""
    eye = jnp.eye(scale.shape[-1], dtype=bool)
    return jnp.tril(jnp.where(eye, jnp.exp(jnp.where(eye, scale, 0.0)), scale))


def unconstrained(tril: Array) -> Array:
    """The inverse of `scale_tril`."""
    eye = jnp.eye(tril.shape[-1], dtype=bool)
    return jnp.where(eye, jnp.log(jnp.where(eye, tril, 1.0)), tril)
