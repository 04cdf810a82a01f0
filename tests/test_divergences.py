"""KL divergences and entropies against sums over events, quadrature and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import DISTRIBUTIONS, KL_PAIRS, quick_jit

from vi_jax import divergences
from vi_jax.distributions import Bernoulli, Categorical, Normal
from vi_jax.divergences import kl

PAIRS = pytest.mark.parametrize("name", KL_PAIRS)


@PAIRS
@pytest.mark.parametrize("x64, tolerance", [(False, 1e-5), (True, 1e-9)])
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


@PAIRS
def test_kl_of_equals_is_zero_and_is_never_negative(name):
    """Also where q and p differ by 1e-4, where a difference of large terms shows."""
    q = KL_PAIRS[name][0].make()
    near = jax.tree.map(lambda a: jnp.array(np.asarray(a) * np.float32(1 + 1e-4)), q)
    np.testing.assert_allclose(quick_jit(kl)(q, q), 0, atol=1e-7)
    assert -3e-7 <= quick_jit(kl)(q, near) < 1e-6


def test_kl_of_nearly_equal_normals_is_accurate():
    """float32 to 0.5%, at 1e-6 nats, where the textbook formula is noise."""
    scale = np.array([0.7, 1.9, 3.1])
    other = scale * (1 + np.array([1e-3, -5e-4, 7e-4]))
    loc = jnp.array([0.1, -0.4, 2.0])
    got = kl(Normal(loc, jnp.array(scale, float)), Normal(loc, jnp.array(other, float)))
    ratio = scale.astype(np.float32) / other.astype(np.float32).astype(np.float64)
    r = np.log(ratio)
    np.testing.assert_allclose(got, 0.5 * np.sum(np.expm1(2 * r) - 2 * r), rtol=5e-3)


def test_kl_of_high_dimensional_normals_sums_over_dimensions():
    """Off by one sigma in each of 50 dimensions is 25 nats, no mean of anything."""
    q = Normal(jnp.full(50, 1.0), jnp.ones(50))
    np.testing.assert_allclose(kl(q, Normal(jnp.zeros(50), jnp.ones(50))), 25.0)


def test_categorical_kl_with_an_excluded_class_is_finite():
    q = Categorical(jnp.array([0.0, -jnp.inf, 0.0]))
    p = Categorical(jnp.log(jnp.array([0.5, 0.3, 0.2])))
    expected = 0.5 * np.log(0.5 / 0.5) + 0.5 * np.log(0.5 / 0.2)
    np.testing.assert_allclose(kl(q, p), expected, rtol=1e-6)


def test_kl_without_closed_form_is_an_error():
    normal, mixture = DISTRIBUTIONS["normal"].make(), DISTRIBUTIONS["mixture"].make()
    full = DISTRIBUTIONS["full_normal"].make()
    for q, p in ((normal, mixture), (mixture, normal), (full, mixture)):
        assert not divergences.has_closed_form_kl(q, p)
        with pytest.raises(ValueError, match="no closed form"):
            kl(q, p)
    assert all(
        divergences.has_closed_form_kl(q.make(), p.make()) for q, p in KL_PAIRS.values()
    )


def test_bernoulli_kl_where_both_are_certain():
    """Agreeing is free, disagreeing costs the logit."""
    agree = kl(Bernoulli(jnp.array([1e4])), Bernoulli(jnp.array([900.0])))
    differ = kl(Bernoulli(jnp.array([1e4])), Bernoulli(jnp.array([-1e4])))
    assert (agree, differ) == (0.0, 1e4)
