"""The bias-variance decomposition against the exact one of linear least squares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import quick_jit
from numpy.polynomial.legendre import legvander

from vi_jax.divergences import Estimate
from vi_jax.evaluation import BiasVariance, bias_variance

NOISE = 0.4
X, X_TEST = np.linspace(-1, 1, 15), np.linspace(-0.9, 0.9, 7)
signal = lambda x: np.sin(3 * x)


def smoother(degree: int) -> np.ndarray:
    """H [m, n] with predictions H y, for the polynomial of least squares."""
    return legvander(X_TEST, degree) @ np.linalg.pinv(legvander(X, degree))


def exact(degree: int) -> np.ndarray:
    """bias^2, variance, noise, error and 0, from the linear algebra."""
    h = smoother(degree)
    bias2 = np.mean((h @ signal(X) - signal(X_TEST)) ** 2)
    variance = NOISE**2 * np.mean(np.sum(h**2, 1))
    return np.array([bias2, variance, NOISE**2, bias2 + variance + NOISE**2, 0])


def draw(rng, shape: tuple[int, ...], degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and new observations, [..., m] each, of independent data sets."""
    y = signal(X) + NOISE * rng.normal(size=(*shape, len(X)))
    fresh = signal(X_TEST) + NOISE * rng.normal(size=(*shape, len(X_TEST)))
    return y @ smoother(degree).T, fresh


def measure(predictions, observations) -> tuple[np.ndarray, np.ndarray]:
    """Values and standard errors, [..., 5] each, vmapped over what leads [r, m]."""
    of = lambda p, o: bias_variance(p, jnp.asarray(signal(X_TEST)), o)
    for _ in predictions.shape[2:]:
        of = jax.vmap(of)
    got = quick_jit(of)(jnp.asarray(predictions), jnp.asarray(observations))
    stack = lambda name: np.stack([getattr(part, name) for part in got], -1)
    return stack("value").astype(float), stack("stderr").astype(float)


@pytest.mark.parametrize("degree", [0, 1, 3, 9])
def test_every_part_is_the_exact_one_within_its_error(degree):
    """4,000 data sets; z below 4, and errors small enough to tell."""
    rng = np.random.default_rng(degree)
    values, errors = measure(*draw(rng, (4000,), degree))
    assert np.all(abs(values - exact(degree)) < 4 * errors)
    assert np.all(errors < 0.006)


def pair_variance(degree: int) -> tuple[float, float]:
    """(var of E[a_1 . a_2 / m | a_1], what pairs add), predictions being Gaussian."""
    h, m = smoother(degree), len(X_TEST)
    bias, covariance = h @ signal(X) - signal(X_TEST), NOISE**2 * h @ h.T
    return bias @ covariance @ bias / m**2, np.sum(covariance**2) / m**2


@pytest.mark.parametrize("degree", [0, 1, 5])
def test_values_are_unbiased_and_errors_right_from_few_data_sets(degree):
    """6,000 repetitions of 25: z below 4, mean stderr^2 the variance of the values.

    That of bias2 lies between its jackknife and this plus the part of the pairs, by
    the theory of U-statistics (Hoeffding 1948), whose variance is below both.
    """
    r, rng = 25, np.random.default_rng(10 + degree)
    values, errors = measure(*draw(rng, (6000, r), degree))
    z = (values.mean(0) - exact(degree)) / (values.std(0) / np.sqrt(len(values)))
    assert np.all(abs(z) < 4)
    squares = np.mean(errors**2, 0)
    np.testing.assert_allclose(squares[1:], values.var(0)[1:], rtol=0.12)
    single, pairs = pair_variance(degree)
    variance = 4 * single / r + 2 * pairs / (r * (r - 1))
    np.testing.assert_allclose(values[:, 0].var(), variance, rtol=0.12)
    jackknife = 4 * single / r + 4 * pairs / (r * (r - 2))
    assert 0.95 < squares[0] / jackknife < 1.05 + 2.2 * pairs / r**2 / jackknife


@pytest.mark.parametrize("degree", [0, 1, 5])
def test_two_standard_errors_cover_95_percent_from_400_data_sets(degree):
    """3,000 repetitions, so 0.954 has an error of 0.004; 0.94 is 3.6 of them below.

    In degree 0, by symmetry, only pairs matter: the jackknife alone covers 0.82 there.
    """
    rng = np.random.default_rng(410 + degree)
    values, errors = measure(*draw(rng, (3000, 400), degree))
    inside = np.mean(abs(values - exact(degree)) < 2 * errors, 0)
    assert np.all(inside > 0.94)
    assert np.all(inside[1:] < 0.97)
    assert degree != 1 or inside[0] < 0.97  # elsewhere it is wide, as documented


def test_the_parts_add_up_to_the_error_but_for_the_residual():
    """An identity: to 1e-12 in float64, 1e-6 in float32."""
    for x64, tolerance in ((False, 1e-6), (True, 1e-12)):
        with jax.enable_x64(x64):
            values, _ = measure(*draw(np.random.default_rng(0), (30,), 3))
        total = values[:3].sum() + values[4]
        np.testing.assert_allclose(total, values[3], rtol=tolerance)
        assert abs(values[4]) > 1e-4


def test_standard_errors_are_those_over_data_sets():
    """Two inputs that always agree are no more evidence than one."""
    predictions, fresh = draw(np.random.default_rng(1), (50,), 3)
    one = measure(predictions[:, :1] * np.ones(7), fresh[:, :1] * np.ones(7))
    half = measure(*(np.tile(a[:, :1], (2, 7)) for a in (predictions, fresh)))
    np.testing.assert_allclose(half[1] / one[1], 0.5**0.5, rtol=0.02)


@pytest.mark.parametrize(
    "shapes, message",
    [
        (((4, 3), (4,), (4, 3)), r"\[r, m\], \[m\] and \[r, m\]"),
        (((4, 3), (3,), (5, 3)), r"got \[\(4, 3\), \(3,\), \(5, 3\)\]"),
        (((3,), (3,), (3,)), "the shapes must be"),
        (((2, 3), (3,), (2, 3)), "3 data sets at least"),
        (((4, 0), (0,), (4, 0)), "1 input, got 4 and 0"),
    ],
)
def test_other_shapes_are_an_error(shapes, message):
    with pytest.raises(ValueError, match=message):
        bias_variance(*map(jnp.zeros, shapes))


def test_the_record_holds_estimates():
    got = bias_variance(jnp.eye(3), jnp.zeros(3), jnp.ones((3, 3)))
    assert isinstance(got, BiasVariance)
    assert all(isinstance(part, Estimate) for part in got)
