"""The semi-supervised experiment, on images that two labels a class tell apart."""

import dataclasses
import json
import re

import numpy as np
import pytest

from experiments import mnist_ssvae
from experiments.mnist_ssvae import Knobs, collect, main, run, table
from experiments.ssvae_report import auroc
from vi_jax import runs


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """8x8 images of a bar that lies, stands or leans, with holes and spots."""
    rng = np.random.default_rng(0)
    shapes = np.zeros((3, 8, 8), bool)
    shapes[0, 3:5, 1:7] = shapes[1, 1:7, 3:5] = True
    shapes[2] = (np.eye(8) + np.eye(8, k=1)) > 0

    def make(n):
        label = rng.integers(0, 3, n)
        chance = np.where(shapes[label], 0.9, 0.05)
        return (255 * (rng.random(chance.shape) < chance)).astype(np.uint8), label

    (x_train, y_train), (x_test, y_test) = make(600), make(90)
    path = tmp_path_factory.mktemp("data") / "bars.npz"
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


def knobs(images, **others):
    return Knobs(labels=6, dataset=str(images), epochs=60, m1_epochs=60, **others)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("model", ["m2", "m1m2"])
def test_two_labels_a_class_are_enough(images, run_dir, model):
    """Chance is 67% error; a run leaves its numbers and pictures."""
    result = run(knobs(images, model=model), run_dir)
    assert result["error"] < 15 and result["valid_error"] < 15
    assert result["imputed_error"] < 15 and result["pair_auroc"] > 0.9
    assert (result["num_train"], result["num_valid"], result["num_test"]) == (
        *(500, 100, 90),
    )
    folder = run_dir / f"{model}-labels6-seed0"
    for name in ("analogies", "samples", "odd_pairs", "reliability"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    records = runs.read_metrics(folder)
    accuracy = [r["valid_accuracy"] for r in records if "valid_accuracy" in r]
    assert 100 * (1 - accuracy[-1]) == pytest.approx(result["valid_error"])


def test_m1_classifies_the_features_that_m1m2_shares(images, run_dir):
    """The same VAE, trained once."""
    result = run(knobs(images, model="m1"), run_dir)
    starts = runs.read_json(run_dir / "m1" / "run.json")["starts"]
    assert result["error"] < 15
    last = runs.read_metrics(run_dir / "m1")[-1]
    assert len(starts) >= 1 and last["step"] == 60


def test_the_table_has_the_published_beside_the_mean_of_the_seeds(tmp_path):
    for seed, error in ((0, 5.0), (1, 7.0)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        result = {"model": "m2", "labels": 600, "seed": seed, "error": error}
        runs.write_json(folder / "result.json", result)
    found = collect(tmp_path)
    assert len(found["m2", 600]) >= 2
    own = {("m2", 600): found["m2", 600][:2]}
    assert "| m2 | 600 | 4.94 +- 0.13 | 6.00 +- 1.41 | 2 |" in table(own)
    assert "| m1 | 100 | 11.82 +- 0.25 |  | 0 |" in table(own)


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    right, wrong = np.array([1.0, 3.0]), np.array([0.0, 2.0])
    assert auroc(right, wrong) == 0.75


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"labels": 7}, "multiple of num_classes"),
        ({"labels": 0}, "multiple of num_classes"),
        ({"labels": 600}, "labelled examples, 200 are asked for"),
        ({"alpha": -1.0}, "alpha >= 0"),
        ({"labelled_share": 2.0}, r"fraction_labelled in \[0, 1\]"),
        ({"epochs": -1.0}, "epochs must be 0 or more"),
    ],
)
def test_wrong_knobs_are_one_clear_message(images, tmp_path, capsys, wrong, message):
    for model in ("m2", "m1m2"):
        asked = dataclasses.replace(knobs(images, model=model), **wrong)
        with pytest.raises(SystemExit) as caught:
            main(asked, run_dir=tmp_path / "run")
        assert caught.value.code == 1
        printed = capsys.readouterr().err.replace("\n", " ")
        assert re.search(message, printed), printed
        assert not (tmp_path / "run").exists(), "nothing is written for a bad knob"


def test_a_set_without_labels_or_with_other_ones_is_an_error(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (60, 4, 4))
    np.savez(tmp_path / "none.npz", x_train=image, x_test=image)
    with pytest.raises(ValueError, match="has no labels"):
        run(knobs(tmp_path / "none.npz"), tmp_path / "run")
    label = np.arange(60) % 3
    np.savez(
        tmp_path / "more.npz",
        **{"x_train": image, "x_test": image, "y_train": label, "y_test": label + 1},
    )
    with pytest.raises(ValueError, match="label 3 of example 2 is outside the 3"):
        run(knobs(tmp_path / "more.npz"), tmp_path / "run")


def test_a_few_test_images_are_reported(tmp_path):
    rng = np.random.default_rng(0)
    label = np.arange(60) % 3
    image = np.where(label[:, None, None] == np.arange(3)[:, None], 200, 20)
    image = (image + rng.integers(0, 20, (60, 3, 4))).astype(np.uint8)
    few = {"x_test": image[:6], "y_test": label[:6]}
    np.savez(tmp_path / "a.npz", x_train=image, y_train=label, **few)
    knobs = Knobs(model="m2", labels=45, dataset=str(tmp_path / "a.npz"), epochs=2)
    result = run(knobs, tmp_path)
    assert np.isfinite(result["ece"]) and np.isfinite(result["ece_imputed"])
    assert json.loads((next(tmp_path.glob("m2*")) / "result.json").read_text())


def test_the_stored_results_are_those_of_the_table():
    if mnist_ssvae.STORED.exists():
        stored = json.loads(mnist_ssvae.STORED.read_text())
        keys = {(r["model"], r["labels"], r["seed"]) for r in stored}
        assert len(keys) == len(stored)
        assert all(0 < r["error"] < 100 for r in stored)
