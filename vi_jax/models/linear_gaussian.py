"""The linear-Gaussian model, where every quantity is known in closed form.

z ~ N(0, I), x | z ~ N(W z + mu, diag(noise^2)). It is the ground truth that bounds and
estimators are tested with: with its exact posterior every log-weight is log p(x).
"""

import jax
import jax.numpy as jnp

from vi_jax.distributions import FullNormal, Normal
from vi_jax.model import Model
from vi_jax.types import Array, Key, Params


def linear_gaussian(latents: int) -> Model:
    """The model with its exact posterior as q(z | x).

    params = {"weight": [D, d], "mean": [D], "log_noise": [D]}. p(z | x) = N(m, S) with
    S = (I + W^T N^-1 W)^-1, m = S W^T N^-1 (x - mu), N = diag(noise^2).
    Ref: Tipping & Bishop 1999; Bishop 2006, section 12.2.
    """

    def init(key: Key, x: Array) -> Params:
        weight = jax.random.normal(key, (x.size, latents), x.dtype) / latents**0.5
        return {
            "weight": weight,
            "mean": jnp.zeros(x.size, x.dtype),
            "log_noise": jnp.zeros(x.size, x.dtype),
        }

    def prior(params: Params) -> Normal:
        dtype = params["weight"].dtype
        return Normal(jnp.zeros(latents, dtype), jnp.ones(latents, dtype))

    def posterior(params: Params, x: Array) -> FullNormal:
        scaled = params["weight"] * jnp.exp(-2 * params["log_noise"])[:, None]  # N^-1 W
        precision = jnp.eye(latents, dtype=x.dtype) + params["weight"].T @ scaled
        covariance = jnp.linalg.inv(precision)
        loc = covariance @ (scaled.T @ (x - params["mean"]))
        return FullNormal(loc, jnp.linalg.cholesky(covariance))

    def likelihood(params: Params, z: Array) -> Normal:
        loc = params["weight"] @ z + params["mean"]
        return Normal(loc, jnp.exp(params["log_noise"]))

    return Model(init, prior, posterior, likelihood)


def marginal(params: Params) -> FullNormal:
    """The exact p(x) = N(mu, W W^T + diag(noise^2))."""
    weight = params["weight"]
    covariance = weight @ weight.T + jnp.diag(jnp.exp(2 * params["log_noise"]))
    return FullNormal(params["mean"], jnp.linalg.cholesky(covariance))
