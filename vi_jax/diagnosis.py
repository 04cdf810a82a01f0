"""How far a number that `evaluate` reports can be trusted, and what it lacks."""

from typing import Any

import jax
import numpy as np

from vi_jax.checks import at_least
from vi_jax.evaluation import ais, elbo_gaps, log_likelihood, reverse_ais, tune
from vi_jax.evaluator import over_images
from vi_jax.experiment import Experiment
from vi_jax.models import at_context
from vi_jax.types import Array, Key, Params

IMAGES_AT_ONCE = 20


def annealed(
    experiment: Experiment,
    params: Params,
    *,
    num_images: int = 100,
    num_steps: int = 1000,
    num_chains: int = 16,
    num_samples: int = 5000,
) -> dict[str, Any]:
    """log p(x) of the first test images by annealing beside importance sampling, nats.

    On as many images drawn from the model, where the posterior can be entered from its
    end too, annealing gives a lower and an upper bound in expectation: their `gap` says
    how far this annealing is from log p(x). Step sizes are tuned per image, in a run of
    their own. Standard errors are those over images, `difference_mc_stderr` the part
    of it that is Monte Carlo error: nan with one chain or one sample.
    Raises ValueError where a number is below 1, and where latents are discrete or no
    one array.
    """
    at_least(1, num_images=num_images, num_samples=num_samples)
    how = {"num_chains": num_chains}

    def of_data(params: Params, key: Key, x: Array, c: Array | None):
        model = at_context(experiment.model, c)
        key_tune, key_ais, key_is = jax.random.split(key, 3)
        found = tune(model, params, key_tune, x, num_steps=num_steps, **how)
        lower = ais(model, params, key_ais, x, found, **how)
        sampled = log_likelihood(model, params, key_is, x, num_samples=num_samples)
        return {
            "ais": lower.log_px,
            "importance_sampling": sampled.log_px,
            "difference": lower.log_px - sampled.log_px,
            "mc_variance": lower.stderr**2 + sampled.stderr**2,
            "acceptance": lower.acceptance,
        }

    def of_model(params: Params, key: Key, _: Array, c: Array | None):
        model = at_context(experiment.model, c)
        key_z, key_x, key_tune, key_up, key_down = jax.random.split(key, 5)
        z = model.prior(params).sample(key_z)
        x = model.likelihood(params, z).sample(key_x)
        found = tune(model, params, key_tune, x, num_steps=num_steps, **how)
        lower = ais(model, params, key_up, x, found, **how).log_px
        upper = reverse_ais(model, params, key_down, x, z, found, **how).log_px
        return {"lower": lower, "upper": upper, "gap": upper - lower}

    x, contexts = _first(experiment, num_images)
    size = min(IMAGES_AT_ONCE, len(x))
    each = lambda one, unit, seed: over_images(
        one, batch_size=size, seed=seed, unit=unit
    )(params, x, contexts)
    data = each(of_data, "test image", 0)
    drawn = each(of_model, "simulated image", 1)
    mc = float(np.sqrt(np.sum(data.pop("mc_variance"))) / len(x))
    return {
        "num_images": len(x),
        "num_steps": num_steps,
        "num_chains": num_chains,
        "num_samples": num_samples,
        "test": _means(data) | {"difference_mc_stderr": mc},
        "largest_difference": float(np.max(np.abs(data["difference"]))),
        "simulated": _means(drawn),
    }


def gaps(
    experiment: Experiment,
    params: Params,
    *,
    num_images: int = 100,
    num_samples: int = 5000,
    num_steps: int = 1000,
) -> dict[str, Any]:
    """log p(x) - ELBO of the first test images, split by `elbo_gaps`, nats.

    Standard errors are those over images. Raises ValueError where a number is below 1
    or the encoder's q is not a diagonal Gaussian.
    """
    at_least(1, num_images=num_images)

    def one(params: Params, key: Key, x: Array, c: Array | None):
        found = elbo_gaps(
            at_context(experiment.model, c),
            params,
            key,
            x,
            num_samples=num_samples,
            num_steps=num_steps,
        )
        return found._asdict()

    x, contexts = _first(experiment, num_images)
    size = min(IMAGES_AT_ONCE, len(x))
    found = over_images(one, batch_size=size, seed=2)(params, x, contexts)
    found.pop("log_px_stderr")
    return {
        "num_images": len(x),
        "num_samples": num_samples,
        "num_steps": num_steps,
        **_means(found),
    }


def _first(experiment: Experiment, n: int) -> tuple[np.ndarray, Array | None]:
    """The first n test images, and their contexts."""
    label = experiment.data.test_label
    contexts = experiment.contexts(None if label is None else label[:n])
    return experiment.data.test[:n], contexts


def _means(found: dict[str, np.ndarray]) -> dict[str, float]:
    """The mean of each, and its standard error."""
    n = len(next(iter(found.values())))
    error = lambda a: float(np.std(a, ddof=1) / n**0.5) if n > 1 else float("nan")
    return {
        name: value
        for key, a in found.items()
        for name, value in ((key, float(np.mean(a))), (f"{key}_stderr", error(a)))
    }
