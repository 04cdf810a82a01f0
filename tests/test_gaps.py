"""The two gaps of the ELBO, in closed form on a model whose posterior is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import (
    EXACT,
    WRONG,
    X,
    exact_log_px,
    exact_params,
    exact_posterior,
    quick_jit,
    wrong_params,
)

from vi_jax.evaluation import best_posterior, elbo_gaps


def kl_to_posterior(loc, scale):
    """KL(N(loc, diag(scale^2)) || p(z | x)), float64."""
    gain, offset, covariance = exact_posterior()
    shift = np.asarray(loc, np.float64) - gain @ X - offset
    precision = np.linalg.inv(covariance)
    spread = np.asarray(scale, np.float64) ** 2
    log_det = np.linalg.slogdet(covariance)[1] - np.log(spread).sum()
    return 0.5 * (
        np.diag(precision) @ spread + shift @ precision @ shift - len(spread) + log_det
    )


def mean_field():
    """The best diagonal Gaussian: the exact mean, and 1 / sqrt(diag precision)."""
    gain, offset, covariance = exact_posterior()
    return gain @ X + offset, np.diag(np.linalg.inv(covariance)) ** -0.5


def test_the_best_gaussian_is_the_mean_field_solution():
    find = lambda key: best_posterior(WRONG, wrong_params(), key, jnp.array(X, float))
    q = quick_jit(find)(jax.random.key(0))
    loc, scale = mean_field()
    np.testing.assert_allclose(q.loc, loc, atol=0.01)
    np.testing.assert_allclose(q.scale, scale, rtol=0.01)


def test_the_gaps_are_the_closed_forms_and_add_up():
    """To 4 standard errors of 20,000 draws, from the spread of log w (about 1 nat)."""
    run = lambda key: elbo_gaps(
        WRONG, wrong_params(), key, jnp.array(X, float), num_samples=20_000
    )
    found = quick_jit(run)(jax.random.key(1))
    q = WRONG.posterior(wrong_params(), jnp.array(X, float))
    approximation = kl_to_posterior(*mean_field())
    amortisation = kl_to_posterior(q.loc, q.scale) - approximation
    assert approximation > 0.01 and amortisation > 0.05
    error = 4 / 20_000**0.5 * (2 * (approximation + amortisation)) ** 0.5
    np.testing.assert_allclose(found.approximation, approximation, atol=error)
    np.testing.assert_allclose(found.amortisation, amortisation, atol=2 * error)
    np.testing.assert_allclose(
        found.log_px, exact_log_px(), atol=4 * float(found.log_px_stderr)
    )
    np.testing.assert_allclose(
        found.approximation + found.amortisation, found.log_px - found.elbo, atol=1e-5
    )


@pytest.mark.parametrize(
    "how", [{"num_steps": 0}, {"num_samples": 0}, {"learning_rate": 0.0}]
)
def test_numbers_out_of_range_are_errors(how):
    (name,) = how
    with pytest.raises(ValueError, match=f"{name} must be (at least 1|positive), got"):
        best_posterior(
            WRONG, wrong_params(), jax.random.key(0), jnp.array(X, float), **how
        )


def test_another_family_is_an_error():
    with pytest.raises(ValueError, match="the encoder gives a FullNormal"):
        best_posterior(EXACT, exact_params(), jax.random.key(0), jnp.array(X, float))
