"""The tail of importance weights against an independent library and known tails."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import EXACT, WRONG, X, exact_params, quick_jit, wrong_params
from scipy import special, stats

from vi_jax.distributions import Bernoulli
from vi_jax.evaluation import log_likelihood
from vi_jax.evaluation.psis import pareto_k, tail_length
from vi_jax.model import Model

# (scale, k-hat) by arviz-stats 0.8.0 of 5,000 normal log-weights, drawn in this order.
ARVIZ = [
    (0.3, -0.10328518489431625),
    (1, 0.2215178392774027),
    (2, 0.6403773151464213),
    (4, 1.3806661866878268),
    (8, 3.2380262117776852),
    (30, 9.746377642046648),
]


def of(log_w):
    top = np.sort(log_w)[-tail_length(len(log_w)) - 1 :]
    w = np.exp(np.float64(log_w) - np.max(log_w))
    even = w.sum() ** 2 / (w**2).sum() > len(w) / 2
    return quick_jit(pareto_k)(jnp.array(top, jnp.float32), even)


def test_khat_is_that_of_arviz():
    rng = np.random.default_rng(0)
    for scale, expected in ARVIZ:
        log_w = rng.normal(size=5000) * scale - 80
        np.testing.assert_allclose(of(log_w), expected, rtol=1e-4)


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_khat_finds_the_shape_of_a_pareto_tail(shape):
    """Mean over 200 samples of 10,000: within 0.05, and its spread that of theory."""
    draws = stats.genpareto(shape).rvs((200, 10_000), random_state=1)
    found = np.array([of(np.log(w)) for w in draws])
    # The prior alone draws 0.9 towards 0.5 by 0.02.
    assert abs(found.mean() - shape) < 0.05
    # Maximum likelihood of m exceedances has sd (1 + k) / sqrt(m), less a prior's pull.
    assert found.std() < 1.2 * (1 + shape) / tail_length(10_000) ** 0.5


def test_the_tail_has_the_published_length():
    assert [tail_length(k) for k in (10, 100, 225, 5000, 10**6)] == [
        2,
        20,
        45,
        212,
        212,
    ]


@pytest.mark.parametrize("num_samples, chunk", [(1000, 50), (1003, 37)])
def test_the_estimate_of_log_px_carries_the_khat_of_all_its_weights(num_samples, chunk):
    """However it is cut into chunks: against the same weights, kept whole."""
    how = {"num_samples": num_samples, "chunk": chunk}
    x, key = jnp.array(X, float), jax.random.key(1)
    got = quick_jit(lambda key: log_likelihood(WRONG, wrong_params(), key, x, **how))(
        key
    )

    def weights(key):
        q = WRONG.posterior(wrong_params(), x)
        chunks = []
        for i in range(-(-num_samples // chunk)):
            keys = jax.random.split(jax.random.fold_in(key, i), chunk)
            z = jax.vmap(q.sample)(keys)
            joint = jax.vmap(lambda z: WRONG.likelihood(wrong_params(), z).log_prob(x))(
                z
            )
            joint += jax.vmap(WRONG.prior(wrong_params()).log_prob)(z)
            chunks.append(joint - jax.vmap(q.log_prob)(z))
        return jnp.concatenate(chunks)[:num_samples]

    log_w = np.asarray(jax.jit(weights)(jax.random.clone(key)))
    np.testing.assert_allclose(got.khat, of(log_w), rtol=2e-3)


def test_an_exact_posterior_has_no_tail():
    x, key = jnp.array(X, float), jax.random.key(1)
    got = log_likelihood(EXACT, exact_params(), key, x, num_samples=200)
    assert got.khat == 0


@pytest.mark.parametrize("size", [1e2, 1e3, 1e4])
def test_weights_that_agree_but_for_rounding_have_no_tail(size):
    """In float32, whose unit is 0.001 at 1e4; ties are no sign of a heavy tail."""
    noise = np.random.default_rng(0).normal(size=5000)
    for spread in np.geomspace(1e-6, 1.0, 25):
        log_w = (spread * noise - size).astype(np.float32)
        assert -0.5 < of(log_w) < 0.3
    # And a heavy one among ties is found: a hundredth of the weights a hundredfold.
    heavy = np.where(np.arange(5000) < 50, 5 * abs(noise), 0) + 1e-4 * noise - size
    assert of(heavy.astype(np.float32)) > 0.7


@pytest.mark.parametrize("num_samples", [100, 1000, 5000])
@pytest.mark.parametrize("size", [3.0, 1e2, 1e4])
def test_discrete_latents_raise_no_false_alarm(num_samples, size):
    """Three classes, coins, and many: nearly exact, so that ess is above 0.9 k."""
    rng = np.random.default_rng(0)
    found = []
    for num_outcomes in [3] * 60 + [4, 16, 64] * 20:
        q = rng.dirichlet(np.ones(num_outcomes))
        log_ratio = rng.uniform(-0.4, 0.4, num_outcomes)
        counts = rng.multinomial(num_samples, q)
        log_w = np.repeat(log_ratio, counts) - size
        found.append(of(log_w.astype(np.float32)))
    assert np.mean(np.array(found) > 0.7) < 0.05
    assert np.isnan(found).any()


def test_coins_that_q_hardly_throws_still_raise_the_alarm():
    """Ten of chance 0.3 under a q of 0.01: 5,000 samples are half a nat too low."""
    coins = np.random.default_rng(0).random((20, 5000, 10)) < 0.01
    log_w = (coins * np.log(0.3 / 0.01) + ~coins * np.log(0.7 / 0.99)).sum(-1)
    assert np.log(np.exp(log_w).mean(1)).mean() < -0.2  # where the truth is 0
    assert all(of(row.astype(np.float32)) > 0.7 for row in log_w)


@pytest.mark.parametrize("chance, alarm", [(0.25, False), (0.01, True)])
def test_the_estimate_of_log_px_tells_even_weights_of_coins_from_others(chance, alarm):
    coins = lambda p: Bernoulli(jnp.full(10, special.logit(p)))
    model = Model(
        init=lambda key, x: {},
        prior=lambda params: coins(0.3),
        posterior=lambda params, x: coins(chance),
        likelihood=lambda params, z: Bernoulli(jnp.zeros(1)),
    )
    run = functools.partial(log_likelihood, model, {}, num_samples=5000)
    got = quick_jit(run)(jax.random.key(0), jnp.ones(1))
    assert got.khat > 0.7 if alarm else jnp.isnan(got.khat)
    assert (abs(got.log_px + np.log(2)) > 0.1) == alarm


def test_of_a_hundred_different_weights_ties_leave_a_khat():
    """Those of a Pareto tail, each drawn twice: the shape is the same to 0.1."""
    log_w = np.log(stats.genpareto(0.6).rvs(5000, random_state=1))
    once, twice = of(log_w), of(np.repeat(np.sort(log_w)[::2], 2))
    assert abs(once - twice) < 0.1


def test_few_samples_have_no_khat_and_hopeless_ones_an_infinite_one():
    assert np.isnan(of(np.random.default_rng(0).normal(size=20)))
    assert of(1000 * np.random.default_rng(0).normal(size=5000)) == np.inf
