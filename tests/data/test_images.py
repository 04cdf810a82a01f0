"""A set for a flat model: its splits, and the labels that go with them."""

import jax
import numpy as np
import pytest

from vi_jax.data import sources
from vi_jax.data.images import image_data

RNG = np.random.default_rng(0)


def make(path, train_label=None, test_label=None, n=50):
    """Images whose first pixel is their number, so that a row can be told."""
    image = lambda n: np.tile(np.arange(n, dtype=np.uint8)[:, None, None], (1, 2, 2))
    columns = {"x_train": image(n), "x_test": image(7)}
    if train_label is not None:
        columns |= {"y_train": train_label, "y_test": test_label}
    np.savez(path, **columns)
    return image_data(path, binarize="none", batch_size=8, seed=0, num_valid=10)


def test_each_label_stays_with_its_image(tmp_path):
    train_label, test_label = np.arange(50) % 3, np.array([2, 0, 1, 2, 0, 1, 0])
    data = make(tmp_path / "a.npz", train_label, test_label)
    np.testing.assert_array_equal(data.valid_label, train_label[40:])
    np.testing.assert_array_equal(data.test_label, test_label)
    resident = data.train.resident
    for step in range(10):
        batch = jax.device_get(data.train.gather(resident, data.train.at(step)))
        numbers = batch["image"][:, 0].astype(int)
        np.testing.assert_array_equal(batch["label"], train_label[numbers])
    assert data.num_classes() == 3


def test_a_set_without_labels_has_none_and_says_so_where_they_are_needed(tmp_path):
    data = make(tmp_path / "a.npz")
    assert "label" not in data.train.resident and data.valid_label is None
    with pytest.raises(ValueError, match="no labels"):
        data.num_classes()


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("public", [False, True])
def test_what_is_neither_grey_nor_rgb_is_refused(
    tmp_path, monkeypatch, channels, public
):
    """Of a file or a public set, before anything is trained that cannot be drawn."""
    image = RNG.integers(0, 256, (50, 6, 5, channels), np.uint8)
    np.savez(tmp_path / "a.npz", x_train=image, x_test=image)
    monkeypatch.setattr(sources, "has_only_train", lambda *_, **__: False)
    monkeypatch.setattr(sources, "columns", lambda *_, **__: {"image": image})
    name = "colours" if public else tmp_path / "a.npz"
    with pytest.raises(ValueError, match=rf"{name}: .*{channels}\]: .*keep 1 or 3"):
        image_data(name, binarize="none", batch_size=8, seed=0)


@pytest.mark.parametrize(
    "train_label, test_label",
    [
        (np.arange(50) % 3 + 1, np.ones(7, int)),  # no class 0
        (np.arange(50) % 3 - 1, np.zeros(7, int)),  # a negative one
        (2 * (np.arange(50) % 2), np.zeros(7, int)),  # a gap
        (np.arange(50) % 3, np.full(7, 3)),  # a class that is only in the test set
    ],
)
def test_labels_that_are_no_classes_are_an_error(tmp_path, train_label, test_label):
    data = make(tmp_path / "a.npz", train_label, test_label)
    with pytest.raises(ValueError, match="each in the training set"):
        data.num_classes()
