"""A Gaussian mixture on the principal components of MNIST, fitted in three ways.

    python -m experiments.gmm
    python -m experiments.gmm --covariance diagonal --run-dir runs/gmm_diagonal

EM with restarts; then variational EM and gradient ascent on the marginal, both from the
k-means++ start of the restart that ended highest. log p is that of the projection of an
image on the first principal components of the training images, in nats.

Expect, of the test images, -14.72 +- 0.04 by EM and by variational EM, -14.73 by
gradient ascent and -18.49 +- 0.02 of one Gaussian; in a minute on 2 CPU cores.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure

from vi_jax import em, maximum_likelihood, plots, runs, training
from vi_jax.checks import at_least
from vi_jax.commands import clear_errors
from vi_jax.data import batches, load
from vi_jax.models import gaussian_mixture
from vi_jax.models.gaussian_mixture import Covariance


@dataclasses.dataclass(frozen=True)
class Knobs:
    """The knobs of the run, all of them part of what the run folder stands for."""

    components: int = 20
    """Gaussians in the mixture."""
    dimensions: int = 10
    """Principal components that are kept."""
    covariance: Covariance = "full"
    """What the covariances of the components may be."""
    restarts: int = 4
    """Runs of EM, each from a k-means++ start of its own."""
    iterations: int = 300
    """Of EM and of variational EM at most."""
    tolerance: float = 1e-5
    """Gain in nats per image at which they stop."""
    step_size: float = 0.5
    """Of the E-step of variational EM; 1 is EM."""
    epochs: int = 60
    """Passes of gradient ascent over the training images."""
    batch_size: int = 1000
    """Images in one step of gradient ascent."""
    learning_rate: float = 2e-2
    """Adam's step size at the start; it falls to 0 along a cosine."""
    seed: int = 0
    """Of the starts, the order of the data and the draws in the pictures."""
    dataset: str = "mnist"
    """Name of a set of tensorflow-datasets, or path of an .npz with x_train, x_test."""
    data_dir: str = ""
    """Where sets are prepared; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""


class Data(NamedTuple):
    """Images as coordinates in the space of the first principal components."""

    train: np.ndarray  # [n, D]
    test: np.ndarray  # [n, D]
    decode: Callable[[np.ndarray], np.ndarray]  # [n, D] -> images [n, h, w, c]


class Way(NamedTuple):
    """What one way to fit has come to."""

    params: dict
    history: np.ndarray  # mean log p(x) of the training images, pass by pass
    seconds: float  # with compilation


def principal_components(knobs: Knobs) -> Data:
    where = knobs.data_dir or None
    sets = [load(knobs.dataset, s, data_dir=where).image for s in ("train", "test")]
    train, test = (a.reshape(len(a), -1).astype(np.float32) / 255 for a in sets)
    if not 1 <= knobs.dimensions <= train.shape[1]:
        raise ValueError(f"dimensions must lie in [1, {train.shape[1]}]")
    mean, shape = train.mean(0), sets[0].shape[1:]
    train, test = train - mean, test - mean
    basis = np.linalg.eigh(train.T @ train)[1][:, : -knobs.dimensions - 1 : -1]
    decode = lambda x: (x @ basis.T + mean).reshape(-1, *shape)
    return Data(train @ basis, test @ basis, decode)


def by_em(knobs: Knobs, x: np.ndarray, components: int, restarts: int):
    """The best restart, and the start that it had."""
    begin, key = time.perf_counter(), jax.random.key(knobs.seed)
    kind = {"covariance": knobs.covariance}
    limits = {"num_iterations": knobs.iterations, "tolerance": knobs.tolerance}
    found = em.fit_gaussian_mixture(
        key, x, components, restarts=restarts, **kind, **limits
    )
    way = Way(found.best.params, curve(found.best), time.perf_counter() - begin)
    best = np.argmax(np.where(found.sound, found.log_px, -np.inf))
    key = jax.random.split(key, restarts)[best]
    return way, em.gaussian_mixture_start(key, jnp.asarray(x), components, **kind)


def curve(fit: em.Fit) -> np.ndarray:
    return np.append(fit.history[: int(fit.iterations)], fit.log_px)


def by_variational_em(knobs: Knobs, x: np.ndarray, start: dict) -> Way:
    begin = time.perf_counter()
    climb = functools.partial(
        em.variational_em,
        covariance=knobs.covariance,
        step_size=knobs.step_size,
        floor=1e-6 * float(x.var(0).min()),
        num_iterations=knobs.iterations,
        tolerance=knobs.tolerance,
    )
    fit = jax.block_until_ready(jax.jit(climb)(start, x).fit)
    return Way(fit.params, curve(fit), time.perf_counter() - begin)


def by_gradient(knobs: Knobs, x: np.ndarray, start: dict) -> Way:
    begin = time.perf_counter()
    marginal = gaussian_mixture(knobs.components, covariance=knobs.covariance).marginal
    loss = maximum_likelihood.negative_log_likelihood(marginal)
    stream = batches.shuffled({"x": x}, batch_size=knobs.batch_size, seed=knobs.seed)
    epoch = batches.steps_per_run(len(x), epochs=1, batch_size=knobs.batch_size)
    num_steps = knobs.epochs * epoch
    adam = training.adam(knobs.learning_rate, num_steps=num_steps)
    start, how = training.init_state(start, adam), {"seed": knobs.seed}
    how |= {"num_steps": num_steps, "scan_steps": epoch}
    states, metrics = zip(*training.fit(loss, adam, start, stream, **how), strict=True)
    history = np.array([m["log_likelihood"] for m in metrics])
    return Way(states[-1].params, history, time.perf_counter() - begin)


def score(way: Way, data: Data, covariance: Covariance) -> dict:
    """Means of log p(x) with their standard errors over images, in nats."""
    model = gaussian_mixture(len(way.params["loc"]), covariance=covariance)
    log_px = jax.jit(jax.vmap(model.marginal(way.params).log_prob))
    result = {"passes": len(way.history), "seconds": round(way.seconds, 1)}
    for split in ("train", "test"):
        values = np.asarray(log_px(getattr(data, split)), float)
        result[split] = float(values.mean())
        result[f"{split}_stderr"] = float(values.std(ddof=1) / len(values) ** 0.5)
    return result


def component_figure(params: dict, knobs: Knobs, data: Data, draws: int = 9) -> Figure:
    """A row for each component, by weight: its mean, and draws from it."""
    model = gaussian_mixture(knobs.components, covariance=knobs.covariance)
    order = np.argsort(-params["logits"])
    keys = jax.random.split(jax.random.key(knobs.seed), (len(order), draws))
    draw = lambda z, key: model.likelihood(params, z).sample(key)
    x = jax.vmap(jax.vmap(draw, (None, 0)))(jnp.asarray(order), keys)
    rows = np.concatenate([params["loc"][order][:, None], x], 1)  # [m, 1 + draws, D]
    images = data.decode(rows.reshape(-1, knobs.dimensions))
    title = "by weight: the mean of each component, and draws"
    return plots.image_grid(images, columns=1 + draws, title=title)


def history_figure(ways: dict[str, Way]) -> Figure:
    figure = Figure(figsize=(8, 3.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for name, way in ways.items():
        axes.plot(1 + np.arange(len(way.history)), way.history, label=name)
    low, high = ways["EM"].history[[min(3, len(ways["EM"].history) - 1), -1]]
    axes.set_ylim(low, high + 0.05 * (high - low))
    axes.set(
        xlabel="passes over the training images",
        ylabel="mean log p(x), nats",
        title="three ways up from one start",
        xscale="log",
    )
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return figure


def check(knobs: Knobs, num_train: int) -> None:
    """Raise ValueError for a knob that would be found wrong only between the fits."""
    gaussian_mixture(knobs.components, covariance=knobs.covariance)
    counts = ("restarts", "iterations", "epochs")
    at_least(1, **{name: getattr(knobs, name) for name in counts})
    if not 0 < knobs.step_size <= 1:
        raise ValueError(f"step_size must be in (0, 1], got {knobs.step_size}")
    if np.isnan(knobs.tolerance):
        raise ValueError("tolerance must be a number of nats, got nan")
    batches.sizes(num_train, knobs.batch_size, knobs.seed, seeds=2**64)
    training.adam(knobs.learning_rate, num_steps=1)


def run(knobs: Knobs, folder: Path) -> dict:
    data = principal_components(knobs)
    check(knobs, len(data.train))
    return runs.once(folder, "gmm", knobs, lambda: compare(knobs, data, folder))


def compare(knobs: Knobs, data: Data, folder: Path) -> dict:
    """Fit in every way and draw; what result.json holds."""
    single, _ = by_em(knobs, data.train, 1, 1)
    best, start = by_em(knobs, data.train, knobs.components, knobs.restarts)
    ways = {
        "EM": best,
        "variational EM": by_variational_em(knobs, data.train, start),
        "gradient ascent": by_gradient(knobs, data.train, start),
    }
    components = component_figure(best.params, knobs, data)
    runs.write_picture(folder / "components.png", components)
    runs.write_picture(folder / "history.png", history_figure(ways))
    ways = {"one Gaussian": single, **ways}
    return {
        "dataset": knobs.dataset,
        "num_train": len(data.train),
        "num_test": len(data.test),
        "seed": knobs.seed,
        "components": knobs.components,
        "dimensions": knobs.dimensions,
        "covariance": knobs.covariance,
        "ways": {n: score(w, data, knobs.covariance) for n, w in ways.items()},
    }


def table(result: dict) -> str:
    lines = [f"{'':16}{'train':>18}{'test':>18}{'passes':>8}{'seconds':>9}"]
    for name, r in result["ways"].items():
        pairs = (f"{r[s]:.3f} +- {r[s + '_stderr']:.3f}" for s in ("train", "test"))
        columns = "".join(f"{pair:>18}" for pair in pairs)
        lines.append(f"{name:16}{columns}{r['passes']:>8}{r['seconds']:>9.1f}")
    return "\n".join(lines)


def main(
    knobs: Annotated[Knobs, tyro.conf.OmitArgPrefixes],
    run_dir: Path = Path("runs/gmm"),
) -> None:
    with clear_errors():
        result = run(knobs, run_dir)
    print(f"mean log p(x) of images in nats, +- standard error\n{table(result)}")
    print(run_dir)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.gmm", description=__doc__)
