"""Matrix products as XLA runs them fastest on CPU, and as short as they are asked."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from vi_jax.types import Array


def for_cpu(f: Callable) -> Callable:
    """f, with its matrix products as they should run on CPU; elsewhere f itself.

    Products over several leading axes are written over one:

    sum_{n, k} a[n, k, i] b[n, k, j] = sum_r a[r, i] b[r, j] with r = (n, k). So are the
    gradients of a layer under two `vmap`s, or of a convolution written as patches. XLA
    would first copy one of the two, transposed; reshaped to [r, ...] they are read
    where they lie. The results are the same up to the order of sums.

    Products of precision BF16_BF16_F32 (`jax.default_matmul_precision`) are that too:
    factors in bfloat16, sums in float32, where XLA on CPU would take float32 for both.
    """
    if jax.default_backend() != "cpu":
        return f

    def rewritten(*args):
        closed, shape = jax.make_jaxpr(f, return_shape=True)(*args)
        found = _run(closed, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), found)

    return rewritten


def _run(closed: core.ClosedJaxpr, args: list) -> list:
    """The results of the program, its products done by `_product`."""
    program = closed.jaxpr
    known = dict(zip(program.constvars, closed.consts, strict=True))
    known |= dict(zip(program.invars, args, strict=True))
    read = lambda v: v.val if isinstance(v, core.Literal) else known[v]
    for step in program.eqns:
        if step.primitive is lax.dot_general_p:
            found = _product(*map(read, step.invars), **step.params)
        else:
            within = {name: _within(value) for name, value in step.params.items()}
            params = step.primitive.get_bind_params(within)
            with step.ctx.manager:
                found = step.primitive.bind(*map(read, step.invars), **params)
        found = found if step.primitive.multiple_results else [found]
        known.update(zip(step.outvars, found, strict=True))
    return [read(v) for v in program.outvars]


def _within(value: Any) -> Any:
    """A parameter of a step, rewritten where it is a program, such as a loop's body."""
    if type(value) is tuple:  # of branches; a NamedTuple is something else
        return tuple(map(_within, value))
    # From jax 0.12 on, an open program is a closed one without constants.
    if isinstance(value, core.Jaxpr) and not isinstance(value, core.ClosedJaxpr):
        return _within(core.ClosedJaxpr(value, [])).jaxpr
    if not isinstance(value, core.ClosedJaxpr) or not _has_products(value.jaxpr):
        return value
    like = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type)
        for a in value.in_avals
    ]
    return jax.make_jaxpr(lambda *args: _run(value, [*args]))(*like)


def _has_products(program: core.Jaxpr) -> bool:
    return any(step.primitive is lax.dot_general_p for step in program.eqns) or any(
        map(_has_products, core.subjaxprs(program))
    )


def _product(a: Array, b: Array, *, dimension_numbers, **how) -> Array:
    if how["precision"] == lax.DotAlgorithmPreset.BF16_BF16_F32:
        sums = how["preferred_element_type"] or jnp.result_type(a, b)
        how |= {"precision": None, "preferred_element_type": sums}
        a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    (of_a, of_b), (batch, _) = dimension_numbers
    leading = tuple(range(len(of_a)))
    if batch or len(leading) < 2 or not tuple(of_a) == tuple(of_b) == leading:
        return lax.dot_general(a, b, dimension_numbers, **how)
    rest = [x.shape[len(leading) :] for x in (a, b)]
    rows = math.prod(a.shape[: len(leading)])
    a, b = (x.reshape(rows, -1) for x in (a, b))
    return lax.dot_general(a, b, (((0,), (0,)), ((), ())), **how).reshape(
        *rest[0], *rest[1]
    )
