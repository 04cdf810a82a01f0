"""Priors p(z): Components with `init(key, z)` and `apply(params)`."""

import jax
import jax.numpy as jnp

from vi_jax.distributions import Bernoulli, Categorical, Mixture, Normal
from vi_jax.types import Array, Component, Key, Params


def standard_normal(latents: int) -> Component:
    """N(0, I) over [latents], without parameters."""

    def apply(params: Params) -> Normal:
        del params
        return Normal(jnp.zeros(latents), jnp.ones(latents))

    return Component(lambda key, z: {}, apply)


def bernoulli(latents: int) -> Component:
    """Fair coins [latents], without parameters: for `posteriors.bernoulli`."""
    return Component(lambda key, z: {}, lambda params: Bernoulli(jnp.zeros(latents)))


def categorical(num_classes: int) -> Component:
    """Classes of equal chance, without parameters: for `posteriors.categorical`."""
    apply = lambda params: Categorical(jnp.zeros(num_classes))
    return Component(lambda key, z: {}, apply)


def gaussian_mixture(num_components: int) -> Component:
    """A learned mixture of diagonal Gaussians, shaped as the latents it is given.

    Components start at draws from N(0, I) with unit scale and equal weights. KL to it
    has no closed form, so the ELBO needs `sampled_terms`. Ref: Dilokthanakul et al.
    2016, arXiv:1611.02648.
    """

    def init(key: Key, z: Array) -> Params:
        shape = (num_components, *z.shape)
        return {
            "logits": jnp.zeros(num_components),
            "loc": jax.random.normal(key, shape),
            "log_scale": jnp.zeros(shape),
        }

    def apply(params: Params) -> Mixture:
        components = Normal(params["loc"], jnp.exp(params["log_scale"]))
        return Mixture(params["logits"], components)

    return Component(init, apply)
