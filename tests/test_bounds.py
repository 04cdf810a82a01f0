"""Bounds on literal log-weights, and in expectation against the exact log p(x)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import (
    BOUNDS,
    WRONG,
    X,
    exact_log_px,
    exact_posterior,
    quick_jit,
    wrong_params,
    z_scores,
)
from scipy import special

from vi_jax import bounds
from vi_jax.math import log_mean_exp, with_gradient_of
from vi_jax.model import log_weight, sampled_terms

EVERY = pytest.mark.parametrize("name", BOUNDS)
LOG_W = np.array([-3.1, 0.4, 1.7, -0.6, 0.9])


def value(name, log_w):
    return np.asarray(BOUNDS[name].bound(jnp.array(log_w, float)))


@EVERY
@pytest.mark.parametrize("x64, tolerance", [(False, 1e-6), (True, 1e-14)])
def test_a_bound_is_its_definition(name, x64, tolerance):
    with jax.enable_x64(x64):
        got = BOUNDS[name].bound(jnp.array(LOG_W, float))
    assert got.shape == ()
    np.testing.assert_allclose(got, BOUNDS[name].naive(LOG_W), rtol=tolerance)


@EVERY
def test_equal_weights_give_that_weight(name):
    for k in (1, 3, 64):
        np.testing.assert_allclose(value(name, np.full(k, -83.7)), -83.7, rtol=1e-6)


@EVERY
def test_one_sample_gives_its_weight(name):
    np.testing.assert_allclose(value(name, [-4.3]), -4.3, rtol=1e-6)


@EVERY
def test_a_shift_of_the_weights_shifts_the_bound(name):
    np.testing.assert_allclose(
        value(name, LOG_W - 90.5), value(name, LOG_W) - 90.5, rtol=1e-6
    )


@EVERY
def test_the_order_of_the_weights_does_not_matter(name):
    mixed = LOG_W[[3, 0, 4, 1, 2]]
    np.testing.assert_allclose(value(name, mixed), value(name, LOG_W), rtol=1e-6)


@EVERY
@pytest.mark.parametrize("far", [1e4, -1e4])
def test_extreme_weights_stay_finite(name, far):
    """And right, with slopes that sum to 1: against scipy's logsumexp."""
    log_w = np.array([far, 1.0, far - 2.0])
    at, slope = jax.value_and_grad(BOUNDS[name].bound)(jnp.array(log_w, float))
    np.testing.assert_allclose(at, BOUNDS[name].naive(log_w), rtol=1e-6)
    np.testing.assert_allclose(slope.sum(), 1, rtol=1e-5)


def test_bounds_are_ordered_on_the_same_weights():
    """min <= elbo <= Renyi, falling in alpha <= iwae = Renyi at 0 <= ... <= max."""
    with jax.enable_x64(True):
        for log_w in np.random.default_rng(0).normal(0, 3, (10, 6)):
            w = jnp.array(log_w)
            renyi = lambda alpha, w=w: bounds.renyi(w, alpha=alpha)
            falling = [renyi(a) for a in (3.0, 1.5, 0.7, 0.2, 0.0, -0.5, -4.0, -40.0)]
            chain = [w.min(), *falling, w.max()]
            assert np.all(np.diff(chain) > 0)
            assert falling[1] < bounds.elbo(w) < falling[2]
            np.testing.assert_allclose(renyi(0.0), bounds.iwae(w), rtol=1e-14)


def test_renyi_approaches_the_elbo_from_both_sides_of_one():
    """The distance is (1 - alpha) / 2 times the variance of the log-weights."""
    with jax.enable_x64(True):
        w = jnp.array(LOG_W, float)
        for step in (1e-4, -1e-4):
            gap = bounds.renyi(w, alpha=1 - step) - bounds.elbo(w)
            np.testing.assert_allclose(gap, step * LOG_W.var() / 2, rtol=1e-3)


@pytest.mark.parametrize("step", [1e-2, 1e-3, 1e-5, 1e-8, 1e-15, -1e-8, -1e-5, -1e-2])
def test_renyi_keeps_its_digits_near_the_elbo(step):
    """In float32, 50 log-weights about -90: the plain formula is off by 18 at 1e-8."""
    log_w = np.random.default_rng(0).normal(-90, 5, 50).astype(np.float32)
    alpha = 1 - step
    far = log_w - log_w.mean(dtype=np.longdouble)
    excess = np.log1p(np.mean(np.expm1((1 - alpha) * far))) / (1 - alpha)
    found, slope = jax.value_and_grad(bounds.renyi)(jnp.array(log_w), alpha=alpha)
    np.testing.assert_allclose(found, np.mean(log_w, dtype="f8") + excess, rtol=3e-7)
    weights = special.softmax((1 - alpha) * far.astype(float))
    np.testing.assert_allclose(slope, weights, rtol=1e-5)


def test_renyi_near_the_elbo_of_impossible_samples_is_the_plain_one():
    """log mean w^c / c where c = 0.005: log(1/2) / c + 1 for two of four weights e."""
    log_w = jnp.array([-jnp.inf, 1.0, -jnp.inf, 1.0])
    found, slope = jax.value_and_grad(bounds.renyi)(log_w, alpha=0.995)
    np.testing.assert_allclose(found, np.log(0.5) / 0.005 + 1, rtol=1e-5)
    np.testing.assert_allclose(slope, [0.0, 0.5, 0.0, 0.5], rtol=1e-5)


@EVERY
@pytest.mark.parametrize("shape", [(), (0,), (3, 2), (1, 5)])
def test_anything_but_the_weights_of_one_example_is_an_error(name, shape):
    with pytest.raises(ValueError, match=r"\[k\]"):
        BOUNDS[name].bound(jnp.zeros(shape))


def test_renyi_at_one_names_the_elbo():
    for alpha in (1, 1.0):
        with pytest.raises(ValueError, match="elbo"):
            bounds.renyi(jnp.array(LOG_W, float), alpha=alpha)


def test_impossible_samples_count_as_zero_weight():
    log_w = jnp.array([-jnp.inf, 1.0, -jnp.inf, 1.0])
    np.testing.assert_allclose(bounds.iwae(log_w), 1 - np.log(2), rtol=1e-6)
    assert bounds.elbo(log_w) == -jnp.inf


def test_log_mean_exp_along_each_axis():
    a = np.random.default_rng(1).normal(0, 2, (3, 4))
    for axis in (0, 1, -1):
        got = log_mean_exp(jnp.array(a, float), axis=axis)
        np.testing.assert_allclose(got, np.log(np.exp(a).mean(axis)), rtol=1e-5)


def test_with_gradient_of_keeps_the_value_to_the_last_digit():
    """Also where the surrogate is so large that adding it would round the value."""
    f = lambda x: with_gradient_of(jnp.sin(x), 1e9 * x**2)
    value, slope = jax.value_and_grad(f)(jnp.array(0.7))
    assert value == jnp.sin(jnp.array(0.7))
    np.testing.assert_allclose(slope, 1.4e9, rtol=1e-6)


@functools.cache
def drawn_log_weights(num: int = 20_000, k: int = 8) -> np.ndarray:
    """log-weights [num, k] of X under a deliberately wrong posterior, float64."""
    with jax.enable_x64(True):
        params, x = wrong_params(), jnp.array(X, float)
        q = WRONG.posterior(params, x)
        z = jax.vmap(q.sample)(jax.random.split(jax.random.key(7), num * k))
        terms = sampled_terms(WRONG, x)
        log_w = quick_jit(
            lambda params, q, z: jax.vmap(log_weight)(terms(params, q, z))
        )(params, q, z)
        return np.asarray(log_w).reshape(num, k)


def test_in_expectation_iwae_rises_with_k_towards_log_px():
    """Each step up by more than 4 standard errors of the paired differences."""
    log_w = drawn_log_weights()
    with jax.enable_x64(True):
        iwae = quick_jit(jax.vmap(bounds.iwae))
        values = [np.asarray(iwae(jnp.array(log_w[:, :k]))) for k in (1, 2, 3, 4, 8)]
    values.append(np.full(len(log_w), exact_log_px()))
    for lower, higher in zip(values[:-1], values[1:], strict=True):
        assert z_scores(higher - lower) > 4


def test_the_mean_weight_is_px():
    """E_q[w] = p(x) whatever q, within 4 standard errors of 160,000 draws."""
    weights = np.exp(drawn_log_weights().ravel() - exact_log_px())
    assert abs(z_scores(weights, 1.0)) < 4
    assert weights.std() > 0.05  # the posterior is wrong: the test can fail


def test_the_mean_elbo_is_log_px_minus_the_kl_to_the_exact_posterior():
    """log p(x) - KL(q || p(z | x)) in closed form, within 4 standard errors."""
    params = wrong_params()
    gain, offset, covariance = exact_posterior()
    q = WRONG.posterior(params, jnp.array(X, float))
    shift = np.asarray(q.loc, np.float64) - gain @ X - offset
    q_covariance = np.diag(np.asarray(q.scale, np.float64) ** 2)
    precision = np.linalg.inv(covariance)
    log_det = np.linalg.slogdet(covariance)[1] - np.linalg.slogdet(q_covariance)[1]
    trace = np.trace(precision @ q_covariance)
    kl = 0.5 * (trace + shift @ precision @ shift - 2 + log_det)
    assert kl > 0.02
    elbo = drawn_log_weights().mean(1)
    assert abs(z_scores(elbo, exact_log_px() - kl)) < 4


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_miwae_is_the_mean_of_the_iwae_of_its_groups(groups):
    log_w = np.random.default_rng(1).normal(0, 2, 6)
    expected = np.mean(special.logsumexp(log_w.reshape(groups, -1), axis=1))
    expected -= np.log(6 / groups)
    with jax.enable_x64(True):
        got = bounds.miwae(jnp.array(log_w), groups=groups)
        np.testing.assert_allclose(got, expected, rtol=1e-14)
        ends = {1: bounds.iwae, 6: bounds.elbo}
        if groups in ends:
            np.testing.assert_allclose(got, ends[groups](jnp.array(log_w)), rtol=1e-14)


@pytest.mark.parametrize("groups", [0, 2, 10, -5])
def test_groups_that_do_not_divide_the_samples_are_an_error(groups):
    with pytest.raises(ValueError, match="divide the 5 samples"):
        bounds.miwae(jnp.array(LOG_W, float), groups=groups)


def test_the_ends_of_ciwae_are_iwae_and_elbo():
    log_w = jnp.array(LOG_W, float)
    assert bounds.ciwae(log_w, mix=0.0) == bounds.iwae(log_w)
    assert bounds.ciwae(log_w, mix=1.0) == bounds.elbo(log_w)
    for mix in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="mix"):
            bounds.ciwae(log_w, mix=mix)


@pytest.mark.parametrize("order", [1, 0.5, -2, np.nan])
def test_an_order_that_gives_no_upper_bound_is_an_error(order):
    with pytest.raises(ValueError, match="above 1"):
        bounds.cubo(jnp.array(LOG_W, float), order=order)


@pytest.mark.parametrize(
    "betas", [(), (0,), (0, 0.5), (0.1, 1), (0, 0.5, 0.5, 1), (0, 0.7, 0.3, 1)]
)
def test_betas_that_do_not_rise_from_0_to_1_are_an_error(betas):
    with pytest.raises(ValueError, match="rise from 0 to 1"):
        bounds.tvo(jnp.array(LOG_W, float), betas=betas)


def test_tvo_lies_between_the_elbo_and_iwae_and_nears_it_as_betas_get_finer():
    """The integral of E_beta log w over beta is log mean w, on any weights."""
    with jax.enable_x64(True):
        log_w = jnp.array(LOG_W, float)
        tvo = lambda n: bounds.tvo(log_w, betas=np.linspace(0, 1, n + 1))
        np.testing.assert_allclose(tvo(1), bounds.elbo(log_w), rtol=1e-14)
        gaps = [bounds.iwae(log_w) - tvo(n) for n in (1, 2, 4, 200, 400)]
        assert np.all(np.diff(gaps) < 0) and gaps[-1] > 0
        np.testing.assert_allclose(gaps[-2] / gaps[-1], 2, rtol=1e-2)  # first order


def test_tvo_with_an_impossible_sample():
    """It drags the mean at beta = 0 down, as it does the ELBO, and is no nan."""
    log_w = jnp.array([-jnp.inf, 1.0, 2.0])
    assert bounds.tvo(log_w, betas=(0.0, 0.5, 1.0)) == -jnp.inf


# p(z | x) = N(0, 1) and q = N(0.4, 1.3^2), with log p(x) = -7: every constant is known.
LOG_PX, LOC, SCALE = -7.0, 0.4, 1.3
# E_q[(w / p(x))^2], so that the variance of w / p(x) is CHI2 - 1.
CHI2 = SCALE**2 / (2 * SCALE**2 - 1) ** 0.5 * np.exp(LOC**2 / (2 * SCALE**2 - 1))


@functools.cache
def gaussian_log_weights(num: int, k: int, loc=LOC, scale=SCALE) -> jax.Array:
    """[num, k], drawn by numpy."""
    z = np.random.default_rng(5).normal(loc, scale, (num, k))
    log_q = -0.5 * ((z - loc) / scale) ** 2 - np.log(scale)
    return LOG_PX - 0.5 * z**2 - log_q


def means_of(bound, log_w) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(jax.jit(jax.vmap(bound))(jnp.array(log_w)))


def test_the_hierarchy_of_bounds_in_expectation():
    """Each step up by more than 4 standard errors, of differences on the same draws."""
    log_w = gaussian_log_weights(40_000, 8)
    rising = [
        means_of(bound, log_w)
        for bound in (
            bounds.elbo,
            functools.partial(bounds.tvo, betas=(0.0, 0.5, 1.0)),
            functools.partial(bounds.miwae, groups=2),
            bounds.iwae,
        )
    ]
    rising += [np.full(len(log_w), LOG_PX), np.full(len(log_w), chi_bound())]
    for lower, higher in zip(rising[:-2], rising[1:-1], strict=True):
        assert z_scores(higher - lower) > 4
    assert chi_bound() > LOG_PX
    half = means_of(functools.partial(bounds.ciwae, mix=0.5), log_w)
    assert z_scores(half - rising[0]) > 4 and z_scores(rising[3] - half) > 4


def chi_bound() -> float:
    """log E[w^2] / 2, in closed form: the limit of `cubo`."""
    return LOG_PX + 0.5 * np.log(CHI2)


def test_the_iwae_gap_closes_as_half_the_variance_of_the_weights_over_k():
    """k (log p(x) - E iwae_k) -> Var[w / p(x)] / 2 (arXiv:1808.09034), |z| < 4.

    w - log w - 1, whose mean is the gap, has little noise: E[w] = 1.
    """
    weights = np.exp(gaussian_log_weights(40_000, 512) - LOG_PX)
    log_slope = []
    for k in (8, 32, 128, 512):
        iwae = means_of(bounds.iwae, gaussian_log_weights(40_000, 512)[:, :k]) - LOG_PX
        gap = weights[:, :k].mean(1) - 1 - iwae
        # The next term of the expansion is of order 1 / k^2.
        limit = (CHI2 - 1) / 2 / k
        error = gap.std() / len(gap) ** 0.5
        assert abs(gap.mean() - limit) < 4 * error + 2 * limit / k
        log_slope.append(np.log(gap.mean()))
    slope = np.polyfit(np.log([8, 32, 128, 512]), log_slope, 1)[0]
    np.testing.assert_allclose(slope, -1.0, atol=0.03)


def test_the_sampled_chi_bound_is_low_and_falls_below_log_px_at_small_k():
    """Its limit is above log p(x); at k = 1 it is the ELBO, and it rises with k."""
    log_w = gaussian_log_weights(40_000, 512)
    by_k = [means_of(bounds.cubo, log_w[:, :k]) for k in (1, 2, 8, 64, 512)]
    for lower, higher in zip(by_k[:-1], by_k[1:], strict=True):
        assert z_scores(higher - lower) > 4
    # From too narrow a posterior, an "upper bound" that is below log p(x).
    narrow = gaussian_log_weights(40_000, 2, scale=0.75)
    assert z_scores(means_of(bounds.cubo, narrow) - LOG_PX) < -4
    assert z_scores(by_k[-1] - LOG_PX) > 4
    assert z_scores(by_k[-1] - chi_bound()) < 0
    np.testing.assert_allclose(by_k[-1].mean(), chi_bound(), atol=0.01)
