"""EM's loop on half-steps whose log p(x) is written down beforehand."""

import jax.numpy as jnp
import numpy as np
import pytest

from vi_jax import em

# Params is the place in x; the E-step reads log p(x) there, the M-step goes on by one.
SCRIPT = em.Steps(lambda at, x: (at, x[at]), lambda q, x: q + 1)


def run(log_px, **how):
    return em.em(SCRIPT, jnp.int32(0), jnp.array(log_px), tolerance=0.1, **how)


def test_it_stops_after_three_small_gains_in_a_row_and_no_sooner():
    """Gains 1, 0, 0, 1, 0, -0.01, 0.05: two zeros are no end, nor is a small fall."""
    log_px = [0.0, 1.0, 1.0, 1.0, 2.0, 2.0, 1.99, 2.04, 9.0]
    fit = run(log_px, num_iterations=8)
    assert (fit.params, fit.iterations, fit.converged) == (7, 7, True)
    np.testing.assert_allclose(fit.log_px, 2.04)
    np.testing.assert_allclose(fit.history, [*log_px[:7], np.nan])


def test_it_says_when_it_ran_out_of_iterations():
    fit = run([0.0, 1.0, 2.0, 3.0, 4.0], num_iterations=3)
    assert (fit.params, fit.iterations, fit.converged) == (3, 3, False)
    np.testing.assert_allclose(fit.log_px, 3.0)


@pytest.mark.parametrize("num_iterations", [0, -1])
def test_no_iterations_is_an_error(num_iterations):
    with pytest.raises(ValueError, match="at least 1"):
        run([0.0], num_iterations=num_iterations)
