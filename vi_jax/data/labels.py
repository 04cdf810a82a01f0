"""Where labels are few: balanced subsets, and batches with and without them."""

import numpy as np

from vi_jax.data.batches import Batches, named, shuffled

MISSING = -1
"""The label of an example that has none."""


def keep_balanced(
    label: np.ndarray, num: int, *, num_classes: int, seed: int
) -> np.ndarray:
    """The labels [n] with all but `num` set to MISSING, as many kept in each class.

    Which are kept depends on (label, num, seed) alone. Labels that are MISSING already
    are none to choose from. Raises ValueError where a label is outside the classes, num
    is no multiple of num_classes, at least 1 each, or a class has too few.
    """
    label = np.asarray(label)
    if num_classes < 2 or num < num_classes or num % num_classes:
        raise ValueError(
            f"num is {num} and num_classes {num_classes}: as many labels in each of 2 "
            "or more classes need a multiple of num_classes"
        )
    check_labels(label, num_classes)
    each, rng = num // num_classes, np.random.Generator(np.random.PCG64(seed))
    kept = np.full(label.shape, MISSING, np.int32)
    for y in range(num_classes):
        places = np.flatnonzero(label == y)
        if len(places) < each:
            raise ValueError(
                f"class {y} has {len(places)} labelled examples, {each} are asked for"
            )
        kept[rng.permutation(places)[:each]] = y
    return kept


def check_labels(label: np.ndarray, num_classes: int | None = None) -> None:
    """Raise ValueError unless labels [n] are MISSING or in [0, num_classes).

    Without num_classes there are as many as the greatest label says.
    """
    if label.ndim != 1 or not np.issubdtype(label.dtype, np.integer):
        raise ValueError(
            f"labels must be integers [n], {MISSING} where one is missing, got "
            f"{label.dtype} {list(label.shape)}"
        )
    if num_classes is None:
        num_classes = int(label.max()) + 1 if label.size else 0
    wrong = (label != MISSING) & ((label < 0) | (label >= num_classes))
    if wrong.any():
        raise ValueError(
            f"label {label[wrong][0]} of example {wrong.argmax()} is outside the "
            f"{num_classes} classes, 0 to {num_classes - 1}; {MISSING} is a missing one"
        )


def mixed(
    columns: dict[str, np.ndarray],
    label: np.ndarray,
    *,
    labelled_size: int,
    unlabelled_size: int,
    seed: int,
    num_classes: int | None = None,
) -> Batches:
    """Batches {"labelled": {..., "label"}, "unlabelled": {...}, "step"}.

    label is integer [n], -1 (MISSING) where an example has none and else in
    [0, num_classes), or of any number of classes by default. The examples with a label
    and those without are two streams, each as `shuffled` makes it, so that a few labels
    come back often; a part of size 0 is left out.
    Raises ValueError and TypeError as `shuffled` does, for one part or the other, and
    ValueError for other labels and where both sizes are 0.
    """
    columns = named(columns)
    label = np.asarray(label)
    check_labels(label, num_classes)
    for name, column in columns.items():
        if np.shape(column)[:1] != label.shape:
            raise ValueError(
                f"column {name!r} has shape {np.shape(column)}, the labels "
                f"{label.shape}: they must have one length"
            )
    has = label != MISSING
    rows = {"labelled": has, "unlabelled": ~has}
    sizes = {"labelled": labelled_size, "unlabelled": unlabelled_size}
    if max(sizes.values()) < 1:
        raise ValueError(
            "a batch needs examples: labelled_size and unlabelled_size are 0"
        )
    parts = {}
    for i, (name, size) in enumerate(sizes.items()):
        if size:
            part = {key: column[rows[name]] for key, column in columns.items()}
            part |= {"label": label[has]} if name == "labelled" else {}
            try:
                # Two seeds from one, so that the streams are independent.
                parts[name] = shuffled(part, batch_size=size, seed=seed ^ (i << 63))
            except ValueError as error:
                raise ValueError(
                    f"the {name} part has {rows[name].sum()} examples, a missing label "
                    f"being {MISSING}: {error}"
                ) from error

    def at(step: int) -> dict:
        return {"step": np.int32(step)} | {n: p.at(step) for n, p in parts.items()}

    def gather(resident, travelling) -> dict:
        found = {n: p.gather(resident[n], travelling[n]) for n, p in parts.items()}
        return {"step": travelling["step"]} | found

    return Batches({n: p.resident for n, p in parts.items()}, at, gather)
