"""What the experiments on token sequences share: model, training, measures, draws."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vi_jax import (
    bounds,
    decoding,
    estimators,
    evaluation,
    likelihoods,
    models,
    networks,
    objectives,
    posteriors,
    priors,
    resumable,
    schedules,
    sequences,
    training,
)
from vi_jax.data import batches
from vi_jax.early_stopping import EarlyStopping
from vi_jax.evaluator import over_examples
from vi_jax.model import Model
from vi_jax.resumable import Training
from vi_jax.training import TrainState
from vi_jax.types import Array, Batch, Component, Key, LossFn, Params, SequenceNetwork


class SequenceData(NamedTuple):
    """Token sequences, int32 [n, length] each, as `vi_jax.sequences` has them."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    vocabulary: int  # ids are below it

    @property
    def length(self) -> int:
        return self.train.shape[1]


class Networks(NamedTuple):
    """Encoder and decoder of a kind, of one width."""

    encoder: Callable[[int], Component]  # outputs -> tokens to outputs
    decoder: SequenceNetwork


def make_networks(
    kind: Literal["transformer", "gru"], data: SequenceData, *, width: int, layers: int
) -> Networks:
    """An encoder and a decoder of `layers` layers (the GRU's encoder has one)."""
    v, t = data.vocabulary, data.length
    if kind == "gru":
        return Networks(
            functools.partial(networks.gru_encoder, v, width=width),
            networks.gru_decoder(v, width=width, layers=layers),
        )
    how = {"width": width, "layers": layers}
    return Networks(
        functools.partial(networks.transformer_encoder, v, t, **how),
        networks.transformer_decoder(v, t, **how),
    )


def make_model(nets: Networks, data: SequenceData, latents: int) -> Model:
    """A VAE with z of `latents`; with 0 the decoder alone, a plain language model."""
    tokens = likelihoods.tokens(nets.decoder, data.length)
    if latents == 0:
        return models.without_latents(tokens)
    return models.vae(
        priors.standard_normal(latents),
        posteriors.normal(nets.encoder(2 * latents)),
        tokens,
    )


def make_loss(
    model: Model,
    *,
    k: int = 1,
    beta: schedules.Schedule = objectives.UNTEMPERED,
    free_bits: float = 0.0,
    word_dropout: float = 0.0,
) -> LossFn:
    """-ELBO (k = 1) or -IWAE, or with free bits for each latent, in nats a sequence.

    Raises ValueError where free_bits comes with k above 1.
    """
    if free_bits and k > 1:
        raise ValueError("free bits are of the ELBO: set k to 1, or free_bits to 0")

    def preprocess(key: Key, batch: Batch) -> Array:
        return sequences.word_dropout(key, batch["x"], word_dropout)

    if free_bits:
        return objectives.free_bits_loss(
            model, preprocess=preprocess, free_bits=free_bits
        )
    return objectives.batch_loss(
        model,
        preprocess=preprocess,
        bound=bounds.iwae,
        estimator=estimators.reparam if k == 1 else estimators.dreg,
        num_samples=k,
        beta=beta,
    )


def prepare(
    model: Model,
    loss: LossFn,
    data: SequenceData,
    *,
    learning_rate: float,
    batch_size: int,
    num_steps: int,
    checkpoint_steps: int,
    seed: int,
    scan_steps: int = 20,
    patience: int = 0,
    settled: int = 0,
    clip_norm: float = 1.0,
) -> tuple[Training, TrainState]:
    """How the model is trained, by Adam, and its first state.

    With `patience` the training ends after as many validations without a new best
    after step `settled`, and the best parameters are its outcome. Raises ValueError for
    wrong use.
    """
    optimizer = training.adam(learning_rate, num_steps=num_steps, clip_norm=clip_norm)
    plan = Training(
        loss,
        optimizer,
        batches.shuffled({"x": data.train}, batch_size=batch_size, seed=seed),
        seed=seed,
        num_steps=num_steps,
        scan_steps=scan_steps,
        checkpoint_steps=checkpoint_steps,
        validate=_validation(model, data.valid[:1000]),
        early_stopping=EarlyStopping(patience, settled) if patience else None,
    )
    params = jax.jit(model.init)(resumable.init_key(seed), jnp.asarray(data.train[0]))
    resumable.check(plan, params)
    return plan, training.init_state(params, optimizer)


def _validation(model: Model, x: np.ndarray) -> Callable[[Params], dict[str, Any]]:
    """The bound of 5 samples on log p(x), and what the latents carry of sequences."""
    bound = _log_likelihoods(model, num_samples=5, progress=False)

    @jax.jit
    def latents(params: Params, x: Array):
        found = jax.vmap(lambda x: model.posterior(params, x))(x)
        return evaluation.collapse_report(jax.random.key(0), found, model.prior(params))

    def validate(params: Params) -> dict[str, Any]:
        found = {"valid_bound": np.mean(bound(params, x).log_px)}
        if model.prior(params).mean().size:
            found |= jax.device_get(latents(params, x))
        return {name: value.tolist() for name, value in found.items()}

    return validate


def _log_likelihoods(model: Model, *, num_samples: int, progress: bool):
    def one(params: Params, key: Key, x: Array, c: None) -> evaluation.LogLikelihood:
        return evaluation.log_likelihood(
            model, params, key, x, num_samples=num_samples, chunk=20
        )

    return over_examples(one, batch_size=25, unit="sequence", progress=progress)


def measure(
    model: Model, params: Params, x: np.ndarray, *, num_samples: int
) -> dict[str, Any]:
    """The test log-likelihood and what the latents carry, in nats a sequence.

    `nll_stderr` is over sequences, `nll_mc_stderr` the part of it that more importance
    samples would remove; `nll_each` [n] is for paired comparisons. Mutual information
    is of the first 1,000 sequences, at most log 1,000 = 6.9 nats.
    """
    latents = int(model.prior(params).mean().size)
    # Without latents one sample is exact.
    num_samples = num_samples if latents else 1
    found = _log_likelihoods(model, num_samples=num_samples, progress=True)(params, x)
    result = {
        "nll": -float(np.mean(found.log_px, dtype=np.float64)),
        "nll_stderr": float(np.std(found.log_px, ddof=1) / np.sqrt(len(x))),
        "nll_mc_stderr": float(np.sqrt(np.sum(found.stderr**2)) / len(x)),
        "num_samples": num_samples,
        "elbo": float(np.mean(found.elbo)),
        "rate": float(np.mean(found.rate)),
        "distortion": float(np.mean(found.distortion)),
        "latents": latents,
        "num_test": len(x),
        "nll_each": (-found.log_px).round(4).tolist(),
    }
    if latents:
        result |= _of_latents(model, params, x)
    return result


def _of_latents(model: Model, params: Params, x: np.ndarray) -> dict[str, Any]:
    posterior = jax.jit(jax.vmap(lambda x: model.posterior(params, x)))
    q, prior = posterior(x), model.prior(params)
    key = jax.random.key(0)
    some = jax.tree.map(lambda leaf: leaf[:1000], q)
    split = jax.jit(lambda q: evaluation.split_rate(key, q, prior, num_samples=5))(some)
    rates = jax.jit(evaluation.kl_per_latent)(q, prior)
    return {
        "active_units": int(evaluation.active_units(q.mean()).sum()),
        "mutual_information": float(split.mutual_information.value),
        "aggregate_kl": float(split.aggregate_kl.value),
        "kl_per_latent": np.asarray(rates).round(4).tolist(),
    }


def draw(
    model: Model,
    params: Params,
    *,
    num: int,
    seed: int = 0,
    choose: decoding.Choose = decoding.sampled,
    batch_size: int = 500,
) -> np.ndarray:
    """Sequences x ~ p(x | z) at z ~ p(z), int32 [num, length]."""

    @jax.jit
    def some(keys: Array) -> Array:
        def one(key: Key) -> Array:
            key_z, key_x = jax.random.split(key)
            z = model.prior(params).sample(key_z)
            given = model.likelihood(params, z)
            return given.decode(key_x, choose)

        return jax.vmap(one)(keys)

    keys = jax.random.split(jax.random.key(seed), num)
    parts = [some(rows) for rows, _ in batches.padded(keys, batch_size=batch_size)]
    return np.concatenate(parts)[:num]
