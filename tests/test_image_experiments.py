"""The experiments on sprites, on convolutions and over beta, made very small."""

import dataclasses
import json
import math
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import (
    cifar_conv,
    gmm,
    mnist_conv,
    rate_distortion,
    sprites_beta,
    sprites_table,
)
from vi_jax import experiment
from vi_jax.experiment import initial_state


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """An .npz of 6x5 coloured images: one value everywhere, and noise."""
    rng = np.random.default_rng(0)
    make = lambda n: (
        rng.integers(40, 200, (n, 1, 1, 3)) + rng.integers(0, 20, (n, 6, 5, 3))
    )
    path = tmp_path_factory.mktemp("data") / "coloured.npz"
    np.savez(path, x_train=make(100).astype(np.uint8), x_test=make(9).astype(np.uint8))
    return path


SMALL = sprites_beta.Knobs(
    network="mlp",
    size=12,
    hidden=8,
    latents=3,
    steps=20,
    batch_size=8,
    eval_samples=5,
    scan_steps=10,
    checkpoint_steps=10,
    num_votes=50,
)


@pytest.fixture(scope="module")
def sprites_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "sprites"
    built = sprites_beta.build(SMALL)
    return folder, experiment.run(built, folder, name="sprites_beta", knobs=SMALL)


def test_a_run_on_sprites_has_scores_and_pictures_of_its_latents(sprites_run):
    folder, result = sprites_run
    for name in ("factor_vae_score", "mig", "sap", "modularity"):
        assert 0 <= result[name] <= 1
    information = np.array(result["information"])
    assert information.shape == (3, 5)
    values = [3, 6, 40, 32, 32]
    assert (information <= np.log(values) + 1e-6).all() and (information >= 0).all()
    for name in ("traversals", "kl_per_latent", "samples"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with Image.open(folder / "traversals.gif") as gif:
        assert gif.n_frames == 22  # 12 points, there and back


@pytest.mark.parametrize(
    ("objective", "metric"),
    [
        ("vae", "beta"),
        ("capacity", "rate"),
        ("beta_tcvae", "total_correlation"),
        ("factor_vae", "total_correlation"),
        ("dip_vae_i", "covariance_penalty"),
        ("dip_vae_ii", "covariance_penalty"),
        ("info_vae", "mmd_squared"),
    ],
)
def test_every_objective_has_a_loss_on_sprites(objective, metric):
    """Traced, not compiled: what each is worth is tested beside its function."""
    built = sprites_beta.build(dataclasses.replace(SMALL, objective=objective))
    params = initial_state(built).params
    stream = built.data.train
    batch = lambda: stream.gather(stream.resident, stream.at(0))
    loss = lambda params, key: built.loss(params, key, batch())
    value, metrics = jax.eval_shape(loss, params, jax.random.key(0))
    assert value.shape == () and metric in metrics


def test_the_beta_of_a_run_follows_its_path():
    path = (4.0, 16.0, 4.0)
    knobs = dataclasses.replace(SMALL, beta_path=path, network="broadcast")
    built = sprites_beta.build(knobs)
    params, stream = initial_state(built).params, built.data.train

    @jax.jit
    def beta(step):
        batch = stream.gather(stream.resident, stream.at(0)) | {"step": step}
        return built.loss(params, jax.random.key(0), batch)[1]["beta"]

    assert [float(beta(t)) for t in (0, 5, 10, 20)] == [4.0, 10.0, 16.0, 4.0]
    with pytest.raises(ValueError, match="must end at 4"):
        sprites_beta.build(dataclasses.replace(knobs, beta_path=(4.0, 2.0)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_votes": 1}, "num_votes is 1"),
        ({"latents": 1}, "two latents at least"),
        ({"strength": -1.0}, "must be >= 0"),
        ({"objective": "dip_vae_i", "strength": math.nan}, "must be >= 0"),
        ({"beta_path": (-5.0, 4.0)}, r"must be >= 0, got \(4.0, -5.0, 4.0\)"),
    ],
)
def test_wrong_knobs_on_sprites_are_errors_before_training(wrong, message):
    with pytest.raises(ValueError, match=message):
        sprites_beta.build(dataclasses.replace(SMALL, **wrong))


def test_every_objective_has_a_recipe():
    assert set(sprites_table.RECIPES) == set(get_args(sprites_beta.Objective))


def test_the_table_has_means_and_errors_over_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(sprites_table, "STORED", tmp_path / "stored.json")
    rows = [
        {"objective": "vae", "seed": s, "factor_vae_score": f, "mig": 0.1}
        | {"elbo": -100.0, "rate": 9.0}
        for s, f in [(0, 0.5), (1, 0.7)]
    ]
    for row in rows:
        (tmp_path / str(row["seed"])).mkdir()
        path = tmp_path / str(row["seed"]) / "result.json"
        path.write_text(json.dumps(row))
    # The stored runs of an objective that is there anew are left out.
    (tmp_path / "stored.json").write_text(json.dumps([rows[0] | {"mig": 9}]))
    line = sprites_table.table(sprites_table.collect(tmp_path)).splitlines()[-1]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[:4] == ["vae", "0.600 +- 0.100", "", "0.100 +- 0.000"]
    assert cells[-1] == "2"


@pytest.mark.parametrize("likelihood", cifar_conv.LIKELIHOODS)
def test_every_likelihood_fits_the_networks(coloured, likelihood):
    knobs = cifar_conv.Knobs(likelihood, latents=2, channels=2, dataset=str(coloured))
    built = cifar_conv.build(knobs)
    assert built.discrete == (likelihood not in ("normal", "continuous_bernoulli"))
    x = jnp.zeros(6 * 5 * 3)
    jax.eval_shape(built.model.init, jax.random.key(0), x)


def test_images_of_256_values_are_measured_in_bits(coloured):
    knobs = cifar_conv.Knobs(
        "logistic", latents=2, channels=2, num_blocks=0, dataset=str(coloured)
    )
    built = cifar_conv.build(knobs)
    params = initial_state(built).params
    result = experiment.evaluate(built, params, num_samples=4)
    bits = result["nll"] / (6 * 5 * 3) / math.log(2)
    assert result["bits_per_dim"] == pytest.approx(bits, rel=1e-6)
    # Untrained, a scale of a tenth of the range around 0 for pixels at 40 to 220.
    assert 8 < bits < 20


def test_the_convolutional_vae_of_mnist_builds(coloured):
    knobs = mnist_conv.Knobs(
        encoder_channels=(2,),
        decoder_channels=(2,),
        batch_size=30,
        dataset=str(coloured),
    )
    model = mnist_conv.build(knobs).model
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(6 * 5 * 3))


def test_rate_and_distortion_over_beta(coloured, tmp_path, capsys):
    arguments = (
        f"--betas 1 5 100 --latents 3 --hidden 8 --epochs 60 --batch-size 30 "
        f"--learning-rate 1e-2 --binarize threshold --dataset {coloured} "
        f"--run-dir {tmp_path / 'run'} --scan-steps 50"
    ).split()
    rate_distortion.main(arguments)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    rate, distortion = np.array(result["rate"]), np.array(result["distortion"])
    np.testing.assert_allclose(result["elbo"], -(rate + distortion))
    # More weight on the rate: less of it, and more distortion; at 100 none at all.
    assert (np.diff(rate) < 0).all() and (np.diff(distortion) > 0).all()
    assert rate[2] < 0.1
    for name in ("rate_distortion.png", "reconstructions.png"):
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("--betas -1", "betas must be one number >= 0"),
        ("--betas 0 nan", "betas must be one number >= 0"),
        ("--eval-samples 0", "eval_samples must be at least 1"),
        ("--learning-rate 0", "learning_rate"),
    ],
)
def test_wrong_knobs_over_beta_are_errors_before_training(
    coloured, tmp_path, monkeypatch, capsys, wrong, message
):
    monkeypatch.setattr(rate_distortion.resumable, "train", None)
    where = f"--dataset {coloured} --batch-size 30 --run-dir {tmp_path / 'run'}"
    with pytest.raises(SystemExit):
        rate_distortion.main([*where.split(), *wrong.split()])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, r"batch_size is 0: it must lie in \[1, 100\]"),
        ({"batch_size": 101}, r"batch_size is 101"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"restarts": 0}, "restarts must be at least 1"),
        ({"step_size": 1.5}, r"step_size must be in \(0, 1\]"),
        ({"tolerance": math.nan}, "tolerance must be a number"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"seed": -1}, "seed is -1"),
        ({"components": 0}, "at least 1"),
    ],
)
def test_wrong_knobs_of_mixtures_are_errors_before_any_fit(
    coloured, tmp_path, monkeypatch, wrong, message
):
    monkeypatch.setattr(gmm, "compare", None)
    how = {"dimensions": 2, "batch_size": 10, "dataset": str(coloured), **wrong}
    with pytest.raises(ValueError, match=message):
        gmm.run(gmm.Knobs(**how), tmp_path / "run")
