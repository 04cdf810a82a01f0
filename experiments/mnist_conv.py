"""A convolutional VAE with one layer of Gaussian latents on dynamic MNIST.

    python -m experiments.mnist_conv
    python -m experiments.mnist_conv --k 1 --batch-size 250 --epochs 100 \\
        --run-dir runs/conv1

The encoder halves the image three times (32, 64, 64 features), one dense layer of 256,
40 latents; the decoder goes back over 64, 32 and 16 features, which is narrow, since
evaluation decodes each image 5,000 times. IWAE with k = 5 by DReG, whose step of 100
images takes about as long as one of the ELBO on 250. SOAP, as for the MLPs of
`iwae_table`, whose protocol is that of the evaluation too.

Expect a test -log p(x) of 83.83 +- 0.21 nats (seed 0, 5,000 samples, all 10,000 images)
after 54 minutes of training and 24 of evaluation on one core of two, the other busy;
with k = 1, the second line, 84.62 +- 0.21 after 44 and 31.
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
    training,
)
from vi_jax.data import batches
from vi_jax.experiment import Experiment, images_of, on_images


@dataclasses.dataclass(frozen=True)
class Knobs:
    """The knobs of the run, all of them part of what the run folder stands for."""

    k: int = 5
    """Importance samples of z per image; 1 is the ELBO."""
    backward_k: int = 0
    """Samples, of the k, that have a backward pass, at no bias; 0 for all."""
    latents: int = 40
    """Dimension of z."""
    encoder_channels: tuple[int, ...] = (32, 64, 64)
    """Features of the convolutions, each of which halves the image."""
    decoder_channels: tuple[int, ...] = (64, 32, 16)
    """Features of the images that it grows, the smallest first."""
    dense: int = 256
    """Width of the dense layer of each network."""
    epochs: float = 50.0
    """Passes over the training images."""
    batch_size: int = 100
    """Images per step."""
    optimizer: Literal["adam", "soap"] = "soap"
    """`soap` needs far fewer steps, of large batches or many samples."""
    learning_rate: float = 3e-3
    """The step size at its highest; it falls to 0 along a cosine."""
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
    scan_steps: int = 100
    """Steps in one compiled dispatch."""
    checkpoint_epochs: float = 5.0
    """Epochs from one checkpoint, with its validation, to the next."""


def build(knobs: Knobs) -> Experiment:
    """The experiment that the knobs describe."""
    data = images_of(knobs)
    steps = functools.partial(
        batches.steps_per_run, data.num_train, batch_size=knobs.batch_size
    )
    encoder = networks.conv_encoder(
        data.shape,
        2 * knobs.latents,
        channels=knobs.encoder_channels,
        strides=[2] * len(knobs.encoder_channels),
        dense=(knobs.dense,),
    )
    decoder = networks.conv_decoder(
        data.shape,
        channels=knobs.decoder_channels,
        strides=[2] * len(knobs.decoder_channels),
        dense=(knobs.dense,),
        output_bias=likelihoods.bias_from_mean(data.mean),
    )
    model = models.vae(
        priors.standard_normal(knobs.latents),
        posteriors.normal(encoder),
        likelihoods.bernoulli(decoder),
    )
    loss = objectives.batch_loss(
        model,
        preprocess=data.preprocess,
        bound=bounds.iwae,
        estimator=estimators.dreg,
        num_samples=knobs.k,
        num_backward=knobs.backward_k or None,
    )
    num_steps = steps(epochs=knobs.epochs)
    optimizer = {"adam": training.adam, "soap": training.soap}[knobs.optimizer]
    return on_images(
        knobs,
        data,
        model,
        loss,
        optimizer(knobs.learning_rate, num_steps=num_steps),
        about={
            "binarize": knobs.binarize,
            "likelihood": "bernoulli",
            "bound": "iwae",
            "estimator": "dreg",
            "k": knobs.k,
        },
    )


if __name__ == "__main__":
    commands.main("mnist_conv", Knobs, build)
