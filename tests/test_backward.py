"""The backward pass of few samples: the same value, the same mean, less work."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import WRONG, X, quick_jit, tree_z_scores, wrong_params
from scipy import optimize

from vi_jax import (
    backward,
    bounds,
    estimators,
    likelihoods,
    models,
    networks,
    objectives,
    posteriors,
    priors,
)
from vi_jax.distributions import Normal
from vi_jax.math import effective_sample_size
from vi_jax.model import Terms, analytic_terms, log_weight, sampled_terms
from vi_jax.objectives import per_example

K = 12
SHARES = {
    "uneven": np.exp(3 * np.random.default_rng(0).standard_normal(K)),
    "even": np.full(K, 0.3),
    "one of many": np.r_[1.0, np.full(K - 1, 1e-6)],
    "ties": np.repeat([5.0, 1.0, 0.01], 4),
}


def inclusion(shares, num):
    """min(1, shares / c) with c by scipy, in float64."""
    total = lambda log_c: np.sum(np.minimum(1, shares / np.exp(log_c))) - num
    log_c = optimize.brentq(total, np.log(shares.min() / 10), np.log(10 * shares.sum()))
    return np.minimum(1, shares / np.exp(log_c))


draws_of_few = quick_jit(jax.vmap(backward.draw_few, (0, None, None)), static_argnums=2)


@pytest.mark.parametrize("num", [1, 3, K - 1])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shares", SHARES)
def test_each_is_drawn_as_often_as_it_should_be(shares, dtype, num):
    """20,000 draws, 12 frequencies a case, 288 in all: |z| < 4.5."""
    shares = SHARES[shares].astype(dtype).astype(float)
    keys = jax.random.split(jax.random.key(num), 20_000)
    drawn, p = map(np.asarray, draws_of_few(keys, jnp.asarray(shares, dtype), num))
    expected = inclusion(shares, num)
    assert all(len({*row}) == num for row in drawn[:2000].tolist())
    np.testing.assert_allclose(p, expected[drawn], rtol=1e-5)
    often = np.bincount(drawn.ravel(), minlength=K) / len(drawn)
    error = np.sqrt(expected * (1 - expected) / len(drawn))
    sure = error < 1e-9
    np.testing.assert_array_equal(often[sure], 1.0)
    assert np.max(abs(often - expected)[~sure] / error[~sure], initial=0) < 4.5


BOUNDS = {
    "elbo": bounds.elbo,
    "iwae": bounds.iwae,
    "renyi": functools.partial(bounds.renyi, alpha=-1.0),
    "miwae": functools.partial(bounds.miwae, groups=3),
    # Of one's own: it falls in the samples of little weight.
    "extrapolated": lambda log_w: 2 * bounds.iwae(log_w) - bounds.elbo(log_w),
}
MIWAE = estimators.paired(BOUNDS["miwae"], estimators.dreg)


@pytest.mark.parametrize(
    "bound, estimator",
    [
        ("elbo", estimators.stl),
        ("iwae", estimators.wake_sleep),
        *[("iwae", e) for e in (estimators.score, estimators.vimco, MIWAE)],
        *[(b, estimators.reparam) for b in BOUNDS],
        *[(b, estimators.dreg) for b in BOUNDS],
    ],
)
def test_value_and_mean_of_the_gradient_are_those_of_all(bound, estimator):
    """At the same z, 10,000 draws of 3 of 12, 20 parameters a case: |z| < 4.5."""
    params, x = wrong_params(), jnp.array(X, float)
    terms = sampled_terms(WRONG, x)

    def value(params, key=None):
        few = functools.partial(backward.of_few, terms, BOUNDS[bound], beta=0.7)
        how = terms if key is None else few(key, num_backward=3)
        q = WRONG.posterior(params, x)
        z = jax.vmap(q.sample)(jax.random.split(jax.random.key(1), K))
        return estimator(BOUNDS[bound], how, params, q, z, beta=0.7)

    both = jax.value_and_grad(value)
    expected, truth = quick_jit(both)(params)
    keys = jax.random.split(jax.random.key(2), 10_000)
    values, draws = quick_jit(jax.vmap(both, (None, 0)))(params, keys)
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert min(np.max(abs(leaf)) for leaf in jax.tree.leaves(truth)) > 0.001
    assert np.max(abs(tree_z_scores(draws, truth))) < 4.5


def test_uneven_weights_need_few_samples_and_even_ones_all():
    """The variance with 5 of 50, over that with all 50, of 4,000 gradients.

    IWAE where 2 to 3 samples count; and the ELBO, of which 5 samples are just 5.
    """
    params, x = wrong_params(), jnp.array(X, float)
    params["q"]["offset"] = params["q"]["offset"] + jnp.array([2.5, -2.5])
    keys = jax.random.split(jax.random.key(4), 4_000)

    def variance(bound, num_backward):
        def value(params, key):
            how = {"num_samples": 50, "num_backward": num_backward}
            return per_example(WRONG, params, key, x, bound=bound, **how)

        grads, terms = quick_jit(jax.vmap(jax.grad(value, has_aux=True), (None, 0)))(
            params, jax.random.clone(keys)
        )
        ess_of = lambda terms: effective_sample_size(jax.vmap(log_weight)(terms))
        ess = np.mean(quick_jit(jax.vmap(ess_of))(terms))
        return sum(np.var(a, 0).sum() for a in jax.tree.leaves(grads)), ess

    of_all, ess = variance(bounds.iwae, None)
    assert 1.5 < ess < 3.5
    assert 1 < variance(bounds.iwae, 5)[0] / of_all < 1.05
    assert 8 < variance(bounds.elbo, 5)[0] / variance(bounds.elbo, None)[0] < 12


HIERARCHY = models.hierarchical_vae(
    priors.standard_normal(1),
    [posteriors.normal(networks.mlp([2], 4))],
    posteriors.normal(networks.mlp([2], 4)),
    [posteriors.normal(networks.mlp([2], 2))],
    likelihoods.normal(networks.mlp([2], 3)),
)


@pytest.mark.parametrize(
    "model, terms",
    [
        (WRONG, sampled_terms),
        (WRONG, functools.partial(sampled_terms, num_chunks=3)),
        (WRONG, analytic_terms),
        (HIERARCHY, sampled_terms),
    ],
)
def test_the_few_are_drawn_by_chance_of_their_own(model, terms):
    """Of `per_example`, at the same draws of z: 10,000 differences, |z| < 4.5."""
    x = jnp.array(X, float)
    own = model is WRONG
    params = wrong_params() if own else quick_jit(model.init)(jax.random.key(0), x)
    bound = bounds.elbo if terms is analytic_terms else bounds.iwae

    def value(params, key, num_backward):
        how = {"num_samples": K, "num_backward": num_backward, "terms": terms}
        return per_example(model, params, key, x, bound=bound, **how)[0]

    def difference(params, key):
        gradient = lambda m: jax.grad(value)(params, jax.random.clone(key), m)
        return jax.tree.map(jnp.subtract, gradient(3), gradient(None))

    keys = jax.random.split(jax.random.key(5), 10_000)
    scores = tree_z_scores(quick_jit(jax.vmap(difference, (None, 0)))(params, keys))
    assert np.max(abs(scores)) < 4.5
    assert np.sum(scores != 0) >= 10


def test_the_gradient_in_beta_is_that_of_all_samples():
    """The values are of all samples, and so is what they owe to beta."""
    x, params = jnp.array(X, float), wrong_params()

    def value(beta, num_backward):
        how = {"num_samples": K, "num_backward": num_backward, "beta": beta}
        key = jax.random.key(6)
        return per_example(WRONG, params, key, x, bound=bounds.iwae, **how)[0]

    slope = quick_jit(jax.grad(value), static_argnums=1)
    np.testing.assert_allclose(slope(0.7, 3), slope(0.7, None), rtol=1e-5)
    assert abs(slope(0.7, None)) > 0.01


def test_the_few_are_those_of_the_tempered_weights():
    """At beta = 0 one of the 3 samples counts, at beta = 1 the two others."""
    z = jnp.arange(3.0)

    def terms(params, q, z):
        first = z == 0
        log_lik = jnp.where(first, 0.0, -50.0) + params * (1 + z)
        return Terms(log_lik, jnp.where(first, -60.0, 0.0), jnp.zeros_like(z))

    def slope(key, beta):
        few = backward.of_few(terms, bounds.iwae, key, num_backward=1, beta=beta)
        of = functools.partial(estimators.reparam, bounds.iwae, few, beta=beta)
        return jax.grad(lambda params: of(params, Normal(0.0, 1.0), z))(0.0)

    slopes = quick_jit(jax.vmap(slope, (0, None)))
    keys = jax.random.split(jax.random.key(0), 200)
    np.testing.assert_allclose(slopes(keys, 0.0), 1.0, rtol=1e-5)
    assert {*np.asarray(slopes(jax.random.clone(keys), 1.0)).round(2)} == {2.0, 3.0}


def test_of_enough_samples_nothing_is_drawn():
    """num_backward >= k is the program without it, to the last bit."""
    x, key = jnp.array(X, float), jax.random.key(3)

    def program(num_backward):
        value = lambda p: per_example(
            WRONG,
            p,
            jax.random.clone(key),
            x,
            bound=bounds.iwae,
            num_samples=4,
            num_backward=num_backward,
        )[0]
        return str(jax.make_jaxpr(jax.grad(value))(wrong_params()))

    assert program(4) == program(9) == program(None) != program(3)


def test_metrics_are_those_of_all_samples():
    """And so are the draws of z: value and Terms are the same numbers."""
    x, key = jnp.array(X, float), jax.random.key(3)
    found = [
        quick_jit(
            functools.partial(
                per_example, WRONG, bound=bounds.iwae, num_samples=8, num_backward=m
            )
        )(wrong_params(), jax.random.clone(key), x)
        for m in (None, 2)
    ]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found[0], found[1]
    )
    assert found[1][1].log_lik.shape == (8,)


def test_the_backward_pass_is_of_the_few():
    """XLA's count, by which a pass of 2 of 50 costs as a forward pass of 50 and 8."""
    model = models.vae(
        priors.standard_normal(2),
        posteriors.normal(networks.mlp([3], 4)),
        likelihoods.bernoulli(networks.mlp([300], 196)),
    )
    x = jnp.ones(196)
    params = quick_jit(model.init)(jax.random.key(0), x)

    def loss(num_backward):
        return objectives.batch_loss(
            model,
            preprocess=lambda key, batch: batch["x"],
            bound=bounds.iwae,
            estimator=estimators.dreg,
            num_samples=50,
            num_backward=num_backward,
        )

    def cost(function):
        batch = {"x": x[None], "step": 0}
        run = quick_jit(function).lower(params, jax.random.key(1), batch)
        return run.compile().cost_analysis()["flops"]

    forward = cost(loss(None))
    gradient = lambda m: cost(jax.grad(loss(m), has_aux=True))
    assert 2.5 * forward < gradient(None) < 3.5 * forward
    assert forward < gradient(2) < 1.3 * forward


@pytest.mark.parametrize("closed", [False, True])
def test_impossible_samples_leave_the_gradient_as_it_is(closed):
    """log w = -inf for all but 3 of 8, of which 5 have a backward pass.

    And what the terms close over has a gradient once, as what they are given.
    """
    z = jnp.linspace(-5.0, 3.0, 8)

    def value(loc, num_backward=None):
        def terms(params, q, z):
            mode = loc if closed else params
            log_lik = jnp.where(z < 0.5, -jnp.inf, -((z - mode) ** 2))
            per_group = jnp.zeros((len(z), 2))
            return Terms(log_lik, per_group, per_group)

        if num_backward:
            few = functools.partial(backward.of_few, terms, bounds.iwae)
            terms = few(jax.random.key(0), num_backward=num_backward)
        return estimators.reparam(bounds.iwae, terms, loc, Normal(loc, 1.0), z)

    both = quick_jit(jax.value_and_grad(value), static_argnums=1)
    expected = both(0.3)
    np.testing.assert_allclose(both(0.3, 5), expected, rtol=1e-5)
    assert np.isfinite(expected).all()


def test_a_sample_without_weight_in_the_bound_may_have_some_in_another():
    """`paired` weighs by MIWAE what is drawn by IWAE, where two weights underflow.

    The two others are always among the 3 drawn, so that there are two gradients, as
    often one as the other: 2,000 draws, |z| < 4.5.
    """
    eps = jnp.array([0.0, 1.0, 10.0, 10.1])
    miwae = functools.partial(bounds.miwae, groups=2)
    pair = estimators.paired(miwae, estimators.reparam)

    def terms(params, q, z):
        return Terms(-2 * z**2, jnp.zeros_like(z), jnp.zeros_like(z))

    def value(loc, terms):
        return pair(bounds.iwae, terms, {}, Normal(loc, 1.0), loc + eps)

    def slope(key):
        return jax.grad(value)(
            0.0, backward.of_few(terms, bounds.iwae, key, num_backward=3)
        )

    truth = quick_jit(jax.grad(lambda loc: value(loc, terms)))(0.0)
    found = quick_jit(jax.vmap(slope))(jax.random.split(jax.random.key(0), 2_000))
    one, other = np.unique(np.asarray(found, np.float64).round(3))
    np.testing.assert_allclose((one + other) / 2, truth, rtol=1e-4)
    assert abs(np.mean(found > truth) - 0.5) / (0.5 / 2_000**0.5) < 4.5


def test_a_bound_that_no_sample_moves_has_no_gradient():
    """Not a nan, which the division by the shares' sum would give."""
    constant = lambda log_w: jnp.maximum(jnp.mean(log_w), 1e3)
    value = lambda p: per_example(
        WRONG,
        p,
        jax.random.key(0),
        jnp.array(X, float),
        bound=constant,
        num_samples=4,
        num_backward=2,
    )[0]
    for leaf in jax.tree.leaves(quick_jit(jax.grad(value))(wrong_params())):
        np.testing.assert_array_equal(leaf, 0.0)


@pytest.mark.parametrize(
    "how, message",
    [
        ({"num_backward": 0}, "num_backward .* must be at least 1, got 0"),
        ({"estimator": estimators.enumeration}, "`enumeration` .* leave it out"),
        ({"estimator": MIWAE}, "`paired` weigh by something else: leave it out"),
        (
            {"terms": functools.partial(sampled_terms, num_chunks=4)},
            "num_backward is 2: 2 rows do not make 4 parts",
        ),
        ({"bound": lambda log_w: log_w}, "a bound makes a scalar of the log-weights"),
    ],
)
def test_what_it_is_not_for_is_an_error(how, message):
    how = {"num_samples": 4, "num_backward": 2, **how}
    with pytest.raises(ValueError, match=message):
        per_example(WRONG, wrong_params(), jax.random.key(0), jnp.array(X), **how)
