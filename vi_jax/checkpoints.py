"""Checkpoints on disk: the last two states and the best one.

Orbax writes a checkpoint beside its place and renames it, so a crash leaves either all
of it or none. A digest of the arrays is kept with them, so that damage is noticed.
"""

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from vi_jax.training import TrainState


class Checkpoints(NamedTuple):
    """A folder of checkpoints, as two functions."""

    save: Callable[[TrainState, float], None]  # (state, score), higher is better
    restore: Callable[..., TrainState | None]  # (like, which="last" | "best")


def open_checkpoints(folder: Path) -> Checkpoints:
    """Open `folder` (created where missing) for saving and restoring.

    `restore(like)` gives the last state that can be read, None where there is none, and
    warns where a newer one is damaged: that one is set aside as `damaged-<step>`.
    Raises ValueError where there are checkpoints and none can be read.
    """
    folder = Path(folder).resolve()
    kept = {"last": _manager(folder / "last", 2), "best": _manager(folder / "best", 1)}

    def save(state: TrainState, score: float) -> None:
        step = int(state.step)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            check=ocp.args.JsonSave({"sha256": _digest(state)}),
        )
        for manager in kept.values():
            # `force`: each call is a decision of the caller, not of a save interval.
            manager.save(step, args=args, metrics={"score": score}, force=True)

    def restore(like: TrainState, which: str = "last") -> TrainState | None:
        return _restore(kept[which], folder / which, like)

    return Checkpoints(save, restore)


def _manager(folder: Path, keep: int) -> ocp.CheckpointManager:
    by_score = {"best_fn": lambda m: m["score"], "best_mode": "max"}
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        enable_async_checkpointing=False,
        cleanup_tmp_directories=True,
        **(by_score if folder.name == "best" else {}),
    )
    return ocp.CheckpointManager(folder, options=options)


def _restore(manager: ocp.CheckpointManager, folder: Path, like: TrainState):
    manager.reload()
    steps = sorted(manager.all_steps(), reverse=True)
    for step in steps:
        try:
            return _read(manager, step, like)
        # A damaged file can make its readers raise anything.
        except Exception as error:
            warnings.warn(
                f"the checkpoint of step {step} in {folder} is damaged and was set "
                f"aside ({type(error).__name__}); falling back to the one before",
                stacklevel=2,
            )
            (folder / str(step)).rename(folder.parent / f"damaged-{folder.name}-{step}")
            manager.reload()
    if steps:
        raise ValueError(
            f"none of the checkpoints in {folder} can be read: start again in a new "
            "folder, or delete this one"
        )
    return None


def _read(manager: ocp.CheckpointManager, step: int, like: TrainState) -> TrainState:
    args = ocp.args.Composite(
        state=ocp.args.StandardRestore(jax.tree.map(_abstract, like)),
        check=ocp.args.JsonRestore(),
    )
    restored = manager.restore(step, args=args)
    if _digest(restored.state) != restored.check["sha256"]:
        raise ValueError("the arrays do not match their digest")
    return restored.state


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _digest(state: TrainState) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
