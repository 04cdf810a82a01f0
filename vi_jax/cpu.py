"""Programs as XLA runs them fastest on CPU: their matrix products and random bits."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.extend.core.primitives import random_bits_p

from vi_jax.types import Array, Key


def for_cpu(f: Callable) -> Callable:
    """f, with its products and random bits as they should run on CPU; elsewhere f.

    Products over several leading axes are written over one:

    sum_{n, k} a[n, k, i] b[n, k, j] = sum_r a[r, i] b[r, j] with r = (n, k). So are the
    gradients of a layer under two `vmap`s, or of a convolution written as patches. XLA
    would first copy one of the two, transposed; reshaped to [r, ...] they are read
    where they lie. The results are the same up to the order of sums.

    Products of precision BF16_BF16_F32 (`jax.default_matmul_precision`) are that too:
    factors in bfloat16, sums in float32, where XLA on CPU would take float32 for both.

    Random bits are those that JAX would draw, to the last, in one pass over them.
    """
    if jax.default_backend() != "cpu":
        return f

    def rewritten(*args):
        closed, shape = jax.make_jaxpr(f, return_shape=True)(*args)
        found = _run(closed, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), found)

    return rewritten


def _run(closed: core.ClosedJaxpr, args: list) -> list:
    """The results of the program, its products and random bits done by this module."""
    program = closed.jaxpr
    known = dict(zip(program.constvars, closed.consts, strict=True))
    known |= dict(zip(program.invars, args, strict=True))
    read = lambda v: v.val if isinstance(v, core.Literal) else known[v]
    for step in program.eqns:
        if step.primitive is lax.dot_general_p:
            found = _product(*map(read, step.invars), **step.params)
        elif step.primitive is random_bits_p:
            found = _random_bits(*map(read, step.invars), **step.params)
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
    if not isinstance(value, core.ClosedJaxpr) or not _has_any(value.jaxpr):
        return value
    like = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type)
        for a in value.in_avals
    ]
    return jax.make_jaxpr(lambda *args: _run(value, [*args]))(*like)


def _has_any(program: core.Jaxpr) -> bool:
    ours = (lax.dot_general_p, random_bits_p)
    return any(step.primitive in ours for step in program.eqns) or any(
        map(_has_any, core.subjaxprs(program))
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


def _random_bits(keys: Key, *, bit_width: int, shape: tuple[int, ...]) -> Array:
    """What `jax.random.bits` draws of each key [...]: uints [..., *shape].

    JAX has the 20 rounds of threefry as a loop of five on CPU, each of which reads and
    writes all of the bits: 212 us for 39,200 words, 1.7 ms for 250,000, where one pass
    takes 55 and 246.
    """
    num = math.prod(shape)
    known = (
        jax.random.key_impl(keys) == "threefry2x32"
        and jax.config.jax_threefry_partitionable
        and bit_width == 32
        and 0 < num * keys.size < 2**32
    )
    if not known:
        return random_bits_p.bind(keys, bit_width=bit_width, shape=shape)
    data = jax.random.key_data(keys)

    def draw() -> Array:
        count = jnp.broadcast_to(jnp.arange(num, dtype=jnp.uint32), (*keys.shape, num))
        words = _threefry(data[..., :1], data[..., 1:], jnp.zeros_like(count), count)
        return (words[0] ^ words[1]).reshape(*keys.shape, *shape)

    # XLA would compute the bits anew in each loop that reads them, but it keeps to the
    # bounds of a branch. That this one is always taken it cannot know.
    always = (data.ravel()[0] | 1) != 0
    return lax.cond(always, draw, lambda: jnp.zeros((*keys.shape, *shape), jnp.uint32))


def _threefry(k0: Array, k1: Array, x0: Array, x1: Array) -> tuple[Array, Array]:
    """Threefry-2x32 with 20 rounds, of uint32 that broadcast.

    Ref: Salmon et al. 2011, doi:10.1145/2063384.2063405.
    """
    keys = (k0, k1, k0 ^ k1 ^ jnp.uint32(0x1BD11BDA))
    x0, x1 = x0 + k0, x1 + k1
    for i in range(5):
        for by in ((13, 15, 26, 6), (17, 29, 16, 24))[i % 2]:
            x0 = x0 + x1
            x1 = x0 ^ (x1 << by | x1 >> 32 - by)
        x0 = x0 + keys[(i + 1) % 3]
        x1 = x1 + keys[(i + 2) % 3] + jnp.uint32(i + 1)
    return x0, x1
