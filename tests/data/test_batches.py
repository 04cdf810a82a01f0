"""Minibatches as a pure function of (seed, step), and binarization."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vi_jax import data
from vi_jax.data import batches

N = 23


def _columns(n=N):
    image = np.arange(n, dtype=np.uint8)[:, None, None, None]
    return {"image": image, "label": np.arange(n, dtype=np.int32)}


def _index(stream, steps):
    return np.concatenate([stream.at(t)["index"] for t in range(steps)])


@pytest.mark.parametrize("batch_size", [1, 4, 22, 23])
def test_each_example_once_an_epoch(batch_size):
    stream = batches.shuffled(_columns(), batch_size=batch_size, seed=0)
    order = _index(
        stream, steps=batches.steps_per_run(N, epochs=5, batch_size=batch_size)
    )
    epochs = order[: 5 * N].reshape(5, N)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(N))
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_at_is_a_pure_function_of_the_step():
    forth = batches.shuffled(_columns(), batch_size=5, seed=3)
    back = batches.shuffled(_columns(), batch_size=5, seed=3)
    first = [forth.at(t) for t in range(40)]
    for t in reversed(range(40)):
        np.testing.assert_array_equal(back.at(t)["index"], first[t]["index"])
        np.testing.assert_array_equal(forth.at(t)["index"], first[t]["index"])
        assert back.at(t)["step"] == t
    assert first[0]["index"].dtype == np.int32 and first[0]["step"].dtype == np.int32


def test_the_order_is_fixed():
    """The stream of a seed may never change: a resumed run relies on it."""
    stream = batches.shuffled(_columns(), batch_size=6, seed=1)
    key = np.array([1, 0], np.uint64)
    rng = np.random.Generator(np.random.Philox(key=key))
    np.testing.assert_array_equal(_index(stream, 3), rng.permutation(N)[:18])


def test_seeds_differ():
    orders = {
        tuple(_index(batches.shuffled(_columns(), batch_size=N, seed=s), 1))
        for s in (0, 1, 2, 2**64 - 1)
    }
    assert len(orders) == 4


def test_gather_under_jit():
    stream = batches.shuffled(_columns(), batch_size=4, seed=0)
    resident = jax.device_put(stream.resident)
    gather = jax.jit(stream.gather)
    for t in (0, 5, 6):
        batch = gather(resident, stream.at(t))
        index = stream.at(t)["index"]
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], index)
        np.testing.assert_array_equal(batch["label"], index)
        assert batch["image"].dtype == jnp.uint8 and batch["label"].dtype == jnp.int32
        assert batch["step"] == t and batch["step"].shape == ()
    assert gather._cache_size() == 1


def test_at_is_fast():
    stream = batches.shuffled(_columns(250), batch_size=100, seed=0)
    start = time.perf_counter()
    for t in range(1000):
        stream.at(t)
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize(
    "columns, batch_size, seed, message",
    [
        (_columns(), 0, 0, r"batch_size is 0: it must lie in \[1, 23\]"),
        (_columns(), 24, 0, r"batch_size is 24: it must lie in \[1, 23\]"),
        (_columns(), 4, -1, "seed is -1"),
        ({**_columns(), "label": np.zeros(3)}, 4, 0, "one common length"),
        ({}, 4, 0, "one common length"),
        ({"step": np.zeros(9)}, 4, 0, "may not be called 'step'"),
        ({"x": np.array([-(2**31) - 1, 0])}, 1, 0, "'x' has numbers .* fit int32"),
        ({"x": np.array([0, 2**40 + 16])}, 1, 0, "0 to 1099511627792, .* fit int32"),
        ({"x": np.array([np.inf, -1e39, 2])}, 1, 0, "-1e.39 to 2.0, .* fit float32"),
        ({"x": np.array([2**32], np.uint64)}, 1, 0, "to 4294967296, .* fit uint32"),
        ({"x": np.array(["a", "b"])}, 1, 0, "'x' has no numbers but <U1: encode it"),
        ({"x": np.array([1, None])}, 1, 0, "'x' has no numbers but object"),
    ],
)
def test_bad_streams(columns, batch_size, seed, message):
    with pytest.raises(ValueError, match=message):
        batches.shuffled(columns, batch_size=batch_size, seed=seed)


def test_a_list_is_a_column_as_its_array_is():
    """To JAX it would be a tree of scalars."""
    rows = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    of_list = data.shuffled({"x": rows, "y": (0, 1, 2)}, batch_size=3, seed=0)
    batch = of_list.gather(jax.device_put(of_list.resident), of_list.at(0))
    np.testing.assert_array_equal(batch["x"], np.array(rows)[np.asarray(batch["y"])])
    how = {"labelled_size": 0, "unlabelled_size": 3, "seed": 0}
    stream = data.mixed({"x": rows}, np.full(3, -1), **how)
    batch = stream.gather(jax.device_put(stream.resident), stream.at(0))["unlabelled"]
    np.testing.assert_array_equal(np.sort(batch["x"], axis=0), rows)


@pytest.mark.parametrize("x64", [False, True])
def test_integers_come_out_as_they_went_in(x64):
    """To the ends of what JAX keeps of 64 bits."""
    with jax.enable_x64(x64):
        kept = np.iinfo(jnp.arange(1).dtype), np.iinfo(jnp.arange(1, dtype="u4").dtype)
        kept = [np.iinfo(np.int64), np.iinfo(np.uint64)] if x64 else kept
        columns = {
            "signed": np.array([kept[0].min, kept[0].max], np.int64),
            "unsigned": np.array([kept[1].min, kept[1].max], np.uint64),
        }
        stream = data.shuffled(columns, batch_size=2, seed=0)
        batch = stream.gather(jax.device_put(stream.resident), stream.at(0))
        for name, column in columns.items():
            np.testing.assert_array_equal(np.sort(batch[name]), column)


@pytest.mark.parametrize(
    "made",
    [
        lambda x: data.shuffled(x, batch_size=2, seed=0),
        lambda x: data.mixed(
            x, np.arange(len(x)), labelled_size=2, unlabelled_size=0, seed=0
        ),
    ],
)
@pytest.mark.parametrize("x", [np.zeros((4, 3)), [1.0, 2.0]])
def test_an_array_without_a_name_is_an_error_that_says_what_is_needed(made, x):
    with pytest.raises(TypeError, match=r"a dict of arrays by name, such as {'x': x}"):
        made(x)


@pytest.mark.parametrize(
    "n, epochs, batch_size, steps",
    [(23, 1, 5, 5), (20, 1, 5, 4), (7, 3, 4, 6), (9, 0.5, 2, 3)],
)
def test_steps_per_run(n, epochs, batch_size, steps):
    assert batches.steps_per_run(n, epochs=epochs, batch_size=batch_size) == steps


@pytest.mark.parametrize("batch_size", [1, 7, 23, 40])
def test_padded_covers_everything_once(batch_size):
    x = _columns()["image"]
    pairs = list(batches.padded(x, batch_size=batch_size))
    assert all(len(b) == len(m) == batch_size for b, m in pairs)
    np.testing.assert_array_equal(np.concatenate([b[m] for b, m in pairs]), x)
    last, mask = pairs[-1]
    assert (last[~mask] == x[-1]).all()
    assert sum(m.sum() for _, m in pairs) == N


def test_padded_takes_a_tree_of_arrays_row_by_row():
    x, c = np.arange(12.0).reshape(6, 2), np.arange(6)
    kept = [
        (rows[mask], labels[mask])
        for (rows, labels), mask in batches.padded((x, c), batch_size=4)
    ]
    np.testing.assert_array_equal(np.concatenate([k[0] for k in kept]), x)
    np.testing.assert_array_equal(np.concatenate([k[1] for k in kept]), c)
    ((rows, none), mask) = next(batches.padded((x, None), batch_size=9))
    assert none is None and mask.sum() == 6 and np.all(rows[6:] == x[-1])


def test_padded_refuses_at_the_call():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        batches.padded(np.zeros((3, 2)), batch_size=0)


def test_binarize_dynamic_frequencies():
    """Each of 256 pixel values, z below 4.5: chance of a false alarm about 0.2%."""
    draws = 20_000
    image = jnp.tile(jnp.arange(256, dtype=jnp.uint8), (draws, 1))
    x = np.asarray(jax.jit(batches.binarize_dynamic)(jax.random.key(0), image))
    assert x.dtype == np.float32 and set(np.unique(x)) == {0.0, 1.0}
    p = np.arange(256) / 255
    assert x[:, 0].max() == 0 and x[:, 255].min() == 1
    z = (x.mean(0) - p)[1:-1] / np.sqrt(p * (1 - p) / draws)[1:-1]
    assert np.abs(z).max() < 4.5
    assert abs(np.mean(z**2) - 1) < 4.5 * np.sqrt(2 / 254)


def test_binarize_dynamic_is_exact_at_every_random_word():
    """P(1) over all 2^16 equally likely words, by counting."""
    u = np.arange(2**16, dtype=np.int64)[:, None]
    p = np.arange(256)
    probability = (u * 255 < p * 65536).mean(0)
    assert probability[0] == 0 and probability[255] == 1
    assert np.abs(probability - p / 255).max() < 2**-16


def test_binarize_dynamic_pixels_are_independent():
    """Neighbours, and pixels that share a random word, are uncorrelated (|z| < 4)."""
    image = jnp.full((20_000, 10), 128, jnp.uint8)
    x = np.asarray(batches.binarize_dynamic(jax.random.key(1), image)) - 128 / 255
    flat = x.reshape(-1)
    half = flat.size // 2
    for a, b in ((flat[:half], flat[half:]), (flat[:-1], flat[1:]), (x[:, 0], x[:, 9])):
        assert abs(np.mean(a * b)) * 4 * np.sqrt(len(a)) < 4


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 3, 3, 1), (2, 28, 28, 1)])
def test_binarize_dynamic_shapes_and_keys(shape):
    draw = jax.jit(batches.binarize_dynamic)
    image = jnp.full(shape, 127, jnp.uint8)
    a = draw(jax.random.key(0), image)
    assert a.shape == shape
    np.testing.assert_array_equal(a, draw(jax.random.key(0), image))
    if image.size > 40:
        assert not np.array_equal(a, draw(jax.random.key(1), image))


def test_binarize_once():
    image = np.tile(np.arange(256, dtype=np.uint8), (20_000, 1))
    once = batches.binarize_once(image, mode="static")
    assert once.dtype == np.uint8 and set(np.unique(once)) == {0, 255}
    np.testing.assert_array_equal(once, batches.binarize_once(image, mode="static"))
    other = batches.binarize_once(image, mode="static", seed=4)
    assert not np.array_equal(once, other)
    p = np.arange(256) / 255
    assert once[:, 0].max() == 0 and once[:, 255].min() == 255
    z = ((once / 255).mean(0) - p)[1:-1] / np.sqrt(p * (1 - p) / 20_000)[1:-1]
    assert np.abs(z).max() < 4.5


def test_binarize_threshold():
    image = np.array([0, 127, 128, 255], np.uint8)
    once = batches.binarize_once(image, mode="threshold")
    np.testing.assert_array_equal(once, np.array([0, 0, 255, 255], np.uint8))
    with pytest.raises(ValueError, match="it must be 'static' or 'threshold'"):
        batches.binarize_once(image, mode="dynamic")
