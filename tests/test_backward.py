"""The backward pass of few samples: the same value, the same mean, less work."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import WRONG, X, quick_jit, tree_z_scores, wrong_params
from scipy import optimize

from vi_jax import (
    backward,
    bounds,
    estimators,
    likelihoods,
    models,
    networks,
    objectives,
    posteriors,
    priors,
)
from vi_jax.distributions import Normal
from vi_jax.model import Terms, sampled_terms
from vi_jax.objectives import per_example

K = 12
SHARES = {
    "uneven": np.exp(3 * np.random.default_rng(0).standard_normal(K)),
    "even": np.full(K, 0.3),
    "one of many": np.r_[1.0, np.full(K - 1, 1e-6)],
    "ties": np.repeat([5.0, 1.0, 0.01], 4),
}


def inclusion(shares, num):
    """min(1, shares / c) with c by scipy, in float64."""
    total = lambda log_c: np.sum(np.minimum(1, shares / np.exp(log_c))) - num
    log_c = optimize.brentq(total, np.log(shares.min() / 10), np.log(10 * shares.sum()))
    return np.minimum(1, shares / np.exp(log_c))


@pytest.mark.parametrize("num", [1, 3, K - 1])
@pytest.mark.parametrize("shares", SHARES)
def test_each_is_drawn_as_often_as_it_should_be(shares, num):
    """20,000 draws, 12 frequencies a case, 144 in all: |z| < 4.5."""
    shares = SHARES[shares]
    keys = jax.random.split(jax.random.key(num), 20_000)
    draw = lambda key: backward.draw_few(key, jnp.asarray(shares, jnp.float32), num)
    drawn, p = map(np.asarray, quick_jit(jax.vmap(draw))(keys))
    expected = inclusion(shares, num)
    assert all(len({*row}) == num for row in drawn[:2000].tolist())
    np.testing.assert_allclose(p, expected[drawn], rtol=1e-5)
    often = np.bincount(drawn.ravel(), minlength=K) / len(drawn)
    error = np.sqrt(expected * (1 - expected) / len(drawn))
    sure = error < 1e-9
    np.testing.assert_array_equal(often[sure], 1.0)
    assert np.max(abs(often - expected)[~sure] / error[~sure], initial=0) < 4.5


BOUNDS = {
    "elbo": bounds.elbo,
    "iwae": bounds.iwae,
    "renyi": functools.partial(bounds.renyi, alpha=-1.0),
    "miwae": functools.partial(bounds.miwae, groups=3),
}
MIWAE = estimators.paired(BOUNDS["miwae"], estimators.dreg)


@pytest.mark.parametrize(
    "bound, estimator",
    [
        ("elbo", estimators.stl),
        ("iwae", estimators.wake_sleep),
        *[("iwae", e) for e in (estimators.score, estimators.vimco, MIWAE)],
        *[(b, estimators.reparam) for b in BOUNDS],
        *[(b, estimators.dreg) for b in BOUNDS],
    ],
)
def test_value_and_mean_of_the_gradient_are_those_of_all(bound, estimator):
    """At the same z, 10,000 draws of 3 of 12, 20 parameters a case: |z| < 4.5."""
    params, x = wrong_params(), jnp.array(X, float)
    terms = sampled_terms(WRONG, x)

    def value(params, key=None):
        few = functools.partial(backward.of_few, terms, BOUNDS[bound], beta=0.7)
        how = terms if key is None else few(key, num_backward=3)
        q = WRONG.posterior(params, x)
        z = jax.vmap(q.sample)(jax.random.split(jax.random.key(1), K))
        return estimator(BOUNDS[bound], how, params, q, z, beta=0.7)

    both = jax.value_and_grad(value)
    expected, truth = quick_jit(both)(params)
    keys = jax.random.split(jax.random.key(2), 10_000)
    values, draws = quick_jit(jax.vmap(both, (None, 0)))(params, keys)
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert min(np.max(abs(leaf)) for leaf in jax.tree.leaves(truth)) > 0.001
    assert np.max(abs(tree_z_scores(draws, truth))) < 4.5
