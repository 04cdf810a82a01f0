"""Likelihoods of grey pixels: scipy, sums over all 256 values, quadrature, draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import quick_jit
from scipy import special, stats

from vi_jax import likelihoods, networks
from vi_jax.distributions import (
    ContinuousBernoulli,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    PixelCategorical,
    bits_per_dim,
)
from vi_jax.types import Component

VALUES = np.arange(256) / 255
RNG = np.random.default_rng(0)
PRECISION = pytest.mark.parametrize("x64", [False, True])


def floats(*arrays):
    """Arrays of the current default width."""
    return [jnp.asarray(np.asarray(a), float) for a in arrays]


def logistic_masses(loc, scale):
    """Differences of scipy's cdf in float64, [..., 256], from the smaller tail."""
    loc, scale = np.asarray(loc)[..., None], np.asarray(scale)[..., None]
    inner = stats.logistic(loc, scale)
    edges = np.concatenate([[-np.inf], (np.arange(255) + 0.5) / 255, [np.inf]])
    low, high = edges[:-1], edges[1:]
    left, right = inner.cdf(high) - inner.cdf(low), inner.sf(low) - inner.sf(high)
    return np.where(VALUES < loc, left, right)


# Two entries of x each, so that one entry's parameters cannot serve another.
LOC, SCALE = np.array([0.3, 0.96]), np.array([0.02, 0.11])
LOGITS_M = np.array([[0.4, -1.0, 0.7], [2.0, 0.1, 1.4]])
LOC_M = np.array([[0.1, 0.5, 1.02], [0.7, 0.2, -0.1]])
SCALE_M = np.array([[0.05, 0.01, 0.03], [0.3, 0.004, 0.06]])
LOGITS_256 = RNG.normal(size=(2, 256)) * [[1.0], [3.0]]
DISCRETE = {
    "logistic": (DiscretizedLogistic, (LOC, SCALE), logistic_masses(LOC, SCALE)),
    "mixture": (
        DiscretizedLogisticMixture,
        (LOGITS_M, LOC_M, SCALE_M),
        np.einsum(
            "em,emv->ev", special.softmax(LOGITS_M, -1), logistic_masses(LOC_M, SCALE_M)
        ),
    ),
    "categorical": (PixelCategorical, (LOGITS_256,), special.softmax(LOGITS_256, -1)),
}
DISCRETE_ROWS = pytest.mark.parametrize("name", DISCRETE)


def log_masses(kind, *parameters):
    """log P of each value at each entry, [..., 256]: entries one by one, by vmap."""
    of_value = lambda p, v: kind(*(a[None] for a in p)).log_prob(v[None])
    over_values = jax.vmap(of_value, (None, 0))
    over_entries = jax.vmap(over_values, (0, None))
    return over_entries(parameters, *floats(VALUES))


@DISCRETE_ROWS
@PRECISION
def test_masses_are_those_of_scipy(name, x64):
    kind, parameters, expected = DISCRETE[name]
    rtol = 1e-11 if x64 else 2e-5
    with jax.enable_x64(x64):
        got = quick_jit(functools.partial(log_masses, kind))(*floats(*parameters))
        assert got.dtype == (jnp.float64 if x64 else jnp.float32)
        np.testing.assert_allclose(got, np.log(expected), rtol=rtol, atol=rtol)


@DISCRETE_ROWS
def test_log_prob_sums_over_an_event_of_any_shape(name):
    """An image [2, 1, 3] of entries with parameters of their own, and the flat [6]."""
    kind, parameters, masses = DISCRETE[name]
    entry, pixel = np.array([[[0, 1, 1]], [[1, 0, 0]]]), RNG.integers(0, 256, (2, 1, 3))
    image = tuple(floats(*(a[entry] for a in parameters)))
    flat = tuple(a.reshape(6, *a.shape[3:]) for a in image)
    of_both = lambda p, x: (kind(*p).log_prob(x), kind(*p).mean())
    for p, shape in ((image, (2, 1, 3)), (flat, (6,))):
        x = VALUES[pixel].reshape(shape)
        log_px, mean = quick_jit(of_both)(p, *floats(x))
        np.testing.assert_allclose(
            log_px, np.log(masses[entry, pixel]).sum(), rtol=2e-5
        )
        expected = (masses @ VALUES)[entry].reshape(shape)
        np.testing.assert_allclose(mean, expected, rtol=1e-5)
        assert jax.eval_shape(kind(*p).sample, jax.random.key(0)).shape == shape


@DISCRETE_ROWS
def test_draws_have_the_probabilities(name):
    """Chi-square of 10,000 draws, p > 1e-4, each entry; sparse values in one cell."""
    kind, parameters, masses = DISCRETE[name]
    d = kind(*floats(*parameters))
    keys = jax.random.split(jax.random.key(1), 10_000)
    draws = np.asarray(quick_jit(jax.vmap(d.sample))(keys), np.float64)
    pixels = np.round(255 * draws)
    np.testing.assert_allclose(draws, pixels / 255, rtol=1e-6)
    for j, mass in enumerate(masses):
        counts = np.bincount(pixels[:, j].astype(int), minlength=256)
        expected = len(draws) * mass
        often = expected >= 5
        sparse = [] if often.all() else [~often]
        pool = lambda a, o=often, s=sparse: np.append(a[o], [a[i].sum() for i in s])
        assert often.sum() > 20
        fit = stats.chisquare(pool(counts), pool(expected), sum_check=False)
        assert fit.pvalue > 1e-4
    # Two entries of one draw are independent.
    correlation = np.corrcoef(draws.T)[0, 1]
    assert abs(correlation) < 4 / len(draws) ** 0.5


@DISCRETE_ROWS
def test_gradients_are_those_of_finite_differences(name):
    """Along a direction that moves all parameters, for all values, in float64."""
    kind, parameters, _ = DISCRETE[name]
    with jax.enable_x64(True):
        parameters = floats(*parameters)
        rng = np.random.default_rng(2)
        move = floats(*(rng.normal(size=a.shape) * 0.01 for a in parameters))
        weights = jnp.array(rng.normal(size=(2, 256)), float)

        def along(t):
            moved = [a + t * b for a, b in zip(parameters, move, strict=True)]
            return jnp.sum(weights * log_masses(kind, *moved))

        h = 1e-3  # five points, error h^4
        f = quick_jit(along)
        difference = (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)
        assert abs(difference) > 0.1
        got = quick_jit(jax.grad(along))(0.0)
        np.testing.assert_allclose(got, difference, rtol=1e-6)


def extremes():
    """loc far out, on an edge and on a value, each with scales tiny to huge."""
    loc = np.array([-1e3, -1.0, 0.0, 0.5, 77 / 255, 1.0, 3.0, 1e3])
    scale = np.array([1e-7, 1e-4, 5e-4, 1e-2, 0.3, 10.0, 1e4])
    return [a.ravel() for a in np.meshgrid(loc, scale)]


def extreme_parameters(kind):
    loc, scale = extremes()
    if kind is DiscretizedLogistic:
        return loc, scale
    if kind is DiscretizedLogisticMixture:
        pair = lambda a: np.stack([a, np.roll(a, 11)], -1)
        logits = np.linspace(-1e4, 1e4, loc.size)
        return np.stack([logits, 0 * logits], -1), pair(loc), pair(scale)
    logits = np.zeros((4, 256))
    logits[0, 3], logits[1, 200], logits[2] = 1e4, -1e4, np.linspace(-1e3, 1e3, 256)
    return (logits,)


EXTREME_KINDS = [DiscretizedLogistic, DiscretizedLogisticMixture, PixelCategorical]


@pytest.mark.parametrize("kind", EXTREME_KINDS)
def test_extreme_parameters_keep_the_sum_at_1_and_all_gradients_finite(kind):
    """In float32: every value has a finite log probability, however unlikely."""
    parameters = floats(*extreme_parameters(kind))
    each = quick_jit(functools.partial(log_masses, kind))(*parameters)
    assert each.dtype == jnp.float32 and np.all(np.isfinite(each))
    total = np.exp(np.asarray(each, np.float64)).sum(-1)
    np.testing.assert_allclose(total, 1, atol=3e-5)
    one = lambda p, v: kind(*(a[None] for a in p)).log_prob(v[None])
    slopes = jax.vmap(jax.vmap(jax.grad(one), (None, 0)), (0, None))
    for leaf in quick_jit(slopes)(parameters, *floats(VALUES)):
        assert np.all(np.isfinite(leaf))
        assert np.any(leaf != 0)


def test_a_pixel_far_away_still_draws_the_location_to_itself():
    """d log P / d loc is +-1 / scale where differences of the cdf are 0 - 0."""
    loc, x = np.array([0.1, 0.9, 0.4, 0.6]), np.array([0.9, 0.1, 1.0, 0.0])
    log_prob = lambda loc, x: DiscretizedLogistic(loc, 0 * loc + 1e-3).log_prob(x)
    got = quick_jit(jax.grad(log_prob))(*floats(loc, x))
    np.testing.assert_allclose(got, np.sign(x - loc) * 1e3, rtol=1e-5)


def test_masses_of_a_wide_logistic_keep_their_digits():
    """Where float32 differences of the cdf have lost all theirs: 1e-6 relative."""
    wide = quick_jit(functools.partial(log_masses, DiscretizedLogistic))
    got = wide(*floats([0.2], [1e4]))[0, 1:-1]
    np.testing.assert_allclose(got, np.log(0.25 / 255 / 1e4), rtol=1e-6)


@DISCRETE_ROWS
def test_means_are_sums_over_all_values(name):
    kind, parameters, masses = DISCRETE[name]
    with jax.enable_x64(True):
        mean = quick_jit(lambda *p: kind(*p).mean())(*floats(*parameters))
        np.testing.assert_allclose(mean, masses @ VALUES, rtol=1e-12)


def test_a_mixture_of_one_is_the_one():
    logits = np.array([[7.0], [-3.0]])
    mixture = functools.partial(log_masses, DiscretizedLogisticMixture)
    one = functools.partial(log_masses, DiscretizedLogistic)
    got = quick_jit(mixture)(*floats(logits, LOC[:, None], SCALE[:, None]))
    np.testing.assert_allclose(got, quick_jit(one)(*floats(LOC, SCALE)), rtol=1e-6)


ONE_OF_EACH = {
    **{name: (kind, parameters) for name, (kind, parameters, _) in DISCRETE.items()},
    "continuous": (ContinuousBernoulli, (np.zeros(2),)),
}


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_what_is_no_pixel_has_no_probability_or_is_an_error(name):
    kind, parameters = ONE_OF_EACH[name]
    d = kind(*floats(*parameters))
    log_prob = quick_jit(d.log_prob)
    assert np.isfinite(log_prob(jnp.array([0.0, 1.0])))
    for x in (-0.1, 1.1, 200.0):
        assert log_prob(jnp.array([0.5, x])) == -np.inf
    with pytest.raises(ValueError, match=r"pixel / 255 .* got uint8"):
        log_prob(jnp.array([3, 200], jnp.uint8))
    for shape in ((), (1,), (2, 1)):
        with pytest.raises(AssertionError):
            log_prob(jnp.zeros(shape))
    if name in DISCRETE:  # the nearest value
        nearest = log_prob(jnp.array([60.4, 119.7]) / 255)
        assert nearest == log_prob(jnp.array([60.0, 120.0]) / 255)


# ---------------------------------------------------------- continuous Bernoulli

LOGITS = [-100.0, -7.0, -0.51, -0.49, -1e-3, -1e-9, 0.0, 1e-9, 1e-3, 0.3, 2.0, 100.0]


def cb_log_prob(x, logit):
    """Closed form in float64; within 0.01 of 0, where that cancels, its series."""
    if abs(logit) <= 1e-2:
        return logit * (x - 0.5) - logit**2 / 24 + logit**4 / 2880
    return logit * x - np.log(np.expm1(logit) / logit)


def cb_quantile(u, logit):
    return np.log1p(u * np.expm1(logit)) / logit


def cb_cdf(x, logit):
    return x if abs(logit) <= 1e-7 else np.expm1(logit * x) / np.expm1(logit)


@PRECISION
def test_continuous_bernoulli_is_its_closed_form_everywhere(x64):
    """The value and both slopes, at the ends of [0, 1] and at logits 0 and +-100."""
    x = np.array([0.0, 0.02, 0.4, 0.97, 1.0])
    rtol = 1e-12 if x64 else 3e-6
    log_prob = lambda l, x: ContinuousBernoulli(l[None]).log_prob(x[None])
    with jax.enable_x64(x64):
        both = jax.value_and_grad(log_prob, argnums=(0, 1))
        both = quick_jit(jax.vmap(jax.vmap(both, (None, 0)), (0, None)))
        value, (slope_l, slope_x) = both(*floats(LOGITS, x))
    expected = [cb_log_prob(x, logit) for logit in LOGITS]
    np.testing.assert_allclose(value, expected, rtol=rtol, atol=rtol)
    mean = np.array([cb_mean(logit) for logit in LOGITS])
    np.testing.assert_allclose(slope_l, x - mean[:, None], rtol=rtol, atol=2 * rtol)
    # In the open interval, where x can move both ways.
    np.testing.assert_allclose(slope_x[:, 1:-1], np.tile(LOGITS, (3, 1)).T, rtol=1e-6)


def test_continuous_bernoulli_is_that_of_the_paper():
    """C(p) p^x (1 - p)^(1 - x), C(p) = 2 atanh(1 - 2 p) / (1 - 2 p)."""
    p, x = np.array([0.03, 0.4, 0.8]), np.array([0.9, 0.1, 0.7])
    constant = 2 * np.arctanh(1 - 2 * p) / (1 - 2 * p)
    expected = np.log(constant * p**x * (1 - p) ** (1 - x)).sum()
    with jax.enable_x64(True):
        log_prob = lambda l, x: ContinuousBernoulli(l).log_prob(x)
        got = quick_jit(log_prob)(*floats(special.logit(p), x))
        np.testing.assert_allclose(got, expected, rtol=1e-13)


def cb_mean(logit):
    """By Gauss-Legendre quadrature of the closed form."""
    nodes, weights = special.roots_legendre(150)
    x, w = (nodes + 1) / 2, weights / 2
    return (w * x) @ np.exp(cb_log_prob(x, logit))


def mean_of(logits):
    return ContinuousBernoulli(logits).mean()


def test_continuous_bernoulli_integrates_to_1_and_has_the_mean_of_its_integral():
    """Logits -100 ... 100 at once, an event [12]; the slope of the mean is the
    variance."""
    nodes, weights = special.roots_legendre(150)
    one = lambda l, x: ContinuousBernoulli(l[None]).log_prob(x[None])
    log_prob = quick_jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))
    with jax.enable_x64(True):
        logits, x, w = floats(LOGITS, (nodes + 1) / 2, weights / 2)
        density = np.exp(log_prob(logits, x))
        mean, slope = quick_jit(functools.partial(jax.jvp, mean_of))(
            (logits,), (jnp.ones_like(logits),)
        )
        np.testing.assert_allclose(density @ w, 1, rtol=1e-12)
        np.testing.assert_allclose(mean, density @ (w * x), rtol=1e-12)
        spread = (np.asarray(x) - np.asarray(mean)[:, None]) ** 2
        np.testing.assert_allclose(slope, (density * spread) @ w, rtol=1e-10)


def test_continuous_bernoulli_is_finite_at_any_logits():
    """Float32; log p(1) = log l at large l, and the mean is 1 - 1 / l."""
    logits = jnp.array([-1e30, -1e4, -100, -1e-30, 0, 1e-30, 100, 1e4, 1e30])
    x = jnp.array([0.0, 1e-6, 0.5, 1.0])

    @quick_jit
    def everything(logits):
        one = lambda l, x: ContinuousBernoulli(l[None]).log_prob(x[None])
        both = jax.vmap(jax.vmap(jax.value_and_grad(one), (0, None)), (None, 0))
        sample = lambda l: ContinuousBernoulli(l).sample(jax.random.key(0))
        move = (jnp.ones_like(logits),)
        moved = jax.jvp(sample, (logits,), move), jax.jvp(mean_of, (logits,), move)
        return both(logits, x), *moved

    (value, slope), draws, means = everything(logits)
    for a in jax.tree.leaves((value, slope, draws, means)):
        assert np.all(np.isfinite(a))
    np.testing.assert_allclose(value[-1, -3:], np.log([100, 1e4, 1e30]), rtol=1e-6)
    expected = [1e-30, 1e-4, 0.01, 0.5, 0.5, 0.5, 0.99, 1 - 1e-4, 1]
    np.testing.assert_allclose(means[0], expected, rtol=1e-6)


def test_continuous_bernoulli_draws_from_its_cdf():
    """Kolmogorov-Smirnov with 10,000 draws of each logit, p > 1e-4."""
    keys = jax.random.split(jax.random.key(2), 10_000)
    d = ContinuousBernoulli(*floats(LOGITS))
    draws = np.asarray(quick_jit(jax.vmap(d.sample))(keys), np.float64)
    assert draws.min() >= 0 and draws.max() <= 1
    for j, logit in enumerate(LOGITS):
        fit = stats.kstest(draws[:, j], lambda x, l=logit: cb_cdf(x, l))
        assert fit.pvalue > 1e-4, logit


@PRECISION
def test_a_draw_carries_the_slope_of_the_quantile(x64):
    """dx / dl at fixed u by finite differences of the inverse cdf in float64."""
    logits = np.repeat([-30.0, -0.3, -0.05, 0.0, 1e-6, 0.1, 0.7, 20.0], 20)
    with jax.enable_x64(x64):
        sample = lambda l: ContinuousBernoulli(l).sample(jax.random.key(3))
        tangent = lambda l: jax.jvp(sample, (l,), (jnp.ones_like(l),))
        x, slope = quick_jit(tangent)(*floats(logits))
    x, slope = (np.asarray(a, np.float64) for a in (x, slope))
    h = 1e-4
    for value, got, logit in zip(x, slope, logits, strict=True):
        u = cb_cdf(value, logit)
        if abs(logit) < 1e-5:
            expected = u * (1 - u) / 2
        else:
            ends = cb_quantile(u, logit + h), cb_quantile(u, logit - h)
            expected = (ends[0] - ends[1]) / (2 * h)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6, err_msg=logit)


# --------------------------------------------------------------- bits per dimension


def test_equal_probabilities_are_8_bits_as_is_the_uniform_density():
    x = jnp.full((2, 3, 1), 0.2)
    log_prob = lambda kind, logits: quick_jit(lambda l: kind(l).log_prob(x))(logits)
    log_px = log_prob(PixelCategorical, jnp.zeros((2, 3, 1, 256)))
    np.testing.assert_allclose(bits_per_dim(log_px, 6), 8, rtol=1e-6)
    density = log_prob(ContinuousBernoulli, jnp.zeros((2, 3, 1)))
    assert bits_per_dim(density, 6, bin_width=1 / 256) == 8
    each = bits_per_dim(jnp.array([0.0, -np.log(2) * 12]), 6)
    np.testing.assert_allclose(each, [0, 2], rtol=1e-6)


def test_the_bits_of_a_dequantized_density_bound_those_of_its_cells():
    """Jensen: the mean over u is above -log2 of the cell's probability, and close."""
    logit, pixel = -90.0, np.arange(256)
    cells = np.exp(logit * pixel / 256) * cb_cdf(1 / 256, logit)
    code_length = -np.log2(cells)
    u = (np.arange(100) + 0.5) / 100
    one = lambda x: ContinuousBernoulli(jnp.array([logit], float)).log_prob(x[None])
    with jax.enable_x64(True):
        log_px = quick_jit(jax.vmap(jax.vmap(one)))(*floats((pixel[:, None] + u) / 256))
        bits = bits_per_dim(log_px.mean(1), 1, bin_width=1 / 256)
    # Half the variance of log p within a cell, its second cumulant.
    gap = (logit / 256) ** 2 / 24 / np.log(2)
    np.testing.assert_allclose(np.asarray(bits) - code_length, gap, rtol=0.01)


@pytest.mark.parametrize("dims, width", [(0, 1.0), (4, 0.0), (4, 1.5), (4, -1.0)])
def test_no_dimensions_and_impossible_bins_are_errors(dims, width):
    with pytest.raises(ValueError, match="num_dims" if dims == 0 else "bin_width"):
        bits_per_dim(-10.0, dims, bin_width=width)


# --------------------------------------------------------------------- likelihoods

Z = (0.2, -1.0)


def constant(h):
    """A network whose output is its parameter, h at the start, whatever z."""
    return Component(lambda key, z: jnp.asarray(h, float), lambda params, z: params)


def at_start(likelihood):
    z, key = jnp.array(Z), jax.random.key(0)
    return quick_jit(lambda z: likelihood.apply(likelihood.init(key, z), z))(z)


def test_discretized_logistic_starts_at_a_tenth_and_has_a_floor():
    h = np.linspace(0.1, 0.8, 6).reshape(1, 2, 3)
    likelihood = likelihoods.discretized_logistic(constant(h))
    params = likelihood.init(jax.random.key(0), jnp.array(Z))
    apply = quick_jit(likelihood.apply)
    start = apply(params, jnp.array(Z))
    np.testing.assert_allclose(start.loc, h, rtol=1e-6)
    np.testing.assert_allclose(start.scale, np.full(h.shape, 0.1), rtol=1e-6)
    least = {**params, "raw_logistic_scale": jnp.float32(-1e4)}
    sure = apply(least, jnp.array(Z))
    np.testing.assert_allclose(sure.scale, np.full(h.shape, 5e-4), rtol=1e-6)
    # Almost certain of a pixel that it predicts.
    log_masses_of = quick_jit(functools.partial(log_masses, DiscretizedLogistic))
    mass = np.exp(log_masses_of(*floats([0.2]), sure.scale[0, 0, :1]))
    assert mass[0, 51] > 0.95
    log_prob = lambda p: likelihood.apply(p, jnp.array(Z)).log_prob(jnp.zeros(h.shape))
    assert quick_jit(jax.grad(log_prob))(params)["raw_logistic_scale"] > 0.1


@pytest.mark.parametrize("shape", [(4,), (2, 3, 2)])
def test_numbers_of_an_entry_lie_together_on_the_last_axis(shape):
    """Entry by entry: m logits, m locations, m scales; or 256 logits."""
    m = 3
    numbers = RNG.normal(size=(*shape, 3, m))
    flat = lambda a: a.reshape(*shape[:-1], -1)
    d = at_start(likelihoods.discretized_logistic_mixture(constant(flat(numbers)), m))
    np.testing.assert_allclose(d.logits, numbers[..., 0, :], rtol=1e-6)
    centres = np.array([1, 3, 5]) / 6
    np.testing.assert_allclose(d.loc, numbers[..., 1, :] + centres, rtol=1e-5)
    raw = numbers[..., 2, :] + np.log(np.expm1(0.0995))
    np.testing.assert_allclose(d.scale, np.logaddexp(0, raw) + 5e-4, rtol=1e-5)
    logits = RNG.normal(size=(*shape, 256))
    d = at_start(likelihoods.pixel_categorical(constant(flat(logits))))
    np.testing.assert_allclose(d.logits, logits, rtol=1e-6)


@pytest.mark.parametrize("num_components", [1, 5])
def test_a_mixture_starts_broad(num_components):
    """No value of a pixel costs much more than 8 bits, the best guess of no network."""
    network = constant(np.zeros(3 * num_components))
    d = at_start(likelihoods.discretized_logistic_mixture(network, num_components))
    log_p = quick_jit(jax.vmap(d.log_prob))(*floats(VALUES[:, None]))
    assert -log_p.min() / np.log(2) < 12
    np.testing.assert_allclose(np.exp(log_p) @ VALUES, 0.5, rtol=1e-5)


def test_an_output_that_cannot_be_split_is_an_error():
    for likelihood, size in (
        (likelihoods.discretized_logistic_mixture(networks.mlp([4], 16), 5), 15),
        (likelihoods.pixel_categorical(networks.mlp([4], 255)), 256),
    ):
        with pytest.raises(ValueError, match=f"times {size}"):
            at_start(likelihood)
    with pytest.raises(ValueError, match="num_components must be at least 1"):
        likelihoods.discretized_logistic_mixture(networks.mlp([4], 16), 0)


@pytest.mark.parametrize(
    "likelihood, factor",
    [
        (likelihoods.continuous_bernoulli, 1),
        (likelihoods.discretized_logistic, 1),
        (likelihoods.discretized_logistic_mixture, 15),
        (likelihoods.pixel_categorical, 256),
    ],
)
def test_a_decoder_of_images_learns_through_every_parameter(likelihood, factor):
    h = 0.3 * np.random.default_rng(4).normal(size=(2, 3, 2 * factor))
    decoder = likelihood(constant(h))
    x = jnp.asarray(np.random.default_rng(5).integers(0, 256, (2, 3, 2)) / 255, float)

    @quick_jit
    def gradient(key, z):
        log_prob = lambda params: decoder.apply(params, z).log_prob(x)
        return jax.grad(log_prob)(decoder.init(key, z))

    for leaf in jax.tree.leaves(gradient(jax.random.key(0), jnp.array(Z))):
        assert np.all(leaf != 0)
