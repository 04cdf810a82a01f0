"""A set of images made ready for a model: splits, binarization, batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np

from vi_jax.data import batches, sources
from vi_jax.types import Array, Batch, Key

Binarize = Literal["dynamic", "static", "threshold", "none"]


class ImageData(NamedTuple):
    """Flat images for training and evaluation; D = h w c."""

    train: batches.Batches
    preprocess: Callable[[Key, Batch], Array]  # batch -> x f32 [n, D], inside jit
    num_train: int
    valid: np.ndarray  # uint8 [n, D], of 0 and 255 unless binarize is "none"
    test: np.ndarray  # uint8 [n, D], likewise
    valid_label: np.ndarray | None  # int32 [n]; a batch then has "label" too
    test_label: np.ndarray | None
    mean: np.ndarray  # f32 [D], of the training pixels in [0, 1]
    shape: tuple[int, int, int]  # (h, w, c)

    def num_classes(self) -> int:
        """How many classes 0, 1, ... the labels have; ValueError where there are none.

        Every class must be among the training labels, and no label be negative.
        """
        if self.valid_label is None or self.test_label is None:
            raise ValueError("this set has no labels, which are needed here")
        train = self.train.resident["label"]
        found = np.unique(np.concatenate([train, self.valid_label, self.test_label]))
        if found[0] != 0 or not np.array_equal(np.unique(train), np.arange(len(found))):
            raise ValueError(
                f"the labels must be 0, 1, ... with each in the training set; got "
                f"{np.unique(train)} there, and {found} in all"
            )
        return len(found)


def image_data(
    dataset: str | Path,
    *,
    binarize: Binarize,
    batch_size: int,
    seed: int,
    num_valid: int | None = None,
    data_dir: str | Path | None = None,
) -> ImageData:
    """The splits of a set, or of an .npz with x_train and x_test, for a flat model.

    Of a public set that has only "train" (dsprites, shapes3d), the test images are the
    last tenth, at most 10,000, in the order in which it lies prepared, a shuffled one.
    The last `num_valid` training images are held out: by default 400, as Burda et al.
    do, or a tenth of a small set. `binarize` is "dynamic" (a new draw at each access),
    "static" (one draw), "threshold" or "none" (pixel / 255).
    What is evaluated is drawn once, with a fixed seed, whatever the seed of the run.
    Raises ValueError where binarize is another word, a batch is larger than the set or
    num_valid leaves nothing, and as `load` does, for images of 2 or 4 channels too.
    """
    if binarize not in get_args(Binarize):
        raise ValueError(
            f"binarize is {binarize!r}: it must be one of {get_args(Binarize)}"
        )
    for_training, for_test = _train_and_test(dataset, data_dir)
    training, label = for_training.image, for_training.label
    test, test_label = for_test.image, for_test.label
    if training.shape[1:] != test.shape[1:]:
        raise ValueError(
            f"{dataset} has training images of {training.shape[1:]} and test images of "
            f"{test.shape[1:]}: they must have one shape"
        )
    if num_valid is None:
        num_valid = min(400, len(training) // 10)
    if not 1 <= num_valid < len(training):
        raise ValueError(
            f"num_valid is {num_valid}: it must lie in [1, {len(training) - 1}], since "
            f"{dataset} has {len(training)} training images"
        )
    shape = training.shape[1:]
    training, test = (a.reshape(len(a), -1) for a in (training, test))
    mean = (training[:-num_valid].mean(axis=0) / 255).astype(np.float32)
    fixed = "static" if binarize == "dynamic" else binarize
    evaluated = lambda a: a if fixed == "none" else batches.binarize_once(a, mode=fixed)
    valid, test = evaluated(training[-num_valid:]), evaluated(test)
    training = training[:-num_valid]
    if binarize in ("static", "threshold"):
        training = batches.binarize_once(training, mode=binarize)
    columns, valid_label = {"image": training}, None
    if label is not None:
        columns["label"], valid_label = label[:-num_valid], label[-num_valid:]
    stream = batches.shuffled(columns, batch_size=batch_size, seed=seed)
    prepare = _draw if binarize == "dynamic" else divide_by_255
    return ImageData(
        stream,
        prepare,
        num_train=len(training),
        valid=valid,
        test=test,
        valid_label=valid_label,
        test_label=test_label,
        mean=mean,
        shape=shape,
    )


def _train_and_test(
    dataset: str | Path, data_dir: str | Path | None
) -> tuple[sources.Dataset, sources.Dataset]:
    whole = sources.load(dataset, "train", data_dir=data_dir)
    if not sources.has_only_train(dataset, data_dir=data_dir):
        return whole, sources.load(dataset, "test", data_dir=data_dir)
    n = len(whole.image) - min(10_000, len(whole.image) // 10)
    if n == len(whole.image):
        raise ValueError(
            f"{dataset} has only {n} images and no test split: a tenth of 10 or more "
            "can be held out"
        )
    image, label = whole.image, whole.label
    first, last = (None, None) if label is None else (label[:n], label[n:])
    return (
        sources.Dataset(whole.name, f"train[:{n}]", image[:n], first),
        sources.Dataset(whole.name, f"train[{n}:]", image[n:], last),
    )


def _draw(key: Key, batch: Batch) -> Array:
    return batches.binarize_dynamic(key, batch["image"])


def divide_by_255(key: Key, batch: Batch) -> Array:
    """pixel / 255, float32 [n, D]: the `preprocess` of what is not drawn anew."""
    del key
    return batch["image"].astype(jnp.float32) / 255
