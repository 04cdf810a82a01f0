"""Expectation maximisation as a compiled loop, whatever the model."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vi_jax.checks import at_least
from vi_jax.types import Array, Params

PATIENCE = 3


class Steps(NamedTuple):
    """The two half-steps of EM over a data set x [n, ...], or all that suffices of it.

    The E-step sets q to the posterior at params, which makes the ELBO touch log p(x);
    the M-step maximises the ELBO over params with q held. Neither lowers it.
    """

    e_step: Callable[[Params, Array], tuple[Any, Array]]  # -> (q, mean log p(x) [])
    m_step: Callable[[Any, Array], Params]  # (q, x) -> params


class Fit(NamedTuple):
    """Where EM ended."""

    params: Params
    log_px: Array  # [] mean log p(x) at params, nats per example
    history: Array  # [num_iterations] log_px before each iteration, nan after the last
    iterations: Array  # int32 [], those done
    converged: Array  # bool [], three iterations in a row gained less than tolerance


def em(
    steps: Steps,
    params: Params,
    x: Array,
    *,
    num_iterations: int = 1000,
    tolerance: float = 1e-6,
) -> Fit:
    """Repeat E- and M-step until mean log p(x) gains less than `tolerance` nats.

    Less in each of three iterations in a row: rounding can hide the gain of one. A pure
    function, to be jitted, and vmapped over starts. log p(x) never falls but for
    rounding. Raises ValueError where num_iterations is below 1.
    Ref: Dempster, Laird & Rubin 1977; Neal & Hinton 1998.
    """
    at_least(1, num_iterations=num_iterations)

    # Carried: q and log p(x) at params, so that each iteration has one E-step.
    def goes_on(carry) -> Array:
        i, idle = carry[0], carry[4]
        return (i < num_iterations) & (idle < PATIENCE)

    def body(carry):
        i, _, q, log_px, idle, history = carry
        new = steps.m_step(q, x)
        new_q, new_log_px = steps.e_step(new, x)
        history = history.at[i].set(log_px)
        idle = jnp.where(new_log_px - log_px < tolerance, idle + 1, 0)
        return i + 1, new, new_q, new_log_px, idle, history

    q, log_px = steps.e_step(params, x)
    history = jnp.full(num_iterations, jnp.nan, log_px.dtype)
    start = (jnp.int32(0), params, q, log_px, jnp.int32(0), history)
    i, params, _, log_px, idle, history = jax.lax.while_loop(goes_on, body, start)
    return Fit(params, log_px, history, i, idle >= PATIENCE)
