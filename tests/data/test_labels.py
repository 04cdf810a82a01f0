"""Few labels: balanced subsets, and batches that mix examples with and without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vi_jax import training
from vi_jax.data.labels import MISSING, check_labels, keep_balanced, mixed

RNG = np.random.default_rng(0)
LABEL = RNG.integers(0, 4, 200)


def test_as_many_are_kept_in_each_class_and_they_keep_their_label():
    kept = keep_balanced(LABEL, 20, num_classes=4, seed=3)
    has = kept != MISSING
    np.testing.assert_array_equal(kept[has], LABEL[has])
    np.testing.assert_array_equal(np.bincount(kept[has]), [5, 5, 5, 5])


def test_the_subset_is_that_of_its_seed():
    keep = lambda seed: keep_balanced(LABEL, 20, num_classes=4, seed=seed)
    bytes_ = keep_balanced(LABEL.astype(np.uint8), 20, num_classes=4, seed=3)
    np.testing.assert_array_equal(bytes_, keep(3))
    np.testing.assert_array_equal(keep(1), keep(1))
    assert np.any(keep(1) != keep(2))


def test_every_example_of_a_class_is_as_likely_to_be_kept():
    """2,000 subsets of 2 of 8 in each class: |z| < 4.5 for each of 16 examples."""
    label = np.repeat([0, 1], 8)
    subsets = [keep_balanced(label, 4, num_classes=2, seed=s) for s in range(2000)]
    counts = np.sum(np.array(subsets) != MISSING, axis=0)
    z = (counts - 2000 / 4) / (2000 * 0.25 * 0.75) ** 0.5
    assert np.all(abs(z) < 4.5)


def test_what_is_missing_already_is_not_chosen():
    label = np.where(np.arange(200) < 100, LABEL, MISSING)
    kept = keep_balanced(label, 40, num_classes=4, seed=0)
    assert np.all(kept[100:] == MISSING)


def columns():
    return {"image": np.arange(200, dtype=np.uint8).reshape(200, 1)}


def batch_at(stream, step):
    return jax.device_get(stream.gather(stream.resident, stream.at(step)))


def test_an_epoch_of_each_part_shows_each_of_its_examples_once():
    label = keep_balanced(LABEL, 20, num_classes=4, seed=0)
    stream = mixed(columns(), label, labelled_size=5, unlabelled_size=30, seed=1)
    seen = [batch_at(stream, step) for step in range(6)]
    rows = np.concatenate([b["labelled"]["image"][:, 0] for b in seen[:4]])
    np.testing.assert_array_equal(np.sort(rows), np.flatnonzero(label != MISSING))
    rows = np.concatenate([b["unlabelled"]["image"][:, 0] for b in seen])
    np.testing.assert_array_equal(np.sort(rows), np.flatnonzero(label == MISSING))
    for step, batch in enumerate(seen):
        # No part of an image loses its label, and none without one gets it.
        of_rows = label[batch["labelled"]["image"][:, 0]]
        np.testing.assert_array_equal(batch["labelled"]["label"], of_rows)
        assert "label" not in batch["unlabelled"]
        assert batch["step"] == step


def test_the_trainer_takes_such_batches():
    """Fit the mean of the labels, 1.5 with as many of each class."""
    label = keep_balanced(LABEL, 20, num_classes=4, seed=0)
    stream = mixed(columns(), label, labelled_size=20, unlabelled_size=3, seed=1)

    def loss(params, key, batch):
        value = jnp.mean((params - batch["labelled"]["label"]) ** 2)
        return value, {"bound": -value}

    optimizer = training.adam(0.3, num_steps=200)
    state = training.init_state(jnp.zeros(()), optimizer)
    *_, (state, _) = training.fit(
        loss, optimizer, state, stream, seed=0, num_steps=200, scan_steps=50
    )
    np.testing.assert_allclose(state.params, 1.5, atol=1e-3)


def test_a_part_of_size_0_is_left_out():
    label = keep_balanced(LABEL, 20, num_classes=4, seed=0)
    how = {"num_classes": 4, "seed": 0}
    only = mixed(columns(), label, labelled_size=4, unlabelled_size=0, **how)
    assert batch_at(only, 0).keys() == {"labelled", "step"}


@pytest.mark.parametrize(
    "num, num_classes, message",
    [
        (0, 4, "multiple of num_classes"),
        (18, 4, "multiple of num_classes"),
        (20, 1, "multiple of num_classes"),
        (400, 4, r"class 0 has \d+ labelled examples, 100"),
        (20, 5, "class 4 has 0 labelled examples, 4"),
        (9, 3, r"label 3 of example \d+ is outside the 3 classes"),
    ],
)
def test_impossible_subsets_are_errors(num, num_classes, message):
    with pytest.raises(ValueError, match=message):
        keep_balanced(LABEL, num, num_classes=num_classes, seed=0)


def test_a_label_outside_the_classes_names_its_example():
    check_labels(np.array([0, MISSING, 2]), 3)
    with pytest.raises(ValueError, match="label -2 of example 1"):
        check_labels(np.array([0, -2, 7]), 3)


def test_wrong_batches_are_errors():
    label = keep_balanced(LABEL, 20, num_classes=4, seed=0)
    how = {"seed": 0}
    with pytest.raises(ValueError, match="a batch needs examples"):
        mixed(columns(), label, labelled_size=0, unlabelled_size=0, **how)
    with pytest.raises(ValueError, match="labelled part has 20 examples.* is 21"):
        mixed(columns(), label, labelled_size=21, unlabelled_size=5, **how)
    with pytest.raises(ValueError, match="the unlabelled part has 0 examples.* -1"):
        mixed(columns(), LABEL, labelled_size=5, unlabelled_size=1, **how)


@pytest.mark.parametrize(
    "label, num_classes, message",
    [
        (np.where(LABEL > 0, LABEL, np.nan), None, "integers .*-1 where.*got float64"),
        (np.where(LABEL > 0, LABEL, None), 4, "integers .*-1 where.*got object"),
        (LABEL[:, None], 4, r"integers \[n\].* got int64 \[200, 1\]"),
        (np.where(LABEL > 0, LABEL, -2), None, "label -2 of example .* 4 classes"),
        (np.where(LABEL > 2, 7, LABEL), 4, "label 7 of example .* 4 classes"),
    ],
)
def test_labels_that_are_no_classes_are_no_batches(label, num_classes, message):
    sizes = {"labelled_size": 5, "unlabelled_size": 5}
    with pytest.raises(ValueError, match=message):
        mixed(columns(), label, num_classes=num_classes, seed=0, **sizes)
