"""From the description of an experiment to a run folder with a result and pictures.

An experiment is a frozen dataclass of knobs and a function from it to an `Experiment`;
`commands.main` gives it a command line.
"""

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm import tqdm

from vi_jax import model as models, plots, runs
from vi_jax.checkpoints import Checkpoints, open_checkpoints
from vi_jax.data.batches import padded
from vi_jax.data.images import ImageData
from vi_jax.early_stopping import EarlyStopping, stops
from vi_jax.evaluation import (
    LogLikelihood,
    active_units,
    collapse_report,
    log_likelihood,
)
from vi_jax.evaluation.psis import RELIABLE_PARETO_K
from vi_jax.model import Model
from vi_jax.training import TrainState, averaged_params, fit, init_state
from vi_jax.types import Array, LossFn, Metrics, Params

EVALUATION_SEED = 123
VALID_SAMPLES = 100


class Experiment(NamedTuple):
    """All that a run needs."""

    model: Model
    loss: LossFn
    optimizer: optax.GradientTransformation
    data: ImageData
    seed: int
    num_steps: int
    scan_steps: int  # steps in one dispatch
    checkpoint_steps: int  # steps from one checkpoint to the next
    num_eval_samples: int
    about: dict[str, Any]  # repeated in result.json
    earlier: tuple[tuple[LossFn, int], ...] = ()  # (loss, its last step), before `loss`
    early_stopping: EarlyStopping | None = None  # and the best parameters then


def initial_state(experiment: Experiment) -> TrainState:
    """The state at step 0, after one trace of the loss.

    The trace makes any wrong use an error here, before a run folder exists.
    Raises ValueError for it, and for a number of steps or samples below 1.
    """
    for name in ("num_steps", "scan_steps", "checkpoint_steps", "num_eval_samples"):
        if getattr(experiment, name) < 1:
            raise ValueError(f"{name} must be at least 1")
    if experiment.early_stopping:
        stops(experiment.early_stopping, ())
    x = jnp.zeros(experiment.data.mean.shape, jnp.float32)
    # Away from the keys of the steps, which are fold_in(key(seed), step).
    key = jax.random.fold_in(jax.random.key(experiment.seed), 2**32 - 1)
    params = experiment.model.init(key, x)
    stream = experiment.data.train
    trace = lambda params, key, resident: experiment.loss(
        params, key, stream.gather(resident, stream.at(0))
    )
    jax.eval_shape(trace, params, key, stream.resident)
    return init_state(params, experiment.optimizer)


def run(experiment: Experiment, run_dir: Path, *, name: str, knobs) -> dict[str, Any]:
    """Train, evaluate and draw into `run_dir`, going on from where it was left.

    Returns the content of result.json. A finished folder is left as it is.
    Raises ValueError where the folder is a run of other knobs, OSError where it cannot
    be written or another process uses it, NonFiniteError from `fit`.
    """
    run_dir = Path(run_dir)
    state = initial_state(experiment)
    work = lambda: _train_and_evaluate(experiment, state, run_dir)
    return runs.once(run_dir, name, knobs, work)


def _train_and_evaluate(
    experiment: Experiment, state: TrainState, run_dir: Path
) -> dict[str, Any]:
    checkpoints = open_checkpoints(run_dir / "checkpoints")
    state = _train(experiment, state, run_dir, checkpoints)
    which = "best" if experiment.early_stopping else "last"
    if which == "best":
        state = checkpoints.restore(state, which)
    params = averaged_params(state)
    result = evaluate(experiment, params, num_samples=experiment.num_eval_samples)
    records = runs.read_metrics(run_dir)
    for file, figure in _pictures(experiment, params, records).items():
        figure.savefig(run_dir / file)
    return result | {
        "train_seconds": round(records[-1]["seconds"], 1),
        "steps": records[-1]["step"],
        "skipped_steps": sum(r["skipped"] for r in records),
        "checkpoint": which,
        "seed": experiment.seed,
        **experiment.about,
    }


def _train(
    experiment: Experiment, state: TrainState, run_dir: Path, checkpoints: Checkpoints
) -> TrainState:
    state = checkpoints.restore(state) or state
    step = int(state.step)
    if step:
        print(f"resuming {run_dir} from step {step}", file=sys.stderr)
    before = [r for r in runs.read_metrics(run_dir) if r["step"] <= step]
    start = time.perf_counter() - max([r["seconds"] for r in before], default=0.0)
    scores = [(r["step"], r["valid_bound"]) for r in before if "valid_bound" in r]
    rule = experiment.early_stopping or EarlyStopping(experiment.num_steps, 0)
    validate = _validation(experiment)
    every, last = experiment.checkpoint_steps, experiment.num_steps
    with (
        runs.metrics_log(run_dir, step) as log,
        progress_bar(last, "step", initial=step) as bar,
    ):
        steps = _steps(experiment, state)
        while not stops(rule, scores) and (new := next(steps, None)):
            state, metrics = new
            step, previous = int(state.step), step
            due = step // every > previous // every or step == last
            if due:
                metrics |= validate(averaged_params(state))
                scores.append((step, metrics["valid_bound"]))
            seconds = time.perf_counter() - start
            log({"step": step, "seconds": seconds, **metrics})
            if due:
                counts = step >= rule.start
                checkpoints.save(state, scores[-1][1] if counts else -np.inf)
            bar.update(step - previous)
            bar.set_postfix(bound=f"{metrics['bound']:.2f}", refresh=False)
    return state


def _validation(experiment: Experiment) -> Callable[[Params], dict[str, Any]]:
    """params -> what is logged of the validation images: bound and latents."""
    model, x = experiment.model, experiment.data.valid
    bound = make_evaluator(model, num_samples=VALID_SAMPLES)

    @jax.jit
    def latents(params: Params, x: Array) -> Metrics:
        found = jax.vmap(lambda x: model.posterior(params, x))(x)
        key = jax.random.key(EVALUATION_SEED)
        return collapse_report(key, found, model.prior(params))

    def validate(params: Params) -> dict[str, Any]:
        found = {"valid_bound": np.mean(bound(params, x).log_px)}
        if len(x) > 1:  # of one image nothing varies
            found |= jax.device_get(latents(params, x.astype(np.float32) / 255))
        return {name: value.tolist() for name, value in found.items()}

    return validate


def _steps(
    experiment: Experiment, state: TrainState
) -> Iterator[tuple[TrainState, Metrics]]:
    """`fit`, through the stages of the experiment."""
    for loss, last in (*experiment.earlier, (experiment.loss, experiment.num_steps)):
        steps = fit(
            loss,
            experiment.optimizer,
            state,
            experiment.data.train,
            seed=experiment.seed,
            num_steps=last,
            scan_steps=experiment.scan_steps,
        )
        for new, metrics in steps:
            yield new, metrics
            state = new


def progress_bar(total: int, unit: str, **options) -> tqdm:
    """A progress bar, quiet where nobody watches."""
    # A log file gets a line every half minute, a terminal a moving bar.
    pace = 0.1 if sys.stderr.isatty() else 30
    return tqdm(total=total, unit=unit, mininterval=pace, dynamic_ncols=True, **options)


def make_evaluator(
    model: Model,
    *,
    num_samples: int,
    batch_size: int = 20,
    chunk: int = 50,
    progress: bool = False,
) -> Callable[[Params, np.ndarray], LogLikelihood]:
    """(params, x uint8 [n, D]) -> LogLikelihood of [n] arrays, compiled once.

    The draws of an example depend on its place and EVALUATION_SEED, on nothing else.
    batch_size x chunk rows go through the decoder at a time.
    """

    @jax.jit
    def batch(params: Params, start: Array, x: Array) -> LogLikelihood:
        def one(i: Array, x: Array) -> LogLikelihood:
            key = jax.random.fold_in(jax.random.key(EVALUATION_SEED), i)
            return log_likelihood(
                model, params, key, x, num_samples=num_samples, chunk=chunk
            )

        places = start + jnp.arange(batch_size)
        return jax.vmap(one)(places, x.astype(jnp.float32) / 255)

    def evaluate(params: Params, x: np.ndarray) -> LogLikelihood:
        parts = []
        with progress_bar(len(x), "image", disable=not progress) as bar:
            for i, (rows, mask) in enumerate(padded(x, batch_size=batch_size)):
                part = jax.device_get(batch(params, i * batch_size, rows))
                parts.append(jax.tree.map(lambda a, mask=mask: a[mask], part))
                bar.update(int(mask.sum()))
        return jax.tree.map(lambda *a: np.concatenate(a), *parts)

    return evaluate


def evaluate(
    experiment: Experiment, params: Params, *, num_samples: int
) -> dict[str, Any]:
    """The test log-likelihood and what belongs beside it, in nats per example.

    `nll_stderr` is the standard error over test images, `nll_mc_stderr` the part of it
    that more importance samples would remove.
    """
    start = time.perf_counter()
    x = experiment.data.test
    evaluator = make_evaluator(experiment.model, num_samples=num_samples, progress=True)
    found = evaluator(params, x)
    _warn_of_heavy_tails(found.khat)
    bad = ~np.isfinite(found.log_px)
    if bad.any():
        raise FloatingPointError(
            f"log p(x) of test image {bad.argmax()} is {found.log_px[bad.argmax()]} "
            f"({bad.sum()} such images): the parameters are not usable"
        )
    posterior_mean = lambda x: experiment.model.posterior(params, x).mean()
    means = jax.lax.map(posterior_mean, jnp.asarray(x) / 255.0, batch_size=1000)
    active = [int(active_units(m).sum()) for m in jax.tree.leaves(means)]
    n = len(x)
    stderr = np.std(found.log_px, ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return {
        "nll": float(-np.mean(found.log_px, dtype=np.float64)),
        "nll_stderr": float(stderr),
        "nll_mc_stderr": float(np.sqrt(np.sum(found.stderr**2)) / n),
        "num_samples": num_samples,
        "elbo": float(np.mean(found.elbo)),
        "rate": float(np.mean(found.rate)),
        "distortion": float(np.mean(found.distortion)),
        "ess": float(np.mean(found.ess)),
        "khat_above_0.7": int(np.sum(found.khat > RELIABLE_PARETO_K)),
        "active_units": sum(active),
        "active_units_per_layer": active,
        "eval_seconds": round(time.perf_counter() - start, 1),
        "split": "test",
        "num_test": n,
    }


def _warn_of_heavy_tails(khat: np.ndarray) -> None:
    heavy = np.sum(khat > RELIABLE_PARETO_K)
    if heavy:
        warnings.warn(
            f"the importance weights of {heavy} of {len(khat)} test images have too "
            f"heavy a tail (Pareto k-hat above {RELIABLE_PARETO_K}): their log p(x) "
            "is a lower bound in expectation, but may be far below and its standard "
            "error too small. Use more samples, or `ais`, for these",
            stacklevel=3,
        )


def _as_images(experiment: Experiment, x: Array) -> np.ndarray:
    return np.asarray(x).reshape(-1, *experiment.data.shape)


def sample_figure(experiment: Experiment, params: Params, *, num=100, seed=0) -> Figure:
    """Means of p(x | z) at draws from the prior."""
    keys = jax.random.split(jax.random.key(seed), num)
    draw = jax.vmap(lambda key: models.generate(experiment.model, params, key))
    return plots.image_grid(_as_images(experiment, draw(keys)), columns=10)


def reconstruction_figure(experiment: Experiment, params: Params) -> Figure:
    """Test images, each beside its reconstruction."""
    x = jnp.asarray(experiment.data.test[:40]) / 255.0
    keys = jax.random.split(jax.random.key(0), len(x))
    one = lambda key, x: models.reconstruct(experiment.model, params, key, x)
    pairs = plots.beside(x, jax.vmap(one)(keys, x))
    return plots.image_grid(_as_images(experiment, pairs), columns=10)


def interpolation_figure(
    experiment: Experiment, params: Params, *, rows=8, points=10, path=models.spherical
) -> Figure:
    """Paths between the first test images, taken two by two."""
    rows = min(rows, len(experiment.data.test) // 2)
    x = jnp.asarray(experiment.data.test[: 2 * rows]) / 255.0

    def one(a: Array, b: Array) -> Array:
        return models.interpolate(
            experiment.model, params, a, b, num_points=points, path=path
        )

    images = jax.vmap(one)(x[::2], x[1::2])
    return plots.image_grid(_as_images(experiment, images), columns=points)


def _pictures(experiment: Experiment, params: Params, records) -> dict[str, Figure]:
    return {
        "samples.png": sample_figure(experiment, params),
        "reconstructions.png": reconstruction_figure(experiment, params),
        "interpolations.png": interpolation_figure(experiment, params),
        "training.png": plots.training_curves(records),
    }
