"""Work split over devices and processes: examples, and importance samples of each.

A mesh has two axes, "data" for the examples of a batch and "samples" for the draws of z
of an example. Parameters, the optimizer's state and the data set lie whole on every
device (`data.streamed` reads a set larger than that, for each device its own part).
Every key belongs to an example or a sample by its index, so the mesh changes no number
but by the order of sums.

On paper, for 784-200-200-50 with 425,000 parameters, a step of b examples and k samples
takes b (1.3 + 1.24 k) MFLOP, and some 20 kB of memory traffic for each of b k rows of
logits, which is the longer of the two on accelerators. Both are divided by the number
of devices, but for the 1.3 of the encoder, which "samples" does not divide. The sum of
the gradients is not: 3.4 MB in and out of each device, whatever b and k. So split
"data" first, "samples" where b is small and k large, and keep thousands of rows to a
device: what counts is b k / devices.
"""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from vi_jax.types import Array

_WHAT = {"data": "examples of a batch", "samples": "samples of an example"}


def mesh(data: int | None = None, samples: int = 1) -> Mesh:
    """The devices as data rows of `samples`; all of them where data is not given.

    Raises ValueError where there are not as many devices, or, with several processes,
    where some would have nothing to do.
    """
    num = jax.device_count()
    data = num // max(samples, 1) if data is None else data
    few = data * samples < num and jax.process_count() > 1
    if min(data, samples) < 1 or data * samples > num or few:
        raise ValueError(
            f"a mesh of data = {data} and samples = {samples} does not go with the "
            f"{num} devices of {jax.process_count()} processes: their product may be "
            "no more, and with several processes no less"
        )
    auto = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((data, samples), ("data", "samples"), axis_types=auto)


def over(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Where `split` splits over this mesh; without one, it leaves all as it is."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def splits() -> bool:
    """Whether this is inside `over(mesh)`."""
    return not jax.sharding.get_abstract_mesh().empty


def split(tree: Any, axis: str) -> Any:
    """The leaves, but for scalars, with their leading axis split over one of the mesh.

    For use in jit, inside `over(mesh)`; elsewhere the tree as it is. Raises ValueError
    where a leading axis is no multiple of the mesh's.
    """
    num = jax.sharding.get_abstract_mesh().shape.get(axis, 1)

    def one(a):
        if num == 1 or not jnp.ndim(a):
            return a
        if len(a) % num:
            raise ValueError(
                f"{len(a)} {_WHAT[axis]} do not split evenly over the {num} devices "
                f"of the mesh's axis {axis!r}"
            )
        # Of the other axes nothing is said: a batch may be split along one by now.
        rest = [P.UNCONSTRAINED] * (a.ndim - 1)
        return jax.lax.with_sharding_constraint(a, P(axis, *rest))

    return jax.tree.map(one, tree)


def spread(tree: Any, mesh: Mesh | None) -> Any:
    """The leaves, in jit, with their leading axis split over all of the mesh."""
    if mesh is None:
        return tree
    rows = NamedSharding(mesh, P(mesh.axis_names))
    return jax.lax.with_sharding_constraint(tree, rows)


def jit(f: Callable, mesh: Mesh | None) -> Callable:
    """`jax.jit(f)`; with a mesh, every device then has the whole of the results."""
    return jax.jit(f, out_shardings=mesh and NamedSharding(mesh, P()))


def replicated(tree: Any, mesh: Mesh | None) -> Any:
    """The leaves, whole, on every device of the mesh; without one, on the usual."""
    return jax.device_put(tree, mesh and NamedSharding(mesh, P()))


def local(tree: Any, mesh: Mesh | None) -> Any:
    """Replicated leaves as arrays of this process's first device, for any use."""
    return tree if mesh is None else jax.tree.map(jnp.asarray, jax.device_get(tree))


def is_first() -> bool:
    """Whether this is process 0, the one that writes."""
    return jax.process_index() == 0


def of_first(work: Callable[[], Any], like: Any) -> Any:
    """`work()` of process 0 on every process: None, or a tree of arrays like `like`."""
    if jax.process_count() == 1:
        return work()
    found = work() if is_first() else None
    sent = found is not None, jax.device_get(like if found is None else found)
    there, value = multihost_utils.broadcast_one_to_all(sent)
    return value if there else None


def in_parts(f: Callable[[Any], Any], num: int) -> Callable[[Any], Any]:
    """f of a tree of rows [n, ...], row by row independent, on n / num rows at a time.

    A part is computed again on the way back: memory holds what is between the input
    and the result of f for one part only. The parts are not of neighbours: of rows that
    are split over devices, each device has its share of every part.
    Raises ValueError, when called, where num is below 1 or does not divide n.
    """
    if num == 1:
        return f

    def together(a):
        return jnp.moveaxis(a, 0, 1).reshape(-1, *a.shape[2:])

    def of_parts(rows):
        parts = jax.lax.map(jax.checkpoint(f), _parts(rows, num))
        return jax.tree.map(together, parts)

    return of_parts


def _parts(rows: Any, num: int) -> Any:
    """The leaves [n, ...] as [num, n / num, ...], rows dealt out in turn."""

    def apart(a):
        if num < 1 or len(a) % num:
            raise ValueError(f"{len(a)} rows do not make {num} parts of equal size")
        return jnp.moveaxis(a.reshape(-1, num, *a.shape[1:]), 1, 0)

    return jax.tree.map(apart, rows)


Mean = Callable[[Any, Any, Any], tuple[Array, Any]]
"""(params, rows [n, ...], rest) -> ([], aux), both means over the rows."""


def mean_in_parts(mean: Mean, num: int) -> Mean:
    """`mean` on n / num rows at a time, each part's gradient taken with its value.

    Memory holds one part and one gradient of the parameters, and nothing is computed
    twice. Only params have a gradient, in reverse mode, and aux has none.
    Raises ValueError, when called, where num is below 1 or does not divide n, and
    where a gradient in rows or rest is asked for.
    """
    if num == 1:
        return mean
    gradient = jax.value_and_grad(mean, has_aux=True)

    def forward(params, rows, rest):
        parts = _parts(rows, num)

        def add(total, part):
            found = gradient(params, part, rest)
            return jax.tree.map(lambda a, b: a + b / num, total, found), None

        first = lambda: jax.tree.map(lambda a: a[0], parts)
        shapes = jax.eval_shape(lambda: gradient(params, first(), rest))
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        return jax.lax.scan(add, zeros, parts)[0]

    @jax.custom_vjp
    def whole(params, rows, rest):
        return forward(params, rows, rest)[0]

    def checked(*primals):
        params, *others = primals
        if any(p.perturbed for p in jax.tree.leaves(others, is_leaf=_is_primal)):
            raise ValueError(
                "a batch that is taken in parts has a gradient in the parameters "
                "alone: pass accumulate=1 for one in the data or in beta"
            )
        value = lambda primal: primal.value
        return forward(*jax.tree.map(value, primals, is_leaf=_is_primal))

    def backward(grads, cotangent):
        scale = cotangent[0]
        if isinstance(scale, SymbolicZero):
            scale = jnp.zeros(scale.shape, scale.dtype)
        # The loss may be of another precision than a parameter.
        return jax.tree.map(lambda g: (scale * g).astype(g.dtype), grads), None, None

    whole.defvjp(checked, backward, symbolic_zeros=True)
    return whole


def _is_primal(value: object) -> bool:
    return isinstance(value, CustomVJPPrimal)


@contextlib.contextmanager
def joined(address: str | None, num: int | None, index: int | None) -> Iterator[None]:
    """Be process `index` of num, whose devices are one machine's from then on.

    address is "host:port" of process 0. All three may be None on a TPU pod, in SLURM
    and in Open MPI, which know them. To be entered before anything is computed, and
    with the same program in every process. A process that ends by an error, or is
    killed, ends all others, within half a minute where nothing else shows it.
    Raises ValueError for an address without a port.
    """
    if address is not None and not re.fullmatch(r".+:\d+", address):
        raise ValueError(f"needed: HOST:PORT of the first process, got {address!r}")
    jax.distributed.initialize(address, num, index, heartbeat_timeout_seconds=30)
    try:
        yield
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError):  # such as a lost connection
            print(f"error: {error}", file=sys.stderr)
        elif not isinstance(error, SystemExit):  # which has said why
            traceback.print_exc()
        print(
            f"process {jax.process_index()} ends, and with it all others; the same "
            "commands go on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        sys.stdout.flush()
        # The usual exit would wait for the others, and they wait for this process.
        os._exit(1)
