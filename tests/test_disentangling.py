"""Objectives on the aggregate posterior: their values, gradients and optima."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import (
    EXACT,
    MEAN,
    WRONG,
    X,
    exact_params,
    quick_jit,
    wrong_params,
    z_scores,
)

from vi_jax.disentangling import (
    beta_tc_loss,
    covariance_of_latents,
    covariance_of_means,
    dip_loss,
    factor_loss,
    gaussian_kernel,
    inverse_multiquadratic_kernel,
    mmd_loss,
    mmd_squared,
    with_discriminator,
)
from vi_jax.distributions import Bernoulli, Normal
from vi_jax.evaluation import kl_split
from vi_jax.model import Model, sampled_terms
from vi_jax.objectives import batch_loss
from vi_jax.total_correlation import minibatch_stratified, minibatch_weighted
from vi_jax.types import Component

ROWS = np.stack([X, -0.5 * X, X[::-1], 2 * MEAN])
KERNEL = gaussian_kernel(1.3)


def preprocess(key, batch):
    del key
    return batch["x"]


def batch_of(rows):
    return {"x": jnp.array(rows, float), "step": jnp.int32(0)}


def run(loss, params, rows=ROWS, seed=0):
    return quick_jit(loss)(params, jax.random.key(seed), batch_of(rows))


beta_tc = functools.partial(beta_tc_loss, WRONG, preprocess=preprocess)
dip = functools.partial(dip_loss, WRONG, preprocess=preprocess)
mmd = functools.partial(mmd_loss, WRONG, preprocess=preprocess, kernel=KERNEL)

# Not linear, so that the two classes' gradients differ in more than their sign.
CURVED = Component(
    lambda key, z: {"weight": jax.random.normal(key, (2, z.size))},
    lambda params, z: (
        jnp.tanh(params["weight"] @ z) + params["weight"][:, 0] * z[0] ** 2
    ),
)
factor = functools.partial(factor_loss, WRONG, preprocess=preprocess)


def factor_params():
    weight = jnp.array([[0.4, -0.3], [-0.2, 0.5]], float)
    return {"model": wrong_params(), "discriminator": {"weight": weight}}


LOSSES = {
    "beta_tc": beta_tc(num_data=9, alpha=0.7, beta=6.0, gamma=1.6, num_samples=2),
    "dip_i": dip(covariance=covariance_of_means, lambda_offdiag=3.0, lambda_diag=10.0),
    "dip_ii": dip(
        covariance=covariance_of_latents, lambda_offdiag=3.0, lambda_diag=2.0
    ),
    "mmd": mmd(alpha=0.4, lambda_mmd=20.0, num_samples=2),
}


def slope_by_differences(f, params, direction, step=1e-5):
    move = lambda t: jax.tree.map(lambda p, v: p + t * v, params, direction)
    return (f(move(step)) - f(move(-step))) / (2 * step)


def random_direction(params):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: jnp.array(rng.normal(size=p.shape), p.dtype), params)


def dot(a, b):
    products = jax.tree.map(lambda a, b: float(jnp.sum(a * b)), a, b)
    return sum(jax.tree.leaves(products))


@pytest.mark.parametrize("name", ["beta_tc", "dip_ii", "mmd"])
def test_gradients_are_finite_differences_and_metrics_add_up(name):
    with jax.enable_x64(True):
        params = wrong_params()
        f = quick_jit(
            jax.value_and_grad(
                lambda p: LOSSES[name](p, jax.random.key(0), batch_of(ROWS)),
                has_aux=True,
            )
        )
        (value, metrics), gradient = f(params)
        direction = random_direction(params)
        expected = slope_by_differences(lambda p: f(p)[0][0], params, direction)
        np.testing.assert_allclose(dot(gradient, direction), expected, rtol=1e-7)
        assert value == -metrics["bound"]
        total = metrics["rate"] + metrics["distortion"]
        np.testing.assert_allclose(total, -metrics["elbo"], rtol=1e-12)


# --------------------------------------------------------------------- beta-TC-VAE


def test_beta_tc_with_weights_of_one_is_the_elbo_with_the_same_draws():
    """The estimates of q(z) and q(z_j) cancel, whatever they are."""
    both = (minibatch_stratified, minibatch_weighted)
    losses = [
        batch_loss(WRONG, preprocess=preprocess, num_samples=3, terms=sampled_terms),
        *(beta_tc(num_data=9, beta=1.0, num_samples=3, log_weights=w) for w in both),
    ]
    with jax.enable_x64(True):
        of_key = lambda *arguments: [loss(*arguments) for loss in losses]
        with jax.debug_key_reuse(False):
            (elbo, _), *found = run(of_key, wrong_params())
        for value, metrics in found:
            np.testing.assert_allclose(value, elbo, rtol=1e-12)
            np.testing.assert_allclose(value, -metrics["elbo"], rtol=1e-12)
        (_, stratified), (_, weighted) = found
        off = weighted["total_correlation"] - stratified["total_correlation"]
        assert off > 0.1


def wrong_posteriors(rows):
    """q(z | x) of WRONG, (loc [n, 2], scale [n, 2]), by numpy."""
    q = {name: np.asarray(a, np.float64) for name, a in wrong_params()["q"].items()}
    loc = rows @ q["gain"].T + q["offset"]
    return loc, np.tile(np.exp(q["log_scale"]), (len(rows), 1))


def test_beta_tc_weighs_the_parts_and_of_all_data_they_are_exact():
    rows = np.random.default_rng(1).normal(size=(200, 3)) * 2
    loss = beta_tc(num_data=200, alpha=0.7, beta=5.0, gamma=1.5, num_samples=20)
    value, metrics = run(loss, wrong_params(), rows)
    names = ("mutual_information", "total_correlation", "dimension_wise_kl")
    parts = [float(metrics[name]) for name in names]
    expected = metrics["distortion"] + np.dot([0.7, 5.0, 1.5], parts)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(sum(parts), metrics["rate"], rtol=1e-4)
    q = Normal(*(jnp.array(a, float) for a in wrong_posteriors(rows)))
    split = quick_jit(functools.partial(kl_split, num_samples=20))(
        jax.random.key(1), q, Normal(jnp.zeros(2), jnp.ones(2))
    )
    for name, part in zip(names, parts, strict=True):
        exact = getattr(split, name)
        assert exact.stderr < 0.2 * exact.value
        assert abs(part - exact.value) < 4 * 2**0.5 * exact.stderr, name


# ---------------------------------------------------------------------- FactorVAE


def test_each_player_of_factor_vae_has_the_gradient_of_its_own_loss():
    with jax.enable_x64(True):
        loss = factor(CURVED, gamma=7.0, num_samples=2)
        f = quick_jit(
            jax.value_and_grad(
                lambda p: loss(p, jax.random.key(0), batch_of(ROWS)), has_aux=True
            )
        )
        params = factor_params()
        (value, metrics), gradient = f(params)
        own = {
            "model": lambda metrics: -metrics["bound"],
            "discriminator": lambda metrics: metrics["discriminator_loss"],
        }
        for player, own_loss in own.items():
            direction = random_direction(params[player])
            alone = lambda p, player=player, own=own_loss: own(
                f({**params, player: p})[0][1]
            )
            expected = slope_by_differences(alone, params[player], direction)
            got = dot(gradient[player], direction)
            assert abs(expected) > 1e-3
            np.testing.assert_allclose(got, expected, rtol=1e-7)
        rest = metrics["discriminator_loss"] - metrics["bound"]
        np.testing.assert_allclose(value, rest, rtol=1e-12)
        bound = metrics["elbo"] - 7 * metrics["total_correlation"]
        np.testing.assert_allclose(metrics["bound"], bound, rtol=1e-12)


# x ~ N(0, I), z | x ~ N(A x, diag(s^2)): q(z) = N(0, S), S = A A^T + diag(s^2).
MIX, NOISE = np.array([[0.9, 0.3], [1.1, -0.2]]), np.array([0.5, 0.7])
SHARED = MIX @ MIX.T + np.diag(NOISE**2)
CHANNEL = Model(
    lambda key, x: {},
    lambda params: Normal(jnp.zeros(2), jnp.ones(2)),
    lambda params, x: Normal(jnp.array(MIX, float) @ x, jnp.array(NOISE, float)),
    lambda params, z: Normal(z, jnp.ones(2)),
)


def _log_ratio(params, z):
    """Logits of scale * log q(z) / (q(z_1) q(z_2)) + offset, the best one at (1, 0)."""
    inverse = np.linalg.inv(SHARED) - np.diag(1 / np.diag(SHARED))
    log_det = np.linalg.slogdet(SHARED)[1] - np.log(np.diag(SHARED)).sum()
    ratio = -0.5 * (z @ jnp.array(inverse, float) @ z + log_det)
    return jnp.stack(
        [params["scale"] * ratio + params["offset"], jnp.zeros_like(ratio)]
    )


@functools.cache
def channel_draws():
    """(gradient, metrics) of 40 batches of 2000, at the best discriminator and off."""
    drawn = lambda key, batch: jax.random.normal(key, (2000, 2))
    best = Component(lambda key, z: {}, _log_ratio)
    loss = factor_loss(CHANNEL, best, preprocess=drawn, gamma=3.0)

    def of_batch(key, at):
        params = {"model": {}, "discriminator": at}
        return jax.grad(loss, has_aux=True)(params, key, {"step": 0})

    at = {"scale": jnp.array([1.0, 0.6]), "offset": jnp.array([0.0, 0.2])}
    keys = jax.random.split(jax.random.key(0), (2, 40))
    over_keys = jax.vmap(of_batch, in_axes=(0, None))
    return quick_jit(jax.vmap(over_keys))(keys, at)


def test_the_best_discriminator_gives_the_total_correlation_of_gaussians():
    correlation = SHARED[0, 1] ** 2 / np.prod(np.diag(SHARED))
    exact = -0.5 * np.log1p(-correlation)
    got = channel_draws()[1]["total_correlation"][0]
    assert exact > 0.25 and np.std(got) / 40**0.5 < 0.005
    assert abs(z_scores(got, exact)) < 4


def test_the_density_ratio_is_where_the_discriminator_stops_learning():
    """z of q(z) is class 0; permuted draws are draws of the product of marginals."""
    slopes = channel_draws()[0]["discriminator"]
    for name in ("scale", "offset"):
        at_best, off = z_scores(np.asarray(slopes[name]).T)
        assert abs(at_best) < 4 and abs(off) > 10, name
    losses = channel_draws()[1]["discriminator_loss"].mean(1)
    assert losses[0] < losses[1] < np.log(2)


def test_a_discriminator_that_sees_nothing_changes_nothing():
    blind = Component(lambda key, z: {}, lambda params, z: jnp.array([0.7, 0.7]))
    loss = factor_loss(WRONG, blind, preprocess=preprocess, gamma=50.0)
    params = {"model": wrong_params(), "discriminator": {}}
    value, metrics = run(loss, params)
    assert metrics["total_correlation"] == 0
    np.testing.assert_allclose(metrics["discriminator_loss"], np.log(2), rtol=1e-6)
    np.testing.assert_allclose(metrics["bound"], metrics["elbo"], rtol=1e-6)
    np.testing.assert_allclose(value, np.log(2) - metrics["elbo"], rtol=1e-6)


def test_a_model_with_a_discriminator_is_that_model():
    """Here one whose posterior is no diagonal Gaussian, as FactorVAE may have it."""
    both = with_discriminator(EXACT, CURVED)
    loss = factor_loss(EXACT, CURVED, preprocess=preprocess, gamma=0.0)

    def both_ways(key, batch):
        key_init, key = jax.random.split(key)
        params = both.init(key_init, batch["x"][0])
        means = lambda model, params: (
            model.posterior(params, batch["x"][0]).mean(),
            model.likelihood(params, batch["x"][0, :2]).mean(),
            model.prior(params).mean(),
        )
        found = loss(params, key, batch)
        return means(both, params), means(EXACT, params["model"]), found

    got, expected, (_, metrics) = quick_jit(both_ways)(
        jax.random.key(3), batch_of(ROWS)
    )
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert abs(metrics["total_correlation"]) > 1e-4
    np.testing.assert_allclose(metrics["bound"], metrics["elbo"], rtol=1e-5)


# ------------------------------------------------------------------------ DIP-VAE


@pytest.mark.parametrize("name, kind, diag", [("i", 0.0, 10.0), ("ii", 1.0, 2.0)])
def test_the_penalty_of_dip_is_that_of_the_covariance_by_numpy(name, kind, diag):
    value, metrics = run(LOSSES[f"dip_{name}"], wrong_params())
    means, scales = wrong_posteriors(ROWS)
    c = np.cov(means.T) + kind * np.diag((scales**2).mean(0))
    off = 2 * c[0, 1] ** 2
    expected = 3.0 * off + diag * ((np.diag(c) - 1) ** 2).sum()
    np.testing.assert_allclose(metrics["covariance_penalty"], expected, rtol=1e-5)
    np.testing.assert_allclose(value, expected - metrics["elbo"], rtol=1e-5)


def test_the_covariance_of_one_latent_is_its_variance():
    q = Normal(jnp.array([[1.0], [2.0], [6.0]]), jnp.array([[1.0], [2.0], [3.0]]))
    np.testing.assert_allclose(covariance_of_means(q), [[7.0]], rtol=1e-6)
    np.testing.assert_allclose(covariance_of_latents(q), [[7 + 14 / 3]], rtol=1e-6)


# ------------------------------------------------------------------------ MMD-VAE


def mean_kernel(loc, scale, other_loc, other_scale, bandwidth=1.3):
    """E exp(-|a - b|^2 / (2 h^2)) of diagonal Gaussians a and b: Gaussian integrals."""
    variance = bandwidth**2 + scale**2 + other_scale**2
    each = np.exp(-0.5 * (loc - other_loc) ** 2 / variance) / np.sqrt(variance)
    return (bandwidth * each).prod(-1)


def test_mmd_is_unbiased_for_the_closed_form_of_gaussians():
    a = np.array([0.4, -0.2]), np.array([0.8, 1.2])
    b = np.array([-0.3, 0.3]), np.array([1.1, 0.7])
    exact = mean_kernel(*a, *a) + mean_kernel(*b, *b) - 2 * mean_kernel(*a, *b)
    rng = np.random.default_rng(2)
    draw = lambda law, n: jnp.array(rng.normal(*law, (1000, n, 2)), float)
    of_draws = quick_jit(jax.vmap(functools.partial(mmd_squared, KERNEL)))
    apart, same = of_draws(draw(a, 12), draw(b, 9)), of_draws(draw(a, 12), draw(a, 9))
    assert exact > 10 * np.std(apart) / 1000**0.5
    assert abs(z_scores(apart, exact)) < 4
    assert abs(z_scores(same)) < 4
    assert 0.3 < np.mean(np.asarray(same) < 0) < 0.8


def test_kernels_at_known_points():
    a, b = jnp.array([1.0, 2.0]), jnp.array([4.0, -2.0])  # 5 apart
    np.testing.assert_allclose(gaussian_kernel(5.0)(a, b), np.exp(-0.5), rtol=1e-6)
    inverse = inverse_multiquadratic_kernel
    np.testing.assert_allclose(inverse(5.0)(a, b), 0.5, rtol=1e-6)
    np.testing.assert_allclose(inverse(10.0)(a, b), 0.8, rtol=1e-6)
    assert gaussian_kernel(5.0)(a, a) == inverse(5.0)(a, a) == 1


def test_the_mmd_of_a_batch_is_that_of_its_posteriors_and_the_prior():
    loss = mmd(alpha=0.4, lambda_mmd=20.0, num_samples=2)
    keys = jax.random.split(jax.random.key(4), 600)
    of_key = lambda key: loss(wrong_params(), key, batch_of(ROWS))
    value, metrics = quick_jit(jax.vmap(of_key))(keys)
    expected = metrics["distortion"] + 0.6 * metrics["rate"]
    expected += 19.4 * metrics["mmd_squared"]
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    loc, scale = wrong_posteriors(ROWS)
    pairs = mean_kernel(loc[:, None], scale[:, None], loc, scale)
    different = pairs[~np.eye(len(ROWS), dtype=bool)].mean()
    of_prior = mean_kernel(0.0, np.ones(2), 0.0, np.ones(2))
    between = mean_kernel(loc, scale, 0.0, np.ones(2)).mean()
    exact = different + of_prior - 2 * between
    assert np.std(metrics["mmd_squared"]) / 600**0.5 < 0.01
    assert abs(z_scores(metrics["mmd_squared"], exact)) < 4


# --------------------------------------------------------------------- wrong use


def trace(loss, params, rows=ROWS):
    jax.eval_shape(loss, params, jax.random.key(0), batch_of(rows))


def test_a_posterior_of_another_kind_is_an_error():
    for loss in (
        beta_tc_loss(EXACT, preprocess=preprocess, num_data=9),
        dip_loss(
            EXACT,
            preprocess=preprocess,
            covariance=covariance_of_means,
            lambda_offdiag=1.0,
            lambda_diag=1.0,
        ),
    ):
        with pytest.raises(ValueError, match="diagonal Gaussians .* FullNormal"):
            trace(loss, exact_params())
    coins = Model(
        WRONG.init,
        lambda params: Bernoulli(jnp.zeros(2)),
        lambda params, x: Bernoulli(x[:2]),
        WRONG.likelihood,
    )
    loss = mmd_loss(
        coins, preprocess=preprocess, kernel=KERNEL, alpha=0.0, lambda_mmd=2.0
    )
    with pytest.raises(ValueError, match="Bernoulli carry no gradient"):
        trace(loss, wrong_params())


def test_a_batch_of_one_and_one_above_the_data_are_errors():
    for name, loss in LOSSES.items():
        with pytest.raises(ValueError, match="batch of at least 2 examples"):
            trace(loss, wrong_params(), ROWS[:1])
            pytest.fail(name)
    with pytest.raises(ValueError, match="batch of at least 2 examples"):
        loss = factor(CURVED, gamma=1.0)
        trace(loss, factor_params(), ROWS[:1])
    with pytest.raises(ValueError, match="got 4 and 3"):
        trace(beta_tc(num_data=3), wrong_params())


def test_weights_and_shapes_are_checked_at_the_door():
    for wrong in ({"alpha": -0.1}, {"beta": np.inf}, {"gamma": np.nan}):
        with pytest.raises(ValueError, match=f"{list(wrong)[0]} must be"):
            beta_tc(num_data=9, **wrong)
    with pytest.raises(ValueError, match="gamma must be"):
        factor(CURVED, gamma=-1.0)
    with pytest.raises(ValueError, match="lambda_diag must be"):
        dip(covariance=covariance_of_means, lambda_offdiag=1.0, lambda_diag=-1.0)
    for wrong in ((1.1, 5.0), (0.3, 0.6)):
        with pytest.raises(ValueError, match="alpha"):
            mmd(alpha=wrong[0], lambda_mmd=wrong[1])
    for kernel in (gaussian_kernel, inverse_multiquadratic_kernel):
        with pytest.raises(ValueError, match="must be positive"):
            kernel(0.0)
    with pytest.raises(ValueError, match="2 draws of each law, got 3 and 1"):
        mmd_squared(KERNEL, jnp.ones((3, 2)), jnp.ones((1, 2)))
    with pytest.raises(ValueError, match="num_samples"):
        beta_tc(num_data=9, num_samples=0)
    three = Component(lambda key, z: {}, lambda params, z: jnp.zeros(3))
    loss = factor(three, gamma=1.0)
    with pytest.raises(ValueError, match=r"gives \[3\]: needed are 2 logits"):
        trace(loss, factor_params())
