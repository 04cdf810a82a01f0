"""A long evaluation that is stopped and goes on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vi_jax import partial, runs
from vi_jax.evaluator import over_examples

X = np.arange(46, dtype=np.float32).reshape(23, 2)
PARAMS = {"w": np.array([1.0, -2.0], np.float32)}


def one(params, key, x, c):
    noise = jax.random.normal(key)
    return {"dot": params["w"] @ x + noise, "pair": (x * c, jnp.sum(x) > 9)}


CONTEXTS = np.linspace(-1, 1, 23, dtype=np.float32)
EACH = over_examples(one, batch_size=4, progress=False)


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """The file of an evaluation that was killed after the third save."""
    monkeypatch.setattr(partial, "SAVE_SECONDS", 0.0)
    file, saves = tmp_path / "test.npz", []

    def dying(beside, to):
        to.write_bytes(beside.read_bytes())
        saves.append(to)
        if len(saves) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs.os, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            EACH(PARAMS, X, CONTEXTS, file=file)
    with np.load(file) as stored:
        assert {n: len(stored[n]) for n in stored.files if n != "digest"} == {
            **{"dot": 12, "pair.0": 12, "pair.1": 12}
        }
    return file


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def batches_of(call, monkeypatch):
    """How many batches were computed in a call, and its result."""
    taken, original = [], jax.device_get
    with monkeypatch.context() as patch:
        patch.setattr(jax, "device_get", lambda a: taken.append(a) or original(a))
        return call(), len(taken)


def test_it_goes_on_bit_for_bit_and_keeps_every_example(stopped, monkeypatch):
    whole = EACH(PARAMS, X, CONTEXTS)
    again = lambda: EACH(PARAMS, X, CONTEXTS, file=stopped)
    found, taken = batches_of(again, monkeypatch)
    equal(found, whole)
    assert taken == 3  # of 6
    with np.load(stopped) as stored:
        np.testing.assert_array_equal(stored["dot"], whole["dot"])
        np.testing.assert_array_equal(stored["pair.1"], whole["pair"][1])
    found, taken = batches_of(again, monkeypatch)
    equal(found, whole)
    assert taken == 0


def test_results_of_other_inputs_are_not_taken(stopped, monkeypatch):
    content = stopped.read_bytes()
    for change in (
        {"params": {"w": PARAMS["w"] + 1}},
        {"x": X[::-1].copy()},
        {"contexts": CONTEXTS + 1},
    ):
        stopped.write_bytes(content)
        given = {"params": PARAMS, "x": X, "contexts": CONTEXTS, **change}
        expected = EACH(*given.values())
        found, taken = batches_of(
            lambda given=given: EACH(*given.values(), file=stopped), monkeypatch
        )
        equal(found, expected)
        assert taken == 6


@pytest.mark.parametrize(
    "damage", ["cut", "flipped", "empty", "text", "renamed", "encrypted"]
)
def test_a_damaged_file_counts_as_none(stopped, damage, monkeypatch):
    content = bytearray(stopped.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        with np.load(stopped) as stored:
            value = stored["dot"][0].tobytes()
        content[content.index(value)] ^= 0xFF
    elif damage == "renamed":
        content = content.replace(b"dot.npy", b"dat.npy")
    elif damage == "encrypted":  # a flag in the archive's list of its members
        content[content.rindex(b"PK\x01\x02") + 8] |= 1
    else:
        content = b"" if damage == "empty" else b"no archive"
    stopped.write_bytes(content)
    again = lambda: EACH(PARAMS, X, CONTEXTS, file=stopped)
    found, taken = batches_of(again, monkeypatch)
    equal(found, EACH(PARAMS, X, CONTEXTS))
    assert taken == 6


@pytest.mark.parametrize(
    "one, seed",
    [
        (one, 1),
        (lambda *given: {**one(*given), "more": given[2]}, None),
        (lambda *given: tuple(one(*given).values()), None),
        (lambda *given: {**one(*given), "dot": given[2]}, None),
        (lambda *given: jax.tree.map(jnp.bfloat16, one(*given)), None),
    ],
    ids=["seed", "one more", "names", "shape", "dtype"],
)
def test_results_of_another_seed_or_form_are_not_taken(stopped, one, seed):
    other = over_examples(one, batch_size=4, seed=seed, progress=False)
    found = other(PARAMS, X, CONTEXTS, file=stopped)
    equal(found, other(PARAMS, X, CONTEXTS))


def test_another_batch_size_goes_on_from_the_file(stopped, monkeypatch):
    other = over_examples(one, batch_size=5, progress=False)
    again = lambda: other(PARAMS, X, CONTEXTS, file=stopped)
    found, taken = batches_of(again, monkeypatch)
    equal(found, EACH(PARAMS, X, CONTEXTS))
    assert taken == 3  # of 11 examples


def test_short_floats_come_back_as_they_are(tmp_path):
    first = lambda params, key, x, c: (x[0].astype(jnp.bfloat16), x[1] > 3)
    each = over_examples(first, progress=False)
    for _ in range(2):
        found = each(PARAMS, X, file=tmp_path / "test.npz")
        assert [a.dtype for a in found] == [jnp.bfloat16, bool]
        equal(found, (X[:, 0].astype(jnp.bfloat16), X[:, 1] > 3))


def test_no_example_is_an_error(tmp_path):
    for file in (None, tmp_path / "test.npz"):
        with pytest.raises(ValueError, match="there is no example"):
            EACH(PARAMS, X[:0], CONTEXTS[:0], file=file)


def test_an_evaluation_is_in_full_float32_on_every_device():
    seen = []

    def one(params, key, x, c):
        seen.append(jax.config.jax_default_matmul_precision)
        return x[0]

    over_examples(one, progress=False)(PARAMS, X)
    assert set(seen) == {"highest"}
