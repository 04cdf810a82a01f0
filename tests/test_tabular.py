"""Mixed columns with missing values, against sums, quadrature and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import quick_jit
from scipy import special, stats

from vi_jax import networks, posteriors, priors, tabular
from vi_jax.distributions import FullNormal, MixedColumns, Normal
from vi_jax.distributions.columns import places
from vi_jax.evaluation import log_likelihood
from vi_jax.model import Model
from vi_jax.models import vae

RNG = np.random.default_rng(0)
# Out of order on purpose: a category of 3, a number, a coin, a number, a category of 2.
KINDS = (3, 0, 1, 0, 2)
LOC, SCALE = np.array([0.3, -1.2]), np.array([0.7, 1.9])
LOGITS = np.array([0.2, -0.5, 1.1, -0.8, 0.4, 1.3])
ROW = np.array([2.0, 0.9, 0.0, -2.0, 1.0])


def columns():
    return MixedColumns(*(jnp.array(a, float) for a in (LOC, SCALE, LOGITS)), KINDS)


def terms_by_hand(row):
    """log p(x_j) of each column by scipy, float64."""
    return np.array(
        [
            special.log_softmax(LOGITS[:3])[int(row[0])],
            stats.norm(LOC[0], SCALE[0]).logpdf(row[1]),
            stats.bernoulli(special.expit(LOGITS[3])).logpmf(int(row[2])),
            stats.norm(LOC[1], SCALE[1]).logpdf(row[3]),
            special.log_softmax(LOGITS[4:])[int(row[4])],
        ]
    )


log_prob = quick_jit(lambda d, x: d.log_prob(x))
log_probs = quick_jit(lambda d, x: d.log_probs(x))


@pytest.mark.parametrize("code, coin", [(0, 0), (1, 1), (2, 0)])
def test_each_column_has_the_log_probability_that_scipy_gives_it(code, coin):
    row = np.array([code, 0.9, coin, -2.0, coin])
    got = log_probs(columns(), jnp.asarray(row, float))
    np.testing.assert_allclose(got, terms_by_hand(row), rtol=1e-5)
    total = log_prob(columns(), jnp.asarray(row, float))
    np.testing.assert_allclose(total, terms_by_hand(row).sum(), rtol=1e-5)


def test_leaving_a_term_out_is_summing_or_integrating_over_its_entry():
    outcomes = {
        0: (np.arange(3.0), 1.0),
        1: (np.linspace(-12, 12, 4801), 0.005),
        2: (np.arange(2.0), 1.0),
        4: (np.arange(2.0), 1.0),
    }
    each = quick_jit(jax.vmap(lambda d, x: d.log_prob(x), (None, 0)))
    for j, (values, cell) in outcomes.items():
        rows = np.tile(ROW, (4801, 1))
        rows[: len(values), j] = values
        full = np.exp(np.asarray(each(columns(), rows.astype(np.float32)), float))
        row = ROW.copy()
        row[j] = np.nan
        got = np.exp(float(log_prob(columns(), jnp.asarray(row, float))))
        np.testing.assert_allclose(full[: len(values)].sum() * cell, got, rtol=1e-4)


def test_a_missing_entry_leaves_every_gradient_finite_and_its_own_zero():
    row = jnp.array([jnp.nan, jnp.nan, 0.0, -2.0, jnp.nan])
    gradient = quick_jit(jax.grad(lambda d, x: d.log_prob(x)))(columns(), row)
    np.testing.assert_array_equal(gradient.loc[0], 0.0)
    np.testing.assert_array_equal(gradient.scale[0], 0.0)
    np.testing.assert_array_equal(gradient.logits[np.array([0, 1, 2, 4, 5])], 0.0)
    u = (-2.0 - LOC[1]) / SCALE[1]
    np.testing.assert_allclose(gradient.loc[1], u / SCALE[1], rtol=1e-5)
    np.testing.assert_allclose(gradient.scale[1], (u**2 - 1) / SCALE[1], rtol=1e-5)
    np.testing.assert_allclose(gradient.logits[3], -special.expit(LOGITS[3]), rtol=1e-5)
    of_x = quick_jit(jax.grad(lambda x, d: d.log_prob(x)))(row, columns())
    assert np.isfinite(of_x).all()


@pytest.mark.parametrize("column, code", [(0, 3.0), (0, -1.0), (0, 0.4), (2, 2.0)])
def test_a_code_that_is_none_of_the_columns_is_impossible(column, code):
    row = ROW.copy()
    row[column] = code
    assert log_prob(columns(), jnp.asarray(row, float)) == -np.inf


def test_samples_have_the_probabilities_and_the_moments():
    n = 4000
    draw = quick_jit(jax.vmap(lambda key: columns().sample(key)))
    x = np.asarray(draw(jax.random.split(jax.random.key(0), n)), float)
    for j, mean, scale in ((1, LOC[0], SCALE[0]), (3, LOC[1], SCALE[1])):
        assert abs(x[:, j].mean() - mean) < 4 * scale / n**0.5
        assert abs(x[:, j].std() - scale) < 4 * scale / (2 * n) ** 0.5
    coin = special.expit(LOGITS[3])
    expected = {
        0: special.softmax(LOGITS[:3]),
        2: np.array([1 - coin, coin]),
        4: special.softmax(LOGITS[4:]),
    }
    of_codes = columns().probabilities()
    for j, p in expected.items():
        counts = np.bincount(x[:, j].astype(int), minlength=len(p))
        assert (abs(counts / n - p) < 4 * np.sqrt(p * (1 - p) / n)).all()
        np.testing.assert_allclose(of_codes[j], p, rtol=1e-5)
    assert of_codes[1] is of_codes[3] is None
    mean = columns().mean()
    np.testing.assert_allclose(mean, [2, LOC[0], coin, LOC[1], 1], rtol=1e-5)


def test_what_describes_no_columns_is_an_error():
    for wrong in ((), (0, -1)):
        with pytest.raises(ValueError, match="number of categories"):
            places(wrong)


def test_the_encoder_sees_one_hot_codes_zeros_and_what_is_missing():
    got = tabular.row_features(jnp.asarray(ROW, float), KINDS)
    numbers, coin, one_hot = [0.9, -2.0], [0.0], [0, 0, 1, 0, 1]
    np.testing.assert_allclose(got, [*numbers, *coin, *one_hot, 0, 0, 0, 0, 0])
    row = jnp.array([jnp.nan, jnp.nan, jnp.nan, 1.5, jnp.nan])
    got = tabular.row_features(row, KINDS)
    np.testing.assert_allclose(got, [0, 1.5, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 1])


def test_the_likelihood_splits_its_networks_outputs_and_learns_a_scale_a_column():
    network = networks.mlp([], tabular.num_outputs(KINDS))
    part = tabular.mixed_columns(network, KINDS)
    params = part.init(jax.random.key(0), jnp.zeros(2))
    params["raw_column_scale"] = jnp.array([-40.0, 2.0])
    z = jnp.array([0.5, -1.0])
    given, h = part.apply(params, z), network.apply(params["network"], z)
    np.testing.assert_array_equal(given.loc, h[:2])
    np.testing.assert_array_equal(given.logits, h[2:])
    floor = tabular.COLUMN_SCALE_FLOOR
    np.testing.assert_allclose(given.scale, [floor, np.log1p(np.e**2) + floor], 1e-5)
    with pytest.raises(ValueError, match=r"has shape \(3,\).*\(8,\)"):
        wrong = tabular.mixed_columns(networks.mlp([], 3), KINDS)
        wrong.apply(wrong.init(jax.random.key(0), z), z)


# --------------------------------------------------- a model whose p(x) is known

WEIGHT = np.array([[1.1, 0.2], [-0.6, 0.9], [0.4, -0.8], [0.7, 0.7]])
MEAN, NOISE = np.array([0.5, -0.2, 0.1, 1.0]), np.array([0.6, 0.5, 0.8, 0.4])
COVARIANCE = WEIGHT @ WEIGHT.T + np.diag(NOISE**2)
GAPPED = np.array([1.4, np.nan, -0.7, np.nan])
SEEN = ~np.isnan(GAPPED)


def gaussian_model(widen):
    """Linear-Gaussian columns, q(z | x) the exact one of what is there, times widen."""

    def posterior(params, x):
        del params
        seen = (~jnp.isnan(x)).astype(float)
        precision = jnp.array(NOISE, float) ** -2 * seen
        weight = jnp.array(WEIGHT, float)
        inverse = jnp.eye(2) + weight.T @ (precision[:, None] * weight)
        covariance = jnp.linalg.inv(inverse)
        away = jnp.where(seen > 0, x - jnp.array(MEAN, float), 0.0)
        loc = covariance @ weight.T @ (precision * away)
        return FullNormal(loc, widen * jnp.linalg.cholesky(covariance))

    def likelihood(params, z):
        loc = jnp.array(WEIGHT, float) @ z + jnp.array(MEAN, float)
        return MixedColumns(loc, jnp.array(NOISE, float), jnp.zeros(0), (0,) * 4)

    prior = lambda params: Normal(jnp.zeros(2), jnp.ones(2))
    return Model(lambda key, x: {}, prior, posterior, likelihood)


def marginal_of_seen():
    inside = np.ix_(SEEN, SEEN)
    return stats.multivariate_normal(MEAN[SEEN], COVARIANCE[inside])


@functools.cache
def row_evaluator(widen, num_samples):
    def both(key, x):
        of_p, of_fill = jax.random.split(key)
        found = log_likelihood(
            gaussian_model(widen), {}, of_p, x, num_samples=num_samples, chunk=1000
        )
        filled = tabular.impute(
            gaussian_model(widen), {}, of_fill, x, num_samples=num_samples
        )
        return found, filled

    return quick_jit(both)


def test_the_weights_of_the_exact_posterior_are_the_marginal_of_what_is_there():
    found, _ = row_evaluator(1.0, 20)(jax.random.key(0), jnp.asarray(GAPPED, float))
    expected = marginal_of_seen().logpdf(GAPPED[SEEN])
    np.testing.assert_allclose(found.log_px, expected, rtol=1e-5)
    assert found.stderr < 1e-3 and found.ess > 19.99


def test_importance_weights_mend_a_posterior_that_is_too_wide():
    k = 20_000
    found, filled = row_evaluator(1.6, k)(jax.random.key(1), jnp.asarray(GAPPED, float))
    expected = marginal_of_seen().logpdf(GAPPED[SEEN])
    assert 0 < found.stderr < 0.02
    assert abs(found.log_px - expected) < 4 * found.stderr
    assert found.elbo < expected - 0.1  # the posterior is not exact
    # E[x_missing | x_seen] of the joint Gaussian.
    gain = COVARIANCE[np.ix_(~SEEN, SEEN)] @ np.linalg.inv(
        COVARIANCE[np.ix_(SEEN, SEEN)]
    )
    conditional = MEAN[~SEEN] + gain @ (GAPPED[SEEN] - MEAN[SEEN])
    left = COVARIANCE[np.ix_(~SEEN, ~SEEN)] - gain @ COVARIANCE[np.ix_(SEEN, ~SEEN)]
    spread = np.sqrt(np.diag(left) - NOISE[~SEEN] ** 2)  # of E[x_j | z] given x
    away = abs(np.asarray(filled.x)[~SEEN] - conditional)
    assert k / 4 < filled.ess < 0.8 * k
    assert (away < 4 * 1.6 * spread / np.sqrt(filled.ess)).all()
    np.testing.assert_array_equal(filled.x[SEEN], GAPPED[SEEN].astype(np.float32))


def test_imputed_codes_are_those_of_bayes_rule_by_quadrature():
    """One latent, a number and a code that both depend on it."""
    slopes = np.array([1.5, -1.0, 0.2])

    def likelihood(params, z):
        logits = jnp.concatenate([jnp.array(slopes, float) * z[0], 2.0 * z])
        return MixedColumns(z, 0.5 * jnp.ones(1), logits, (0, 3, 1))

    normal = lambda scale: Normal(jnp.zeros(1), scale * jnp.ones(1))
    model = Model(
        lambda key, x: {},
        lambda params: normal(1.0),
        lambda params, x: normal(1.2),
        likelihood,
    )
    fill = quick_jit(lambda key, x: tabular.impute(model, {}, key, x, num_samples=8000))
    row = jnp.array([0.8, jnp.nan, jnp.nan])
    got = fill(jax.random.key(2), row)
    z = np.linspace(-9, 9, 4001)
    weight = stats.norm.pdf(z) * stats.norm(z, 0.5).pdf(0.8)
    weight /= weight.sum()
    codes = weight @ special.softmax(slopes * z[:, None], -1)
    coin = weight @ special.expit(2 * z)
    assert got.probabilities[0] is None and got.ess > 2000
    np.testing.assert_allclose(got.probabilities[1], codes, atol=0.02)
    np.testing.assert_allclose(got.probabilities[2], [1 - coin, coin], atol=0.02)
    np.testing.assert_allclose(got.x, [0.8, 0.0, 1.0])
    # Nothing is there: the prior's own probabilities, and its mean.
    got = fill(jax.random.key(3), jnp.full(3, jnp.nan))
    prior = stats.norm.pdf(z) / stats.norm.pdf(z).sum()
    codes = prior @ special.softmax(slopes * z[:, None], -1)
    np.testing.assert_allclose(got.probabilities[1], codes, atol=0.02)
    assert abs(got.x[0]) < 4 / np.sqrt(got.ess)


def test_impute_says_what_it_needs():
    model = gaussian_model(1.0)
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        tabular.impute(model, {}, jax.random.key(0), jnp.zeros(4), num_samples=0)
    unit = lambda params, z: Normal(jnp.zeros(4) + z[0], jnp.ones(4))
    other = model._replace(likelihood=unit)
    with pytest.raises(ValueError, match="MixedColumns.*got Normal"):
        tabular.impute(other, {}, jax.random.key(0), jnp.zeros(4), num_samples=2)


def test_a_vae_of_rows_takes_missing_values_in_its_encoder():
    encoder = tabular.of_rows(networks.mlp([4], 4), KINDS)
    decoder = networks.mlp([4], tabular.num_outputs(KINDS))
    model = vae(
        priors.standard_normal(2),
        posteriors.normal(encoder),
        tabular.mixed_columns(decoder, KINDS),
    )
    row = jnp.array([1.0, jnp.nan, 1.0, 0.3, jnp.nan])

    @quick_jit
    def means(key, row):
        params = model.init(key, row)
        locs = lambda row: model.posterior(params, row).loc
        return locs(row), locs(row.at[1].set(0.0))

    gap, zero = means(jax.random.key(0), row)
    assert np.isfinite(gap).all()
    assert abs(gap - zero).max() > 1e-3  # a gap is not a 0: the mask says so
