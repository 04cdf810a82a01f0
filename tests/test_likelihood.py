"""log p(x) by importance sampling, against the closed form, and active units."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import (
    EXACT,
    LOG_NOISE,
    MEAN,
    WEIGHT,
    WRONG,
    X,
    exact_elbo,
    exact_log_px,
    exact_params,
    quick_jit,
    wrong_params,
    z_scores,
)
from scipy import special, stats

from vi_jax import likelihoods, models, networks, posteriors, priors
from vi_jax.distributions import Normal
from vi_jax.evaluation import active_units, log_likelihood
from vi_jax.model import Model


def estimate(model, params, x, seed=0, **how):
    function = functools.partial(log_likelihood, model, **how)
    return quick_jit(function)(params, jax.random.key(seed), jnp.array(x, float))


@pytest.mark.parametrize("k, chunk", [(1, 50), (7, 3), (200, 50)])
def test_exact_posterior_gives_the_exact_answer_without_error(k, chunk):
    with jax.enable_x64(True):
        got = estimate(EXACT, exact_params(), X, num_samples=k, chunk=chunk)
        np.testing.assert_allclose(got.log_px, exact_log_px(), rtol=1e-10)
        np.testing.assert_allclose(got.elbo, exact_log_px(), rtol=1e-10)
        np.testing.assert_allclose(got.ess, k, rtol=1e-10)
        # One weight says nothing of its spread.
        assert np.isnan(got.stderr) if k == 1 else got.stderr < 1e-6


def test_a_wrong_posterior_is_off_by_its_standard_error():
    """60 x from the model, k = 4000: the errors, in stderr, have mean 0 and sd 1."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(60, 3)) * np.exp(LOG_NOISE)
    x = rng.normal(size=(60, 2)) @ WEIGHT.T + MEAN + noise
    one = lambda key, x: log_likelihood(WRONG, wrong_params(), key, x, num_samples=4000)
    keys = jax.random.split(jax.random.key(1), 60)
    got = quick_jit(jax.vmap(one))(keys, jnp.array(x, float))
    z = (np.asarray(got.log_px) - exact_log_px(x)) / np.asarray(got.stderr)
    assert np.max(abs(z)) < 4
    assert abs(z.mean()) < 4 / np.sqrt(60)
    assert 0.7 < z.std() < 1.3
    assert np.all((got.ess > 1) & (got.ess < 4000))


def test_rate_distortion_and_elbo_are_the_closed_forms():
    """Over 400 keys of k = 20, 4.5 standard errors; elbo = -rate - distortion."""
    keys = jax.random.split(jax.random.key(2), 400)
    x, params = jnp.array(X, float), wrong_params()
    one = lambda key: log_likelihood(WRONG, params, key, x, num_samples=20, chunk=8)
    got = quick_jit(jax.vmap(one))(keys)
    elbo = exact_elbo(WRONG, params, x, 1.0)
    distortion = -exact_elbo(WRONG, params, x, 0.0)
    assert abs(z_scores(got.elbo, elbo)) < 4.5
    assert abs(z_scores(got.distortion, distortion)) < 4.5
    assert abs(z_scores(got.rate, -elbo - distortion)) < 4.5
    assert elbo < np.mean(np.asarray(got.log_px)) < exact_log_px() + 0.01


def direct(keys):
    """Every field from log-weights written with scipy, at the draws of those keys."""
    params, x = wrong_params(), jnp.array(X, float)
    q = WRONG.posterior(params, x)
    z = np.asarray(quick_jit(jax.vmap(q.sample))(keys))
    log_lik = stats.norm(z @ WEIGHT.T + MEAN, np.exp(LOG_NOISE)).logpdf(X).sum(-1)
    log_w = log_lik + stats.norm.logpdf(z).sum(-1)
    log_w = log_w - stats.norm(q.loc, q.scale).logpdf(z).sum(-1)
    w, k = np.exp(log_w), len(log_w)
    stderr = w.std() / np.sqrt(k) / w.mean()
    elbo, distortion = log_w.mean(), -log_lik.mean()
    ess = w.sum() ** 2 / (w**2).sum()
    log_px = special.logsumexp(log_w) - np.log(k)
    return log_px, stderr, elbo, -elbo - distortion, distortion, ess


@pytest.mark.parametrize("k, chunk", [(7, 3), (6, 3), (2, 3)])
def test_the_last_chunk_counts_only_what_was_asked_for(k, chunk):
    """Equal to the direct computation on the first k draws, in float64."""
    key = jax.random.key(3)
    with jax.enable_x64(True):
        got = estimate(WRONG, wrong_params(), X, seed=3, num_samples=k, chunk=chunk)
        size = min(chunk, k)
        chunks = [
            jax.random.split(jax.random.fold_in(jax.random.clone(key), i), size)
            for i in range(-(-k // size))
        ]
        keys = jnp.concatenate(chunks)[:k]
        np.testing.assert_allclose(got[:-1], direct(keys), rtol=1e-9)


def test_the_chunk_does_not_change_the_distribution():
    """Means over 2000 keys at chunk 1 and 4 of k = 4 agree within 4.5 errors."""
    x, params, means = jnp.array(X, float), wrong_params(), []
    for chunk, seed in ((1, 4), (4, 5)):
        one = lambda key, chunk=chunk: log_likelihood(
            WRONG, params, key, x, num_samples=4, chunk=chunk
        )
        keys = jax.random.split(jax.random.key(seed), 2000)
        means.append(np.asarray(quick_jit(jax.vmap(one))(keys).log_px, np.float64))
    assert abs(z_scores(means[0] - means[1])) < 4.5
    np.testing.assert_allclose(means[0].std(), means[1].std(), rtol=0.15)


def test_memory_does_not_grow_with_the_number_of_samples():
    """An MLP with 784 pixels, 8 examples: k = 5,000 and 50,000 take the same space."""
    model = models.vae(
        priors.standard_normal(2),
        posteriors.normal(networks.mlp([4], 4)),
        likelihoods.bernoulli(networks.mlp([64], 784)),
    )
    x = jnp.ones((8, 784))
    params = quick_jit(model.init)(jax.random.key(0), x[0])
    keys = jax.random.split(jax.random.key(1), 8)

    def space(k):
        one = functools.partial(log_likelihood, model, num_samples=k)
        lowered = quick_jit(jax.vmap(one, (None, 0, 0))).lower(params, keys, x)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert space(50_000) < 1.1 * space(5_000)
    # The logits of 500 samples would take 12.5 MB, those of a chunk take 1.25 MB.
    assert space(500) < 5e6


@pytest.mark.parametrize(
    "how", [{"num_samples": 0}, {"num_samples": -5}, {"chunk": 0}, {"chunk": -1}]
)
def test_no_samples_is_an_error(how):
    with pytest.raises(ValueError, match="at least 1"):
        log_likelihood(
            WRONG, wrong_params(), jax.random.key(0), jnp.array(X, float), **how
        )


@pytest.mark.parametrize("size", [90.0, 1e4])
def test_many_samples_add_up_however_large_log_w_is(size):
    """log w = z - size, z ~ N(0, 1): log p(x) = 1/2 - size, the ELBO -size."""
    normal = Normal(jnp.zeros(1), jnp.ones(1))
    tilted = lambda params, z: SimpleNamespace(log_prob=lambda x: z[0] - size)
    model = Model(None, lambda params: normal, lambda params, x: normal, tilted)
    k, unit = 500_000, np.spacing(np.float32(size))
    got = estimate(model, (), X, num_samples=k)
    assert 0.0015 < got.stderr < 0.0025  # sqrt((e - 1) / k) = 0.0019
    assert abs(got.log_px - (0.5 - size)) < 4.5 * got.stderr + unit
    assert abs(got.elbo + size) < 4.5 / k**0.5 + unit
    assert abs(got.distortion - size) < 4.5 / k**0.5 + unit
    np.testing.assert_allclose(got.ess / k, np.exp(-1), rtol=0.02)


@pytest.mark.parametrize("least, log_px", [(0.0, np.log(0.5)), (99.0, -np.inf)])
def test_impossible_draws_count_as_nothing(least, log_px):
    """p(x | z) is 1 where z, from N(0, 1), is above `least`, and else 0."""
    normal = Normal(jnp.zeros(1), jnp.ones(1))
    log_lik = lambda z: jnp.where(z[0] > least, 0.0, -jnp.inf)
    given = lambda params, z: SimpleNamespace(log_prob=lambda x: log_lik(z))
    model = Model(None, lambda params: normal, lambda params, x: normal, given)
    got = estimate(model, (), X, num_samples=10_000)
    np.testing.assert_allclose(got.log_px, log_px, atol=0.045)  # 4.5 of 1 / sqrt(k)
    assert got.elbo == -np.inf and got.distortion == np.inf


@pytest.mark.parametrize("params, x", ["84", "48", "44", "88"])
def test_densities_of_either_width_meet_data_of_either(params, x):
    """With 64 bits on, 4 or 8 bytes a number."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: a.astype(f"f{params}"), exact_params())
        how = {"num_samples": 60, "chunk": 50}
        key = jax.random.key(0)
        got = log_likelihood(EXACT, params, key, jnp.array(X, f"f{x}"), **how)
        np.testing.assert_allclose(got.log_px, exact_log_px(), rtol=1e-5)


def test_weights_far_from_one_neither_overflow_nor_vanish():
    """log p(x) about -1e4 nats, and the error still that of the relative weights."""
    params = {**wrong_params(), "mean": jnp.array([90.0, -60.0, 40.0])}
    got = estimate(WRONG, params, X, num_samples=60)
    assert all(np.isfinite(field) for field in got[:-1])
    assert got.log_px < -5e3 and 1 <= got.ess <= 60 and got.stderr > 0


def test_active_units_vary_with_x_by_more_than_a_hundredth():
    """Variance over examples, not the size of the means."""
    signs = np.array([1.0, -1.0, 1.0, -1.0])
    columns = [0.11 * signs, 0.09 * signs, 5 + 0 * signs, 0 * signs, 30 + signs]
    means = jnp.array(np.stack(columns, -1), float)
    np.testing.assert_array_equal(
        active_units(means), [True, False, False, False, True]
    )
