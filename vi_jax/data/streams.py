"""Minibatches of data larger than memory, read while the device computes."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from vi_jax.data.batches import Batches, check_fits, sizes
from vi_jax.types import Batch


class Source(Protocol):
    """Examples by number, such as `tfds.data_source(name, split="train")`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


def streamed(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    prepare: Callable[[Any], Mapping[str, Any]] = lambda example: example,
    mesh: Mesh | None = None,
    num_threads: int = 16,
    prefetch: int = 16,
) -> Batches:
    """Batches of b examples as `shuffled` gives them, read from `source` on the way.

    prepare(source[i]) is {name: array of numbers}, all of the same shapes, such as a
    part of the columns and a cut-out of the image; a batch holds the same names,
    [b, ...], and "step", int32 []. The order of an epoch is a function of (seed, epoch)
    that takes no memory, another one than that of `shuffled`. `num_threads` threads
    read and prepare `prefetch` batches ahead; after a read that failed the step may be
    asked again. With the mesh that `training.fit` gets, of several processes each reads
    only the examples of its own devices, and the batches are the same whatever the
    mesh. `training.fit` holds the batches of two dispatches: those it trains on, and
    the next ones, which it reads meanwhile.
    Raises ImportError without grain, ValueError for a batch_size outside [1, n] or that
    the mesh does not divide or a seed outside [0, 2^32), and TypeError where one of the
    two is no integer. An example that is no dict of numbers, has a "step", or other
    names or shapes than example 0 is a ValueError that names it, here for example 0 and
    else where its batch is read; so are numbers beyond JAX's, by the step.
    """
    try:
        import grain
    except ImportError as error:
        raise ImportError("streams need grain: pip install '.[streams]'") from error
    n = len(source)
    batch_size, seed = sizes(n, batch_size, seed, seeds=2**32)
    shapes = _shapes(_arrays(0, prepare(source[0])))
    order = grain.MapDataset.range(n).seed(seed).shuffle().repeat()
    rows, placed = _placement(batch_size, mesh)
    read = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)

    class Mine:
        """This process's rows of all batches, one after another."""

        def __len__(self) -> int:
            # The endless order is as long as a length can be, which grain rounds up.
            return min(len(order), 2**62) // batch_size * len(rows)

        def __getitem__(self, i: int) -> dict[str, np.ndarray]:
            step, j = divmod(i, len(rows))
            number = int(order[step * batch_size + rows[j]])
            example = _arrays(number, prepare(source[number]))
            if _shapes(example) != shapes:
                raise ValueError(
                    f"example {number} has the shapes {_shapes(example)}, example 0 "
                    f"{shapes}: make them the same by `prepare`"
                )
            return example

    steps = grain.MapDataset.source(Mine()).batch(len(rows))
    ahead = iter(steps.to_iter_dataset(read))

    def at(step: int) -> Batch:
        # Mostly the next one, which has been read by now.
        if ahead.get_state()["next_index"] != step:
            ahead.set_state({**ahead.get_state(), "next_index": int(step)})
        try:
            local = next(ahead)
        except BaseException:
            # The batch counts as read; without this the next call would skip it.
            ahead.set_state({**ahead.get_state(), "next_index": int(step)})
            raise
        # Of the batch at once: example by example it took 10 us each.
        for name, column in local.items():
            check_fits(f"{name!r} of step {step}", column)
        return {**jax.tree.map(placed, local), "step": np.int32(step)}

    return Batches({}, at, lambda resident, travelling: travelling)


def _placement(batch_size: int, mesh: Mesh | None):
    """The rows of a batch that this process reads, and rows -> the batch's array."""
    if mesh is None:
        return range(batch_size), lambda local: local
    if batch_size % mesh.shape["data"]:
        raise ValueError(
            f"a batch_size of {batch_size} does not split over the "
            f"{mesh.shape['data']} devices of the mesh's axis 'data'"
        )
    split = NamedSharding(mesh, P("data"))
    here = split.addressable_devices_indices_map((batch_size,)).values()
    rows = sorted({row for (s,) in here for row in range(*s.indices(batch_size))})

    def placed(local: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            first = rows.index(start)
            return local[first : first + stop - start]

        shape = (batch_size, *local.shape[1:])
        return jax.make_array_from_callback(shape, split, part)

    return rows, placed


def _arrays(number: int, example: Any) -> dict[str, np.ndarray]:
    """The example as arrays of numbers by name, or ValueError."""
    if not isinstance(example, Mapping) or not example or "step" in example:
        raise ValueError(
            f"example {number} must be a dict of arrays by name, none called 'step', "
            f"got {example!r:.200}"
        )
    arrays = {name: np.asarray(value) for name, value in example.items()}
    for name, value in arrays.items():
        if value.dtype.kind not in "biuf":
            raise ValueError(
                f"{name!r} of example {number} is not of numbers but "
                f"{example[name]!r:.100}: leave it out by `prepare`, or make it one"
            )
    return arrays


def _shapes(example: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in example.items()}
