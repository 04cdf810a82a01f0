"""Distributions against scipy, quadrature and their own samples."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import DISTRIBUTIONS, quick_jit, z_scores
from scipy import special

from vi_jax.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Gamma,
    Mixture,
    Normal,
    StraightThroughBernoulli,
    register,
)

ROWS = pytest.mark.parametrize("name", DISTRIBUTIONS)


def some(row, num=40):
    """Indices of likely events, spread over the support."""
    likely = np.flatnonzero(row.log_prob > row.log_prob.max() - 12)
    return likely[:: max(1, len(likely) // num)]


def events(row, index):
    """The events as the library takes them: integers or floats of default width."""
    chosen = jnp.asarray(row.events[index])
    return chosen.astype(int if chosen.dtype.kind == "i" else float)


def statistics(row, x):
    """The statistic and its second moments of one event, [s + s^2]."""
    s = row.statistic(x)
    return jnp.concatenate([s, jnp.outer(s, s).ravel()])


def moments(row):
    """Mean and variance of `statistics`, summed over all events in float64."""
    p = row.cell * np.exp(row.log_prob)
    every = slice(None)
    s = np.asarray(
        jax.vmap(lambda x: statistics(row, x))(events(row, every)), np.float64
    )
    mean = p @ s
    return mean, p @ s**2 - mean**2


@ROWS
@pytest.mark.parametrize("x64, tolerance", [(False, 1e-5), (True, 1e-10)])
def test_log_prob_is_scipys(name, x64, tolerance):
    row = DISTRIBUTIONS[name]
    with jax.enable_x64(x64):
        index = some(row)
        got = quick_jit(jax.vmap(row.make().log_prob))(events(row, index))
        assert got.dtype == (jnp.float64 if x64 else jnp.float32)
        np.testing.assert_allclose(
            got, row.log_prob[index], rtol=tolerance, atol=tolerance
        )


@ROWS
def test_normalises(name):
    row = DISTRIBUTIONS[name]
    log_prob = quick_jit(jax.vmap(row.make().log_prob))(events(row, slice(None)))
    total = row.cell * np.exp(np.asarray(log_prob, np.float64)).sum()
    np.testing.assert_allclose(total, 1, atol=2e-6)


@ROWS
def test_sample_moments(name):
    """First and second moments of 40,000 draws, each within 4 standard errors."""
    row = DISTRIBUTIONS[name]
    keys = jax.random.split(jax.random.key(3), 40_000)
    draw = lambda key: statistics(row, row.make().sample(key))
    draws = np.asarray(quick_jit(jax.vmap(draw))(keys), np.float64)
    mean, variance = moments(row)
    error = np.sqrt(np.maximum(variance, 0) / len(draws))
    # Statistics that are constant (a product of two classes) have no error at all.
    assert np.all(abs(draws.mean(0) - mean) <= 4 * error + 1e-6)


@ROWS
def test_mean_is_the_quadrature_mean(name):
    row = DISTRIBUTIONS[name]
    mean = row.make().mean()
    np.testing.assert_allclose(mean, moments(row)[0][: mean.size], atol=1e-5)


def test_no_program_of_one_distribution_runs_for_another():
    """By the type alone: three hundred have the same fields, of the same shape."""
    made = lambda i: register(type(f"One{i}", (), {"__annotations__": {"loc": float}}))
    classes = [made(i) for i in range(300)]
    structures = [jax.tree.structure(cls(1.0)) for cls in classes]
    assert all(a != b for a, b in itertools.combinations(structures, 2))
    number = {cls: i for i, cls in enumerate(classes)}
    shape = lambda d: jnp.zeros(number[type(d)])
    found = [jax.eval_shape(shape, cls(1.0)).shape for cls in classes]
    assert found == [(i,) for i in range(300)]


@ROWS
def test_a_distribution_is_a_pytree_of_its_parameters(name):
    """It passes through jit, and a stack of two is vmapped over, as arrays are."""
    row = DISTRIBUTIONS[name]
    d = row.make()
    leaves, tree = jax.tree.flatten(d)
    again = quick_jit(lambda d: jax.tree.map(lambda a: a, d))(
        jax.tree.unflatten(tree, leaves)
    )
    assert type(again) is type(d)
    jax.tree.map(np.testing.assert_array_equal, again, d)
    # Doubling scales and logits keeps every parameter valid.
    double = jax.tree.map(lambda a: jnp.array(2 * np.asarray(a)), d)
    stack = jax.tree.map(lambda *two: jnp.array(np.stack(two)), d, double)
    x = events(row, some(row)[3 % len(some(row))])
    log_prob = lambda d: d.log_prob(x)
    got = quick_jit(jax.vmap(log_prob))(stack)
    one = quick_jit(log_prob)
    np.testing.assert_allclose(got, [one(d), one(double)], rtol=1e-5)
    assert abs(got[0] - got[1]) > 0.01


@ROWS
def test_gradient_of_log_prob_is_that_of_finite_differences(name):
    """Along a direction that moves every parameter, and the event where it is real."""
    row = DISTRIBUTIONS[name]
    with jax.enable_x64(True):
        index = some(row)
        d, x = row.make(), events(row, index[len(index) // 3])
        real = name not in ("bernoulli", "categorical", "joint_bernoulli")
        at = (d, x) if real else (d,)
        log_prob = lambda d, x=x: d.log_prob(x)
        # Triangular, as a matrix is: its upper part is not a parameter.
        lower = lambda a: np.tril(a) if np.ndim(a) == 2 else a
        direction = jax.tree.map(lambda a: lower(np.sin(3.0 * a + 1.0)), at)
        move = lambda h: jax.tree.map(lambda a, v: a + h * v, at, direction)
        along = jax.jit(lambda h: log_prob(*move(h)))
        difference = (along(1e-5) - along(-1e-5)) / 2e-5
        np.testing.assert_allclose(jax.grad(along)(0.0), difference, rtol=1e-7)
        assert abs(difference) > 0.01


@ROWS
def test_pathwise_tells_the_truth(name):
    """The mean gradient through samples is that of the expectation, or is not.

    The expectation of an uneven function is a sum over all events, differentiated;
    20,000 draws, 4.5 standard errors, at most 15 parameters a row.
    """
    row = DISTRIBUTIONS[name]
    every, d = events(row, slice(None)), row.make()

    def moment(x):
        s = row.statistic(x)
        return jnp.sin(0.7 * s + 0.3) @ (1.0 + jnp.arange(s.size))

    def expectation(d):
        p = row.cell * jnp.exp(jax.vmap(d.log_prob)(every))
        return p @ jax.vmap(moment)(every)

    truth = quick_jit(jax.grad(expectation))(d)
    keys = jax.random.split(jax.random.key(5), 20_000)
    through = jax.grad(lambda d, key: moment(d.sample(key)))
    draws = quick_jit(jax.vmap(through, (None, 0)))(d, keys)
    # The upper triangle of FullNormal's matrix is not a parameter.
    lower = lambda a: jnp.tril(a) if a.ndim >= 2 and name == "full_normal" else a
    draws, truth = jax.tree.map(lower, draws), jax.tree.map(lower, truth)
    scores = jax.tree.leaves(jax.tree.map(z_scores, draws, truth))
    worst = max(np.max(abs(score)) for score in scores)
    assert worst < 4.5 if d.pathwise else worst > 10


def test_log_prob_of_another_shape_is_an_error():
    """Broadcasting would silently sum over the wrong number of dimensions."""
    for name in ("normal", "full_normal", "bernoulli"):
        with pytest.raises(AssertionError):
            DISTRIBUTIONS[name].make().log_prob(jnp.zeros(()))


@pytest.mark.parametrize("kind", [Normal, Gamma])
def test_coordinates_of_a_wider_second_parameter_do_not_share_a_draw(kind):
    with pytest.raises((ValueError, AssertionError), match="shape"):
        kind(jnp.array(2.0), jnp.ones(3)).sample(jax.random.key(0))


@pytest.mark.parametrize("logit", [1e4, -1e4])
def test_bernoulli_is_finite_and_right_where_it_is_certain(logit):
    """0 for the certain outcome, -1e4 for the other, gradient x - sigmoid."""
    for x in (0.0, 1.0):
        right = x == (logit > 0)
        log_prob = lambda l, x=x: Bernoulli(l[None]).log_prob(jnp.array([x]))
        value, slope = quick_jit(jax.value_and_grad(log_prob))(jnp.array(logit))
        assert value == (0 if right else -1e4)
        assert slope == (0 if right else np.sign(-logit))


@pytest.mark.parametrize(
    "kind", [Bernoulli, lambda l: StraightThroughBernoulli(l, 1.0)]
)
def test_pixels_of_8_bits_are_no_coins(kind):
    """Of 255 the density would be above 1."""
    with pytest.raises(ValueError, match="uint8: binarize pixels, or divide them"):
        kind(jnp.ones(3)).log_prob(jnp.array([0, 255, 1], jnp.uint8))
    assert kind(jnp.ones(3)).log_prob(jnp.array([0, 1, 1])) < 0


def test_bernoulli_against_float64_for_grey_and_binary_pixels():
    """Logits of every size: 1e-6 relative, in the value and its gradient."""
    rng = np.random.default_rng(0)
    logits = np.float32(rng.normal(size=4000) * np.exp(rng.uniform(-6, 5, 4000)))
    logits[:20] = 0  # two kinks meet there, as in every decoder that starts at 0
    x = np.float32(np.where(rng.random(4000) < 0.5, rng.random(4000).round(), 0.3))
    l64, x64 = logits.astype(np.float64), x.astype(np.float64)
    expected = x64 * special.log_expit(l64) + (1 - x64) * special.log_expit(-l64)
    one = lambda l, x: Bernoulli(l).log_prob(x)
    value, slope = quick_jit(jax.vmap(jax.value_and_grad(one)))(logits, x)
    np.testing.assert_allclose(value, expected, rtol=3e-6, atol=1e-30)
    np.testing.assert_allclose(slope, x64 - special.expit(l64), rtol=1e-5, atol=3e-7)


def test_samples_have_the_dtype_of_their_parameters():
    with jax.enable_x64(True):
        single = Normal(jnp.zeros(2, jnp.float32), jnp.ones(2, jnp.float32))
        assert single.sample(jax.random.key(0)).dtype == jnp.float32
        double = Normal(jnp.zeros(2), jnp.ones(2))
        assert double.sample(jax.random.key(0)).dtype == jnp.float64


def test_mixture_of_any_components_is_their_weighted_sum():
    logits = np.array([0.4, -1.0])
    pixels = np.array([[0.5, -2.0, 1.0], [-0.7, 0.1, 3.0]])
    x = np.array([1.0, 0.0, 1.0])
    mixture = Mixture(jnp.array(logits, float), Bernoulli(jnp.array(pixels, float)))
    each = (x * special.log_expit(pixels) + (1 - x) * special.log_expit(-pixels)).sum(1)
    weights = special.softmax(logits)
    np.testing.assert_allclose(
        mixture.log_prob(jnp.array(x, float)), np.log(weights @ np.exp(each)), rtol=1e-6
    )
    np.testing.assert_allclose(mixture.mean(), weights @ special.expit(pixels), 1e-6)


@pytest.mark.parametrize(
    "distribution", [Beta(0.1, 0.1), Beta(2.0, 0.3), Gamma(0.05, 1.0)], ids=str
)
def test_draws_are_within_the_support(distribution):
    """In float32 many of them are rounded to its ends."""
    distribution = jax.tree.map(jnp.float32, distribution)
    draw = lambda key: distribution.sample(key)
    x = jax.vmap(draw)(jax.random.split(jax.random.key(0), 50_000))
    assert x.min() > 0 and (x.max() < 1 or isinstance(distribution, Gamma))
    assert np.isfinite(jax.vmap(distribution.log_prob)(x)).all()
    np.testing.assert_allclose(x.mean(), distribution.mean(), rtol=0.1)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int32])
@pytest.mark.parametrize("num_classes", [3, 128, 256, 300])
def test_a_class_is_what_it_is_in_any_type(kind, num_classes):
    """Also where the number of classes does not fit into it."""
    logits = np.random.default_rng(0).normal(size=num_classes).astype(np.float32)
    x = np.arange(min(num_classes, np.iinfo(kind).max + 1)).astype(kind)
    got = jax.vmap(Categorical(jnp.array(logits)).log_prob)(jnp.array(x))
    expected = special.log_softmax(logits.astype(float))[: len(x)]
    np.testing.assert_allclose(got, expected, rtol=1e-5)
