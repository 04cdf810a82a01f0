"""The results of a long evaluation, example by example, in a file as they come."""

import functools
import hashlib
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vi_jax.runs import whole_file

SAVE_SECONDS = 30.0
"""What a crash costs at most, beside a batch."""


class Partial(NamedTuple):
    """A tree of arrays [m, ...], of the first m examples, in a file."""

    done: Any  # None where there is nothing that fits
    is_due: Callable[[], bool]  # whether the last save is long ago
    save: Callable[[Any], None]


def open_partial(file: Path, inputs: Any, like: Any) -> Partial:
    """What `file`, an .npz, has of the results of the arrays and strings `inputs`.

    Results are trees as `like` but for their length: a file of others, or of other
    inputs, or a damaged one, counts as none. Saving is atomic, and raises OSError where
    the file cannot be written.
    """
    kinds = {n: (a.dtype.name, a.shape[1:]) for n, a in _named(like).items()}
    digest = _digest((inputs, repr(kinds)))
    saved = time.monotonic()

    def save(results: Any) -> None:
        nonlocal saved
        with whole_file(file) as opened:
            np.savez(opened, digest=digest, **_named(results))
        saved = time.monotonic()

    is_due = lambda: time.monotonic() - saved >= SAVE_SECONDS
    return Partial(_read(file, digest, like), is_due, save)


def _digest(inputs: Any) -> str:
    digest = hashlib.sha256()
    for leaf in map(np.asarray, jax.tree.leaves(inputs)):
        digest.update(f"{leaf.dtype} {leaf.shape}".encode() + leaf.tobytes())
    return digest.hexdigest()


def _named(tree: Any) -> dict[str, Any]:
    paths, _ = jax.tree.flatten_with_path(tree)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
    return {name(path) or "value": leaf for path, leaf in paths}


def _read(file: Path, digest: str, like: Any) -> Any:
    try:
        # Opened here: np.load leaves a damaged file open.
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as stored:
            if str(stored["digest"]) == digest:
                # numpy's file has forgotten the name of a bfloat16.
                done = [stored[n].view(a.dtype) for n, a in _named(like).items()]
                return jax.tree.unflatten(jax.tree.structure(like), done)
    # RuntimeError: of a flipped bit that calls a member encrypted or compressed anew.
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile):
        pass
    return None
