"""What `anneal` and `gaps` report, on a model whose log p(x) is known."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
from contracts import EXACT, WRONG, exact_log_px, wrong_params

from vi_jax import diagnosis
from vi_jax.models import Chain

# Pixels of 0 or 1 are as good an x as any to a Gaussian model of three numbers.
IMAGES = np.array([[0, 255, 0], [255, 255, 0], [255, 0, 255]], np.uint8)
RUN = SimpleNamespace(
    model=WRONG,
    data=SimpleNamespace(test=IMAGES, test_label=None),
    contexts=lambda label: None,
)


def mean_log_px(n):
    return np.mean([exact_log_px(x / 255) for x in IMAGES[:n]])


@functools.cache
def annealed():
    return diagnosis.annealed(
        RUN, wrong_params(), num_images=3, num_steps=50, num_chains=64
    )


def test_annealing_and_importance_sampling_agree_with_the_exact_log_px():
    """Within 4 of the stated Monte Carlo errors."""
    found = annealed()["test"]
    tolerance = 4 * found["difference_mc_stderr"]
    assert 0 < tolerance < 0.3
    np.testing.assert_allclose(found["ais"], mean_log_px(3), atol=tolerance)
    np.testing.assert_allclose(
        found["importance_sampling"], mean_log_px(3), atol=tolerance
    )
    np.testing.assert_allclose(
        found["difference"], found["ais"] - found["importance_sampling"], atol=1e-5
    )


def test_simulated_images_have_a_lower_and_an_upper_bound():
    found = annealed()["simulated"]
    assert -0.1 < found["gap"] < 0.3
    np.testing.assert_allclose(found["upper"] - found["lower"], found["gap"], atol=1e-5)


def test_the_gaps_add_up_to_log_px_minus_the_elbo():
    found = diagnosis.gaps(RUN, wrong_params(), num_images=2, num_steps=300)
    np.testing.assert_allclose(found["log_px"], mean_log_px(2), atol=0.03)
    both = found["approximation"] + found["amortisation"]
    np.testing.assert_allclose(found["log_px"] - found["elbo"], both, atol=1e-5)
    assert found["amortisation"] > 0.03 and found["num_images"] == 2


@pytest.mark.parametrize("measure", [diagnosis.annealed, diagnosis.gaps])
def test_no_images_is_an_error(measure):
    with pytest.raises(ValueError, match="num_images must be at least 1, got 0"):
        measure(RUN, wrong_params(), num_images=0)


def test_the_monte_carlo_error_of_one_chain_is_not_known():
    one = {"num_images": 2, "num_steps": 2, "num_chains": 1, "num_samples": 10}
    found = diagnosis.annealed(RUN, wrong_params(), **one)["test"]
    assert np.isnan(found["difference_mc_stderr"])
    assert all(np.isfinite(found[name]) for name in ("ais", "difference_stderr"))


def test_no_annealing_steps_is_an_error():
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        diagnosis.annealed(RUN, wrong_params(), num_images=1, num_steps=0)


def test_latents_of_several_layers_are_an_error_that_names_another_way():
    first = EXACT.prior(wrong_params())
    chain = Chain(first, (), (), True)
    model = WRONG._replace(prior=lambda p: chain)
    run = SimpleNamespace(model=model, data=RUN.data, contexts=RUN.contexts)
    with pytest.raises(ValueError, match="use importance sampling"):
        diagnosis.annealed(run, wrong_params(), num_images=1, num_steps=2)
