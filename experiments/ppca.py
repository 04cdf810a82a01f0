"""Probabilistic PCA on MNIST four ways: closed form, EM, factor analysis, a linear VAE.

    python -m experiments.ppca
    python -m experiments.ppca --latents 20 --run-dir runs/ppca20

x = (pixel + u) / 256 with one u ~ U[0, 1) for each pixel, so that p(x) is a density on
[0, 1]^784 even where a pixel is always black (else factor analysis could make it
infinite there). All numbers are log densities in nats per image; less 784 log 256 they
bound the log-probability of the 8-bit image from below. Ref: Theis et al. 2016,
arXiv:1511.01844.

EM and amortised variational inference maximise the log p(x) whose maximum the closed
form of Tipping & Bishop 1999 knows; factor analysis is a larger model.

Expect, of the test images, log p(x) = 520.6 +- 1.4 nats in closed form, 0.001 less
by EM, 0.4 less by the linear VAE, and 1277 +- 13 by factor analysis; in a minute on 2
CPU cores.
"""

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure

from vi_jax import (
    em,
    model as models,
    networks,
    objectives,
    plots,
    posteriors,
    runs,
    training,
)
from vi_jax.commands import clear_errors
from vi_jax.data import batches, sources
from vi_jax.evaluation import variational_gap
from vi_jax.maximum_likelihood import moments, ppca
from vi_jax.model import Model
from vi_jax.models import linear_gaussian
from vi_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Knobs:
    """The knobs of the run, all of them part of what the run folder stands for."""

    latents: int = 50
    """Dimension of z."""
    em_iterations: int = 1000
    """Most iterations of EM; it stops where rounding hides its gain."""
    epochs: float = 30.0
    """Passes of variational inference over the training images."""
    batch_size: int = 200
    """Images in a step of variational inference."""
    learning_rate: float = 2e-3
    """Of Adam; it falls to 0 along a cosine."""
    seed: int = 0
    """Of the dequantisation, the initial parameters and every draw in training."""
    dataset: str = "mnist"
    """Name of a set of tensorflow-datasets, or path of an .npz with x_train, x_test."""
    data_dir: str = ""
    """Where sets are prepared; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""


class Data(NamedTuple):
    train: np.ndarray  # f32 [n, D]
    test: np.ndarray  # f32 [m, D]
    shape: tuple[int, int, int]  # (h, w, c)


class Fitted(NamedTuple):
    params: Params
    history: np.ndarray  # [t] mean log p(x) of the training images
    steps: np.ndarray  # [t] iterations or steps before each
    seconds: float  # with compiling


def load(knobs: Knobs) -> Data:
    """The images, dequantised once."""
    rng = np.random.Generator(np.random.PCG64(knobs.seed))

    def split(name: str) -> tuple[np.ndarray, tuple[int, int, int]]:
        image = sources.load(knobs.dataset, name, data_dir=knobs.data_dir or None).image
        flat = image.reshape(len(image), -1)
        return (flat + rng.random(flat.shape, np.float32)) / 256, image.shape[1:]

    (train, shape), (test, _) = split("train"), split("test")
    return Data(train, test, shape)


def closed_form(knobs: Knobs, x: np.ndarray) -> Fitted:
    start = time.perf_counter()
    params = jax.block_until_ready(ppca(x, knobs.latents))
    return Fitted(params, np.array([]), np.array([]), time.perf_counter() - start)


def by_em(knobs: Knobs, x: np.ndarray, noise: str) -> Fitted:
    start = time.perf_counter()
    key = jax.random.key(knobs.seed)
    fit = jax.device_get(
        em.fit_linear_gaussian(
            key, x, knobs.latents, noise=noise, num_iterations=knobs.em_iterations
        )
    )
    history = np.append(fit.history[: fit.iterations], fit.log_px)
    seconds = time.perf_counter() - start
    return Fitted(fit.params, history, np.arange(len(history)), seconds)


def linear_vae(latents: int) -> Model:
    """The linear-Gaussian model with a linear encoder and a diagonal q(z | x)."""
    exact = linear_gaussian(latents, noise="isotropic")
    q = posteriors.normal(networks.mlp([], 2 * latents))

    def init(key, x):
        key_p, key_q = jax.random.split(key)
        return {**exact.init(key_p, x), "posterior": q.init(key_q, x)}

    posterior = lambda params, x: q.apply(params["posterior"], x)
    return Model(init, exact.prior, posterior, exact.likelihood)


def by_vi(knobs: Knobs, x: np.ndarray) -> Fitted:
    start = time.perf_counter()
    found, model = moments(x), linear_vae(knobs.latents)
    params = model.init(jax.random.key(knobs.seed), jnp.asarray(x[0]))
    params = {**params, "mean": found.mean}
    b = knobs.batch_size
    num_steps = batches.steps_per_run(len(x), epochs=knobs.epochs, batch_size=b)
    optimizer = training.adam(knobs.learning_rate, num_steps=num_steps)
    states = training.fit(
        objectives.batch_loss(
            model,
            preprocess=lambda key, batch: batch["x"],
            terms=models.analytic_terms,
        ),
        optimizer,
        training.init_state(params, optimizer),
        batches.shuffled({"x": x}, batch_size=b, seed=knobs.seed),
        seed=knobs.seed,
        num_steps=num_steps,
    )
    # What the E-step says of log p(x): exact, and from the moments alone.
    log_px = jax.jit(em.linear_gaussian_steps(knobs.latents, noise="isotropic").e_step)
    history, steps = [], []
    for state, _ in states:
        history.append(float(log_px(state.params, found)[1]))
        steps.append(int(state.step))
    seconds = time.perf_counter() - start
    return Fitted(state.params, np.array(history), np.array(steps), seconds)


def log_px(knobs: Knobs, params: Params, x: np.ndarray, noise: str) -> np.ndarray:
    """log p(x) of each image, exactly, float64 [n]."""
    exact = linear_gaussian(knobs.latents, noise=noise)
    each = jax.jit(lambda p, x: jax.vmap(exact.marginal(p).log_prob)(x))
    chunks = [
        each(params, part) for part in np.array_split(x, max(1, len(x) // 10_000))
    ]
    return np.concatenate(chunks).astype(np.float64)


def gap_of_vi(knobs: Knobs, params: Params, x: np.ndarray) -> np.ndarray:
    """KL(q(z | x) || p(z | x)) of each image in closed form, [n]."""
    exact = linear_gaussian(knobs.latents, noise="isotropic")
    model = linear_vae(knobs.latents)
    one = lambda p, x: variational_gap(exact, p, model.posterior(p, x), x)
    return np.asarray(jax.jit(jax.vmap(one, (None, 0)))(params, x), np.float64)


def _with_error(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def table(knobs: Knobs, fits: dict[str, Fitted], data: Data) -> dict[str, Any]:
    """Train and test log p(x) of each fit, and how far below the closed form it is."""
    rows: dict[str, Any] = {}
    best: dict[str, np.ndarray] = {}
    for name, fit in fits.items():
        noise = "diagonal" if name == "factor analysis" else "isotropic"
        found = {
            split: log_px(knobs, fit.params, x, noise)
            for split, x in (("train", data.train), ("test", data.test))
        }
        best = best or found
        gap, gap_stderr = _with_error(best["test"] - found["test"])
        test, stderr = _with_error(found["test"])
        rows[name] = {
            "train_log_px": float(found["train"].mean()),
            "test_log_px": test,
            "test_stderr": stderr,
            "test_gap": gap,
            "test_gap_stderr": gap_stderr,
            "iterations": int(fit.steps.max(initial=0)),
            "seconds": round(fit.seconds, 1),
        }
    vi = rows["amortised VI"]
    kl, kl_stderr = _with_error(
        gap_of_vi(knobs, fits["amortised VI"].params, data.test)
    )
    vi |= {"variational_gap": kl, "variational_gap_stderr": kl_stderr}
    vi["test_elbo"] = vi["test_log_px"] - kl
    return rows


def pictures(
    knobs: Knobs, fits: dict[str, Fitted], data: Data, best: float
) -> dict[str, Figure]:
    """What the closed form has learned, and how the others approach it."""
    params = fits["closed form"].params
    model = linear_gaussian(knobs.latents, noise="isotropic")
    images = lambda x: np.asarray(x).reshape(-1, *data.shape)
    axes = np.asarray(params["weight"]).T[:19]
    axes = 0.5 + 0.5 * axes / abs(axes).max(axis=1, keepdims=True)
    x = jnp.asarray(data.test[:20])
    z = jax.vmap(lambda x: model.posterior(params, x).mean())(x)
    decoded = jax.vmap(lambda z: model.likelihood(params, z).mean())(z)
    keys = jax.random.split(jax.random.key(knobs.seed), 40)
    draws = jax.vmap(lambda key: models.generate(model, params, key))(keys)
    grid = lambda x, title: plots.image_grid(images(x), columns=10, title=title)
    return {
        "axes.png": grid(
            np.concatenate([np.asarray(params["mean"])[None], axes]),
            "The mean, and the first principal axes (grey is 0)",
        ),
        "reconstructions.png": grid(
            plots.beside(x, decoded), "Test images, each beside W E[z | x] + mu"
        ),
        "samples.png": grid(draws, "Draws W z + mu with z ~ N(0, I)"),
        "convergence.png": convergence(fits, best),
    }


def convergence(fits: dict[str, Fitted], best: float) -> Figure:
    """log p(x) of the training images on the way, and its distance from the maximum."""
    figure = Figure(figsize=(8, 3.5), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in ("EM", "amortised VI"):
        fit, unit = fits[name], "iterations" if name == "EM" else "Adam steps"
        steps, history = fit.steps + 1, fit.history  # a logarithmic axis has no 0
        left.plot(steps, history, label=f"{name} ({unit})")
        # Below the rounding of log p(x), a difference is noise.
        right.loglog(steps, np.maximum(best - history, 1e-3))
    left.axhline(best, color="k", ls="--", lw=1, label="closed form")
    left.set(xscale="log", ylim=(best - 300, best + 20))
    left.set_ylabel("mean log p(x) of training images, nats")
    right.set_ylabel("nats below the closed form")
    for ax in (left, right):
        ax.grid(alpha=0.3)
        ax.set_xlabel("1 + iterations or steps")
    left.legend(frameon=False, fontsize=9)
    return figure


def run(knobs: Knobs, run_dir: Path) -> dict[str, Any]:
    """Fit, compare and draw into `run_dir`; a finished folder is left as it is."""
    # Wrong knobs are an error before there is a folder.
    linear_gaussian(knobs.latents)
    if knobs.seed < 0:
        raise ValueError(f"seed must be at least 0, got {knobs.seed}")
    return runs.once(run_dir, "ppca", knobs, lambda: compare(knobs, run_dir))


def compare(knobs: Knobs, run_dir: Path) -> dict[str, Any]:
    """Fit in every way and draw; what result.json holds."""
    data = load(knobs)
    fits = {
        "closed form": closed_form(knobs, data.train),
        "EM": by_em(knobs, data.train, "isotropic"),
        "amortised VI": by_vi(knobs, data.train),
        "factor analysis": by_em(knobs, data.train, "diagonal"),
    }
    result = {
        "dataset": knobs.dataset,
        "pixels": "(pixel + u) / 256, u ~ U[0, 1) drawn once",
        "num_train": len(data.train),
        "num_test": len(data.test),
        "seed": knobs.seed,
        "latents": knobs.latents,
        "ways": table(knobs, fits, data),
    }
    best = result["ways"]["closed form"]["train_log_px"]
    for file, figure in pictures(knobs, fits, data, best).items():
        runs.write_picture(run_dir / file, figure)
    return result


def show(result: dict[str, Any], run_dir: Path) -> None:
    print(
        "log p(x), nats per image on [0, 1]; gap: nats below the closed form, on test"
    )
    print(f"{'':16}{'train':>9}{'test':>9}{'+-':>6}{'gap':>11}{'+-':>8}{'seconds':>9}")
    for name, row in result["ways"].items():
        print(
            f"{name:16}{row['train_log_px']:9.2f}{row['test_log_px']:9.2f}"
            f"{row['test_stderr']:6.2f}{row['test_gap']:11.3f}"
            f"{row['test_gap_stderr']:8.3f}{row['seconds']:9.1f}"
        )
    vi = result["ways"]["amortised VI"]
    print(
        f"ELBO of amortised VI on test {vi['test_elbo']:.2f} = log p(x) - "
        f"KL(q || p(z | x)), which is {vi['variational_gap']:.4f}\n{run_dir}"
    )


def main(
    knobs: Annotated[Knobs, tyro.conf.OmitArgPrefixes],
    run_dir: Path = Path("runs/ppca"),
) -> None:
    """Fit probabilistic PCA four ways, with a table and pictures in run_dir."""
    with clear_errors():
        show(run(knobs, run_dir), run_dir)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.ppca", description=__doc__)
