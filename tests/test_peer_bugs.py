"""Mistakes that public VAE libraries have made, one small test for each.

The contracts cover most of them in depth; this is the list by name.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import (
    WRONG,
    X,
    exact_log_px,
    quick_jit,
    wrong_params,
)
from scipy import stats

from vi_jax import (
    bounds,
    likelihoods,
    models,
    networks,
    objectives,
    posteriors,
    priors,
    schedules,
)
from vi_jax.data import batches
from vi_jax.distributions import Bernoulli, Normal
from vi_jax.divergences import kl
from vi_jax.evaluation import log_likelihood
from vi_jax.model import analytic_terms
from vi_jax.total_correlation import (
    batch_kl_parts,
    minibatch_stratified,
    permute_latents,
)


def tiny(pixels, latents, likelihood=likelihoods.bernoulli):
    return models.vae(
        priors.standard_normal(latents),
        posteriors.normal(networks.mlp([3], 2 * latents)),
        likelihood(networks.mlp([3], pixels)),
    )


def loss_of(model, **how):
    preprocess = lambda key, batch: batch["x"]
    return objectives.batch_loss(model, preprocess=preprocess, **how)


def test_elbo_sums_over_pixels_and_latents_and_averages_over_examples():
    """Not a mean over pixels (another beta), nor a sum over the batch."""
    model = tiny(pixels=40, latents=5)
    x = jnp.full((8, 40), 1.0)
    params = quick_jit(model.init)(jax.random.key(0), x[0])
    params = jax.tree.map(lambda a: jnp.array(np.zeros(a.shape), a.dtype), params)
    params["posterior"]["Dense_1"]["bias"] = jnp.array([2.0] * 5 + [0.0] * 5)
    loss = quick_jit(loss_of(model, terms=analytic_terms))
    value, metrics = loss(params, jax.random.key(1), {"x": x, "step": 0})
    np.testing.assert_allclose(metrics["distortion"], 40 * np.log(2), rtol=1e-5)
    np.testing.assert_allclose(metrics["rate"], 5 * 0.5 * 2.0**2, rtol=1e-5)
    np.testing.assert_allclose(value, 40 * np.log(2) + 10, rtol=1e-5)


def test_gaussian_likelihood_keeps_its_constants_and_its_half():
    """Neither D/2 log 2 pi, nor log sigma, nor the 1/2 of the square is dropped."""
    model = tiny(pixels=4, latents=2, likelihood=likelihoods.normal)
    params = quick_jit(model.init)(jax.random.key(0), jnp.zeros(4))
    p = model.likelihood(params, jnp.array([0.3, -1.0]))
    x = np.array([3.0, -1.0, 0.2, 7.0])
    loc, scale = np.asarray(p.loc, np.float64), np.asarray(p.scale, np.float64)
    expected = stats.norm(loc, scale).logpdf(x).sum()
    np.testing.assert_allclose(p.log_prob(jnp.array(x, float)), expected, rtol=1e-5)


def test_the_worst_sample_has_the_least_weight_in_the_iwae():
    """The gradient is softmax(log_w), not softmax(-log_w), and sums to 1."""
    log_w = np.array([-90.0, -88.0, -93.0])
    weights = jax.grad(bounds.iwae)(jnp.array(log_w, float))
    expected = np.exp(log_w + 88) / np.exp(log_w + 88).sum()
    np.testing.assert_allclose(weights, expected, rtol=1e-5)


def test_the_iwae_reports_the_bound_and_not_its_surrogate():
    """sum w log w is optimistic, above log p(x) even; log mean w is not.

    1000 examples of k = 50 log-normal weights with sd 2 and E[w] = 1, so log p(x) = 0.
    """
    log_w = np.random.default_rng(0).normal(-2, 2, (1000, 50))
    w = np.exp(log_w) / np.exp(log_w).sum(1, keepdims=True)
    surrogate = (w * log_w).sum(1).mean()
    value = np.mean(np.asarray(jax.vmap(bounds.iwae)(jnp.array(log_w, float))))
    assert -0.6 < value < 0 < 1 < surrogate


def test_every_example_is_evaluated_and_none_twice():
    """7 examples in batches of 3: neither the last one dropped nor its filling kept."""
    x = np.float32(np.linspace(-1, 1, 7)[:, None] * X + 0.1)
    total = count = 0
    each = quick_jit(jax.vmap(exact_bound))
    for rows, mask in batches.padded(x, batch_size=3):
        assert rows.shape == (3, 3)
        total += np.asarray(each(rows))[mask].sum()
        count += mask.sum()
    assert count == 7
    np.testing.assert_allclose(total / 7, exact_log_px(x).mean(), rtol=1e-5)


def exact_bound(x):
    """log p(x) of one example, by an evaluation that is exact here."""
    params = wrong_params()
    exact = models.linear_gaussian(2)
    return log_likelihood(exact, params, jax.random.key(0), x, num_samples=2).log_px


def test_log_likelihood_is_higher_for_likelier_data_and_takes_one_sample():
    """No sign flipped under the name nll; k = 1 draws one sample, not 100."""
    one = quick_jit(functools.partial(log_likelihood, WRONG, num_samples=1))
    value = lambda x: one(wrong_params(), jax.random.key(0), jnp.array(x, float))
    near, far = value(X), value(X + 9.0)
    assert near.log_px > far.log_px + 10
    assert near.log_px == near.elbo
    np.testing.assert_allclose(near.ess, 1, rtol=1e-6)


def test_the_kl_is_on_unless_turned_off():
    """By default beta is 1, at any step, without a capacity below which it is free."""
    params, key = wrong_params(), jax.random.key(0)
    loss = quick_jit(loss_of(WRONG))
    for step in (0, 10_000):
        batch = {"x": jnp.array(X[None], float), "step": step}
        value, metrics = loss(params, jax.random.clone(key), batch)
        assert metrics["beta"] == 1
        np.testing.assert_allclose(value, metrics["rate"] + metrics["distortion"], 1e-5)
    small = kl(Normal(jnp.array([0.1]), jnp.ones(1)), Normal(jnp.zeros(1), jnp.ones(1)))
    np.testing.assert_allclose(small, 0.005, rtol=1e-5)


def test_annealing_that_cannot_finish_is_an_error_and_ends_at_full_weight():
    """Warm-up longer than the training silently trains with beta below 1."""
    with pytest.raises(ValueError, match="never reach its end"):
        schedules.linear(1000, total_steps=400)
    ramp = schedules.linear(400, total_steps=400)
    np.testing.assert_array_equal([ramp(0), ramp(400), ramp(10**6)], [0, 1, 1])


def test_a_batch_is_a_mean_of_bounds_and_no_bound_of_a_mean():
    """Plates as batches: log-mean-exp over samples of each example, never across."""
    x = np.stack([X, X + 3.0])
    params, key = wrong_params(), jax.random.key(0)
    loss = loss_of(WRONG, bound=bounds.iwae, num_samples=200)
    batch = {"x": jnp.array(x, float), "step": 0}
    value, _ = quick_jit(loss)(params, key, batch)
    exact = exact_log_px(x)
    np.testing.assert_allclose(-value, exact.mean(), atol=0.1)
    # Averaging p(x) over the two examples instead would be nats away.
    assert np.logaddexp(*exact) - np.log(2) - exact.mean() > 1


@pytest.mark.parametrize("size", [1e3, 1e8])
def test_extreme_encoder_outputs_give_finite_losses_and_gradients(size):
    """log-variances are bounded where q is made, for sampling and the KL alike."""
    model = tiny(pixels=6, latents=2)
    x = jnp.ones((2, 6))
    params = quick_jit(model.init)(jax.random.key(0), x[0])
    params["posterior"]["Dense_1"]["bias"] = jnp.array([0.0, 0.0, size, -size])
    batch = {"x": x, "step": 0}
    for terms in ({}, {"terms": analytic_terms}):
        loss = lambda params, terms=terms: loss_of(model, **terms)(
            params, jax.random.key(1), batch
        )
        (value, _), gradient = quick_jit(jax.value_and_grad(loss, has_aux=True))(params)
        assert np.isfinite(value)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("logit", [105.0, 120.0, 1e4])
def test_a_confidently_wrong_pixel_costs_its_logit_and_is_pulled_back(logit):
    """log(1 - s) as log(-expm1) is -inf there, a clipped probability has slope 0."""
    for x, l in ((0.0, logit), (1.0, -logit)):
        log_prob = lambda l, x=x: Bernoulli(l).log_prob(jnp.array(x))
        value, slope = quick_jit(jax.value_and_grad(log_prob))(jnp.array(l))
        assert value == -logit
        assert slope == x * 2 - 1
        np.testing.assert_allclose(log_prob(jnp.array(-l)), 0, atol=1e-30)


def down_a_column(batch_size, num_data):
    """The stratified weights with 1/N of an example down a column, as published."""
    m = batch_size - 1
    w = np.full((batch_size, batch_size), 1 / m)
    w.flat[:: m + 1] = 1 / num_data
    w.flat[1 :: m + 1] = w[m - 1, 0] = (num_data - m) / (num_data * m)
    return jnp.log(jnp.array(w, float))


def test_in_a_stratified_batch_the_weight_of_an_example_itself_is_on_the_diagonal():
    """The total correlation of 8 independent latents of 1024 examples, M = 64.

    Exact 3.28, by these weights 3.48, with 1/N down a column 5.57.
    """
    n, m, d = 1024, 64, 8
    rng = np.random.default_rng(0)
    loc = jnp.array(rng.normal(size=(n, d)), float)
    z = loc + 0.3 * jnp.array(rng.normal(size=(n, d)), float)
    prior = Normal(jnp.zeros(d), jnp.ones(d))

    def correlation(m, log_weights):
        """The mean over the n draws, from batches of m."""
        loc_m, z_m = (a.reshape(n // m, m, d) for a in (loc, z))
        of_batch = lambda loc, z: batch_kl_parts(
            Normal(loc, jnp.full_like(loc, 0.3)),
            prior,
            z,
            num_data=n,
            log_weights=log_weights,
        )
        return quick_jit(jax.vmap(of_batch))(loc_m, z_m).total_correlation.mean()

    exact = correlation(n, minibatch_stratified)  # a batch of all data
    assert abs(correlation(m, minibatch_stratified) - exact) < 0.5
    assert correlation(m, down_a_column) - exact > 2


def test_latents_are_permuted_over_examples_and_each_by_itself():
    """Not the latents of an example among each other, nor whole examples."""
    z = np.add.outer(np.arange(50.0), [0.0, 100.0, 200.0])
    permuted = np.asarray(permute_latents(jax.random.key(0), jnp.array(z, float)))
    np.testing.assert_array_equal(np.sort(permuted, axis=0), z)
    assert np.ptp(permuted - [0.0, 100.0, 200.0], axis=1).astype(bool).mean() > 0.9
