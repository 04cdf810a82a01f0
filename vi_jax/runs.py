"""The run folder: what was asked, by which versions, what happened, what came out."""

import contextlib
import dataclasses
import fnmatch
import hashlib
import importlib.metadata
import inspect
import itertools
import json
import os
import platform
import subprocess
import sys
import time
import typing
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from filelock import FileLock, Timeout
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tqdm import tqdm

from vi_jax import sharding
from vi_jax.types import Metrics

PACKAGES = ("vi_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


# What a folder may hold that is not a run's yet: of a kill, and of a user's own log.
_BEFORE = (".*", "*.tmp", "*.log", "*.txt", "*.out", "*.err")


@contextlib.contextmanager
def claim(folder: Path, experiment: str, knobs) -> Iterator[None]:
    """Hold `folder` as the run of these knobs, which it becomes where it is new.

    Where an error comes before anything is written, of a mistyped knob say, the folder
    is new again afterwards.
    Of several processes the first alone writes into a run folder, here and below, and
    all read it. Raises ValueError that shows the difference where it is the run of
    others, where a file that a knob names (the data) is no longer that of the run, or
    where it holds what is of no run, and OSError where it cannot be written or another
    process holds it.
    """
    folder = Path(folder)
    try:
        if sharding.is_first():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".writable").touch()
            (folder / ".writable").unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            f"cannot write the run folder {folder} ({error.strerror}): pass another "
            "one with --run-dir"
        ) from error
    values = dataclasses.asdict(knobs)
    asked = {"experiment": experiment, "knobs": values, "files": _digests(values)}
    path = folder / "knobs.json"
    with exclusive(folder):
        if path.exists():
            stored = _read_knobs(path)
            _require_same(folder, stored, json.loads(json.dumps(asked)), type(knobs))
            _require_same_files(folder, stored, asked["files"])
        elif sharding.is_first():
            _require_new(folder)
            write_json(path, asked)
        try:
            yield
        except Exception:
            ours = ("knobs.json", "run.json", "training.json")
            if sharding.is_first() and not any(_written(folder, ours)):
                for name in ours:
                    (folder / name).unlink(missing_ok=True)
            raise


def _require_new(folder: Path) -> None:
    there = list(itertools.islice(_written(folder), 3))
    if there:
        raise ValueError(
            f"{folder} has no knobs.json, but other files ({', '.join(there)}): it "
            "is not known what run they are of; pass another --run-dir"
        )


def _written(folder: Path, but: tuple[str, ...] = ()) -> Iterator[str]:
    files = (path.name for path in folder.rglob("*") if path.is_file())
    expected = (*_BEFORE, *but)
    return (f for f in files if not any(fnmatch.fnmatch(f, e) for e in expected))


def once(folder: Path, experiment: str, knobs, work: Callable[[], dict]) -> dict:
    """The result of `work()` as the run of these knobs, stored in result.json.

    A finished folder is left as it is, and its result returned. Raises as `claim` does.
    """
    folder = Path(folder)
    with claim(folder, experiment, knobs):
        path = folder / "result.json"
        if path.exists():
            print(f"{folder} is finished already; its result:", file=sys.stderr)
            return read_json(path)
        if not sharding.is_first():
            return work()
        record_start(folder, knobs)
        result = work()
        write_json(path, result)
    return result


def _require_same(folder: Path, old: dict, new: dict, knobs_class: type) -> None:
    if not isinstance(old.get("knobs"), dict):
        raise ValueError(f"{folder}/knobs.json is damaged: pass another --run-dir")
    flat = lambda d: {"experiment": d.get("experiment"), **d["knobs"]}
    before, now = {**_defaults(knobs_class), **flat(old)}, flat(new)
    changed = [k for k in {**before, **now} if before.get(k) != now.get(k)]
    if changed:
        lines = [f"  {k}: {before.get(k)!r} there, {now.get(k)!r} now" for k in changed]
        raise ValueError(
            f"{folder} is a run with other knobs; nothing was changed:\n"
            + "\n".join(lines)
            + "\npass the same knobs to go on with it, or another --run-dir"
        )


def _defaults(knobs_class: type) -> dict:
    """By name, as JSON has them: what a run has of a knob that is younger than it."""
    fields = dataclasses.fields(knobs_class)
    found = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    return json.loads(json.dumps(found))


def _require_same_files(folder: Path, stored: dict, now: dict[str, str]) -> None:
    before = stored.get("files")  # which older runs have not
    for file, digest in now.items():
        if isinstance(before, dict) and before.get(file, digest) != digest:
            raise ValueError(
                f"{file} is not the data set that {folder} is a run on: it has "
                "changed, or is another file of that name, as seen from here; bring "
                "the one of the run back, or pass another --run-dir"
            )


def _digests(knobs: dict) -> dict[str, str]:
    """The SHA-256 of each file that a knob names; the name of a public set is none."""
    found = {}
    for value in jax.tree.leaves(knobs):
        # What has no folder and no ending is the name of a public set.
        path = os.path.expanduser(value) if isinstance(value, str) else ""
        if os.path.isfile(path) and any(mark in path for mark in "./\\"):
            with open(path, "rb") as file:
                found[value] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def read_knobs(folder: Path, experiment: str, knobs_class):
    """The knobs of a run folder, as an instance of knobs_class.

    A knob that is younger than the run has its default.
    Raises FileNotFoundError where there is no run, ValueError where it is of another
    experiment, its knobs.json is damaged, or a file that a knob names (the data) is no
    longer that of the run.
    """
    path = Path(folder) / "knobs.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} is no run folder: it has no knobs.json")
    stored = _read_knobs(path)
    if stored.get("experiment") != experiment:
        raise ValueError(
            f"{folder} is a run of {stored.get('experiment')!r}, not of {experiment!r}"
        )
    values = stored.get("knobs")
    hints = typing.get_type_hints(knobs_class)
    if not isinstance(values, dict):
        raise ValueError(f"{path} does not hold the knobs of {experiment}")
    values = {**_defaults(knobs_class), **values}
    if other := sorted(values.keys() ^ hints.keys()):
        raise ValueError(
            f"{path} does not hold the knobs of {experiment}, which differ in {other}"
        )
    for name, hint in hints.items():
        if not _fits(values[name], hint):
            raise ValueError(f"{path}: {name} is {values[name]!r}, which it cannot be")
    _require_same_files(folder, stored, _digests(stored["knobs"]))
    # JSON has lists for tuples.
    as_tuple = lambda value: tuple(value) if isinstance(value, list) else value
    return knobs_class(**{name: as_tuple(value) for name, value in values.items()})


def _fits(value, hint) -> bool:
    """Whether a value read from JSON is one of a knob: a literal, or of its type."""
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind is typing.Literal:
        return value in inner
    if kind is tuple:  # of any length, and one type
        return isinstance(value, list) and all(_fits(v, inner[0]) for v in value)
    return isinstance(value, (int, float) if hint is float else hint)


def record_start(folder: Path, knobs) -> None:
    """Append to run.json how, with what and where the run was started or resumed.

    Warns where the versions, or JAX's precision of products, differ from those before:
    the run is then no longer repeatable bit for bit.
    """
    path = Path(folder) / "run.json"
    stored = read_json(path) if path.exists() else {"starts": []}
    starts = stored.get("starts")
    if not isinstance(starts, list) or not all(
        isinstance(start, dict) and "versions" in start for start in starts
    ):
        raise ValueError(f"{path} is damaged: it does not hold the starts. Delete it")
    now = _circumstances(Path(inspect.getfile(type(knobs))))
    for what in ("versions", "matmul_precision") if starts else ():
        before = starts[-1].get(what)
        if before != now[what]:
            warnings.warn(
                f"{folder} was begun with {what} {before} and goes on with "
                f"{now[what]}: it may differ from a run that never stopped",
                stacklevel=2,
            )
    write_json(path, {"starts": [*starts, now]})


def _read_knobs(path: Path) -> dict:
    return read_json(path, advice="pass another --run-dir")


def read_json(path: Path, *, advice: str = "delete it") -> dict:
    """Read a JSON object. Raises ValueError that names a damaged file."""
    try:
        value = json.loads(Path(path).read_text())
    # The last one for brackets without end.
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): {advice}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it does not hold an object")
    return value


def write_json(path: Path, value: dict) -> None:
    """Write JSON so that the file is always whole."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text so that the file is always whole."""
    with whole_file(path) as file:
        file.write(text.encode())


def write_picture(path: Path, picture) -> None:
    """Write a figure, or the bytes of a picture, so that the file is always whole."""
    with whole_file(path) as file:
        if isinstance(picture, bytes):
            file.write(picture)
        else:
            picture.savefig(file, format=Path(path).suffix[1:])


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[typing.BinaryIO]:
    """A file to write into, which takes the place of `path` once it is all there.

    Where `path` is a link, it takes the place of the link.
    """
    temporary = Path(path).with_suffix(".tmp")
    temporary.unlink(missing_ok=True)  # a link would lead elsewhere
    with open(temporary, "wb") as file:
        yield file
    os.replace(temporary, path)


def _circumstances(code: Path) -> dict:
    return {
        "command": sys.argv,
        "git_commit": _git(code, "rev-parse", "--verify", "HEAD"),
        "git_changes": _git(code, "status", "--short", "--untracked-files=no"),
        "versions": {p: _version(p) for p in PACKAGES},
        "matmul_precision": jax.config.jax_default_matmul_precision,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "devices": [f"{d.platform}:{d.device_kind}" for d in jax.devices()],
    }


def _git(code: Path, *command: str) -> str | None:
    """What git says of the folder of `code`; None outside a checkout or without git."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        git = ["git", "-C", str(code.resolve().parent), *command]
        found = subprocess.run(git, capture_output=True, text=True, check=True)
        return found.stdout.strip()
    return None


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the folder against a second run; released however the process ends.

    Raises OSError where another process holds it.
    """
    lock = FileLock(Path(folder) / ".lock", timeout=0)
    try:
        with lock if sharding.is_first() else contextlib.nullcontext():
            yield
    except Timeout as error:
        raise OSError(
            f"another process is using {folder}: wait for it, or pass another --run-dir"
        ) from error


def read_metrics(folder: Path) -> list[Metrics]:
    """The records of metrics.jsonl; a line that is none is left out.

    Of a crash the last line may be cut short. A record has a step, and a number under
    "seconds" and, if there, "skipped".
    """
    path = Path(folder) / "metrics.jsonl"
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and type(record.get("step")) is int:
                numbers = record.get("seconds"), record.get("skipped", 0)
                if all(type(number) in (int, float) for number in numbers):
                    records.append(record)
    return records


@contextlib.contextmanager
def metrics_log(folder: Path, resume_step: int) -> Iterator:
    """A `log(record)` to metrics.jsonl and TensorBoard, from resume_step on.

    What an interrupted run wrote after its last checkpoint is taken back first, so that
    no step is there twice.
    """
    if not sharding.is_first():
        yield lambda record: None
        return
    kept = [r for r in read_metrics(folder) if r["step"] <= resume_step]
    path = Path(folder) / "metrics.jsonl"
    write_text(path, "".join(json.dumps(r) + "\n" for r in kept))
    # Not `SummaryWriter`: where its thread cannot write, its end waits for ever.
    events = Path(folder) / "tensorboard"
    events.mkdir(parents=True, exist_ok=True)
    board = EventsWriter(str(events / "events"))
    with contextlib.closing(board), open(path, "a") as file:

        def show(step: int, **what) -> None:
            board.write_event(Event(wall_time=time.time(), step=step, **what))

        # TensorBoard, too, forgets what an earlier session showed from here on.
        show(resume_step + 1, session_log=SessionLog(status=SessionLog.START))

        def log(record: Metrics) -> None:
            # JSON holds no array of JAX or NumPy, and no scalar of theirs.
            plain = lambda a: np.asarray(a).tolist() if hasattr(a, "dtype") else a
            record = {name: plain(value) for name, value in record.items()}
            file.write(json.dumps(record) + "\n")
            file.flush()
            for name, value in record.items():
                if isinstance(value, list):
                    numbers = np.array(value)
                    if np.isfinite(numbers).all():
                        drawn = summary.histogram(name, numbers, bins="auto")
                        show(record["step"], summary=drawn)
                elif name != "step":
                    show(record["step"], summary=summary.scalar(name, value))
            board.flush()

        yield log


def progress_bar(total: int, unit: str, **options) -> tqdm:
    """A progress bar, quiet where nobody watches."""
    # A log file gets a line every half minute, a terminal a moving bar.
    pace = 0.1 if sys.stderr.isatty() else 30
    return tqdm(total=total, unit=unit, mininterval=pace, dynamic_ncols=True, **options)
