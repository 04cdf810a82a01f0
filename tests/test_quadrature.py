"""Expectations against scipy's integrals, closed-form moments and sums in numpy."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import quick_jit
from scipy import integrate, special, stats

from vi_jax import quadrature
from vi_jax.distributions import (
    Bernoulli,
    Categorical,
    FullNormal,
    Gamma,
    JointBernoulli,
    Mixture,
    Normal,
)
from vi_jax.quadrature import expectation, nodes

PRECISIONS = pytest.mark.parametrize("x64, tolerance", [(False, 1e-5), (True, 1e-12)])
LOC = np.array([0.4, -1.1])
SCALE = np.array([0.7, 1.3])
TRIL = np.array([[0.8, 0.0], [-0.5, 1.2]])
LOGITS = np.array([0.3, -1.0, 0.8, 0.1])


def array(a):
    """In the current default dtype."""
    return jnp.array(a, float)


def coins(d: int) -> np.ndarray:
    """All outcomes [2^d, d], coin 0 the fastest."""
    return np.array([z[::-1] for z in itertools.product([0.0, 1.0], repeat=d)])


def wiggle(z):
    """Neither a polynomial nor symmetric, as numpy and as jax."""
    module = jnp if isinstance(z, jax.Array) else np
    return module.exp(module.sin(z[..., 0]) + 0.3 * z[..., 0] * module.cos(z[..., -1]))


# --------------------------------------------------------------------- Gaussians


def odd_factorial(p: int) -> int:
    """p (p - 2) (p - 4) ..., which is E z^(p + 1) of a standard normal for odd p."""
    return math.prod(range(p, 0, -2))


@pytest.mark.parametrize("order", [1, 2, 3, 7, 20])
def test_a_gaussian_is_exact_up_to_degree_2_order_minus_1_and_no_further(order):
    """At degree 2 order what is missing is order!, the error of Gauss and Hermite."""
    with jax.enable_x64(True):
        q = Normal(jnp.array([0.4]), jnp.array([0.7]))
        unit, weights = nodes(q, order=order)
        unit = (np.asarray(unit[:, 0]) - 0.4) / 0.7
        moment = lambda p: float(np.asarray(weights) @ unit**p)
    assert len(unit) == order
    for p in range(2 * order):
        expected = odd_factorial(p - 1) if p % 2 == 0 else 0.0
        assert abs(moment(p) - expected) < 1e-11 * odd_factorial(p)
    missing = odd_factorial(2 * order - 1) - moment(2 * order)
    np.testing.assert_allclose(missing, math.factorial(order), rtol=1e-9)


@PRECISIONS
def test_moments_of_a_normal_are_scipys(x64, tolerance):
    """E z^p of both coordinates, and a product, which has no cross terms."""
    f = lambda z: jnp.stack([z, z**2, z**3, z**4, z * z[::-1]])
    with jax.enable_x64(x64):
        q = Normal(array(LOC), array(SCALE))
        got = quick_jit(lambda q: expectation(q, f, order=3))(q)
        assert got.dtype == (jnp.float64 if x64 else jnp.float32)
    expected = [stats.norm(LOC, SCALE).moment(p) for p in (1, 2, 3, 4)]
    expected.append([LOC.prod()] * 2)
    np.testing.assert_allclose(got, expected, rtol=tolerance)


@PRECISIONS
def test_moments_of_a_full_normal_are_wicks(x64, tolerance):
    """Mean, E z z^T, and E (z - m)_i^2 (z - m)_j^2 = C_ii C_jj + 2 C_ij^2."""
    f = lambda z: (z, jnp.outer(z, z), jnp.outer((z - LOC) ** 2, (z - LOC) ** 2))
    with jax.enable_x64(x64):
        q = FullNormal(array(LOC), array(TRIL))
        mean, second, fourth = (
            quick_jit(lambda q, i=i: expectation(q, lambda z: f(z)[i], order=3))(q)
            for i in range(3)
        )
    c = TRIL @ TRIL.T
    np.testing.assert_allclose(mean, LOC, rtol=tolerance)
    np.testing.assert_allclose(second, c + np.outer(LOC, LOC), rtol=tolerance)
    wick = np.outer(np.diag(c), np.diag(c)) + 2 * c**2
    np.testing.assert_allclose(fourth, wick, rtol=tolerance)


def test_expectations_of_no_polynomial_are_scipys_integrals():
    """In one dimension by quad, in two by a fine grid, to 1e-7 with 40 nodes."""
    density = lambda z: stats.norm(0.4, 0.7).pdf(z) * wiggle(np.array([z]))
    line = np.linspace(-14, 14, 701)
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), -1)
    p = stats.multivariate_normal(LOC, TRIL @ TRIL.T).pdf(grid)
    with jax.enable_x64(True):
        one = Normal(jnp.array([0.4]), jnp.array([0.7]))
        two = FullNormal(jnp.array(LOC), jnp.array(TRIL))
        each = quick_jit(lambda q: expectation(q, wiggle, order=40))
        got = [each(q) for q in (one, two)]
    np.testing.assert_allclose(got[0], integrate.quad(density, -7, 8)[0], rtol=1e-9)
    by_grid = np.sum(p * wiggle(grid)) * (line[1] - line[0]) ** 2
    np.testing.assert_allclose(got[1], by_grid, rtol=1e-7)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2)])
def test_a_gaussian_of_any_event_shape(shape):
    rng = np.random.default_rng(0)
    loc, scale = rng.normal(size=shape), rng.uniform(0.5, 1.5, shape)
    z, weights = nodes(Normal(array(loc), array(scale)), order=3)
    assert z.shape == (3**loc.size, *shape) and weights.shape == z.shape[:1]
    np.testing.assert_allclose(np.sum(weights), 1, rtol=1e-6)
    got = np.tensordot(weights, np.asarray(z) ** 2, 1)
    np.testing.assert_allclose(got, loc**2 + scale**2, rtol=1e-5)


# ---------------------------------------------------------------------- discrete


@PRECISIONS
def test_a_categorical_is_a_sum_over_classes(x64, tolerance):
    values = np.array([[1.0, -2.0], [0.5, 3.0], [-1.0, 0.2], [4.0, 1.5]])
    with jax.enable_x64(x64):
        q, table = Categorical(array(LOGITS)), array(values)
        got = quick_jit(lambda q: expectation(q, lambda z: table[z]))(q)
    np.testing.assert_allclose(got, special.softmax(LOGITS) @ values, rtol=tolerance)


@PRECISIONS
def test_a_joint_bernoulli_is_a_sum_over_its_table(x64, tolerance):
    """Row i of the table is the binary number i, its lowest bit coin 0."""
    with jax.enable_x64(x64):
        q = JointBernoulli(array(LOGITS))
        z, weights = quick_jit(nodes)(q)
        got = quick_jit(lambda q: expectation(q, wiggle))(q)
    np.testing.assert_array_equal(z, [[0, 0], [1, 0], [0, 1], [1, 1]])
    p = special.softmax(LOGITS)
    np.testing.assert_allclose(weights, p, rtol=tolerance)
    np.testing.assert_allclose(got, p @ wiggle(coins(2)), rtol=tolerance)


@PRECISIONS
def test_a_bernoulli_of_any_event_shape_is_a_sum_over_outcomes(x64, tolerance):
    factors = np.array([0.3, -0.7, 1.1, 0.2])
    shapes = [(), (1,), (4,), (2, 2)]

    def mean(q):
        factor = array(np.resize(factors, q.logits.shape))
        return expectation(q, lambda z: jnp.exp(jnp.sum(z * factor)))

    with jax.enable_x64(x64):
        qs = [Bernoulli(array(np.resize(LOGITS, shape))) for shape in shapes]
        got = quick_jit(lambda qs: [mean(q) for q in qs])(qs)
        events = [jax.eval_shape(nodes, q)[0].shape for q in qs]
    assert events == [(2,), (2, 1), (16, 4), (16, 2, 2)]
    for shape, value in zip(shapes, got, strict=True):
        d = math.prod(shape)
        p = special.expit(np.where(coins(d) == 1, LOGITS[:d], -LOGITS[:d]))
        expected = np.prod(p, 1) @ np.exp(coins(d) @ factors[:d])
        np.testing.assert_allclose(value, expected, rtol=tolerance)


def test_an_impossible_outcome_adds_nothing_where_f_is_infinite_or_nan():
    """Its value, and the gradients of f and of q, stay finite and right."""
    log_p = np.log([0.2, 0.5, 0.0, 0.3], where=[1, 1, 0, 1], out=np.full(4, -np.inf))
    costs = np.array([1.0, 2.0, 0.0, 4.0])
    for q in (Categorical, JointBernoulli):

        def mean(logits, costs, q=q):
            f = lambda z: jnp.log(
                costs[z if q is Categorical else z.astype(int) @ BITS]
            )
            return expectation(q(logits), f)

        got = quick_jit(jax.value_and_grad(mean, (0, 1)))(array(log_p), array(costs))
        value = 0.5 * np.log(2) + 0.3 * np.log(4)
        np.testing.assert_allclose(got[0], value, rtol=1e-6)
        terms = np.log([1.0, 2.0, 1.0, 4.0]) - value
        by_logits = np.array([0.2, 0.5, 0, 0.3]) * terms
        np.testing.assert_allclose(got[1][0], by_logits, atol=1e-6)
        np.testing.assert_allclose(got[1][1], [0.2, 0.25, 0, 0.075], rtol=1e-6)
    # Log densities at an impossible outcome, as the ELBO has them.
    q = Categorical(array(log_p))
    entropy = -expectation(q, q.log_prob)
    np.testing.assert_allclose(entropy, stats.entropy([0.2, 0.5, 0.3]), rtol=1e-6)


BITS = np.array([1, 2])


# ---------------------------------------------------------------------- mixtures


MIX = special.softmax([0.5, -0.4, 0.1])
MEANS = np.array([[0.1, 1.0], [-2.0, 0.3], [1.5, -0.7]])
SCALES = np.array([[0.5, 1.0], [1.2, 0.4], [0.8, 0.9]])
TRILS = TRIL[None] * np.array([1.0, 0.5, 1.7])[:, None, None]


@PRECISIONS
def test_a_mixture_is_the_mixture_of_its_components_expectations(x64, tolerance):
    with jax.enable_x64(x64):
        logits = array(np.log(MIX) + 3.0)
        cases = [
            (Mixture(logits, Normal(array(MEANS), array(SCALES))), SCALES**2),
            (
                Mixture(logits, FullNormal(array(MEANS), array(TRILS))),
                np.einsum("mij,mij->mi", TRILS, TRILS),
            ),
        ]
        for q, variances in cases:
            got = quick_jit(lambda q: expectation(q, lambda z: z**2, order=2))(q)
            np.testing.assert_allclose(
                got, MIX @ (variances + MEANS**2), rtol=tolerance
            )
        q = Mixture(logits, Bernoulli(array(MEANS)))
        got = quick_jit(lambda q: expectation(q, wiggle))(q)
    each = [
        np.prod(special.expit(np.where(coins(2) == 1, m, -m)), 1) @ wiggle(coins(2))
        for m in MEANS
    ]
    np.testing.assert_allclose(got, MIX @ each, rtol=tolerance)


# ------------------------------------------------------------------- derivatives


def test_an_expectation_differentiates_in_q():
    """d/d loc E z^4 = 4 loc^3 + 12 loc s^2, and likewise for s, to 1e-12."""
    with jax.enable_x64(True):
        f = lambda q: expectation(q, lambda z: z[0] ** 4, order=4)
        got = quick_jit(jax.grad(f))(Normal(jnp.array([0.4]), jnp.array([0.7])))
    by_scale = 12 * 0.4**2 * 0.7 + 12 * 0.7**3
    np.testing.assert_allclose(got.loc[0], 4 * 0.4**3 + 12 * 0.4 * 0.49, rtol=1e-12)
    np.testing.assert_allclose(got.scale[0], by_scale, rtol=1e-12)


# ------------------------------------------------------------------------ errors


def test_what_has_no_quadrature_is_an_error():
    normal = Normal(jnp.zeros(2), jnp.ones(2))
    for order in (0, -3):
        with pytest.raises(ValueError, match="at least 1"):
            nodes(normal, order=order)
    with pytest.raises(ValueError, match="no quadrature here for Gamma"):
        expectation(Gamma(jnp.ones(2), jnp.ones(2)), jnp.sum)


def test_too_many_nodes_is_an_error_that_says_what_to_do(monkeypatch):
    """Before anything is allocated: 2^784 numbers would not fit."""
    with pytest.raises(ValueError, match="lower the order"):
        nodes(Normal(jnp.zeros(784), jnp.ones(784)), order=2)
    with pytest.raises(ValueError, match="too many outcomes"):
        nodes(Bernoulli(jnp.zeros(21)))
    monkeypatch.setattr(quadrature, "MAX_NODES", 64)
    for q in (
        Normal(jnp.zeros(3), jnp.ones(3)),
        FullNormal(jnp.zeros(3), jnp.eye(3)),
    ):
        assert nodes(q, order=4)[1].shape == (64,)
        with pytest.raises(ValueError, match="lower the order"):
            nodes(q, order=5)
