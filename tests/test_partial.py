"""A long evaluation that is stopped and goes on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vi_jax import partial
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
        patch.setattr(partial.os, "replace", dying)
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


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_a_damaged_file_counts_as_none(stopped, damage, monkeypatch):
    content = bytearray(stopped.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        with np.load(stopped) as stored:
            value = stored["dot"][0].tobytes()
        content[content.index(value)] ^= 0xFF
    else:
        content = b"" if damage == "empty" else b"no archive"
    stopped.write_bytes(content)
    again = lambda: EACH(PARAMS, X, CONTEXTS, file=stopped)
    found, taken = batches_of(again, monkeypatch)
    equal(found, EACH(PARAMS, X, CONTEXTS))
    assert taken == 6


def test_an_evaluation_is_in_full_float32_on_every_device():
    seen = []

    def one(params, key, x, c):
        seen.append(jax.config.jax_default_matmul_precision)
        return x[0]

    over_examples(one, progress=False)(PARAMS, X)
    assert set(seen) == {"highest"}
