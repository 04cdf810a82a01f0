"""KL schedules at the steps where their value is known, and their errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from vi_jax import schedules

RAMPS = {
    "linear": schedules.linear,
    "cosine": schedules.cosine,
    "sigmoid": schedules.sigmoid,
    "cyclical": functools.partial(schedules.cyclical, num_cycles=3, rise=0.4),
}
EVERY = pytest.mark.parametrize("name", RAMPS)
STEPS = np.arange(0, 130, dtype=np.int32)


def logistic(u):
    low, high = special.expit(-6), special.expit(6)
    return (special.expit(12 * u - 6) - low) / (high - low)


SHAPES = {
    "linear": lambda u: u,
    "cosine": lambda u: np.sin(np.pi * u / 2) ** 2,
    "sigmoid": logistic,
    "cyclical": lambda u: np.minimum((3 * u) % 1 / 0.4, 1),
}


@EVERY
def test_a_ramp_has_its_shape_between_its_ends(name):
    """Exact ends, the equation of the docstring between, constant afterwards."""
    schedule = RAMPS[name](96, total_steps=130, start=0.25, end=2.0)
    got = jax.jit(jax.vmap(schedule))(STEPS)
    assert got[0] == 0.25
    assert np.all(got[96:] == 2.0)
    expected = 0.25 + 1.75 * SHAPES[name](STEPS[:96] / 96)
    np.testing.assert_allclose(got[:96], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
def test_a_ramp_is_monotone_either_way(name):
    for start, end in ((0.0, 1.0), (3.0, 0.5)):
        schedule = RAMPS[name](50, total_steps=50, start=start, end=end)
        change = np.diff(jax.vmap(schedule)(STEPS[:51])) * np.sign(end - start)
        assert np.all(change > 0)


def test_cyclical_rises_and_restarts_in_every_cycle():
    """4 cycles of 25 steps: at `end` from half of each, back at `start` after it."""
    schedule = schedules.cyclical(100, total_steps=200)
    beta = np.asarray(jax.vmap(schedule)(STEPS))
    np.testing.assert_array_equal(beta[[0, 25, 50, 75]], 0)
    assert np.all(beta[[13, 24, 38, 49, 63, 74, 88, 99, 100, 101, 129]] == 1)
    np.testing.assert_allclose(beta[[5, 30, 55, 80]], 0.4, rtol=1e-5)


@pytest.mark.parametrize("num_steps, num_cycles", [(392, 7), (1100, 4), (54, 27)])
def test_every_cycle_restarts_at_its_own_step(num_steps, num_cycles):
    """Lengths at which step / num_steps * num_cycles rounds to below a whole number."""
    schedule = schedules.cyclical(
        num_steps, total_steps=num_steps, num_cycles=num_cycles
    )
    starts = jnp.arange(num_cycles) * (num_steps // num_cycles)
    np.testing.assert_array_equal(jax.vmap(schedule)(starts), 0)


def test_constant_is_its_value_at_every_step():
    assert schedules.constant()(jnp.int32(7)) == 1
    np.testing.assert_array_equal(schedules.constant(0.3)(STEPS), np.float32(0.3))


@EVERY
@pytest.mark.parametrize("step", [0, 7, 2**24 + 1])
def test_a_step_is_an_int32_under_jit(name, step):
    schedule = RAMPS[name](2**25, total_steps=2**25)
    got = jax.jit(schedule)(jnp.int32(step))
    assert got.shape == () and got.dtype == jnp.float32
    np.testing.assert_allclose(got, SHAPES[name](step / 2**25), atol=1e-6)


@EVERY
def test_a_schedule_longer_than_the_training_is_an_error(name):
    with pytest.raises(ValueError, match="101 steps, the training only 100"):
        RAMPS[name](101, total_steps=100)
    RAMPS[name](100, total_steps=100)


@EVERY
@pytest.mark.parametrize("num_steps", [0, -3])
def test_a_schedule_without_steps_is_an_error(name, num_steps):
    with pytest.raises(ValueError, match="at least 1 step"):
        RAMPS[name](num_steps, total_steps=100)


@EVERY
@pytest.mark.parametrize("ends", [{"start": -0.1}, {"end": -1.0}, {"end": np.nan}])
def test_a_beta_that_is_not_positive_is_an_error(name, ends):
    with pytest.raises(ValueError, match="beta"):
        RAMPS[name](10, total_steps=100, **ends)
    with pytest.raises(ValueError, match="beta"):
        schedules.constant(next(iter(ends.values())))


@EVERY
def test_a_beta_may_be_traced(name):
    """As in a sweep: the same values as when it is known."""
    traced = lambda end: RAMPS[name](10, total_steps=100, end=end)(jnp.int32(7))
    expected = [traced(end) for end in (0.5, 2.0)]
    ends = jnp.array([0.5, 2.0])
    np.testing.assert_allclose(jax.vmap(traced)(ends), expected, rtol=1e-6)
    constant = jax.vmap(lambda beta: schedules.constant(beta)(jnp.int32(7)))
    np.testing.assert_array_equal(constant(ends), ends)


@pytest.mark.parametrize(
    "how",
    [{"num_cycles": 0}, {"num_cycles": 6}, {"rise": 0.0}, {"rise": 1.1}, {"rise": -1}],
)
def test_impossible_cycles_are_an_error(how):
    with pytest.raises(
        ValueError, match="num_cycles <= num_steps / 2 and 0 < rise <= 1"
    ):
        schedules.cyclical(10, total_steps=100, **how)
