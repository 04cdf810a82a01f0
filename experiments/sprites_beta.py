"""beta-VAE, beta-TCVAE and others on sprites with known factors, and their scores.

    python -m experiments.sprites_beta --objective beta_tcvae --seed 0
    python -m experiments.sprites_beta --objective factor_vae --strength 35
    python -m experiments.sprites_table train --objective beta_vae --seeds 0 1 2

64 x 64 images of dSprites' five factors, drawn in the compiled step. The decoder is a
spatial broadcast decoder on 16 x 16 places, which made the difference here: with MLPs
of two hidden layers (beta = 4, at 64 x 64 and at 32 x 32, 16,000 steps of 64 images and
more) place stays spread over several latents, and MIG below 0.05.

The published protocol (Locatello et al. 2019, arXiv:1811.12359; many hours on 2 cores):

    python -m experiments.sprites_beta --objective beta_vae --network conv \\
        --steps 300000 --batch-size 64 --learning-rate 1e-4

The scores need scikit-learn: pip install '.[applications]'. Results over seeds are in
`sprites_table`.
"""

import dataclasses
import functools
import importlib.util
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from vi_jax import (
    commands,
    disentangling,
    evaluation,
    likelihoods,
    models,
    networks,
    objectives,
    posteriors,
    priors,
    schedules,
    training,
)
from vi_jax.data import sprites
from vi_jax.experiment import Experiment
from vi_jax.model import Model, analytic_terms
from vi_jax.types import Component, LossFn, Params

Objective = Literal[
    "vae",
    "beta_vae",
    "capacity",
    "beta_tcvae",
    "factor_vae",
    "dip_vae_i",
    "dip_vae_ii",
    "info_vae",
]


@dataclasses.dataclass(frozen=True)
class Knobs:
    """The knobs of the run, all of them part of what the run folder stands for."""

    objective: Objective = "beta_vae"
    """What is minimised."""
    strength: float = 4.0
    """beta of beta_vae and beta_tcvae, gamma of factor_vae, lambda of the others (the
    last capacity in nats of `capacity`); `vae` has none."""
    network: Literal["mlp", "conv", "broadcast"] = "broadcast"
    """Two hidden layers, or four convolutions of stride 2 and a dense layer; broadcast:
    two hidden layers to z, which the decoder sees at every place of the image."""
    hidden: int = 256
    """Width of the hidden or dense layers."""
    latents: int = 10
    """Dimension of z."""
    size: int = 64
    """Side of the images, that of dSprites by default."""
    coloured: bool = False
    """Sprites in eight colours, a sixth factor."""
    steps: int = 8_000
    """Training steps."""
    beta_path: tuple[float, ...] = ()
    """beta of beta_vae at equal distances over the run, lines between, up to strength;
    nothing for strength throughout."""
    batch_size: int = 32
    """Images per step."""
    optimizer: Literal["adam", "soap"] = "adam"
    """`soap` needs fewer steps."""
    learning_rate: float = 2e-3
    """The step size at its highest; it falls to 0 along a cosine."""
    seed: int = 0
    """Of the initial parameters, the order of the data and every draw in training."""
    eval_samples: int = 100
    """Importance samples per test image."""
    scan_steps: int = 100
    """Steps in one compiled dispatch."""
    checkpoint_steps: int = 1_000
    """Steps from one checkpoint, with its validation, to the next."""
    num_votes: int = 10_000
    """Votes that train the scores by intervention; half as many measure them."""


def build(knobs: Knobs) -> Experiment:
    """The experiment that the knobs describe. Raises ValueError for wrong ones."""
    if importlib.util.find_spec("sklearn") is None:
        raise ValueError("the scores need scikit-learn: pip install '.[applications]'")
    weights = (knobs.strength, *knobs.beta_path)
    if not all(0 <= weight < math.inf for weight in weights):
        raise ValueError(f"strength and beta_path must be >= 0, got {weights}")
    if knobs.num_votes < 2 or knobs.latents < 2:
        raise ValueError(
            "the scores need two votes and, for MIG and SAP, two latents at least: "
            f"num_votes is {knobs.num_votes}, latents {knobs.latents}"
        )
    data = sprites.sprite_data(
        batch_size=knobs.batch_size,
        seed=knobs.seed,
        size=knobs.size,
        coloured=knobs.coloured,
    )
    encoder, decoder = _networks(knobs, data.shape, data.mean)
    model = models.vae(
        priors.standard_normal(knobs.latents),
        posteriors.normal(encoder),
        likelihoods.bernoulli(decoder),
    )
    model, loss = _objective(knobs, model, data)
    optimizer = {"adam": training.adam, "soap": training.soap}[knobs.optimizer]
    return Experiment(
        model,
        loss,
        optimizer(knobs.learning_rate, num_steps=knobs.steps),
        data,
        seed=knobs.seed,
        num_steps=knobs.steps,
        scan_steps=knobs.scan_steps,
        checkpoint_steps=knobs.checkpoint_steps,
        num_eval_samples=knobs.eval_samples,
        about={
            "dataset": f"sprites{knobs.size}" + "_coloured" * knobs.coloured,
            "binarize": "none",
            "likelihood": "bernoulli",
            "num_train": data.num_train,
            "objective": knobs.objective,
            "strength": knobs.strength,
        },
        measure=functools.partial(scores, knobs, model),
    )


def _networks(knobs: Knobs, shape, mean: np.ndarray) -> tuple[Component, Component]:
    bias = likelihoods.bias_from_mean(mean)
    if knobs.network == "mlp":
        mlp = functools.partial(
            networks.mlp, [knobs.hidden] * 2, activation=jax.nn.relu
        )
        return mlp(2 * knobs.latents), mlp(mean.size, output_bias=bias)
    if knobs.network == "broadcast":
        mlp = networks.mlp(
            [knobs.hidden] * 2, 2 * knobs.latents, activation=jax.nn.relu
        )
        stride = max(knobs.size // 16, 1)
        how = {"stride": stride, "kernel_size": 2 * stride}
        return mlp, networks.broadcast_decoder(shape, output_bias=bias, **how)
    how = {"strides": (2, 2, 2, 2), "kernel_size": 4, "dense": (knobs.hidden,)}
    return (
        networks.conv_encoder(
            shape, 2 * knobs.latents, channels=(32, 32, 64, 64), **how
        ),
        networks.conv_decoder(
            shape, channels=(64, 64, 32, 32), output_bias=bias, **how
        ),
    )


def _objective(knobs: Knobs, model: Model, data) -> tuple[Model, LossFn]:
    """The model, with a discriminator where one plays along, and the loss."""
    given = lambda make, **options: make(model, preprocess=data.preprocess, **options)
    strength = knobs.strength
    if knobs.objective in ("vae", "beta_vae"):
        last = 1.0 if knobs.objective == "vae" else strength
        path = jnp.array(knobs.beta_path or [last])
        if path[-1] != last:
            raise ValueError(f"beta_path must end at {last}, got {knobs.beta_path}")
        places = jnp.linspace(0, knobs.steps, len(path))
        beta = lambda step: jnp.interp(step, places, path)
        return model, given(objectives.batch_loss, beta=beta, terms=analytic_terms)
    if knobs.objective == "capacity":
        capacity = schedules.linear(
            knobs.steps // 2, total_steps=knobs.steps, end=strength
        )
        return model, given(objectives.capacity_loss, capacity=capacity, gamma=100.0)
    if knobs.objective == "beta_tcvae":
        return model, given(
            disentangling.beta_tc_loss, num_data=data.num_train, beta=strength
        )
    if knobs.objective == "factor_vae":
        classifier = networks.mlp([256] * 3, 2, activation=jax.nn.leaky_relu)
        loss = given(
            functools.partial(disentangling.factor_loss, discriminator=classifier),
            gamma=strength,
        )
        return disentangling.with_discriminator(model, classifier), loss
    if knobs.objective == "info_vae":
        kernel = disentangling.inverse_multiquadratic_kernel(
            (2.0 * knobs.latents) ** 0.5
        )
        return model, given(
            disentangling.mmd_loss, kernel=kernel, alpha=0.0, lambda_mmd=strength
        )
    covariance, diagonal = {
        "dip_vae_i": (disentangling.covariance_of_means, 10 * strength),
        "dip_vae_ii": (disentangling.covariance_of_latents, strength),
    }[knobs.objective]
    return model, given(
        disentangling.dip_loss,
        covariance=covariance,
        lambda_offdiag=strength,
        lambda_diag=diagonal,
    )


def scores(knobs: Knobs, model: Model, params: Params) -> dict[str, Any]:
    """How far the latents of the means of q(z | x) follow the factors, one each."""
    grid = sprites.COLOURED_FACTORS if knobs.coloured else sprites.FACTORS
    sizes = list(grid.values())
    render = sprites.render_coloured if knobs.coloured else sprites.render

    @jax.jit
    def encode(factors):
        def one(f):
            x = render(f, size=knobs.size).ravel() / 255
            return model.posterior(params, x.astype(jnp.float32)).mean()

        return jax.vmap(one)(jnp.asarray(factors))

    rng = np.random.default_rng(knobs.seed)
    factors = rng.integers(0, sizes, (10_000, len(sizes)))
    codes = np.asarray(encode(factors))
    votes = {"num_train": knobs.num_votes, "num_eval": knobs.num_votes // 2}
    information = evaluation.latent_factor_information(codes, factors)
    return {
        "factor_vae_score": evaluation.factor_vae_score(encode, sizes, **votes),
        "mig": evaluation.mig(codes, factors),
        "sap": evaluation.sap(codes, factors),
        "modularity": evaluation.modularity(codes, factors),
        "information": information.round(4).tolist(),
        "factors": list(grid),
    }


if __name__ == "__main__":
    commands.main("sprites_beta", Knobs, build)
