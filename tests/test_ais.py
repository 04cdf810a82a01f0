"""Annealed importance sampling where log p(x) is known: exact means, a sandwich."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import EXACT, X, exact_log_px, exact_params, quick_jit, z_scores
from scipy import special

from vi_jax.distributions import Bernoulli, Mixture, Normal
from vi_jax.evaluation import Annealing, ais, reverse_ais, sigmoid_betas, tune
from vi_jax.models import sigmoid_belief_network

# A start off the prior, so that a bridge that forgets it is seen.
START = Normal(jnp.array([0.3, -0.2]), jnp.array([0.8, 1.2]))
# Its draws carry no gradient, but are continuous.
MIXED = Mixture(
    jnp.array([0.4, -0.3]),
    Normal(jnp.array([[0.3, -0.2], [-0.5, 0.6]]), jnp.array([[0.8, 1.2], [1.5, 0.9]])),
)
STARTS = {"prior": None, "elsewhere": START, "mixture": MIXED}


def coarse(step_size=0.9, num_steps=4):
    """Few, long steps: a third of the moves is refused, and errors show."""
    betas = sigmoid_betas(num_steps)
    return Annealing(betas, jnp.full(num_steps, step_size), 2)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("annealing", [coarse(), coarse(num_steps=1)], ids=["4", "1"])
def test_the_mean_weight_is_px_whatever_the_steps(start, annealing):
    """40,000 chains, |z| < 4: so the transitions leave each bridge invariant."""
    run = lambda key: ais(
        EXACT,
        exact_params(),
        key,
        jnp.array(X, float),
        annealing,
        num_chains=40_000,
        start=STARTS[start],
    )
    found = quick_jit(run)(jax.random.key(1))
    weights = np.exp(np.asarray(found.log_w, np.float64) - exact_log_px())
    assert abs(z_scores(weights, 1.0)) < 4
    np.testing.assert_allclose(
        found.log_px, exact_log_px() + np.log(weights.mean()), 1e-5
    )
    relative = weights.std() / weights.mean() / len(weights) ** 0.5
    np.testing.assert_allclose(found.stderr, relative, rtol=1e-3)
    assert found.acceptance == 1 or 0.5 < found.acceptance < 0.9


def simulated(key):
    """(z, x) from the model, and log p(x)."""
    key_z, key_x = jax.random.split(key)
    z = EXACT.prior(exact_params()).sample(key_z)
    x = EXACT.likelihood(exact_params(), z).sample(key_x)
    return z, x, EXACT.marginal(exact_params()).log_prob(x)


@functools.cache
def sandwich(num_steps, start="prior"):
    """(lower - log p(x), upper - log p(x)) of 20,000 simulated examples, one chain."""

    def one(key):
        key_data, key_up, key_down = jax.random.split(key, 3)
        z, x, log_px = simulated(key_data)
        how = {"num_chains": 1, "start": STARTS[start]}
        annealing = coarse(num_steps=num_steps)
        lower = ais(EXACT, exact_params(), key_up, x, annealing, **how).log_px
        upper = reverse_ais(EXACT, exact_params(), key_down, x, z, annealing, **how)
        return lower - log_px, upper.log_px - log_px

    keys = jax.random.split(jax.random.key(2), 20_000)
    return np.asarray(quick_jit(jax.vmap(one))(keys), np.float64)


@pytest.mark.parametrize("start", ["prior", "elsewhere"])
def test_the_mean_inverse_weight_backwards_is_one_over_px(start):
    """20,000 simulated examples, |z| < 4: E[exp(log p(x) - upper)] = 1."""
    assert abs(z_scores(np.exp(-sandwich(8, start)[1]), 1.0)) < 4


def test_both_directions_sandwich_log_px_and_close_with_more_steps():
    """On average, by more than 4 standard errors each, the gap falling as the steps."""
    gaps = []
    for num_steps in (8, 64):
        lower, upper = sandwich(num_steps)
        assert z_scores(lower) < -4 and z_scores(upper) > 4
        gaps.append(upper.mean() - lower.mean())
    assert gaps[1] < gaps[0] / 3


def test_tuned_ais_finds_log_px_within_its_error():
    """200 steps: to 3 hundredths of a nat, and within 4 of its standard errors."""
    x = jnp.array(X, float)

    def run(key):
        key_tune, key_run = jax.random.split(key)
        annealing = tune(EXACT, exact_params(), key_tune, x, num_steps=200)
        how = {"num_chains": 200}
        return annealing, ais(EXACT, exact_params(), key_run, x, annealing, **how)

    annealing, found = quick_jit(run)(jax.random.key(4))
    assert abs(found.log_px - exact_log_px()) < 4 * found.stderr < 0.06
    # From 0.1 the step size grew until a tuned share of the moves is accepted.
    assert annealing.step_sizes[-1] > 0.5
    assert 0.5 < found.acceptance < 0.9


def test_the_schedule_is_a_sigmoid():
    """Wu et al.'s: from 0 to 1, and 4 (2 i / t - 1) through the logistic function."""
    i = np.arange(11)
    s = special.expit(4.0 * (2 * i / 10 - 1))
    expected = (s - s[0]) / (s[-1] - s[0])
    np.testing.assert_allclose(sigmoid_betas(10), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(sigmoid_betas(1), [0, 1])


def test_a_diverging_path_is_refused():
    """Steps of 1e30 have no finite energy: nothing moves, the weight is finite."""
    annealing = coarse(step_size=1e30)
    found = ais(
        EXACT, exact_params(), jax.random.key(5), jnp.array(X, float), annealing
    )
    assert found.acceptance == 0
    assert np.isfinite(found.log_px)


def test_bad_input_is_an_error():
    params, x, key = exact_params(), jnp.array(X, float), jax.random.key(0)
    for num_steps in (0, -3):
        with pytest.raises(ValueError, match="at least 1 step"):
            sigmoid_betas(num_steps)
    for steepness in (0, -1, np.nan):
        with pytest.raises(ValueError, match="steepness"):
            sigmoid_betas(5, steepness=steepness)
    for how in ({"num_leapfrog": 0}, {"num_chains": 0}, {"step_size": 0.0}):
        with pytest.raises(ValueError, match="needed"):
            tune(EXACT, params, key, x, **how)
    with pytest.raises(ValueError, match="one chain"):
        ais(EXACT, params, key, x, coarse(), num_chains=0)
    empty = Annealing(jnp.zeros(1), jnp.zeros(0), 2)
    with pytest.raises(ValueError, match="one step"):
        reverse_ais(EXACT, params, key, x, jnp.zeros(2), empty)
    with pytest.raises(ValueError, match="one array.*importance sampling"):
        reverse_ais(EXACT, params, key, x, (jnp.zeros(2),), coarse())


COINS = Bernoulli(jnp.zeros(2))


@pytest.mark.parametrize(
    "model, start",
    [
        (sigmoid_belief_network(2), None),
        (sigmoid_belief_network(2), START),
        (EXACT, COINS),
        (EXACT, Mixture(jnp.zeros(1), Bernoulli(jnp.zeros((1, 2))))),
    ],
    ids=["prior", "only the prior", "start", "mixture"],
)
def test_discrete_latents_are_an_error(model, start):
    """Floats of 0 or 1 would move off their values, to where p(x, z) means nothing."""
    x, keys = jnp.array(X, float), jax.random.split(jax.random.key(0), 4)
    params, how = model.init(keys[0], x), {"start": start}
    for call in (
        lambda: tune(model, params, keys[1], x, num_steps=2, **how),
        lambda: ais(model, params, keys[2], x, coarse(), **how),
        lambda: reverse_ais(model, params, keys[3], x, jnp.zeros(2), coarse(), **how),
    ):
        with pytest.raises(ValueError, match="are discrete.*importance"):
            call()


def test_the_error_of_one_chain_is_not_known():
    x, key = jnp.array(X, float), jax.random.key(0)
    found = ais(EXACT, exact_params(), key, x, coarse(), num_chains=1)
    assert np.isfinite(found.log_px) and np.isnan(found.stderr)
