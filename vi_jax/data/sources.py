"""Images as uint8 arrays, from a public set, a file or memory."""

import contextlib
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vi_jax.data import builders, files, prepared, records

# Sets whose pixels are 0 and 1.
_BITS = {"binarized_mnist", "dsprites"}
# Of a split above this many bytes, a slice is read alone.
_MAX_SLICED = 2**30


class Dataset(NamedTuple):
    """One split of a set of images."""

    name: str
    split: str
    image: np.ndarray  # uint8 [n, h, w, 1 or 3]
    label: np.ndarray | None  # int32 [n]


def load(
    name: str | Path, split: str = "train", *, data_dir: str | Path | None = None
) -> Dataset:
    """One split, or a slice of it such as "train[:59600]", of a public set or a file.

    `name` is a set of tensorflow-datasets ("mnist", "emnist/letters"), or a path whose
    ending decides: .npy, .npz, .idx, -ubyte, the last two also with .gz (which arrays
    of an .npz are read: `files.read`). "mnist" comes with the package; another set has
    to be prepared once: python -m vi_jax.data prepare NAME. Sets and a cache of their
    arrays lie in `data_dir`, by default $TFDS_DATA_DIR or ~/tensorflow_datasets.
    The 0 and 1 of binarized_mnist and dsprites are returned as 0 and 255, so that
    pixel / 255 is a probability for every set. A slice of a split above 1 GiB is read
    alone, without a cache.
    Raises ValueError (unknown set or split, images neither grey nor RGB, unsuitable or
    damaged file), FileNotFoundError (missing file, set not prepared), OSError
    (data_dir).
    """
    if files.is_path(name):
        return _load_file(name, split, *_parse_split(split))
    found = columns(name, split, data_dir=data_dir)
    _check_shape(found["image"], f"{name}: image")
    return Dataset(name, split, found["image"], found.get("label"))


def columns(
    name: str, split: str, *, data_dir: str | Path | None = None
) -> dict[str, np.ndarray]:
    """The "image" of a public set and all its classes, as `records.read` names them.

    Everything else is as in `load`.
    """
    base, rows = _parse_split(split)
    found, folder = _find(name, data_dir)
    read = _cached(found, folder, base, rows)
    if not len(read["image"]):
        raise ValueError(f"{split!r} of {name} selects no examples")
    return read


def has_only_train(name: str | Path, *, data_dir: str | Path | None = None) -> bool:
    """Whether a public set has the split "train" and no other; never so of a file.

    Raises as `load` does where the set is not found.
    """
    if files.is_path(name):
        return False
    return set(_find(str(name), data_dir)[0].splits) == {"train"}


def _find(name: str, data_dir: str | Path | None) -> tuple[prepared.Prepared, Path]:
    builders.check_name(name)
    folder = prepared.folder_of_sets(data_dir)
    return prepared.find(name, folder) or _prepare_embedded(name, folder), folder


def _load_file(name: str | Path, split: str, base: str, rows: slice) -> Dataset:
    image, label = files.read(name, base)
    try:
        whole = from_arrays(image, label, name=str(name), split=split)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if not len(whole.image[rows]):
        raise ValueError(f"{split!r} of {name} selects no examples")
    label = None if whole.label is None else whole.label[rows]
    return Dataset(str(name), split, whole.image[rows], label)


def _parse_split(split: str) -> tuple[str, slice]:
    match = re.fullmatch(r"([\w.-]+)(?:\[(-?\d+)?:(-?\d+)?\])?", split)
    if match is None:
        raise ValueError(
            f"{split!r} is no split: write a name, or a name and a slice such as "
            "'train[:59600]' or 'train[-400:]'"
        )
    start, stop = (int(i) if i else None for i in match.groups()[1:])
    return match[1], slice(start, stop)


def _prepare_embedded(name: str, folder: Path) -> prepared.Prepared:
    if name in prepared.EMBEDDED:
        print(f"Preparing {name} in {folder}, once ...", file=sys.stderr)
        return prepared.prepare(name, data_dir=folder)
    prepared.check_known(name)
    raise FileNotFoundError(
        f"{name} is not prepared in {folder}. Prepare it once:\n  python -m vi_jax.data"
        f" prepare {name} --data-dir {folder} [--manual-dir FOLDER_WITH_FILES]\n"
        "or pass the data_dir (or set TFDS_DATA_DIR) in which it is prepared"
    )


def _cached(
    found: prepared.Prepared, folder: Path, base: str, rows: slice
) -> dict[str, np.ndarray]:
    """The rows of a split, kept as arrays, since decoding its images takes seconds."""
    cache = folder / "vi_jax" / found.name / found.directory.name / f"{base}.npz"
    whole = rows == slice(None)
    limit = records.MAX_BYTES if whole else min(_MAX_SLICED, records.MAX_BYTES)
    # A damaged cache heals: whatever is wrong with it, it is written again.
    with contextlib.suppress(Exception), cache.open("rb") as file:
        # Twice, since the classes are not among the bytes that `fits` counts.
        if whole or cache.stat().st_size <= 2 * limit:
            with np.load(file, allow_pickle=False) as archive:
                kept = {k: archive[k] for k in archive.files}
                _to_labels(kept.get("label"), len(kept["image"]))
                if kept["image"].dtype == np.uint8 and kept["image"].ndim == 4:
                    return {k: v[rows] for k, v in kept.items()}
    if not records.fits(found, base, limit):
        return _as_pixels(found.name, records.read(found, base, rows))
    everything = _as_pixels(found.name, records.read(found, base, slice(None)))
    _keep(cache, everything)
    return {k: v[rows] for k, v in everything.items()}


def _as_pixels(name: str, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if name in _BITS:
        columns["image"] *= np.uint8(255)  # in place: dsprites takes 3 GB
    return columns


def _keep(cache: Path, columns: dict[str, np.ndarray]) -> None:
    """Write the cache whole or not at all; a folder that is read-only stays so."""
    temporary = None
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache.parent, delete=False) as file:
            temporary = file.name
            np.savez(file, **columns)
        os.replace(temporary, cache)
    except OSError as error:
        warnings.warn(
            f"no cache in {cache.parent} ({error}): loading stays slow", stacklevel=4
        )
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def from_arrays(
    image, label=None, *, name: str = "arrays", split: str = "train"
) -> Dataset:
    """A dataset of the caller's own arrays.

    image is [n, h, w, 1 or 3], [n, h, w] or [n, d], rows that become [n, 1, d, 1]
    (reshape them first if they are pictures). Its values are uint8 or other integers
    in [0, 255]; bool, which become 0 and 255; floats in [0, 1], which become
    round(255 x); or floats that are whole numbers in [0, 255]. label is integer [n].
    Raises ValueError for anything else, integers that never exceed 1 included.
    """
    image = np.asarray(image)
    _check_shape(image, "image")
    pixels = _to_uint8(image)
    if image.ndim == 2:
        pixels = pixels[:, None, :, None]
    elif image.ndim == 3:
        pixels = pixels[..., None]
    return Dataset(name, split, pixels, _to_labels(label, len(image)))


def _check_shape(image: np.ndarray, what: str) -> None:
    channels = image.shape[3] if image.ndim == 4 else 1
    if image.ndim not in (2, 3, 4) or channels not in (1, 3) or not image.size:
        raise ValueError(
            f"{what} has shape {list(image.shape)}: it must be [n, h, w, 1 or 3], "
            "[n, h, w] or [n, d], and not empty; keep 1 or 3 channels, as the last "
            "axis, or flatten them to [n, d]"
        )


def _to_uint8(image: np.ndarray) -> np.ndarray:
    if image.dtype == np.bool_:
        return image.astype(np.uint8) * np.uint8(255)
    if np.issubdtype(image.dtype, np.floating):
        return _floats_to_uint8(image)
    if not np.issubdtype(image.dtype, np.integer):
        raise ValueError(f"image is of dtype {image.dtype}: pass integers or floats")
    low, high = image.min(), image.max()
    if low < 0 or high > 255:
        raise ValueError(
            f"image has integers from {low} to {high}: they must lie in [0, 255]"
        )
    if high == 1:
        raise ValueError(
            "image has only the integers 0 and 1, nearly black as pixels: pass "
            "image.astype(bool), or multiply it by 255"
        )
    return image.astype(np.uint8, copy=False)


def _floats_to_uint8(image: np.ndarray) -> np.ndarray:
    finite = np.isfinite(image).reshape(len(image), -1).all(axis=1)
    if not finite.all():
        raise ValueError(f"image[{finite.argmin()}] has a NaN or an infinity")
    low, high = image.min(), image.max()
    if low >= 0 and high <= 1:
        return np.rint(255 * image.astype(np.float32)).astype(np.uint8)
    if low >= 0 and high <= 255 and (image == np.rint(image)).all():
        return image.astype(np.uint8)
    raise ValueError(
        f"image has floats from {low:g} to {high:g}: scale them to [0, 1], or pass "
        "whole numbers in [0, 255]"
    )


def _to_labels(label, n: int) -> np.ndarray | None:
    if label is None:
        return None
    label = np.asarray(label)
    if label.shape != (n,):
        raise ValueError(f"label has shape {list(label.shape)}: it must be [{n}]")
    if not np.issubdtype(label.dtype, np.integer):
        raise ValueError(f"label is of dtype {label.dtype}: pass integers")
    limits = np.iinfo(np.int32)
    if label.min() < limits.min or label.max() > limits.max:
        raise ValueError("label has integers that do not fit int32")
    return label.astype(np.int32)
