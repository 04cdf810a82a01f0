"""Minibatches as a pure function of (seed, step), and binarization."""

import functools
import math
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vi_jax.checks import at_least
from vi_jax.types import Array, Batch, Batches as Batches, Key


def shuffled(columns: dict[str, np.ndarray], *, batch_size: int, seed: int) -> Batches:
    """Batches of b examples, reshuffled every epoch, none ever dropped.

    The i-th example of step t is number p = t b + i of an endless stream: the one at
    place p mod n of the permutation of epoch p div n, which depends on (seed, epoch)
    alone. A batch may straddle two epochs. columns are [n, ...]; a batch holds the same
    names, [b, ...], and "step", int32 [].
    Raises ValueError for a batch_size outside [1, n], columns of unequal lengths, a
    column called "step", one of no numbers or of numbers beyond JAX's, or a seed
    outside [0, 2^64), TypeError where one of the two is no integer or columns is no
    dict.
    """
    columns = named(columns)
    n = _common_length(columns)
    batch_size, seed = sizes(n, batch_size, seed, seeds=2**64)
    for name, column in columns.items():
        if isinstance(column, np.ndarray):
            check_fits(f"column {name!r}", column)

    # A batch touches two epochs at most.
    @functools.lru_cache(maxsize=2)
    def permutation(epoch: int) -> np.ndarray:  # int32 [n]
        key = np.array([seed, epoch], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        return rng.permutation(n).astype(np.int32)

    def at(step: int) -> dict[str, np.ndarray]:
        epoch, place = divmod(int(step) * batch_size, n)
        index = permutation(epoch)[place : place + batch_size]
        if len(index) < batch_size:
            rest = permutation(epoch + 1)[: batch_size - len(index)]
            index = np.concatenate([index, rest])
        return {"index": index, "step": np.int32(step)}

    return Batches(columns, at, _gather)


def named(columns: Any) -> dict[str, Any]:
    """The columns, with lists as arrays: to JAX one is a tree of so many numbers.

    Raises TypeError unless columns is a dict, or like one, and ValueError where one of
    NumPy has no numbers.
    """
    if not isinstance(columns, Mapping):
        raise TypeError(
            "columns must be a dict of arrays by name, such as {'x': x}, got "
            f"{type(columns).__name__}"
        )
    found = {
        name: np.asarray(column) if isinstance(column, (list, tuple)) else column
        for name, column in columns.items()
    }
    for name, column in found.items():
        if isinstance(column, np.ndarray) and column.dtype.kind not in "biufc":
            raise ValueError(
                f"column {name!r} has no numbers but {column.dtype}: encode it, text "
                "by `vi_jax.data.text`, a table by `vi_jax.data.tables`"
            )
    return found


def check_fits(what: str, values: np.ndarray) -> None:
    """Raise ValueError where numbers are beyond those that JAX makes of them.

    Unless jax_enable_x64 is on, it keeps 32 bits of 64 without a word: integers wrap
    around, and floats above 3.4e38 are infinite.
    """
    kind = values.dtype.kind
    if kind not in "iuf" or values.dtype.itemsize < 8 or not values.size:
        return
    low, high = values.min(), values.max()
    if not np.isfinite([low, high]).all():  # only then, for it takes a copy
        finite = values[np.isfinite(values)]
        low, high = finite.min(initial=0), finite.max(initial=0)
    info = np.finfo if kind == "f" else np.iinfo
    kept = info(jax.dtypes.canonicalize_dtype(values.dtype))
    if low < kept.min or high > kept.max:
        raise ValueError(
            f"{what} has numbers from {low} to {high}, which do not fit {kept.dtype}: "
            "renumber integers, rescale floats, or set jax_enable_x64"
        )


def sizes(n: int, batch_size: int, seed: int, *, seeds: int) -> tuple[int, int]:
    """batch_size and seed as integers; ValueError outside [1, n] and [0, seeds)."""
    batch_size, seed = operator.index(batch_size), operator.index(seed)
    if not 1 <= batch_size <= n:
        raise ValueError(f"batch_size is {batch_size}: it must lie in [1, {n}]")
    if not 0 <= seed < seeds:
        raise ValueError(f"seed is {seed}: it must lie in [0, {seeds})")
    return batch_size, seed


def no_data() -> Batches:
    """A stream for losses that draw their own data: a batch is {"step": int32 []}."""
    at = lambda step: {"step": np.int32(step)}
    return Batches({}, at, lambda resident, travelling: travelling)


def _gather(resident: dict[str, Array], travelling: dict[str, Array]) -> Batch:
    # The index is a permutation's, always in bounds: "clip" spares the NaN-fill mask.
    take = functools.partial(jnp.take, indices=travelling["index"], axis=0, mode="clip")
    return {**jax.tree.map(take, resident), "step": travelling["step"]}


def _common_length(columns: dict[str, np.ndarray]) -> int:
    lengths = {name: _length(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1 or None in lengths.values():
        raise ValueError(f"columns must have one common length, not {lengths}")
    if "step" in columns:
        raise ValueError("a column may not be called 'step'")
    return next(iter(lengths.values()))


def _length(column: Any) -> int | None:
    return np.shape(column)[0] if np.ndim(column) else None


def steps_per_run(n: int, *, epochs: float, batch_size: int) -> int:
    """Steps that show n examples `epochs` times: ceil(epochs n / batch_size).

    Raises ValueError where epochs is below 0 or not finite or batch_size is below 1.
    """
    at_least(1, batch_size=batch_size)
    if not 0 <= epochs < math.inf:
        raise ValueError(f"epochs must be 0 or more and not infinite, got {epochs}")
    return int(np.ceil(epochs * n / batch_size))


def padded(x: Any, *, batch_size: int) -> Iterator[tuple[Any, np.ndarray]]:
    """Consecutive batches (x [b, ...], mask bool [b]) that cover x [n, ...] once.

    x is an array, or a tree of them. The last batch is filled up with copies of its
    last row, for which mask is False. Raises ValueError for a batch_size below 1, and
    where the arrays have no common length.
    """
    at_least(1, batch_size=batch_size)
    lengths = {_length(leaf) for leaf in jax.tree.leaves(x)}
    # JAX would not notice: beyond its end an array repeats its last row.
    if len(lengths) != 1 or None in lengths:
        raise ValueError(f"the arrays must have one common length, not {lengths}")
    return _padded(x, batch_size)


def _padded(x: Any, b: int) -> Iterator[tuple[Any, np.ndarray]]:
    place, n = np.arange(b), len(jax.tree.leaves(x)[0])
    for start in range(0, n, b):
        rows = np.minimum(start + place, n - 1)
        yield jax.tree.map(lambda a, rows=rows: a[rows], x), start + place < n


def binarize_dynamic(key: Key, image: Array) -> Array:
    """A fresh draw of Bernoulli(pixel / 255) per pixel, float32 of the image's shape.

    image is uint8 of any shape. P(1) is exactly 0 for pixel 0, exactly 1 for pixel 255
    and within 2^-16 of pixel / 255 between.
    """
    # Two pixels a random word: on [100, 784] in a scan, 2 CPU cores, 0.19 ms a step,
    # against 0.35 with one word a pixel and 0.39 with jax.random.bernoulli.
    words = jax.random.bits(key, ((image.size + 1) // 2,), jnp.uint32)
    halves = jnp.concatenate([words >> 16, words & 0xFFFF])[: image.size]
    uniform = halves.reshape(image.shape)  # integers in [0, 2^16)
    return (uniform * 255 < image.astype(jnp.uint32) * 65536).astype(jnp.float32)


def binarize_once(image: np.ndarray, *, mode: str, seed: int = 123) -> np.ndarray:
    """A fixed binarization, uint8 0 or 255 of the image's shape.

    mode "static" draws Bernoulli(pixel / 255) once, from PCG64(seed); "threshold" is
    pixel >= 128. Raises ValueError for another mode.
    """
    if mode == "threshold":
        ink = image >= 128
    elif mode == "static":
        rng = np.random.Generator(np.random.PCG64(seed))
        # Integers below 255: pixel 0 is never, and pixel 255 always, ink.
        ink = rng.integers(0, 255, image.shape, np.uint8) < image
    else:
        raise ValueError(f"mode is {mode!r}: it must be 'static' or 'threshold'")
    return np.where(ink, np.uint8(255), np.uint8(0))
