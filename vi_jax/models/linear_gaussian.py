"""The linear-Gaussian model: probabilistic PCA and factor analysis, all in closed form.

z ~ N(0, I), x | z ~ N(W z + mu, N), with N = noise^2 I (probabilistic PCA) or diagonal
(factor analysis).
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from vi_jax.checks import at_least
from vi_jax.distributions import FullNormal, Normal
from vi_jax.model import ExactModel
from vi_jax.types import Array, Key, Params

Noise = Literal["isotropic", "diagonal"]


def linear_gaussian(latents: int, *, noise: Noise = "diagonal") -> ExactModel:
    """The model of d latents with its exact posterior and marginal.

    params = {"weight": [D, d], "mean": [D], "log_noise": [] or [D]}, where log_noise is
    [] for isotropic noise. p(x) = N(mu, W W^T + N); p(z | x) = N(m, S) with
    S = (I + W^T N^-1 W)^-1 and m = S W^T N^-1 (x - mu).
    Raises ValueError where latents is below 1 or noise is another word.
    Ref: Tipping & Bishop 1999; Rubin & Thayer 1982; Bishop 2006, section 12.2.
    """
    at_least(1, latents=latents)
    if noise not in ("isotropic", "diagonal"):
        raise ValueError(f"noise is {noise!r}: it must be 'isotropic' or 'diagonal'")

    def init(key: Key, x: Array) -> Params:
        weight = jax.random.normal(key, (x.size, latents), x.dtype) / latents**0.5
        return {
            "weight": weight,
            "mean": jnp.zeros(x.size, x.dtype),
            "log_noise": jnp.zeros(() if noise == "isotropic" else x.size, x.dtype),
        }

    def prior(params: Params) -> Normal:
        dtype = params["weight"].dtype
        return Normal(jnp.zeros(latents, dtype), jnp.ones(latents, dtype))

    return ExactModel(init, prior, _posterior, _likelihood, _marginal)


def _noise(params: Params) -> Array:
    """The standard deviation of each coordinate, [D]."""
    return jnp.broadcast_to(jnp.exp(params["log_noise"]), params["mean"].shape)


def posterior_map(params: Params) -> tuple[Array, Array]:
    """(gain [d, D], scale_tril [d, d]) of p(z | x) = N(gain (x - mu), L L^T).

    The exact posterior is a linear encoder with one covariance for every x.
    """
    noise = _noise(params)[:, None]
    scaled = params["weight"] / noise  # N^-1/2 W
    eye = jnp.eye(scaled.shape[1], dtype=scaled.dtype)
    # The precision is U U^T with U upper-triangular, so that L = U^-T: no inverse of
    # a matrix is formed and then factored, which float32 would not survive.
    upper = jnp.linalg.cholesky((eye + scaled.T @ scaled)[::-1, ::-1])[::-1, ::-1]
    scale_tril = solve_triangular(upper, eye, trans="T")
    return scale_tril @ (scale_tril.T @ (scaled / noise).T), scale_tril


def _posterior(params: Params, x: Array) -> FullNormal:
    gain, scale_tril = posterior_map(params)
    return FullNormal(gain @ (x - params["mean"]), scale_tril)


def _likelihood(params: Params, z: Array) -> Normal:
    return Normal(params["weight"] @ z + params["mean"], _noise(params))


def _marginal(params: Params) -> FullNormal:
    # W W^T + N = R^T R, R from the QR decomposition of [W^T; N^1/2]: in the sum itself,
    # small noise would be rounded away.
    rows = jnp.concatenate([params["weight"].T, jnp.diag(_noise(params))])
    upper = jnp.linalg.qr(rows, mode="r")
    sign = jnp.where(jnp.diagonal(upper) < 0, -1.0, 1.0)
    return FullNormal(params["mean"], upper.T * sign.astype(upper.dtype)[None])
