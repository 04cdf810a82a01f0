"""Against posterior collapse: two objectives, aggressive updates, and when to stop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contracts import EXACT, MEAN, WRONG, X, exact_params, quick_jit, wrong_params

from vi_jax import early_stopping, likelihoods, models, networks, posteriors, priors
from vi_jax.aggressive import aggressive_encoder
from vi_jax.early_stopping import EarlyStopping
from vi_jax.model import analytic_terms
from vi_jax.objectives import batch_loss, capacity_loss, free_bits_loss
from vi_jax.schedules import constant, cyclical, linear, settled

ROWS = np.stack([X, -0.5 * X, X[::-1], 2 * MEAN])


def preprocess(key, batch):
    del key
    return batch["x"]


def batch_at(step):
    return {"x": jnp.array(ROWS, float), "step": jnp.int32(step)}


@functools.cache
def plain(num_samples=1):
    return batch_loss(
        WRONG, preprocess=preprocess, terms=analytic_terms, num_samples=num_samples
    )


def value_and_metrics(loss, step=0):
    return quick_jit(loss)(wrong_params(), jax.random.key(0), batch_at(step))


def rates_by_hand():
    """KL(q(z_j | x_i) || N(0, 1)), [n, d], in float64."""
    q = {name: np.asarray(a, np.float64) for name, a in wrong_params()["q"].items()}
    loc, log_scale = ROWS @ q["gain"].T + q["offset"], q["log_scale"]
    return 0.5 * (loc**2 + np.exp(2 * log_scale) - 1 - 2 * log_scale)


def test_free_bits_are_a_floor_under_the_batch_mean_of_each_latent():
    """Not under each example's: between the two, the floor tells them apart."""
    rates = rates_by_hand()
    floor = 1.05 * rates.mean(0).min()
    assert rates.mean(0).min() < floor < rates.mean(0).max()
    assert (rates[:, rates.mean(0).argmin()] > floor).any()
    loss = free_bits_loss(WRONG, preprocess=preprocess, free_bits=floor, num_samples=3)
    value, metrics = value_and_metrics(loss)
    _, expected = value_and_metrics(plain(3))
    penalty = np.maximum(rates.mean(0), floor).sum()
    np.testing.assert_allclose(value, expected["distortion"] + penalty, rtol=1e-5)
    # What is logged is the ELBO itself, whatever is being raised.
    for name in ("elbo", "rate", "distortion", "ess"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5)
    assert metrics["bound"] == -value
    assert metrics.keys() == expected.keys()


def test_no_free_bits_are_the_elbo_and_a_latent_below_its_floor_is_free():
    gradient = lambda loss: quick_jit(jax.grad(loss, has_aux=True))(
        wrong_params(), jax.random.key(1), batch_at(0)
    )[0]
    free = functools.partial(free_bits_loss, WRONG, preprocess=preprocess)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, gradient(free(free_bits=0.0)), gradient(plain()))
    # Under a floor that neither reaches, only the distortion is left.
    untaxed = batch_loss(
        WRONG, preprocess=preprocess, terms=analytic_terms, beta=constant(0.0)
    )
    jax.tree.map(close, gradient(free(free_bits=50.0)), gradient(untaxed))


@pytest.mark.parametrize("step", [0, 10])
def test_capacity_draws_the_batch_mean_of_the_rate_from_both_sides(step):
    rate = rates_by_hand().sum(1).mean()
    ramp = linear(10, total_steps=10, start=0.5 * rate, end=2 * rate)
    loss = capacity_loss(WRONG, preprocess=preprocess, capacity=ramp, gamma=7.0)
    value, metrics = value_and_metrics(loss, step)
    distance = 0.5 * rate if step == 0 else rate
    np.testing.assert_allclose(value, metrics["distortion"] + 7 * distance, rtol=1e-5)
    np.testing.assert_allclose(metrics["rate"], rate, rtol=1e-5)
    np.testing.assert_allclose(
        metrics["elbo"], -metrics["distortion"] - metrics["rate"], rtol=1e-5
    )


def test_the_encoder_runs_once_there_and_back():
    """XLA's count for a wide encoder (196k multiply-adds) and a narrow decoder."""
    model = models.vae(
        priors.standard_normal(2),
        posteriors.normal(networks.mlp([2000], 4)),
        likelihoods.bernoulli(networks.mlp([3], 96)),
    )
    batch = {"x": jnp.ones((1, 96)), "step": jnp.int32(0)}
    params = quick_jit(model.init)(jax.random.key(0), batch["x"][0])
    loss = free_bits_loss(model, preprocess=preprocess, free_bits=0.1)
    step = quick_jit(jax.value_and_grad(loss, has_aux=True))
    cost = step.lower(params, jax.random.key(1), batch).compile().cost_analysis()
    assert cost["flops"] < 3.5 * 2 * 2000 * (96 + 4)


def test_wrong_objectives_are_errors():
    free = functools.partial(free_bits_loss, WRONG, preprocess=preprocess)
    for free_bits in (-0.1, np.inf, np.nan):
        with pytest.raises(ValueError, match="free_bits must be"):
            free(free_bits=free_bits)
    with pytest.raises(ValueError, match="num_samples"):
        free(free_bits=0.1, num_samples=0)
    capacity = functools.partial(capacity_loss, WRONG, preprocess=preprocess)
    for gamma in (0.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="gamma must be"):
            capacity(capacity=constant(1.0), gamma=gamma)
    for loss in (
        lambda: batch_loss(WRONG, preprocess=preprocess, beta=0.5),
        lambda: free(free_bits=0.1, beta=0.5),
        lambda: capacity(capacity=0.5, gamma=1.0),
    ):
        with pytest.raises(ValueError, match=r"schedules.constant\(0.5\)"):
            loss()
    full = free_bits_loss(EXACT, preprocess=preprocess, free_bits=0.1)
    with pytest.raises(ValueError, match="diagonal Gaussians, got a posterior Full"):
        jax.eval_shape(full, exact_params(), jax.random.key(0), batch_at(0))


PARAMS = {"posterior": {"w": np.ones(2)}, "likelihood": np.ones(3), "prior": {}}


def steps_of(optimizer, num_steps):
    """Each step's updates under gradients that differ from step to step."""
    params = jax.tree.map(lambda a: jnp.array(a, float), PARAMS)
    state, update, found = optimizer.init(params), quick_jit(optimizer.update), []
    for step in range(num_steps):
        grads = jax.tree.map(lambda a, s=step: jnp.cos(a + s), params)
        updates, state = update(grads, state, params)
        found.append(jax.device_get(updates))
    return found


def test_the_decoder_moves_in_one_step_of_every_few_and_later_in_all():
    adam = optax.adam(0.1)
    free = steps_of(adam, 12)
    held = steps_of(aggressive_encoder(adam, every=3, until=8), 12)
    moving = [2, 5, 8, 9, 10, 11]
    for step in range(12):
        encoder = [updates[step]["posterior"]["w"] for updates in (held, free)]
        np.testing.assert_array_equal(*encoder)
        expected = free[step]["likelihood"] * (step in moving)
        np.testing.assert_array_equal(held[step]["likelihood"], expected)
        assert np.all(free[step]["likelihood"] != 0)


def test_wrong_aggressive_updates_are_errors():
    for every, until in ((1, 10), (0, 10), (5, 4)):
        with pytest.raises(ValueError, match="every >= 2 and until >= every"):
            aggressive_encoder(optax.adam(0.1), every=every, until=until)
    optimizer = aggressive_encoder(optax.adam(0.1), every=2, until=10)
    for params in ({"posterior": np.ones(2)}, {"q": np.ones(2), "p": np.ones(2)}, ()):
        with pytest.raises(ValueError, match='"posterior": ..., more'):
            optimizer.init(params)


def stopped(scores, patience, start=0):
    return early_stopping.stops(EarlyStopping(patience, start), enumerate(scores))


def test_it_stops_after_so_many_validations_without_a_new_best():
    scores = [-9.0, -5.0, -6.0, -5.0]
    assert stopped(scores, 2) and not stopped(scores, 3)
    assert stopped([*scores, np.nan], 3)
    assert not stopped([*scores, -4.9], 1)
    assert not stopped([], 1)


def test_what_is_seen_before_beta_has_reached_its_end_counts_for_nothing():
    """A high score under a low beta is no best, and no later one loses against it."""
    falling = [-1.0, -8.0, -9.0, -9.5]
    assert stopped(falling, 2) and not stopped(falling, 2, start=4)
    later = [*falling, -7.0, -6.0, -6.5]
    assert stopped(later, 1, start=4) and not stopped(later, 2, start=4)
    assert stopped(later, 1, start=6) is False and stopped(falling, 1, start=2)


def test_wrong_early_stopping_is_an_error():
    for patience, start in ((0, 0), (1, -1)):
        with pytest.raises(ValueError, match="patience >= 1 and start >= 0"):
            stopped([], patience, start)


def test_a_schedule_has_settled_where_it_no_longer_changes():
    assert settled(constant(0.7), total_steps=50) == 0
    assert settled(linear(10, total_steps=50), total_steps=50) == 10
    assert settled(linear(50, total_steps=50), total_steps=50) == 50
    # It is at its end in each of its cycles, and has not settled there.
    cycles = cyclical(40, total_steps=50, num_cycles=4)
    assert float(cycles(8)) == float(cycles(50)) == 1
    assert settled(cycles, total_steps=50) == 35
    with pytest.raises(ValueError, match="at least 1 step"):
        settled(constant(1.0), total_steps=0)
