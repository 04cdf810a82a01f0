"""What is no count, no function or no model is refused by name, at the door."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vi_jax
from vi_jax import (
    bounds,
    decoding,
    divergences,
    estimators,
    evaluation,
    likelihoods,
    maximum_likelihood,
    models,
    networks,
    objectives,
    posteriors,
    priors,
    training,
)
from vi_jax.checks import at_least
from vi_jax.data import batches, sprites

KEY, X = jax.random.key(0), jnp.zeros(3)
MODEL = models.vae(
    priors.standard_normal(2),
    posteriors.normal(networks.mlp([], 4)),
    likelihoods.bernoulli(networks.mlp([], 3)),
)
PARAMS = MODEL.init(KEY, X)
NORMAL = vi_jax.distributions.Normal(jnp.zeros(2), jnp.ones(2))
WORDS = networks.gru_decoder(5, width=4)
ROWS = batches.shuffled({"x": X[:, None]}, batch_size=1, seed=0)
ADAM = training.adam(1e-3, num_steps=1)


def loss(**how):
    return objectives.batch_loss(MODEL, preprocess=lambda key, x: x, **how)


def fit(**how):
    state = training.init_state(PARAMS, ADAM)
    return training.fit(loss(), ADAM, state, ROWS, seed=0, num_steps=1, **how)


COUNTED = {
    "num_samples": [
        lambda n: loss(num_samples=n),
        lambda n: objectives.per_example(MODEL, PARAMS, KEY, X, num_samples=n),
        lambda n: objectives.free_bits_loss(
            MODEL, preprocess=lambda key, x: x, free_bits=0.1, num_samples=n
        ),
        lambda n: evaluation.log_likelihood(MODEL, PARAMS, KEY, X, num_samples=n),
        lambda n: evaluation.best_posterior(MODEL, PARAMS, KEY, X, num_samples=n),
        lambda n: evaluation.negative_elbo(MODEL, PARAMS, KEY, X, num_samples=n),
        lambda n: divergences.kl_monte_carlo(KEY, NORMAL, NORMAL, num_samples=n),
        lambda n: maximum_likelihood.forward_kl_loss(
            NORMAL, lambda params: NORMAL, num_samples=n
        ),
        lambda n: maximum_likelihood.reverse_kl_loss(
            NORMAL, lambda params: NORMAL, num_samples=n
        ),
    ],
    "num_backward": [lambda n: loss(num_samples=4, num_backward=n)],
    "chunk": [lambda n: evaluation.log_likelihood(MODEL, PARAMS, KEY, X, chunk=n)],
    "scan_steps": [lambda n: fit(scan_steps=n)],
    "max_skipped": [lambda n: fit(max_skipped=n)],
    "batch_size": [
        lambda n: batches.steps_per_run(9, epochs=1, batch_size=n),
        lambda n: batches.padded(X, batch_size=n),
        lambda n: sprites.stream(batch_size=n, seed=0),
    ],
    "num_valid": [lambda n: sprites.sprite_data(batch_size=1, seed=0, num_valid=n)],
    "num_test": [lambda n: sprites.sprite_data(batch_size=1, seed=0, num_test=n)],
    "length": [lambda n: decoding.decode(WORDS, None, X, KEY, length=n)],
    "num_components": [
        models.gaussian_mixture,
        lambda n: likelihoods.discretized_logistic_mixture(networks.mlp([], 9), n),
    ],
    "latents": [models.linear_gaussian],
    "width": [
        lambda n: networks.gru_encoder(5, 3, width=n),
        lambda n: networks.gru_decoder(5, width=n),
        lambda n: networks.transformer_encoder(5, 4, 3, width=n),
        lambda n: networks.transformer_decoder(5, 4, width=n),
    ],
    "heads": [lambda n: networks.transformer_encoder(5, 4, 3, heads=n)],
    "layers": [
        lambda n: networks.gru_decoder(5, layers=n),
        lambda n: networks.transformer_encoder(5, 4, 3, layers=n),
        lambda n: networks.transformer_decoder(5, 4, layers=n),
    ],
    "slots": [lambda n: networks.transformer_decoder(5, 4, slots=n)],
}
CASES = [(name, call) for name, calls in COUNTED.items() for call in calls]


@pytest.mark.parametrize("name, call", CASES)
@pytest.mark.parametrize("count", [5e1, "5", [5], np.ones(2)], ids=repr)
def test_what_is_no_whole_number_is_refused_by_name(name, call, count):
    with pytest.raises(ValueError, match=rf"^{name}.* must be a whole number"):
        call(count)


@pytest.mark.parametrize("name, call", CASES)
@pytest.mark.parametrize("count", [0, np.int32(-2)])
def test_too_few_are_refused_by_name(name, call, count):
    with pytest.raises(ValueError, match=rf"^{name}.* must be at least [12], got"):
        call(count)


def test_whole_numbers_of_any_kind_are_counts():
    at_least(1, python=1, of_numpy=np.uint8(2), of_jax=jnp.int32(3))
    with pytest.raises(ValueError, match="second must be at least 2, got 1"):
        at_least(2, first=2, second=1, third=0)


def test_a_traced_number_is_no_count():
    key = jax.random.key(1)
    call = lambda n: objectives.per_example(MODEL, PARAMS, key, X, num_samples=n)
    with pytest.raises(ValueError, match="an int that jit does not trace"):
        jax.jit(call)(3)


@pytest.mark.parametrize("name", ["bound", "estimator"])
def test_a_name_is_no_function(name):
    such = {"bound": "bounds.iwae", "estimator": "estimators.dreg"}[name]
    alone = functools.partial(objectives.per_example, MODEL, PARAMS, KEY, X)
    for call in (loss, alone):
        with pytest.raises(ValueError, match=f"such as {such}, got 'iwae'"):
            call(**{name: "iwae"})
    jax.eval_shape(lambda: alone(bound=bounds.iwae, estimator=estimators.dreg))


OF_A_MODEL = {
    "generate": (KEY,),
    "infer": (X,),
    "reconstruct": (KEY, X),
    "interpolate": (X, X),
    "traverse": (X,),
    "log_joint": (X, jnp.zeros(2)),
}


@pytest.mark.parametrize("name", OF_A_MODEL)
def test_a_conditional_model_needs_its_context_first(name):
    conditional = lambda c: MODEL
    call = lambda model: getattr(vi_jax.model, name)(model, PARAMS, *OF_A_MODEL[name])
    with pytest.raises(ValueError, match=r"pass model\(c\)"):
        call(conditional)
    jax.eval_shape(lambda: call(conditional(0)))
