"""The expected squared error of a fit as bias^2 + variance + noise."""

from typing import NamedTuple

import jax.numpy as jnp

from vi_jax.divergences import Estimate
from vi_jax.types import Array


class BiasVariance(NamedTuple):
    """Parts of the mean squared error, each with its standard error over data sets."""

    bias2: Estimate  # (E f(x) - truth(x))^2, which may come out below 0
    variance: Estimate  # E (f(x) - E f(x))^2
    noise: Estimate  # E (y - truth(x))^2
    error: Estimate  # E (f(x) - y)^2, the one that is measured on new observations
    residual: Estimate  # error - (bias2 + variance + noise), 0 in expectation


def bias_variance(
    predictions: Array, truth: Array, observations: Array
) -> BiasVariance:
    """bias^2 + variance + noise of a fit, averaged over m inputs, from r data sets.

    predictions [r, m]: row i is fitted to data set i, data sets being independent;
    truth [m] is E[y] at each input; observations [r, m]: row i is y drawn afresh, not
    from a data set. Every value is unbiased: with a = predictions - truth, bias2 is the
    mean of a_i a_j over pairs of different data sets. Two standard errors cover 95%
    from about 400 data sets on, but only 90% from 25, where a low bias2 or variance
    comes with a narrow error; that of bias2 is 1.5 times too wide where the bias is 0.
    Raises ValueError on other shapes or r < 3. Ref: Geman, Bienenstock & Doursat 1992.
    """
    _check_shapes(predictions, truth, observations)
    r = len(predictions)
    a = predictions - truth[None]  # [r, m]
    noise = observations - truth[None]
    centred = a - jnp.mean(a, 0)[None]
    return BiasVariance(
        bias2=_bias2(a, centred),
        variance=_mean(centred**2 * (r / (r - 1))),
        noise=_mean(noise**2),
        error=_mean((predictions - observations) ** 2),
        # bias2 + variance is mean a^2 identically, which leaves the cross term.
        residual=_mean(-2 * a * noise),
    )


def _bias2(a: Array, centred: Array) -> Estimate:
    """The mean over pairs i != j of the dot product a_i . a_j / m, a [r, m]."""
    r, m = a.shape
    value, jackknife = _mean(a * (jnp.sum(a, 0)[None] - a) / (r - 1))
    # Each data set is in a pair twice. Where the bias is 0 the jackknife may be near 0
    # by accident; the part of the error that is due to pairs is not.
    pairs = jnp.linalg.norm(centred.T @ centred) / (r - 1) / m
    jackknife = 2 * jackknife * (r - 1) / (r - 2)
    return Estimate(value, jnp.maximum(jackknife, pairs * (2 / r / (r - 1)) ** 0.5))


def _mean(terms: Array) -> Estimate:
    """The mean of terms [r, m], its rows independent, and its standard error."""
    rows = jnp.mean(terms, 1)
    return Estimate(jnp.mean(rows), jnp.std(rows, ddof=1) / len(rows) ** 0.5)


def _check_shapes(predictions: Array, truth: Array, observations: Array) -> None:
    shapes = [jnp.shape(a) for a in (predictions, truth, observations)]
    r_m = shapes[0]
    if len(r_m) != 2 or shapes != [r_m, r_m[1:], r_m]:
        raise ValueError(f"the shapes must be [r, m], [m] and [r, m], got {shapes}")
    if r_m[0] < 3 or r_m[1] < 1:
        raise ValueError(
            f"needed: 3 data sets at least and 1 input, got {r_m[0]} and {r_m[1]}"
        )
