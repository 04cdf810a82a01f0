"""A function of one example over all of a set: log p(x), or anything else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vi_jax import sharding
from vi_jax.cpu import for_cpu
from vi_jax.data.batches import padded
from vi_jax.evaluation import LogLikelihood, log_likelihood
from vi_jax.model import Model
from vi_jax.models import Conditional, at_context
from vi_jax.partial import open_partial
from vi_jax.runs import progress_bar
from vi_jax.types import Array, Key, Params

EVALUATION_SEED = 123


def make_evaluator(
    model: Model | Conditional,
    *,
    num_samples: int,
    batch_size: int = 20,
    chunk: int = 50,
    progress: bool = False,
    mesh: Mesh | None = None,
) -> Callable[..., LogLikelihood]:
    """(params, x uint8 [n, D], contexts [n, ...] or None) -> LogLikelihood, [n] each.

    x are images of bytes, and the model sees x / 255: for an x that it is to see as it
    is, see `over_examples`. The call raises ValueError for another dtype.
    Compiled once. The draws of an example depend on its place and EVALUATION_SEED, on
    nothing else. batch_size x chunk rows go through the decoder at a time, on every
    device of the mesh: examples are split over both of its axes, since they need no
    word between devices.
    """

    def one(params: Params, key: Key, x: Array, c: Array | None) -> LogLikelihood:
        given = at_context(model, c)
        return log_likelihood(
            given, params, key, x, num_samples=num_samples, chunk=chunk
        )

    return over_images(one, batch_size=batch_size, progress=progress, mesh=mesh)


def over_images(one: Callable[[Params, Key, Array, Array | None], Any], **how):
    """`over_examples` of images [n, D] of bytes, of which `one` sees pixel / 255."""

    def of_bytes(params: Params, key: Key, x: Array, c: Array | None):
        if x.dtype != jnp.uint8:
            raise ValueError(
                f"images are of bytes, uint8, which are divided by 255, got {x.dtype}: "
                "for rows that are seen as they are use `evaluator.over_examples`"
            )
        return one(params, key, x.astype(jnp.float32) / 255, c)

    return over_examples(of_bytes, **{"unit": "image", **how})


def over_examples(
    one: Callable[[Params, Key, Array, Array | None], Any],
    *,
    batch_size: int = 20,
    seed: int | None = None,
    unit: str = "example",
    progress: bool = True,
    mesh: Mesh | None = None,
) -> Callable[..., Any]:
    """`one(params, key, x, c)` of every example, as (params, x [n, ...], c=None).

    x is seen as it is, of any dtype; log p(x) of rows of floats is

    one = lambda params, key, x, c: log_likelihood(model, params, key, x, num_samples=k)
    over_examples(one)(params, x).log_px  # [n]

    batch_size examples at a time, and on each device of the mesh, compiled once, as
    numpy arrays [n, ...]. The key of an example depends on its place, `seed` and
    EVALUATION_SEED. Products are in full float32: by default accelerators shorten them,
    which moves a bound. With `file=`, an .npz, what is done is kept there by
    name, and the same call after a crash goes on from it, bit for bit. The file is one
    of these params, rows and seed, and of results so named and shaped, but knows no
    more of `one`: each function needs a file of its own.
    The call raises ValueError where there is no example or contexts are not [n, ...].
    """
    batch_size *= mesh.size if mesh else 1

    @jax.default_matmul_precision("highest")
    def some(params: Params, start: Array, rows: tuple) -> Any:
        at = jax.random.key(EVALUATION_SEED)
        at = at if seed is None else jax.random.fold_in(at, seed)
        places = start + jnp.arange(batch_size)
        keys = jax.vmap(lambda i: jax.random.fold_in(at, i))(places)
        given = sharding.spread((keys, *rows), mesh)
        return jax.vmap(lambda key, x, c: one(params, key, x, c))(*given)

    some = sharding.jit(some if mesh else for_cpu(some), mesh)

    def each(
        params: Params,
        x: np.ndarray,
        contexts: Array | None = None,
        *,
        file: Path | None = None,
    ):
        if not len(x):
            raise ValueError(f"nothing to evaluate: there is no {unit}")
        rows, params = (x, contexts), sharding.replicated(params, mesh)
        parts, kept = [], None
        if file and jax.process_count() == 1:
            batch, _ = next(padded(rows, batch_size=batch_size))
            shapes = jax.eval_shape(some, params, 0, batch)
            kept = open_partial(file, (params, *rows, repr(seed)), shapes)
            parts = [] if kept.done is None else [kept.done]
        first = len(jax.tree.leaves(parts)[0]) if parts else 0
        rest = jax.tree.map(lambda a: a[first:], rows)
        with progress_bar(len(x), unit, disable=not progress) as bar:
            bar.update(first)
            for i, (batch, mask) in enumerate(padded(rest, batch_size=batch_size)):
                part = jax.device_get(some(params, first + i * batch_size, batch))
                parts.append(jax.tree.map(lambda a, mask=mask: a[mask], part))
                bar.update(int(mask.sum()))
                if kept and kept.is_due():
                    kept.save(_joined(parts))
        whole = _joined(parts)
        if kept:
            kept.save(whole)
        return whole

    return each


def _joined(parts: list) -> Any:
    return jax.tree.map(lambda *a: np.concatenate(a), *parts)
