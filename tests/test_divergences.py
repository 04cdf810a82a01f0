"""KL divergences and entropies against sums over events, quadrature and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import DISTRIBUTIONS, KL_PAIRS, quick_jit
from scipy import special

from vi_jax import divergences
from vi_jax.distributions import Bernoulli, Categorical, FullNormal, Normal
from vi_jax.divergences import kl, kl_monte_carlo

PAIRS = pytest.mark.parametrize("name", KL_PAIRS)
EXCEPT_MIXTURE = pytest.mark.parametrize(
    "name", sorted(set(DISTRIBUTIONS) - {"mixture"})
)
PRECISIONS = pytest.mark.parametrize("x64, tolerance", [(False, 1e-5), (True, 1e-9)])


@PAIRS
@PRECISIONS
def test_kl_is_the_sum_over_events(name, x64, tolerance):
    q, p = KL_PAIRS[name]
    both_ways = []
    with jax.enable_x64(x64):
        for a, b in ((q, p), (p, q)):
            cell_p = a.cell * np.exp(a.log_prob)
            expected = cell_p @ (a.log_prob - b.log_prob)
            got = quick_jit(kl)(a.make(), b.make())
            assert got.shape == ()
            np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
            both_ways.append(expected)
    assert abs(both_ways[0] - both_ways[1]) > 0.01  # the test can tell q from p


@EXCEPT_MIXTURE
def test_kl_of_equals_is_zero(name):
    q = DISTRIBUTIONS[name].make()
    np.testing.assert_allclose(quick_jit(kl)(q, q), 0, atol=1e-7)


@pytest.mark.parametrize(
    "name", ["normal", "full_normal", "bernoulli", "categorical", "joint_bernoulli"]
)
@pytest.mark.parametrize("excess", [1e-2, 1e-3, 1e-4])
def test_kl_of_nearly_equal_ones_is_accurate(name, excess):
    """float32 to 1e-5 at 1e-9 nats, where a difference of large terms is noise."""
    q = DISTRIBUTIONS[name].make()
    factor = np.float32(1 + excess)
    p = jax.tree.map(lambda a: jnp.array(np.asarray(a) * factor), q)
    got = quick_jit(kl)(q, p)
    with jax.enable_x64(True):
        # The same float32 parameters: their differences keep 10 digits in float64.
        wide = lambda d: jax.tree.map(lambda a: jnp.array(np.asarray(a, float)), d)
        expected = kl(wide(q), wide(p))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert 0 < got < 30 * excess**2


def test_kl_of_nearly_equal_normals_is_its_second_order():
    """In float64, n e^2 for n scales off by a relative e = 1e-7."""
    with jax.enable_x64(True):
        d = lambda factor: Normal(jnp.zeros(3), jnp.array([0.7, 1.9, 3.1]) * factor)
        np.testing.assert_allclose(kl(d(1.0), d(1 + 1e-7)), 3e-14, rtol=1e-6)


def test_kl_of_nearly_equal_classes_is_its_second_order():
    """In float64, Var_q(delta) / 2 for logits off by delta = 1e-7 v."""
    with jax.enable_x64(True):
        logits, v = np.array([0.2, -1.0, 1.5]), np.array([1.0, -2.0, 0.5])
        q = special.softmax(logits)
        variance = q @ v**2 - (q @ v) ** 2
        near = Categorical(jnp.array(logits + 1e-7 * v))
        got = kl(Categorical(jnp.array(logits)), near)
        np.testing.assert_allclose(got, 0.5e-14 * variance, rtol=1e-6)


def test_kl_slopes_are_those_of_finite_differences():
    """In float64, near, far, and where one formula hands over to the other."""

    @jax.jit
    def slopes(q, t):
        move = lambda h: jax.tree.map(lambda a: a * (1 + t + h), q)
        along = lambda h: kl(q, move(h)) + kl(move(h), q)
        return jax.grad(along)(0.0), (along(1e-5) - along(-1e-5)) / 2e-5

    with jax.enable_x64(True):
        for name in ("normal", "full_normal", "bernoulli", "categorical"):
            for t in (0.02, 0.3, 0.5, 1.3):
                slope, difference = slopes(DISTRIBUTIONS[name].make(), t)
                np.testing.assert_allclose(slope, difference, rtol=1e-7)


def test_kl_of_high_dimensional_normals_sums_over_dimensions():
    """Off by one sigma in each of 50 dimensions is 25 nats, no mean of anything."""
    q = Normal(jnp.full(50, 1.0), jnp.ones(50))
    np.testing.assert_allclose(kl(q, Normal(jnp.zeros(50), jnp.ones(50))), 25.0)


def test_a_diagonal_normal_is_a_full_one():
    with jax.enable_x64(True):
        q, p = (DISTRIBUTIONS[name].make() for name in ("normal", "full_normal"))
        wide = FullNormal(q.loc, jnp.diag(q.scale))
        np.testing.assert_allclose(kl(p, q), kl(p, wide), rtol=1e-12)
        np.testing.assert_allclose(kl(q, p), kl(wide, p), rtol=1e-12)
        round_one = Normal(q.loc, jnp.array(0.7))  # a scale for all of its dimensions
        wide = FullNormal(q.loc, 0.7 * jnp.eye(q.loc.size))
        np.testing.assert_allclose(kl(p, round_one), kl(p, wide), rtol=1e-12)
        np.testing.assert_allclose(kl(round_one, p), kl(wide, p), rtol=1e-12)


def test_kl_of_classes_that_q_or_p_excludes():
    """What q excludes is free, what p excludes is infinite, and slopes are finite."""
    q = Categorical(jnp.array([0.0, -jnp.inf, 0.0]))
    p = Categorical(jnp.log(jnp.array([0.5, 0.3, 0.2])))
    expected = 0.5 * np.log(0.5 / 0.5) + 0.5 * np.log(0.5 / 0.2)
    np.testing.assert_allclose(kl(q, p), expected, rtol=1e-6)
    assert kl(p, q) == jnp.inf
    of_q = jax.grad(lambda q: kl(q, p))(q).logits
    of_p = jax.grad(lambda p: kl(q, p))(p).logits
    np.testing.assert_array_equal(np.isfinite(of_q), True)
    # d KL / d logits of p is p - q.
    np.testing.assert_allclose(of_p, np.array([0.0, 0.3, -0.3]), atol=1e-6)


def test_kl_of_far_classes_does_not_overflow():
    q, p = Categorical(jnp.array([0.0, -300.0])), Categorical(jnp.array([-300.0, 0.0]))
    np.testing.assert_allclose(kl(q, p), 300.0)


def test_bernoulli_kl_where_both_are_certain():
    """Agreeing is free, disagreeing costs the logit."""
    agree = kl(Bernoulli(jnp.array([1e4])), Bernoulli(jnp.array([900.0])))
    differ = kl(Bernoulli(jnp.array([1e4])), Bernoulli(jnp.array([-1e4])))
    assert (agree, differ) == (0.0, 1e4)


def test_kl_without_closed_form_is_an_error_that_names_the_other_way():
    normal, mixture = DISTRIBUTIONS["normal"].make(), DISTRIBUTIONS["mixture"].make()
    for q, p in ((normal, mixture), (mixture, normal), (mixture, mixture)):
        assert not divergences.has_closed_form_kl(q, p)
        with pytest.raises(ValueError, match="no closed form.*kl_monte_carlo"):
            kl(q, p)
    assert all(
        divergences.has_closed_form_kl(q.make(), p.make()) for q, p in KL_PAIRS.values()
    )


def _moments(q, p) -> tuple[float, float]:
    """Mean and variance of log q - log p under q, summed over the events."""
    weight, ratio = q.cell * np.exp(q.log_prob), q.log_prob - p.log_prob
    mean = weight @ ratio
    return mean, weight @ ratio**2 - mean**2


PAIRS_AND_MIXTURE = {
    **KL_PAIRS,
    "to_mixture": (DISTRIBUTIONS["normal"], DISTRIBUTIONS["mixture"]),
    "of_mixture": (DISTRIBUTIONS["mixture"], DISTRIBUTIONS["normal"]),
}


@pytest.mark.parametrize("name", PAIRS_AND_MIXTURE)
def test_monte_carlo_is_right_within_the_error_that_it_states(name):
    """At 4 standard errors of 20,000 draws, whose error is sqrt(variance / 20,000)."""
    q, p = PAIRS_AND_MIXTURE[name]
    estimate = lambda q, p: kl_monte_carlo(jax.random.key(7), q, p, num_samples=20_000)
    value, stderr = quick_jit(estimate)(q.make(), p.make())
    mean, variance = _moments(q, p)
    assert abs(value - mean) < 4 * stderr
    np.testing.assert_allclose(stderr, (variance / 20_000) ** 0.5, rtol=0.1)


def test_monte_carlo_needs_two_samples_for_its_error():
    q = DISTRIBUTIONS["normal"].make()
    with pytest.raises(ValueError, match="at least 2"):
        kl_monte_carlo(jax.random.key(0), q, q, num_samples=1)


@EXCEPT_MIXTURE
@PRECISIONS
def test_entropy_is_the_sum_over_events(name, x64, tolerance):
    row = DISTRIBUTIONS[name]
    with jax.enable_x64(x64):
        expected = -row.cell * np.exp(row.log_prob) @ row.log_prob
        got = quick_jit(divergences.entropy)(row.make())
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def test_entropy_of_a_mixture_is_an_error_that_names_the_other_ways():
    with pytest.raises(ValueError, match=r"no closed form.*quadrature\.expectation"):
        divergences.entropy(DISTRIBUTIONS["mixture"].make())


@pytest.mark.parametrize("logit", [-20.0, -10.0, 0.0, 3.0, 20.0, np.inf])
def test_entropy_of_a_coin_keeps_its_digits_where_it_is_nearly_certain(logit):
    p = special.expit([logit, -logit])
    got = divergences.entropy(Bernoulli(jnp.array([logit, logit])))
    np.testing.assert_allclose(got, 2 * special.entr(p).sum(), rtol=1e-6)
    # dH/dl = -l sigmoid'(l)
    slope = jax.grad(divergences.entropy)(Bernoulli(jnp.array(logit))).logits
    expected = -logit * p.prod() if np.isfinite(logit) else 0.0
    np.testing.assert_allclose(slope, expected, rtol=2e-6)


def test_entropy_of_a_certain_class_is_zero_and_has_a_slope():
    certain = Categorical(jnp.array([0.0, -jnp.inf]))
    assert divergences.entropy(certain) == 0
    slope = jax.grad(divergences.entropy)(certain).logits
    np.testing.assert_array_equal(np.isfinite(slope), True)
