"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner, for few and large steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from vi_jax.types import Array, Params


class _Matrix(NamedTuple):
    """What is kept of one parameter; a side too long to rotate has None."""

    mean: Array  # of the gradient, in the present basis
    square: Array  # of its entries squared, in the present basis
    second: tuple[Array | None, Array | None]  # means of G G^T and G^T G
    basis: tuple[Array | None, Array | None]  # orthonormal columns


class SoapState(NamedTuple):
    """The steps done, and a `_Matrix` per parameter in the order of its leaves."""

    count: Array  # int32 []
    parameters: tuple[_Matrix, ...]


def scale_by_soap(
    b1: float = 0.9,
    b2: float = 0.95,
    *,
    refresh: int = 20,
    max_side: int = 256,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Adam's direction, taken in a basis in which the gradients are nearly independent.

    For a gradient G [m, n], with U and V the eigenvectors of the moving averages of
    G G^T and G^T G: G' = U^T G V, m <- b1 m + (1 - b1) G', v <- b2 v + (1 - b2) G'^2,
    direction U (m / (sqrt(v) + eps)) V^T, with Adam's corrections of the first steps.
    U and V follow by one step of orthogonal iteration every `refresh` steps. A side
    longer than `max_side`, and a vector, is not rotated: without any rotation this is
    Adam. A parameter of more axes, such as the kernel of a convolution, is taken as the
    matrix of its last axis and all others. What it keeps is float32 for parameters of
    fewer bits too, and its products are in full float32 on every device: in the short
    floats that accelerators choose by default the bases lose their right angles.
    Raises ValueError where a decay is outside [0, 1) or a count below 1.
    Ref: Vyas et al. 2025, arXiv:2409.11321.
    """
    if not 0 <= b1 < 1 or not 0 <= b2 < 1 or refresh < 1 or max_side < 1:
        raise ValueError(
            "needed: 0 <= b1, b2 < 1, refresh >= 1 and max_side >= 1, got "
            f"{b1}, {b2}, {refresh} and {max_side}"
        )

    def start(p: Array) -> _Matrix:
        p = _as_matrix(p)
        eye = lambda d: jnp.eye(d, dtype=p.dtype) if d <= max_side else None
        basis = tuple(map(eye, p.shape)) if p.ndim == 2 else (None, None)
        zeros = jnp.zeros_like(p)
        return _Matrix(zeros, zeros, jax.tree.map(jnp.zeros_like, basis), basis)

    def init(params: Params) -> SoapState:
        leaves = jax.tree.leaves(params)
        return SoapState(jnp.zeros((), jnp.int32), tuple(start(p) for p in leaves))

    def averaged(old: _Matrix, g: Array) -> tuple[Array | None, Array | None]:
        left, right = old.second
        return (
            None if left is None else b2 * left + (1 - b2) * (g @ g.T),
            None if right is None else b2 * right + (1 - b2) * (g.T @ g),
        )

    def direction(old: _Matrix, g: Array, count: Array) -> tuple[Array, _Matrix]:
        rotated = _rotate(g, old.basis)
        mean = b1 * old.mean + (1 - b1) * rotated
        square = b2 * old.square + (1 - b2) * rotated**2
        step = mean / (1 - b1**count) / (jnp.sqrt(square / (1 - b2**count)) + eps)
        back = tuple(None if q is None else q.T for q in old.basis)
        return _rotate(step, back), old._replace(mean=mean, square=square)

    @jax.default_matmul_precision("highest")
    def update(grads: Params, state: SoapState, params: Params | None = None):
        del params
        leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.asarray, grads))
        gs, count = list(map(_as_matrix, leaves)), state.count + 1
        matrices = [
            old._replace(second=averaged(old, g))
            for old, g in zip(state.parameters, gs, strict=True)
        ]
        # Of all parameters at once: a GPU asks the host at each condition.
        matrices = jax.lax.cond(
            (count == 1) | (count % refresh == 0),
            lambda matrices: list(map(_turn, matrices)),
            lambda matrices: matrices,
            matrices,
        )
        pairs = [direction(old, g, count) for old, g in zip(matrices, gs, strict=True)]
        steps = [
            step.reshape(leaf.shape).astype(leaf.dtype)
            for (step, _), leaf in zip(pairs, leaves, strict=True)
        ]
        parameters = tuple(new for _, new in pairs)
        return jax.tree.unflatten(treedef, steps), SoapState(count, parameters)

    return optax.GradientTransformation(init, update)


def _as_matrix(g: Array) -> Array:
    g = jnp.asarray(g)
    g = g.astype(jnp.promote_types(g.dtype, jnp.float32))
    return g.reshape(-1, g.shape[-1]) if g.ndim > 2 else g


def _rotate(g: Array, basis) -> Array:
    """U^T g V."""
    left, right = basis
    g = g if left is None else left.T @ g
    return g if right is None else g @ right


def _turn(old: _Matrix) -> _Matrix:
    """One orthogonal iteration, the mean carried from the old basis to the new one."""
    basis = tuple(
        None if a is None else jnp.linalg.qr(a @ q)[0]
        for a, q in zip(old.second, old.basis, strict=True)
    )
    between = tuple(
        None if a is None else a.T @ b for a, b in zip(old.basis, basis, strict=True)
    )
    return old._replace(mean=_rotate(old.mean, between), basis=basis)
