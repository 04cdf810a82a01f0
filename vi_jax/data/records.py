"""Records of a prepared public set that is no set of images."""

from pathlib import Path

from vi_jax.data import builders, files, prepared


def open_records(
    name: str, split: str, *, needed: set[str], data_dir: str | Path | None
):
    """A sequence of the records of a split, each a dict with at least `needed`.

    Raises ValueError (no name of a set; no such split; features missing),
    FileNotFoundError (not prepared) and OSError (damaged).
    """
    builders.check_name(name)
    folder = files.expanded(data_dir) if data_dir else prepared.default_data_dir()
    found = prepared.find(name, folder)
    if found is None:
        raise FileNotFoundError(
            f"{name} is not prepared in {folder}. Prepare it once (it needs "
            f"TensorFlow):\n  python -m vi_jax.data prepare {name} --data-dir {folder}"
            "\nor pass the data_dir (or set TFDS_DATA_DIR) in which it is prepared, or "
            "a path to a file"
        )
    if split not in found.splits:
        raise ValueError(f"{name} has no split {split!r}, only {sorted(found.splits)}")
    try:
        builder = builders.open_builder(found.directory)
        source = builder.as_data_source(split=split)
    except Exception as error:
        raise OSError(
            f"the prepared files of {name} are damaged ({error}): delete "
            f"{found.directory} and prepare the set again"
        ) from error
    if missing := needed - set(builder.info.features):
        raise ValueError(
            f"{name} has no {sorted(missing)}, only {sorted(builder.info.features)}"
        )
    return source
