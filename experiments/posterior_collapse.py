"""A posterior that collapses behind a deep decoder, three cures, and a fourth by luck.

    python -m experiments.posterior_collapse
    python -m experiments.posterior_collapse --epochs 20 --run-dir runs/collapse20

The decoder has 14 hidden layers of ReLU, each of which halves the signal's power when
it starts: what z could say is too faint at first to be worth the rate, q(z | x) falls
back to p(z) within an epoch, and the decoder, which then hears noise, learns the mean
image. From there it does not come back.

The cures: beta rising from 0 over half of the training, in a line or in four cycles;
and free bits. Aggressive updates, ten steps of the encoder for one of the decoder over
the first quarter, cure an encoder that lags behind p(z | x) (He et al. 2019). This one
hardly lags: behind a silent decoder p(z | x) is nearly p(z), and q gets there sooner.

Expect on 1,000 test images (dynamic MNIST, 5 epochs, 500 samples, seed 0), in nats:

                         ELBO  log p(x)    rate  I(x; z)  active units
    beta = 1          -208.52   -208.52    0.00     0.00             0
    linear annealing  -138.38   -135.40    7.83     6.36             9
    cyclical          -150.04   -147.37    5.84     5.27             3
    free bits         -141.68   -136.99   10.00     6.27            20
    aggressive        -154.13   -151.73    5.60     5.05             3

The standard error of log p(x) is 1.5; I(x; z) of 1,000 images is at most log 1,000 =
6.9. Of the 20 latents under free bits, 17 pay about what is free. How a collapsed model
comes back is chaotic: on one core instead of two, rounding alone made of the aggressive
encoder's -151.73 nats -208.53, and with seed 1 -168.78; the others differed by 1.7 nats
at most.
"""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure

from vi_jax import (
    likelihoods,
    models,
    networks,
    objectives,
    posteriors,
    priors,
    runs,
    schedules,
    training,
)
from vi_jax.aggressive import aggressive_encoder
from vi_jax.commands import clear_errors
from vi_jax.data import batches
from vi_jax.data.images import ImageData, image_data
from vi_jax.evaluation import collapse_report, split_rate
from vi_jax.evaluator import make_evaluator
from vi_jax.model import Model, analytic_terms
from vi_jax.types import Array, LossFn, Params

COLLAPSED = "beta = 1"


@dataclasses.dataclass(frozen=True)
class Knobs:
    """The knobs of the run, all of them part of what the run folder stands for."""

    decoder_layers: int = 14
    """Hidden layers of the decoder; the encoder has two."""
    hidden: int = 200
    """Width of the hidden layers of both networks."""
    latents: int = 20
    """Dimension of z."""
    epochs: float = 5.0
    """Passes over the training images."""
    batch_size: int = 100
    """Images per step."""
    learning_rate: float = 1e-3
    """Adam's step size at the start; it falls to 0 along a cosine."""
    free_bits: float = 0.2
    """Nats for each latent that cost nothing."""
    encoder_steps: int = 10
    """Steps of the encoder for one of the decoder, while its updates are aggressive."""
    num_test: int = 1000
    """Test images."""
    eval_samples: int = 500
    """Importance samples per test image."""
    seed: int = 0
    """Of the initial parameters, the order of the data and every draw in training."""
    dataset: str = "mnist"
    """Name of a set of tensorflow-datasets, or path of an .npz with x_train, x_test."""
    binarize: Literal["dynamic", "static", "threshold"] = "dynamic"
    """A new draw at each access, one fixed draw, or pixel >= 128."""
    data_dir: str = ""
    """Where sets are prepared; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""


def build(knobs: Knobs, mean: Array) -> Model:
    """A VAE whose decoder is deeper than its encoder."""
    deep = networks.mlp(
        [knobs.hidden] * knobs.decoder_layers,
        mean.size,
        activation=jax.nn.relu,
        output_bias=likelihoods.bias_from_mean(mean),
    )
    encoder = networks.mlp([knobs.hidden] * 2, 2 * knobs.latents)
    prior = priors.standard_normal(knobs.latents)
    return models.vae(prior, posteriors.normal(encoder), likelihoods.bernoulli(deep))


def ways(
    knobs: Knobs, model: Model, data: ImageData, num_steps: int
) -> dict[str, tuple[LossFn, optax.GradientTransformation]]:
    """The objective and the optimizer of each training, beginning with no cure."""
    elbo = functools.partial(
        objectives.batch_loss, model, preprocess=data.preprocess, terms=analytic_terms
    )
    free = objectives.free_bits_loss(
        model, preprocess=data.preprocess, free_bits=knobs.free_bits
    )
    adam = training.adam(knobs.learning_rate, num_steps=num_steps)
    encoder_first = aggressive_encoder(
        adam, every=knobs.encoder_steps, until=num_steps // 4
    )
    rising = {"num_steps": num_steps // 2, "total_steps": num_steps}
    return {
        COLLAPSED: (elbo(), adam),
        "linear annealing": (elbo(beta=schedules.linear(**rising)), adam),
        "cyclical annealing": (elbo(beta=schedules.cyclical(**rising)), adam),
        "free bits": (free, adam),
        "aggressive encoder": (elbo(), encoder_first),
    }


def fit(
    knobs: Knobs,
    model: Model,
    data: ImageData,
    num_steps: int,
    loss: LossFn,
    optimizer: optax.GradientTransformation,
) -> tuple[Params, list[dict[str, Any]]]:
    """Train; what the latents carry of the validation images, every 100 steps."""
    key, key_report = jax.random.split(jax.random.key(knobs.seed))
    x = jnp.asarray(data.valid) / 255.0

    @jax.jit
    def report(params: Params) -> dict[str, Array]:
        q = jax.vmap(lambda x: model.posterior(params, x))(x)
        return collapse_report(key_report, q, model.prior(params))

    history = []
    start = training.init_state(jax.jit(model.init)(key, x[0]), optimizer)
    for state, _ in training.fit(
        loss, optimizer, start, data.train, seed=knobs.seed, num_steps=num_steps
    ):
        now = jax.device_get(report(state.params))
        now = {name: value.tolist() for name, value in now.items()}
        history.append({"step": int(state.step), **now})
    return state.params, history


def compare(
    knobs: Knobs, model: Model, data: ImageData, num_steps: int, run_dir: Path
) -> dict[str, Any]:
    """Train and measure in every way, and draw; what result.json holds."""
    x = data.test[: knobs.num_test]
    evaluator = make_evaluator(model, num_samples=knobs.eval_samples)

    @jax.jit
    def latents(params: Params, x: Array):
        q = jax.vmap(lambda x: model.posterior(params, x))(x)
        key_report, key_split = jax.random.split(jax.random.key(123))
        prior = model.prior(params)
        split = split_rate(key_split, q, prior, num_samples=10)
        return collapse_report(key_report, q, prior), split

    rows = {}
    for name, (loss, optimizer) in ways(knobs, model, data, num_steps).items():
        start = time.perf_counter()
        params, history = fit(knobs, model, data, num_steps, loss, optimizer)
        seconds = time.perf_counter() - start
        each = evaluator(params, x)
        report, split = jax.device_get(latents(params, jnp.asarray(x) / 255.0))
        rows[name] = {
            **_with_error("log_px", each.log_px),
            **_with_error("elbo", each.elbo),
            "log_px_mc_stderr": float(np.sqrt(np.sum(each.stderr**2)) / len(x)),
            "khat_above_0.7": int(np.sum(each.khat > 0.7)),
            "rate": float(report["kl_per_latent"].sum()),
            "mutual_information": float(split.mutual_information.value),
            "mutual_information_stderr": float(split.mutual_information.stderr),
            "aggregate_kl": float(split.aggregate_kl.value),
            "active_units": int(report["active_units"]),
            "kl_per_latent": sorted(report["kl_per_latent"].tolist(), reverse=True),
            "history": history,
            "seconds": round(seconds, 1),
        }
        show_row(name, rows[name])
    runs.write_picture(run_dir / "posterior_collapse.png", picture(rows))
    return {
        "dataset": knobs.dataset,
        "binarize": knobs.binarize,
        "num_train": data.num_train,
        "split": "test",
        "num_test": len(x),
        "steps": num_steps,
        "num_samples": knobs.eval_samples,
        "seed": knobs.seed,
        "ways": rows,
    }


def _with_error(name: str, values: np.ndarray) -> dict[str, float]:
    values = np.asarray(values, np.float64)
    error = values.std(ddof=1) / np.sqrt(len(values))
    return {name: float(values.mean()), f"{name}_stderr": float(error)}


def picture(rows: dict[str, Any]) -> Figure:
    """The rate during training, and that of each latent at its end."""
    figure = Figure(figsize=(9, 3.8), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, row in rows.items():
        black = {"color": "k"} if name == COLLAPSED else {}
        style = {"label": name, "lw": 1.6} | black
        steps = [now["step"] for now in row["history"]]
        left.plot(steps, [sum(now["kl_per_latent"]) for now in row["history"]], **style)
        largest_first = row["kl_per_latent"]
        right.plot(range(1, len(largest_first) + 1), largest_first, ".-", **style)
    left.set(xlabel="step", ylabel="rate of held-out images, nats")
    right.set(xlabel="latent, the largest rate first")
    right.set_ylabel("rate of test images, nats")
    for ax in (left, right):
        ax.set_yscale("symlog", linthresh=0.01)
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.3)
    left.legend(frameon=False, fontsize=9)
    return figure


def show_row(name: str, row: dict[str, Any]) -> None:
    print(
        f"{name:20}{row['elbo']:9.2f}{row['log_px']:10.2f}{row['log_px_stderr']:6.2f}"
        f"{row['rate']:8.2f}{row['mutual_information']:8.2f}{row['aggregate_kl']:8.2f}"
        f"{row['active_units']:8}{row['seconds']:9.1f}",
        flush=True,
    )


def show(result: dict[str, Any], run_dir: Path) -> None:
    print(f"{result['num_test']} test images, {result['num_samples']} samples; nats")
    print(
        f"{'':20}{'ELBO':>9}{'log p(x)':>10}{'+-':>6}{'rate':>8}{'I(x;z)':>8}"
        f"{'q|p':>8}{'active':>8}{'seconds':>9}"
    )
    for name, row in result["ways"].items():
        show_row(name, row)
    print(run_dir)


def run(knobs: Knobs, run_dir: Path) -> dict[str, Any]:
    """Train, compare and draw into `run_dir`; a finished folder is left as it is."""
    data = image_data(
        knobs.dataset,
        binarize=knobs.binarize,
        batch_size=knobs.batch_size,
        seed=knobs.seed,
        data_dir=knobs.data_dir or None,
    )
    if not 2 <= knobs.num_test <= len(data.test) or knobs.eval_samples < 1:
        raise ValueError(
            f"needed: num_test of 2 to {len(data.test)} and eval_samples >= 1, got "
            f"{knobs.num_test} and {knobs.eval_samples}"
        )
    model = build(knobs, data.mean)
    num_steps = batches.steps_per_run(
        data.num_train, epochs=knobs.epochs, batch_size=knobs.batch_size
    )
    ways(knobs, model, data, num_steps)  # wrong knobs are an error before a folder
    work = lambda: compare(knobs, model, data, num_steps, run_dir)
    return runs.once(run_dir, "posterior_collapse", knobs, work)


def main(
    knobs: Annotated[Knobs, tyro.conf.OmitArgPrefixes],
    run_dir: Path = Path("runs/posterior_collapse"),
) -> None:
    """Train a collapsing VAE and its cures, with a table and a picture in run_dir."""
    with clear_errors():
        show(run(knobs, run_dir), run_dir)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.posterior_collapse", description=__doc__)
