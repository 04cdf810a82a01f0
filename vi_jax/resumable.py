"""Training into a run folder: logged, validated, and resumed where it was stopped.

The experiments use it, and so may a script of one's own, with any loss, batches and
`validate`:

training = resumable.Training(loss, optimizer, batches, validate=..., ...)
resumable.check(training, params)
params, about = resumable.train(training, init_state(params, optimizer), "runs/mine")
"""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from vi_jax import runs, sharding
from vi_jax.checkpoints import Checkpoints, open_checkpoints
from vi_jax.checks import at_least
from vi_jax.early_stopping import EarlyStopping, stops
from vi_jax.training import TrainState, averaged_params, fit
from vi_jax.types import Batches, Key, LossFn, Metrics, Params


class Training(NamedTuple):
    """All that the training of one run needs."""

    loss: LossFn
    optimizer: optax.GradientTransformation
    batches: Batches
    seed: int
    num_steps: int
    scan_steps: int  # steps in one dispatch
    checkpoint_steps: int  # steps from one checkpoint, with its validation, to the next
    validate: Callable[[Params], dict[str, Any]]  # -> what is logged with a checkpoint
    score: str = "valid_bound"  # the name in it that counts: higher is better
    earlier: tuple[tuple[LossFn, int], ...] = ()  # (loss, its last step), before `loss`
    early_stopping: EarlyStopping | None = None  # and the best parameters then
    mesh: Mesh | None = None  # to split examples and samples over

    @property
    def which(self) -> str:
        """The checkpoint that is the outcome: "best" with early stopping, or "last"."""
        return "best" if self.early_stopping else "last"


def init_key(seed: int) -> Key:
    """For the initial parameters, away from the steps' keys, fold_in(key(seed), t)."""
    return jax.random.fold_in(jax.random.key(seed), 2**32 - 1)


def check(training: Training, params: Params) -> None:
    """Raise ValueError for wrong use, by one trace of the losses, at once."""
    steps = ("num_steps", "scan_steps", "checkpoint_steps")
    at_least(1, **{name: getattr(training, name) for name in steps})
    if training.num_steps >= 2**31:  # which TrainState.step counts in 32 bits
        raise ValueError("num_steps must be below 2^31: ask for fewer epochs")
    if not callable(training.validate):
        raise ValueError("validate must be a function, params -> what is logged")
    if training.early_stopping:
        stops(training.early_stopping, ())
    stream = training.batches
    for loss in (training.loss, *(loss for loss, _ in training.earlier)):
        trace = lambda params, key, resident, loss=loss: loss(
            params, key, sharding.split(stream.gather(resident, stream.at(0)), "data")
        )
        with sharding.over(training.mesh):
            jax.eval_shape(trace, params, jax.random.key(0), stream.resident)


def train(
    training: Training, state: TrainState, run_dir: str | Path
) -> tuple[Params, dict[str, Any]]:
    """Train in `run_dir`, from its last checkpoint or from `state`.

    Returns the parameters to use (averaged ones where the optimizer has them) and what
    a result says of the training. The folder gets metrics.jsonl and checkpoints, and
    is that of one setting: of the loss, the data and the optimizer nothing is compared
    (`runs.claim(run_dir, name, knobs)` around it compares a dataclass of knobs).
    Raises NonFiniteError from `fit`, OSError where the folder cannot be written, and
    ValueError where it is of another seed or of more steps than num_steps, or where the
    best checkpoint is the outcome, and lost.
    """
    run_dir = Path(run_dir)
    checkpoints = open_checkpoints(run_dir / "checkpoints")
    _require_same_seed(run_dir / "training.json", training.seed)
    state, records = _train(training, state, run_dir, checkpoints)
    num_steps = int(state.step)
    if training.which == "best":
        state = checkpoints.restore(state, "best")
        if state is None:
            raise ValueError(
                f"the best checkpoint of {run_dir} is lost: delete "
                f"{run_dir / 'checkpoints'} to train again, or use the last one "
                "(`evaluate --checkpoint last`, where the experiment has it)"
            )
    about = {
        # No record where metrics.jsonl was lost after the last step.
        "train_seconds": round(records[-1]["seconds"] if records else 0.0, 1),
        "steps": num_steps,
        "skipped_steps": sum(r.get("skipped", 0) for r in records),
        "checkpoint": training.which,
        "seed": training.seed,
    }
    return sharding.local(averaged_params(state), training.mesh), about


def _train(
    training: Training, state: TrainState, run_dir: Path, checkpoints: Checkpoints
) -> tuple[TrainState, list[Metrics]]:
    state = checkpoints.restore(state) or state
    step = int(state.step)
    if step > training.num_steps:
        raise ValueError(
            f"{run_dir} has {step} steps already, more than the {training.num_steps} "
            "asked for: pass another folder"
        )
    if step:
        print(f"resuming {run_dir} from step {step}", file=sys.stderr)
    records = [r for r in runs.read_metrics(run_dir) if r["step"] <= step]
    start = time.perf_counter() - max([r["seconds"] for r in records], default=0.0)
    name = training.score
    scores = [(r["step"], r[name]) for r in records if name in r]
    rule = training.early_stopping or EarlyStopping(training.num_steps, 0)
    every, last = training.checkpoint_steps, training.num_steps
    with (
        runs.metrics_log(run_dir, step) as log,
        runs.progress_bar(last, "step", initial=step) as bar,
    ):
        steps = _steps(training, state)
        while not stops(rule, scores) and (new := next(steps, None)):
            state, metrics = new
            step, previous = int(state.step), step
            due = step // every > previous // every or step == last
            if due:
                params = sharding.local(averaged_params(state), training.mesh)
                metrics |= training.validate(params)
                if name not in metrics:
                    raise ValueError(f"validate must give the score {name!r}")
                scores.append((step, metrics[name]))
            seconds = time.perf_counter() - start
            records.append({"step": step, "seconds": seconds, **metrics})
            log(records[-1])
            if due:
                counts = step >= rule.start
                checkpoints.save(state, scores[-1][1] if counts else -np.inf)
            bar.update(step - previous)
            shown = "bound" if "bound" in metrics else "loss"
            bar.set_postfix({shown: f"{metrics[shown]:.2f}"}, refresh=False)
    return state, records


def _require_same_seed(path: Path, seed: int) -> None:
    if path.exists():
        before = runs.read_json(path).get("seed")
        if before != seed:
            raise ValueError(
                f"{path.parent} is a training with seed {before}, not {seed}: pass "
                "another folder"
            )
    elif sharding.is_first():
        runs.write_json(path, {"seed": seed})


def _steps(
    training: Training, state: TrainState
) -> Iterator[tuple[TrainState, Metrics]]:
    """`fit`, through the stages of the training."""
    for loss, last in (*training.earlier, (training.loss, training.num_steps)):
        steps = fit(
            loss,
            training.optimizer,
            state,
            training.batches,
            seed=training.seed,
            num_steps=last,
            scan_steps=training.scan_steps,
            mesh=training.mesh,
        )
        for new, metrics in steps:
            yield new, metrics
            state = new
