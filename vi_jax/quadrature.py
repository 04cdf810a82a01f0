"""Expectations without sampling: every outcome, or Gauss-Hermite nodes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vi_jax.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    FullNormal,
    JointBernoulli,
    Mixture,
    Normal,
    binary_states,
)
from vi_jax.types import Array

MAX_NODES = 2**20
MAX_ORDER = 300  # numpy's weights overflow at 400


def nodes(q: Distribution, *, order: int = 20) -> tuple[Array, Array]:
    """Events z [m, ...] and weights [m] with sum_i weight_i f(z_i) = E_q f(z).

    Exact for discrete q, where they are the outcomes and their probabilities, and for
    polynomials up to degree 2 order - 1 in each coordinate of a Gaussian; a mixture has
    those of its components. Raises ValueError for another distribution, an order that
    is not in [1, 300], or more than 2^20 nodes in one Gaussian or set of coins.
    """
    if not 1 <= order <= MAX_ORDER:
        raise ValueError(f"order must be at least 1, at most {MAX_ORDER}, got {order}")
    match q:
        case Categorical():
            return jnp.arange(q.logits.size), q.mean()
        case JointBernoulli():
            states = binary_states(q.logits.size.bit_length() - 1)
            return states, jax.nn.softmax(q.logits)
        case Bernoulli():
            states = binary_states(q.logits.size).reshape(-1, *q.logits.shape)
            return states, jnp.exp(jax.vmap(q.log_prob)(states))
        case Normal():
            unit, weights = _hermite(q.loc.size, order, q.loc.dtype)
            shift = unit.reshape(-1, *q.loc.shape) * q.scale[None]
            return q.loc[None] + shift, weights
        case FullNormal():
            unit, weights = _hermite(q.loc.size, order, q.loc.dtype)
            return q.loc[None] + unit @ q.scale_tril.T, weights
        case Mixture():
            z, weights = jax.vmap(lambda c: nodes(c, order=order))(q.components)
            weights = jax.nn.softmax(q.logits)[:, None] * weights
            return z.reshape(-1, *z.shape[2:]), weights.ravel()
    raise ValueError(f"no quadrature here for {type(q).__name__}")


def _hermite(dim: int, order: int, dtype) -> tuple[Array, Array]:
    """Tensor nodes [order^d, d] and weights of N(0, I) in d dimensions."""
    if order**dim > MAX_NODES:
        raise ValueError(
            f"{order} nodes in each of {dim} dimensions are too many: lower the order "
            "(2 is exact for quadratic functions), or sample"
        )
    line, weight = np.polynomial.hermite_e.hermegauss(order)
    grid = np.meshgrid(*[line] * dim, indexing="ij")
    weights = np.meshgrid(*[weight / weight.sum()] * dim, indexing="ij")
    unit = np.stack([g.ravel() for g in grid], -1)
    return jnp.asarray(unit, dtype), jnp.asarray(np.prod(weights, 0).ravel(), dtype)


def expectation(
    q: Distribution, f: Callable[[Array], Array], *, order: int = 20
) -> Array:
    """E_q f(z) by the `nodes` of q; f takes one event and returns an array.

    An outcome of probability 0 adds nothing, whatever f is there. Differentiable in q
    and in what f closes over. Raises ValueError as `nodes` does.
    """
    z, weights = nodes(q, order=order)
    # f sees another outcome instead: 0 * inf, or its gradient, would be nan.
    possible = (weights > 0).reshape(-1, *[1] * (z.ndim - 1))
    z = jnp.where(possible, z, z[jnp.argmax(weights)][None])
    return jnp.tensordot(weights, jax.vmap(f)(z), axes=1)
