"""Programs as XLA runs them fastest on CPU: their matrix products and random bits."""

import functools
import importlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import threadpoolctl
from jax import lax
from jax.extend import core
from jax.extend.core.primitives import random_bits_p

from vi_jax.types import Array, Key, Params


def for_cpu(f: Callable) -> Callable:
    """f, with its products and random bits as they should run on CPU; elsewhere f.

    Products over several leading axes are written over one:

    sum_{n, k} a[n, k, i] b[n, k, j] = sum_r a[r, i] b[r, j] with r = (n, k). So are the
    gradients of a layer under two `vmap`s, or of a convolution written as patches. XLA
    would first copy one of the two, transposed; reshaped to [r, ...] they are read
    where they lie. The results are the same up to the order of sums.

    Products of precision BF16_BF16_F32 (`jax.default_matmul_precision`) are that too:
    factors in bfloat16, sums in float32, where XLA on CPU would take float32 for both.
    Each factor is rounded once, whatever products read it. Products of other types than
    float32 are left to XLA.

    Random bits are those that JAX would draw, to the last, in one pass over them.
    """
    if jax.default_backend() != "cpu":
        return f

    def rewritten(*args):
        closed, shape = jax.make_jaxpr(f, return_shape=True)(*args)
        found = _run(closed, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), found)

    return rewritten


def after_backward(grads: Params) -> Params:
    """grads, but on CPU all nan where the first entry of a leaf is not finite.

    So that the optimizer begins when the backward pass is over: where it may begin
    before, XLA on CPU copies parameters for the products that still read them, in every
    step. (A barrier would say so better, but is gone by then.) The small nets of the
    benchmarks make 1.02 to 1.05 times the steps so; at the end of the step, on updates
    instead of gradients, it was worth nothing at k = 1.
    """
    if jax.default_backend() != "cpu":
        return grads
    first = [jnp.isfinite(g.ravel()[0]) for g in jax.tree.leaves(grads) if g.size]
    finite = jnp.all(jnp.array(first, bool))
    return jax.tree.map(lambda g: jnp.where(finite, g, jnp.nan), grads)


def one_blas_thread() -> Callable:
    """() -> a context in which the BLAS libraries of this process have one thread.

    On CPU a decomposition, such as the QR in `scale_by_soap`, is LAPACK's in scipy's
    library, whose threads wait for each other while XLA's have the cores: on 2 idle
    cores a loop of products and a QR of 256 x 256 took 21 ms instead of 14, beside
    another program 300 to 1,000.
    """
    # Loads the library that JAX calls; only what is loaded can be limited.
    importlib.import_module("scipy.linalg")
    blas = threadpoolctl.ThreadpoolController().select(user_api="blas")
    return functools.partial(blas.limit, limits=1)


# Programs whose axes are devices can't be traced again outside of them.
_OF_DEVICES = ("shard_map",)


def _run(closed: core.ClosedJaxpr, args: list) -> list:
    """The results of the program, its products and random bits done by this module."""
    program = closed.jaxpr
    known = dict(zip(program.constvars, closed.consts, strict=True))
    known |= dict(zip(program.invars, args, strict=True))
    read = lambda v: v.val if isinstance(v, core.Literal) else known[v]
    rounded = {}  # by variable: one operation for all who read it
    for step in program.eqns:
        if step.primitive is lax.dot_general_p:
            found = _product(*_factors(step, read, rounded))
        elif step.primitive is random_bits_p:
            found = _random_bits(*map(read, step.invars), **step.params)
        else:
            within = dict(step.params)
            if step.primitive.name not in _OF_DEVICES:
                within = {name: _within(value) for name, value in within.items()}
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
    return any(
        step.primitive in ours
        or step.primitive.name not in _OF_DEVICES
        and any(map(_has_any, core.jaxprs_in_params(step.params)))
        for step in program.eqns
    )


def _factors(step: core.JaxprEqn, read: Callable, rounded: dict) -> tuple:
    """The two arrays of a product, as they are multiplied, and how."""
    a, b = map(read, step.invars)
    asked = step.params["precision"] == lax.DotAlgorithmPreset.BF16_BF16_F32
    if not asked or not a.dtype == b.dtype == jnp.float32:
        return a, b, step.params
    for v in step.invars:
        if v not in rounded:
            rounded[v] = read(v).astype(jnp.bfloat16)
    sums = step.params["preferred_element_type"] or jnp.float32
    plain = lax.Precision.DEFAULT  # None would be the knob once more
    how = {**step.params, "precision": plain, "preferred_element_type": sums}
    return *(rounded[v] for v in step.invars), how


# XLA on CPU has products of bfloat16 over columns, 1.7 to 3.6 times as fast as those of
# float32, but none over the rows of both, which the gradients of layers are: it takes
# float32 for them, and a transposition before or after back into the product. Written
# to memory it pays: 1.57 times the steps of float32 at k = 50, and 1.29 without; 1.51
# and 1.22 in a convolutional net; not yet with 300 rows.
_ROWS_WORTH_A_TURN = 400


def _product(a: Array, b: Array, how: dict) -> Array:
    (of_a, of_b), (batch, _) = how["dimension_numbers"]
    leading = tuple(range(len(of_a)))
    narrow = a.dtype == b.dtype == jnp.bfloat16
    narrow &= how["preferred_element_type"] == jnp.float32
    over_rows = not batch and tuple(of_a) == tuple(of_b) == leading != ()
    if not over_rows or len(leading) < 2 and not narrow:
        return lax.dot_general(a, b, **how)
    rest = [x.shape[len(leading) :] for x in (a, b)]
    rows = math.prod(a.shape[: len(leading)])
    a, b = (x.reshape(rows, math.prod(r)) for x, r in zip((a, b), rest, strict=True))
    how = {**how, "dimension_numbers": (((0,), (0,)), ((), ()))}
    if narrow and rows >= _ROWS_WORTH_A_TURN and a.size and b.size:
        turned = _apart(lambda: a.T, a)
        how["dimension_numbers"] = (((1,), (0,)), ((), ()))
        found = _apart(lambda: lax.dot_general(turned, b, **how), b)
    else:
        found = lax.dot_general(a, b, **how)
    return found.reshape(*rest[0], *rest[1])


def _apart(f: Callable[[], Array], operand: Array) -> Array:
    """f(), written to memory: XLA merges nothing across the bounds of a branch.

    That the branch is always taken it cannot know: it is said of a bit of `operand`.
    """
    first = operand.ravel()[0]
    bits = lax.bitcast_convert_type(first, f"uint{8 * first.dtype.itemsize}")
    shape = jax.eval_shape(f)
    return lax.cond((bits | 1) != 0, f, lambda: jnp.zeros(shape.shape, shape.dtype))


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

    # XLA would else compute the bits anew in each loop that reads them.
    return _apart(draw, data)


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
