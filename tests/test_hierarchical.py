"""Two stochastic layers, on a model whose posterior and p(x) are known in full."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import quick_jit, z_scores
from scipy import stats

from vi_jax import bounds, estimators, models, objectives
from vi_jax.distributions import Bernoulli, Categorical, Mixture, Normal
from vi_jax.divergences import kl_monte_carlo
from vi_jax.model import log_weight, sampled_terms
from vi_jax.models import Chain
from vi_jax.types import Component

# z_2 ~ N(0, 1), z_1 = 0.8 z_2 + 0.3 + 0.6 e, x = (1.5, -0.7) z_1 + (0.2, 0.1) + 0.5 e.
A, SHIFT, S1 = 0.8, 0.3, 0.6
B, OFFSET, S2 = np.array([1.5, -0.7]), np.array([0.2, 0.1]), 0.5
X = np.array([0.9, -0.4])


def linear():
    """N(w z + b, s^2) with all three as parameters."""
    apply = lambda p, z: Normal(p["w"] @ z + p["b"], p["s"])
    return Component(lambda key, z: {}, apply)


def model():
    standard = Component(lambda key, z: {}, lambda p: Normal(jnp.zeros(1), jnp.ones(1)))
    return models.hierarchical_vae(standard, [linear()], linear(), [linear()], linear())


def params(off=0.0):
    """The exact posterior's where off is 0."""
    var_1 = A**2 + S1**2
    precision = 1 / var_1 + B @ B / S2**2
    first = {
        "w": B[None] / S2**2 / precision,
        "b": np.array([(SHIFT / var_1 - B @ OFFSET / S2**2) / precision]),
        "s": np.array([precision**-0.5]),
    }
    up = {
        "w": np.array([[A / var_1]]) * (1 - off),
        "b": np.array([-A * SHIFT / var_1]) + off,
        "s": np.array([S1 / var_1**0.5]),
    }
    first["b"] = first["b"] + off
    down = {"w": np.array([[A]]), "b": np.array([SHIFT]), "s": np.array([S1])}
    pixels = {"w": B[:, None], "b": OFFSET, "s": np.full(2, S2)}
    found = {
        "prior": {"first": {}, "links": (down,)},
        "posterior": {"first": first, "links": (up,)},
        "likelihood": pixels,
    }
    return jax.tree.map(lambda a: jnp.asarray(a, float), found)


def log_px():
    cov = (A**2 + S1**2) * np.outer(B, B) + S2**2 * np.eye(2)
    return stats.multivariate_normal(SHIFT * B + OFFSET, cov).logpdf(X)


@pytest.mark.parametrize("x64, tolerance", [(False, 1e-5), (True, 1e-10)])
def test_with_the_exact_posterior_every_weight_is_px(x64, tolerance):
    with jax.enable_x64(x64):
        q = model().posterior(params(), jnp.asarray(X, float))
        z = jax.vmap(q.sample)(jax.random.split(jax.random.key(0), 5))
        terms = sampled_terms(model(), jnp.asarray(X, float))(params(), q, z)
        np.testing.assert_allclose(
            jax.vmap(log_weight)(terms), np.full(5, log_px()), rtol=tolerance
        )


def test_the_density_comes_layer_by_layer_in_one_order():
    z = (jnp.array([0.4]), jnp.array([-1.1]))
    prior = model().prior(params()).log_prob(z)
    expected = [stats.norm(A * -1.1 + SHIFT, S1).logpdf(0.4), stats.norm.logpdf(-1.1)]
    np.testing.assert_allclose(prior, expected, rtol=1e-5)
    posterior = params(0.2)["posterior"]
    first, up = posterior["first"], posterior["links"][0]
    loc = float(first["w"][0] @ X + first["b"][0])
    expected = [
        stats.norm(loc, float(first["s"][0])).logpdf(0.4),
        stats.norm(float(up["w"][0, 0] * 0.4 + up["b"][0]), float(up["s"][0])).logpdf(
            -1.1
        ),
    ]
    got = model().posterior(params(0.2), jnp.asarray(X, jnp.float32)).log_prob(z)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_samples_of_the_prior_have_its_moments():
    """40,000 draws, |z| < 4.5, of means, variances and the covariance of the layers."""
    draw = quick_jit(jax.vmap(model().prior(params()).sample))
    z_1, z_2 = (
        np.asarray(z, np.float64)[:, 0]
        for z in draw(jax.random.split(jax.random.key(1), 40_000))
    )
    for got, expected in (
        (z_1, SHIFT),
        (z_2, 0.0),
        (z_2**2, 1.0),
        ((z_1 - SHIFT) ** 2, A**2 + S1**2),
        ((z_1 - SHIFT) * z_2, A),
    ):
        assert abs(z_scores(got, expected)) < 4.5


def test_the_mean_walks_through_the_means():
    z_1, z_2 = model().prior(params()).mean()
    np.testing.assert_allclose([z_1[0], z_2[0]], [SHIFT, 0.0], atol=1e-6)


@functools.cache
def drawn_gradients(estimator, bound):
    def one(key):
        value = lambda p: objectives.per_example(
            model(),
            p,
            key,
            jnp.asarray(X, jnp.float32),
            bound=bound,
            estimator=estimator,
            num_samples=3,
        )[0]
        return jax.flatten_util.ravel_pytree(jax.grad(value)(params(0.3)))[0]

    keys = jax.random.split(jax.random.key(2), 40_000)
    return np.asarray(quick_jit(jax.vmap(one))(keys), np.float64)


@pytest.mark.parametrize("bound", [bounds.elbo, bounds.iwae])
def test_dreg_is_unbiased_through_both_layers(bound):
    """40,000 paired draws of every parameter's gradient, |z| < 4.5."""
    difference = drawn_gradients(estimators.dreg, bound) - drawn_gradients(
        estimators.reparam, bound
    )
    # The likelihood's parameters have the same gradient in both, but for rounding.
    spread = difference.std(0)
    varies = spread > 1e-4
    assert varies.sum() >= 5
    assert np.all(abs(z_scores(difference[:, varies], 0.0)) < 4.5)
    assert np.all(abs(difference[:, ~varies].mean(0)) < 1e-4)


def test_without_links_it_is_a_vae():
    standard = Component(lambda key, z: {}, lambda p: Normal(jnp.zeros(1), jnp.ones(1)))
    plain = models.vae(standard, linear(), linear())
    chain = models.hierarchical_vae(standard, [], linear(), [], linear())
    p = params(0.3)
    bare = {**p, "prior": {}, "posterior": p["posterior"]["first"]}
    wrapped = {
        **p,
        "prior": {"first": {}, "links": ()},
        "posterior": {"first": p["posterior"]["first"], "links": ()},
    }
    x, z = jnp.asarray(X, jnp.float32), jnp.array([[0.3], [-0.2]])
    of_plain = sampled_terms(plain, x)(bare, plain.posterior(bare, x), z)
    of_chain = sampled_terms(chain, x)(wrapped, chain.posterior(wrapped, x), (z,))
    weigh = jax.vmap(log_weight)
    np.testing.assert_allclose(weigh(of_plain), weigh(of_chain), rtol=1e-6)


def two_layers(shift):
    first = Normal(jnp.full(1, shift), jnp.ones(1))
    link = lambda p, z: Normal(0.8 * z + shift, jnp.ones(1))
    return Chain(first, ({},), (link,), True)


def test_monte_carlo_and_mixtures_sum_over_the_layers():
    q, p = two_layers(0.0), two_layers(1.0)
    found = kl_monte_carlo(jax.random.key(0), q, p, num_samples=20_000)
    # z_2 is off by 1, and z_1 given it by 1 too: half of the squares.
    assert abs(found.value - 1.0) < 4.5 * found.stderr
    both = jax.tree.map(lambda *a: jnp.stack(a), q, q)
    z = (jnp.array([0.3]), jnp.array([-0.7]))
    of_two = Mixture(jnp.zeros(2), both).log_prob(z)
    np.testing.assert_allclose(of_two, jnp.sum(q.log_prob(z)), rtol=1e-6)


def test_a_layer_of_classes_is_a_layer():
    """The exact log p(x) of two layers of classes, by enumeration."""
    rng = np.random.default_rng(0)
    table = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    given = lambda rows: Component(
        lambda key, z: {"rows": rows}, lambda p, z: Categorical(p["rows"][z])
    )
    prior, down, up, pixels = table(3), table(3, 2), table(2, 3), table(2, 4)
    first = Component(lambda key, z: {}, lambda p: Categorical(prior))
    of_x = Component(lambda key, x: {}, lambda p, x: Categorical(jnp.zeros(2)))
    links = [given(down)], of_x, [given(up)]
    chain = models.hierarchical_vae(first, *links, given(pixels))
    x = jnp.array(2)
    params = chain.init(jax.random.key(0), x)
    q = chain.posterior(params, x)
    assert not q.pathwise
    share = functools.partial(jax.nn.softmax, axis=-1)
    expected = np.log(share(prior) @ share(down) @ share(pixels)[:, 2])
    every = [(jnp.array(i), jnp.array(j)) for i in range(2) for j in range(3)]
    weigh = lambda z: np.exp(
        chain.likelihood(params, z).log_prob(x) + sum(chain.prior(params).log_prob(z))
    )
    np.testing.assert_allclose(np.log(sum(map(weigh, every))), expected, rtol=1e-5)


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_free_bits_are_a_floor_under_the_rate_of_each_layer(beta):
    """From the rates of layers whose sum is the rate, and what they then must give."""
    floors = (0.0, 0.4, 100.0)
    value, metrics = zip(*(free_bits(f, beta) for f in floors), strict=True)
    rate, distortion = metrics[0]["rate"], metrics[0]["distortion"]
    penalty = [(v - distortion) / beta for v in value]
    np.testing.assert_allclose(penalty[0], rate, rtol=1e-5)
    np.testing.assert_allclose(penalty[2], 2 * 100.0, rtol=1e-5)
    rates = layer_rates()
    assert rates.min() < 0.4 < rates.max()
    np.testing.assert_allclose(penalty[1], np.maximum(rates, 0.4).sum(), atol=0.04)


def free_bits(floor, beta):
    """The loss of many draws of one x, with its metrics."""
    how = {"preprocess": lambda key, batch: batch["x"], "num_samples": 2000}
    loss = objectives.free_bits_loss(
        model(), free_bits=floor, beta=lambda step: beta, **how
    )
    batch = {"x": jnp.asarray(X, float)[None], "step": jnp.int32(0)}
    return quick_jit(loss)(params(off=0.2), jax.random.key(0), batch)


def layer_rates():
    """KL(q(z_l | ...) || p(z_l | ...)) in float64: of Gaussians, averaged over z."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params(off=0.2))
    q, prior = p["posterior"], p["prior"]
    rng = np.random.default_rng(0)
    z_1 = q["first"]["w"] @ X + q["first"]["b"]
    z_1 = z_1 + q["first"]["s"] * rng.normal(size=200_000)
    up, down = q["links"][0], prior["links"][0]
    loc_2 = up["w"][0] * z_1 + up["b"]
    z_2 = loc_2 + up["s"] * rng.normal(size=z_1.shape)
    log = lambda z, loc, s: stats.norm(loc, s).logpdf(z)
    first = log(z_1, *(q["first"]["w"] @ X + q["first"]["b"], q["first"]["s"]))
    of_1 = first - log(z_1, down["w"][0] * z_2 + down["b"], down["s"])
    of_2 = log(z_2, loc_2, up["s"]) - log(z_2, 0.0, 1.0)
    return np.array([of_1.mean(), of_2.mean()])


def test_walks_of_other_lengths_are_an_error():
    with pytest.raises(ValueError, match="1 links down and 0 up"):
        models.hierarchical_vae(linear(), [linear()], linear(), [], linear())


def test_a_chain_with_a_discrete_layer_carries_no_path():
    first = Normal(jnp.zeros(1), jnp.ones(1))
    link = lambda p, z: Bernoulli(z)
    assert Chain(first, (), (), True).pathwise
    assert not Chain(first, ({},), (link,), True).pathwise
