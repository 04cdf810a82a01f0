"""Moments, signal-to-noise ratios and slopes against those that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import quick_jit

from experiments import estimator_variance
from experiments.estimator_variance import gradient, optimum
from vi_jax import bounds, estimators
from vi_jax.divergences import Estimate
from vi_jax.evaluation import fit_power_law, gradient_moments, squared_snr

MEAN = np.array([0.5, -0.02, 0.0])
ROOT = np.array([[0.8, 0.0, 0.0], [-0.6, 0.3, 0.0], [0.5, 0.4, 1.2]])
COVARIANCE = ROOT @ ROOT.T
SCALE = 2.5  # of the other leaf, an exponential variable, whose mean is its sd


def known_gradient(key):
    """A pytree of a correlated Gaussian [3] and a skewed number []."""
    key_g, key_e = jax.random.split(key)
    noise = jax.random.normal(key_g, (3,))
    gaussian = jnp.array(MEAN, float) + jnp.array(ROOT, float) @ noise
    return {"gaussian": gaussian, "skewed": SCALE * jax.random.exponential(key_e)}


def repeated(num_repeats: int, **options):
    """Moments from independent keys, leaves [num_repeats, ...] as numpy arrays."""
    keys = jax.random.split(jax.random.key(3), num_repeats)
    each = lambda key: gradient_moments(known_gradient, key, **options)
    return jax.tree.map(np.asarray, quick_jit(jax.vmap(each))(keys))


@pytest.fixture(scope="module")
def many():
    """1,000 repeats of 600 draws."""
    return repeated(1000, num_draws=600, chunk=30)


TRUTH = {
    "mean": {"gaussian": MEAN, "skewed": SCALE},
    "variance": {"gaussian": np.diag(COVARIANCE), "skewed": SCALE**2},
    "trace": {"gaussian": np.trace(COVARIANCE), "skewed": SCALE**2},
}


@pytest.mark.parametrize("leaf", ["gaussian", "skewed"])
@pytest.mark.parametrize("moment", ["mean", "variance", "trace"])
def test_moments_are_unbiased_and_their_errors_right(many, moment, leaf):
    """z below 4 over repeats; mean stderr^2 within 20% of the variance of the values.

    1,000 repeats know that variance to 4.5%, and more for the skewed leaf, and the
    spread of chunks of 30 is 3% above that of all draws.

    The coordinates are correlated, which the error of the trace must know: taken as
    independent it would be 17% too small, in squares 30%.
    """
    value, stderr = (part[leaf] for part in getattr(many, moment))
    z = (value.mean(0) - TRUTH[moment][leaf]) / (value.std(0) / len(value) ** 0.5)
    assert np.all(abs(z) < 4)
    np.testing.assert_allclose(np.mean(stderr**2, 0), value.var(0), rtol=0.2)


@pytest.mark.parametrize("x64, tolerance", [(False, 1e-4), (True, 1e-12)])
def test_moments_are_those_of_all_draws_together(x64, tolerance):
    """numpy's mean and variance of the same draws; a mean 100 sd from 0 is no harm."""
    with jax.enable_x64(x64):
        key = jax.random.key(0)
        shifted = lambda key: known_gradient(key)["gaussian"] + 100.0
        got = quick_jit(
            lambda key: gradient_moments(shifted, key, num_draws=60, chunk=12)
        )(jax.random.clone(key))
        keys = [jax.random.fold_in(jax.random.clone(key), i) for i in range(5)]
        draws = np.concatenate(
            [jax.vmap(shifted)(jax.random.split(k, 12)) for k in keys]
        )
    draws = draws.astype(np.float64)
    np.testing.assert_allclose(got.mean.value, draws.mean(0), rtol=tolerance)
    np.testing.assert_allclose(got.variance.value, draws.var(0, ddof=1), rtol=tolerance)
    error = draws.std(0, ddof=1) / 60**0.5
    np.testing.assert_allclose(got.mean.stderr, error, rtol=tolerance)


def test_squared_snr_is_right_on_average_from_few_draws():
    """4,000 repeats of 40 draws, z below 4 against mean^2 / variance.

    The uncorrected square is 1/40 too large, 20 and more standard errors here for the
    coordinates with little signal. The known variance takes the place of the sample's.
    """
    got = repeated(4000, num_draws=40, chunk=20)
    mean = Estimate(*(part["gaussian"] for part in got.mean))
    squares = squared_snr(mean, np.diag(COVARIANCE)[None])
    truth = MEAN**2 / np.diag(COVARIANCE)
    z = lambda a: (a.mean(0) - truth) / (a.std(0) / len(a) ** 0.5)
    assert np.all(abs(z(squares)) < 4)
    assert np.all(abs(z(mean.value**2 / np.diag(COVARIANCE)[None]))[1:] > 20)


@pytest.mark.parametrize("slope", [-0.5, 0.5, 1.0])
def test_the_fit_finds_an_exact_power_law(slope):
    """y = 3 x^slope whatever the rows; 1e-5 in float32, 1e-10 in float64."""
    for x64, tolerance in ((False, 1e-5), (True, 1e-10)):
        with jax.enable_x64(x64):
            x = jnp.array([1, 4, 16, 256])
            scale = jnp.array([0.3, 1.1, 1.6], float)[:, None]
            squares = scale * 9.0 * (x.astype(float) ** (2 * slope))[None]
            got = quick_jit(fit_power_law)(jax.random.key(0), x, squares)
        np.testing.assert_allclose(got[:3], slope, rtol=tolerance)
        np.testing.assert_allclose(got.factor, 3.0, rtol=tolerance)


def test_the_interval_of_a_slope_covers_the_truth_as_documented():
    """1,000 fits of 30 noisy rows whose points move together: 93% +- 2.5%."""
    x, rng = np.array([1.0, 2.0, 8.0]), np.random.default_rng(0)
    tilt = rng.gamma(9.0, size=(1000, 30, 1)) / 9.0
    noise = rng.gamma(20.0, size=(1000, 30, 3)) / 20.0
    # Half of a row's square is x, half x tilted: its slope is its own.
    squares = x * (0.5 + 0.5 * tilt * noise)
    keys = jax.random.split(jax.random.key(1), 1000)
    fit = lambda key, rows: fit_power_law(key, jnp.asarray(x), rows, num_resamples=400)
    got = quick_jit(jax.vmap(fit))(keys, jnp.asarray(squares, jnp.float32))
    covered = np.mean((got.low < 0.5) & (got.high > 0.5))
    assert abs(covered - 0.93) < 0.025


def test_a_slope_without_a_signal_is_nan():
    squares = jnp.array([[1.0, -1.0], [1.0, 0.5]])
    got = quick_jit(fit_power_law)(jax.random.key(0), jnp.array([1.0, 2.0]), squares)
    assert np.isnan(got.slope)


PERTURBED = optimum(jax.random.key(5), jnp.linspace(-1.0, 1.0, 20))
EXAMPLE = jnp.linspace(1.5, -2.0, 20)


def iwae_moments(estimator, k: int, num_draws: int = 2000):
    """Of {"inference": b, "generative": mu} at one example, IWAE."""
    draw = lambda key: gradient(PERTURBED, EXAMPLE, key, bounds.iwae, estimator, k)
    run = lambda key: gradient_moments(draw, key, num_draws=num_draws, chunk=100)
    return jax.tree.map(np.asarray, jax.jit(run)(jax.random.key(k)))


@pytest.fixture(scope="module")
def measured():
    pathwise = {"reparam": estimators.reparam, "dreg": estimators.dreg}
    return {(n, k): iwae_moments(e, k) for n, e in pathwise.items() for k in (1, 64)}


def exact_moments(name: str) -> dict[str, tuple[np.ndarray, float]]:
    """Mean and variance of each coordinate's gradient for k = 1, by hand.

    With z = m + s e, dz = db: d/dz log p(x, z) = x + mu - 2 z, to which `dreg` adds
    e / s, minus the gradient of log q; d/dmu log p(z) = z - mu.
    """
    mu, a, b = (np.asarray(PERTURBED[name], np.float64) for name in ("mu", "A", "b"))
    x, s2 = np.asarray(EXAMPLE, np.float64), 2 / 3
    m = a @ x + b
    slope = -2 + (1 / s2 if name == "dreg" else 0)
    return {
        "inference": (x + mu - 2 * m, slope**2 * s2),
        "generative": (m - mu, s2),
    }


@pytest.mark.parametrize("name", ["reparam", "dreg"])
def test_one_sample_of_the_experiment_has_the_moments_worked_out_by_hand(
    measured, name
):
    """2,000 draws of 40 coordinates: |z| below 4.5."""
    got = measured[name, 1]
    for part, (mean, variance) in exact_moments(name).items():
        z = (got.mean.value[part] - mean) / got.mean.stderr[part]
        assert np.all(abs(z) < 4.5)
        z = (got.trace.value[part] - 20 * variance) / got.trace.stderr[part]
        assert abs(z) < 4.5


def mean_square(mean, variance, part: str) -> tuple[float, float]:
    """Mean squared ratio over coordinates, and its standard error by its own law."""
    found = squared_snr(Estimate(mean.value[part], mean.stderr[part]), variance)
    unit = mean.stderr[part] ** 2 / variance
    error = np.sqrt(np.mean(2 * unit**2 + 4 * unit * np.maximum(found, 0)) / 20)
    return float(np.mean(found)), float(error)


def test_ratios_move_with_k_as_rainforth_and_tucker_say(measured):
    """From k = 1 to 64, `reparam` falls for inference, `dreg` and generative rise.

    z above 4 for each sign, 2,000 draws.
    """

    def z(name: str, part: str, signal_of: str) -> float:
        found = [
            mean_square(
                measured[signal_of, k].mean,
                measured[name, k].variance.value[part],
                part,
            )
            for k in (1, 64)
        ]
        (first, e1), (last, e2) = found
        return (last - first) / (e1**2 + e2**2) ** 0.5

    assert z("reparam", "inference", "reparam") < -4
    assert z("reparam", "inference", "dreg") < -4
    assert z("dreg", "inference", "dreg") > 4
    assert z("reparam", "generative", "reparam") > 4


def test_reparam_and_dreg_have_one_mean_and_so_one_signal(measured):
    """chi-squared of 20 coordinates at k = 64, where the noise differs 70-fold."""
    one, two = (measured[name, 64].mean for name in ("reparam", "dreg"))
    part = "inference"
    error = np.hypot(one.stderr[part], two.stderr[part])
    chi2 = np.sum(((one.value[part] - two.value[part]) / error) ** 2)
    assert abs(chi2 - 20) < 4.5 * 40**0.5
    assert np.mean(one.stderr[part]) > 20 * np.mean(two.stderr[part])


def test_the_best_constant_is_the_one_of_least_variance():
    """Above 15% less on either side of it, at 20% of its value away; 2,000 draws."""
    knobs = estimator_variance.Knobs(draws=2000)
    of_k = 4
    constant = jax.jit(
        lambda key: estimator_variance.best_constant(
            knobs, PERTURBED, EXAMPLE, key, bounds.iwae, of_k
        )
    )(jax.random.key(9))

    def trace(baseline) -> float:
        at = lambda *args, **options: estimators.score(
            *args, **options, baseline=baseline
        )
        return float(iwae_moments(at, of_k).trace.value["inference"])

    least = trace(constant)
    assert trace(0.8 * constant) > 1.15 * least
    assert trace(1.2 * constant) > 1.15 * least


def test_undefined_pairs_are_named_with_their_reason():
    problem = estimator_variance.problem(
        jax.random.key(0), estimator_variance.Knobs(repeats=2)
    )
    refused = estimator_variance.undefined(problem, bounds.iwae, 4)
    assert refused == {"stl": refused["stl"]} and "biased" in refused["stl"]
    assert "vimco" in " ".join(estimator_variance.undefined(problem, bounds.elbo, 1))


@pytest.mark.parametrize(
    "num_draws, chunk", [(100, 30), (100, 1), (100, 100), (0, 10), (100, 0)]
)
def test_draws_that_do_not_fill_two_chunks_are_an_error(num_draws, chunk):
    with pytest.raises(ValueError, match="multiple of chunk"):
        gradient_moments(
            known_gradient, jax.random.key(0), num_draws=num_draws, chunk=chunk
        )


@pytest.mark.parametrize("x, squares", [((3,), (4, 2)), ((1,), (4, 1)), ((3,), (1, 3))])
def test_other_shapes_are_an_error(x, squares):
    with pytest.raises(ValueError, match=r"\[m\] and \[r, m\]"):
        fit_power_law(jax.random.key(0), jnp.ones(x), jnp.ones(squares))


@pytest.mark.parametrize(
    "options, message",
    [({"draws": 50}, "40, 60, 80"), ({"draws": 20}, "40"), ({"repeats": 1}, "2 to")],
)
def test_wrong_knobs_are_an_error_before_there_is_a_folder(tmp_path, options, message):
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        estimator_variance.run(estimator_variance.Knobs(**options), folder)
    assert not folder.exists()
