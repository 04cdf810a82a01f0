"""Runs and command lines, on a set of small images and a small net."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import (
    mnist_fsvae,
    mnist_iwae,
    mnist_ssvae,
    mnist_vae,
    ppca,
    recommender_vae,
)
from vi_jax import commands, experiment, figures, resumable, runs, training
from vi_jax.checkpoints import open_checkpoints
from vi_jax.data.batches import padded, shuffled
from vi_jax.evaluator import make_evaluator

ROOT = Path(__file__).parent.parent
MODULES = {
    "mnist_vae": mnist_vae,
    "mnist_iwae": mnist_iwae,
    "mnist_fsvae": mnist_fsvae,
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """An .npz of 4x4 images whose rows are on or off together."""
    rng = np.random.default_rng(0)
    make = lambda n: np.repeat(rng.integers(0, 256, (n, 4, 1)), 4, axis=2)
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(path, x_train=make(300), x_test=make(33))
    return path


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Images of 4x4 whose left or right half is on, the class, with some noise."""
    rng = np.random.default_rng(1)

    def make(n):
        label = rng.integers(0, 2, n)
        left = np.repeat(np.stack([label == 0, label == 1], 1), 2, 1)[:, None]
        chance = np.where(np.tile(left, (1, 4, 1)), 0.9, 0.1)
        return (255 * (rng.random((n, 4, 4)) < chance)).astype(np.uint8), label

    (x_train, y_train), (x_test, y_test) = make(300), make(40)
    path = tmp_path_factory.mktemp("data") / "labelled.npz"
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


def arguments(small, run_dir, **knobs):
    knobs = {
        "dataset": small,
        "run_dir": run_dir,
        "epochs": 4,
        "batch_size": 20,
        "latents": 2,
        "eval_samples": 20,
        "scan_steps": 7,
        "checkpoint_epochs": 1,
        **knobs,
    }
    pairs = [(f"--{k.replace('_', '-')}", str(v)) for k, v in knobs.items()]
    return [word for pair in pairs for word in pair]


def train(small, run_dir, name="mnist_vae", **knobs):
    module = MODULES[name]
    commands.main(name, module.Knobs, module.build, arguments(small, run_dir, **knobs))
    return json.loads((run_dir / "result.json").read_text())


def final_state(run_dir, name="mnist_vae"):
    """The experiment of a run, and its last checkpoint, read anew."""
    built = MODULES[name].build(runs.read_knobs(run_dir, name, MODULES[name].Knobs))
    like = experiment.initial_state(built)
    return built, open_checkpoints(run_dir / "checkpoints").restore(like)


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    train(small, run_dir)
    return run_dir


def test_a_run_leaves_all_that_it_promises(finished):
    result = json.loads((finished / "result.json").read_text())
    promised = (
        "nll nll_stderr num_samples elbo rate distortion active_units train_seconds "
        "eval_seconds steps seed dataset binarize split num_test num_train k estimator"
    )
    assert set(promised.split()) <= set(result)
    assert result["steps"] == 54  # 270 training images, 4 epochs, batches of 20
    assert result["num_test"] == 33 and result["num_train"] == 270
    assert result["elbo"] <= -result["nll"]
    assert np.isclose(result["elbo"], -result["rate"] - result["distortion"])
    for name in ("samples", "reconstructions", "interpolations", "training"):
        assert (finished / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert list((finished / "tensorboard").glob("events.out.tfevents*"))
    stored = json.loads((finished / "run.json").read_text())
    assert stored["starts"][0]["versions"]["jax"]
    assert len(stored["starts"]) == 1


def test_metrics_hold_every_step_once_and_the_validation(finished):
    records = runs.read_metrics(finished)
    assert [r["step"] for r in records] == [7, 14, 21, 28, 35, 42, 49, 54]
    assert all(
        r["rate"] + r["distortion"] == pytest.approx(-r["elbo"]) for r in records
    )
    # An epoch is 14 steps.
    assert [r["step"] for r in records if "valid_bound" in r] == [14, 28, 42, 54]


def test_each_validation_logs_what_the_latents_carry(finished):
    built, state = final_state(finished)
    images = built.data.valid.astype(np.float32) / 255
    q = jax.vmap(lambda x: built.model.posterior(state.params, x))(images)
    variance = np.asarray(q.scale, np.float64) ** 2
    each = 0.5 * (variance + np.asarray(q.loc) ** 2 - 1 - np.log(variance))
    records = [r for r in runs.read_metrics(finished) if "valid_bound" in r]
    assert len(records) == 4
    last = records[-1]
    np.testing.assert_allclose(last["kl_per_latent"], each.mean(0), rtol=1e-4)
    assert last["active_units"] == np.sum(np.var(q.loc, axis=0) > 0.01)
    # One draw a posterior: not the closed form, but near it.
    parts = last["mutual_information"] + last["aggregate_kl"]
    assert parts == pytest.approx(each.sum(1).mean(), abs=0.5)


def test_early_stopping_waits_for_beta_and_then_for_its_patience(
    small, tmp_path, monkeypatch
):
    """Where every validation is worse than the one before it."""
    falling = iter(range(0, -100, -1))
    monkeypatch.setattr(
        experiment,
        "_validation",
        lambda built: lambda params: {"valid_bound": float(next(falling))},
    )
    knobs = {"anneal": "linear", "anneal_epochs": 5, "epochs": 20, "patience": 2}
    result = train(small, tmp_path, **knobs)
    # beta is at its end from step 70 on, and the best since then is the first.
    assert (result["steps"], result["checkpoint"]) == (98, "best")
    built, _ = final_state(tmp_path)
    like = experiment.initial_state(built)
    best = open_checkpoints(tmp_path / "checkpoints").restore(like, "best")
    assert best.step == 70
    measure = make_evaluator(built.model, num_samples=20)
    nll = -np.mean(measure(best.params, built.data.test).log_px)
    assert result["nll"] == pytest.approx(nll, rel=1e-6)
    # Killed after it had stopped, it stops where it was.
    (tmp_path / "result.json").unlink()
    again = train(small, tmp_path, **knobs)
    assert (again["steps"], again["nll"]) == (98, result["nll"])


def test_two_latents_of_labelled_images_have_a_map(labelled, tmp_path):
    built = mnist_vae.build(
        mnist_vae.Knobs(dataset=str(labelled), latents=2, hidden=4, batch_size=20)
    )
    params = experiment.initial_state(built).params
    shown, rates = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures.plots, "latent_map", lambda *a: shown.append(a))
        patch.setattr(figures, "traversals", lambda *a: {"z0": np.ones((2, 4, 4, 1))})
        patch.setattr(figures.plots, "kl_bars", rates.append)
        pictures = figures.latent_pictures(
            built, params, [{"step": 1, "kl_per_latent": [0.2, 0.1]}]
        )
    assert {"latent_map.png", "traversals.gif"} < set(pictures)
    ((means, label),) = shown
    np.testing.assert_array_equal(label, built.data.test_label)
    one = built.model.posterior(params, built.data.test[3] / np.float32(255)).mean()
    np.testing.assert_allclose(means[3], one, rtol=1e-5, atol=1e-6)
    # Of the parameters that are drawn, whatever the last record says.
    q = jax.vmap(lambda x: built.model.posterior(params, x))(
        built.data.valid / np.float32(255)
    )
    each = (q.loc**2 + q.scale**2 - 1) / 2 - np.log(q.scale)
    np.testing.assert_allclose(rates[0], each.mean(0), rtol=1e-4, atol=1e-6)


def test_training_raises_the_bound(small, tmp_path):
    result = train(small, tmp_path / "run", epochs=60, scan_steps=100)
    records = runs.read_metrics(tmp_path / "run")
    # 16 fair coins are 11.09 nats; knowing two of the four rows leaves 10.59.
    assert 10.09 - 4 * result["nll_stderr"] < result["nll"] < 10.8
    assert records[-1]["bound"] > records[0]["bound"] + 0.2


def test_the_evaluation_is_that_of_each_image_and_drops_none(small, finished):
    """33 images in batches of 20: the last batch is padded, masked and counted."""
    knobs = runs.read_knobs(finished, "mnist_vae", mnist_vae.Knobs)
    small_run = mnist_vae.build(knobs)
    params = experiment.initial_state(small_run).params
    x = small_run.data.test
    evaluator = make_evaluator(small_run.model, num_samples=9, chunk=4)
    found = evaluator(params, x)
    assert found.log_px.shape == (33,)
    assert sum(mask.sum() for _, mask in padded(x, batch_size=20)) == 33
    with pytest.raises(ValueError, match=r"uint8.*float32.*over_examples"):
        evaluator(params, (x / 255).astype(np.float32))
    other = make_evaluator(small_run.model, num_samples=9, chunk=4, batch_size=7)
    np.testing.assert_allclose(found.log_px, other(params, x).log_px, rtol=1e-5)


@pytest.mark.parametrize("name", ["mnist_vae", "mnist_fsvae"])
def test_without_two_images_to_draw_a_path_between_there_is_none(
    labelled, tmp_path, capsys, name
):
    """One test image; or one of each class, of a model that is given the class."""
    with np.load(labelled) as stored:
        columns = dict(stored)
    first = (
        [0]
        if name == "mnist_vae"
        else [np.argmax(columns["y_test"] == y) for y in (0, 1)]
    )
    columns |= {k: columns[k][first] for k in ("x_test", "y_test")}
    np.savez(tmp_path / "few.npz", **columns)
    train(tmp_path / "few.npz", tmp_path / "run", name, epochs=1, hidden=4)
    assert (tmp_path / "run" / "reconstructions.png").exists()
    assert not (tmp_path / "run" / "interpolations.png").exists()
    capsys.readouterr()
    argv = ["interpolate", "--run-dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        commands.main(name, MODULES[name].Knobs, MODULES[name].build, argv)
    assert "error: there are no two test images" in capsys.readouterr().err


@pytest.fixture
def evaluated(finished, tmp_path):
    """A copy of the finished run, but for its result."""
    shutil.copytree(finished, run_dir := tmp_path / "evaluated")
    (run_dir / "result.json").unlink()
    return run_dir


def test_a_picture_that_cannot_be_drawn_costs_no_number(small, evaluated, monkeypatch):
    def fails(records):
        raise ValueError("too many pixels")

    monkeypatch.setattr(figures.plots, "training_curves", fails)
    with pytest.warns(UserWarning, match="lacks pictures: too many pixels"):
        assert np.isfinite(train(small, evaluated)["nll"])


def test_links_in_a_run_folder_are_replaced_and_not_followed(
    small, finished, evaluated, tmp_path
):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    written = (
        "samples.png",
        "traversals.gif",
        "test-20.npz",
        "samples-last-6-seed0.png",
    )
    for name in (*written, "test-20.tmp", "samples.tmp"):
        (evaluated / name).unlink(missing_ok=True)
        (evaluated / name).symlink_to(outside)
    train(small, evaluated)
    argv = ["sample", "--run-dir", str(evaluated), "--num", "6"]
    commands.main("mnist_vae", mnist_vae.Knobs, mnist_vae.build, argv)
    assert outside.read_text() == "mine"
    for name in written:
        assert not (evaluated / name).is_symlink() and (evaluated / name).stat().st_size
    png = (evaluated / "samples.png").read_bytes()
    assert png == (finished / "samples.png").read_bytes()


def test_a_result_of_another_version_is_one_clear_message(small, evaluated, capsys):
    (evaluated / "result.json").write_text('{"nll": 1.0}')
    with pytest.raises(SystemExit) as caught:
        train(small, evaluated)
    assert caught.value.code == 1
    assert "another version ('nll_stderr'): delete" in capsys.readouterr().err


def test_where_the_best_checkpoint_is_lost_the_way_on_is_said(small, tmp_path, capsys):
    knobs = {"epochs": 2, "patience": 2}
    whole = train(small, tmp_path, **knobs)
    (tmp_path / "result.json").unlink()
    shutil.rmtree(tmp_path / "checkpoints" / "best")
    with pytest.raises(SystemExit) as caught:
        train(small, tmp_path, **knobs)
    assert caught.value.code == 1
    assert "is lost: delete" in (message := capsys.readouterr().err)
    shutil.rmtree(message.split("delete ")[1].split(" to train again")[0])
    assert train(small, tmp_path, **knobs)["nll"] == whole["nll"]


def test_a_finished_run_is_not_trained_again(small, finished, capsys):
    before = (finished / "metrics.jsonl").read_text()
    train(small, finished)
    assert "finished already" in capsys.readouterr().err
    assert (finished / "metrics.jsonl").read_text() == before


def test_other_knobs_in_the_same_folder_are_an_error_that_shows_them(
    small, finished, capsys
):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    with pytest.raises(SystemExit) as caught:
        train(small, finished, beta=2.0, seed=5)
    assert caught.value.code == 1
    message = capsys.readouterr().err
    assert "beta: 1.0 there, 2.0 now" in message
    assert "seed: 0 there, 5 now" in message
    assert {p: p.stat().st_mtime_ns for p in before} == before


OPTIONS = {
    "evaluate": ["--num-samples", "30"],
    "sample": ["--num", "6"],
    "interpolate": ["--rows", "2", "--path", "linear"],
}


@pytest.mark.parametrize("command", OPTIONS)
def test_commands_on_a_finished_run(finished, command, capsys):
    argv = [command, "--run-dir", str(finished), *OPTIONS[command]]
    for which in ("last", "best"):
        heavy = pytest.warns(UserWarning, match="Pareto k-hat above 0.7")
        with heavy if command == "evaluate" else contextlib.nullcontext():
            commands.main(
                "mnist_vae",
                mnist_vae.Knobs,
                mnist_vae.build,
                [*argv, "--checkpoint", which],
            )
        written = Path(capsys.readouterr().out.split("\n")[-2])
        assert written.parent == finished and written.stat().st_size > 0
        if command == "evaluate":
            again = json.loads(written.read_text())
            first = json.loads((finished / "result.json").read_text())
            assert abs(again["nll"] - first["nll"]) < 0.5
            assert again["num_samples"] == 30
    assert not list(finished.glob("*.partial*"))


@pytest.mark.parametrize("name", ["small", "labelled"])
def test_an_evaluation_that_is_stopped_goes_on(
    name, finished, conditional, tmp_path, monkeypatch
):
    """Also where it classifies by Bayes' rule as well."""
    module, run_dir = {
        "small": (mnist_vae, finished),
        "labelled": (mnist_fsvae, conditional[0]),
    }[name]
    experiment_name = module.__name__.split(".")[-1]
    built, state = final_state(run_dir, experiment_name)
    how = {"num_samples": 10}
    whole = experiment.evaluate(built, state.params, **how)
    file, original = tmp_path / "test-10.npz", experiment.active_units

    def dies(*a):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "active_units", dies)
    with pytest.raises(KeyboardInterrupt):
        experiment.evaluate(built, state.params, **how, file=file)
    monkeypatch.setattr(experiment, "active_units", original)
    with np.load(file) as stored:
        assert -np.mean(stored["log_px"]) == pytest.approx(whole["nll"], rel=1e-6)
        kept = dict(stored)
    # What is there is not computed again: it may be wrong, and is taken.
    kept["log_px"] -= 1
    np.savez(file, **kept)
    again = experiment.evaluate(built, state.params, **how, file=file)
    assert again["nll"] == pytest.approx(whole["nll"] + 1, rel=1e-6)
    if name == "labelled":
        assert again["bayes_accuracy"] == whole["bayes_accuracy"]
        assert (tmp_path / "test-10-classes.npz").exists()


@pytest.fixture(scope="module")
def conditional(labelled, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "conditional"
    knobs = {"epochs": 30, "hidden": 8, "learning_rate": 0.02}
    return run_dir, train(labelled, run_dir, "mnist_fsvae", **knobs)


def test_a_conditional_model_is_measured_given_the_label(conditional):
    """16 pixels of 0.325 nats each at best; without the label log 2 more, or near."""
    run_dir, result = conditional
    given = -16 * (0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    assert abs(result["nll"] - given) < 4 * result["nll_stderr"] + 0.3
    # Half the pixels wrong is a tie: Bayes' rule errs on some 2 in 10,000.
    assert result["bayes_accuracy"] == 1.0 and result["bayes_samples_per_class"] == 10
    built, state = final_state(run_dir, "mnist_fsvae")
    params = training.averaged_params(state)
    measure = make_evaluator(built.model, num_samples=50)
    contexts = built.contexts(1 - built.data.test_label)
    wrong = -np.mean(measure(params, built.data.test, contexts).log_px)
    assert wrong > result["nll"] + 10


def test_draws_and_paths_of_a_conditional_model_go_class_by_class(conditional):
    run_dir, _ = conditional
    built, state = final_state(run_dir, "mnist_fsvae")
    for name in ("samples", "reconstructions", "interpolations", "analogies"):
        assert (run_dir / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    shown = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            figures.plots,
            "image_grid",
            lambda images, *, columns: shown.append((np.asarray(images), columns)),
        )
        figures.sample_figure(built, state.params, num=8)
        figures.analogy_figure(built, state.params, rows=3)
        figures.interpolation_figure(built, state.params, rows=4, points=5)
    left = lambda images: images[..., :2, 0].mean((-1, -2)) > 0.5
    (drawn, columns), (analogies, wide), (paths, points) = shown
    assert columns == 2
    np.testing.assert_array_equal(left(drawn), [True, False] * 4)
    assert wide == 3  # the image itself, and it as each of the two classes
    np.testing.assert_array_equal(left(analogies.reshape(3, 3, 4, 4, 1)[:, 1]), True)
    np.testing.assert_array_equal(left(analogies.reshape(3, 3, 4, 4, 1)[:, 2]), False)
    by_path = left(paths).reshape(4, points)
    np.testing.assert_array_equal(by_path, by_path[:, :1].repeat(points, 1))


def test_diagnoses_of_a_conditional_model_are_given_the_label(conditional):
    run_dir, _ = conditional
    argv = ["gaps", "--run-dir", str(run_dir), "--num-images", "3"]
    commands.main(
        "mnist_fsvae",
        mnist_fsvae.Knobs,
        mnist_fsvae.build,
        [*argv, "--num-samples", "50"],
    )
    found = json.loads((run_dir / "gaps-last-3-samples50.json").read_text())
    built, state = final_state(run_dir, "mnist_fsvae")
    contexts = built.contexts(built.data.test_label[:3])
    measure = make_evaluator(built.model, num_samples=500, batch_size=3)
    log_px = measure(state.params, built.data.test[:3], contexts).log_px.mean()
    assert found["log_px"] == pytest.approx(log_px, abs=0.5)


@pytest.mark.parametrize(
    "command, measure, name",
    [
        ("anneal", "annealed", "annealed-last-7-steps1000-chains16"),
        ("gaps", "gaps", "gaps-last-7-samples5000"),
    ],
)
def test_a_diagnosis_is_printed_and_stored(
    finished, command, measure, name, monkeypatch
):
    """What is measured is for test_diagnosis; here, that the command asks for it."""
    asked = lambda experiment, params, **how: {"latents": len(params), **how}
    monkeypatch.setattr(commands.diagnosis, measure, asked)
    argv = [command, "--run-dir", str(finished), "--num-images", "7"]
    commands.main("mnist_vae", mnist_vae.Knobs, mnist_vae.build, argv)
    stored = json.loads((finished / f"{name}.json").read_text())
    assert stored["num_images"] == 7


def test_iwae_beta_schedules_and_other_choices_train(small, tmp_path):
    iwae = train(small, tmp_path / "a", "mnist_iwae", k=3, clip_norm=1.0, ema=0.9)
    assert iwae["bound"] == "iwae" and iwae["estimator"] == "dreg"
    built, state = final_state(tmp_path / "a", "mnist_iwae")
    measure = make_evaluator(built.model, num_samples=20)
    nll = lambda params: -np.mean(measure(params, built.data.test).log_px)
    assert nll(training.averaged_params(state)) == pytest.approx(iwae["nll"], rel=1e-6)
    assert nll(state.params) != pytest.approx(iwae["nll"], rel=1e-6)
    vae = train(
        small,
        tmp_path / "b",
        anneal="cyclical",
        anneal_epochs=4,
        beta=0.5,
        prior="mixture",
        binarize="none",
    )
    assert vae["likelihood"] == "normal" and np.isfinite(vae["nll"])
    betas = [r["beta"] for r in runs.read_metrics(tmp_path / "b")]
    assert max(betas) <= 0.5 and min(betas) < 0.45
    analytic = mnist_vae.Knobs(kl="analytic", estimator="reparam", dataset=str(small))
    experiment.initial_state(
        mnist_vae.build(dataclasses.replace(analytic, batch_size=20))
    )


@pytest.mark.parametrize(
    "knobs, message",
    [
        ({"k": 0}, "at least 1"),
        ({"batch_size": 271}, "[1, 270]"),
        ({"batch_size": 0}, "[1, 270]"),
        ({"dataset": "mnits"}, "no set is called 'mnits'"),
        ({"dataset": "missing.npz"}, "missing.npz"),
        ({"bound": "iwae", "k": 2}, "use `dreg`"),
        ({"bound": "renyi", "alpha": 1.0}, "alpha = 1"),
        ({"kl": "analytic"}, "sampled_terms"),
        ({"anneal": "linear", "anneal_epochs": 5}, "never reach its end"),
        ({"beta": -1.0}, "beta"),
        ({"epochs": 0}, "num_steps"),
        ({"epochs": 1e300}, "num_steps must be below 2^31"),
        ({"seed": 10**20}, "--seed 100000000000000000000: it must be below 2^63"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"latents": 0}, "at least 1"),
        ({"scan_steps": 0}, "scan_steps"),
        ({"eval_samples": 0}, "num_eval_samples"),
        ({"checkpoint_epochs": 0}, "checkpoint"),
        ({"patience": -1}, "patience >= 1"),
        ({"learning_rate": 1e30}, "in a row were not finite"),
    ],
)
def test_bad_knobs_are_one_clear_message(small, tmp_path, capsys, knobs, message):
    with pytest.raises(SystemExit) as caught:
        train(small, tmp_path / "run", **knobs)
    assert caught.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ") and message in line]
    if "learning_rate" not in knobs or not knobs["learning_rate"]:
        assert not (tmp_path / "run").exists(), "nothing is written for a bad knob"


def test_a_set_without_labels_is_one_clear_message(small, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        train(small, tmp_path / "run", "mnist_fsvae")
    assert caught.value.code == 1
    assert "has no labels" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_seed_that_no_key_has_is_one_clear_message(finished, capsys):
    argv = ["sample", "--run-dir", str(finished), "--seed", str(10**20)]
    with pytest.raises(SystemExit) as caught:
        commands.main("mnist_vae", mnist_vae.Knobs, mnist_vae.build, argv)
    assert caught.value.code == 1
    message = "error: --seed 100000000000000000000: it must be below 2^63\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    "module, knobs",
    [
        (recommender_vae, {"dataset": "synthetic/60/200/2000"}),
        (mnist_ssvae, {}),
        (ppca, {}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_negative_seed_is_one_clear_message(module, knobs, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        module.main(module.Knobs(**knobs, seed=-1), run_dir=tmp_path / "run")
    assert caught.value.code == 1
    assert "seed" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--estimator", "wrong"], "reparam"),
        (["--no-such-knob", "1"], "--no-such-knob"),
        (["--k", "many"], "INT"),
    ],
)
def test_unknown_knobs_name_what_there_is(argv, message, capsys):
    with pytest.raises(SystemExit) as caught:
        commands.main("mnist_vae", mnist_vae.Knobs, mnist_vae.build, argv)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert message in re.sub(r"\s+", " ", captured.err + captured.out)


def test_help_explains_every_knob(capsys):
    with pytest.raises(SystemExit) as caught:
        commands.main("mnist_vae", mnist_vae.Knobs, mnist_vae.build, ["--help"])
    assert caught.value.code == 0
    captured = capsys.readouterr().out
    text = re.sub(r"\s+", " ", captured.replace("│", " "))
    for name in mnist_vae.Knobs.__dataclass_fields__:
        described = re.search(rf"--{name.replace('_', '-')} \S+ (\S.{{10}})", text)
        assert described, name
    command = r"\n +python -m experiments\.mnist_vae"
    assert len(re.findall(command, captured)) == 3  # each in a line of its own


def test_a_run_can_be_opened_in_python(finished):
    of = "mnist_vae", mnist_vae.Knobs, mnist_vae.build
    opened, params = commands.opened(str(finished), *of)
    result = runs.read_json(finished / "result.json")
    measure = make_evaluator(opened.model, num_samples=result["num_samples"])
    log_px = measure(params, opened.data.test).log_px
    np.testing.assert_allclose(-log_px.mean(), result["nll"], rtol=1e-5)
    with pytest.raises(FileNotFoundError, match="is no run folder"):
        commands.opened(finished / "no", *of)


def test_a_folder_whose_knobs_are_damaged_is_not_trained_in(small, tmp_path, capsys):
    (tmp_path / "knobs.json").write_text('{"experiment": "mnist_vae", "knobs": []}')
    with pytest.raises(SystemExit) as caught:
        train(small, tmp_path)
    assert caught.value.code == 1
    assert "is damaged" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_clear_message(small, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SystemExit) as caught:
        train(small, tmp_path / "file" / "run")
    assert caught.value.code == 1
    assert "pass another one with --run-dir" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"experiment": "other", "knobs": {}}', '{"experiment": "mnist_vae"}']
    + ['{"experiment": "mnist_vae", "knobs": {"k": "1"}}', "k=many", "bound=__doc__"],
)
def test_a_damaged_knobs_file_is_one_clear_message(tmp_path, capsys, content):
    if "=" in content:
        name, value = content.split("=")
        knobs = {**dataclasses.asdict(mnist_vae.Knobs()), name: value}
        content = json.dumps({"experiment": "mnist_vae", "knobs": knobs})
    (tmp_path / "knobs.json").write_text(content)
    with pytest.raises(SystemExit) as caught:
        argv = ["sample", "--run-dir", str(tmp_path)]
        commands.main("mnist_vae", mnist_vae.Knobs, mnist_vae.build, argv)
    assert caught.value.code == 1
    assert "error: " in capsys.readouterr().err


def test_going_on_with_other_versions_is_a_warning(tmp_path):
    runs.record_start(tmp_path, mnist_vae.Knobs())
    runs.record_start(tmp_path, mnist_vae.Knobs())
    starts = runs.read_json(tmp_path / "run.json")["starts"]
    assert len(starts) == 2
    starts[-1]["versions"]["jax"] = "0.4.1"
    runs.write_json(tmp_path / "run.json", {"starts": starts})
    with pytest.warns(UserWarning, match="0.4.1"):
        runs.record_start(tmp_path, mnist_vae.Knobs())


def test_going_on_in_another_precision_is_a_warning(tmp_path):
    runs.record_start(tmp_path, mnist_vae.Knobs())
    with jax.default_matmul_precision("BF16_BF16_F32"):
        with pytest.warns(UserWarning, match="matmul_precision None .* BF16_BF16_F32"):
            runs.record_start(tmp_path, mnist_vae.Knobs())
        runs.record_start(tmp_path, mnist_vae.Knobs())  # as it was: no warning


def test_a_second_process_in_the_folder_is_an_error(tmp_path):
    with runs.exclusive(tmp_path):
        with pytest.raises(OSError, match="another process"), runs.exclusive(tmp_path):
            pass


def test_the_folder_is_claimed_only_by_who_holds_it(tmp_path):
    with runs.exclusive(tmp_path), pytest.raises(OSError, match="another process"):
        runs.once(tmp_path, "mnist_vae", mnist_vae.Knobs(), dict)
    assert not (tmp_path / "knobs.json").exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "result.json", "checkpoints/last/9"])
def test_files_of_no_known_run_are_left_alone(tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("of another program")
    with pytest.raises(ValueError, match="no knobs.json, but other files"):
        runs.once(tmp_path, "mnist_vae", mnist_vae.Knobs(), dict)
    assert file.read_text() == "of another program"


def test_a_run_goes_on_with_its_own_data_only(tmp_path, monkeypatch):
    """The file is written anew; another of its name is there, seen from elsewhere."""
    knobs = mnist_vae.Knobs(dataset="data.npz")
    run_dir = tmp_path / "run"

    def claim():
        with runs.claim(run_dir, "mnist_vae", knobs):
            pass

    doors = (claim, lambda: runs.read_knobs(run_dir, "mnist_vae", mnist_vae.Knobs))
    for folder in (tmp_path, tmp_path / "elsewhere"):
        folder.mkdir(exist_ok=True)
        (folder / "data.npz").write_text(folder.name)
    monkeypatch.chdir(tmp_path)
    claim()
    (run_dir / "metrics.jsonl").write_text("")

    def refused():
        for door in doors:
            with pytest.raises(ValueError, match="data.npz is not the data set that"):
                door()

    (tmp_path / "data.npz").write_text("other data")
    refused()
    (tmp_path / "data.npz").write_text(tmp_path.name)
    for door in doors:
        door()
    monkeypatch.chdir(tmp_path / "elsewhere")
    refused()
    # A folder from before digests were kept.
    stored = runs.read_json(run_dir / "knobs.json")
    del stored["files"]
    runs.write_json(run_dir / "knobs.json", stored)
    for door in doors:
        door()


def test_a_run_is_of_the_defaults_of_younger_knobs(tmp_path):
    """A folder from before `backward_k`: it goes on with 0, and with nothing else."""
    knobs = mnist_iwae.Knobs(k=3, epochs=7.0)
    with runs.claim(tmp_path, "mnist_iwae", knobs):
        (tmp_path / "metrics.jsonl").write_text("")
    stored = runs.read_json(tmp_path / "knobs.json")
    assert stored["knobs"].pop("backward_k") == 0
    runs.write_json(tmp_path / "knobs.json", stored)
    read = lambda: runs.read_knobs(tmp_path, "mnist_iwae", mnist_iwae.Knobs)
    assert read() == knobs
    with runs.claim(tmp_path, "mnist_iwae", knobs):
        pass
    few = dataclasses.replace(knobs, backward_k=2)
    with (
        pytest.raises(ValueError, match="backward_k: 0 there, 2 now"),
        runs.claim(tmp_path, "mnist_iwae", few),
    ):
        pass
    stored["knobs"]["retired"] = 1
    runs.write_json(tmp_path / "knobs.json", stored)
    with pytest.raises(ValueError, match=r"which differ in \['retired'\]"):
        read()


def test_a_file_called_as_a_public_set_is_not_the_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("one", "other"):
        (tmp_path / "mnist").write_text(text)
        with runs.claim(tmp_path / "run", "mnist_vae", mnist_vae.Knobs()):
            runs.write_json(tmp_path / "run" / "metrics.jsonl", {})
    assert runs.read_json(tmp_path / "run" / "knobs.json")["files"] == {}


def test_a_users_log_may_be_in_the_folder_before(tmp_path):
    (tmp_path / "train.log").write_text("")
    result = runs.once(tmp_path, "mnist_vae", mnist_vae.Knobs(), lambda: {"nll": 1.0})
    assert result == {"nll": 1.0}


def test_an_error_before_anything_is_written_leaves_the_folder_new(tmp_path):
    def once(work, **knobs):
        return runs.once(tmp_path, "mnist_vae", mnist_vae.Knobs(**knobs), work)

    def failing(write):
        runs.write_json(tmp_path / "training.json", {"seed": 0})
        (tmp_path / "metrics.jsonl").write_text("{}") if write else None
        raise ValueError("no such data")

    with pytest.raises(ValueError, match="no such data"):
        once(lambda: failing(write=False), beta=2.0)
    with pytest.raises(ValueError, match="no such data"):
        once(lambda: failing(write=True), beta=3.0)
    with pytest.raises(ValueError, match="beta: 3.0 there, 4.0 now"):
        once(dict, beta=4.0)


def test_a_metrics_line_cut_short_is_left_out_and_later_steps_taken_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": s, "seconds": s / 10}) for s in (5, 10, 15)]
    path.write_text("\n".join(lines)[:-4])
    assert [r["step"] for r in runs.read_metrics(tmp_path)] == [5, 10]
    with runs.metrics_log(tmp_path, 5) as log:
        log({"step": 8, "seconds": 1.0})
    assert [r["step"] for r in runs.read_metrics(tmp_path)] == [5, 8]


@pytest.mark.parametrize(
    "line",
    ['{"step": 3}', '{"step": 3, "seconds": "x"}']
    + ['{"step": 3, "seconds": 0.1, "skipped": null}'],
)
def test_a_metrics_line_without_its_numbers_is_left_out(tmp_path, line):
    sound = {"step": 5, "seconds": 0.2, "skipped": 0}
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n{json.dumps(sound)}\n")
    assert runs.read_metrics(tmp_path) == [sound]


def test_a_loss_and_a_folder_of_ones_own_train(tmp_path):
    """No metric, a folder by its name, and a run that goes on."""
    x = np.arange(12, dtype=np.float32)
    optimizer = optax.sgd(0.5)
    plan = resumable.Training(
        lambda params, key, batch: (jnp.mean((batch["x"] - params) ** 2), {}),
        optimizer,
        shuffled({"x": x}, batch_size=12, seed=0),
        seed=0,
        num_steps=9,
        scan_steps=3,
        checkpoint_steps=3,
        validate=lambda params: {"valid_bound": -params},  # of JAX, as a program gives
    )
    start = training.init_state(jnp.zeros(()), optimizer)
    resumable.check(plan, start.params)
    for num_steps in (6, 9):
        shorter = plan._replace(num_steps=num_steps)
        params, about = resumable.train(shorter, start, str(tmp_path))
        assert about["steps"] == num_steps
    assert params == pytest.approx(x.mean())
    # Neither another seed's run, nor a longer one, is passed off as what is asked for.
    for other, message in (
        (plan._replace(seed=1), "a training with seed 0, not 1"),
        (plan._replace(num_steps=6), "9 steps already, more than the 6"),
    ):
        with pytest.raises(ValueError, match=message):
            resumable.train(other, start, tmp_path)
    unnamed = plan._replace(validate=lambda params: {"score": 0.0})
    with pytest.raises(ValueError, match="must give the score 'valid_bound'"):
        resumable.train(unnamed, start, tmp_path / "unnamed")
    with pytest.raises(ValueError, match="validate must be a function"):
        resumable.check(plan._replace(validate=None), start.params)


def test_kill_9_and_resume_is_bit_for_bit_the_run_that_never_stopped(
    small, tmp_path, capsys
):
    knobs = {"epochs": 40, "scan_steps": 10, "checkpoint_epochs": 4}
    whole = tmp_path / "whole"
    train(small, whole, **knobs)
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "experiments.mnist_vae"]
    command += arguments(small, killed, **knobs)
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    # A folder with a number for a name is a whole checkpoint.
    while not any(p.name.isdigit() for p in killed.glob("checkpoints/last/*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "result.json").exists()
    train(small, killed, **knobs)
    resumed = re.search(r"resuming .* from step (\d+)", capsys.readouterr().err)
    assert resumed and int(resumed[1]) > 0
    states = final_state(killed)[1], final_state(whole)[1]
    assert int(states[0].step) == 540
    jax.tree.map(np.testing.assert_array_equal, *states)
    strip = lambda records: [
        {k: v for k, v in r.items() if k != "seconds"} for r in records
    ]
    assert strip(runs.read_metrics(killed)) == strip(runs.read_metrics(whole))
    results = [json.loads((d / "result.json").read_text()) for d in (whole, killed)]
    assert results[0]["nll"] == results[1]["nll"]
