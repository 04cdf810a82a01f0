"""The anomaly experiments on images, made very small."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import anomaly_oneclass, anomaly_ood, anomaly_vae
from experiments.anomaly_images import background_nats, fit_background, judged
from vi_jax.data.sources import from_arrays


def test_judgement_is_that_of_all_pairs_and_ranks():
    """AUROC by pairs, ties a half; AUPRC from precisions 1, 2/3 and 3/6."""
    normal = {"s": np.array([0.1, 0.4, 0.4, 0.8]), "t": np.array([1.0, 2.0, -np.inf])}
    anomalous = {"s": np.array([0.4, 0.9, 0.6]), "t": np.array([np.inf, 3.0])}
    found = judged(normal, anomalous, num_part=2)
    above = normal["s"][:, None] < anomalous["s"]
    ties = normal["s"][:, None] == anomalous["s"]
    np.testing.assert_allclose(found["s"]["auroc"], (above + 0.5 * ties).mean())
    part = (above + 0.5 * ties)[:2, :2].mean()
    np.testing.assert_allclose(found["s"]["auroc_part"], part)
    np.testing.assert_allclose(found["s"]["auprc"], (1 + 2 / 3 + 3 / 6) / 3)
    assert found["t"]["auroc"] == found["t"]["auprc"] == 1.0


def test_the_background_is_a_probability_of_binary_images():
    """Summed over all 512 of 3x3 it is 1, and it codes as its context tables say."""
    bits = (np.arange(512)[:, None] >> np.arange(9)) & 1
    every = (255 * bits).astype(np.uint8)
    weights = np.random.default_rng(0).integers(1, 50, 512)
    background = fit_background(np.repeat(every, weights, 0), (3, 3, 1))
    np.testing.assert_allclose(np.exp(-background_nats(background, every)).sum(), 1.0)
    # By hand, an image whose only ink is left of the middle and above it.
    seen = bits[:, [3, 1, 0, 2]] == [1, 1, 0, 0]
    chosen = seen.all(1)
    alone = fit_background(every[chosen][:1], (3, 3, 1)).ink
    np.testing.assert_allclose(alone[3], (0.5 + bits[chosen][0, 4]) / 2)
    # Grey is the mean over its binarizations; here no neighbour counts as ink.
    grey = np.full((1, 9), 51, np.uint8)
    p = background.ink[0]
    expected = -9 * (0.2 * np.log(p) + 0.8 * np.log(1 - p))
    np.testing.assert_allclose(background_nats(background, grey), expected)


def pictures(rng, n):
    """8x8 images of three classes: ink above, ink on the left, a diagonal of ink."""
    label = np.arange(n) % 3
    ink = np.zeros((3, 8, 8), bool)
    ink[0, :3], ink[1, :, :3], ink[2] = True, True, np.eye(8, dtype=bool)
    noise = rng.integers(0, 60, (n, 8, 8))
    return np.where(ink[label], 250 - noise, noise).astype(np.uint8), label


@pytest.fixture(scope="module")
def three_classes(tmp_path_factory):
    rng = np.random.default_rng(0)
    (x_train, y_train), (x_test, y_test) = pictures(rng, 360), pictures(rng, 60)
    path = tmp_path_factory.mktemp("data") / "three.npz"
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture(scope="module")
def one_class_run(three_classes, tmp_path_factory):
    knobs = anomaly_oneclass.Knobs(
        classes=(0, 2),
        latents=2,
        hidden=8,
        epochs=30.0,
        batch_size=10,
        learning_rate=1e-2,
        num_valid=20,
        num_part=12,
        num_samples=5,
        regret_steps=5,
        dataset=str(three_classes),
    )
    folder = tmp_path_factory.mktemp("runs") / "one_class"
    return knobs, folder, anomaly_oneclass.run(knobs, folder)


def test_one_class_finds_the_other_classes(one_class_run):
    """And has few false alarms at its threshold."""
    knobs, folder, result = one_class_run
    for row in result["classes"]:
        for name in ("reconstruction error", "-ELBO", "likelihood ratio"):
            assert row["scores"][name]["auroc"] > 0.97
        line = row["threshold"]["-ELBO"]
        assert line["detected"] > 0.9 and line["false_alarms"] <= line["high"] + 0.1
        assert (row["num_train"], row["num_normal"]) == (100, 20)
    aurocs = [row["scores"]["likelihood regret"]["auroc"] for row in result["classes"]]
    np.testing.assert_allclose(
        result["mean"]["likelihood regret"]["auroc"], np.mean(aurocs)
    )
    for picture in ("histograms.png", "extremes.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_a_finished_run_is_left_as_it_is(one_class_run, capsys):
    knobs, folder, result = one_class_run
    assert anomaly_oneclass.run(knobs, folder) == json.loads(json.dumps(result))
    anomaly_oneclass.show(result, folder)
    assert "likelihood regret" in capsys.readouterr().out
    with pytest.raises(ValueError, match="latents: 2 there, 3 now"):
        anomaly_oneclass.run(dataclasses.replace(knobs, latents=3), folder)


@pytest.mark.parametrize("split", ["test", "valid"])
def test_what_is_trained_on_is_held_out_and_scored_are_different_images(split):
    """An image that is its own number, so that it can be found again."""
    number = np.arange(200)
    image = np.stack([number % 256, number // 256, number * 0], -1).astype(np.uint8)
    train = from_arrays(image[:150, None], number[:150] % 3, split="train")
    test = from_arrays(image[150:, None], number[150:] % 3, split="test")
    knobs = anomaly_oneclass.Knobs(num_valid=10, split=split)
    data = anomaly_oneclass.data_of(knobs, 1, train, test)
    kinds = ("train", "valid", "normal", "anomalous")
    of = {k: getattr(data, k)[:, 0].astype(int) for k in kinds}
    assert all((of[k] % 3 == 1).all() for k in ("train", "valid", "normal"))
    assert (of["anomalous"] % 3 != 1).all()
    everything = np.concatenate([*of.values()])
    assert len(np.unique(everything)) == len(everything)
    assert (of["train"] < 150).all() and (of["valid"] < 150).all()
    if split == "test":
        assert sorted([*of["normal"], *of["anomalous"]]) == [*range(150, 200)]
        assert len(of["train"]) == 40
    else:
        assert everything.max() < 150 and len(of["normal"]) == 10


def test_bad_knobs_are_errors_before_there_is_a_folder(one_class_run, tmp_path):
    knobs, folder = one_class_run[0], tmp_path / "none"
    for change, message in (
        ({"num_valid": 500}, "has 120 training images of class 0"),
        ({"classes": (7,)}, "has 0 training images of class 7"),
        ({"num_valid": 10}, "too few for a false-alarm rate"),
        ({"num_samples": 0}, "num_samples and regret_steps"),
    ):
        with pytest.raises(ValueError, match=message):
            anomaly_oneclass.run(dataclasses.replace(knobs, **change), folder)
    assert not folder.exists()


def test_flat_images_are_likelier_than_noise_and_their_code_length_tells(tmp_path):
    """Trained on noise about grey, a model finds flat grey likelier still."""
    rng = np.random.default_rng(1)
    flat = lambda n: np.broadcast_to(rng.integers(120, 136, (n, 1, 1)), (n, 8, 8))
    noise = lambda n: rng.integers(60, 196, (n, 8, 8))
    for name, make in (("noise", noise), ("flat", flat)):
        arrays = {"x_train": make(200), "x_test": make(40)}
        np.savez(
            tmp_path / f"{name}.npz",
            **{k: v.astype(np.uint8) for k, v in arrays.items()},
        )
    knobs = anomaly_ood.Knobs(
        sets=(str(tmp_path / "noise.npz"), str(tmp_path / "flat.npz")),
        latents=2,
        hidden=8,
        epochs=20.0,
        batch_size=20,
        num_part=6,
        num_samples=5,
        regret_steps=5,
    )
    of_noise, of_flat = anomaly_ood.run(knobs, tmp_path / "run")["ways"]
    assert of_noise["scores"]["-ELBO"]["auroc"] < 0.1
    assert of_noise["scores"]["-ELBO - code length"]["auroc"] > 0.9
    assert of_flat["scores"]["-ELBO"]["auroc"] > 0.9
    assert (tmp_path / "run" / "way0" / "scores.png").exists()
    with pytest.raises(ValueError, match="two sets with images of one size"):
        anomaly_ood.run(dataclasses.replace(knobs, sets=(knobs.sets[0],) * 2), tmp_path)


def test_the_command_names_its_parts(capsys):
    with pytest.raises(SystemExit) as stop:
        anomaly_vae.main(["nothing"])
    assert stop.value.code == 2
    assert "anomaly_vae one-class" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        anomaly_vae.main(["ood", "--help"])
    assert stop.value.code == 0
    assert "--regret-steps" in capsys.readouterr().out
