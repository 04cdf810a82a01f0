"""The linear-Gaussian model: probabilistic PCA and factor analysis, all in closed form.

z ~ N(0, I), x | z ~ N(W z + mu, N), with N = noise^2 I (probabilistic PCA) or diagonal
(factor analysis).
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

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
    if latents < 1:
        raise ValueError(f"latents must be at least 1, got {latents}")
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
    weight = params["weight"]
    covariance = weight @ weight.T + jnp.diag(_noise(params) ** 2)
    return FullNormal(params["mean"], jnp.linalg.cholesky(covariance))


class Moments(NamedTuple):
    """All that a Gaussian's likelihood knows of data x [n, D]."""

    mean: Array  # [D]
    root: Array  # [min(n, D), D], root^T root is the covariance, divided by n


def moments(x: Array) -> Moments:
    """The mean and a root of the covariance of x [n, D], without squaring: by QR.

    The small singular values of the root are good to 1e-7 of the largest in float32; an
    eigenvalue of a covariance matrix, their square, only to 1e-7 of the largest square.
    Raises ValueError where x is not [n, D] of at least two rows, has a NaN or an
    infinity (its place is named), or nothing varies.
    """
    x = np.asarray(x)
    if x.ndim != 2 or x.shape[0] < 2 or x.shape[1] < 1:
        raise ValueError(
            f"x has shape {list(x.shape)}: it must be [n, D], n >= 2 examples by row"
        )
    finite = np.isfinite(x)
    if not finite.all():
        i, j = divmod(int(np.argmin(finite)), x.shape[1])
        raise ValueError(f"x[{i}, {j}] is {x[i, j]}: every number must be finite")
    if (x == x[:1]).all():
        raise ValueError("all rows of x are the same: nothing varies")
    x = jnp.asarray(x)
    # LAPACK has no half precision.
    return _moments(x.astype(jnp.promote_types(jnp.result_type(x, float), "float32")))


@jax.jit
def _moments(x: Array) -> Moments:
    mean = jnp.mean(x, 0)
    mean = mean + jnp.mean(x - mean[None], 0)  # what the first sum rounded off
    return Moments(mean, jnp.linalg.qr((x - mean[None]) / len(x) ** 0.5, mode="r"))


def ppca_maximum_likelihood(x: Array, latents: int) -> Params:
    """The parameters of isotropic noise at which log p(x) over x [n, D] is greatest.

    mu = the mean, s^2 = the mean of the D - d smallest eigenvalues of the covariance
    (divided by n), W = U (Lambda - s^2 I)^(1/2) of the d largest: unique up to a
    rotation of the latents, which W leaves out by having orthogonal columns. Constant
    columns are allowed. For D > n too. x is data, not to be traced.
    Raises ValueError as `moments` and `check_latents` do.
    Ref: Tipping & Bishop 1999.
    """
    linear_gaussian(latents, noise="isotropic")
    found = moments(x)
    check_latents(found.root, latents)
    return _closed_form(found, latents)


@functools.partial(jax.jit, static_argnums=1)
def _closed_form(found: Moments, latents: int) -> Params:
    _, singular, axes = jnp.linalg.svd(found.root, full_matrices=False)
    noise_var = jnp.sum(singular[latents:] ** 2) / (found.mean.size - latents)
    excess = jnp.maximum(singular[:latents] ** 2 - noise_var, 0.0)
    return {
        "weight": axes[:latents].T * jnp.sqrt(excess)[None, :],
        "mean": found.mean,
        "log_noise": 0.5 * jnp.log(noise_var),
    }


def check_latents(root: Array, latents: int) -> None:
    """Raise ValueError where as many latents leave no noise: p(x) has no maximum.

    root is that of `moments`; its rank is at most D, and n - 1.
    """
    rank = int(np.linalg.matrix_rank(np.asarray(root)))
    if latents >= rank:
        raise ValueError(
            f"latents is {latents}: it must be below {rank}, the number of directions "
            f"in which these data of {root.shape[1]} columns vary, so that some noise "
            "is left; pass fewer latents or more data"
        )
