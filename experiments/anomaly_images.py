"""What the anomaly experiments on images share: models, training, scores, judgement.

For `experiments.anomaly_oneclass` and `experiments.anomaly_ood`.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vi_jax import (
    evaluation,
    likelihoods,
    models,
    networks,
    objectives,
    posteriors,
    priors,
    resumable,
    runs,
    training,
)
from vi_jax.data import batches
from vi_jax.data.images import divide_by_255
from vi_jax.evaluator import over_images
from vi_jax.model import Model, analytic_terms
from vi_jax.resumable import Training
from vi_jax.types import Array, Component, Key, Params

SCORES = "scores.npz"
ELBO, LOG_PX = "-ELBO", "-log p(x)"
RATIO = "likelihood ratio"
CHEAP = {
    "reconstruction error": evaluation.reconstruction_error,
    "reconstruction probability": evaluation.reconstruction_probability,
    ELBO: evaluation.negative_elbo,
    "latent distance": evaluation.latent_distance,
}


def image_vae(
    likelihood: Callable[[Component], Component],
    output_bias: Array,
    *,
    latents: int,
    hidden: int,
) -> Model:
    """784-hidden-latents and back, ReLU, of flat images."""
    encoder = networks.mlp([hidden], 2 * latents, activation=jax.nn.relu)
    decoder = networks.mlp(
        [hidden], len(output_bias), activation=jax.nn.relu, output_bias=output_bias
    )
    prior = priors.standard_normal(latents)
    return models.vae(prior, posteriors.normal(encoder), likelihood(decoder))


def bernoulli_vae(mean: np.ndarray, **sizes: int) -> Model:
    """Of grey values x as probabilities of ink; mean [D] of the training images.

    log p(x | z) is linear in x, so that every bound is a lower bound on the mean of
    log p(b) over b ~ Bernoulli(x).
    """
    return image_vae(likelihoods.bernoulli, likelihoods.bias_from_mean(mean), **sizes)


def logistic_vae(mean: np.ndarray, **sizes: int) -> Model:
    """Of the 256 values of a pixel, so that -log p(x) is the length of a code."""
    return image_vae(likelihoods.discretized_logistic, mean, **sizes)


class Recipe(NamedTuple):
    """How a model is trained."""

    epochs: float
    batch_size: int
    learning_rate: float
    seed: int


class Scorers(NamedTuple):
    """(params, x uint8 [n, D]) -> the scores of each image by name, [n] each.

    Compiled once, for the parameters of all models that differ in nothing else.
    """

    cheap: Callable
    dear: Callable  # a hundred times as long, so for a part of the images


def scorers(model: Model, num_samples: int, regret_steps: int) -> Scorers:
    dear = {
        LOG_PX: functools.partial(
            evaluation.negative_log_likelihood, num_samples=num_samples
        ),
        "likelihood regret": functools.partial(
            evaluation.likelihood_regret, num_steps=regret_steps, step_samples=2
        ),
    }
    return Scorers(_scorer(model, CHEAP), _scorer(model, dear))


def _scorer(model: Model, scores: Mapping[str, Callable]) -> Callable:
    def one(params: Params, key: Key, x: Array, c: None) -> dict[str, Array]:
        del c
        keys = jax.random.split(key, len(scores))
        return {
            name: score(model, params, key, x)
            for key, (name, score) in zip(keys, scores.items(), strict=True)
        }

    return over_images(one, batch_size=50, progress=False)


def plan_of(
    model: Model, train: np.ndarray, valid: np.ndarray, score: Scorers, recipe: Recipe
) -> Training:
    """Training on images uint8 [n, D], with the ELBO of others at three checkpoints."""
    num_steps = batches.steps_per_run(
        len(train), epochs=recipe.epochs, batch_size=recipe.batch_size
    )
    bound = lambda params: -float(score.cheap(params, valid)[ELBO].mean())
    return Training(
        objectives.batch_loss(model, preprocess=divide_by_255, terms=analytic_terms),
        training.adam(recipe.learning_rate, num_steps=num_steps),
        batches.shuffled(
            {"image": train}, batch_size=recipe.batch_size, seed=recipe.seed
        ),
        seed=recipe.seed,
        num_steps=num_steps,
        scan_steps=200,
        checkpoint_steps=-(-num_steps // 3),
        validate=lambda params: {"valid_bound": bound(params)},
    )


def trained(
    plan: Training, model: Model, num_pixels: int, folder: Path
) -> tuple[Params, dict[str, Any]]:
    """The parameters, from where `folder` has them, and what there is to say."""
    params = jax.jit(model.init)(resumable.init_key(plan.seed), jnp.zeros(num_pixels))
    resumable.check(plan, params)
    state = training.init_state(params, plan.optimizer)
    return resumable.train(plan, state, folder)


def mean_of(images: np.ndarray) -> np.ndarray:
    """The mean of images uint8 [n, D], float32 [D] in [0, 1]."""
    return (images.mean(0) / 255).astype(np.float32)


def judged(
    normal: Mapping[str, np.ndarray], anomalous: Mapping[str, np.ndarray], num_part: int
) -> dict[str, dict[str, float]]:
    """AUROC and AUPRC, anomalies the positives, of scores of both kinds, [n] and [m].

    `auroc_part` is of the first num_part of each, on which all scores can be compared.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    def rates(n: np.ndarray, a: np.ndarray) -> tuple[float, float]:
        truth = np.repeat([0, 1], [len(n), len(a)])
        # The least float for -inf and so on: sklearn takes finite scores only.
        scores = np.nan_to_num(np.concatenate([n, a]).astype(np.float64))
        return (
            float(roc_auc_score(truth, scores)),
            float(average_precision_score(truth, scores)),
        )

    found = {}
    for name in normal:
        auroc, auprc = rates(normal[name], anomalous[name])
        part = rates(normal[name][:num_part], anomalous[name][:num_part])
        found[name] = {"auroc": auroc, "auprc": auprc, "auroc_part": part[0]}
    return found


class Background(NamedTuple):
    """A model of ink that knows its neighbours and nothing else."""

    ink: np.ndarray  # [16], P(ink) given which of four pixels before it are ink
    shape: tuple[int, ...]  # (h, w, c) of an image


def fit_background(images: np.ndarray, shape: tuple[int, ...]) -> Background:
    """By the mean of pixel / 255 in each context, of images uint8 [n, D]."""
    context = _contexts(images, shape).ravel()
    ink = np.bincount(context, images.ravel() / 255, minlength=16)
    # Half a pixel of each kind more, so that nothing is impossible.
    return Background((ink + 0.5) / (np.bincount(context, minlength=16) + 1), shape)


def background_nats(background: Background, images: np.ndarray) -> np.ndarray:
    """-log p(x) of images uint8 [n, D] under the background, [n].

    Grey values count as probabilities of ink, as they do in `bernoulli_vae`. The ratio
    log p(x | background) - log p(x) is high where x has the strokes of the training
    images but not their form: it no longer counts for normal that x has little ink.
    Ref: Ren et al. 2019, arXiv:1906.02845, whose background is a second model that is
    trained on noisy images.
    """
    p, x = background.ink[_contexts(images, background.shape)], images / 255
    return -np.sum(x * np.log(p) + (1 - x) * np.log(1 - p), 1)


def _contexts(images: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The number, 0 to 15, of the pixels to the left and above that are ink, [n, D]."""
    h, w, _ = shape
    ink = images.reshape(-1, *shape) >= 128
    ink = np.pad(ink, ((0, 0), (1, 0), (1, 1), (0, 0))).astype(np.uint8)
    before = ((1, 0), (0, 1), (0, 0), (0, 2))  # left, above, and its two sides
    number = sum(ink[:, i : i + h, j : j + w] << k for k, (i, j) in enumerate(before))
    return number.reshape(images.shape)


def code_lengths(images: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`evaluation.code_length` of images uint8 [n, D] of `shape`, nats [n]."""
    return np.array([evaluation.code_length(x.reshape(shape)) for x in images])


def save_scores(path: Path, scores: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Scores by kind of image and by name, as arrays "kind: name" of an .npz."""
    flat = {f"{k}: {n}": a for k, named in scores.items() for n, a in named.items()}
    with runs.whole_file(path) as file:
        np.savez(file, **flat)


def load_scores(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """What `save_scores` saved."""
    found = {}
    with np.load(path, allow_pickle=False) as archive:
        for both in archive.files:
            kind, name = both.split(": ", 1)
            found.setdefault(kind, {})[name] = archive[both]
    return found
