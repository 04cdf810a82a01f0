"""Images with few labels, and what a semi-supervised model takes for them.

For `experiments.mnist_ssvae`: the pixels themselves, or features of M1, a VAE of all
the images that sees no label.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vi_jax import (
    estimators,
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
from vi_jax.data import batches, labels as few_labels, load
from vi_jax.distributions import Normal
from vi_jax.evaluator import make_evaluator
from vi_jax.model import Model
from vi_jax.resumable import Training
from vi_jax.types import Array, Batch, Component, Key, Params


class Data(NamedTuple):
    """The images of the three splits, bytes [n, D], and their labels [n]."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    train_label: np.ndarray
    valid_label: np.ndarray
    test_label: np.ndarray
    shape: tuple[int, ...]  # of one image
    num_classes: int


class Inputs(NamedTuple):
    """What a semi-supervised model takes for an image: pixels, or features of M1."""

    columns: dict[str, np.ndarray]  # of the training images
    preprocess: Callable[[Key, Batch], Array]  # in jit, a new draw at each access
    likelihood: Component  # p(x | y, z)
    classified: Callable[[np.ndarray], Array]  # bytes [n, D] -> what q(y | x) sees
    modelled: Callable[[np.ndarray], Array]  # bytes [n, D] -> x
    as_image: Callable[[Array], Array]  # the mean of x -> that of its pixels


def read(dataset: str, data_dir: str) -> Data:
    """The data, the last sixth of the training images held out for validation.

    Raises ValueError where there are no labels, or one is not among 0, 1, ...
    """
    train, test = (
        load(dataset, split, data_dir=data_dir or None) for split in ("train", "test")
    )
    if train.label is None or test.label is None:
        raise ValueError(f"{dataset} has no labels, which are needed here")
    num_classes = int(train.label.max()) + 1
    for part in (train, test):
        few_labels.check_labels(part.label, num_classes)
    cut = len(train.image) - len(train.image) // 6
    flat = lambda image: image.reshape(len(image), -1)
    return Data(
        flat(train.image[:cut]),
        flat(train.image[cut:]),
        flat(test.image),
        train.label[:cut],
        train.label[cut:],
        test.label,
        train.image.shape[1:],
        num_classes,
    )


relu_mlp = functools.partial(networks.mlp, activation=jax.nn.relu)


def pixels(data: Data, hidden: int) -> Inputs:
    """The images themselves: binarized anew for the model, grey for the classifier."""
    bias = likelihoods.bias_from_mean(
        jnp.asarray(data.train.mean(0) / 255, jnp.float32)
    )
    network = relu_mlp([hidden], bias.size, output_bias=bias)
    binary = lambda image: batches.binarize_once(image, mode="static") / np.float32(255)
    return Inputs(
        {"image": data.train},
        lambda key, batch: batches.binarize_dynamic(key, batch["image"]),
        likelihoods.bernoulli(network),
        classified=lambda image: image / np.float32(255),
        modelled=binary,
        as_image=lambda x: x,
    )


@dataclasses.dataclass(frozen=True)
class M1Knobs:
    """The knobs of M1, all of them part of what its folder stands for."""

    epochs: float
    dataset: str
    data_dir: str
    latents: int = 50
    hidden: int = 300
    batch_size: int = 500
    learning_rate: float = 4e-3


def train_m1(knobs: M1Knobs, data: Data, run_dir: Path) -> tuple[Model, Params]:
    """The VAE of the images, trained into its folder or read from it."""
    mean = jnp.asarray(data.train.mean(0) / 255, jnp.float32)
    bias = likelihoods.bias_from_mean(mean)
    mlp = functools.partial(networks.mlp, [knobs.hidden] * 2)
    model = models.vae(
        priors.standard_normal(knobs.latents),
        posteriors.normal(mlp(2 * knobs.latents)),
        likelihoods.bernoulli(mlp(mean.size, output_bias=bias)),
    )
    batch_size = min(knobs.batch_size, len(data.train))
    steps = functools.partial(
        batches.steps_per_run, len(data.train), batch_size=batch_size
    )
    x = batches.binarize_once(data.valid[:400], mode="static")
    bound = make_evaluator(model, num_samples=50)
    num_steps = steps(epochs=knobs.epochs)
    plan = Training(
        objectives.batch_loss(
            model,
            preprocess=lambda key, batch: batches.binarize_dynamic(key, batch["image"]),
            estimator=estimators.stl,
        ),
        training.soap(knobs.learning_rate, num_steps=num_steps),
        batches.shuffled({"image": data.train}, batch_size=batch_size, seed=0),
        seed=0,
        num_steps=num_steps,
        scan_steps=100,
        checkpoint_steps=steps(epochs=10),
        validate=lambda params: {"valid_bound": float(bound(params, x).log_px.mean())},
    )
    params = model.init(resumable.init_key(plan.seed), mean)
    resumable.check(plan, params)
    with runs.claim(run_dir, "mnist_ssvae_m1", knobs):
        runs.record_start(run_dir, knobs)
        state = training.init_state(params, plan.optimizer)
        return model, resumable.train(plan, state, run_dir)[0]


def features(data: Data, hidden: int, vae: Model, params: Params) -> Inputs:
    """M1's q(z | x) of the grey images: drawn from anew, or its mean."""
    q = jax.jit(jax.vmap(lambda x: vae.posterior(params, x.astype(jnp.float32) / 255)))
    of_train = q(data.train)
    active = np.asarray(evaluation.active_units(of_train.loc))
    loc, scale = of_train.loc[:, active], of_train.scale[:, active]
    mean = lambda image: q(image).loc[:, active]

    def decode(x: Array) -> Array:
        z = jnp.zeros(active.size).at[np.flatnonzero(active)].set(x)
        return vae.likelihood(params, z).mean()

    return Inputs(
        {"loc": np.asarray(loc), "scale": np.asarray(scale)},
        lambda key, batch: Normal(batch["loc"], batch["scale"]).sample(key),
        posteriors.normal(relu_mlp([hidden], 2 * loc.shape[1])),
        classified=mean,
        modelled=mean,
        as_image=decode,
    )
