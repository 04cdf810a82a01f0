"""The sigmoid belief network against sums over all its states in numpy float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import quick_jit, z_scores
from scipy import special

from vi_jax import maximum_likelihood, training
from vi_jax.data import batches
from vi_jax.models import sigmoid_belief_network

PRECISIONS = pytest.mark.parametrize("x64, tolerance", [(False, 1e-5), (True, 1e-12)])
SBN = sigmoid_belief_network(3)
PRIOR = np.array([0.7, -0.4, -1.2])
WEIGHT = np.array(
    [[1.9, -1.4, 0.3], [0.3, 2.7, -1.0], [-1.5, 0.2, 0.8], [0.6, 0.5, -2.2]]
)
BIAS = np.array([-0.5, 0.2, 0.4, -0.9])


def params() -> dict:
    """In the current default dtype; nothing about them is symmetric."""
    names = {"prior": PRIOR, "weight": WEIGHT, "bias": BIAS}
    return jax.tree.map(lambda a: jnp.array(a, float), names)


def states(d: int) -> np.ndarray:
    """All outcomes [2^d, d], coin 0 the fastest."""
    return np.array([z[::-1] for z in itertools.product([0.0, 1.0], repeat=d)])


def log_coins(x, logits) -> np.ndarray:
    """sum over the last axis of log Bernoulli(x; logits)."""
    return -np.logaddexp(0, np.where(x == 1, -logits, logits)).sum(-1)


def log_joints(x: np.ndarray) -> np.ndarray:
    """log p(x_i, z_j), [n, 8]."""
    z = states(3)
    return log_coins(x[:, None], z @ WEIGHT.T + BIAS) + log_coins(z, PRIOR)


X = states(4)


@PRECISIONS
def test_the_marginal_is_the_sum_over_all_states(x64, tolerance):
    """At every x; and over all x it sums to 1."""
    with jax.enable_x64(x64):
        each = lambda p: jax.vmap(SBN.marginal(p).log_prob)(jnp.array(X, float))
        got = quick_jit(each)(params())
    expected = special.logsumexp(log_joints(X), 1)
    np.testing.assert_allclose(got, expected, rtol=tolerance)
    np.testing.assert_allclose(np.sum(np.exp(got)), 1, rtol=tolerance)
    assert np.ptp(expected) > 2


@PRECISIONS
def test_the_posterior_is_bayes_rule_on_every_state(x64, tolerance):
    with jax.enable_x64(x64):

        def table(p, x):
            z = jnp.array(states(3), float)
            return jax.vmap(SBN.posterior(p, x).log_prob)(z)

        got = quick_jit(jax.vmap(table, (None, 0)))(params(), jnp.array(X, float))
    log_joint = log_joints(X)
    expected = log_joint - special.logsumexp(log_joint, 1, keepdims=True)
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
    # Its coins depend on each other, as no factorised q could have it.
    p = np.exp(expected)
    mean = p @ states(3)
    both = p @ (states(3)[:, 0] * states(3)[:, 1])
    assert np.max(abs(both - mean[:, 0] * mean[:, 1])) > 0.02


def test_prior_and_likelihood_are_coins():
    x, z = X[6], states(3)[5]
    with jax.enable_x64(True):
        p = params()
        prior = SBN.prior(p).log_prob(jnp.array(z))
        log_lik = SBN.likelihood(p, jnp.array(z)).log_prob(jnp.array(x))
    np.testing.assert_allclose(prior, log_coins(z, PRIOR), rtol=1e-12)
    np.testing.assert_allclose(log_lik, log_coins(x, WEIGHT @ z + BIAS), rtol=1e-12)


def test_draws_have_the_moments_of_the_sums():
    """x of the marginal, z of the posterior, z then x: first and second moments.

    20,000 draws, 4.5 standard errors over 48 numbers.
    """

    def draw(key):
        key_x, key_z, key_a, key_b = jax.random.split(key, 4)
        p = params()
        x = SBN.likelihood(p, SBN.prior(p).sample(key_a)).sample(key_b)
        z = SBN.posterior(p, jnp.array(X[6], float)).sample(key_z)
        return SBN.marginal(p).sample(key_x), z, x

    keys = jax.random.split(jax.random.key(0), 20_000)
    draws = quick_jit(jax.vmap(draw))(keys)
    joint = np.exp(log_joints(X))
    p_x, p_z = joint.sum(1), joint[6] / joint[6].sum()
    cases = zip(draws, (X, states(3), X), (p_x, p_z, p_x), strict=True)
    for values, outcomes, p in cases:
        values = np.asarray(values, np.float64)
        assert set(np.unique(values)) == {0, 1}
        pairs = lambda v: (v[:, :, None] * v[:, None, :]).reshape(len(v), -1)
        assert np.all(abs(z_scores(pairs(values), p @ pairs(outcomes))) < 4.5)


def test_init_fits_the_example_and_breaks_the_symmetry():
    """On average over z an initial logit is 0, so that no pixel starts decided."""
    start = sigmoid_belief_network(5).init(jax.random.key(0), jnp.zeros(6))
    assert jax.tree.map(jnp.shape, start) == {
        "prior": (5,),
        "weight": (6, 5),
        "bias": (6,),
    }
    assert np.linalg.matrix_rank(start["weight"]) == 5
    w, b = (np.asarray(start[k], np.float64) for k in ("weight", "bias"))
    logits = states(5) @ w.T + b
    np.testing.assert_allclose(logits.mean(0), 0, atol=1e-6)


def test_maximum_likelihood_on_the_marginal_reaches_the_entropy_of_the_data():
    """Two coins of 3/4, each seen in three pixels: 2 H(3/4) nats of entropy.

    No model has a higher mean log p(x); two latents can reach it, within 0.03 nats.
    """
    coins = np.repeat(states(2), [1, 3, 3, 9], axis=0)
    x = np.concatenate([coins, 1 - coins, coins], 1).astype(np.float32)
    best = 2 * (0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    model = sigmoid_belief_network(2)
    start = model.init(jax.random.key(1), jnp.array(x[0]))
    optimizer = training.adam(0.2, num_steps=800)
    steps = training.fit(
        maximum_likelihood.negative_log_likelihood(model.marginal),
        optimizer,
        training.init_state(start, optimizer),
        batches.shuffled({"x": x}, batch_size=16, seed=0),
        seed=0,
        num_steps=800,
        scan_steps=400,
    )
    *_, (state, _) = steps
    value = lambda p: maximum_likelihood.log_likelihood(model.marginal(p), jnp.array(x))
    before, after = value(start), value(state.params)
    assert before < best - 1.0
    assert best - 0.03 < after < best


def test_twelve_latents_are_affordable():
    """A gradient over 20 images of 64 pixels holds one table of [n, 2^d, D], no more.

    That is 21 MB of floats; all its temporaries take 28 MB.
    """
    model = sigmoid_belief_network(12)
    x = jax.random.bernoulli(jax.random.key(0), 0.5, (20, 64)).astype(float)
    start = model.init(jax.random.key(1), x[0])
    loss = lambda p: maximum_likelihood.log_likelihood(model.marginal(p), x)
    step = jax.jit(jax.value_and_grad(loss)).lower(start).compile()
    value, gradient = step(start)
    assert np.isfinite(value) and -200 < value < 0
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))
    assert model.posterior(start, x[0]).logits.shape == (4096,)
    assert step.memory_analysis().temp_size_in_bytes < 40e6


@pytest.mark.parametrize("latents", [0, -1, 13, 784])
def test_latents_that_cannot_be_summed_over_are_an_error(latents):
    with pytest.raises(ValueError, match="allow 1 to 12"):
        sigmoid_belief_network(latents)


def test_one_latent_works():
    model = sigmoid_belief_network(1)
    x = jnp.array([1.0, 0.0])
    start = model.init(jax.random.key(2), x)
    w, b = (np.asarray(start[k], np.float64) for k in ("weight", "bias"))
    log_liks = [log_coins(np.array([1, 0]), w @ [z] + b) for z in (0.0, 1.0)]
    expected = special.logsumexp(log_liks) - np.log(2)
    np.testing.assert_allclose(model.marginal(start).log_prob(x), expected, rtol=1e-5)
