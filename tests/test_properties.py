"""Properties of the numerical functions, over inputs that hypothesis draws.

Programs are compiled once for a shape, and the draws are the same in every run. What
is no valid input must be refused by a check of ours, at the door, not from deep inside.
"""

import functools
import math
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import examples, quick_jit
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from scipy import special, stats

from vi_jax import (
    bounds,
    decoding,
    distributions as d,
    divergences,
    early_stopping,
    estimators,
    evaluation,
    key_functions,
    likelihoods,
    maximum_likelihood,
    model as models,
    networks,
    objectives,
    posteriors,
    priors,
    quadrature,
    schedules,
    sequences,
    tabular,
    total_correlation,
)
from vi_jax.data import batches, interactions, labels, sources, sprites, tables
from vi_jax.models import vae

OURS = ("/vi_jax/", "/experiments/", "/chex/")
FLOAT_MAX = float(np.finfo(np.float32).max)


def floats(low, high):
    return st.floats(low, high, width=32, allow_subnormal=False)


def vectors(n, low, high):
    """float32 [n], n a number or a strategy of some."""
    return arrays(np.float32, n, elements=floats(low, high))


def refused(call, *errors, door=(ValueError, TypeError, AssertionError)):
    """Whether the call raises; if so, one of the errors, by a check of ours."""
    try:
        call()
    except door as error:
        assert not errors or isinstance(error, errors), error
        raised_at = traceback.extract_tb(error.__traceback__)[-1].filename
        assert any(part in raised_at for part in OURS), (raised_at, error)
        assert str(error)
        return True
    return False


# ---------------------------------------------------------------------------- bounds

ALL_BOUNDS = {
    "elbo": bounds.elbo,
    "iwae": bounds.iwae,
    "renyi_half": functools.partial(bounds.renyi, alpha=0.5),
    "renyi_2": functools.partial(bounds.renyi, alpha=2.0),
    "renyi_minus_1": functools.partial(bounds.renyi, alpha=-1.0),
    "ciwae": functools.partial(bounds.ciwae, mix=0.3),
    "cubo": bounds.cubo,
    "tvo": functools.partial(bounds.tvo, betas=(0.0, 0.25, 0.5, 1.0)),
    "miwae": lambda log_w: bounds.miwae(log_w, groups=math.gcd(2, log_w.size)),
}


@quick_jit
def all_bounds(log_w):
    return {name: bound(log_w) for name, bound in ALL_BOUNDS.items()}


@quick_jit
def all_gradients(log_w):
    return {name: jax.grad(bound)(log_w) for name, bound in ALL_BOUNDS.items()}


@quick_jit
def batched_bounds(log_w):
    return {name: jax.vmap(bound)(log_w) for name, bound in ALL_BOUNDS.items()}


def reference_bounds(log_w):
    """All of them but tvo and miwae, in float64, from their definitions."""
    log_w = np.asarray(log_w, np.float64)
    log_mean = lambda a: special.logsumexp(a) - np.log(a.size)
    renyi = lambda alpha: log_mean((1 - alpha) * log_w) / (1 - alpha)
    return {
        "elbo": log_w.mean(),
        "iwae": log_mean(log_w),
        "renyi_half": renyi(0.5),
        "renyi_2": renyi(2.0),
        "renyi_minus_1": renyi(-1.0),
        "ciwae": 0.3 * log_w.mean() + 0.7 * log_mean(log_w),
        "cubo": log_mean(2 * log_w) / 2,
    }


LOG_WEIGHTS = st.sampled_from([1, 2, 6]).flatmap(lambda k: vectors(k, -1e4, 1e4))


def near(a, b, scale, relative=2e-6):
    """float32 numbers that agree, up to rounding of numbers as large as `scale`."""
    return abs(float(a) - float(b)) <= relative * max(1.0, float(np.max(np.abs(scale))))


@examples(60)
@given(LOG_WEIGHTS, floats(-1e3, 1e3), st.randoms(use_true_random=False))
def test_bounds_are_what_float64_says_and_move_and_permute_with_the_weights(
    log_w, shift, random
):
    found = all_bounds(log_w)
    for name, expected in reference_bounds(log_w).items():
        assert near(found[name], expected, log_w), name
    moved = all_bounds(log_w + np.float32(shift))
    order = random.sample(range(log_w.size), log_w.size)
    permuted = all_bounds(log_w[order])
    for name in ALL_BOUNDS:
        assert near(moved[name], found[name] + shift, 2e4), name
        assert name == "miwae" or near(permuted[name], found[name], log_w), name


@examples(60)
@given(LOG_WEIGHTS)
def test_bounds_are_in_their_order_on_the_same_weights(log_w):
    b = {name: float(value) for name, value in all_bounds(log_w).items()}
    rising = ("renyi_2", "elbo", "renyi_half", "iwae", "cubo")
    between = (("elbo", "miwae", "iwae"), ("elbo", "tvo", "iwae"))
    between += (("elbo", "ciwae", "iwae"),)
    slack = 2e-6 * max(1.0, float(np.max(np.abs(log_w))))
    for names in (rising, *between):
        values = [log_w.min(), *(b[name] for name in names), log_w.max()]
        assert all(np.diff(values) >= -4 * slack), names
    if log_w.size > 1:
        # Jensen: the bound of fewer samples, averaged over which ones, is no higher.
        fewer = [np.delete(log_w, i) for i in range(log_w.size)]
        low = np.mean([reference_bounds(one)["iwae"] for one in fewer])
        assert low <= b["iwae"] + 4 * slack


@examples(40)
@given(LOG_WEIGHTS)
def test_the_gradient_of_a_bound_is_a_set_of_weights(log_w):
    """They add up to 1, since bounds move with the log-weights, and none is below 0.

    Except in tvo, whose derivative says how the weights change too.
    """
    for name, gradient in all_gradients(log_w).items():
        # tvo multiplies a weight by its distance from the top, in nats.
        scale = np.ptp(log_w) if name == "tvo" else 1.0
        assert near(np.sum(gradient), 1.0, scale, 2e-5), name
        assert name == "tvo" or np.min(gradient) >= 0, name


@examples(15)
@given(arrays(np.float32, (3, 6), elements=floats(-1e4, 1e4)))
def test_vmap_over_log_weights_is_a_loop(log_w):
    together = batched_bounds(log_w)
    for i, row in enumerate(log_w):
        for name, value in all_bounds(row).items():
            assert near(together[name][i], value, log_w), name


def test_impossible_samples_and_integers_are_log_weights_too():
    log_w = jnp.array([-jnp.inf, 0.0, 1.0, -jnp.inf, 2.0, 1.0])
    found = all_bounds(log_w)
    assert found["iwae"] == pytest.approx(math.log((1 + 2 * math.e + math.e**2) / 6))
    assert found["elbo"] == -jnp.inf and found["tvo"] == -jnp.inf
    whole = jnp.array([1, 2, 5, -3, 0, 2])
    for name, value in all_bounds(whole.astype(float)).items():
        assert ALL_BOUNDS[name](whole) == pytest.approx(float(value), rel=1e-6), name


@pytest.mark.parametrize("name", ALL_BOUNDS)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (0, 3), (1, 1, 1)])
def test_a_bound_takes_the_log_weights_of_one_example(name, shape):
    assert refused(lambda: ALL_BOUNDS[name](jnp.zeros(shape)), ValueError)


@examples(60)
@given(st.floats(allow_nan=True), st.integers(-3, 9))
def test_options_of_bounds_are_refused_out_of_their_range(value, groups):
    log_w = jnp.array([-1.0, 0.5, 2.0, 0.0])
    for call, sound in (
        (
            lambda: bounds.renyi(log_w, alpha=value),
            abs(value) <= FLOAT_MAX and value != 1,
        ),
        (lambda: bounds.ciwae(log_w, mix=value), 0 <= value <= 1),
        (lambda: bounds.cubo(log_w, order=value), 1 < value <= FLOAT_MAX),
        (lambda: bounds.tvo(log_w, betas=(0.0, value, 1.0)), 0 < value < 1),
        (lambda: bounds.miwae(log_w, groups=groups), groups in (1, 2, 4)),
    ):
        assert refused(lambda call=call: jax.eval_shape(call), ValueError) != sound


def test_a_million_samples_are_as_good_as_few():
    """A sum of as many numbers must not lose its digits."""
    log_w = np.random.default_rng(0).normal(-80, 3, 2**20).astype(np.float32)
    found = quick_jit(lambda log_w: (bounds.elbo(log_w), bounds.iwae(log_w)))(log_w)
    exact = reference_bounds(log_w)
    np.testing.assert_allclose(found, [exact["elbo"], exact["iwae"]], rtol=1e-6)


# --------------------------------------------------------------------- distributions


def column(low, high):
    return vectors(3, low, high)


def _full(loc, below):
    tril = jnp.tril(jnp.full((3, 3), below[0]), -1) + jnp.diag(jnp.exp(below))
    return d.FullNormal(jnp.asarray(loc), tril)


# Name -> (strategies of the parameters, what makes a distribution of them, the float64
# log-density of an event, whether an event is in the support).
FAMILIES = {
    "Normal": (
        (column(-30, 30), column(0.03125, 32)),
        d.Normal,
        lambda p, x: stats.norm(*p).logpdf(x).sum(),
        lambda x: x.shape == (3,),
    ),
    "FullNormal": (
        (column(-30, 30), column(-1, 1)),
        _full,
        lambda p, x: stats.multivariate_normal(
            p[0], _full(*p).scale_tril @ _full(*p).scale_tril.T
        ).logpdf(x),
        lambda x: x.shape == (3,),
    ),
    "Gamma": (
        (column(0.5, 30), column(0.03125, 30)),
        d.Gamma,
        lambda p, x: stats.gamma(p[0], scale=1 / p[1]).logpdf(x).sum(),
        lambda x: (x > 0).all(),
    ),
    "Beta": (
        (column(1, 30), column(1, 30)),
        d.Beta,
        lambda p, x: stats.beta(*p).logpdf(x).sum(),
        lambda x: ((x > 0) & (x < 1)).all(),
    ),
    "Bernoulli": (
        (column(-60, 60),),
        d.Bernoulli,
        lambda p, x: -np.logaddexp(0, np.where(x == 1, -p[0], p[0])).sum(),
        lambda x: ((x == 0) | (x == 1)).all(),
    ),
    "Categorical": (
        (column(-60, 60),),
        d.Categorical,
        lambda p, x: special.log_softmax(p[0])[int(x)],
        lambda x: x.shape == () and 0 <= x < 3,
    ),
    "Multinomial": (
        (column(-60, 60),),
        d.Multinomial,
        lambda p, x: special.log_softmax(p[0])[np.argmax(x)],
        lambda x: x.sum() == 1 and ((x == 0) | (x == 1)).all(),
    ),
    "ContinuousBernoulli": (
        (column(-30, 30),),
        d.ContinuousBernoulli,
        lambda p, x: _log_continuous_bernoulli(p[0], x),
        lambda x: ((x >= 0) & (x <= 1)).all(),
    ),
    "DiscretizedLogistic": (
        (column(-0.5, 1.5), column(0.03125, 1)),
        d.DiscretizedLogistic,
        lambda p, x: _log_rounded_logistic(*p, x),
        lambda x: (abs(255 * x - np.round(255 * x)) < 1e-4).all(),
    ),
}


def _log_continuous_bernoulli(logits, x):
    # A series where the formula is 0 / 0.
    l = np.where(np.abs(logits) < 1e-3, 1.0, logits)
    norm = np.log(np.expm1(l) / l)
    return (logits * x - np.where(l == logits, norm, logits / 2)).sum()


def _log_rounded_logistic(loc, scale, x):
    pixel = np.round(255 * x)
    upper = np.where(pixel == 255, np.inf, ((pixel + 0.5) / 255 - loc) / scale)
    lower = np.where(pixel == 0, -np.inf, ((pixel - 0.5) / 255 - loc) / scale)
    # From the side on which the tail is the smaller one.
    flip = lower > 0
    upper, lower = np.where(flip, -lower, upper), np.where(flip, -upper, lower)
    return np.log(special.expit(upper) - special.expit(lower)).sum()


@functools.cache
def drawn(name):
    """(parameters, key) -> a draw, its log-density, and the mean."""

    @quick_jit
    def program(parameters, key):
        made = FAMILIES[name][1](*parameters)
        x = made.sample(key)
        return x, made.log_prob(x), made.mean()

    return program


@pytest.mark.parametrize("name", FAMILIES)
@examples(25)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_draws_are_in_the_support_and_have_the_density_of_float64(name, data, seed):
    parameters_of, _, log_density, is_event = FAMILIES[name]
    parameters = tuple(data.draw(one) for one in parameters_of)
    x, log_prob, mean = drawn(name)(parameters, jax.random.key(seed))
    x, exact = np.asarray(x), [np.float64(p) for p in parameters]
    assert is_event(x) and np.isfinite(mean).all()
    expected = log_density(exact, x.astype(np.float64))
    # A term of the density moves by as many of its own roundings as x has.
    np.testing.assert_allclose(log_prob, expected, rtol=2e-4, atol=2e-3)


@examples(30)
@given(column(-60, 60), st.integers(-(2**31), 2**31 - 1))
def test_classes_outside_and_missing_ones_are_impossible(logits, x):
    """MISSING is -1, which an index would count from the end."""
    log_p = d.Categorical(jnp.asarray(logits)).log_prob
    assert (log_p(jnp.int32(x)) == -jnp.inf) == (not 0 <= x < 3)
    assert log_p(labels.MISSING) == -jnp.inf
    total = sum(math.exp(log_p(jnp.int32(i))) for i in range(-3, 6))
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("x", [True, 1.0, np.nan, [1]])
def test_what_is_no_class_is_refused(x):
    assert refused(lambda: d.Categorical(jnp.zeros(3)).log_prob(jnp.asarray(x)))


@examples(40)
@given(
    vectors(4, -(2.0**125), 2.0**125), st.lists(st.booleans(), min_size=4, max_size=4)
)
def test_coins_are_right_for_every_finite_logit(logits, outcomes):
    """Also where a sigmoid is 0 or 1 in float32, and so is the gradient."""
    x = np.array(outcomes, np.float32)
    value, gradient = _coin_slope(logits, x)
    l = np.float64(logits)
    terms = -np.logaddexp(0, np.where(x == 1, -l, l))
    # The error of exp(-|l|), relative, is that of l times its size, which is below 104
    # where the result is not 0: 104 x 2^-23. A CPU may take each that is no normal
    # number for 0, as exp(-88) beside exp(-77): 4 x 2^-126.
    expected = np.maximum(terms.sum(), -np.inf)
    np.testing.assert_allclose(value, expected, rtol=1.3e-5, atol=4.8e-38)
    np.testing.assert_allclose(gradient, x - special.expit(l), atol=1e-6)


@quick_jit
def _coin_slope(logits, x):
    return jax.value_and_grad(lambda l: d.Bernoulli(l).log_prob(x))(logits)


@examples(30)
@given(
    column(-5, 5),
    column(0.25, 4),
    vectors(1 + 3 + 2, -20, 20),
    st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_a_row_with_missing_entries_is_the_sum_of_its_other_columns(
    loc, scale, logits, missing
):
    """And the codes of each column have probabilities that add up to 1."""
    x = np.float32([loc[0] + 1, 1.0, 2.0, loc[1], 1.0, loc[2]])
    log_prob, each, whole, total = _row(loc, scale, logits, x, np.array(missing))
    expected = np.where(missing, 0, whole)
    np.testing.assert_allclose(each, expected, rtol=1e-5, atol=1e-5)
    assert near(log_prob, expected.sum(), whole, 1e-5)
    np.testing.assert_allclose(total, 1, rtol=1e-5)


@quick_jit
def _row(loc, scale, logits, x, missing):
    row = d.MixedColumns(loc, scale, logits, (0, 1, 3, 0, 2, 0))
    holed = jnp.where(missing, jnp.nan, x)
    total = jnp.stack([jnp.sum(p) for p in row.probabilities() if p is not None])
    return row.log_prob(holed), row.log_probs(holed), row.log_probs(x), total


@pytest.mark.parametrize("num_logits", [(0, 3), (0, 0), (1,), (0, 2, 2), (4,)])
def test_columns_that_do_not_fit_their_logits_are_refused(num_logits):
    row = d.MixedColumns(jnp.zeros(1), jnp.ones(1), jnp.zeros(2), num_logits)
    if num_logits != (0, 2):
        assert refused(lambda: row.log_prob(jnp.zeros(len(num_logits))))


SHAPES = [(), (0,), (1,), (3,), (2, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["Normal", "Gamma", "Beta", "Bernoulli"])
def test_an_event_of_another_shape_is_refused_and_never_broadcast(name, shape):
    make, count = FAMILIES[name][1], len(FAMILIES[name][0])
    made = make(*[jnp.full(3, 0.5)] * count)
    assert refused(lambda: made.log_prob(jnp.full(shape, 0.5))) == (shape != (3,))


# ----------------------------------------------------------------------- divergences

PAIRS = ("Normal", "FullNormal", "Gamma", "Beta", "Bernoulli", "Categorical")


def _exact_kl(name, q, p):
    """In float64 from the textbook, and None where it has no simple form."""
    if name == "Normal":
        (m, s), (n, t) = q, p
        return np.sum(np.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5)
    if name == "Bernoulli":
        a, b = special.expit(q[0]), special.expit(p[0])
        log = lambda l: (-np.logaddexp(0, -l), -np.logaddexp(0, l))
        (one_q, no_q), (one_p, no_p) = log(q[0]), log(p[0])
        del b
        return np.sum(a * (one_q - one_p) + (1 - a) * (no_q - no_p))
    if name == "Categorical":
        log_q, log_p = special.log_softmax(q[0]), special.log_softmax(p[0])
        return np.sum(np.exp(log_q) * (log_q - log_p))
    return None


@functools.cache
def divergence(name):
    make = FAMILIES[name][1]
    return quick_jit(lambda q, p: divergences.kl(make(*q), make(*p)))


@pytest.mark.parametrize("name", PAIRS)
@examples(30)
@given(data=st.data(), nearly=st.booleans())
def test_kl_is_not_negative_and_0_of_the_same(name, data, nearly):
    draw = lambda: tuple(data.draw(one) for one in FAMILIES[name][0])
    q = draw()
    p = tuple(np.float32(a * (1 + 1e-6)) for a in q) if nearly else draw()
    found = float(divergence(name)(q, p))
    # Gamma and Beta are accurate relative to their largest term.
    floor = -0.01 if name in ("Gamma", "Beta") else 0.0
    assert found >= floor and abs(float(divergence(name)(q, q))) <= -floor + 1e-6
    exact = _exact_kl(name, *([np.float64(a) for a in one] for one in (q, p)))
    if exact is not None and not nearly:
        np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["Normal", "Gamma", "Beta", "Bernoulli"])
@pytest.mark.parametrize("shape", [(1,), (), (2,), (3, 1)])
def test_kl_between_other_events_is_refused_and_never_broadcast(name, shape):
    make, count = FAMILIES[name][1], len(FAMILIES[name][0])
    q, p = (make(*[jnp.full(s, 0.5)] * count) for s in ((3,), shape))
    assert refused(lambda: divergences.kl(q, p), ValueError)
    assert refused(lambda: divergences.kl(p, q), ValueError)


@examples(10)
@given(column(-5, 5), floats(0.125, 8))
def test_one_scale_for_all_coordinates_counts_in_each(loc, scale):
    q, r = d.Normal(loc, jnp.float32(scale)), d.Normal(loc, np.full(3, scale, "f4"))
    p = d.Normal(jnp.ones(3), jnp.ones(3))
    assert divergences.entropy(q) == pytest.approx(float(divergences.entropy(r)))
    assert divergences.kl(q, p) == pytest.approx(float(divergences.kl(r, p)))


@examples(20)
@given(vectors(2, -5, 5), vectors(2, 0.125, 4), st.integers(2, 30))
def test_quadrature_has_the_moments(loc, scale, order):
    q = d.Normal(jnp.asarray(loc), jnp.asarray(scale))
    z, weights = (np.float64(a) for a in quadrature.nodes(q, order=order))
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(weights @ z, loc, rtol=1e-4, atol=1e-4)
    second = np.float64(loc) ** 2 + np.float64(scale) ** 2
    np.testing.assert_allclose(weights @ z**2, second, rtol=1e-4)


@pytest.mark.parametrize("order", [0, -1, 301, 10**6])
def test_orders_that_float64_has_no_weights_for_are_refused(order):
    q = d.Normal(jnp.zeros(1), jnp.ones(1))
    assert refused(lambda: quadrature.nodes(q, order=order), ValueError)
    z, weights = quadrature.nodes(q, order=300)
    np.testing.assert_allclose(weights @ z[:, 0] ** 2, 1, rtol=1e-5)


@examples(25)
@given(arrays(np.float32, (5, 2), elements=floats(-100, 100)), floats(-2, 2))
def test_no_other_gaussian_has_more_likelihood(x, off):
    if refused(lambda: maximum_likelihood.normal(x), ValueError):
        assert (np.ptp(x, axis=0) == 0).any()
        return
    best = maximum_likelihood.normal(x)
    value = stats.norm(best.loc, best.scale).logpdf(x).sum()
    loc, scale = np.float64(best.loc), np.float64(best.scale)
    for other in (stats.norm(loc + off * scale, scale), stats.norm(loc, 1.5 * scale)):
        assert other.logpdf(x.astype(np.float64)).sum() <= value + 1e-3
    # As scipy's own fit.
    np.testing.assert_allclose(scale, x.astype(np.float64).std(0), rtol=1e-4)


# ------------------------------------------------------------- models and objectives

VAE = vae(
    priors.standard_normal(2),
    posteriors.normal(networks.mlp([4], 4)),
    likelihoods.bernoulli(networks.mlp([4], 6)),
)
PARAMS = quick_jit(VAE.init)(jax.random.key(0), jnp.zeros(6))
PIXELS = arrays(np.float32, 6, elements=st.sampled_from([0.0, 1.0]))


@quick_jit
def value_and_slope(scale, key, x):
    params = jax.tree.map(lambda a: a * scale, PARAMS)

    def of(params, bound, estimator):
        how = {"bound": bound, "estimator": estimator, "num_samples": 3}
        return objectives.per_example(VAE, params, jax.random.clone(key), x, **how)[0]

    chosen = {
        "reparam": (bounds.iwae, estimators.reparam),
        "stl": (bounds.elbo, estimators.stl),
        "dreg": (bounds.iwae, estimators.dreg),
        "vimco": (bounds.iwae, estimators.vimco),
    }
    return {n: jax.value_and_grad(of)(params, *pair) for n, pair in chosen.items()}


@examples(25)
@given(floats(-300, 300), st.integers(0, 2**31), PIXELS)
def test_bound_and_gradient_stay_finite_whatever_the_weights(scale, seed, x):
    """Variances are bounded where q is made, and coins have no tails to fall off."""
    found = value_and_slope(scale, jax.random.key(seed), x)
    for value, gradient in found.values():
        assert np.isfinite(value)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    iwae, elbo = (float(found[name][0]) for name in ("reparam", "stl"))
    assert elbo <= iwae + 1e-5 * abs(elbo) + 1e-5
    for name in ("dreg", "vimco"):
        assert float(found[name][0]) == pytest.approx(iwae, rel=1e-6)


@quick_jit
def measured(scale, key, x):
    params = jax.tree.map(lambda a: a * scale, PARAMS)
    return evaluation.log_likelihood(VAE, params, key, x, num_samples=30, chunk=8)


@examples(20)
@given(floats(-10, 10), st.integers(0, 2**31), PIXELS)
def test_parts_of_a_log_likelihood_fit_each_other(scale, seed, x):
    found = measured(scale, jax.random.key(seed), x)
    assert found.elbo <= found.log_px + 1e-5 * abs(found.elbo) + 1e-5
    assert 1 - 1e-4 <= found.ess <= 30 * (1 + 1e-4) and 0 <= found.stderr <= 1
    assert near(found.elbo, -found.rate - found.distortion, found.distortion)
    assert found.log_px <= 1e-5  # x is discrete: its log-weights are no densities' ...


def one_value(key, x):
    how = {"bound": bounds.iwae, "num_samples": 3}
    return objectives.per_example(VAE, PARAMS, key, x, **how)[0]


value_of_one = quick_jit(one_value)
values_of_batch = quick_jit(jax.vmap(one_value))


@examples(10)
@given(st.lists(PIXELS, min_size=4, max_size=4), st.permutations(range(4)))
def test_an_example_has_its_value_in_any_batch_and_any_place(x, order):
    x = np.stack(x)
    keys = jax.random.split(jax.random.key(0), 4)
    alone = [
        one_value(jax.random.clone(k), row) for k, row in zip(keys, x, strict=True)
    ]
    order = np.array(order)
    found = values_of_batch(jax.random.clone(keys)[order], x[order])
    np.testing.assert_allclose(found, np.array(alone)[order], rtol=1e-5)


@pytest.mark.parametrize("shape", [(), (5,), (7,), (2, 3), (1, 6), (0,)])
@pytest.mark.parametrize("how", [{}, {"num_samples": 0}, {"num_samples": -2}])
def test_an_example_that_does_not_fit_the_model_is_refused(shape, how):
    """A network takes any shape of the right size; the likelihood takes its own."""
    x = jnp.zeros(shape)
    call = lambda: objectives.per_example(VAE, PARAMS, jax.random.key(0), x, **how)
    if x.size == 6 or how:
        assert refused(lambda: jax.eval_shape(call))
        return
    with pytest.raises(
        Exception, match=r"shape|no numbers"
    ):  # flax's, of the first layer
        jax.eval_shape(call)


@examples(30)
@given(vectors(3, -50, 50), vectors(3, -50, 50), floats(0, 1))
def test_paths_end_where_they_should(a, b, t):
    for path in (models.linear, models.spherical):
        ends = [np.asarray(path(jnp.asarray(a), jnp.asarray(b), e)) for e in (0.0, 1.0)]
        for end, expected in zip(ends, (a, b), strict=True):
            np.testing.assert_allclose(end, expected, rtol=1e-3, atol=0.05)
        assert np.isfinite(path(jnp.asarray(a), jnp.asarray(b), t)).all()


@quick_jit
def kl_parts(loc, scale, z, log_weights):
    q, prior = d.Normal(loc, scale), d.Normal(jnp.zeros(2), jnp.ones(2))
    parts = total_correlation.kl_parts(q, prior, z, jnp.int32(1), log_weights)
    log_ratio = d.Normal(loc[1], scale[1]).log_prob(z) - prior.log_prob(z)
    total = parts.mutual_information + parts.total_correlation
    return total + jnp.sum(parts.marginal_kl), log_ratio


@examples(25)
@given(
    arrays(np.float32, (4, 2), elements=floats(-5, 5)),
    arrays(np.float32, (4, 2), elements=floats(0.125, 4)),
    vectors(2, -5, 5),
    vectors(4, -9, 0),
)
def test_parts_of_the_kl_add_up_whatever_the_weights(loc, scale, z, log_weights):
    total, log_ratio = kl_parts(loc, scale, z, log_weights)
    np.testing.assert_allclose(total, log_ratio, rtol=1e-4, atol=2e-3)


@examples(20)
@given(
    arrays(np.float32, (2, 3), elements=floats(-30, 30)),
    arrays(np.float32, (2, 3), elements=floats(0, 1)),
    arrays(np.float32, (2, 2), elements=floats(-5, 5)),
)
def test_the_plain_functions_sum_over_the_last_axis_alone(logits, x, mu):
    """Against float64, with log_var = mu for want of another."""
    l, m = np.float64(logits), np.float64(mu)
    entropy = (np.logaddexp(0, l) - x * l).sum(-1)
    kl = 0.5 * (m**2 + np.exp(m) - 1 - m).sum(-1)
    found = key_functions.negative_elbo_bound(x, logits, mu, mu)
    np.testing.assert_allclose(found, entropy + kl, rtol=1e-4, atol=1e-4)
    density = stats.norm(m, np.exp(m / 2)).logpdf(0.5).sum(-1)
    found = key_functions.log_normal(jnp.full((2, 2), 0.5), mu, mu)
    np.testing.assert_allclose(found, density, rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------------- networks

SIDES = st.integers(0, 12)


@examples(40)
@given(
    st.tuples(SIDES, SIDES, st.integers(0, 3)),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=3),
    st.integers(-1, 6),
    st.booleans(),
)
def test_convolutions_fit_any_image_or_are_refused(shape, layers, kernel, resize):
    channels, strides = [c for c, _ in layers], [s for _, s in layers]
    how = {"strides": strides, "dense": (3,), "kernel_size": kernel}
    key = jax.random.key(0)
    made = []
    down = lambda: made.append(
        networks.conv_encoder(shape, 5, channels=channels, **how)
    )
    up = lambda: made.append(
        networks.conv_decoder(shape, channels=channels[::-1], resize=resize, **how)
    )
    if refused(down, ValueError):
        assert refused(up, ValueError)
        return
    up()
    for network, x, size in zip(
        made, (jnp.zeros(shape), jnp.zeros(2)), (5, math.prod(shape)), strict=True
    ):
        params = jax.eval_shape(network.init, key, x)
        assert jax.eval_shape(network.apply, params, x).shape == (size,)


@pytest.mark.parametrize("widths", [([], 0), ([0], 3), ([3, -1], 3), ([3], -5)])
def test_networks_without_width_are_refused(widths):
    assert refused(lambda: networks.mlp(*widths), ValueError)
    assert refused(lambda: networks.made([*widths[0], widths[1]]), ValueError)
    assert refused(lambda: networks.gru_encoder(5, widths[1], width=0), ValueError)


@pytest.mark.parametrize("bias", [[0.0], [0.0] * 4, np.zeros((3, 1)), np.zeros(())])
def test_a_bias_of_another_size_is_refused(bias):
    assert refused(lambda: networks.mlp([2], 3, output_bias=bias), ValueError)
    assert refused(
        lambda: networks.conv_decoder((5, 4, 1), output_bias=bias), ValueError
    )


# ------------------------------------------------------------------------- schedules

RAMPS = (schedules.linear, schedules.cosine, schedules.sigmoid, schedules.cyclical)


@examples(40)
@given(
    st.sampled_from(RAMPS),
    st.integers(-1, 60),
    st.integers(-1, 80),
    st.floats(allow_nan=True),
    st.floats(0, 5),
)
def test_schedules_stay_between_their_ends_and_arrive(ramp, num, total, start, end):
    make = lambda: ramp(num, total_steps=total, start=start, end=end)
    least = 8 if ramp is schedules.cyclical else 1
    wrong = num < least or num > total or not 0 <= start < math.inf
    assert refused(make, ValueError) == wrong
    if wrong or start > 1e30:
        return
    values = np.float64(make()(np.arange(64)))[: num + 3]
    low, high = sorted((start, end))
    slack = 1e-5 * max(1.0, high)
    assert (values >= low - slack).all() and (values <= high + slack).all()
    assert values[0] == pytest.approx(start, rel=1e-5, abs=1e-6)
    assert (values[num:] == np.float64(np.float32(end))).all()
    if ramp is not schedules.cyclical:
        assert (np.diff(values) * np.sign(end - start) >= -slack).all()
        assert schedules.settled(make(), total_steps=total) <= num


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, -math.inf])
def test_a_weight_that_is_no_weight_is_refused(value):
    assert refused(lambda: schedules.constant(value), ValueError)


@examples(40)
@given(
    st.lists(st.floats(allow_nan=True), max_size=12),
    st.integers(1, 4),
    st.integers(0, 5),
)
def test_early_stopping_is_the_distance_from_the_best(scores, patience, start):
    rule = early_stopping.EarlyStopping(patience, start)
    counted = [-math.inf if math.isnan(s) else s for s in scores[start:]]
    best = int(np.argmax(counted)) if counted and max(counted) > -math.inf else -1
    waited = len(counted) - 1 - best
    assert early_stopping.stops(rule, enumerate(scores)) == (waited >= patience)


# --------------------------------------------------------------- sequences, decoding

TOKENS = st.integers(sequences.UNKNOWN, 2**31 - 1)


@examples(50)
@given(st.lists(st.lists(TOKENS, min_size=1, max_size=6), max_size=5))
def test_unpad_is_the_inverse_of_pad(rows):
    assert sequences.unpad(sequences.pad(rows, 7)) == rows


@examples(60)
@given(
    st.lists(
        st.lists(st.one_of(st.integers(), st.floats(), st.none()), max_size=5),
        min_size=1,
        max_size=3,
    ),
    st.integers(-1, 5),
)
def test_what_is_no_sequence_is_refused_by_its_number(rows, length):
    whole = all(type(token) is int for row in rows for token in row)
    sound = whole and all(
        0 < len(row) < length and all(2 <= t < 2**31 for t in row) for row in rows
    )
    assert refused(lambda: sequences.pad(rows, max(length, 0))) == (not sound)


@quick_jit
def marked(key, x, rate):
    found = sequences.word_dropout(key, x, rate)
    return found, sequences.true_tokens(found), sequences.readable_tokens(found)


@examples(25)
@given(st.lists(TOKENS, min_size=1, max_size=6), floats(0, 1), st.integers(0, 999))
def test_word_dropout_hides_words_only_from_the_decoder(tokens, rate, seed):
    x = sequences.pad([tokens], 8)[0]
    found, true, readable = marked(jax.random.key(seed), x, rate)
    np.testing.assert_array_equal(true, x)
    is_word = (x != sequences.END) & (x != sequences.PAD)
    hidden = np.asarray(found) != x
    assert not (hidden & ~is_word).any()
    expected = np.where(hidden, sequences.UNKNOWN, x)
    np.testing.assert_array_equal(readable, expected)
    if rate in (0, 1):
        assert (hidden == (is_word & (rate == 1))).all()


@functools.cache
def chooser(mass, temperature):
    choose = decoding.nucleus(mass, temperature=temperature)

    @quick_jit
    def chosen(key, logits):
        log_p = decoding.next_log_probs(logits)
        return choose(key, log_p), log_p

    return chosen


@examples(40)
@given(
    vectors(5, -30, 30),
    st.sampled_from([(1e-6, 1.0), (0.6, 1.2e-38), (0.6, 1.0), (1.0, 8e37), (1.0, 1.0)]),
    st.integers(0, 999),
)
def test_a_token_is_one_of_the_likeliest(logits, how, seed):
    mass, temperature = how
    token, log_p = chooser(mass, temperature)(jax.random.key(seed), logits)
    assert token != sequences.PAD
    p = special.softmax((np.float64(log_p[1:]) - np.max(log_p[1:])) / temperature)
    # The mass of those that are likelier must not reach the wanted one yet.
    assert p[p > p[token - 1] * (1 + 1e-4)].sum() <= mass + 1e-4
    if temperature == 1.2e-38:
        assert p[token - 1] == p.max()


@examples(40)
@given(st.floats(allow_nan=True), st.floats(allow_nan=True))
def test_masses_and_temperatures_out_of_range_are_refused(mass, temperature):
    sound = 0 < mass <= 1 and 2.0**-126 < temperature < 2.0**126
    made = lambda: decoding.nucleus(mass, temperature=temperature)
    assert refused(made, ValueError) == (not sound)


# ------------------------------------------------------------------------------ data


@examples(40)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**64 - 1))
def test_an_epoch_has_every_example_once(n, size, seed):
    size = min(n, size)
    stream = batches.shuffled({"x": np.arange(n)}, batch_size=size, seed=seed)
    steps = n  # a whole number of epochs: size of them
    seen = np.concatenate([stream.at(t)["index"] for t in range(steps)])
    for epoch in seen.reshape(size, n):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(n))
    # A function of the step alone.
    np.testing.assert_array_equal(stream.at(steps - 1)["index"], seen[-size:])


def test_a_million_examples_are_seen_once_an_epoch():
    n = 10**6
    stream = batches.shuffled({"x": np.zeros(n, bool)}, batch_size=n, seed=2**64 - 1)
    for step in (0, 1, 10**9):
        counts = np.bincount(stream.at(step)["index"], minlength=n)
        assert counts.min() == counts.max() == 1


ARRAYS = st.sampled_from(
    [np.zeros(s, t) for s in [(), (0,), (1,), (3,), (3, 2), (0, 2)] for t in "fi?"]
)
NUMBERS = st.one_of(st.integers(), st.floats(allow_nan=True), st.just(2**64))


@examples(60)
@given(st.dictionaries(st.sampled_from(["a", "step"]), ARRAYS), NUMBERS, NUMBERS)
def test_streams_of_what_is_no_data_are_refused(columns, batch_size, seed):
    made = lambda: batches.shuffled(columns, batch_size=batch_size, seed=seed)
    if not refused(made, ValueError, TypeError):
        assert len(made().at(0)["index"]) == batch_size


@examples(40)
@given(st.integers(0, 9), st.integers(1, 11))
def test_padded_batches_cover_all_rows_once(n, size):
    x = {"a": np.arange(n), "b": np.arange(2 * n).reshape(n, 2)}
    found = list(batches.padded(x, batch_size=size))
    assert all(len(mask) == size == len(rows["b"]) for rows, mask in found)
    kept = [rows["a"][mask] for rows, mask in found]
    np.testing.assert_array_equal(np.concatenate([[], *kept]), np.arange(n))


@pytest.mark.parametrize("lengths", [(3, 2), (2, 3), (3, 0), (3, None)])
def test_rows_without_partners_are_refused_not_repeated(lengths):
    """A JAX array repeats its last row where an index is beyond its end."""
    x = [jnp.zeros(()) if n is None else jnp.zeros((n, 2)) for n in lengths]
    assert refused(lambda: batches.padded(tuple(x), batch_size=2), ValueError)


@examples(40)
@given(st.floats(allow_nan=True), st.integers(-1, 40), st.integers(1, 100))
def test_steps_show_the_epochs_or_are_refused(epochs, batch_size, n):
    made = lambda: batches.steps_per_run(n, epochs=epochs, batch_size=batch_size)
    wrong = batch_size < 1 or not 0 <= epochs * n < math.inf
    assert refused(made, ValueError) == wrong
    if not wrong:
        assert (made() - 1) * batch_size < epochs * n + 1e-9 * abs(epochs * n) + 1e-9
        assert made() * batch_size >= epochs * n - 1e-9 * abs(epochs * n)


@quick_jit
def binary(key, image):
    return batches.binarize_dynamic(key, image)


@examples(20)
@given(arrays(np.uint8, (5, 3), elements=st.integers(0, 255)), st.integers(0, 999))
def test_black_stays_black_and_white_white(image, seed):
    x = np.asarray(binary(jax.random.key(seed), image))
    once = batches.binarize_once(image, mode="static", seed=seed)
    assert np.isin(x, [0, 1]).all() and np.isin(once, [0, 255]).all()
    for drawn_one, white in ((x, 1), (once, 255)):
        assert (drawn_one[image == 0] == 0).all()
        assert (drawn_one[image == 255] == white).all()


IMAGES = st.one_of(
    st.tuples(
        st.sampled_from([(), (0,), (3,), (3, 2), (3, 2, 2), (2, 2, 2, 1), (1,) * 5]),
        st.sampled_from("f4 f8 u1 i8 ? c8 U3 M8[D] O".split()),
        st.floats(-2, 300) | st.sampled_from([math.nan, math.inf, 0.0, 1.0, 255.0]),
    )
)


@examples(80)
@given(IMAGES, ARRAYS | st.none())
def test_images_become_bytes_or_are_refused(image, label):
    shape, dtype, value = image
    with np.errstate(all="ignore"):
        array = (
            np.full(shape, str(value)[:3])
            if dtype[0] in "UOM"
            else np.full(shape, np.nan_to_num(value) if dtype[0] in "ui?" else value)
        )
        array = np.zeros(shape, dtype) if dtype[0] == "M" else array.astype(dtype)
    made = lambda: sources.from_arrays(array, label)
    if not refused(made, ValueError):
        found = made()
        assert found.image.dtype == np.uint8 and found.image.ndim == 4
        assert len(found.image) == len(array) and found.image.size == array.size
        assert label is None or found.label.dtype == np.int32


CELLS = st.one_of(
    st.none(),
    st.floats(-1e6, 1e6) | st.just(math.nan),
    st.sampled_from(["", "a", "b", " c ", "nan", "7", "-1e3"]),
    st.sampled_from([10**400, math.inf, True]),
)


@examples(80)
@given(
    st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6),
    st.sampled_from([None, "continuous", "binary", "categorical", "date"]),
)
def test_a_table_is_coded_and_back_or_refused_by_column(rows, kind):
    cells = np.array(rows, object)
    kinds = None if kind is None else {"x0": kind}
    made = lambda: tables.fit_schema(cells, kinds=kinds)
    if refused(made, ValueError):
        return
    schema = made()
    again = tables.schema_from_json(tables.schema_to_json(schema))
    assert again == schema
    codes = tables.encode(schema, cells)
    back = tables.encode(schema, tables.decode(schema, codes))
    np.testing.assert_allclose(back, codes, rtol=1e-3, atol=1e-3)
    assert codes.shape == cells.shape and codes.dtype == np.float32
    for j, column in enumerate(schema.columns):
        here = codes[:, j][~np.isnan(codes[:, j])]
        if column.kind != "continuous":
            assert set(here) == set(range(len(column.categories)))
        elif len(here) > 1:
            assert abs(here.mean()) < 1e-3
    features = tabular.row_features(jnp.asarray(codes[0]), schema.num_logits)
    assert np.isfinite(features).all()


@quick_jit
def dense_rows(offsets, items):
    users = jnp.arange(8)
    return interactions.dense_rows(offsets, items, users, num_items=6, capacity=48)


PAIRS_OF = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 5)), min_size=1)


@examples(30)
@given(PAIRS_OF, st.integers(0, 9))
def test_interactions_are_a_set_of_pairs_in_every_form(pairs, seed):
    user, item = np.array(pairs).T
    users, user = np.unique(user, return_inverse=True)
    data = interactions.from_pairs(user, item, users.astype(str), np.arange(6))
    dense = np.zeros((len(users), 6), np.float32)
    dense[user, item] = 1
    np.testing.assert_array_equal(data.matrix().toarray(), dense)
    # A user without items stands for each that is not there: one program for all.
    offsets = np.append(data.offsets, [data.offsets[-1]] * (8 - len(users)))
    items = np.append(data.items, np.zeros(48 - len(data.items), np.int32))
    rows = dense_rows(offsets, items)
    np.testing.assert_array_equal(rows[: len(users)], dense)
    assert not rows[len(users) :].any()
    split = lambda: interactions.strong_split(
        data, num_valid=1, num_test=1, seed=seed, held_share=0.5
    )
    if refused(split, ValueError):
        return
    found = split()
    for part in (found.valid, found.test):
        seen, held = part.seen.matrix().toarray(), part.held.matrix().toarray()
        assert not (seen * held).any() and (seen.sum(1) > 0).all()
        place = {name: i for i, name in enumerate(data.user_names)}
        known = [int(name) for name in found.train.item_names]
        for name, row in zip(part.seen.user_names, seen + held, strict=True):
            np.testing.assert_array_equal(row, dense[place[name], known])


@examples(40)
@given(
    st.lists(st.integers(-2, 4), max_size=12),
    st.integers(0, 9),
    st.integers(0, 4),
    st.integers(0, 9),
)
def test_kept_labels_are_balanced_and_true(label, num, num_classes, seed):
    label = np.array(label, int)
    keep = lambda: labels.keep_balanced(label, num, num_classes=num_classes, seed=seed)
    if not refused(keep, ValueError):
        kept = keep()
        has = kept != labels.MISSING
        np.testing.assert_array_equal(kept[has], label[has])
        counts = np.bincount(kept[has], minlength=num_classes)
        assert (counts == num // num_classes).all()


@examples(30)
@given(st.integers(0, sprites.num_images(sprites.COLOURED_FACTORS) - 1))
def test_the_number_of_a_sprite_is_that_of_its_factors(index):
    for grid in (sprites.FACTORS, sprites.COLOURED_FACTORS):
        i = index % sprites.num_images(grid)
        values = sprites.factors_of(np.int32(i), grid)
        assert int(sprites.index_of(values, grid)) == i
        assert (values >= 0).all() and (values < np.array([*grid.values()])).all()


# ------------------------------------------------------------------------ evaluation

rank_scores = quick_jit(
    lambda *a: (evaluation.recall_at(*a, 3), evaluation.ndcg_at(*a, 3))
)


@examples(60)
@given(
    arrays(np.float32, 6, elements=st.sampled_from([-np.inf, -3, 0, 1, 2, 5])),
    arrays(np.float32, 6, elements=st.sampled_from([0.0, 1.0])),
    arrays(np.float32, 6, elements=st.sampled_from([0.0, 1.0])),
)
def test_ranking_is_a_sort_in_which_no_seen_item_takes_part(scores, held, seen):
    held = held * (1 - seen)
    recall, ndcg = rank_scores(scores, held, seen)
    order = [i for i in np.argsort(-scores, kind="stable") if not seen[i]][:3]
    if not held.any():
        assert np.isnan(recall) and np.isnan(ndcg)
        return
    hits = [held[i] for i in order]
    gains = [1 / math.log2(r + 2) for r in range(6)]
    best = sum(gains[: min(3, int(held.sum()))])
    assert recall == pytest.approx(sum(hits) / min(3, held.sum()))
    assert ndcg == pytest.approx(
        sum(h * g for h, g in zip(hits, gains, strict=False)) / best, rel=1e-5
    )


@examples(60)
@given(
    arrays(np.float64, st.integers(0, 40), elements=st.floats(-1e6, 1e6)),
    st.floats(allow_nan=True) | st.sampled_from([0.5, 0.1, 1 - 1e-13, 1 - 1e-16]),
)
def test_no_more_false_alarms_than_were_allowed(scores, rate):
    call = lambda: evaluation.threshold(scores, rate)
    wrong = not 0 < rate < 1 or (len(scores) + 1) * rate < 1
    assert refused(call, ValueError) == wrong
    if not wrong:
        found = call()
        assert found.value in scores
        assert np.mean(scores > found.value) <= rate
        assert found.low <= found.high and found.false_alarm_rate <= rate + 1e-9


@examples(40)
@given(
    arrays(np.float64, (20, 3), elements=st.floats(-50, 50)),
    arrays(np.int64, (20, 2), elements=st.integers(0, 2)),
    st.randoms(use_true_random=False),
)
def test_scores_of_codes_do_not_depend_on_order_or_on_names(codes, factors, random):
    call = lambda c=codes, f=factors: (
        evaluation.mig(c, f),
        evaluation.modularity(c, f),
    )
    if refused(call, ValueError):
        assert (np.ptp(factors, axis=0) == 0).any()
        return
    scores = call()
    assert all(-1e-9 <= score <= 1 + 1e-9 for score in scores)
    rows, latents = random.sample(range(20), 20), random.sample(range(3), 3)
    renamed = np.array([7, -4, 100])[factors]
    others = call(codes[rows][:, latents] * 4.0, renamed[rows][:, ::-1])
    np.testing.assert_allclose(others, scores, atol=1e-9)


def test_a_latent_that_only_rounds_is_constant():
    """One unit in the last place has no room for 20 bins."""
    codes = np.stack([np.r_[np.ones(9), 1 + 2.3e-16], np.arange(10.0)], axis=1)
    factors = (np.arange(10) % 2)[:, None]
    information = evaluation.latent_factor_information(codes, factors)
    assert information[0, 0] == 0 and information[1, 0] > 0.69
    huge = codes * [1e308, 1.5e307]
    assert evaluation.mig(huge, factors) == pytest.approx(
        evaluation.mig(codes, factors)
    )


GARBAGE = st.builds(
    lambda shape, dtype, values: np.resize(np.array(values), shape).astype(dtype),
    st.sampled_from([(), (0,), (1,), (3,), (3, 2), (4, 3), (0, 2), (3, 0), (2, 3, 1)]),
    st.sampled_from(["f4", "f8", "i4", "i8", "u1", "?"]),
    st.lists(st.integers(-2, 3), min_size=1, max_size=5),
)
TAKE_TWO = {
    "ece": evaluation.expected_calibration_error,
    "temperature": evaluation.fit_temperature,
    "information": evaluation.latent_factor_information,
    "mig": evaluation.mig,
    "modularity": evaluation.modularity,
    "udr": lambda a, b: evaluation.udr(a, b, similarity=evaluation.spearman_similarity),
    "recall": lambda a, b: evaluation.recall_at(
        jnp.asarray(a), jnp.asarray(b), jnp.zeros(np.shape(a)), 1
    ),
    "bias_variance": lambda a, b: evaluation.bias_variance(a, b, a),
    "sap": evaluation.sap,
}
TAKE_ONE = {
    "threshold": lambda a: evaluation.threshold(a, 0.5),
    "interval": evaluation.mean_interval,
    "seeds": evaluation.across_seeds,
    "code_length": evaluation.code_length,
    "unpad": sequences.unpad,
    "schema": tables.fit_schema,
    "mle_normal": maximum_likelihood.normal,
    "mle_bernoulli": maximum_likelihood.bernoulli,
    "mle_categorical": lambda a: maximum_likelihood.categorical(a, 3),
    "render": lambda a: sprites.factors_of(sprites.index_of(a)),
    "keep": lambda a: labels.keep_balanced(a, 2, num_classes=2, seed=0),
}


@pytest.mark.parametrize("name", TAKE_TWO)
@examples(15)
@given(GARBAGE, GARBAGE)
def test_two_arrays_of_any_shape_and_type_are_measured_or_refused(name, a, b):
    if not refused(lambda: TAKE_TWO[name](a, b)):
        assert np.ndim(a) and np.size(a)


@pytest.mark.parametrize("name", TAKE_ONE)
@examples(15)
@given(GARBAGE)
def test_an_array_of_any_shape_and_type_is_measured_or_refused(name, a):
    refused(lambda: TAKE_ONE[name](a))


@examples(30)
@given(st.integers(-2, 40), st.floats(allow_nan=True) | st.floats(0.01, 50))
def test_temperatures_rise_from_0_to_1(num_steps, steepness):
    made = lambda: evaluation.sigmoid_betas(num_steps, steepness=steepness)
    wrong = num_steps < 1 or not 0 < steepness < math.inf
    assert refused(made, ValueError) == wrong
    if not wrong and 1e-3 < steepness < 1e3:
        betas = np.asarray(made())
        assert betas[0] == 0 and betas[-1] == 1 and (np.diff(betas) >= 0).all()


@examples(30)
@given(
    arrays(np.float64, st.integers(0, 12), elements=st.floats(-1e3, 1e3)),
    st.floats(allow_nan=True) | st.floats(0.01, 0.99),
)
def test_an_interval_is_that_of_scipy(values, level):
    call = lambda: evaluation.mean_interval(values, level=level)
    wrong = len(values) < 2 or not 0 < level < 1
    assert refused(call, ValueError) == wrong
    if not wrong and 0.01 <= level <= 0.99 and np.ptp(values) > 1e-3:
        expected = stats.t.interval(
            level, len(values) - 1, values.mean(), stats.sem(values)
        )
        np.testing.assert_allclose(call()[2:], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dims", [0, -1])
@pytest.mark.parametrize("width", [1.0, 0.0, math.nan, 1.5, -1.0])
def test_bits_of_no_dimension_are_refused(dims, width):
    call = lambda: d.bits_per_dim(jnp.float32(-3.0), dims, bin_width=width)
    assert refused(call, ValueError)
