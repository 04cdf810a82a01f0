"""A full disk and a clock that is set: a clear message, and no other numbers."""

import contextlib
import gc
import itertools
import time

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_processes import train_in

from vi_jax import commands, runs, training
from vi_jax.checkpoints import open_checkpoints

resource = pytest.importorskip("resource", reason="limits of POSIX systems")


@contextlib.contextmanager
def files_of_at_most(size: int):
    """As on a disk with that much room: a longer file fails as it is written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def curve(folder) -> list[tuple]:
    return [(r["step"], r["bound"], r["loss"]) for r in runs.read_metrics(folder)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return train_in(folder, None), curve(folder)


# TensorBoard's file cannot be closed on a full disk, and says so when it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_a_message_and_costs_no_more_than_a_kill(undisturbed, tmp_path):
    with pytest.raises(OSError, match="File too large"):
        with contextlib.ExitStack() as stack:
            full = lambda: stack.enter_context(files_of_at_most(0))
            train_in(tmp_path, None, at={20: full})
    gc.collect()
    assert not (tmp_path / "result.json").exists()
    result = train_in(tmp_path, None)
    assert curve(tmp_path) == undisturbed[1]
    _same_but_for_the_clock(result, undisturbed[0])


def test_a_checkpoint_that_finds_no_room_leaves_those_before(tmp_path):
    checkpoints = open_checkpoints(tmp_path)
    optimizer = optax.adam(0.1)
    state = training.init_state(jnp.arange(1000.0), optimizer)
    at = lambda step: state._replace(step=jnp.int32(step))
    checkpoints.save(at(1), 0.0)
    with (
        files_of_at_most(0),
        pytest.raises(OSError, match="checkpoint of step 2 could not .* make room"),
    ):
        checkpoints.save(at(2), 1.0)
    for again in (checkpoints, open_checkpoints(tmp_path)):
        for which in ("last", "best"):
            assert again.restore(state, which).step == 1
    checkpoints.save(at(3), 2.0)
    assert open_checkpoints(tmp_path).restore(state, "best").step == 3


def test_a_clock_that_runs_backwards_changes_nothing(
    undisturbed, tmp_path, monkeypatch
):
    """From 2027 back a day at every look: a run in two pieces, and its records."""
    days = itertools.count()
    monkeypatch.setattr(time, "time", lambda: 1.8e9 - 86_400.0 * next(days))
    with pytest.raises(KeyboardInterrupt):
        train_in(tmp_path, None, at={20: _interrupt})
    assert next(days) > 1
    result = train_in(tmp_path, None)
    assert curve(tmp_path) == undisturbed[1]
    _same_but_for_the_clock(result, undisturbed[0])
    assert result["train_seconds"] >= 0


def test_records_lost_after_the_last_step_cost_no_result(undisturbed, tmp_path):
    train_in(tmp_path, None)
    for name in ("result.json", "metrics.jsonl"):
        (tmp_path / name).unlink()
    _same_but_for_the_clock(train_in(tmp_path, None), undisturbed[0])


def test_an_interruption_by_the_keyboard_is_one_line(capsys):
    with pytest.raises(SystemExit) as caught, commands.clear_errors():
        _interrupt()
    assert caught.value.code == 130
    assert capsys.readouterr().err == "\nstopped; the same command goes on from here\n"


def _interrupt():
    raise KeyboardInterrupt


def _same_but_for_the_clock(result, expected):
    clocks = {"train_seconds", "seconds"}
    for name in expected.keys() - clocks:
        np.testing.assert_array_equal(result[name], expected[name])
