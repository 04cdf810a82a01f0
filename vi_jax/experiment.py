"""From a typed description of an experiment to a run folder with a result.

An experiment is a frozen dataclass of knobs and a function from it to an `Experiment`.
`main` gives it a command line: training (which resumes), and evaluation, sampling and
interpolation from a finished run folder.
"""

import inspect
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure
from tqdm import tqdm

from vi_jax import model as models, plots, runs
from vi_jax.checkpoints import Checkpoints, open_checkpoints
from vi_jax.data.batches import padded
from vi_jax.data.images import ImageData
from vi_jax.evaluation import LogLikelihood, active_units, log_likelihood
from vi_jax.model import Model
from vi_jax.training import TrainState, averaged_params, fit, init_state
from vi_jax.types import Array, LossFn, Params

EVALUATION_SEED = 123
VALID_SAMPLES = 100
Which = Literal["last", "best"]


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


def initial_state(experiment: Experiment) -> TrainState:
    """The state at step 0, after one trace of the loss.

    The trace makes any wrong use an error here, before a run folder exists.
    """
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
    runs.claim(run_dir, name, knobs)
    with runs.exclusive(run_dir):
        if (run_dir / "result.json").exists():
            print(f"{run_dir} is finished already; its result:", file=sys.stderr)
            return runs.read_json(run_dir / "result.json")
        checkpoints = open_checkpoints(run_dir / "checkpoints")
        state = _train(experiment, state, run_dir, checkpoints)
        params = averaged_params(state)
        result = evaluate(experiment, params, num_samples=experiment.num_eval_samples)
        records = runs.read_metrics(run_dir)
        for file, figure in _pictures(experiment, params, records).items():
            figure.savefig(run_dir / file)
        result |= {
            "train_seconds": round(records[-1]["seconds"], 1),
            "steps": int(state.step),
            "skipped_steps": sum(r["skipped"] for r in records),
            "checkpoint": "last",
            "seed": experiment.seed,
            **experiment.about,
        }
        runs.write_json(run_dir / "result.json", result)
    return result


def _train(
    experiment: Experiment, state: TrainState, run_dir: Path, checkpoints: Checkpoints
) -> TrainState:
    state = checkpoints.restore(state) or state
    step = int(state.step)
    if step:
        print(f"resuming {run_dir} from step {step}", file=sys.stderr)
    before = [r["seconds"] for r in runs.read_metrics(run_dir) if r["step"] <= step]
    start = time.perf_counter() - max(before, default=0.0)
    validate = make_evaluator(experiment.model, num_samples=VALID_SAMPLES)
    every, last = experiment.checkpoint_steps, experiment.num_steps
    with (
        runs.metrics_log(run_dir, step) as log,
        tqdm(total=last, initial=step, unit="step", dynamic_ncols=True) as bar,
    ):
        steps = fit(
            experiment.loss,
            experiment.optimizer,
            state,
            experiment.data.train,
            seed=experiment.seed,
            num_steps=last,
            scan_steps=experiment.scan_steps,
        )
        for state, metrics in steps:
            step, previous = int(state.step), step
            due = step // every > previous // every or step == last
            if due:
                valid = validate(averaged_params(state), experiment.data.valid)
                metrics["valid_bound"] = float(np.mean(valid.log_px))
            seconds = time.perf_counter() - start
            log({"step": step, "seconds": seconds, **metrics})
            if due:
                checkpoints.save(state, metrics["valid_bound"])
            bar.update(step - previous)
            bar.set_postfix(bound=f"{metrics['bound']:.2f}")
    return state


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
        with tqdm(
            total=len(x), unit="image", disable=not progress, dynamic_ncols=True
        ) as bar:
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
    bad = ~np.isfinite(found.log_px)
    if bad.any():
        raise FloatingPointError(
            f"log p(x) of test image {bad.argmax()} is {found.log_px[bad.argmax()]} "
            f"({bad.sum()} such images): the parameters are not usable"
        )
    posterior_mean = lambda x: experiment.model.posterior(params, x).mean()
    means = jax.lax.map(posterior_mean, jnp.asarray(x) / 255.0, batch_size=1000)
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
        "active_units": int(active_units(means).sum()),
        "eval_seconds": round(time.perf_counter() - start, 1),
        "split": "test",
        "num_test": n,
    }


def _as_images(experiment: Experiment, x: Array) -> np.ndarray:
    return np.asarray(x).reshape(-1, *experiment.data.shape)


def sample_figure(experiment: Experiment, params: Params, *, num=100, seed=0) -> Figure:
    """Means of p(x | z) at draws from the prior."""
    keys = jax.random.split(jax.random.key(seed), num)
    draw = jax.vmap(lambda key: models.generate(experiment.model, params, key))
    columns = next(c for c in range(min(10, num), 0, -1) if num % c == 0)
    return plots.image_grid(_as_images(experiment, draw(keys)), columns=columns)


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


def main(
    name: str,
    knobs_class: type,
    build: Callable[[Any], Experiment],
    argv: list[str] | None = None,
) -> None:
    """The command line of an experiment; exits with 1 after one clear message.

    `python -m experiments.NAME --knob value ...` trains, evaluates and draws;
    `... evaluate | sample | interpolate --run-dir DIR` work on a run that exists.
    """
    argv = sys.argv[1:] if argv is None else argv
    commands = _commands(name, knobs_class, build)
    command = argv[0] if argv and argv[0] in commands else "train"
    rest = argv[1:] if argv and argv[0] in commands else argv
    program = f"python -m experiments.{name} {command}".removesuffix(" train")
    try:
        tyro.cli(commands[command], prog=program, args=rest)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None


def _commands(name: str, knobs_class: type, build) -> dict[str, Callable]:
    default_dir = Path("runs") / name

    def train(
        knobs: Annotated[knobs_class, tyro.conf.OmitArgPrefixes],
        run_dir: Path = default_dir,
    ) -> None:
        result = run(build(knobs), run_dir, name=name, knobs=knobs)
        _print_result(result, run_dir)

    train.__doc__ = f"""{inspect.getdoc(sys.modules[knobs_class.__module__])}

Other commands, on the folder of a run (each has its own --help):
python -m experiments.{name} evaluate|sample|interpolate --run-dir DIR

Args:
    run_dir: Folder of the run; the same command again goes on with it.
"""

    def opened(run_dir: Path, checkpoint: Which) -> tuple[Experiment, Params]:
        experiment = build(runs.read_knobs(run_dir, name, knobs_class))
        checkpoints = open_checkpoints(run_dir / "checkpoints")
        state = checkpoints.restore(initial_state(experiment), checkpoint)
        if state is None:
            raise FileNotFoundError(f"{run_dir} has no checkpoint yet")
        return experiment, averaged_params(state)

    def evaluate_run(
        run_dir: Path = default_dir,
        num_samples: int = 5000,
        checkpoint: Which = "last",
    ) -> None:
        """Estimate the test log-likelihood of a run once more.

        Args:
            run_dir: Folder of the run.
            num_samples: Importance samples per image.
            checkpoint: The last one, or the best on the validation images.
        """
        experiment, params = opened(run_dir, checkpoint)
        result = evaluate(experiment, params, num_samples=num_samples)
        result |= {"checkpoint": checkpoint, **experiment.about}
        file = run_dir / f"evaluation-{checkpoint}-{num_samples}.json"
        runs.write_json(file, result)
        _print_result(result, file)

    def sample_run(
        run_dir: Path = default_dir,
        num: int = 100,
        seed: int = 0,
        checkpoint: Which = "last",
    ) -> None:
        """Draw images from a run into its folder.

        Args:
            run_dir: Folder of the run.
            num: Number of images.
            seed: Seed of the draws.
            checkpoint: The last one, or the best on the validation images.
        """
        if num < 1:
            raise ValueError(f"num must be at least 1, got {num}")
        experiment, params = opened(run_dir, checkpoint)
        file = run_dir / f"samples-{checkpoint}-{num}-seed{seed}.png"
        sample_figure(experiment, params, num=num, seed=seed).savefig(file)
        print(file)

    def interpolate_run(
        run_dir: Path = default_dir,
        rows: int = 8,
        points: int = 10,
        path: Literal["spherical", "linear"] = "spherical",
        checkpoint: Which = "last",
    ) -> None:
        """Draw paths between test images into the folder of a run.

        Args:
            run_dir: Folder of the run.
            rows: Number of paths.
            points: Images on each path, its ends included.
            path: Great circles, or straight lines, between posterior means.
            checkpoint: The last one, or the best on the validation images.
        """
        experiment, params = opened(run_dir, checkpoint)
        if not 1 <= rows <= len(experiment.data.test) // 2 or points < 2:
            raise ValueError("rows must be from 1 to half the test set, points from 2")
        file = run_dir / f"interpolations-{path}-{checkpoint}-{rows}x{points}.png"
        chosen = {"spherical": models.spherical, "linear": models.linear}[path]
        interpolation_figure(
            experiment, params, rows=rows, points=points, path=chosen
        ).savefig(file)
        print(file)

    return {
        "train": train,
        "evaluate": evaluate_run,
        "sample": sample_run,
        "interpolate": interpolate_run,
    }


def _print_result(result: dict[str, Any], where: Path) -> None:
    print(
        f"test -log p(x) = {result['nll']:.2f} +- {result['nll_stderr']:.2f} nats "
        f"({result['num_test']} images, {result['num_samples']} samples, binarize "
        f"{result['binarize']})\n"
        f"ELBO {result['elbo']:.2f} = -(rate {result['rate']:.2f} + distortion "
        f"{result['distortion']:.2f}), {result['active_units']} active units\n{where}"
    )
