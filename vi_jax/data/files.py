"""Readers of a user's own files: IDX, .npy and .npz, never a pickle."""

import gzip
import math
import struct
from pathlib import Path

import numpy as np

SUPPORTED = ".npy, .npz, .idx, -ubyte, .idx.gz, -ubyte.gz"
_IDX_DTYPES = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}


def is_path(name: str | Path) -> bool:
    """Whether `name` means a file and not a public set."""
    if isinstance(name, Path):
        return True
    if name.startswith(("~", ".", "/")) or "\\" in name:
        return True
    return name.endswith("-ubyte") or bool(Path(name).suffix)


def expanded(path: str | Path) -> Path:
    """The path with its ~ replaced. Raises ValueError where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: there is no such home directory") from error


def existing(path: str | Path) -> Path:
    """The path, `expanded`. Raises FileNotFoundError where there is no file."""
    path = expanded(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return path


def contents(path: str | Path) -> bytes:
    """The bytes of a file, gzipped or not; for damaged ones gzip raises many kinds."""
    data = Path(path).read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def read(path: str | Path, split: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Images [n, ...] and labels [n] (or None) of one split of a file.

    .npy and IDX hold images only and have one split, "train". An .npz has either
    the pairs x_train, y_train, x_test, y_test, ... (one split each), or for the one
    split "train" its images under "image", "images" or "x" and its labels, if any,
    under "label", "labels" or "y".
    Raises FileNotFoundError for a missing file and ValueError for any other fault.
    """
    path = existing(path)
    name = path.name.lower()
    if name.endswith(".npz"):
        return _npz(path, split)
    if name.endswith(".npy"):
        image = _numpy(path)
    elif name.removesuffix(".gz").endswith((".idx", "-ubyte")):
        image = read_idx(path)
    else:
        raise ValueError(f"{path}: the name must end in one of {SUPPORTED}")
    _check_split(path, split, ["train"])
    return image, None


def read_idx(path: str | Path) -> np.ndarray:
    """The array of an IDX file, gzipped or not, as MNIST is stored.

    Raises ValueError that names the file when it is truncated or is not IDX.
    """
    try:
        return _parse_idx(contents(path))
    except Exception as error:
        raise _damaged(path, error) from error


def _parse_idx(data: bytes) -> np.ndarray:
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _IDX_DTYPES:
        raise ValueError("it does not start as an IDX file does")
    dtype, ndim = _IDX_DTYPES[data[2]], data[3]
    shape = struct.unpack_from(f">{ndim}I", data, 4)
    start, want = 4 + 4 * ndim, math.prod(shape) * dtype.itemsize
    if len(data) - start != want:
        raise ValueError(
            f"its header says {shape}, {want} bytes, but {len(data) - start} follow"
        )
    array = np.frombuffer(data, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def _numpy(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            array = np.load(file, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is not a single array")
        return array
    # np.load raises nearly anything, MemoryError included, for a damaged header.
    except Exception as error:
        raise _damaged(path, error) from error


def _npz(path: Path, split: str) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        # Opened here, since np.load leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            image_key, label_key = _npz_keys(path, split, archive.files)
            return archive[image_key], archive[label_key] if label_key else None
    except _WrongUse:
        raise
    except Exception as error:
        raise _damaged(path, error) from error


class _WrongUse(ValueError):
    """A sound file that was asked for something that it does not hold."""


def _npz_keys(path: Path, split: str, keys: list[str]) -> tuple[str, str | None]:
    named = [k.removeprefix("x_") for k in keys if k.startswith("x_")]
    if named:
        _check_split(path, split, named)
        return f"x_{split}", f"y_{split}" if f"y_{split}" in keys else None
    image = next((k for k in ("image", "images", "x") if k in keys), None)
    label = next((k for k in ("label", "labels", "y") if k in keys), None)
    if image is None:
        raise _WrongUse(
            f"{path} holds {keys}, but no 'image', 'images', 'x' or 'x_{split}': "
            "save the images under one of these names"
        )
    _check_split(path, split, ["train"])
    return image, label


def _check_split(path: Path, split: str, splits: list[str]) -> None:
    if split not in splits:
        raise _WrongUse(f"{path} has no split {split!r}, only {sorted(splits)}")


def _damaged(path: str | Path, error: Exception) -> ValueError:
    if "allow_pickle" in str(error):
        return ValueError(
            f"{path} is no file of plain arrays (it holds Python objects, or is "
            "damaged): save a numeric array with np.save or np.savez"
        )
    return ValueError(
        f"{path} cannot be read, it is truncated or damaged ({error}): "
        "write or download it again"
    )
