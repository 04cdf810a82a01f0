"""The results of a long evaluation, example by example, in a file as they come."""

import hashlib
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

SAVE_SECONDS = 30.0
"""What a crash costs at most, beside a batch."""


class Partial(NamedTuple):
    """Named arrays [m, ...] of the first m examples, in a file."""

    done: dict[str, np.ndarray]  # empty where there is nothing that fits
    is_due: Callable[[], bool]  # whether the last save is long ago
    save: Callable[[dict[str, np.ndarray]], None]


def open_partial(file: Path, inputs: Any) -> Partial:
    """What `file`, an .npz, has of the results of the arrays and strings `inputs`.

    A file of other inputs, or a damaged one, counts as none. Saving is atomic, and
    raises OSError where the file cannot be written.
    """
    digest, beside = _digest(inputs), file.with_suffix(".new.npz")
    saved = time.monotonic()

    def save(arrays: dict[str, np.ndarray]) -> None:
        nonlocal saved
        np.savez(beside, digest=digest, **arrays)
        os.replace(beside, file)
        saved = time.monotonic()

    is_due = lambda: time.monotonic() - saved >= SAVE_SECONDS
    return Partial(_read(file, digest), is_due, save)


def _digest(inputs: Any) -> str:
    digest = hashlib.sha256()
    for leaf in map(np.asarray, jax.tree.leaves(inputs)):
        digest.update(f"{leaf.dtype} {leaf.shape}".encode() + leaf.tobytes())
    return digest.hexdigest()


def _read(file: Path, digest: str) -> dict[str, np.ndarray]:
    try:
        # Opened here: np.load leaves a damaged file open.
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as stored:
            if str(stored["digest"]) == digest:
                return {name: stored[name] for name in stored.files if name != "digest"}
    # RuntimeError: of a flipped bit that calls a member encrypted or compressed anew.
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile):
        pass
    return {}
