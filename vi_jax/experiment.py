"""From the description of an experiment to a run folder with a result and pictures.

An experiment is a frozen dataclass of knobs and a function from it to an `Experiment`;
`commands.main` gives it a command line.
"""

import functools
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vi_jax import figures, resumable, runs, sharding
from vi_jax.checks import at_least
from vi_jax.data.batches import steps_per_run
from vi_jax.data.images import Binarize, ImageData, image_data
from vi_jax.distributions import bits_per_dim
from vi_jax.early_stopping import EarlyStopping
from vi_jax.evaluation import active_units, class_log_joints, collapse_report
from vi_jax.evaluation.psis import RELIABLE_PARETO_K
from vi_jax.evaluator import EVALUATION_SEED, make_evaluator, over_images
from vi_jax.model import Model
from vi_jax.models import Conditional, at_context
from vi_jax.resumable import Training
from vi_jax.training import TrainState, init_state
from vi_jax.types import Array, Key, LossFn, Metrics, Params

VALID_SAMPLES = 100


class Experiment(NamedTuple):
    """All that a run needs."""

    model: Model | Conditional  # given the label, one-hot
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
    num_classes: int = 0  # of the labels, where the model is conditional
    measure: Callable[[Params], dict[str, Any]] = lambda params: {}  # more to report
    discrete: bool = False  # whether the likelihood is a probability of 256 values
    mesh: sharding.Mesh | None = None  # to split examples and samples over

    def contexts(self, label: np.ndarray | None) -> Array | None:
        """What the model is given beside each x, [n, c]; None where it takes x only."""
        return jax.nn.one_hot(label, self.num_classes) if self.num_classes else None


def images_of(knobs: Any, *, binarize: Binarize | None = None) -> ImageData:
    """`image_data` of an experiment's knobs.

    They are dataset, batch_size, seed, data_dir (empty for the usual place) and
    binarize, unless given here. Raises ValueError and OSError as `image_data` does.
    """
    return image_data(
        knobs.dataset,
        binarize=binarize or knobs.binarize,
        batch_size=knobs.batch_size,
        seed=knobs.seed,
        data_dir=knobs.data_dir or None,
    )


def on_images(
    knobs: Any,
    data: ImageData,
    model: Model | Conditional,
    loss: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    about: dict[str, Any],
    **more: Any,
) -> Experiment:
    """The `Experiment` of knobs that count in epochs.

    They are those of `images_of`, epochs, checkpoint_epochs, scan_steps and
    eval_samples. `about` joins what is said of the data; `more` are other fields.
    """
    steps = functools.partial(
        steps_per_run, data.num_train, batch_size=knobs.batch_size
    )
    return Experiment(
        model,
        loss,
        optimizer,
        data,
        seed=knobs.seed,
        num_steps=steps(epochs=knobs.epochs),
        scan_steps=knobs.scan_steps,
        checkpoint_steps=steps(epochs=knobs.checkpoint_epochs),
        num_eval_samples=knobs.eval_samples,
        about={"dataset": knobs.dataset, "num_train": data.num_train, **about},
        **more,
    )


def initial_state(experiment: Experiment) -> TrainState:
    """The state at step 0, after one trace of the loss.

    The trace makes any wrong use an error here, before a run folder exists.
    Raises ValueError for it, and for a number of steps or samples below 1.
    """
    at_least(1, num_eval_samples=experiment.num_eval_samples)
    x = jnp.zeros(experiment.data.mean.shape, jnp.float32)
    c = experiment.contexts(0)
    key = resumable.init_key(experiment.seed)
    params = at_context(experiment.model, c).init(key, x)
    resumable.check(_training(experiment), params)
    return init_state(params, experiment.optimizer)


def _training(experiment: Experiment) -> Training:
    return Training(
        experiment.loss,
        experiment.optimizer,
        experiment.data.train,
        seed=experiment.seed,
        num_steps=experiment.num_steps,
        scan_steps=experiment.scan_steps,
        checkpoint_steps=experiment.checkpoint_steps,
        validate=_validation(experiment),
        earlier=experiment.earlier,
        early_stopping=experiment.early_stopping,
        mesh=experiment.mesh,
    )


def run(experiment: Experiment, run_dir: Path, *, name: str, knobs) -> dict[str, Any]:
    """Train, evaluate and draw into `run_dir`, going on from where it was left.

    Returns the content of result.json. A finished folder is left as it is. Warns where
    a picture cannot be drawn.
    Raises ValueError where the folder is a run of other knobs or another data file,
    OSError where it cannot be written or another process uses it, NonFiniteError from
    `fit`.
    """
    run_dir = Path(run_dir)
    state = initial_state(experiment)
    work = lambda: _train_and_evaluate(experiment, state, run_dir)
    return runs.once(run_dir, name, knobs, work)


def _train_and_evaluate(
    experiment: Experiment, state: TrainState, run_dir: Path
) -> dict[str, Any]:
    params, about = resumable.train(_training(experiment), state, run_dir)
    num = experiment.num_eval_samples
    file = run_dir / f"test-{num}.npz"
    result = evaluate(experiment, params, num_samples=num, file=file)
    result |= experiment.measure(params)
    if sharding.is_first():
        _draw(experiment, params, run_dir)
    return result | about | experiment.about


def _draw(experiment: Experiment, params: Params, run_dir: Path) -> None:
    try:
        drawn = figures.pictures(experiment, params, runs.read_metrics(run_dir))
        for name, picture in drawn.items():
            runs.write_picture(run_dir / name, picture)
    except ValueError as error:  # which must not cost the run its numbers
        warnings.warn(f"{run_dir} lacks pictures: {error}", stacklevel=2)


def _validation(experiment: Experiment) -> Callable[[Params], dict[str, Any]]:
    """params -> what is logged of the validation images: bound and latents."""
    model, x = experiment.model, experiment.data.valid
    contexts = experiment.contexts(experiment.data.valid_label)
    bound = make_evaluator(model, num_samples=VALID_SAMPLES, mesh=experiment.mesh)

    @jax.jit
    def latents(params: Params, x: Array) -> Metrics:
        found = jax.vmap(lambda x: model.posterior(params, x))(x)
        key = jax.random.key(EVALUATION_SEED)
        return collapse_report(key, found, model.prior(params))

    def validate(params: Params) -> dict[str, Any]:
        found = {"valid_bound": np.mean(bound(params, x, contexts).log_px)}
        # Of one image nothing varies; given labels there is no one prior to compare to.
        if len(x) > 1 and contexts is None:
            found |= jax.device_get(latents(params, x.astype(np.float32) / 255))
        return {name: value.tolist() for name, value in found.items()}

    return validate


def evaluate(
    experiment: Experiment,
    params: Params,
    *,
    num_samples: int,
    file: Path | None = None,
) -> dict[str, Any]:
    """The test log-likelihood and what belongs beside it, in nats per example.

    `nll_stderr` is the standard error over test images, `nll_mc_stderr` the part of it
    that more importance samples would remove. Of a conditional model all is given the
    label, and `bayes_accuracy` is that of Bayes' rule over its classes. An .npz `file`
    gets log p(x) of each image; after a crash the same call goes on from it, and
    `eval_seconds` are those since.
    """
    start = time.perf_counter()
    x, contexts = experiment.data.test, experiment.contexts(experiment.data.test_label)
    model = experiment.model
    how = {"progress": True, "mesh": experiment.mesh}
    evaluator = make_evaluator(model, num_samples=num_samples, **how)
    found = evaluator(params, x, contexts, file=file)
    _warn_of_heavy_tails(found.khat)
    bad = ~np.isfinite(found.log_px)
    if bad.any():
        raise FloatingPointError(
            f"log p(x) of test image {bad.argmax()} is {found.log_px[bad.argmax()]} "
            f"({bad.sum()} such images): the parameters are not usable"
        )
    mean = lambda params, key, x, c: at_context(model, c).posterior(params, x).mean()
    means = over_images(mean, batch_size=1000, progress=False)(params, x, contexts)
    active = [int(active_units(m).sum()) for m in jax.tree.leaves(means)]
    classified = {}
    if experiment.num_classes:
        beside = file and file.with_name(f"{file.stem}-classes.npz")
        classified = _classified(experiment, params, num_samples, beside)
    n, log_px = len(x), np.mean(found.log_px, dtype=np.float64)
    bits = {}
    if experiment.discrete:
        bits["bits_per_dim"] = float(bits_per_dim(log_px, x[0].size))
    stderr = np.std(found.log_px, ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return {
        "nll": float(-log_px),
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
        **classified,
        **bits,
        "eval_seconds": round(time.perf_counter() - start, 1),
        "split": "test",
        "num_test": n,
    }


def _classified(
    experiment: Experiment, params: Params, num_samples: int, file: Path | None
) -> dict[str, Any]:
    """How Bayes' rule classifies the test images, at the cost of their log p(x | y)."""
    of_each = max(1, num_samples // experiment.num_classes)
    even = np.full(experiment.num_classes, -np.log(experiment.num_classes))

    def one(params: Params, key: Key, x: Array, c: None) -> Array:
        return class_log_joints(
            experiment.model, even, params, key, x, num_samples=of_each
        )

    over = over_images(one, progress=True, mesh=experiment.mesh)
    log_joints = over(params, experiment.data.test, file=file)
    right = np.argmax(log_joints, 1) == experiment.data.test_label
    return {"bayes_accuracy": float(right.mean()), "bayes_samples_per_class": of_each}


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
