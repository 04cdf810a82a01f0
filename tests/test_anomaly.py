"""Anomaly scores in closed form on linear-Gaussian models, and the guarantee of a line.

A score of noise is the mean over 4,000 keys, to 4.5 standard errors.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import (
    EXACT,
    LOG_NOISE,
    MEAN,
    SHARED,
    WEIGHT,
    WRONG,
    X,
    exact_elbo,
    exact_log_px,
    exact_params,
    exact_posterior,
    quick_jit,
    shared_params,
    wrong_params,
    z_scores,
)
from scipy import stats

from vi_jax.distributions import Mixture, Normal
from vi_jax.evaluation import (
    code_length,
    latent_distance,
    likelihood_regret,
    negative_elbo,
    negative_log_likelihood,
    reconstruction_error,
    reconstruction_probability,
    threshold,
)
from vi_jax.model import Model


def values(score, model, params, num_keys=4000, x=X, **how):
    """The score of x by each of many keys, [num_keys]."""
    one = lambda key: score(model, params, key, jnp.asarray(x, float), **how)
    return quick_jit(jax.vmap(one))(jax.random.split(jax.random.key(0), num_keys))


def wrong_q():
    """(loc, scale) of the approximate posterior at X, float64."""
    q = jax.tree.map(lambda a: np.asarray(a, np.float64), wrong_params()["q"])
    return q["gain"] @ X + q["offset"], np.exp(q["log_scale"])


def test_reconstruction_error_is_the_distance_to_the_decoded_mean():
    decoded = WEIGHT @ wrong_q()[0] + MEAN
    found = values(reconstruction_error, WRONG, wrong_params(), 2)
    np.testing.assert_allclose(found, ((X - decoded) ** 2).sum(), rtol=1e-5)


def test_reconstruction_error_leaves_missing_entries_out():
    """An encoder that puts 0.7 where x is missing."""
    filled = WRONG._replace(
        posterior=lambda params, x: WRONG.posterior(
            params, jnp.where(jnp.isnan(x), 0.7, x)
        )
    )
    x = np.array([X[0], np.nan, X[2]])
    q = wrong_params()["q"]
    loc = np.asarray(q["gain"]) @ [X[0], 0.7, X[2]] + np.asarray(q["offset"])
    off = (x - WEIGHT @ loc - MEAN)[[0, 2]]
    found = values(reconstruction_error, filled, wrong_params(), 2, x=x)
    np.testing.assert_allclose(found, (off**2).sum(), rtol=1e-5)


def test_reconstruction_probability_is_the_mean_over_different_draws():
    loc, scale = wrong_q()
    noise = np.exp(LOG_NOISE)
    square = (X - WEIGHT @ loc - MEAN) ** 2 + WEIGHT**2 @ scale**2
    expected = 0.5 * np.sum(square / noise**2 + 2 * LOG_NOISE + np.log(2 * np.pi))
    found = functools.partial(values, reconstruction_probability, WRONG, wrong_params())
    one, eight = found(num_samples=1), found(num_samples=8)
    assert abs(z_scores(one, expected)) < 4.5
    assert abs(z_scores(eight, expected)) < 4.5
    # One draw, eight times over, would leave the variance as it is.
    assert 6.5 < np.var(one) / np.var(eight) < 9.8


def test_negative_elbo_takes_the_exact_kl():
    found = values(negative_elbo, WRONG, wrong_params(), num_samples=4)
    elbo = quick_jit(functools.partial(exact_elbo, WRONG, beta=1.0))
    assert abs(z_scores(found, -float(elbo(wrong_params(), jnp.array(X, float))))) < 4.5
    # What varies with the key is the distortion of the same draws, and nothing else.
    distortion = values(
        reconstruction_probability, WRONG, wrong_params(), num_samples=4
    )
    np.testing.assert_allclose(np.ptp(found - distortion), 0.0, atol=1e-5)


def test_negative_elbo_samples_a_kl_without_a_closed_form():
    """N(0, I) as a mixture of one: with the exact posterior each draw is -log p(x)."""
    alone = Mixture(jnp.zeros(1), Normal(jnp.zeros((1, 2)), jnp.ones((1, 2))))
    model = Model(EXACT.init, lambda _: alone, EXACT.posterior, EXACT.likelihood)
    found = values(negative_elbo, model, exact_params(), 5, num_samples=1)
    np.testing.assert_allclose(found, -exact_log_px(), atol=1e-5)


def test_negative_log_likelihood_is_that_of_importance_sampling():
    exact = values(negative_log_likelihood, EXACT, exact_params(), 5, num_samples=3)
    np.testing.assert_allclose(exact, -exact_log_px(), atol=1e-5)
    found = values(negative_log_likelihood, WRONG, wrong_params(), num_samples=5)
    ratio = np.exp(-np.asarray(found) - exact_log_px())  # unbiased for 1
    assert abs(z_scores(ratio, 1.0)) < 4.5 and ratio.std() > 0.01


def test_latent_distance_is_in_units_of_the_prior():
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), shared_params())
    away = params["gain"] @ X / np.exp(params["log_scale"])
    found = values(latent_distance, SHARED, shared_params(), 2)
    np.testing.assert_allclose(found, np.linalg.norm(away), rtol=1e-5)


def kl_to_posterior(loc, scale):
    """KL(N(loc, diag(scale^2)) || p(z | x)), float64."""
    gain, offset, covariance = exact_posterior()
    precision = np.linalg.inv(covariance)
    shift = loc - gain @ X - offset
    log_det = np.linalg.slogdet(covariance)[1] - 2 * np.log(scale).sum()
    spread = np.diag(precision) @ scale**2 - len(loc)
    return 0.5 * (spread + shift @ precision @ shift + log_det)


def test_likelihood_regret_is_the_amortisation_gap():
    gain, offset, covariance = exact_posterior()
    best = gain @ X + offset, np.diag(np.linalg.inv(covariance)) ** -0.5
    expected = kl_to_posterior(*wrong_q()) - kl_to_posterior(*best)
    assert expected > 0.05
    found = values(likelihood_regret, WRONG, wrong_params(), 400, num_steps=200)
    # What 200 steps leave unfitted, 0.003 nats at most, is no matter of luck.
    error = np.std(found, ddof=1) / 400**0.5
    assert -0.003 - 4.5 * error < np.mean(found) - expected < 4.5 * error


def test_likelihood_regret_of_the_exact_posterior_is_nothing():
    """Orthogonal columns, so that p(z | x) is a diagonal Gaussian."""
    weight = jnp.array([[1.0, 0.5], [0.5, -1.0], [0.0, 0.0]])
    params = {"weight": weight, "mean": jnp.zeros(3), "log_noise": jnp.zeros(3)}

    def diagonal(params, x):
        q = EXACT.posterior(params, x)
        return Normal(q.loc, jnp.diagonal(q.scale_tril))

    model = Model(EXACT.init, EXACT.prior, diagonal, EXACT.likelihood)
    found = values(likelihood_regret, model, params, 100, num_samples=4)
    elbo = values(negative_elbo, model, params, 100, num_samples=4)
    # The draws are common to both ELBOs, each of which is far noisier.
    assert np.max(abs(found)) < 0.15 < np.std(elbo)
    assert abs(np.mean(found)) < 0.02


def test_scores_that_do_not_apply_say_so():
    key, x = jax.random.key(0), jnp.array(X, float)
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        reconstruction_probability(WRONG, wrong_params(), key, x, num_samples=0)
    mixed = Mixture(jnp.zeros(1), Normal(jnp.zeros((1, 2)), jnp.ones((1, 2))))
    with pytest.raises(ValueError, match="needs a Normal, not a Mixture"):
        other = WRONG._replace(prior=lambda _: mixed)
        latent_distance(other, wrong_params(), key, x)
    with pytest.raises(ValueError, match=r"mean of p\(x \| z\) \(2,\)"):
        short = WRONG._replace(likelihood=lambda _, z: Normal(z, jnp.ones(2)))
        reconstruction_error(short, wrong_params(), key, x)


# ------------------------------------------------------------------- thresholds


@pytest.mark.parametrize(
    ("n", "rate", "alarms"), [(9, 0.1, 1), (9, 0.25, 2), (19, 0.05, 1), (99, 0.07, 7)]
)
def test_each_of_n_plus_1_is_above_the_line_of_the_others_just_so_often(
    n, rate, alarms
):
    """Exchangeable examples: any of them may be the new one."""
    scores = np.random.default_rng(0).standard_cauchy(n + 1)
    others = [np.delete(scores, i) for i in range(n + 1)]
    lines = np.array([threshold(o, rate).value for o in others])
    assert (scores > lines).sum() == alarms
    assert threshold(scores[1:], rate).false_alarm_rate == alarms / (n + 1)


def test_ties_cause_no_more_alarms():
    scores = np.repeat([1.0, 2.0, 3.0], 10)
    lines = np.array([threshold(np.delete(scores, i), 0.2).value for i in range(30)])
    assert (scores > lines).mean() <= 0.2


def test_the_interval_holds_the_rate_of_a_calibration_set():
    """The false-alarm rate of uniform scores is 1 - value; 600 sets of 200."""
    sets = np.random.default_rng(1).random((600, 200))
    found = [threshold(s, 0.1, confidence=0.8) for s in sets]
    rates = 1 - np.array([t.value for t in found])
    inside = [t.low <= rate <= t.high for t, rate in zip(found, rates, strict=True)]
    assert abs(z_scores(rates, found[0].false_alarm_rate)) < 4.5
    assert stats.binomtest(sum(inside), 600, 0.8).pvalue > 1e-5


def test_a_bad_threshold_says_what_is_wrong():
    with pytest.raises(ValueError, match="18 scores are too few .* at least 19"):
        threshold(np.arange(18.0), 0.05)
    with pytest.raises(ValueError, match=r"scores\[2\] is NaN"):
        threshold(np.array([1.0, 2.0, np.nan]), 0.5)
    with pytest.raises(ValueError, match="rate must be between 0 and 1, got 1.5"):
        threshold(np.arange(9.0), 1.5)
    with pytest.raises(ValueError, match=r"scores must be \[n\], got shape \[2, 3\]"):
        threshold(np.ones((2, 3)), 0.5)


# ------------------------------------------------------------------- complexity


def test_code_length_is_in_nats_and_knows_no_file_format():
    rng = np.random.default_rng(0)
    assert code_length(np.full((28, 28, 1), 7, np.uint8)) < 50
    # Noise cannot be coded below log 256 a pixel, and need not be far above.
    for shape in ((28, 28, 1), (16, 20, 3)):
        noise = rng.integers(0, 256, shape, dtype=np.uint8)
        per_entry = code_length(noise) / noise.size
        np.testing.assert_allclose(per_entry, np.log(256), rtol=0.06)
    stripes = np.zeros((28, 28, 1), np.uint8)
    stripes[::2] = rng.integers(0, 256, (1, 28, 1))
    assert code_length(stripes) < 0.1 * code_length(
        rng.integers(0, 256, (28, 28, 1), dtype=np.uint8)
    )


@pytest.mark.parametrize("image", [np.zeros((28, 28, 1)), np.zeros((28, 28), np.uint8)])
def test_code_length_of_no_image_is_an_error(image):
    with pytest.raises(ValueError, match=r"needed: uint8 \[h, w, 1\]"):
        code_length(image)
