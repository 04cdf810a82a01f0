"""Checkpoints on disk: the last two states and the best one.

Orbax writes a checkpoint beside its place and renames it, so a crash leaves either all
of it or none. Digests of its files are kept with them, so that damage is noticed before
anything reads them.
"""

import contextlib
import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from vi_jax import sharding
from vi_jax.training import TrainState

_SEAL = "sha256.json"
_STATE = "default"  # orbax's folder, in that of a step, for what is not named


class Checkpoints(NamedTuple):
    """A folder of checkpoints, as two functions."""

    save: Callable[[TrainState, float], None]  # (state, score), higher is better
    restore: Callable[..., TrainState | None]  # (like, which="last" | "best")


def open_checkpoints(folder: Path) -> Checkpoints:
    """Open `folder` (created where missing) for saving and restoring.

    `restore(like)` gives the last state that can be read, None where there is none, and
    warns where a newer one is damaged: that one is set aside as `damaged-...`.
    Of several processes, whose states are the same, the first alone reads and writes.
    Raises ValueError where there are checkpoints and none can be read, or where `like`
    differs from what was saved in its structure, a shape or a dtype, as of a changed
    model or optimizer (the first such leaf is named); OSError where one cannot be
    written, as on a full disk: those before it stay.
    """
    folder = Path(folder).resolve()
    kept = {}
    if sharding.is_first():
        # The best first: killed between the two, a run goes on from before both.
        kept = {n: _manager(folder / n, k) for n, k in (("best", 1), ("last", 2))}

    def save(state: TrainState, score: float) -> None:
        # The file of scores holds no scalar of JAX or NumPy.
        step, score = int(state.step), float(score)
        args = ocp.args.StandardSave(jax.device_get(state))
        metrics = {"score": score if score == score else -math.inf}  # nan is no best
        try:
            for name, manager in kept.items():
                if step in manager.all_steps():  # of the same run, before it was killed
                    manager.delete(step)
                # `force`: each call is a decision of the caller, not of an interval.
                manager.save(step, args=args, metrics=metrics, force=True)
                _seal(folder / name / str(step))
        except (OSError, ValueError, RuntimeError) as error:  # orbax has all of them
            raise OSError(
                f"the checkpoint of step {step} could not be written in {folder} "
                f"({str(error):.200}): make room, and the same command goes on from "
                "the one before"
            ) from error

    def restore(like: TrainState, which: str = "last") -> TrainState | None:
        read = lambda: _restore(kept[which], folder / which, like)
        return sharding.of_first(read, like)

    return Checkpoints(save, restore)


def _manager(folder: Path, keep: int) -> ocp.CheckpointManager:
    by_score = {"best_fn": lambda m: m["score"], "best_mode": "max"}
    folder.mkdir(parents=True, exist_ok=True)
    first = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
    options = ocp.CheckpointManagerOptions(
        create=False,
        multiprocessing_options=first,
        max_to_keep=keep,
        enable_async_checkpointing=False,
        cleanup_tmp_directories=True,
        **(by_score if folder.name == "best" else {}),
    )
    return ocp.CheckpointManager(folder, options=options)


def _restore(manager: ocp.CheckpointManager, folder: Path, like: TrainState):
    manager.reload()
    steps = sorted(manager.all_steps(), reverse=True)
    if folder.name == "best":  # killed while it deletes a worse one, it has two
        best = manager.best_step()
        steps.sort(key=lambda step: step != best)
    for step in steps:
        if (state := _read(manager, folder / str(step), like)) is not None:
            return state
        warnings.warn(
            f"the checkpoint of step {step} in {folder} is damaged and was set aside; "
            "falling back to the one before",
            stacklevel=2,
        )
        aside = folder.parent / f"damaged-{folder.name}-{step}"
        while aside.exists():
            aside = aside.with_name(f"{aside.name}+")
        (folder / str(step)).rename(aside)
        manager.reload()
    if steps:
        raise ValueError(
            f"none of the checkpoints in {folder} can be read: start again in a new "
            "folder, or delete this one"
        )
    return None


def _read(manager: ocp.CheckpointManager, checkpoint: Path, like: TrainState):
    """The state of a checkpoint, None where it is damaged."""
    if not _is_whole(checkpoint):
        return None
    asked = _leaves(like)
    try:
        with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
            saved = _leaves(handler.metadata(checkpoint / _STATE).tree)
        if saved == asked:
            target = ocp.args.StandardRestore(jax.tree.map(_abstract, like))
            return manager.restore(int(checkpoint.name), args=target)
    except Exception:  # orbax has many, for files that were never written
        if (checkpoint / _SEAL).exists():
            raise
        return None
    return _refuse(checkpoint, saved, asked)


def _refuse(checkpoint: Path, saved: dict[str, str], asked: dict[str, str]) -> NoReturn:
    """Name the first leaf that orbax would not restore, or only by a cast."""
    for name in asked | saved:
        there, here = (leaves.get(name, "nothing") for leaves in (saved, asked))
        if there != here:
            raise ValueError(
                f"the checkpoint {checkpoint} is of another model or optimizer: its "
                f"{name} is {there}, that of the state to restore is {here}; build "
                "what was trained, or start in a new folder"
            )


def _leaves(tree) -> dict[str, str]:
    """The dtype and shape of each leaf, or empty node, by its dotted path."""
    parts = jax.tree_util.default_registry.flatten_one_level
    is_empty = lambda a: (of_a := parts(a)) is not None and not [*of_a[0]]
    dtype = lambda leaf: jax.dtypes.canonicalize_dtype(leaf.dtype)
    about = lambda a: "empty" if is_empty(a) else f"{dtype(a)} {list(a.shape)}"
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_empty)
    return {name(path): about(leaf) for path, leaf in found}


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    here = SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)


def _digests(checkpoint: Path) -> dict[str, str]:
    """The SHA-256 of every file of a checkpoint but the seal, by its relative path."""
    paths = sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != _SEAL)
    digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()
    return {str(p.relative_to(checkpoint)): digest(p) for p in paths}


def _seal(checkpoint: Path) -> None:
    if checkpoint.exists():  # the best ones keep only what is best
        temporary = checkpoint.parent.with_name(f"{checkpoint.name}-{_SEAL}")
        temporary.write_text(json.dumps(_digests(checkpoint)))
        os.replace(temporary, checkpoint / _SEAL)


def _is_whole(checkpoint: Path) -> bool:
    seal = checkpoint / _SEAL
    # A process killed just before it sealed leaves a checkpoint that orbax completed.
    if not seal.exists():
        return True
    try:
        return _digests(checkpoint) == json.loads(seal.read_text())
    except ValueError:  # not JSON, or not text
        return False
