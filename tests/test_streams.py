"""Batches that are read as they are needed: order, restarts, meshes, what is read."""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vi_jax import sharding, training
from vi_jax.data.streams import streamed


class Numbers:
    """Examples that say who they are; the numbers that were read are kept."""

    def __init__(self, n: int = 10):
        self.n, self.read = n, set()

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict:
        self.read.add(i)
        return {"x": np.full(3, i, np.float32), "label": np.int32(i)}


def labels(stream, steps) -> np.ndarray:
    return np.concatenate([stream.at(step)["label"] for step in steps])


def test_an_epoch_has_each_example_once_and_its_own_order():
    seen = labels(streamed(Numbers(), batch_size=4, seed=1), range(10)).reshape(4, 10)
    np.testing.assert_array_equal(np.sort(seen), np.tile(np.arange(10), (4, 1)))
    assert len({tuple(epoch) for epoch in seen}) == 4
    other = labels(streamed(Numbers(), batch_size=4, seed=2), range(10)).reshape(4, 10)
    assert (other != seen).any()


def test_batches_of_one_are_the_same_order():
    one, four = (streamed(Numbers(), batch_size=b, seed=1) for b in (1, 4))
    np.testing.assert_array_equal(labels(one, range(24)), labels(four, range(6)))


def test_a_batch_is_a_function_of_the_step():
    """Whatever was asked before: a run that goes on, or takes a dispatch again."""
    in_order = streamed(Numbers(), batch_size=3, seed=0)
    expected = [in_order.at(step) for step in range(8)]
    asked = streamed(Numbers(), batch_size=3, seed=0)
    for step in (5, 6, 2, 2, 7, 0):
        jax.tree.map(np.testing.assert_array_equal, asked.at(step), expected[step])
    assert expected[5]["step"] == 5
    np.testing.assert_array_equal(expected[5]["x"][:, 2], expected[5]["label"])


def curve(source, mesh, *, start=None, num_steps=12) -> tuple[list[float], object]:
    """The losses of a fit to the examples, with a draw for each, two steps a time."""
    optimizer = optax.adam(0.1)

    def loss(params, key, batch):
        one = lambda key, x: jnp.sum(
            (x + jax.random.normal(key, x.shape) - params) ** 2
        )
        each = jax.vmap(one)(jax.random.split(key, len(batch["x"])), batch["x"])
        return jnp.mean(each), {}

    stream = streamed(source, batch_size=4, seed=0, mesh=mesh)
    state = start or training.init_state(jnp.zeros(3), optimizer)
    how = {"seed": 0, "num_steps": num_steps, "scan_steps": 2, "mesh": mesh}
    states, found = zip(
        *training.fit(loss, optimizer, state, stream, **how), strict=True
    )
    return [m["loss"] for m in found], states[-1]


def test_the_mesh_and_a_restart_change_nothing():
    expected, _ = curve(Numbers(), None)
    on_two, _ = curve(Numbers(), sharding.mesh(data=2))
    np.testing.assert_allclose(on_two, expected, rtol=1e-6)
    samples, _ = curve(Numbers(), sharding.mesh(data=1, samples=2))
    np.testing.assert_allclose(samples, expected, rtol=1e-6)
    first, half = curve(Numbers(), None, num_steps=6)
    rest, _ = curve(Numbers(), None, start=half)
    assert first + rest == expected


def test_examples_are_prepared_as_they_are_read():
    """Here words, which no batch can hold, and images of two sizes."""
    rows = [{"word": "a", "image": np.ones((2 + i % 2, 3)) * i} for i in range(6)]
    stream = streamed(
        rows, batch_size=6, seed=0, prepare=lambda row: {"image": row["image"][:2]}
    )
    batch = stream.at(0)
    assert batch.keys() == {"image", "step"} and batch["image"].shape == (6, 2, 3)
    np.testing.assert_array_equal(np.sort(batch["image"][:, 0, 0]), np.arange(6))


def test_only_what_is_near_is_read():
    """Of 10,000 examples those of the batches so far and of the few read ahead."""
    source = Numbers(10_000)
    stream = streamed(source, batch_size=4, seed=0, prefetch=3, num_threads=2)
    labels(stream, range(5))
    assert 4 * 5 <= len(source.read) <= 4 * (5 + 3 + 2 + 1)


def test_after_a_read_that_failed_the_same_batch_is_read_again():
    class FailsOnce(Numbers):
        calls = itertools.count()

        def __getitem__(self, i):
            if next(self.calls) == 30:
                raise OSError("the disk was away")
            return super().__getitem__(i)

    whole = streamed(Numbers(), batch_size=4, seed=0)
    stream, failed = streamed(FailsOnce(), batch_size=4, seed=0), 0
    for step in range(20):
        try:
            batch = stream.at(step)
        except OSError:
            failed, batch = failed + 1, stream.at(step)
        jax.tree.map(np.testing.assert_array_equal, batch, whole.at(step))
    assert failed == 1


class Of(Numbers):
    def __init__(self, example):
        super().__init__()
        self.example = example

    def __getitem__(self, i):
        return self.example


@pytest.mark.parametrize(
    ("source", "how", "error", "message"),
    [
        (Numbers(), {"batch_size": 11}, ValueError, r"batch_size is 11.*\[1, 10\]"),
        (Numbers(), {"batch_size": 2.5}, TypeError, "float"),
        (Numbers(), {"seed": 2**32}, ValueError, "seed is 4294967296"),
        (Of(np.zeros(3)), {}, ValueError, "example 0 must be a dict of arrays"),
        (Numbers(), {"prepare": lambda row: row["x"]}, ValueError, "dict of arrays"),
        (Of({"step": np.zeros(3)}), {}, ValueError, "none called 'step'"),
        (Of({"x": [[1], [2, 3]]}), {}, ValueError, "inhomogeneous"),
        (Of({"x": {}}), {}, ValueError, "'x' of example 0 is not of numbers"),
        (Of({"x": "a word"}), {}, ValueError, "leave it out by `prepare`"),
    ],
)
def test_what_is_no_stream_is_refused(source, how, error, message):
    with pytest.raises(error, match=message):
        streamed(source, **{"batch_size": 2, "seed": 0, **how})


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"x": np.zeros(2)}, r"example 7 has the shapes {'x': \(2,\)}, example 0 {'x'"),
        ({"x": np.zeros(3)}, "example 7 has the shapes"),
        ({"x": np.zeros(3), "label": 0, "more": 0}, "example 7 .*'more'"),
        (None, "example 7 must be a dict of arrays by name, .* got None"),
        ({"x": np.zeros(3), "label": "7"}, "'label' of example 7 is not of numbers"),
        ({"x": np.zeros(3), "label": 2**40}, "'label' of step 0 has numbers .* int32"),
    ],
)
def test_an_example_unlike_the_first_is_an_error_that_names_it(example, message):
    rows = [example if i == 7 else Numbers()[i] for i in range(10)]
    with pytest.raises(ValueError, match=message):
        streamed(rows, batch_size=10, seed=0).at(0)


def test_a_batch_that_does_not_split_is_refused():
    with pytest.raises(ValueError, match="batch_size of 3 does not split over the 2"):
        streamed(Numbers(), batch_size=3, seed=0, mesh=sharding.mesh(data=2))


def test_without_grain_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[streams\]'"):
        streamed(Numbers(), batch_size=2, seed=0)
