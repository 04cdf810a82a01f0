"""The weight of the KL term as a function of the training step.

Each function returns a pure `schedule(step) -> []`. One that would not reach its end
within the training is an error: it would silently train another objective.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vi_jax.math import known
from vi_jax.types import Array

Schedule = Callable[[Array], Array]


def check_schedule(beta: Schedule) -> None:
    """Raise ValueError for a number in place of a schedule."""
    if not callable(beta):
        raise ValueError(
            f"needed is a schedule, a function of the step, not {beta}: "
            f"schedules.constant({beta})"
        )


def _check_beta(*values: float | Array) -> None:
    if not all(0 <= value < math.inf for value in known(*values)):
        raise ValueError(f"beta must be at least 0 and finite, got {values}")


def _check(num_steps: int, total_steps: int) -> None:
    if not num_steps >= 1:
        raise ValueError(f"a schedule needs at least 1 step, got {num_steps}")
    if num_steps > total_steps:
        raise ValueError(
            f"the schedule takes {num_steps} steps, the training only {total_steps}: "
            "beta would never reach its end; shorten the schedule or train longer"
        )


def _ramp(shape, num_steps: int, total_steps: int, start: float, end: float):
    _check(num_steps, total_steps)
    _check_beta(start, end)

    def schedule(step: Array) -> Array:
        u = jnp.clip(jnp.asarray(step) / num_steps, 0.0, 1.0)
        # The end exactly, whatever the rounding of the shape.
        return jnp.where(u < 1.0, start + (end - start) * shape(u), end)

    return schedule


def constant(value: float | Array = 1.0) -> Schedule:
    """beta(t) = value. Raises ValueError where it is known and negative or not finite.

    It may be traced, as one of `sweep.loss_of_all`.
    """
    _check_beta(value)
    return lambda step: jnp.full(jnp.shape(step), value, jnp.float32)


def linear(
    num_steps: int, *, total_steps: int, start: float = 0.0, end: float = 1.0
) -> Schedule:
    """beta(t) = start + (end - start) t / num_steps, then `end`.

    Raises ValueError where num_steps exceeds total_steps, as all schedules here do.
    Ref: Sonderby et al. 2016, arXiv:1602.02282.
    """
    return _ramp(lambda u: u, num_steps, total_steps, start, end)


def cosine(
    num_steps: int, *, total_steps: int, start: float = 0.0, end: float = 1.0
) -> Schedule:
    """beta(t) = start + (end - start) (1 - cos(pi t / num_steps)) / 2, then `end`."""
    shape = lambda u: 0.5 * (1 - jnp.cos(jnp.pi * u))
    return _ramp(shape, num_steps, total_steps, start, end)


def sigmoid(
    num_steps: int, *, total_steps: int, start: float = 0.0, end: float = 1.0
) -> Schedule:
    """A logistic curve through 12 of its units, rescaled to meet both ends exactly.

    beta(t) = start + (end - start) (s(12 u - 6) - s(-6)) / (s(6) - s(-6)), where s is
    the logistic function and u = t / num_steps. Ref: Bowman et al. 2016,
    arXiv:1511.06349.
    """
    low, high = jax.nn.sigmoid(-6.0), jax.nn.sigmoid(6.0)
    shape = lambda u: (jax.nn.sigmoid(12 * u - 6) - low) / (high - low)
    return _ramp(shape, num_steps, total_steps, start, end)


def cyclical(
    num_steps: int,
    *,
    total_steps: int,
    num_cycles: int = 4,
    rise: float = 0.5,
    start: float = 0.0,
    end: float = 1.0,
) -> Schedule:
    """`num_cycles` linear ramps, each rising for the fraction `rise`; then `end`.

    Raises ValueError where a cycle has no two steps or rise is outside (0, 1].
    Ref: Fu et al. 2019, arXiv:1903.10145.
    """
    _check(num_steps, total_steps)
    if not 1 <= num_cycles <= num_steps / 2 or not 0 < rise <= 1:
        raise ValueError(
            f"cyclical needs 1 <= num_cycles <= num_steps / 2 and 0 < rise <= 1, "
            f"got {num_cycles}, {num_steps} and {rise}"
        )
    _check_beta(start, end)

    def schedule(step: Array) -> Array:
        # In integers: a rounded product would start some cycles a step late.
        place = (jnp.minimum(step, num_steps) * num_cycles) % num_steps
        u = jnp.minimum(place / (num_steps * rise), 1.0)
        return jnp.where(step < num_steps, start + (end - start) * u, end)

    return schedule


def settled(schedule: Schedule, *, total_steps: int) -> int:
    """The first step from which the schedule stays at its end, in a training's steps.

    total_steps where it arrives there with the last step only. A schedule that passes
    through its end on the way, as `cyclical` does, has not settled.
    Raises ValueError where total_steps is below 1.
    """
    if total_steps < 1:
        raise ValueError(f"a training has at least 1 step, got {total_steps}")
    values = np.asarray(schedule(np.arange(total_steps + 1)))
    away = np.flatnonzero(values != values[-1])
    return int(away[-1]) + 1 if away.size else 0
