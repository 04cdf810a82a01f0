"""Bayes' rule over exact conditional models, and calibrated probabilities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import quick_jit
from scipy import special
from test_conditional import CLASSES, X, exact_given, exact_log_px, exact_params

from vi_jax.evaluation import (
    class_log_joints,
    expected_calibration_error,
    fit_temperature,
)
from vi_jax.model import Model

PRIOR = np.array([0.5, 0.2, 0.3])
RNG = np.random.default_rng(0)


def joints(given, num_samples):
    of = functools.partial(class_log_joints, given, np.log(PRIOR))
    run = quick_jit(functools.partial(of, num_samples=num_samples))
    return np.asarray(run(exact_params(), jax.random.key(0), jnp.array(X, float)))


def test_the_log_joints_of_an_exact_model_are_log_p_of_x_and_every_y():
    expected = [exact_log_px(y) + np.log(PRIOR[y]) for y in range(CLASSES)]
    np.testing.assert_allclose(joints(exact_given, 1), expected, rtol=1e-5)


def test_probabilities_are_no_log_prior():
    with pytest.raises(ValueError, match=r"logarithms .* got \[0.5 0.2 0.3\]"):
        class_log_joints(
            exact_given, PRIOR, exact_params(), jax.random.key(0), jnp.array(X, float)
        )


def test_with_another_posterior_they_come_near_by_importance_sampling():
    """A posterior twice as wide as the prior: from 20,000 draws to 0.1 nats."""

    def given(y):
        exact = exact_given(y)
        prior = exact.prior(exact_params())
        wide = type(prior)(prior.loc, 2 * prior.scale)
        return Model(exact.init, exact.prior, lambda p, x: wide, exact.likelihood)

    expected = [exact_log_px(y) + np.log(PRIOR[y]) for y in range(CLASSES)]
    few, many = joints(given, 1), joints(given, 20_000)
    np.testing.assert_allclose(many, expected, atol=0.1)
    assert np.max(abs(few - expected)) > 0.5


def overconfident(n=20_000, sharpness=3.0):
    """Logits `sharpness` times those that the labels are drawn with."""
    logits = RNG.normal(size=(n, 4)) * 1.5
    noise = RNG.gumbel(size=logits.shape)
    return sharpness * logits, np.argmax(logits + noise, axis=1)


@pytest.mark.parametrize("sharpness", [3.0, 1.0, 0.25])
def test_the_temperature_undoes_what_sharpened_the_probabilities(sharpness):
    """To 5%, some three standard errors; and the calibration error with it."""
    logits, label = overconfident(sharpness=sharpness)
    temperature = fit_temperature(logits, label)
    np.testing.assert_allclose(temperature, sharpness, rtol=0.05)
    ece = lambda t: expected_calibration_error(
        special.softmax(logits / t, axis=1), label
    )
    assert ece(temperature) < 0.02
    assert sharpness == 1.0 or ece(1.0) > 5 * ece(temperature)


def test_the_calibration_error_is_that_of_its_definition():
    """Four confident answers of which two are right, four timid ones all right."""
    probs = np.array([[0.9, 0.1]] * 4 + [[0.4, 0.6]] * 4)
    label = np.array([0, 0, 1, 1, 1, 1, 1, 1])
    by_hand = 0.5 * abs(0.5 - 0.9) + 0.5 * abs(1.0 - 0.6)
    for order in (np.arange(8), np.arange(8)[::-1], RNG.permutation(8)):
        got = expected_calibration_error(probs[order], label[order], num_bins=2)
        np.testing.assert_allclose(got, by_hand)
    one_bin = abs(0.75 - 0.75)
    got = expected_calibration_error(probs, label, num_bins=1)
    np.testing.assert_allclose(got, one_bin, atol=1e-12)


def test_the_calibration_error_knows_no_order_of_equal_confidences():
    """90% right at a confidence of 0.9, the right ones first: calibrated."""
    probs, label = np.array([[0.9, 0.1]] * 9000), np.repeat([0, 1], [8100, 900])
    np.testing.assert_allclose(expected_calibration_error(probs, label), 0, atol=1e-12)
    several = RNG.choice([0.6, 0.7, 0.95], 300)
    probs, label = np.stack([several, 1 - several], 1), RNG.integers(0, 2, 300)
    sort = np.argsort(label, kind="stable")
    errors = [
        expected_calibration_error(probs[order], label[order])
        for order in (np.arange(300), sort, sort[::-1])
    ]
    np.testing.assert_allclose(errors, errors[0])


@pytest.mark.parametrize(
    "scores, label, options, message",
    [
        (np.ones((3, 2)), np.zeros(2, int), {}, "do not fit"),
        (np.ones(3), np.zeros(3, int), {}, "do not fit"),
        (np.ones((0, 2)), np.zeros(0, int), {}, "do not fit"),
        (np.ones((3, 2)), np.array([0, 1, 2]), {}, "outside the 2 classes"),
        (np.ones((3, 2)), np.array([0, 1, -1]), {}, "outside the 2 classes"),
        (np.full((3, 2), 0.5), np.zeros(3, int), {"num_bins": 4}, r"in \[1, 3\]"),
        (np.ones((3, 2)), np.zeros(3, int), {"num_bins": 1}, "no logits"),
        (np.array([[1.5, -0.5]]), np.zeros(1, int), {"num_bins": 1}, "no logits"),
        (np.ones((3, 2)), np.zeros(3, int), {"num_bins": 0}, r"in \[1, 3\]"),
    ],
)
def test_wrong_shapes_and_labels_are_errors(scores, label, options, message):
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(scores, label, **options)
    if not options:
        with pytest.raises(ValueError, match=message):
            fit_temperature(scores, label)
