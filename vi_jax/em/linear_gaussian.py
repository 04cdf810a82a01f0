"""EM for the linear-Gaussian model: probabilistic PCA and factor analysis."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vi_jax.distributions import LOG_2PI
from vi_jax.em.loop import Fit, Steps, em
from vi_jax.maximum_likelihood import Moments, check_latents, moments
from vi_jax.models.linear_gaussian import Noise, linear_gaussian, posterior_map
from vi_jax.types import Array, Key, Params


class LinearPosterior(NamedTuple):
    """q(z | x) = N(gain (x - center), L L^T) for every x at once."""

    gain: Array  # [d, D]
    center: Array  # [D]
    scale_tril: Array  # [d, d], L


def linear_gaussian_steps(
    latents: int, *, noise: Noise = "diagonal", floor: float = 1e-6
) -> Steps:
    """The half-steps of EM, for `em(steps, params, moments(x))`; q: LinearPosterior.

    They see the data as `models.linear_gaussian.moments`, all that a Gaussian knows of
    them: an iteration costs O(min(n, D) D d) whatever n. The variance of the noise is
    kept above `floor` times that of its column (isotropic: of their mean).
    Raises ValueError as `linear_gaussian` does, or where floor is outside (0, 1).
    Ref: Rubin & Thayer 1982; Tipping & Bishop 1999, appendix B.
    """
    linear_gaussian(latents, noise=noise)
    if not 0 < floor < 1:
        raise ValueError(f"floor is a share of the variance, in (0, 1), got {floor}")

    def m_step(q: LinearPosterior, data: Moments) -> Params:
        # The regression of x on z, whose second moment adds q's covariance.
        means = data.root @ q.gain.T  # [m, d]
        second = means.T @ means + q.scale_tril @ q.scale_tril.T
        weight = jax.scipy.linalg.solve(second, means.T @ data.root, assume_a="pos").T
        offset = weight @ (q.gain @ (data.mean - q.center))
        # Sums of squares: no variance is the small difference of two large ones.
        residual = jnp.sum((data.root - means @ weight.T) ** 2, 0)
        variance = residual + jnp.sum((weight @ q.scale_tril) ** 2, 1)
        variance, least = _tied(variance, noise), floor * _column_variance(data, noise)
        log_noise = 0.5 * jnp.log(jnp.maximum(variance, least))
        return {"weight": weight, "mean": data.mean - offset, "log_noise": log_noise}

    return Steps(_e_step, m_step)


def _e_step(params: Params, data: Moments) -> tuple[LinearPosterior, Array]:
    gain, scale_tril = posterior_map(params)
    # Deviations from params' mean rather than from the data's.
    deviations = jnp.vstack([data.root, (data.mean - params["mean"])[None]])
    means = deviations @ gain.T
    noise = jnp.broadcast_to(jnp.exp(params["log_noise"]), data.mean.shape)
    residual = (deviations - means @ params["weight"].T) / noise[None]
    # x^T C^-1 x = |N^-1/2 (x - W m)|^2 + |m|^2 at m = E[z | x]: nothing cancels.
    square = jnp.sum(residual**2) + jnp.sum(means**2)
    log_det = jnp.sum(jnp.log(noise)) - jnp.sum(jnp.log(jnp.diagonal(scale_tril)))
    log_px = -0.5 * (square + noise.size * LOG_2PI) - log_det
    return LinearPosterior(gain, params["mean"], scale_tril), log_px


def _tied(variance: Array, noise: Noise) -> Array:
    return jnp.mean(variance) if noise == "isotropic" else variance


def _column_variance(data: Moments, noise: Noise) -> Array:
    return _tied(jnp.sum(data.root**2, 0), noise)


def fit_linear_gaussian(
    key: Key,
    x: Array,
    latents: int,
    *,
    noise: Noise = "diagonal",
    num_iterations: int = 1000,
    tolerance: float = 1e-6,
    floor: float = 1e-6,
) -> Fit:
    """Fit p(x) to x [n, D] by EM from random weights: factor analysis, or pPCA by EM.

    Compiled; log p(x) never falls but for rounding, which ends it 0.001 nats early on
    MNIST in float32. x is data, not to be traced.
    Raises ValueError as `moments`, `check_latents` and `linear_gaussian_steps` do; for
    diagonal noise also where a column is constant, at the start, or where its noise has
    reached the floor, at the end (a Heywood case), naming it. To have those parameters
    all the same, call `em` with `linear_gaussian_steps`.
    """
    linear_gaussian_steps(latents, noise=noise, floor=floor)
    data = moments(x)
    if noise == "diagonal":
        _check_columns(np.asarray(x))
    # Factor analysis is blind to the scale of a column, pPCA is not.
    spread = jnp.atleast_1d(jnp.sqrt(_column_variance(data, noise)))
    check_latents(data.root / spread[None], latents)
    fit = _fit(key, data, latents, noise, floor, num_iterations, tolerance)
    _check_noise(fit.params, data, noise, floor)
    return fit


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _fit(
    key: Key, data: Moments, latents: int, noise, floor, num_iterations, tolerance
):
    # Each column starts as half signal, half noise.
    half = 0.5 * _column_variance(data, noise)
    weight = jax.random.normal(key, (data.mean.size, latents), data.mean.dtype)
    weight = weight * jnp.atleast_1d(jnp.sqrt(half / latents))[:, None]
    start = {"weight": weight, "mean": data.mean, "log_noise": 0.5 * jnp.log(half)}
    steps = linear_gaussian_steps(latents, noise=noise, floor=floor)
    return em(steps, start, data, num_iterations=num_iterations, tolerance=tolerance)


def _check_columns(x: np.ndarray) -> None:
    constant = (x == x[:1]).all(0)
    if constant.any():
        raise ValueError(
            f"columns {_few(constant)} of x are constant, so that their noise would be "
            "0: drop them, or use noise='isotropic'"
        )


def _check_noise(params: Params, data: Moments, noise: Noise, floor: float) -> None:
    # A hair above the floor, which went through a logarithm.
    least = 1.001 * floor * np.asarray(_column_variance(data, noise))
    collapsed = np.exp(2 * np.asarray(params["log_noise"])) <= least
    if collapsed.any():
        where = "" if noise == "isotropic" else f" of columns {_few(collapsed)}"
        raise ValueError(
            f"the noise{where} fell to the floor, {floor:g} of the variance (a Heywood "
            "case: the latents reproduce them exactly): pass fewer latents, drop "
            "columns that others determine, or use noise='isotropic'"
        )


def _few(mask: np.ndarray) -> str:
    found = [int(i) for i in np.flatnonzero(mask)]
    return (
        f"{found[:5]}" if len(found) <= 5 else f"{found[:5]} and {len(found) - 5} more"
    )
