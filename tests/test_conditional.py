"""Conditional models: a Model for every context, against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import quick_jit
from scipy import stats

from vi_jax import (
    bounds,
    distributions,
    estimators,
    likelihoods,
    models,
    networks,
    objectives,
    posteriors,
    priors,
)
from vi_jax.model import Model
from vi_jax.models import linear_gaussian

CLASSES, LATENTS, PIXELS = 3, 2, 5
RNG = np.random.default_rng(0)
MEANS, SHIFTS = RNG.normal(size=(CLASSES, 4)), RNG.normal(size=(CLASSES, LATENTS))
WEIGHT, NOISE = RNG.normal(size=(4, LATENTS)), 0.7
X = RNG.normal(size=4)
ONE_HOT = np.eye(CLASSES)


def exact_given(y):
    """z ~ N(shift_y, I), x ~ N(W z + mean_y, 0.7^2 I), and its exact posterior."""
    base = linear_gaussian(LATENTS)
    shift, mean = y @ jnp.array(SHIFTS, float), y @ jnp.array(MEANS, float)
    centred = lambda params: {
        "weight": params["weight"],
        "mean": mean + params["weight"] @ shift,
        "log_noise": jnp.full(4, jnp.log(NOISE)),
    }

    def posterior(params, x):
        of_noise = base.posterior(centred(params), x)
        return distributions.FullNormal(of_noise.loc + shift, of_noise.scale_tril)

    return Model(
        base.init,
        lambda params: distributions.Normal(shift, jnp.ones(LATENTS)),
        posterior,
        lambda params, z: distributions.Normal(
            params["weight"] @ z + mean, jnp.full(4, NOISE)
        ),
    )


def exact_log_px(y):
    mean = MEANS[y] + WEIGHT @ SHIFTS[y]
    covariance = WEIGHT @ WEIGHT.T + NOISE**2 * np.eye(4)
    return stats.multivariate_normal(mean, covariance).logpdf(X)


def exact_params():
    return {"weight": jnp.array(WEIGHT, float)}


@pytest.mark.parametrize("bound", [bounds.elbo, bounds.iwae])
def test_with_the_exact_posterior_every_bound_is_log_p_of_x_given_c(bound):
    """One vmap over the classes gives log p(x | y) of them all."""

    @quick_jit
    def all_classes(params, key, x):
        of = lambda y: objectives.per_example(
            exact_given(y), params, key, x, bound=bound, num_samples=3
        )[0]
        return jax.vmap(of)(jnp.array(ONE_HOT, float))

    got = all_classes(exact_params(), jax.random.key(0), jnp.array(X, float))
    expected = [exact_log_px(y) for y in range(CLASSES)]
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert np.ptp(expected) > 0.5


def test_the_loss_of_a_batch_takes_each_context_to_its_example():
    labels = np.array([2, 0, 1, 1])
    rows = X + RNG.normal(size=(4, 4))
    loss = objectives.batch_loss(
        exact_given,
        preprocess=lambda key, batch: batch["x"],
        context=lambda batch: jax.nn.one_hot(batch["label"], CLASSES),
    )
    batch = {"x": jnp.array(rows, float), "label": jnp.array(labels), "step": 0}
    value, metrics = quick_jit(loss)(exact_params(), jax.random.key(1), batch)
    covariance = WEIGHT @ WEIGHT.T + NOISE**2 * np.eye(4)
    expected = [
        stats.multivariate_normal(MEANS[y] + WEIGHT @ SHIFTS[y], covariance).logpdf(x)
        for x, y in zip(rows, labels, strict=True)
    ]
    np.testing.assert_allclose(-value, np.mean(expected), rtol=1e-5)
    np.testing.assert_allclose(metrics["elbo"], np.mean(expected), rtol=1e-5)


def small(prior=None):
    return models.conditional_vae(
        prior or posteriors.normal(networks.mlp([], 2 * LATENTS)),
        posteriors.normal(networks.mlp([4], 2 * LATENTS)),
        likelihoods.bernoulli(networks.mlp([4], PIXELS)),
    )


def test_a_prior_that_takes_no_context_is_an_error_that_names_fixed():
    with pytest.raises(ValueError, match=r"models\.fixed\(prior\)"):
        small(priors.standard_normal(LATENTS))
    small(models.fixed(priors.standard_normal(LATENTS)))


@functools.cache
def small_params():
    init = lambda key, x, c: small()(c).init(key, x)
    return quick_jit(init)(jax.random.key(2), jnp.ones(PIXELS), jnp.ones(CLASSES))


def by_hand(layers, parts, last):
    """tanh nets in float64: the first layer has a matrix for each part."""
    h = sum(
        np.asarray(layers[name]["kernel"], np.float64).T @ part
        for name, part in zip(("Dense_0", "Part_1"), parts, strict=True)
    )
    return np.asarray(layers[last]["kernel"], np.float64).T @ np.tanh(h)


def test_every_part_is_its_network_of_the_pair_and_the_context_moves_each():
    params = jax.tree.map(np.asarray, small_params())
    assert params["likelihood"]["Part_1"].keys() == {"kernel"}  # one bias for all
    x, z = RNG.integers(0, 2, PIXELS).astype(float), RNG.normal(size=LATENTS)
    seen = []
    for c in ONE_HOT:
        model = small()(jnp.array(c, float))
        logits = by_hand(params["likelihood"], (z, c), "Dense_1")
        got = model.likelihood(params, jnp.array(z, float)).logits
        np.testing.assert_allclose(got, logits, rtol=1e-5, atol=1e-6)
        loc = by_hand(params["posterior"], (x, c), "Dense_1")[:LATENTS]
        q = model.posterior(params, jnp.array(x, float))
        np.testing.assert_allclose(q.loc, loc, rtol=1e-5, atol=1e-6)
        prior = model.prior(params)
        np.testing.assert_allclose(
            prior.loc, (params["prior"]["Dense_0"]["kernel"].T @ c)[:LATENTS], rtol=1e-6
        )
        seen.append(np.concatenate([got, q.loc, prior.loc]))
    assert np.all(np.ptp(seen, axis=0) > 1e-3)


@pytest.mark.parametrize("estimator", [estimators.reparam, estimators.dreg])
def test_gradients_reach_every_part(estimator):
    model, x = small()(jnp.array(ONE_HOT[1], float)), jnp.ones(PIXELS)
    value = lambda params: objectives.per_example(
        model, params, jax.random.key(3), x, bound=bounds.iwae, estimator=estimator
    )[0]
    for path, leaf in jax.tree.leaves_with_path(
        quick_jit(jax.grad(value))(small_params())
    ):
        assert np.any(leaf != 0), path


def test_a_fixed_prior_is_the_same_for_every_context():
    given = small(models.fixed(priors.standard_normal(LATENTS)))
    for c in jnp.array(ONE_HOT, float):
        prior = given(c).prior(given(c).init(jax.random.key(4), jnp.ones(PIXELS)))
        np.testing.assert_array_equal(prior.loc, 0)
        np.testing.assert_array_equal(prior.scale, 1)


def test_under_vmap_over_classes_the_image_meets_its_matrix_once():
    """XLA's count: 10 classes of a wide image cost little more than one."""
    wide = networks.mlp([300], 2)
    x, c = jnp.ones(2000), jnp.eye(10)
    params = jax.eval_shape(wide.init, jax.random.key(0), (x, c[0]))
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), params)
    of = lambda params, x, c: jax.vmap(lambda c: wide.apply(params, (x, c)))(c)
    count = lambda c: (
        quick_jit(of).lower(params, x, c).compile().cost_analysis()["flops"]
    )
    assert count(c) < 1.1 * count(c[:1])


def test_a_context_goes_with_a_conditional_and_none_with_a_model():
    plain, c = linear_gaussian(LATENTS), jnp.ones(CLASSES)
    assert models.at_context(plain, None) is plain
    params, z = small_params(), jnp.ones(LATENTS)
    np.testing.assert_array_equal(
        models.at_context(small(), c).likelihood(params, z).logits,
        small()(c).likelihood(params, z).logits,
    )
    for model, wrong in ((plain, c), (small(), None)):
        with pytest.raises(ValueError, match="needs a context c for each example"):
            models.at_context(model, wrong)
    with pytest.raises(ValueError, match="needed is a Model.*got Component"):
        models.at_context(priors.standard_normal(LATENTS), None)
    with pytest.raises(ValueError, match="a fixed prior has no parameters.*'loc'"):
        models.fixed(priors.gaussian_mixture(3))


def test_what_is_moved_keeps_its_place_in_the_prior():
    """Each coordinate has as much of the prior below it as before."""
    params, z = small_params(), jnp.array(RNG.normal(size=LATENTS), float)
    c, to = jnp.array(ONE_HOT[0], float), jnp.array(ONE_HOT[2], float)
    there = models.moved(small(), params, z, c, to)
    below = lambda c, z: stats.norm(*prior_of(params, c)).cdf(np.asarray(z))
    np.testing.assert_allclose(below(to, there), below(c, z), rtol=1e-4)
    assert np.max(abs(there - z)) > 0.01
    back = models.moved(small(), params, there, to, c)
    np.testing.assert_allclose(back, z, rtol=1e-4)
    fixed = small(models.fixed(priors.standard_normal(LATENTS)))
    np.testing.assert_array_equal(
        models.moved(fixed, params | {"prior": {}}, z, c, to), z
    )
    mixture = priors.gaussian_mixture(2).init(jax.random.key(0), z)
    prior_is_mixture = lambda c: small()(c)._replace(
        prior=lambda params: priors.gaussian_mixture(2).apply(mixture)
    )
    with pytest.raises(ValueError, match="place of z in a Mixture is not known"):
        models.moved(prior_is_mixture, params, z, c, to)


def prior_of(params, c):
    prior = small()(c).prior(params)
    return np.asarray(prior.loc, float), np.asarray(prior.scale, float)


def test_wrong_use_is_an_error():
    how = {"preprocess": lambda key, batch: batch["x"]}
    with pytest.raises(ValueError, match="needs `context`"):
        objectives.batch_loss(small(), **how)
    with pytest.raises(ValueError, match="give a conditional one its context"):
        objectives.free_bits_loss(small(), free_bits=0.1, **how)
    plain = linear_gaussian(LATENTS)
    with pytest.raises(ValueError, match="a Model takes none"):
        objectives.batch_loss(plain, context=lambda batch: batch["c"], **how)
    wrong = models.conditional_vae(
        models.fixed(priors.standard_normal(LATENTS + 1)),
        posteriors.normal(networks.mlp([4], 2 * LATENTS)),
        likelihoods.bernoulli(networks.mlp([4], PIXELS)),
    )
    with pytest.raises(ValueError, match="the prior has shape"):
        wrong(jnp.ones(CLASSES)).init(jax.random.key(0), jnp.ones(PIXELS))
