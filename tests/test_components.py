"""Priors, posteriors, likelihoods, networks, and the model built from them."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import quick_jit, tree_z_scores
from flax import linen
from scipy import special, stats

from vi_jax import (
    estimators,
    likelihoods,
    models,
    networks,
    objectives,
    posteriors,
    priors,
)
from vi_jax.distributions import Normal
from vi_jax.divergences import kl
from vi_jax.math import soft_bound
from vi_jax.types import Component

PIXELS, LATENTS = 6, 3


def small_vae(network=None, hidden=(5,)):
    """A VAE of six binary pixels and three latents."""
    network = network or networks.mlp(hidden, 2 * LATENTS)
    return models.vae(
        priors.standard_normal(LATENTS),
        posteriors.normal(network),
        likelihoods.bernoulli(networks.mlp(hidden, PIXELS)),
    )


def test_standard_normal_prior_is_scipys():
    prior = priors.standard_normal(LATENTS)
    params = quick_jit(prior.init)(jax.random.key(0), jnp.zeros(LATENTS))
    z = np.array([0.3, -1.0, 2.0])
    got = prior.apply(params).log_prob(jnp.array(z, float))
    np.testing.assert_allclose(got, stats.norm.logpdf(z).sum(), rtol=1e-6)
    assert jax.tree.leaves(params) == []


def test_mixture_prior_starts_with_different_components_of_equal_weight():
    prior = priors.gaussian_mixture(4)
    params = quick_jit(prior.init)(jax.random.key(0), jnp.zeros(LATENTS))
    loc = np.asarray(params["loc"], np.float64)
    assert loc.shape == (4, LATENTS) and len(np.unique(loc)) == 12
    z = np.array([0.3, -1.0, 2.0])
    each = stats.norm(loc, 1).logpdf(z).sum(-1)
    got = prior.apply(params).log_prob(jnp.array(z, float))
    np.testing.assert_allclose(got, special.logsumexp(each) - np.log(4), rtol=1e-6)
    narrow = {**params, "log_scale": params["log_scale"] - 0.7}
    each = stats.norm(loc, np.exp(-0.7)).logpdf(z).sum(-1)
    got = prior.apply(narrow).log_prob(jnp.array(z, float))
    np.testing.assert_allclose(got, special.logsumexp(each) - np.log(4), rtol=1e-5)


def test_mixture_prior_learns_through_every_parameter():
    prior = priors.gaussian_mixture(4)
    params = quick_jit(prior.init)(jax.random.key(0), jnp.zeros(LATENTS))
    log_prob = lambda params: prior.apply(params).log_prob(jnp.array([0.3, -1.0, 2.0]))
    gradient = quick_jit(jax.grad(log_prob))(params)
    assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(gradient))


def raw_posterior(h):
    """The posterior whose network returns h whatever x."""
    network = Component(lambda key, x: h, lambda params, x: params)
    return posteriors.normal(network).apply(h, jnp.zeros(PIXELS))


def test_a_posterior_of_an_odd_number_of_outputs_is_an_error():
    with pytest.raises(ValueError, match="3 outputs: it needs 2 d"):
        raw_posterior(jnp.zeros(3))


def test_posterior_is_loc_then_log_variance():
    """Near 0 the log-variance is the network's: bounded, not rescaled."""
    q = raw_posterior(jnp.array([0.5, -1.0, 0.2, -0.6]))
    np.testing.assert_allclose(q.loc, [0.5, -1.0])
    expected = np.exp(0.5 * 15 * np.tanh(np.array([0.2, -0.6]) / 15))
    np.testing.assert_allclose(q.scale, expected, rtol=1e-6)
    np.testing.assert_allclose(q.scale, np.exp([0.1, -0.3]), rtol=1e-3)


@pytest.mark.parametrize("extreme", [1e6, -1e6])
def test_posterior_stays_finite_whatever_the_network_says(extreme):
    """Sampling, log q and the KL see one q: log q at a draw is scipy's for q.scale."""
    q = raw_posterior(jnp.array([0.5, -1.0, extreme, extreme]))
    np.testing.assert_allclose(q.scale, np.exp(np.sign(extreme) * 7.5), rtol=1e-5)
    z = q.sample(jax.random.key(0))
    loc, scale = np.asarray(q.loc, np.float64), np.asarray(q.scale, np.float64)
    assert np.max(abs(z - loc) / scale) < 5
    expected = stats.norm(loc, scale).logpdf(np.asarray(z, np.float64)).sum()
    np.testing.assert_allclose(q.log_prob(z), expected, rtol=1e-3)
    ratio = 0.5 * (scale**2 + loc**2 - 1) - np.log(scale)
    rate = kl(q, Normal(jnp.zeros(2), jnp.ones(2)))
    np.testing.assert_allclose(rate, ratio.sum(), rtol=1e-5)
    both = lambda h: kl(raw_posterior(h), Normal(jnp.zeros(2), jnp.ones(2)))
    assert np.all(
        np.isfinite(quick_jit(jax.grad(both))(jnp.array([1e6, 0.0, extreme, -extreme])))
    )


def test_soft_bound_is_smooth_increasing_and_nearly_the_identity():
    a = np.linspace(-60, 60, 241)
    slope = quick_jit(jax.vmap(jax.grad(lambda a: soft_bound(a, 15.0))))(
        jnp.array(a, float)
    )
    assert np.all(slope > 0) and np.all(slope <= 1)  # a clip would have no slope
    np.testing.assert_allclose(soft_bound(jnp.float32(1.0), 15.0), 1, atol=2e-3)


def test_normal_likelihood_has_a_floor_under_its_scale():
    network = networks.mlp([4], PIXELS)
    likelihood = likelihoods.normal(network)
    z = jnp.array([0.2, -1.0, 0.4])
    params = quick_jit(likelihood.init)(jax.random.key(0), z)
    start = likelihood.apply(params, z)
    np.testing.assert_allclose(start.scale, np.full(PIXELS, 1.0), atol=2e-3)
    np.testing.assert_allclose(start.loc, network.apply(params["network"], z))
    least = likelihood.apply({**params, "raw_scale": jnp.float32(-1e4)}, z)
    np.testing.assert_allclose(least.scale, np.full(PIXELS, 1e-3), rtol=1e-6)
    assert np.isfinite(least.log_prob(least.loc))
    # The scale is shared by the pixels, and learned.
    residual = lambda s: likelihood.apply({**params, "raw_scale": s}, z).log_prob(
        start.loc + 2.0
    )
    raw = 0.5413
    expected = PIXELS * (4 / 1.001**3 - 1 / 1.001) * special.expit(raw)
    np.testing.assert_allclose(quick_jit(jax.grad(residual))(raw), expected, rtol=1e-3)


def one_hot(network, num_classes):
    """The decoder of a class, as the docstring of `posteriors.categorical` has it."""
    encode = functools.partial(jax.nn.one_hot, num_classes=num_classes)
    return Component(
        lambda key, z: network.init(key, encode(z)),
        lambda params, z: network.apply(params, encode(z)),
    )


# prior, posterior, decoder, and every z.
DISCRETE = {
    "bernoulli": (
        priors.bernoulli(2),
        posteriors.bernoulli(networks.mlp([4], 2)),
        networks.mlp([4], PIXELS),
        np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]),
    ),
    "categorical": (
        priors.categorical(4),
        posteriors.categorical(networks.mlp([4], 4)),
        one_hot(networks.mlp([4], PIXELS), 4),
        np.arange(4),
    ),
}


@pytest.mark.parametrize("kind", DISCRETE)
def test_a_vae_of_discrete_latents_has_the_elbo_of_the_sum_over_them(kind):
    """And its gradient: exact by enumeration, |z| < 4.5 by 5,000 draws of vimco."""
    prior, posterior, decoder, every_z = DISCRETE[kind]
    model = models.vae(prior, posterior, likelihoods.bernoulli(decoder))
    x = jnp.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    params = quick_jit(model.init)(jax.random.key(0), x)

    def elbo(params):
        logits = posterior.apply(params["posterior"], x).logits
        each = lambda z: decoder.apply(params["likelihood"], z)
        pixels = jax.vmap(each)(jnp.array(every_z))
        log_lik = jnp.sum(jax.nn.log_sigmoid(jnp.where(x == 1, pixels, -pixels)), 1)
        if kind == "categorical":
            log_q = jax.nn.log_softmax(logits)
        else:
            signs = jnp.array(2 * every_z - 1)
            log_q = jnp.sum(jax.nn.log_sigmoid(signs * logits[None]), 1)
        return jnp.sum(jnp.exp(log_q) * (log_lik + np.log(1 / 4) - log_q))

    def draws(estimator, num, num_samples):
        how = {"estimator": estimator, "num_samples": num_samples}
        one = lambda p, key: objectives.per_example(model, p, key, x, **how)[0]
        keys = jax.random.split(jax.random.key(1), num)
        return quick_jit(jax.vmap(jax.value_and_grad(one), (None, 0)))(params, keys)

    truth = quick_jit(jax.value_and_grad(elbo))(params)
    exact = draws(estimators.enumeration, 1, 1)
    close = lambda got, want: np.testing.assert_allclose(got[0], want, 1e-4, 1e-6)
    jax.tree.map(close, exact, truth)
    drawn = draws(estimators.vimco, 5000, 3)
    assert np.max(abs(tree_z_scores(drawn, truth))) < 4.5


Z = (0.3, -1.0, 2.0)


def fixed(h):
    """A network whose output is its parameter, h at the start, whatever z."""
    return Component(lambda key, z: jnp.asarray(h, float), lambda params, z: params)


def normal_at(h, per_dimension):
    likelihood = likelihoods.normal(fixed(h), per_dimension=per_dimension)
    return likelihood, likelihood.init(jax.random.key(0), jnp.array(Z))


@pytest.mark.parametrize("per_dimension", [False, True])
def test_the_optimal_scale_beats_all_others(per_dimension):
    """It is the root mean square over what shares it; 1% off is worse."""
    rng = np.random.default_rng(5)
    h = rng.normal(size=(2, 3))
    x = h + rng.normal(size=(50, 2, 3)) * [[0.3, 0.02, 1.0], [4.0, 0.1, 0.5]]
    likelihood, params = normal_at(h, per_dimension)
    axis = 0 if per_dimension else None
    mean_square = jnp.asarray(np.mean((x - h) ** 2, axis), float)
    fitted = likelihoods.optimal_scale(params, mean_square)
    assert jax.tree.structure(fitted) == jax.tree.structure(params)
    scale = likelihood.apply(fitted, jnp.array(Z)).scale
    rms = np.broadcast_to(np.sqrt(np.mean((x - h) ** 2, axis)), (2, 3))
    np.testing.assert_allclose(scale, rms, rtol=1e-5)

    def loss(params):
        d = likelihood.apply(params, jnp.array(Z))
        return -jnp.sum(jax.vmap(d.log_prob)(jnp.asarray(x, float)))

    nll = quick_jit(loss)
    best = nll(fitted)
    np.testing.assert_allclose(best, -stats.norm(h, rms).logpdf(x).sum(), rtol=1e-5)
    for factor in (0.99, 1.01):
        other = likelihoods.optimal_scale(params, factor**2 * mean_square)
        assert nll(other) > best + 0.01
    slope = quick_jit(jax.grad(loss))(fitted)["raw_scale"]
    np.testing.assert_allclose(slope, np.zeros(slope.shape), atol=1e-2)


def test_the_scale_per_dimension_starts_as_the_one_and_each_learns_alone():
    h = np.zeros((2, 3))
    likelihood, params = normal_at(h, per_dimension=True)
    _, shared = normal_at(h, per_dimension=False)
    assert params["raw_scale"].shape == (2, 3) and shared["raw_scale"].shape == ()
    start = likelihood.apply(params, jnp.array(Z))
    np.testing.assert_allclose(start.scale, np.full((2, 3), 1.001), rtol=1e-4)
    x = jnp.zeros((2, 3)).at[1, 2].set(9.0)
    log_prob = lambda p: likelihood.apply(p, jnp.array(Z)).log_prob(x)
    wider = quick_jit(jax.grad(log_prob))(params)["raw_scale"] > 0
    np.testing.assert_array_equal(wider, np.asarray(x) > 0)


def test_the_optimal_scale_stops_at_the_floor_and_knows_its_params():
    likelihood, params = normal_at(np.zeros(3), per_dimension=False)
    for mean_square in (0.0, 1e-12, 1e-6):
        fitted = likelihoods.optimal_scale(params, jnp.float32(mean_square))
        assert np.isfinite(fitted["raw_scale"])
        scale = likelihood.apply(fitted, jnp.array(Z)).scale
        np.testing.assert_allclose(scale, np.full(3, likelihoods.SCALE_FLOOR), 1e-5)
    huge = likelihoods.optimal_scale(params, jnp.float32(1e8))
    scale = likelihood.apply(huge, jnp.array(Z)).scale
    np.testing.assert_allclose(scale, np.full(3, 1e4), rtol=1e-6)
    with pytest.raises(ValueError, match="average over what shares a scale"):
        likelihoods.optimal_scale(params, jnp.ones(3))
    logistic = likelihoods.discretized_logistic(fixed(np.zeros(3)))
    with pytest.raises(ValueError, match="params of `likelihoods.normal`"):
        params = logistic.init(jax.random.key(0), jnp.array(Z))
        likelihoods.optimal_scale(params, jnp.float32(1.0))


def test_bernoulli_likelihood_takes_logits():
    network = networks.mlp([], 2, output_bias=jnp.array([2.0, -1.0]))
    likelihood = likelihoods.bernoulli(network)
    z = jnp.zeros(3)
    p = likelihood.apply(likelihood.init(jax.random.key(0), z), z)
    expected = special.log_expit(2.0) + special.log_expit(1.0)
    np.testing.assert_allclose(p.log_prob(jnp.array([1.0, 0.0])), expected, rtol=1e-6)


def test_bias_from_mean_is_the_clipped_logit():
    mean = np.array([0.0, 1.0, 0.3, 0.5, 5e-4])
    expected = special.logit(np.clip(mean, 1e-3, 1 - 1e-3))
    got = likelihoods.bias_from_mean(jnp.array(mean, float))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    wider = likelihoods.bias_from_mean(jnp.array(mean, float), clip=0.1)
    np.testing.assert_allclose(
        wider, special.logit(np.clip(mean, 0.1, 0.9)), rtol=1e-5, atol=1e-6
    )


def test_mlp_is_its_matrices():
    """tanh between, linear at the end, biases 0 but the last; x of any shape."""
    bias = jnp.array([0.3, -2.0])
    network = networks.mlp([4, 3], 2, output_bias=bias)
    x = np.random.default_rng(0).normal(size=(2, 3))
    params = quick_jit(network.init)(jax.random.key(0), jnp.array(x, float))
    layers = [params[f"Dense_{i}"] for i in range(3)]
    h = x.ravel()
    for layer in layers[:-1]:
        np.testing.assert_array_equal(layer["bias"], 0)
        h = np.tanh(h @ np.asarray(layer["kernel"], np.float64))
    expected = h @ np.asarray(layers[-1]["kernel"], np.float64) + bias
    got = network.apply(params, jnp.array(x, float))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    kernel = np.asarray(layers[0]["kernel"])
    assert 0.5 * (6 / 10) ** 0.5 < abs(kernel).max() < (6 / 10) ** 0.5  # Glorot


@pytest.mark.parametrize("hidden, outputs", [([0], 2), ([3], 0), ([-1], 2)])
def test_a_layer_without_units_is_an_error(hidden, outputs):
    with pytest.raises(ValueError, match="at least 1"):
        networks.mlp(hidden, outputs)


@pytest.mark.parametrize("shape", [(3,), (1, 2), ()])
def test_a_bias_that_does_not_fit_is_an_error(shape):
    with pytest.raises(ValueError, match="output_bias"):
        networks.mlp([3], 2, output_bias=jnp.zeros(shape))


def test_a_network_with_state_is_an_error():
    network = networks.from_linen(linen.BatchNorm(use_running_average=False))
    with pytest.raises(ValueError, match="batch_stats.*LayerNorm instead"):
        network.init(jax.random.key(0), jnp.zeros((2, 3)))
    noisy = networks.from_linen(linen.Dropout(0.5, deterministic=False))
    with pytest.raises(ValueError, match="Dropout draws at random.*deterministic=True"):
        noisy.init(jax.random.key(0), jnp.zeros(3))
    fine = networks.from_linen(linen.LayerNorm())
    params = fine.init(jax.random.key(0), jnp.array([1.0, 3.0]))
    np.testing.assert_allclose(fine.apply(params, jnp.array([1.0, 3.0])), [-1, 1], 1e-4)


class Watched(linen.Module):
    """A layer of x, minus its first output where `centred`; `see` sees x when run."""

    centred: bool
    see: Callable

    @linen.compact
    def __call__(self, x):
        x = jax.pure_callback(self.see, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
        h = linen.Dense(4)(linen.LayerNorm()(x))
        return h - self.param("centre", lambda key: h) if self.centred else h


@pytest.mark.parametrize("centred", [False, True])
def test_a_net_is_run_for_its_parameters_only_where_they_depend_on_x(centred):
    """Those are linen's."""
    x, seen = jnp.array([1.0, -2.0, 0.5]), []

    def see(x):
        seen.append(np.array(x))
        return x

    module = Watched(centred, see)
    ours = jax.block_until_ready(networks.from_linen(module).init(jax.random.key(3), x))
    assert len(seen) == centred and all((s == x).all() for s in seen)
    theirs = module.init(jax.random.key(3), x)["params"]
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_parts_that_do_not_fit_are_errors():
    posterior = posteriors.normal(networks.mlp([4], 2 * LATENTS))
    prior = priors.standard_normal(LATENTS)
    decoder = likelihoods.bernoulli(networks.mlp([4], PIXELS))
    other = likelihoods.bernoulli(networks.mlp([4], PIXELS + 1))
    init = lambda model, *shape: jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros(shape)
    )
    wide = models.vae(priors.standard_normal(4), posterior, decoder)
    with pytest.raises(ValueError, match=r"prior has shape \(4,\).*latents \(3,\)"):
        init(wide, PIXELS)
    with pytest.raises(ValueError, match=r"likelihood has .*\(7,\).*example \(6,\)"):
        init(models.vae(prior, posterior, other), PIXELS)
    with pytest.raises(ValueError, match="likelihood"):
        init(models.vae(prior, posterior, decoder), 2, 3)
    init(models.vae(prior, posterior, decoder), PIXELS)
    bare = networks.mlp([4], PIXELS)
    with pytest.raises(ValueError, match=r"the likelihood must make.*bernoulli\(net"):
        init(models.vae(prior, posterior, bare), PIXELS)
    with pytest.raises(ValueError, match=r"the posterior must make a distribution"):
        init(models.vae(prior, bare, decoder), PIXELS)


def test_init_draws_each_part_from_its_own_key():
    """Networks of one shape must not start equal."""
    model = models.vae(
        priors.standard_normal(3),
        posteriors.normal(networks.mlp([3], 6)),
        likelihoods.bernoulli(networks.mlp([3], 3)),
    )
    params = quick_jit(model.init)(jax.random.key(0), jnp.zeros(3))
    first = [params[p]["Dense_0"]["kernel"] for p in ("posterior", "likelihood")]
    assert first[0].shape == first[1].shape
    assert np.max(abs(first[0] - first[1])) > 0.1
    assert set(params) == {"prior", "posterior", "likelihood"}


def test_each_part_reads_its_own_parameters():
    """Zeroing the others leaves a part as it is."""
    model = small_vae()
    x, z = jnp.linspace(0.0, 1.0, PIXELS), jnp.array([0.3, -1.0, 2.0])
    params = quick_jit(model.init)(jax.random.key(0), x)
    zeros = jax.tree.map(jnp.zeros_like, params)
    only = lambda part: {**zeros, part: params[part]}
    np.testing.assert_array_equal(
        model.posterior(only("posterior"), x).loc, model.posterior(params, x).loc
    )
    np.testing.assert_array_equal(
        model.likelihood(only("likelihood"), z).logits,
        model.likelihood(params, z).logits,
    )


def test_a_batch_where_one_example_is_due_is_an_error_that_says_so():
    net = networks.mlp([5], 2)
    params = net.init(jax.random.key(0), jnp.zeros(4))
    with pytest.raises(ValueError, match=r"one example.* got \(8, 4\): use jax.vmap"):
        net.apply(params, jnp.zeros((8, 4)))


def test_one_trace_serves_every_batch_and_permuting_it_permutes_the_outputs():
    traces = []
    inner = networks.mlp([5], 2 * LATENTS)

    def counted(params, x):
        traces.append(x.shape)
        return inner.apply(params, x)

    model = small_vae(Component(inner.init, counted))
    x = jax.random.normal(jax.random.key(1), (8, PIXELS))
    params = quick_jit(model.init)(jax.random.key(0), x[0])
    traces.clear()
    posterior = quick_jit(jax.vmap(model.posterior, (None, 0)))
    q = posterior(params, x)
    order = np.array([3, 0, 7, 1, 2, 6, 5, 4])
    mixed = posterior(params, x[order])
    assert traces == [(PIXELS,)]  # once, on one example
    np.testing.assert_allclose(mixed.loc, q.loc[order], rtol=1e-5)
    np.testing.assert_allclose(mixed.scale, q.scale[order], rtol=1e-5)
    assert np.max(abs(q.loc[1:] - q.loc[:-1])) > 0.1
