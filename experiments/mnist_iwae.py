"""IWAE on dynamically binarized MNIST (Burda et al. 2016, arXiv:1509.00519, table 1).

    python -m experiments.mnist_iwae --k 1 --run-dir runs/iwae1
    python -m experiments.mnist_iwae --k 50 --backward-k 5 --run-dir runs/iwae50

Architecture of the paper: 784-200-200-50, tanh, one stochastic layer of 50, output bias
from the training mean. Unlike the paper: 200 epochs of Adam with a cosine instead of
3,280 with steps, DReG gradients, batches of 50.

Expect at k = 1 a test -log p(x) of 87.7 nats (5,000 samples, all 10,000 images), after
about 4 minutes of training and 2 of evaluation on 2 CPU cores. With more time,
`experiments.iwae_table` has the settings that reach 85.7 (k = 1) and 84.4 (k = 50), and
what was tried on the way.
"""

import dataclasses
import functools
from typing import Literal

from vi_jax import (
    bounds,
    commands,
    estimators,
    likelihoods,
    models,
    networks,
    objectives,
    posteriors,
    priors,
    schedules,
    training,
)
from vi_jax.data import batches
from vi_jax.early_stopping import EarlyStopping
from vi_jax.experiment import Experiment, images_of, on_images
from vi_jax.model import Model
from vi_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Knobs:
    """The knobs of the run, all of them part of what the run folder stands for."""

    k: int = 50
    """Importance samples of z per image."""
    first_k: int = 0
    """Importance samples per image in the first epochs, for less work; 0 for k."""
    first_epochs: float = 0.0
    """Epochs with first_k; the others are with k."""
    backward_k: int = 0
    """Samples, of the k, that have a backward pass, at no bias; 0 for all."""
    layers: Literal[1, 2] = 1
    """Stochastic layers: z of 50, or 100 below 50."""
    bound: Literal["elbo", "iwae", "renyi"] = "iwae"
    """The bound on log p(x) that is raised."""
    alpha: float = 0.5
    """Order of the Renyi bound."""
    estimator: Literal["reparam", "stl", "dreg"] = "dreg"
    """Gradient estimator; `stl` is for the ELBO or k = 1 only."""
    beta: float = 1.0
    """Weight of the KL term."""
    latents: int = 50
    """Dimension of z, the upper one of two."""
    epochs: float = 200.0
    """Passes over the training images."""
    batch_size: int = 50
    """Images per step."""
    optimizer: Literal["adam", "soap"] = "adam"
    """`soap` needs far fewer steps, of large batches or many samples."""
    learning_rate: float = 2e-3
    """The step size at its highest; it falls to 0 along a cosine."""
    clip_norm: float = 0.0
    """Bound on the norm of the gradient; 0 for none."""
    ema: float = 0.0
    """Decay of the averaged parameters that are evaluated; 0 for the last ones."""
    seed: int = 0
    """Of the initial parameters, the order of the data and every draw in training."""
    dataset: str = "mnist"
    """Name of a set of tensorflow-datasets, or path of an .npz with x_train, x_test."""
    binarize: Literal["dynamic", "static", "threshold"] = "dynamic"
    """A new draw at each access, one fixed draw, or pixel >= 128."""
    data_dir: str = ""
    """Where sets are prepared; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    eval_samples: int = 5000
    """Importance samples per test image."""
    scan_steps: int = 200
    """Steps in one compiled dispatch."""
    checkpoint_epochs: float = 5.0
    """Epochs from one checkpoint, with its validation, to the next."""
    patience: int = 0
    """Validations in a row without a new best that end the training; 0 for none."""


def build(knobs: Knobs) -> Experiment:
    """The experiment that the knobs describe."""
    data = images_of(knobs)
    steps = functools.partial(
        batches.steps_per_run, data.num_train, batch_size=knobs.batch_size
    )
    num_steps = steps(epochs=knobs.epochs)
    model = _model(knobs, data.mean)
    bound = {
        "elbo": bounds.elbo,
        "iwae": bounds.iwae,
        "renyi": functools.partial(bounds.renyi, alpha=knobs.alpha),
    }[knobs.bound]
    loss = lambda k: objectives.batch_loss(
        model,
        preprocess=data.preprocess,
        bound=bound,
        estimator=getattr(estimators, knobs.estimator),
        num_samples=k,
        beta=schedules.constant(knobs.beta),
        num_backward=knobs.backward_k or None,
    )
    if (knobs.first_k > 0) != (knobs.first_epochs > 0):
        raise ValueError("first_k and first_epochs go together: set both, or neither")
    if knobs.first_k and knobs.first_epochs > knobs.epochs:
        raise ValueError("first_epochs are some of the epochs: no more than these")
    last_of_first = steps(epochs=knobs.first_epochs) if knobs.first_k else 0
    optimizer = {"adam": training.adam, "soap": training.soap}[knobs.optimizer]
    return on_images(
        knobs,
        data,
        model,
        loss(knobs.k),
        optimizer(
            knobs.learning_rate,
            num_steps=num_steps,
            clip_norm=knobs.clip_norm,
            ema=knobs.ema,
        ),
        about={
            "binarize": knobs.binarize,
            "likelihood": "bernoulli",
            "bound": knobs.bound,
            "estimator": knobs.estimator,
            "k": knobs.k,
            "beta": knobs.beta,
            "layers": knobs.layers,
        },
        earlier=((loss(knobs.first_k), last_of_first),) if knobs.first_k else (),
        early_stopping=EarlyStopping(knobs.patience, last_of_first)
        if knobs.patience
        else None,
    )


def _model(knobs: Knobs, mean: Array) -> Model:
    gaussian = lambda hidden, latents: posteriors.normal(
        networks.mlp([hidden, hidden], 2 * latents)
    )
    pixels = likelihoods.bernoulli(
        networks.mlp(
            [200, 200], mean.size, output_bias=likelihoods.bias_from_mean(mean)
        )
    )
    prior = priors.standard_normal(knobs.latents)
    if knobs.layers == 1:
        return models.vae(prior, gaussian(200, knobs.latents), pixels)
    lower = 2 * knobs.latents
    down, up = [gaussian(100, lower)], [gaussian(100, knobs.latents)]
    return models.hierarchical_vae(prior, down, gaussian(200, lower), up, pixels)


if __name__ == "__main__":
    commands.main("mnist_iwae", Knobs, build)
