"""What latents carry: the rate by latent and by its two parts, against quadrature."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import quick_jit
from scipy import stats

from vi_jax import divergences
from vi_jax.distributions import Mixture, Normal
from vi_jax.evaluation import (
    aggregate_kl,
    collapse_report,
    kl_per_latent,
    mutual_information,
    split_rate,
)
from vi_jax.models.hierarchical import Chain

RNG = np.random.default_rng(0)
LOC, SCALE = RNG.normal(0, 1.2, (7, 3)), np.exp(RNG.normal(-0.7, 0.4, (7, 3)))
PRIOR_LOC, PRIOR_SCALE = np.array([0.2, -0.1, 0.0]), np.array([1.0, 0.8, 1.3])


def normal(loc, scale):
    return Normal(jnp.array(loc, float), jnp.array(scale, float))


def posteriors():
    return normal(LOC, SCALE)


def prior():
    return normal(PRIOR_LOC, PRIOR_SCALE)


@functools.cache
def fast(function, **options):
    return quick_jit(functools.partial(function, **options))


def near(estimate, expected, *, atmost):
    """Within 4 of its standard errors, which are small enough to mean something."""
    assert 0 < estimate.stderr < atmost
    assert abs(estimate.value - expected) < 4 * estimate.stderr


def test_the_kl_per_latent_is_the_mean_of_the_closed_form():
    ratio = SCALE / PRIOR_SCALE
    shift = (LOC - PRIOR_LOC) / PRIOR_SCALE
    expected = 0.5 * (ratio**2 + shift**2 - 1 - 2 * np.log(ratio)).mean(0)
    got = fast(kl_per_latent)(posteriors(), prior())
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    each = fast(jax.vmap(divergences.kl, (0, None)))(posteriors(), prior())
    np.testing.assert_allclose(got.sum(), each.mean(), rtol=1e-5)


def parts_by_quadrature(loc, scale, prior):
    """(I(x; z), KL(q(z) || p(z))) of Gaussian components over one latent, float64."""
    z = np.linspace(-15, 15, 30_001)
    q = stats.norm(loc[:, None], scale[:, None])
    log_aggregate = np.logaddexp.reduce(q.logpdf(z)) - np.log(len(loc))
    integral = lambda f: np.trapezoid(f, z, axis=-1)
    information = integral(q.pdf(z) * (q.logpdf(z) - log_aggregate)).mean()
    ratio = log_aggregate - prior.logpdf(z)
    return information, integral(np.exp(log_aggregate) * ratio)


def test_the_parts_of_two_components_are_their_integrals():
    loc, scale = np.array([-0.8, 1.1]), np.array([0.5, 1.2])
    information, divergence = parts_by_quadrature(loc, scale, stats.norm(0.3, 1.5))
    assert information < 0.8 * np.log(2)  # far from its largest value
    split = fast(split_rate, num_samples=20_000)(
        jax.random.key(0),
        normal(loc[:, None], scale[:, None]),
        normal([0.3], [1.5]),
    )
    near(split.mutual_information, information, atmost=0.005)
    near(split.aggregate_kl, divergence, atmost=0.005)
    near(split.rate, information + divergence, atmost=0.01)


def test_the_parts_of_a_gaussian_channel_are_those_of_its_gaussian_aggregate():
    """z = a x + s e, x ~ N(0, 1): I = log(1 + a^2 / s^2) / 2, z ~ N(0, a^2 + s^2)."""
    a, s, n = np.array([0.9, 0.4]), np.array([0.5, 0.7]), 900
    # Equally likely places of N(0, 1), 30 x 30, so that q(z) is near its limit.
    line = stats.norm.ppf((np.arange(30) + 0.5) / 30)
    line /= line.std()
    x = np.stack(np.meshgrid(line, line), -1).reshape(n, 2)
    split = fast(split_rate, num_samples=10)(
        jax.random.key(1), normal(a * x, np.tile(s, (n, 1))), normal([0, 0], [1, 1])
    )
    variance = a**2 + s**2
    near(split.mutual_information, np.log(variance / s**2).sum() / 2, atmost=0.02)
    divergence = (variance - 1 - np.log(variance)).sum() / 2
    near(split.aggregate_kl, divergence, atmost=0.02)


@pytest.mark.parametrize("x64, rtol", [(False, 1e-5), (True, 1e-12)])
def test_the_parts_add_up_to_the_rate_which_is_the_mean_kl(x64, rtol):
    with jax.enable_x64(x64):
        split = fast(split_rate, num_samples=3000)(
            jax.random.key(2), posteriors(), prior()
        )
        total = split.mutual_information.value + split.aggregate_kl.value
        assert total.dtype == (jnp.float64 if x64 else jnp.float32)
        np.testing.assert_allclose(total, split.rate.value, rtol=rtol)
        near(split.rate, fast(kl_per_latent)(posteriors(), prior()).sum(), atmost=0.05)


def test_each_part_alone_is_that_of_the_split_and_chunks_change_nothing():
    key = lambda: jax.random.key(3)
    whole, thirds, ones = ({"num_samples": 5, "chunk": chunk} for chunk in (7, 3, 1))
    split = fast(split_rate, **whole)(key(), posteriors(), prior())
    alone = fast(mutual_information, **thirds)(key(), posteriors())  # 3 + 3 + 1
    rest = fast(aggregate_kl, **ones)(key(), posteriors(), prior())
    for got, expected in (
        (alone, split.mutual_information),
        (rest, split.aggregate_kl),
    ):
        np.testing.assert_allclose(got.value, expected.value, rtol=1e-5)
        np.testing.assert_allclose(got.stderr, expected.stderr, rtol=1e-4)


def test_posteriors_far_apart_carry_log_n_and_equal_ones_nothing():
    apart = normal(1e3 * np.arange(7)[:, None] + LOC, SCALE)
    information = fast(mutual_information)(jax.random.key(4), apart)
    np.testing.assert_allclose(information.value, np.log(7), rtol=1e-6)
    same = normal(np.tile(LOC[0], (7, 1)), np.tile(SCALE[0], (7, 1)))
    split = fast(split_rate)(jax.random.key(5), same, prior())
    np.testing.assert_allclose(split.mutual_information.value, 0.0, atol=1e-6)
    aggregate = Mixture(jnp.zeros(7), posteriors())
    zero = fast(aggregate_kl)(jax.random.key(6), posteriors(), aggregate)
    np.testing.assert_allclose(zero.value, 0.0, atol=1e-6)


def test_layers_given_by_a_layer_carry_no_more_about_x_than_it_does():
    """I(x; z_1, z_2) = I(x; z_1) where z_2 depends on x through z_1 only."""
    link = lambda params, z: Normal(params * z, jnp.full_like(z, 0.3))
    chain = lambda q: Chain(q, (jnp.array(2.0),), (link,), downward=False)
    key_1, key_2 = jax.random.split(jax.random.key(7))
    information = fast(mutual_information, num_samples=400)
    both = information(key_1, jax.vmap(chain)(posteriors()))
    first = information(key_2, posteriors())
    assert both.stderr < 0.02
    assert abs(both.value - first.value) < 4 * np.hypot(both.stderr, first.stderr)


def test_the_report_has_what_the_parts_say():
    # The second latent is collapsed, the third almost.
    loc = LOC * [1.0, 0.0, 0.01]
    key = lambda: jax.random.key(8)
    report = fast(collapse_report)(key(), normal(loc, SCALE), prior())
    split = fast(split_rate)(key(), normal(loc, SCALE), prior())
    expected = {
        "active_units": 1,
        "mutual_information": split.mutual_information.value,
        "aggregate_kl": split.aggregate_kl.value,
        "kl_per_latent": fast(kl_per_latent)(normal(loc, SCALE), prior()),
    }
    assert report.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(report[name], value, rtol=1e-5, err_msg=name)


def test_the_report_counts_the_units_of_all_layers_and_takes_any_prior():
    link = lambda params, z: Normal(params * z, jnp.ones_like(z))
    up = lambda q: Chain(q, (jnp.array([1.0, 0.01, 1.0]),), (link,), downward=False)
    first = Mixture(jnp.zeros(7), posteriors())
    down = Chain(first, (jnp.array(0.5),), (link,), downward=True)
    report = fast(collapse_report)(jax.random.key(9), jax.vmap(up)(posteriors()), down)
    assert report["active_units"] == 5
    assert report.keys() == {"active_units", "mutual_information", "aggregate_kl"}
    assert all(np.isfinite(value) for value in report.values())


def test_wrong_use_is_an_error():
    key = jax.random.key(0)
    one = normal(LOC[:1], SCALE[:1])
    for q, how, message in (
        (one, {}, "examples must be at least 2, got 1"),
        (posteriors(), {"num_samples": 0}, "num_samples must be at least 1, got 0"),
        (posteriors(), {"chunk": 0}, "chunk must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            mutual_information(key, q, **how)
    with pytest.raises(ValueError, match="use `split_rate`"):
        kl_per_latent(posteriors(), Mixture(jnp.zeros(7), posteriors()))
    with pytest.raises(ValueError, match=r"posteriors \[n, d\] and a prior \[d\]"):
        kl_per_latent(prior(), prior())
