"""The rate-distortion curve of a VAE over beta, all of its models trained together.

    python -m experiments.rate_distortion
    python -m experiments.rate_distortion --betas 0.5 1 2 --epochs 5 --run-dir runs/rd

A VAE of beta minimises distortion + beta rate, the slope of the curve. The models are
one program: parameters lead with a row for each beta, and a step moves them all.

Expect (seed 0, 10,000 test images, 10 samples of z), in nats:

    beta     rate  distortion     ELBO  active units
    0.1     53.67       66.24  -119.92            20
    0.5     33.45       71.38  -104.83            20
    1       23.89       79.01  -102.90            19
    2       14.88       93.00  -107.88            17
    8        4.55      136.13  -140.67             6

The ELBO is best at beta = 1: with less the rate is above what it buys, with more below.
All eight take 0.58 of the time of one after another (`benchmark_sweep`, 5 epochs).
"""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from vi_jax import (
    likelihoods,
    models,
    networks,
    objectives,
    plots,
    posteriors,
    priors,
    resumable,
    runs,
    sweep,
    training,
)
from vi_jax.checks import at_least
from vi_jax.commands import clear_errors
from vi_jax.data import batches
from vi_jax.data.images import Binarize, ImageData, image_data
from vi_jax.evaluation import active_units
from vi_jax.evaluator import over_images
from vi_jax.model import Model, analytic_terms, reconstruct
from vi_jax.objectives import per_example, summary
from vi_jax.types import Array, Key, Params


@dataclasses.dataclass(frozen=True)
class Knobs:
    """The knobs of the run, all of them part of what the run folder stands for."""

    betas: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0, 8.0)
    """Weights of the KL term, one model each."""
    latents: int = 20
    """Dimension of z."""
    hidden: int = 200
    """Width of the two hidden layers of each network."""
    epochs: float = 10.0
    """Passes over the training images."""
    batch_size: int = 100
    """Images per step."""
    learning_rate: float = 2e-3
    """Adam's step size at the start; it falls to 0 along a cosine."""
    seed: int = 0
    """Of the initial parameters, the order of the data and every draw in training."""
    dataset: str = "mnist"
    """Name of a set of tensorflow-datasets, or path of an .npz with x_train, x_test."""
    binarize: Binarize = "dynamic"
    """A new draw at each access, one fixed draw, pixel >= 128, or grey values."""
    data_dir: str = ""
    """Where sets are prepared; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    eval_samples: int = 10
    """Samples of z per test image."""
    scan_steps: int = 100
    """Steps in one compiled dispatch."""
    checkpoint_epochs: float = 5.0
    """Epochs from one checkpoint, with its validation, to the next."""


def build_model(knobs: Knobs, data: ImageData) -> Model:
    """The VAE that every beta gets."""
    mlp = lambda outputs, **options: networks.mlp(
        [knobs.hidden] * 2, outputs, **options
    )
    if knobs.binarize == "none":
        likelihood = likelihoods.normal(mlp(data.mean.size, output_bias=data.mean))
    else:
        bias = likelihoods.bias_from_mean(data.mean)
        likelihood = likelihoods.bernoulli(mlp(data.mean.size, output_bias=bias))
    encoder = posteriors.normal(mlp(2 * knobs.latents))
    return models.vae(priors.standard_normal(knobs.latents), encoder, likelihood)


def build(knobs: Knobs, data: ImageData) -> tuple[Model, resumable.Training]:
    """The model, and the training of one for each beta."""
    if not knobs.betas or not all(0 <= beta < math.inf for beta in knobs.betas):
        raise ValueError(f"betas must be one number >= 0 at least, got {knobs.betas}")
    at_least(1, eval_samples=knobs.eval_samples)
    steps = lambda epochs: batches.steps_per_run(
        data.num_train, epochs=epochs, batch_size=knobs.batch_size
    )
    model = build_model(knobs, data)

    def loss_of(beta: Array):
        return objectives.batch_loss(
            model,
            preprocess=data.preprocess,
            beta=lambda step: beta,
            terms=analytic_terms,
        )

    optimizer = training.adam(knobs.learning_rate, num_steps=steps(knobs.epochs))
    measure = measure_of_all(model, num_samples=1)

    def validate(params: Params) -> dict[str, Any]:
        found = measure(params, data.valid)
        elbos = -(found["rate"] + found["distortion"])
        return {"valid_bound": float(np.mean(elbos)), "valid_elbo": elbos.tolist()}

    return model, resumable.Training(
        sweep.loss_of_all(loss_of, jnp.asarray(knobs.betas)),
        sweep.optimizer_of_all(optimizer),
        data.train,
        seed=knobs.seed,
        num_steps=steps(knobs.epochs),
        scan_steps=knobs.scan_steps,
        checkpoint_steps=steps(knobs.checkpoint_epochs),
        validate=validate,
    )


def measure_of_all(model: Model, *, num_samples: int):
    """(params, x uint8 [n, D]) -> rate, distortion and active units of each, [m]."""

    def one(params: Params, key: Key, x: Array, c: None) -> dict[str, Array]:
        def of_model(params: Params) -> dict[str, Array]:
            how = {"num_samples": num_samples, "terms": analytic_terms}
            terms = per_example(model, params, key, x, **how)[1]
            found = {k: summary(terms)[k] for k in ("rate", "distortion")}
            return found | {"mean": model.posterior(params, x).mean()}

        return jax.vmap(of_model)(params)

    each = over_images(one, batch_size=100, progress=False)

    def measure(params: Params, x: np.ndarray) -> dict[str, np.ndarray]:
        found = each(params, x)
        active = [
            int(active_units(means).sum()) for means in found["mean"].swapaxes(0, 1)
        ]
        of = lambda name: found[name].mean(0, dtype=np.float64)
        return {
            "rate": of("rate"),
            "distortion": of("distortion"),
            "active_units": np.array(active),
        }

    return measure


def train_and_measure(knobs: Knobs, data: ImageData, run_dir: Path) -> dict[str, Any]:
    """Train all models in run_dir, measure them on the test images and draw."""
    model, plan = build(knobs, data)
    x = jnp.zeros(data.mean.shape)
    init = lambda key: model.init(key, x)
    first = sweep.init_of_all(init, resumable.init_key(knobs.seed), len(knobs.betas))
    resumable.check(plan, first)
    state = training.init_state(first, plan.optimizer)
    params, about = resumable.train(plan, state, run_dir)
    measure = measure_of_all(model, num_samples=knobs.eval_samples)
    seen = np.asarray(data.train.resident["image"])[: len(data.test)]
    if knobs.binarize == "dynamic":
        seen = batches.binarize_once(seen, mode="static")
    test, train = measure(params, data.test), measure(params, seen)
    figure = plots.rate_distortion(
        test["rate"],
        test["distortion"],
        knobs.betas,
        label="test",
        training=(train["rate"], train["distortion"]),
    )
    runs.write_picture(run_dir / "rate_distortion.png", figure)
    shown = jnp.asarray(data.test[:10]) / 255
    one = lambda params, x: reconstruct(model, params, jax.random.key(0), x)
    of_all = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(params, shown)
    names = [f"β = {beta:g}" for beta in knobs.betas]
    rows = {"x": shown} | dict(zip(names, of_all, strict=True))
    images = {k: np.asarray(v).reshape(-1, *data.shape) for k, v in rows.items()}
    runs.write_picture(run_dir / "reconstructions.png", plots.named_rows(images))
    return {
        "beta": list(knobs.betas),
        **{k: v.tolist() for k, v in test.items()},
        "elbo": (-(test["rate"] + test["distortion"])).tolist(),
        "num_samples": knobs.eval_samples,
        "split": "test",
        "num_test": len(data.test),
        "dataset": knobs.dataset,
        "binarize": knobs.binarize,
        **about,
    }


def main(argv: list[str] | None = None) -> None:
    """The command line; exits with 1 after one clear message."""
    tyro.cli(
        run,
        prog="python -m experiments.rate_distortion",
        description=__doc__,
        args=sys.argv[1:] if argv is None else argv,
    )


def run(
    knobs: Annotated[Knobs, tyro.conf.OmitArgPrefixes],
    run_dir: Path = Path("runs/rate_distortion"),
) -> None:
    with clear_errors():
        data = image_data(
            knobs.dataset,
            binarize=knobs.binarize,
            batch_size=knobs.batch_size,
            seed=knobs.seed,
            data_dir=knobs.data_dir or None,
        )
        work = lambda: train_and_measure(knobs, data, run_dir)
        result = runs.once(run_dir, "rate_distortion", knobs, work)
    print("beta     rate  distortion     ELBO  active units")
    for row in zip(
        *(result[k] for k in ("beta", "rate", "distortion", "elbo", "active_units")),
        strict=True,
    ):
        print("{:<6g}{:>7.2f}{:>12.2f}{:>9.2f}{:>14d}".format(*row))
    print(run_dir)


if __name__ == "__main__":
    main()
