"""Public sets whose images come with the factors that made them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from vi_jax.data import files, sources

# The order in which each set's authors count; tensorflow-datasets keeps none.
_ORDER = {
    "dsprites": (
        *("label_shape", "label_scale", "label_orientation"),
        *("label_x_position", "label_y_position"),
    ),
    "shapes3d": (
        *("label_floor_hue", "label_wall_hue", "label_object_hue"),
        *("label_scale", "label_shape", "label_orientation"),
    ),
    "smallnorb": (
        *("label_category", "instance"),
        *("label_elevation", "label_azimuth", "label_lighting"),
    ),
}


class WithFactors(NamedTuple):
    """Images, and for each the number of the value that every factor has."""

    image: np.ndarray  # uint8 [n, h, w, c]
    factors: np.ndarray  # int32 [n, f]
    names: tuple[str, ...]  # of the f factors


def load_factors(
    name: str, split: str = "train", *, data_dir: str | Path | None = None
) -> WithFactors:
    """Images and factors of one split, or a slice of it, of a public set.

    Factors are the set's classes and booleans, under tensorflow-datasets' names:
    dsprites, shapes3d and smallnorb have theirs in the order of their authors (in
    index order for the first two); celeb_a its 40 attributes, 0 or 1, and other sets
    whatever they have (svhn_cropped and cifar10: "label"), by name. Where the sets lie
    and how they are prepared is as in `load`; large ones are loaded by slices,
    "train[:50000]".
    Raises ValueError for a file, a set without factors, and as `load` does.
    """
    if files.is_path(name):
        raise ValueError(f"{name} is a file: only public sets have factors")
    columns = sources.columns(name, split, data_dir=data_dir)
    found = _ORDER.get(name) or sorted(set(columns) - {"image"})
    missing = set(found) - set(columns)
    if missing or not found:
        raise ValueError(
            f"{name} has no {', '.join(sorted(missing)) or 'factors'}, only "
            f"{sorted(columns)}: if an older version cached its arrays, delete the "
            f"folder vi_jax/{name} of the data_dir"
        )
    factors = np.stack([columns[k] for k in found], axis=1)
    names = tuple(k.split("/")[-1] for k in found)
    return WithFactors(columns["image"], factors, names)
