"""The variational autoencoder: a prior, a posterior and a likelihood."""

import jax
import jax.numpy as jnp

from vi_jax.distributions import Distribution
from vi_jax.model import Model
from vi_jax.types import Array, Component, Key, Latents, Params


def vae(prior: Component, posterior: Component, likelihood: Component) -> Model:
    """p(z) p(x | z) with q(z | x), each a Component with its own parameters.

    params = {"prior": ..., "posterior": ..., "likelihood": ...}. `init` raises
    ValueError where the prior or the likelihood does not fit the posterior's latents
    or the example. Ref: Kingma & Welling 2014, arXiv:1312.6114.
    """

    def init(key: Key, x: Array) -> Params:
        key_q, key_z, key_p, key_x = jax.random.split(key, 4)
        params = {"posterior": posterior.init(key_q, x)}
        draw = lambda params, key: _distribution(
            "posterior", posterior.apply(params, x)
        ).sample(key)
        # Shapes are all that matters: nothing is computed but the parameters.
        shape = jax.eval_shape(draw, params["posterior"], key_z)
        z = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shape)
        params["prior"] = prior.init(key_p, z)
        params["likelihood"] = likelihood.init(key_x, z)
        event = lambda name, part, *a: jax.eval_shape(
            lambda key, *a: _distribution(name, part.apply(*a)).sample(key), key, *a
        )
        _check_fit("prior", event("prior", prior, params["prior"]), "latents", z)
        of_x = event("likelihood", likelihood, params["likelihood"], z)
        _check_fit("likelihood", of_x, "example", x)
        return params

    return Model(
        init,
        prior=lambda params: prior.apply(params["prior"]),
        posterior=lambda params, x: posterior.apply(params["posterior"], x),
        likelihood=lambda params, z: likelihood.apply(params["likelihood"], z),
    )


def _check_fit(name: str, got: Latents, what: str, expected: Latents) -> None:
    got, expected = (jax.tree.map(jnp.shape, a) for a in (got, expected))
    if got != expected:
        raise ValueError(
            f"the {name} has shape {got} and the {what} {expected}: they must be the "
            "same, and `init` takes one example"
        )


def _distribution(name: str, found: Distribution) -> Distribution:
    if not hasattr(found, "sample"):
        raise ValueError(
            f"the {name} must make a distribution, this one makes "
            f"{type(found).__name__}: wrap a network, as in posteriors.normal(network) "
            "or likelihoods.bernoulli(network)"
        )
    return found
