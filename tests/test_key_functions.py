"""The three tutorial functions, against scipy and float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import quick_jit, z_scores
from scipy import special, stats

import vi_jax
from vi_jax import objectives
from vi_jax.distributions import Bernoulli, Normal
from vi_jax.model import Model, analytic_terms

MU = np.array([0.4, -1.3])
LOG_VAR = np.array([-1.1, 0.6])


def test_sample_gaussian_has_the_moments_and_carries_the_gradient():
    """20,000 draws, 4.5 standard errors; d E[z^2] is 2 mu, and the variance."""

    def square(mu, log_var, key):
        return jnp.sum(vi_jax.sample_gaussian(key, mu, log_var) ** 2)

    def draw(key):
        key_z, key_g = jax.random.split(key)
        mu, log_var = jnp.array(MU, float), jnp.array(LOG_VAR, float)
        z = vi_jax.sample_gaussian(key_z, mu, log_var)
        moments = jnp.stack([z, (z - mu) ** 2])
        return moments, jax.grad(square, argnums=(0, 1))(mu, log_var, key_g)

    draws = quick_jit(jax.vmap(draw))(jax.random.split(jax.random.key(1), 20_000))
    moments, (d_mu, d_log_var) = draws
    assert np.all(abs(z_scores(moments, [MU, np.exp(LOG_VAR)])) < 4.5)
    assert np.all(abs(z_scores(d_mu, 2 * MU)) < 4.5)
    assert np.all(abs(z_scores(d_log_var, np.exp(LOG_VAR))) < 4.5)
    assert abs(np.corrcoef(np.asarray(moments[:, 0]).T)[0, 1]) < 0.04


def test_sample_gaussian_of_a_batch_draws_for_each_example():
    key = jax.random.key(0)
    z = vi_jax.sample_gaussian(key, jnp.zeros((3, 4)), jnp.zeros((3, 4)))
    assert len(np.unique(np.asarray(z))) == 12


@pytest.mark.parametrize("shape", [(2,), (5, 2)])
@pytest.mark.parametrize("x64, tolerance", [(False, 1e-5), (True, 1e-12)])
def test_log_normal_is_scipys(shape, x64, tolerance):
    x = np.random.default_rng(0).normal(0.5, 2, shape)
    mu, log_var = np.broadcast_to(MU, shape), np.broadcast_to(LOG_VAR, shape)
    with jax.enable_x64(x64):
        got = quick_jit(vi_jax.log_normal)(
            *(jnp.array(a, float) for a in (x, mu, log_var))
        )
    expected = stats.norm(mu, np.exp(log_var / 2)).logpdf(x).sum(-1)
    assert got.shape == shape[:-1]
    np.testing.assert_allclose(got, expected, rtol=tolerance)


def naive(x, logits, mu, log_var):
    log_lik = x * special.log_expit(logits) + (1 - x) * special.log_expit(-logits)
    kl = 0.5 * (mu**2 + np.exp(log_var) - log_var - 1)
    return kl.sum(-1) - log_lik.sum(-1)


@pytest.mark.parametrize("shape", [(), (6,)])
@pytest.mark.parametrize("x64, tolerance", [(False, 1e-5), (True, 1e-12)])
def test_negative_elbo_bound_is_its_formula(shape, x64, tolerance):
    """Per example, a sum over pixels and latents; binary and grey pixels."""
    rng = np.random.default_rng(1)
    x = rng.random((*shape, 7)).round() * 0.8
    logits, mu = rng.normal(0, 4, (*shape, 7)), rng.normal(0, 1, (*shape, 3))
    log_var = rng.normal(-1, 1, (*shape, 3))
    arguments = (x, logits, mu, log_var)
    with jax.enable_x64(x64):
        got = quick_jit(vi_jax.negative_elbo_bound)(
            *(jnp.array(a, float) for a in arguments)
        )
    assert got.shape == shape
    np.testing.assert_allclose(got, naive(*arguments), rtol=tolerance)


def test_negative_elbo_bound_is_finite_and_right_at_extreme_logits():
    """Two confidently wrong pixels cost 2e4 nats, with gradient sigmoid - x."""
    x = jnp.array([1.0, 0.0, 1.0, 0.0])
    logits = jnp.array([1e4, -1e4, -1e4, 1e4])
    zero = jnp.zeros(2)
    loss = lambda logits: vi_jax.negative_elbo_bound(x, logits, zero, zero)
    value, slope = jax.value_and_grad(loss)(logits)
    assert value == 2e4
    np.testing.assert_array_equal(slope, [0.0, 0.0, -1.0, 1.0])


def test_negative_elbo_bound_is_the_librarys_analytic_elbo():
    """The same number from `per_example` with the KL in closed form, same draw."""
    matrix = jnp.array([[0.5, -1.0], [2.0, 0.3], [-0.7, 0.9]])
    mu, log_var = jnp.array(MU, float), jnp.array(LOG_VAR, float)
    x = jnp.array([1.0, 0.0, 1.0])
    model = Model(
        init=None,
        prior=lambda params: Normal(jnp.zeros(2), jnp.ones(2)),
        posterior=lambda params, x: Normal(mu, jnp.exp(0.5 * log_var)),
        likelihood=lambda params, z: Bernoulli(params @ z),
    )
    key = jax.random.key(4)
    key_z = jax.random.split(key, 1)[0]
    value = functools.partial(objectives.per_example, model, terms=analytic_terms)
    elbo, _ = quick_jit(value)(matrix, jax.random.clone(key), x)
    z = vi_jax.sample_gaussian(key_z, mu, log_var)
    loss = vi_jax.negative_elbo_bound(x, matrix @ z, mu, log_var)
    np.testing.assert_allclose(loss, -elbo, rtol=1e-6)


def test_a_scalar_mean_or_variance_does_not_share_its_noise():
    for mu, log_var in ((0.0, jnp.zeros(4)), (jnp.zeros(4), 0.0)):
        draw = vi_jax.sample_gaussian(jax.random.key(0), mu, log_var)
        assert len(np.unique(draw)) == 4
