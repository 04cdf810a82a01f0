"""Which runs a table over seeds is of: the user's own, or those stored beside it."""

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any

from vi_jax import runs

Result = dict[str, Any]


def own_or_stored(
    run_dir: Path,
    stored: Path,
    cells_of: Callable[[Result], Iterable[Hashable]],
    *,
    needed: set[str],
) -> dict[Hashable, list[Result]]:
    """The results of each cell: of the runs in run_dir or, where it has none, stored.

    Own runs of one cell whose knobs differ, but for the seed, are not averaged: those
    like the last finished count. A result.json without `needed` is of something else,
    and passed over. Raises ValueError that names a damaged file.
    """
    by_age = lambda path: path.stat().st_mtime_ns
    own, kinds = defaultdict(list), {}
    for path in sorted(run_dir.glob("*/result.json"), key=by_age, reverse=True):
        result = runs.read_json(path)
        for cell in cells_of(result) if needed <= result.keys() else ():
            kind = _knobs_but_the_seed(path.parent)
            if kinds.setdefault(cell, kind) == kind:
                own[cell].append(result)
    found = defaultdict(list)
    for result in json.loads(stored.read_text()) if stored.exists() else ():
        for cell in cells_of(result):
            found[cell].append(result)
    return {**found, **own}


def _knobs_but_the_seed(folder: Path) -> dict[str, Any]:
    path = folder / "knobs.json"
    knobs = runs.read_json(path).get("knobs", {}) if path.exists() else {}
    # Where a set lies does not make it another one.
    return {**knobs, "seed": None, "data_dir": None}
