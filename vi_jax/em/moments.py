"""Gaussian components in coordinates of their own: log densities, moments, maxima.

q enters the M-step through its moments alone, so these are summed block by block of
rows, which stay in the cache from the differences x - mu to their sums, and no array of
n by m is needed. Each component measures the data in coordinates whitened by, and
centred at, the parameters it has, so that float32 loses no digits where the data lie
far from 0, and few where a covariance is nearly singular.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vi_jax.distributions import LOG_2PI
from vi_jax.models.gaussian_mixture import Covariance, scale_tril, unconstrained
from vi_jax.types import Array, Params

# Rows in one block: 20 components of 10 dimensions then fill 0.4 MB in float32.
BLOCK = 500


class Moments(NamedTuple):
    """All that the M-step needs of q(z | x_i), i = 1..n."""

    weight: Array  # [m] sum_i q_i(m), the number of examples of each component
    loc: Array  # [m, D] their weighted mean
    # B with B B^T their weighted covariance [m, D, D], or their deviations [m, D].
    factor: Array


class Frame(NamedTuple):
    """Each component's own coordinates, y = L^-1 (x - loc)."""

    log_norm: Array  # [m] log p(z, x) at y = 0
    loc: Array  # [m, D]
    scale: Array  # [m, D, D] L, lower-triangular, or its diagonal [m, D]
    inverse: Array  # of scale


def maximise(q: Moments, covariance: Covariance, floor: float | Array) -> Params:
    """The parameters that maximise E_q log p(x, z) with no variance below the floor."""
    share = q.weight / jnp.sum(q.weight)
    # A finite logit keeps an empty component differentiable.
    logits = jnp.log(jnp.maximum(share, jnp.finfo(share.dtype).tiny))
    return {
        "logits": logits,
        "loc": q.loc,
        "scale": _scale(q.factor, share, covariance, floor),
    }


def _scale(factor: Array, share: Array, covariance: Covariance, floor) -> Array:
    if covariance == "spherical":
        return 0.5 * jnp.log(jnp.maximum(jnp.mean(factor**2, axis=1), floor))
    if covariance == "diagonal":
        return 0.5 * jnp.log(jnp.maximum(factor**2, floor))
    if covariance == "tied":
        side_by_side = jnp.moveaxis(factor * jnp.sqrt(share)[:, None, None], 0, 1)
        factor = side_by_side.reshape(len(side_by_side), -1)  # [D, m D]
    # The roots of the eigenvalues of B B^T, without squaring B.
    directions, roots, _ = jnp.linalg.svd(factor, full_matrices=False)
    roots = jnp.maximum(roots, jnp.sqrt(floor))
    upper = jnp.linalg.qr(roots[..., :, None] * directions.mT, mode="r")
    signs = jnp.where(jnp.diagonal(upper, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
    return unconstrained(upper.mT * signs.astype(upper.dtype)[..., None, :])


def frame(params: Params, covariance: Covariance) -> Frame:
    """The coordinates in which each component at params is N(0, I)."""
    loc, scale = params["loc"], params["scale"]
    num_components, dim = loc.shape
    if covariance in ("spherical", "diagonal"):
        scale = scale[:, None] if covariance == "spherical" else scale
        scale = jnp.broadcast_to(jnp.exp(scale), loc.shape)
        inverse, log_det = 1 / scale, jnp.sum(jnp.log(scale), axis=1)
    else:
        scale = jnp.broadcast_to(scale_tril(scale), (num_components, dim, dim))
        eye = jnp.broadcast_to(jnp.eye(dim, dtype=scale.dtype), scale.shape)
        inverse = jax.lax.linalg.triangular_solve(
            scale, eye, left_side=True, lower=True
        )
        diagonal = jnp.diagonal(scale, axis1=1, axis2=2)
        log_det = jnp.sum(jnp.log(diagonal), axis=1)
    log_weight = jax.nn.log_softmax(params["logits"])
    return Frame(log_weight - log_det - 0.5 * dim * LOG_2PI, loc, scale, inverse)


def whitened(frame: Frame, x: Array) -> Array:
    """y [m, D, b] of rows x [b, D]: their examples last, where they fill registers."""
    difference = x.T[None] - frame.loc[:, :, None]
    if frame.scale.ndim == 2:
        return difference * frame.inverse[:, :, None]
    return jnp.einsum("mij,mjb->mib", frame.inverse, difference)


def log_joint(frame: Frame, y: Array) -> Array:
    """log p(x, z), [m, b]."""
    return frame.log_norm[:, None] - 0.5 * jnp.sum(y * y, axis=1)


def sums(frame: Frame, q: Array, y: Array) -> tuple[Array, Array, Array]:
    """sum_i q_i, q_i y_i and q_i y_i y_i^T (or q_i y_i^2) of a block; q is [m, b]."""
    weighted = y * q[:, None]
    if frame.scale.ndim == 2:
        squares = jnp.sum(weighted * y, axis=2)
    else:
        squares = jnp.einsum("mib,mjb->mij", weighted, y)
    return jnp.sum(q, axis=1), jnp.sum(weighted, axis=2), squares


def from_sums(frame: Frame, sums: tuple[Array, Array, Array]) -> Moments:
    """The moments in x of what was summed in y; a component without weight stays."""
    weight, first, second = sums
    empty = weight < jnp.finfo(weight.dtype).tiny
    total = jnp.where(empty, 1, weight)
    mean = first / total[:, None]  # 0 where empty
    if frame.scale.ndim == 2:
        variance = jnp.maximum(second / total[:, None] - mean**2, 0)
        deviation = jnp.sqrt(jnp.where(empty[:, None], 1, variance))
        shift, factor = frame.scale * mean, frame.scale * deviation
    else:
        spread = second / total[:, None, None] - mean[:, :, None] * mean[:, None, :]
        eye = jnp.eye(mean.shape[1], dtype=mean.dtype)
        spread = jnp.where(empty[:, None, None], eye[None], spread)
        values, vectors = jnp.linalg.eigh(spread)
        root = vectors * jnp.sqrt(jnp.maximum(values, 0))[:, None, :]
        shift, factor = jnp.einsum("mij,mj->mi", frame.scale, mean), frame.scale @ root
    return Moments(weight, frame.loc + shift, factor)


def over_blocks(f: Callable[..., tuple[Any, Any]], *columns: Array) -> tuple[Any, Any]:
    """f(*rows) -> (sums, rows [b, ...]) over all rows: sums added, rows kept."""
    rest = len(columns[0]) % BLOCK
    sums, rows = f(*(c[:rest] for c in columns))
    if rest == len(columns[0]):
        return sums, rows
    blocks = [c[rest:].reshape(-1, BLOCK, *c.shape[1:]) for c in columns]

    def body(sums, block):
        more, rows = f(*block)
        return jax.tree.map(jnp.add, sums, more), rows

    sums, more = jax.lax.scan(body, sums, blocks)
    join = lambda a, b: jnp.concatenate([a, b.reshape(-1, *a.shape[1:])])
    return sums, jax.tree.map(join, rows, more)
