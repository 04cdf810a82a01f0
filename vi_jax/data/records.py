"""Reading prepared public sets, without TensorFlow."""

import functools
import operator
from pathlib import Path

import numpy as np

from vi_jax.data import builders, prepared

MAX_BYTES = 4 * 2**30


def open_records(
    name: str, split: str, *, needed: set[str], data_dir: str | Path | None
):
    """A sequence of the records of a split, each a dict with at least `needed`.

    Raises ValueError (no name of a set; no such split; features missing),
    FileNotFoundError (not prepared) and OSError (damaged).
    """
    builders.check_name(name)
    folder = prepared.folder_of_sets(data_dir)
    found = prepared.find(name, folder)
    if found is None:
        raise FileNotFoundError(
            f"{name} is not prepared in {folder}. Prepare it once (it needs "
            f"TensorFlow):\n  python -m vi_jax.data prepare {name} --data-dir {folder}"
            "\nor pass the data_dir (or set TFDS_DATA_DIR) in which it is prepared, or "
            "a path to a file"
        )
    return open_split(found, split, needed)[0]


def fits(found: prepared.Prepared, split: str, limit: int) -> bool:
    """Whether the images of a whole split stay below `limit` bytes."""
    with prepared.quiet():
        source, _ = open_split(found, split, {"image"})
        return len(source) * _first(found, source).size <= limit


def read(found: prepared.Prepared, split: str, rows: slice) -> dict[str, np.ndarray]:
    """The "image" uint8 [n, h, w, c] of a split and, int32 [n], its classes.

    Those are "label" and whatever else is a class or a boolean, by name, such as
    "label_shape"; one of a group is "attributes/Bald".
    Raises ValueError if the set is no set of images of one size, or if the rows take
    more than 4 GiB; OSError if the prepared files are damaged.
    """
    with prepared.quiet():
        source, features = open_split(found, split, {"image"})
        chosen = range(len(source))[rows]
        first = _first(found, source)
        _check_images(found.name, split, first, len(chosen))
        out = {"image": np.empty((len(chosen), *first.shape), np.uint8)}
        out |= {k: np.empty(len(chosen), np.int32) for k in _classes(features)}
        _fill(found, source, chosen, out)
    return out


def _first(found: prepared.Prepared, source) -> np.ndarray:
    try:
        return np.asarray(source[0]["image"])
    except Exception as error:
        raise prepared.broken(found.name, found.directory, error) from error


def _fill(found, source, chosen, out) -> None:
    paths = {column: column.split("/") for column in out}
    for start in range(0, len(chosen), 1000):
        try:
            examples = source.__getitems__(list(chosen[start : start + 1000]))
        except Exception as error:
            raise prepared.broken(found.name, found.directory, error) from error
        for i, example in enumerate(examples, start):
            if example["image"].shape != out["image"].shape[1:]:
                raise ValueError(f"the images of {found.name} differ in size")
            for column, path in paths.items():
                out[column][i] = functools.reduce(operator.getitem, path, example)


def open_split(found: prepared.Prepared, split: str, needed: set[str]):
    """The records of a split, as a sequence of dicts, and their features.

    Raises ValueError (no such split; features missing) and OSError (damaged).
    """
    if split not in found.splits:
        raise ValueError(
            f"{found.name} has no split {split!r}, only {sorted(found.splits)}"
        )
    try:
        builder = builders.open_builder(found.directory)
        features = builder.info.features
        source = builder.as_data_source(split=split)
    except Exception as error:
        raise prepared.broken(found.name, found.directory, error) from error
    if missing := needed - set(features):
        raise ValueError(
            f"{found.name} has no {sorted(missing)}, only {sorted(features)}"
        )
    return source, features


def _classes(features) -> list[str]:
    """Names of the classes and booleans, sorted: a prepared set keeps no order."""
    import tensorflow_datasets as tfds

    found = []
    for name, feature in features.items():
        if isinstance(feature, tfds.features.FeaturesDict):
            found += [f"{name}/{inner}" for inner in _classes(feature)]
        elif feature.shape == () and (
            isinstance(feature, tfds.features.ClassLabel)
            or feature.np_dtype == np.bool_
            or (name == "label" and np.issubdtype(feature.np_dtype, np.integer))
        ):
            found.append(name)
    return sorted(found)


def _check_images(name: str, split: str, first: np.ndarray, n: int) -> None:
    if first.dtype != np.uint8 or first.ndim != 3:
        raise ValueError(
            f"the images of {name} are {first.dtype} {list(first.shape)}: only uint8 "
            "[h, w, c] are supported"
        )
    if n * first.size > MAX_BYTES:
        raise ValueError(
            f"{n} images of {name} take {n * first.size / 2**30:.0f} GiB: load a part, "
            f"such as '{split}[:{MAX_BYTES // first.size // 2}]'"
        )
