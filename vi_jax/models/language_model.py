"""A model without latents: what a VAE is to be compared with."""

import jax.numpy as jnp

from vi_jax.distributions import Normal
from vi_jax.model import Model
from vi_jax.types import Array, Component, Key, Params


def without_latents(likelihood: Component) -> Model:
    """p(x) as a `Model`: z has no entries, and every log-weight is log p(x) itself.

    So every bound is log p(x), the rate is 0 and one sample is exact: a decoder of
    tokens is a plain language model, trained and measured by the same code as a VAE.
    """

    def init(key: Key, x: Array) -> Params:
        del x
        return {"likelihood": likelihood.init(key, jnp.zeros(0))}

    def nothing() -> Normal:
        return Normal(jnp.zeros(0), jnp.ones(0))

    return Model(
        init,
        prior=lambda params: nothing(),
        posterior=lambda params, x: nothing(),
        likelihood=lambda params, z: likelihood.apply(params["likelihood"], z),
    )
