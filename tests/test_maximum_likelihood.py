"""Maximum likelihood against closed forms, scipy and quadrature, all in float64."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import quick_jit
from scipy import integrate, optimize, stats

from vi_jax import maximum_likelihood, training
from vi_jax.data import batches
from vi_jax.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Distribution,
    FullNormal,
    Gamma,
    JointBernoulli,
    Mixture,
    Normal,
)
from vi_jax.divergences import entropy, kl
from vi_jax.maximum_likelihood import (
    forward_kl_loss,
    log_likelihood,
    negative_log_likelihood,
    reverse_kl_loss,
)
from vi_jax.models.gaussian_mixture import scale_tril

PRECISIONS = pytest.mark.parametrize("x64, rtol", [(False, 1e-5), (True, 1e-10)])

RNG = np.random.default_rng(0)
MIXING = np.array([[1.2, 0.0, 0.0], [-0.7, 0.5, 0.0], [0.3, 0.4, 0.8]])
POINTS = RNG.normal(size=(200, 3)) @ MIXING.T + [0.5, -1.0, 2.0]
COINS = (POINTS > [0.0, -1.0, 1.5]).astype(float)
LABELS = RNG.choice(4, 200, p=[0.1, 0.4, 0.2, 0.3])


class Family(NamedTuple):
    """A family, its closed form, the same by scipy or numpy, and a free start."""

    closed: Callable
    x: np.ndarray
    expected: Callable[[np.ndarray], list[np.ndarray]]  # leaves of the distribution
    distribution: Callable  # unconstrained params -> Distribution
    start: Callable


def _scipy_normal(x):
    return list(np.array([stats.norm.fit(column) for column in x.T]).T)


def _scipy_full_normal(x):
    loc, covariance = stats.multivariate_normal.fit(x)
    return [loc, np.linalg.cholesky(covariance)]


def _logit_of_mean(x):
    return [np.log(x.mean(0) / (1 - x.mean(0)))]


def _log_shares(x):
    return [np.log(np.bincount(x) / len(x))]


FAMILIES = {
    "normal": Family(
        maximum_likelihood.normal,
        POINTS,
        _scipy_normal,
        lambda p: Normal(p["loc"], jnp.exp(p["scale"])),
        lambda: {"loc": jnp.zeros(3), "scale": jnp.zeros(3)},
    ),
    "full_normal": Family(
        maximum_likelihood.full_normal,
        POINTS,
        _scipy_full_normal,
        lambda p: FullNormal(p["loc"], scale_tril(p["scale"])),
        lambda: {"loc": jnp.zeros(3), "scale": jnp.zeros((3, 3))},
    ),
    "bernoulli": Family(
        maximum_likelihood.bernoulli,
        COINS,
        _logit_of_mean,
        Bernoulli,
        lambda: jnp.zeros(3),
    ),
    "categorical": Family(
        lambda x: maximum_likelihood.categorical(x, 4),
        LABELS,
        _log_shares,
        lambda p: Categorical(jax.nn.log_softmax(p)),
        lambda: jnp.zeros(4),
    ),
}
EVERY_FAMILY = pytest.mark.parametrize("name", FAMILIES)


def train(loss, params, stream, *, rate: float, num_steps: int):
    """Where `fit` ends, and its last metrics."""
    optimizer = training.adam(rate, num_steps=num_steps)
    state = training.init_state(params, optimizer)
    steps = training.fit(loss, optimizer, state, stream, seed=0, num_steps=num_steps)
    *_, (state, metrics) = steps
    return state.params, metrics


@EVERY_FAMILY
@PRECISIONS
def test_closed_form_is_scipys_or_that_of_counts(name, x64, rtol):
    family = FAMILIES[name]
    with jax.enable_x64(x64):
        got = jax.tree.leaves(family.closed(family.x))
    assert all(leaf.dtype == (np.float64 if x64 else np.float32) for leaf in got)
    for a, b in zip(got, family.expected(family.x), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=0.1 * rtol)


@EVERY_FAMILY
def test_gradient_descent_ends_at_the_closed_form(name):
    """Parameters and log-likelihood to 1e-5, in float32."""
    family = FAMILIES[name]
    stream = batches.shuffled({"x": family.x}, batch_size=len(family.x), seed=0)
    loss = negative_log_likelihood(family.distribution)
    params, _ = train(loss, family.start(), stream, rate=0.1, num_steps=1500)
    found, closed = family.distribution(params), family.closed(family.x)
    for a, b in zip(*map(jax.tree.leaves, (found, closed)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    x = jnp.asarray(family.x)
    np.testing.assert_allclose(
        log_likelihood(found, x), log_likelihood(closed, x), rtol=1e-5
    )


@EVERY_FAMILY
def test_the_gradient_is_zero_at_the_closed_form(name):
    """In float64 to 1e-12, and not zero a little beside it."""
    family = FAMILIES[name]
    with jax.enable_x64(True):
        # Only the lower triangle of a factor is free.
        gradient = quick_jit(jax.grad(log_likelihood))
        lower = lambda g: jnp.tril(g).ravel() if g.ndim == 2 else g
        slope = lambda d: jnp.concatenate(
            [lower(g) for g in jax.tree.leaves(gradient(d, jnp.asarray(family.x)))]
        )
        closed = family.closed(family.x)
        beside = jax.tree.map(lambda a: a.at[1].add(1e-3), closed)
        np.testing.assert_allclose(slope(closed), 0, atol=1e-12)
        assert jnp.max(abs(slope(beside))) > 1e-5


def test_log_likelihood_is_the_mean_over_points_of_scipys():
    d = Normal(jnp.array([0.2, -0.5, 1.0]), jnp.array([1.0, 0.7, 2.0]))
    expected = stats.norm(d.loc, d.scale).logpdf(POINTS).sum(1).mean()
    np.testing.assert_allclose(
        log_likelihood(d, jnp.asarray(POINTS, float)), expected, 1e-6
    )
    value, metrics = negative_log_likelihood(lambda params: params)(
        d, jax.random.key(0), {"x": jnp.asarray(POINTS, float)}
    )
    np.testing.assert_allclose(
        [-value, metrics["log_likelihood"]], [expected, expected], 1e-6
    )


@pytest.mark.parametrize("offset, factor", [(1e3, 1.0), (0.0, 1e-25), (0.0, 1e25)])
def test_gaussian_fits_keep_their_digits_far_from_0_and_1(offset, factor):
    """float32 against float64 on the same numbers; squares of 1e25 would overflow."""
    x = ((POINTS + offset) * factor).astype(np.float32)
    wide = x.astype(np.float64)
    d, full = maximum_likelihood.normal(x), maximum_likelihood.full_normal(x)
    covariance = np.cov(wide.T / factor, bias=True)
    np.testing.assert_allclose(d.loc, wide.mean(0), rtol=1e-6)
    np.testing.assert_allclose(d.scale, wide.std(0), rtol=1e-6)
    tril = np.asarray(full.scale_tril, np.float64) / factor
    np.testing.assert_allclose(tril, np.linalg.cholesky(covariance), atol=2e-6)


def test_full_normal_keeps_its_digits_where_columns_nearly_agree():
    """Correlation 1 - 5e-9: float32 could not hold it, but its factor can."""
    x = np.stack([POINTS[:, 0], POINTS[:, 0] + 1e-4 * POINTS[:, 1]], 1)
    x = x.astype(np.float32)
    got = maximum_likelihood.full_normal(x).scale_tril
    expected = np.linalg.cholesky(np.cov(x.astype(np.float64).T, bias=True))
    np.testing.assert_allclose(got, expected, rtol=2e-3)


def test_one_column_scalars_and_images_are_data_too():
    column = POINTS[:, :1]
    full = maximum_likelihood.full_normal(column)
    np.testing.assert_allclose(full.scale_tril, [[column.std()]], rtol=1e-6)
    scalars = maximum_likelihood.normal(POINTS[:, 0])
    assert scalars.loc.shape == ()
    np.testing.assert_allclose(scalars.scale, column.std(), rtol=1e-6)
    grey = RNG.integers(0, 256, (30, 4, 5))
    d = maximum_likelihood.bernoulli(grey / 255)
    np.testing.assert_allclose(d.mean(), grey.mean(0) / 255, rtol=1e-5)
    counts = maximum_likelihood.normal(grey.astype(np.uint8))
    np.testing.assert_allclose(counts.loc, grey.mean(0), rtol=1e-6)
    half = maximum_likelihood.normal(jnp.asarray(POINTS, jnp.bfloat16))
    assert half.loc.dtype == jnp.float32


def test_closed_forms_go_under_vmap_and_jit():
    """Where the values are not known: many data sets at once, and no error."""
    many = jnp.stack([jnp.asarray(POINTS, float), 2 * jnp.asarray(POINTS, float)])
    for fit in (maximum_likelihood.normal, maximum_likelihood.full_normal):
        once, twice = jax.tree.leaves(fit(many[0])), jax.jit(jax.vmap(fit))(many)
        for a, b in zip(once, jax.tree.leaves(twice), strict=True):
            np.testing.assert_allclose(b, np.stack([a, 2 * a]), rtol=1e-5, atol=1e-6)
    d = jax.jit(maximum_likelihood.normal)(jnp.ones((5, 2)))
    assert not np.any(d.scale > 0)


def test_a_class_never_seen_is_impossible():
    d = maximum_likelihood.categorical(np.array([0, 2, 2, 0, 2]), 4)
    np.testing.assert_allclose(d.mean(), [0.4, 0, 0.6, 0], rtol=1e-6)
    assert d.log_prob(jnp.array(1)) == -np.inf
    h = -0.4 * np.log(0.4) - 0.6 * np.log(0.6)
    np.testing.assert_allclose(entropy(d), h, rtol=1e-6)


def _with(x, row, value):
    x = np.array(x)
    x[row] = value
    return x


COLLINEAR = np.stack([POINTS[:, 0], POINTS[:, 1], 100 + POINTS[:, 0] - POINTS[:, 1]], 1)
BAD = {
    "no_points": ("normal", np.zeros((0, 3)), "not empty"),
    "a_number": ("normal", 3.0, "not empty"),
    "one_point": ("normal", POINTS[:1], "one point has no variance"),
    "nan": ("normal", _with(POINTS, 17, np.nan), r"rows \[17\] of x are not finite"),
    "infinite": ("full_normal", _with(POINTS, (3, 1), np.inf), r"rows \[3\] .* finite"),
    "many": ("normal", POINTS * [[np.nan]], r"rows \[0, 1, 2, 3, 4, \.\.\.\]"),
    "complex": ("normal", POINTS * 1j, "must be real"),
    "constant": (
        "normal",
        POINTS * [1, 0, 1] + 0.1,
        r"columns \[1\] of x are constant",
    ),
    "pixel": ("normal", np.ones((5, 1, 2)), r"columns \[\(0, 0\), \(0, 1\)\]"),
    "constant_scalar": ("normal", np.ones(5), r"columns \[0\] of x are constant"),
    "constant_full": ("full_normal", POINTS * [0, 1, 1], r"columns \[0\] of x are con"),
    "few_points": ("full_normal", POINTS[:3], "not positive definite.* at least 4"),
    "collinear": (
        "full_normal",
        COLLINEAR,
        r"not positive definite: the columns \[2\]",
    ),
    "vector": ("full_normal", POINTS[:, 0], r"\[n, d\], got \(200,\)"),
    "bytes": ("bernoulli", 255 * COINS, r"outside \[0, 1\]: scale"),
    "negative": ("bernoulli", _with(COINS, (8, 2), -0.1), r"rows \[8\] .*outside"),
    "nan_coin": ("bernoulli", _with(COINS, (8, 2), np.nan), r"rows \[8\] .*not finite"),
    "all_0": ("bernoulli", COINS * [1, 0, 1], r"columns \[1\] of x are all 0 or all 1"),
    "all_1": ("bernoulli", _with(COINS.T, 2, 1).T, r"columns \[2\] .*logits are inf"),
    "floats": ("categorical", LABELS * 1.0, "must be integers"),
    "no_labels": ("categorical", LABELS[:0], "n at least 1"),
    "matrix": ("categorical", LABELS[:, None], "must be integers"),
    "too_large": ("categorical", _with(LABELS, 5, 4), r"at \[5\] lie outside \[0, 4\)"),
    "below_0": ("categorical", _with(LABELS, 6, -1), r"at \[6\] lie outside"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_gets_an_error_that_says_what_and_where(name):
    family, x, message = BAD[name]
    more = [4] if family == "categorical" else []
    with pytest.raises(ValueError, match=message):
        getattr(maximum_likelihood, family)(x, *more)


def test_log_likelihood_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="n at least 1"):
        log_likelihood(Normal(jnp.zeros(3), jnp.ones(3)), jnp.zeros((0, 3)))


def test_collinear_columns_are_found_at_any_size():
    """And columns that are not quite collinear pass, in float32."""
    rng = np.random.default_rng(4)
    for n, d, offset in ((50, 2, 0), (5000, 30, 100)):
        x = rng.normal(size=(n, d)) + offset
        x[:, -1] = x[:, :-1].sum(1) - 3
        with pytest.raises(ValueError, match=rf"columns \[{d - 1}\] are linear"):
            maximum_likelihood.full_normal(x)
        x[:, -1] += 0.01 * rng.normal(size=n)
        maximum_likelihood.full_normal(x)


# --------------------------------------------- cross-entropy = entropy + divergence


@PRECISIONS
def test_discrete_cross_entropy_is_entropy_plus_kl(x64, rtol):
    """-log-likelihood of any model = H(empirical) + KL(empirical || model)."""
    with jax.enable_x64(x64):
        logits = jnp.asarray(RNG.normal(size=4))
        states = jnp.asarray(COINS) @ 2 ** jnp.arange(3)
        joint = jnp.asarray(RNG.normal(size=8))
        # Half of the outcomes do not occur: their logits are -inf.
        found = maximum_likelihood.categorical(np.int32(states) // 2 * 2, 8)
        of = jnp.asarray(COINS * [0, 1, 1])
        rows = (
            (Categorical(logits), jnp.asarray(LABELS), FAMILIES["categorical"]),
            (JointBernoulli(joint), of, JointBernoulli(found.logits)),
            (Bernoulli(joint[:3]), of, JointBernoulli(found.logits)),
        )
        for model, x, empirical in rows:
            if isinstance(empirical, Family):
                empirical = empirical.closed(x)
            ours, best, h, gap = quick_jit(
                lambda p, q, x: (
                    *(log_likelihood(d, x) for d in (q, p)),
                    entropy(p),
                    kl(p, q),
                )
            )(empirical, model, x)
            np.testing.assert_allclose(-ours, h + gap, rtol=rtol)
            # The highest log-likelihood of all is -H: there the KL is 0.
            np.testing.assert_allclose(-best, h, rtol=rtol)


CONTINUOUS = {
    "normal": (lambda: Normal(0.4, 0.8), lambda: Normal(-0.3, 1.3), (-12, 12)),
    "gamma": (lambda: Gamma(2.5, 1.5), lambda: Gamma(1.2, 0.9), (0, 40)),
    "beta": (lambda: Beta(2.0, 3.5), lambda: Beta(1.5, 1.2), (0, 1)),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_cross_entropy_is_entropy_plus_kl(name):
    """The cross-entropy by quadrature, to 1e-10."""
    p, q, (low, high) = CONTINUOUS[name]
    with jax.enable_x64(True):
        p, q = (jax.tree.map(jnp.float64, d()) for d in (p, q))
        density = jax.jit(lambda x: -jnp.exp(p.log_prob(x)) * q.log_prob(x))
        cross, _ = integrate.quad(
            lambda x: float(density(x)), low, high, epsabs=1e-12, epsrel=1e-12, limit=99
        )
        np.testing.assert_allclose(entropy(p) + kl(p, q), cross, rtol=1e-10)


# ----------------------------------------------- expected and empirical likelihood


def gaps(rng, d, expected, n, num_sets=1000) -> np.ndarray:
    """Empirical less expected log-likelihood of N(0, 1) data under d, [num_sets]."""
    x = jnp.asarray(rng.normal(size=(num_sets, n)))
    each = quick_jit(jax.vmap(log_likelihood, (None, 0)))
    return np.asarray(each(d, x)) - expected


def test_the_gap_to_the_expected_log_likelihood_falls_as_one_over_root_n():
    """Slope -1/2 within 3 standard errors of its fit, at the level of the CLT."""
    loc, scale = 0.7, 1.5
    with jax.enable_x64(True):
        d = Normal(jnp.float64(loc), jnp.float64(scale))
        log_q = stats.norm(loc, scale).logpdf
        moment = lambda f: integrate.quad(
            lambda x: stats.norm.pdf(x) * f(x), -12, 12, epsabs=1e-12
        )[0]
        expected = moment(log_q)
        spread = moment(lambda x: (log_q(x) - expected) ** 2) ** 0.5
        sizes = 2 ** np.arange(3, 12)
        rng = np.random.default_rng(7)
        rms = [np.mean(gaps(rng, d, expected, n) ** 2) ** 0.5 for n in sizes]
    line = stats.linregress(np.log(sizes), np.log(rms))
    assert line.stderr < 0.02
    assert abs(line.slope + 0.5) < 3 * line.stderr
    # The relative error of a root mean square of m normal numbers is 1/sqrt(2m).
    error = 1 / np.sqrt(2 * 1000 * len(sizes))
    level = np.mean(np.log(rms * np.sqrt(sizes) / spread))
    assert abs(level) < 3.5 * error


# -------------------------------------------------------- forward and reverse KL

WEIGHTS = np.array([0.65, 0.35])
LOCS = np.array([[-2.0, 0.5], [3.0, -1.0]])
SCALES = np.array([[0.9, 1.1], [0.7, 0.6]])


def target(num_dims: int) -> Distribution:
    """A mixture of two Normals; events are scalars in one dimension."""
    take = lambda a: jnp.asarray(a[:, 0] if num_dims == 1 else a, float)
    return Mixture(
        jnp.log(jnp.asarray(WEIGHTS, float)), Normal(take(LOCS), take(SCALES))
    )


def model(params: dict) -> Normal:
    return Normal(params["loc"], jnp.exp(params["log_scale"]))


def starts(num_dims: int) -> dict:
    """Both modes, [2] or [2, 2], with unit scales."""
    locs = jnp.asarray(LOCS[:, 0] if num_dims == 1 else LOCS, float)
    return {"loc": 0.8 * locs, "log_scale": jnp.zeros_like(locs)}


def train_from_both(loss, num_dims: int):
    """Two independent optimisations in one program: the starts do not meet."""
    each = jax.vmap(loss, (0, None, None))

    def both(params, key, batch):
        values, metrics = each(params, key, batch)
        return jnp.sum(values), {"first": values[0], "second": values[1]}

    stream = batches.no_data()
    params, last = train(both, starts(num_dims), stream, rate=0.05, num_steps=600)
    return model(params), last


@pytest.mark.parametrize("num_dims", [1, 2])
def test_forward_kl_ends_at_the_moments_of_the_target(num_dims):
    """From either start; to 0.02, the noise of 200 fresh points a step."""
    loss = forward_kl_loss(target(num_dims), model, num_samples=200)
    found, _ = train_from_both(loss, num_dims)
    mean = WEIGHTS @ LOCS
    variance = WEIGHTS @ (SCALES**2 + LOCS**2) - mean**2
    for i in range(2):
        loc, scale = np.atleast_1d(found.loc[i]), np.atleast_1d(found.scale[i])
        np.testing.assert_allclose(loc, mean[:num_dims], atol=0.02)
        np.testing.assert_allclose(scale, variance[:num_dims] ** 0.5, atol=0.02)


def reverse_kl(theta: np.ndarray) -> float:
    """KL(N(loc, diag scale^2) || target) on a Gauss-Hermite grid, by scipy."""
    loc, scale = np.split(theta, 2)
    line, weight = np.polynomial.hermite_e.hermegauss(60)
    u = np.stack(np.meshgrid(*[line] * len(loc), indexing="ij"), -1)
    x = loc + np.exp(scale) * u.reshape(-1, len(loc))
    w = np.prod(np.meshgrid(*[weight / weight.sum()] * len(loc)), 0).ravel()
    each = [
        np.log(share) + stats.norm(m[: len(loc)], s[: len(loc)]).logpdf(x).sum(1)
        for share, m, s in zip(WEIGHTS, LOCS, SCALES, strict=True)
    ]
    log_q = stats.norm(loc, np.exp(scale)).logpdf(x).sum(1)
    return w @ (log_q - np.logaddexp(*each))


@pytest.mark.parametrize("num_dims", [1, 2])
def test_reverse_kl_ends_at_the_mode_it_starts_from(num_dims):
    """Where scipy's minimiser of the quadrature ends, to 0.02, from each start."""
    loss = reverse_kl_loss(target(num_dims), model, num_samples=200)
    found, last = train_from_both(loss, num_dims)
    values = []
    for i, name in enumerate(("first", "second")):
        start = np.concatenate([0.8 * LOCS[i, :num_dims], np.zeros(num_dims)])
        best = optimize.minimize(reverse_kl, start)
        loc, scale = np.split(best.x, 2)
        np.testing.assert_allclose(np.ravel(found.loc[i]), loc, atol=0.02)
        np.testing.assert_allclose(np.ravel(found.scale[i]), np.exp(scale), atol=0.02)
        np.testing.assert_allclose(last[name], best.fun, atol=0.01)
        values.append(best.fun)
    # Each is about -log of the weight of the mode that it covers.
    np.testing.assert_allclose(values, -np.log(WEIGHTS), atol=0.05)


def test_a_reverse_kl_without_gradient_or_samples_is_an_error():
    coins, key = Bernoulli(jnp.zeros(2)), jax.random.key(0)
    loss = reverse_kl_loss(coins, lambda params: coins, num_samples=3)
    with pytest.raises(ValueError, match="Bernoulli carry no gradient"):
        loss({}, key, {})
    for make in (forward_kl_loss, reverse_kl_loss):
        with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
            make(target(1), model, num_samples=0)


def test_both_losses_are_unbiased_for_the_divergence():
    """On two Gaussians, whose divergence is known; z below 4 over 200 draws."""
    p = Normal(jnp.array([0.3, -1.0]), jnp.array([0.8, 1.2]))
    params = {"loc": jnp.zeros(2), "log_scale": jnp.array([0.2, -0.3])}
    q = model(params)
    for make, expected in ((forward_kl_loss, kl(p, q)), (reverse_kl_loss, kl(q, p))):
        loss = make(p, model, num_samples=50)
        keys = jax.random.split(jax.random.key(3), 200)
        draws = quick_jit(jax.vmap(lambda key, loss=loss: loss(params, key, {})[0]))(
            keys
        )
        draws = np.asarray(draws, np.float64)
        error = draws.std(ddof=1) / np.sqrt(len(draws))
        assert abs(draws.mean() - expected) < 4 * error < 0.1
