"""Checkpoints: what is restored is what was saved, and damage is noticed."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict

from vi_jax import checkpoints
from vi_jax.checkpoints import open_checkpoints
from vi_jax.training import TrainState, adam, init_state


def state_at(step, width=3, optimizer=None, dtype=jnp.float32):
    """A state with an optimizer's nested records, different at each step."""
    key = jax.random.key(step)
    params = {"a": jax.random.normal(key, (50, width)), "b": jnp.full(2, float(step))}
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    state = init_state(params, optimizer or optax.adam(1e-3))
    return TrainState(jnp.asarray(step, jnp.int32), params, state.opt_state)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of steps 10, 20 and 30, of which 10 has the best score."""
    new = open_checkpoints(tmp_path)
    for step, score in ((10, -1.0), (20, -3.0), (30, -2.0)):
        new.save(state_at(step), score)
    return tmp_path


def damage(checkpoint, how):
    """Cut short or flip a byte of every file with arrays, or take another step's."""
    if how == "seal":
        (checkpoint / "sha256.json").write_text('{"a"')
        return
    if how == "mixed":
        shutil.rmtree(checkpoint / "default")
        shutil.copytree(checkpoint.parent / "20" / "default", checkpoint / "default")
        return
    for path in checkpoint.rglob("d/*"):
        data = bytearray(path.read_bytes())
        middle = len(data) // 2
        data[middle] ^= 0x10
        path.write_bytes(bytes(data[:middle] if how == "cut" else data))


def test_the_last_and_the_best_come_back(folder):
    there = open_checkpoints(folder)
    assert_same(there.restore(state_at(0)), state_at(30))
    assert_same(there.restore(state_at(0), "best"), state_at(10))


@pytest.mark.parametrize("which", ["last", "best"])
@pytest.mark.parametrize(
    "how, message",
    [
        ({"width": 4}, r"params\.a is float32 \[50, 3\], .* is float32 \[50, 4\];"),
        ({"dtype": jnp.bfloat16}, r"params\.a is float32 .* is bfloat16 \[50, 3\]"),
        (
            {"optimizer": adam(1e-3, num_steps=1, ema=0.9)},
            r"opt_state\.inner\.0 is nothing, .* is int32 \[\]",
        ),
        ({"optimizer": optax.sgd(1e-3)}, r"opt_state\.0 is nothing, .* is empty"),
        (
            {"optimizer": optax.chain(optax.adam(1e-3), optax.identity())},
            r"opt_state\.0\.0\.count is nothing, .* is int32 \[\]",
        ),
        (
            {"optimizer": optax.chain(optax.scale_by_adam(), *[optax.identity()] * 2)},
            r"opt_state\.2 is nothing, .* is empty",
        ),
    ],
)
def test_a_changed_model_or_optimizer_is_one_error(folder, capfd, which, how, message):
    """It names the first leaf that differs; files and stderr stay as they are."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match=message) as raised:
        open_checkpoints(folder).restore(state_at(0, **how), which)
    assert "another model or optimizer" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1 and not capfd.readouterr().err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("empty", [{}, (), None, FrozenDict({}), optax.EmptyState()])
def test_a_part_without_parameters_comes_back(tmp_path, empty):
    """A learned prior's place, say, where the prior is fixed."""
    params = {"net": jnp.arange(3.0), "prior": empty}
    state = init_state(params, optax.adam(1e-3))
    open_checkpoints(tmp_path).save(state, 0.0)
    like = init_state({**params, "net": jnp.zeros(3)}, optax.adam(1e-3))
    assert_same(open_checkpoints(tmp_path).restore(like), state)


def test_numpy_parameters_ask_for_what_jax_makes_of_them(folder):
    """A model's init may give float64, which training turned into float32."""
    like = state_at(0)
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, float), like.params)
    restored = open_checkpoints(folder).restore(like._replace(params=wide))
    assert int(restored.step) == 30


@pytest.mark.parametrize("kind", [np.float32, jnp.float32])
def test_a_score_may_be_an_array_of_one_number(folder, kind):
    there = open_checkpoints(folder)
    there.save(state_at(40), kind(-0.5))
    assert best_step(folder) == 40
    assert_same(there.restore(state_at(0)), state_at(40))


def best_step(folder):
    return int(open_checkpoints(folder).restore(state_at(0), "best").step)


@pytest.mark.parametrize("after", ["best", "last"])
def test_a_kill_between_the_two_folders_loses_neither(folder, monkeypatch, after):
    seal = checkpoints._seal

    def killed(checkpoint):
        seal(checkpoint)
        if checkpoint.parent.name == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "_seal", killed)
    with pytest.raises(KeyboardInterrupt):
        open_checkpoints(folder).save(state_at(40), -0.5)
    monkeypatch.undo()
    again = open_checkpoints(folder)
    # The run goes on from its last checkpoint, and comes to the same states.
    for step, score in ((40, -0.5), (50, -4.0)):
        if step > again.restore(state_at(0)).step:
            again.save(state_at(step), score)
    assert int(again.restore(state_at(0)).step) == 50
    assert best_step(folder) == 40


def test_the_best_is_that_of_the_highest_score(folder):
    """Of two, as a kill leaves them that comes before the worse one is deleted."""
    shutil.copytree(folder / "last" / "30", folder / "best" / "30")
    assert best_step(folder) == 10


def test_a_score_that_is_no_number_is_no_best(folder):
    open_checkpoints(folder).save(state_at(40), float("nan"))
    assert best_step(folder) == 10


def test_the_best_state_is_saved_again_where_the_last_was_damaged(folder):
    open_checkpoints(folder).save(state_at(40), -0.5)
    damage(folder / "last" / "40", "cut")
    with pytest.warns(UserWarning, match="step 40 .* is damaged"):
        open_checkpoints(folder).restore(state_at(0))
    open_checkpoints(folder).save(state_at(40), -0.5)
    assert_same(open_checkpoints(folder).restore(state_at(0)), state_at(40))
    assert best_step(folder) == 40


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    assert open_checkpoints(tmp_path).restore(state_at(0)) is None


@pytest.mark.parametrize("how", ["cut", "flipped", "mixed", "seal"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(folder, how):
    damage(folder / "last" / "30", how)
    with pytest.warns(UserWarning, match="step 30 .* is damaged"):
        restored = open_checkpoints(folder).restore(state_at(0))
    assert_same(restored, state_at(20))
    # The run goes on and reaches the damaged step again.
    again = open_checkpoints(folder)
    again.save(state_at(30), -2.0)
    assert_same(open_checkpoints(folder).restore(state_at(0)), state_at(30))


def test_a_checkpoint_that_was_not_sealed_in_time_still_counts(folder):
    """A kill between the writing of a checkpoint and of its digests."""
    (folder / "last" / "30" / "sha256.json").unlink()
    assert_same(open_checkpoints(folder).restore(state_at(0)), state_at(30))


# Reads of orbax's that come back to a loop that it has closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("what", ["manifest.ocdbt", "_METADATA", "everything"])
def test_what_was_neither_sealed_nor_written_falls_back_too(folder, what):
    """As after a loss of power: names of files, and nothing in them."""
    lost = folder / "last" / "30"
    (lost / "sha256.json").unlink()
    if what == "everything":
        shutil.rmtree(lost)
        lost.mkdir()
    else:
        (lost / "default" / what).write_bytes(b"")
    with pytest.warns(UserWarning, match="step 30 .* is damaged"):
        restored = open_checkpoints(folder).restore(state_at(0))
    assert_same(restored, state_at(20))


def test_where_nothing_can_be_read_the_error_says_what_to_do(folder):
    for step in ("20", "30"):
        damage(folder / "last" / step, "cut")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="start again"):
        open_checkpoints(folder).restore(state_at(0))


def test_a_half_written_checkpoint_is_not_one(folder):
    """What a kill in the middle of writing leaves behind."""
    (folder / "last" / "40.orbax-checkpoint-tmp-1").mkdir()
    (folder / "last" / "40.orbax-checkpoint-tmp-1" / "state").write_text("x")
    assert_same(open_checkpoints(folder).restore(state_at(0)), state_at(30))
