"""A VAE on dynamically binarized MNIST, trained on the ELBO.

    python -m experiments.mnist_vae
    python -m experiments.mnist_vae --beta 4 --anneal linear --run-dir runs/beta4

The net of Burda et al. 2016, 784-200-200-50 and back, tanh, prior N(0, I). Other sets
and likelihoods: --dataset fashion_mnist, --binarize none (a Gaussian on grey values).

Expect a test -log p(x) of 89.2 nats (5,000 samples, all 10,000 images), after 2.5
minutes of training and 2.6 of evaluation on 2 CPU cores.
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
from vi_jax.data.images import Binarize
from vi_jax.early_stopping import EarlyStopping
from vi_jax.experiment import Experiment, images_of, on_images
from vi_jax.model import analytic_terms, sampled_terms


@dataclasses.dataclass(frozen=True)
class Knobs:
    """The knobs of the run, all of them part of what the run folder stands for."""

    k: int = 1
    """Samples of z per image."""
    bound: Literal["elbo", "iwae", "renyi"] = "elbo"
    """The bound on log p(x) that is raised."""
    alpha: float = 0.5
    """Order of the Renyi bound."""
    estimator: Literal["reparam", "stl", "dreg"] = "stl"
    """Gradient estimator; `stl` is for the ELBO or k = 1, `dreg` for any bound."""
    kl: Literal["sampled", "analytic"] = "sampled"
    """KL term; `analytic` goes with the ELBO and `reparam`."""
    beta: float = 1.0
    """Weight of the KL term at the end of its schedule (beta-VAE)."""
    anneal: Literal["constant", "linear", "cosine", "sigmoid", "cyclical"] = "constant"
    """Schedule of beta, from 0 where it is not constant."""
    anneal_epochs: float = 10.0
    """Epochs until the schedule has reached beta."""
    prior: Literal["normal", "mixture"] = "normal"
    """N(0, I), or a learned mixture of ten diagonal Gaussians."""
    latents: int = 50
    """Dimension of z."""
    hidden: int = 200
    """Width of the two hidden layers of each network."""
    epochs: float = 80.0
    """Passes over the training images."""
    batch_size: int = 50
    """Images per step."""
    learning_rate: float = 2e-3
    """Adam's step size at the start; it falls to 0 along a cosine."""
    clip_norm: float = 0.0
    """Bound on the norm of the gradient; 0 for none."""
    ema: float = 0.0
    """Decay of the averaged parameters that are evaluated; 0 for the last ones."""
    seed: int = 0
    """Of the initial parameters, the order of the data and every draw in training."""
    dataset: str = "mnist"
    """Name of a set of tensorflow-datasets, or path of an .npz with x_train, x_test."""
    binarize: Binarize = "dynamic"
    """A new draw at each access, one fixed draw, pixel >= 128, or grey values."""
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
    hidden = [knobs.hidden] * 2
    encoder = networks.mlp(hidden, 2 * knobs.latents)
    if knobs.binarize == "none":
        decoder = networks.mlp(hidden, data.mean.size, output_bias=data.mean)
        likelihood = likelihoods.normal(decoder)
    else:
        bias = likelihoods.bias_from_mean(data.mean)
        decoder = networks.mlp(hidden, data.mean.size, output_bias=bias)
        likelihood = likelihoods.bernoulli(decoder)
    prior = {
        "normal": priors.standard_normal(knobs.latents),
        "mixture": priors.gaussian_mixture(10),
    }[knobs.prior]
    model = models.vae(prior, posteriors.normal(encoder), likelihood)
    bound = {
        "elbo": bounds.elbo,
        "iwae": bounds.iwae,
        "renyi": functools.partial(bounds.renyi, alpha=knobs.alpha),
    }[knobs.bound]
    if knobs.anneal == "constant":
        beta = schedules.constant(knobs.beta)
    else:
        ramp = getattr(schedules, knobs.anneal)
        anneal_steps = steps(epochs=knobs.anneal_epochs)
        beta = ramp(anneal_steps, total_steps=num_steps, end=knobs.beta)
    loss = objectives.batch_loss(
        model,
        preprocess=data.preprocess,
        bound=bound,
        estimator=getattr(estimators, knobs.estimator),
        num_samples=knobs.k,
        beta=beta,
        terms={"sampled": sampled_terms, "analytic": analytic_terms}[knobs.kl],
    )
    return on_images(
        knobs,
        data,
        model,
        loss,
        training.adam(
            knobs.learning_rate,
            num_steps=num_steps,
            clip_norm=knobs.clip_norm,
            ema=knobs.ema,
        ),
        about={
            "binarize": knobs.binarize,
            "likelihood": "normal" if knobs.binarize == "none" else "bernoulli",
            "bound": knobs.bound,
            "estimator": knobs.estimator,
            "k": knobs.k,
            "beta": knobs.beta,
        },
        early_stopping=EarlyStopping(
            knobs.patience, schedules.settled(beta, total_steps=num_steps)
        )
        if knobs.patience
        else None,
    )


if __name__ == "__main__":
    commands.main("mnist_vae", Knobs, build)
