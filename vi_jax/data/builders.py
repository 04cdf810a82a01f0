"""Opening what tensorflow-datasets has prepared: files that may come from anywhere."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Where a feature's class is named, in the old form and, in two spellings, in the new.
_CLASS_KEYS = ("type", "pythonClassName", "python_class_name")


def check_name(name: str) -> None:
    """Raise ValueError unless `name` is SET or SET/CONFIG, and so no path."""
    if not re.fullmatch(r"\w+(/\w[\w.-]*)?", name):
        raise ValueError(f"{name!r} is neither the name of a set nor a path to a file")


def open_builder(directory: Path) -> Any:
    """A read-only builder of the prepared set in a directory.

    tensorflow-datasets imports the module of whatever class features.json names, which
    runs it; only its own are let through. Raises ValueError for another class, and what
    tensorflow-datasets raises for damaged files.
    """
    import tensorflow_datasets as tfds

    for file in directory.glob("**/*features.json"):
        for name in _class_names(json.loads(file.read_text())):
            if "." in name and not name.startswith("tensorflow_datasets."):
                raise ValueError(f"{file} names a class of other code, {name}")
    return tfds.builder_from_directory(directory)


def _class_names(value: Any) -> Iterator[str]:
    """Of all features, also of those inside of strings, where JSON is kept as text."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in _CLASS_KEYS and isinstance(inner, str):
                yield inner
            else:
                yield from _class_names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _class_names(inner)
    elif isinstance(value, str):
        try:
            inner = json.loads(value)
        except ValueError:
            return
        if not isinstance(inner, str):
            yield from _class_names(inner)
