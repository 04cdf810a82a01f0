"""The command line of an experiment: train, evaluate, appraise and draw."""

import contextlib
import dataclasses
import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from vi_jax import diagnosis, model, runs, sharding
from vi_jax.checkpoints import open_checkpoints
from vi_jax.checks import at_least
from vi_jax.experiment import Experiment, evaluate, initial_state, run
from vi_jax.figures import interpolation_figure, sample_figure
from vi_jax.training import averaged_params
from vi_jax.types import Params

Which = Literal["last", "best"]
Size = tuple[int, int]


def main(
    name: str,
    knobs_class: type,
    build: Callable[[Any], Experiment],
    argv: list[str] | None = None,
) -> None:
    """The command line of an experiment; exits with 1 after one clear message.

    `python -m experiments.NAME --knob value ...` trains, evaluates and draws;
    `... evaluate | anneal | gaps | sample | interpolate --run-dir DIR` work on a run
    that exists.
    """
    argv = sys.argv[1:] if argv is None else argv
    commands = _commands(name, knobs_class, build)
    command = argv[0] if argv and argv[0] in commands else "train"
    rest = argv[1:] if argv and argv[0] in commands else argv
    program = f"python -m experiments.{name} {command}".removesuffix(" train")
    about = None
    if command == "train":
        about = f"""{inspect.getdoc(sys.modules[knobs_class.__module__])}

Other commands, on the folder of a run (each has its own --help):

    python -m experiments.{name} evaluate|anneal|gaps|sample|interpolate --run-dir DIR
"""
    with clear_errors():
        tyro.cli(commands[command], prog=program, description=about, args=rest)


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Where the user can mend it: one line and exit status 1 instead of a traceback.

    Of an interruption by the keyboard: one line and exit status 130.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, OSError, ArithmeticError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error


def _check_sizes(options: dict[str, Any]) -> None:
    """Raise ValueError for an integer that no array and no key can have."""
    for name, value in options.items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and abs(number) >= 2**63:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} {number}: it must be below 2^63")


@dataclasses.dataclass(frozen=True)
class _Run:
    run_dir: Path
    """Folder of the run."""
    checkpoint: Which = "last"
    """The last one, or the best on the validation images."""


Run = Annotated[_Run, tyro.conf.OmitArgPrefixes]
Of = tuple[str, type, Callable[[Any], Experiment]]
"""Of `main`: the experiment's name, its class of knobs, and what builds it of them."""


def _commands(name: str, knobs_class: type, build) -> dict[str, Callable]:
    default_dir = Path("runs") / name

    def train(
        knobs: Annotated[knobs_class, tyro.conf.OmitArgPrefixes],
        run_dir: Path = default_dir,
        mesh: Size | None = None,
        join: tuple[str, int, int] | Literal["auto"] | None = None,
    ) -> None:
        """Train, evaluate and draw.

        Args:
            run_dir: Folder of the run; the same command again goes on with it.
            mesh: Devices to split the examples, and the samples of each, over: two
                numbers.
            join: Be one of several processes: HOST:PORT of the first, their number, and
                the place of this one, from 0; or auto, on a TPU pod, in SLURM and in
                Open MPI.
        """
        _check_sizes(dataclasses.asdict(knobs))
        with _joined(join):
            experiment = _on_mesh(build(knobs), mesh)
            result = run(experiment, run_dir, name=name, knobs=knobs)
            if sharding.is_first():
                _print_result(result, run_dir)

    of = name, knobs_class, build
    on_run = lambda command: functools.partial(command, of, run=_Run(default_dir))
    return {
        "train": train,
        "evaluate": on_run(_evaluate),
        "anneal": on_run(_anneal),
        "gaps": on_run(_gaps),
        "sample": on_run(_sample),
        "interpolate": on_run(_interpolate),
    }


def opened(
    run_dir: str | Path,
    name: str,
    knobs_class: type,
    build: Callable[[Any], Experiment],
    checkpoint: Which = "last",
) -> tuple[Experiment, Params]:
    """The experiment of a run folder, and the trained parameters.

    opened("runs/mnist_vae", "mnist_vae", mnist_vae.Knobs, mnist_vae.build)

    Raises FileNotFoundError where there is no such run or checkpoint, and ValueError as
    `runs.read_knobs` does.
    """
    run_dir = Path(run_dir)
    experiment = build(runs.read_knobs(run_dir, name, knobs_class))
    # Opening checkpoints tidies up, which a run that is being trained must not see.
    with runs.exclusive(run_dir):
        checkpoints = open_checkpoints(run_dir / "checkpoints")
        state = checkpoints.restore(initial_state(experiment), checkpoint)
    if state is None:
        raise FileNotFoundError(f"{run_dir} has no {checkpoint} checkpoint")
    return experiment, averaged_params(state)


def _evaluate(
    of: Of,
    run: Run,
    num_samples: int = 5000,
    mesh: Size | None = None,
) -> None:
    """Estimate the test log-likelihood of a run once more.

    Args:
        num_samples: Importance samples per image.
        mesh: Devices to split the images over: two numbers, whose product counts.
    """
    experiment, params = opened(run.run_dir, *of, run.checkpoint)
    experiment = _on_mesh(experiment, mesh)
    file = run.run_dir / f"evaluation-{run.checkpoint}-{num_samples}.json"
    unfinished = file.with_suffix(".partial.npz")
    how = {"num_samples": num_samples, "file": unfinished}
    result = evaluate(experiment, params, **how)
    result |= {"checkpoint": run.checkpoint, **experiment.about}
    runs.write_json(file, result)
    # The next estimate is from the start.
    for part in run.run_dir.glob(f"{unfinished.stem}*"):
        part.unlink()
    _print_result(result, file)


def _anneal(
    of: Of,
    run: Run,
    num_images: int = 100,
    num_steps: int = 1000,
    num_chains: int = 16,
) -> None:
    """Check log p(x) by annealed importance sampling, and that by simulated images.

    Args:
        num_images: The first of the test images.
        num_steps: Temperatures between the prior and the posterior.
        num_chains: Chains per image.
    """
    experiment, params = opened(run.run_dir, *of, run.checkpoint)
    result = diagnosis.annealed(
        experiment,
        params,
        num_images=num_images,
        num_steps=num_steps,
        num_chains=num_chains,
    )
    how = f"{run.checkpoint}-{num_images}-steps{num_steps}-chains{num_chains}"
    _store(run.run_dir / f"annealed-{how}.json", result)


def _gaps(
    of: Of,
    run: Run,
    num_images: int = 100,
    num_samples: int = 5000,
) -> None:
    """Split log p(x) - ELBO into what q's family and what the encoder lacks.

    Args:
        num_images: The first of the test images.
        num_samples: Importance samples per image.
    """
    experiment, params = opened(run.run_dir, *of, run.checkpoint)
    result = diagnosis.gaps(
        experiment, params, num_images=num_images, num_samples=num_samples
    )
    file = f"gaps-{run.checkpoint}-{num_images}-samples{num_samples}.json"
    _store(run.run_dir / file, result)


def _sample(
    of: Of,
    run: Run,
    num: int = 100,
    seed: int = 0,
) -> None:
    """Draw images from a run into its folder.

    Args:
        num: Number of images.
        seed: Seed of the draws.
    """
    _check_sizes({"num": num, "seed": seed})
    at_least(1, num=num)
    experiment, params = opened(run.run_dir, *of, run.checkpoint)
    file = run.run_dir / f"samples-{run.checkpoint}-{num}-seed{seed}.png"
    runs.write_picture(file, sample_figure(experiment, params, num=num, seed=seed))
    print(file)


def _interpolate(
    of: Of,
    run: Run,
    rows: int = 8,
    points: int = 10,
    path: Literal["spherical", "linear"] = "spherical",
) -> None:
    """Draw paths between test images into the folder of a run.

    Args:
        rows: Number of paths.
        points: Images on each path, its ends included.
        path: Great circles, or straight lines, between posterior means.
    """
    if rows < 1 or points < 2:
        raise ValueError(f"needed: rows >= 1, points >= 2, got {rows}, {points}")
    experiment, params = opened(run.run_dir, *of, run.checkpoint)
    file = run.run_dir / f"interpolations-{path}-{run.checkpoint}-{rows}x{points}.png"
    chosen = {"spherical": model.spherical, "linear": model.linear}[path]
    how = {"rows": rows, "points": points, "path": chosen}
    runs.write_picture(file, interpolation_figure(experiment, params, **how))
    print(file)


@contextlib.contextmanager
def _joined(join: tuple[str, int, int] | str | None) -> Iterator[None]:
    if join is None:
        yield
        return
    place = (None, None, None) if join == "auto" else join
    with sharding.joined(*place), clear_errors():
        yield


def _on_mesh(experiment: Experiment, mesh: Size | None) -> Experiment:
    """The experiment, split as asked, or over all devices of several processes."""
    if mesh is not None:
        return experiment._replace(mesh=sharding.mesh(*mesh))
    if jax.process_count() > 1:
        return experiment._replace(mesh=sharding.mesh())
    return experiment


def _store(file: Path, result: dict[str, Any]) -> None:
    runs.write_json(file, result)
    print(json.dumps(result, indent=2), file, sep="\n")


def _print_result(result: dict[str, Any], where: Path) -> None:
    try:
        text = _summary(result)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"the result in {where} is of another version ({error}): delete "
            "result.json to evaluate again, or pass another --run-dir"
        ) from error
    print(text, where, sep="\n")


def _summary(result: dict[str, Any]) -> str:
    return (
        f"test -log p(x) = {result['nll']:.2f} +- {result['nll_stderr']:.2f} nats "
        f"({result['num_test']} images, {result['num_samples']} samples, binarize "
        f"{result['binarize']})\n"
        f"ELBO {result['elbo']:.2f} = -(rate {result['rate']:.2f} + distortion "
        f"{result['distortion']:.2f}), {result['active_units']} active units"
    )
