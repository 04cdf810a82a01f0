"""Models trained together against the same models trained alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vi_jax import (
    bounds,
    likelihoods,
    models,
    networks,
    posteriors,
    priors,
    schedules,
    sweep,
)
from vi_jax.data.batches import no_data
from vi_jax.disentangling import beta_tc_loss
from vi_jax.objectives import batch_loss, capacity_loss, free_bits_loss
from vi_jax.training import fit, init_state

VALUES = jnp.array([0.5, 1.0, 3.0])


def loss_of(value):
    """A least-squares fit to noise that the key and the step draw."""

    def loss(params, key, batch):
        x = jax.random.normal(key, (4, 3)) + batch["step"]
        error = jnp.sum((x @ params["w"] - params["b"]) ** 2)
        penalty = value * jnp.sum(params["w"] ** 2)
        return error + penalty, {"bound": -error, "penalty": penalty}

    return loss


def start(key):
    return {"w": jax.random.normal(key, (3,)), "b": jnp.zeros(())}


def train(loss, optimizer, params):
    states = fit(
        loss,
        optimizer,
        init_state(params, optimizer),
        no_data(),
        seed=1,
        num_steps=6,
        scan_steps=3,
    )
    return list(states)[-1]


def test_each_ends_where_it_would_alone():
    """Clipping by the norm couples the leaves of a model, but not two models."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    first = sweep.init_of_all(start, jax.random.key(0), 3, same=False)
    state, metrics = train(
        sweep.loss_of_all(loss_of, VALUES), sweep.optimizer_of_all(optimizer), first
    )
    for i, value in enumerate(VALUES):
        alone, expected = train(loss_of(value), optimizer, sweep.one_of_all(first, i))
        ours = sweep.one_of_all(state.params, i)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            ours,
            alone.params,
        )
        np.testing.assert_allclose(
            metrics["penalty"][i], expected["penalty"], rtol=1e-5
        )
        np.testing.assert_allclose(
            metrics["bound_each"][i], expected["bound"], rtol=1e-5
        )
    np.testing.assert_allclose(metrics["bound"], np.mean(metrics["bound_each"]))


def small_loss(beta):
    model = models.vae(
        priors.standard_normal(1),
        posteriors.normal(networks.mlp([], 2)),
        likelihoods.bernoulli(networks.mlp([], 3)),
    )
    x = jnp.array([[0.0, 1.0, 1.0]])
    preprocess = lambda key, batch: x
    return model, x[0], batch_loss(model, preprocess=preprocess, beta=beta)


def test_a_sweep_over_beta_is_that_of_its_schedules():
    """The first example of the module's docstring."""
    model, x, _ = small_loss(schedules.constant())
    loss_of = lambda beta: small_loss(schedules.constant(beta))[2]
    first = sweep.init_of_all(lambda key: model.init(key, x), jax.random.key(0), 3)
    batch, key = {"step": jnp.int32(0)}, jax.random.key(1)
    _, metrics = jax.jit(sweep.loss_of_all(loss_of, VALUES))(first, key, batch)
    for i, beta in enumerate(VALUES):
        one = sweep.one_of_all(first, i)
        _, alone = loss_of(beta)(one, jax.random.clone(key), batch)
        np.testing.assert_allclose(metrics["bound_each"][i], alone["bound"], rtol=1e-6)
    assert len(np.unique(metrics["bound_each"])) == 3


@pytest.mark.parametrize(
    "of",
    {
        "renyi": lambda model, how, value: batch_loss(
            model, bound=partial(bounds.renyi, alpha=value), num_samples=4, **how
        ),
        "ciwae": lambda model, how, value: batch_loss(
            model, bound=partial(bounds.ciwae, mix=value), num_samples=4, **how
        ),
        "cubo": lambda model, how, value: batch_loss(
            model, bound=partial(bounds.cubo, order=1 + value), num_samples=4, **how
        ),
        "free bits": lambda model, how, value: free_bits_loss(
            model, free_bits=value, **how
        ),
        "capacity": lambda model, how, value: capacity_loss(
            model, capacity=schedules.constant(2.0), gamma=value, **how
        ),
        "beta-TCVAE": lambda model, how, value: beta_tc_loss(
            model, num_data=9, alpha=value, **how
        ),
    }.items(),
    ids=lambda item: item[0],
)
def test_any_number_of_a_loss_can_be_swept(of):
    """Each value and slope as alone; renyi's last one by its other formula."""
    model, x, _ = small_loss(schedules.constant())
    rows = jnp.stack([x, 1 - x])
    how = {"preprocess": lambda key, batch: rows}
    loss_of = lambda value: of[1](model, how, value)
    values = jnp.array([0.3, 0.9, 0.999999])
    first = sweep.init_of_all(lambda key: model.init(key, x), jax.random.key(0), 3)
    batch, key = {"step": jnp.int32(0)}, jax.random.key(1)
    every = jax.value_and_grad(sweep.loss_of_all(loss_of, values), has_aux=True)
    (_, metrics), slopes = jax.jit(every)(first, key, batch)
    for i, value in enumerate(values):
        one = sweep.one_of_all(first, i)
        alone = jax.jit(jax.value_and_grad(loss_of(float(value)), has_aux=True))
        (_, expected), slope = alone(one, jax.random.clone(key), batch)
        got = metrics["bound_each"][i]
        np.testing.assert_allclose(got, expected["bound"], rtol=2e-6)
        close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
        jax.tree.map(close, sweep.one_of_all(slopes, i), slope)
    assert len(np.unique(metrics["bound_each"])) == 3


def test_a_sweep_over_learning_rates_sets_them_in_the_state():
    """The second example of the module's docstring."""
    rates = jnp.array([0.01, 0.1, 0.3])
    adam = optax.inject_hyperparams(optax.adam)(learning_rate=0.0)
    optimizer = sweep.optimizer_of_all(adam)
    loss = sweep.loss_of_all(lambda rate: loss_of(1.0), rates)
    first = sweep.init_of_all(start, jax.random.key(0), 3)
    state = init_state(first, optimizer)
    state.opt_state.hyperparams["learning_rate"] = rates
    how = {"seed": 1, "num_steps": 6, "scan_steps": 3}
    state, _ = list(fit(loss, optimizer, state, no_data(), **how))[-1]
    for i, rate in enumerate(rates):
        alone, _ = train(loss_of(1.0), optax.adam(rate), sweep.one_of_all(first, i))
        ours = sweep.one_of_all(state.params, i)
        np.testing.assert_allclose(ours["w"], alone.params["w"], rtol=1e-4)


def test_they_start_alike_or_each_with_its_own_key():
    alike = np.asarray(sweep.init_of_all(start, jax.random.key(0), 3)["w"])
    assert (alike == alike[0]).all()
    apart = sweep.init_of_all(start, jax.random.key(0), 3, same=False)["w"]
    assert len(np.unique(np.asarray(apart))) == 9


def test_a_sweep_over_nothing_is_an_error():
    for values in (jnp.array(1.0), jnp.zeros(0)):
        with pytest.raises(ValueError, match="one value for each model"):
            sweep.loss_of_all(loss_of, values)
