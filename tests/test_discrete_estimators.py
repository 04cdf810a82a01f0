"""Estimators that need no path, against exact gradients: every outcome, enumerated."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import (
    EXACT,
    WRONG,
    X,
    exact_elbo,
    quick_jit,
    tree_z_scores,
    wrong_params,
)
from jax.lax import stop_gradient

from vi_jax import bounds, estimators
from vi_jax.distributions import (
    Bernoulli,
    Mixture,
    Normal,
    StraightThroughBernoulli,
    binary_states,
)
from vi_jax.model import Model, log_weight, sampled_terms
from vi_jax.models import sigmoid_belief_network
from vi_jax.objectives import batch_loss, per_example

K = 3
DRAWS = 20_000
SBN = sigmoid_belief_network(2)
PIXELS = np.array([1.0, 0.0, 1.0])


def posterior(params, x):
    """Amortised, and sharing the prior's logits, which then learn from both."""
    return Bernoulli(params["gain"] @ (2 * x - 1) + params["prior"])


def straight(params, x):
    return StraightThroughBernoulli(posterior(params, x).logits, jnp.array(0.5))


DISCRETE = Model(SBN.init, SBN.prior, posterior, SBN.likelihood)
STRAIGHT = Model(SBN.init, SBN.prior, straight, SBN.likelihood)


def params():
    """Nothing symmetric."""
    values = {
        "prior": [0.4, -0.3],
        "weight": [[1.2, -0.7], [-0.4, 0.9], [0.5, 1.6]],
        "bias": [-0.2, 0.3, -0.6],
        "gain": [[0.5, -0.8, 0.3], [0.2, 0.6, -0.9]],
    }
    return jax.tree.map(lambda a: jnp.array(a, float), values, is_leaf=_is_list)


def _is_list(a):
    return isinstance(a, list)


BOUNDS = {
    "elbo": bounds.elbo,
    "iwae": bounds.iwae,
    "tvo": functools.partial(bounds.tvo, betas=(0.0, 0.2, 1.0)),
}


def exact_bound(p, bound, beta):
    """E bound(log w_1 .. log w_K), a sum over all 4^3 tuples of outcomes."""
    q, outcomes = posterior(p, jnp.array(PIXELS, float)), binary_states(2)
    terms = sampled_terms(DISCRETE, jnp.array(PIXELS, float))(p, q, outcomes)
    log_w = jax.vmap(lambda t: log_weight(t, beta))(terms)
    tuples = jnp.array(list(itertools.product(range(4), repeat=K)))
    chance = jnp.exp(jnp.sum(terms.log_post[tuples], 1))
    return chance @ jax.vmap(bound)(log_w[tuples])


@functools.cache
def drawn(bound, estimator, beta=1.0, model=DISCRETE):
    """(values [DRAWS], gradients of them) at params()."""

    def value(p, key):
        x = jnp.array(PIXELS, float)
        how = {"bound": BOUNDS[bound], "estimator": estimator, "beta": beta}
        return per_example(model, p, key, x, num_samples=K, **how)[0]

    keys = jax.random.split(jax.random.key(21), DRAWS)
    return quick_jit(jax.vmap(jax.value_and_grad(value), (None, 0)))(params(), keys)


def worst(bound, estimator, beta=1.0):
    truth = quick_jit(jax.grad(lambda p: exact_bound(p, BOUNDS[bound], beta)))(params())
    assert min(np.max(abs(leaf)) for leaf in jax.tree.leaves(truth)) > 0.005
    return np.max(abs(tree_z_scores(drawn(bound, estimator, beta)[1], truth)))


def with_baseline(*args, **how):
    return estimators.score(*args, baseline=-1.7, **how)


@pytest.mark.parametrize(
    "bound, beta", [("elbo", 1.0), ("iwae", 1.0), ("iwae", 0.5), ("tvo", 1.0)]
)
def test_score_and_vimco_are_unbiased_for_every_bound(bound, beta):
    """17 parameters a case, 8 cases: |z| < 4.5."""
    for estimator in (estimators.score, estimators.vimco):
        assert worst(bound, estimator, beta) < 4.5


def test_score_with_a_baseline_is_unbiased():
    assert worst("iwae", with_baseline) < 4.5


def without_the_score(bound, terms, params, q, z, *, beta):
    log_w = jax.vmap(lambda t: log_weight(t, beta))(terms(params, q, z))
    return bound(log_w)


def test_the_comparison_can_tell_a_gradient_that_lacks_the_score():
    assert worst("iwae", without_the_score) > 20


def test_vimco_and_a_baseline_lower_the_variance():
    spread = lambda estimator: np.std(drawn("iwae", estimator)[1]["gain"], axis=0)
    assert np.all(spread(with_baseline) < 0.8 * spread(estimators.score))
    assert np.all(spread(estimators.vimco) < 0.7 * spread(with_baseline))


@pytest.mark.parametrize("bound", BOUNDS)
def test_all_have_the_value_of_the_bound(bound):
    reference = drawn(bound, estimators.score)[0]
    others = [estimators.vimco]
    others += [with_baseline, estimators.wake_sleep] * (bound == "iwae")
    for estimator in others:
        np.testing.assert_allclose(drawn(bound, estimator)[0], reference, rtol=3e-7)
    value = exact_bound(params(), BOUNDS[bound], 1.0)
    assert abs(tree_z_scores(reference, value)).max() < 4


@pytest.mark.parametrize("x64, tolerance", [(False, 1e-5), (True, 1e-12)])
def test_enumeration_is_the_exact_elbo_and_its_exact_gradient(x64, tolerance):
    with jax.enable_x64(x64):
        x = jnp.array(PIXELS, float)
        for beta in (1.0, 0.5):
            value = lambda p, b=beta: per_example(
                DISCRETE,
                p,
                jax.random.key(0),
                x,
                estimator=estimators.enumeration,
                beta=b,
            )[0]
            exact = lambda p, b=beta: exact_bound(p, bounds.elbo, b)
            jax.tree.map(
                functools.partial(np.testing.assert_allclose, rtol=30 * tolerance),
                quick_jit(jax.value_and_grad(value))(params()),
                quick_jit(jax.value_and_grad(exact))(params()),
            )


@pytest.mark.parametrize("estimator", [estimators.score, estimators.vimco])
def test_they_serve_a_gaussian_posterior_too(estimator):
    """The ELBO of the linear-Gaussian bench: 15 parameters, 60,000 draws, |z| < 4.5."""
    x = jnp.array(X, float)

    def value(p, key):
        how = {"estimator": estimator, "num_samples": K}
        return per_example(WRONG, p, key, x, **how)[0]

    keys = jax.random.split(jax.random.key(5), 60_000)
    draws = quick_jit(jax.vmap(jax.grad(value), (None, 0)))(wrong_params(), keys)
    truth = quick_jit(jax.grad(lambda p: exact_elbo(WRONG, p, x, 1.0)))(wrong_params())
    assert np.max(abs(tree_z_scores(draws, truth))) < 4.5


def test_a_learned_baseline_moves_towards_the_bound_and_leaves_the_rest_unbiased():
    """Its slope is bound - baseline, and the model's gradient keeps its mean."""
    x = jnp.array(PIXELS, float)
    start = {**params(), "baseline": jnp.array([0.2, -0.1, 0.4])}
    baseline = lambda p, x: p["baseline"] @ x - 1.0

    def value(p, key):
        how = {"bound": bounds.iwae, "estimator": estimators.score, "num_samples": K}
        return per_example(DISCRETE, p, key, x, baseline=baseline, **how)[0]

    keys = jax.random.split(jax.random.key(21), DRAWS)
    values, draws = quick_jit(jax.vmap(jax.value_and_grad(value), (None, 0)))(
        start, keys
    )
    plain, plain_draws = drawn("iwae", estimators.score)
    np.testing.assert_allclose(values, plain, rtol=3e-7)
    of_baseline = draws.pop("baseline")
    signal = values - baseline(start, x)
    np.testing.assert_allclose(of_baseline, signal[:, None] * x[None], atol=1e-5)
    truth = jax.grad(lambda p: exact_bound(p, bounds.iwae, 1.0))(params())
    assert np.max(abs(tree_z_scores(draws, truth))) < 4.5
    assert np.all(np.std(draws["gain"], 0) < np.std(plain_draws["gain"], 0))


def test_a_learned_baseline_is_for_score_only():
    how = {"estimator": estimators.vimco, "baseline": lambda p, x: jnp.zeros(())}
    with pytest.raises(ValueError, match="score"):
        per_example(DISCRETE, params(), jax.random.key(0), PIXELS, num_samples=2, **how)
    loss = batch_loss(DISCRETE, preprocess=lambda key, batch: batch["x"], **how)
    batch = {"x": PIXELS[None], "step": jnp.int32(0)}
    with pytest.raises(ValueError, match="score"):
        loss(params(), jax.random.key(0), batch)


def test_wake_sleep_is_its_two_gradients():
    """For p that of the IWAE, unbiased; for q sum_i w_i dlog q(z_i), by enumeration."""
    x = jnp.array(PIXELS, float)

    def inference(p):
        """Its own objective: the mean over 4^3 tuples of normalised weights x log q."""
        q, outcomes = posterior(p, x), binary_states(2)
        terms = sampled_terms(DISCRETE, x)(p, q, outcomes)
        log_w = jax.vmap(log_weight)(terms)
        tuples = jnp.array(list(itertools.product(range(4), repeat=K)))
        chance = jnp.exp(jnp.sum(terms.log_post[tuples], 1))
        weights = jax.nn.softmax(log_w[tuples], axis=1)
        return jnp.sum(
            stop_gradient(chance[:, None] * weights) * terms.log_post[tuples]
        )

    def generative(p):
        q, outcomes = stop_gradient(posterior(p, x)), binary_states(2)
        terms = sampled_terms(DISCRETE, x)(p, q, outcomes)
        tuples = jnp.array(list(itertools.product(range(4), repeat=K)))
        chance = jnp.exp(jnp.sum(terms.log_post[tuples], 1))
        return chance @ jax.vmap(bounds.iwae)(jax.vmap(log_weight)(terms)[tuples])

    truth = jax.grad(lambda p: inference(p) + generative(p))(params())
    draws = drawn("iwae", estimators.wake_sleep)[1]
    assert np.max(abs(tree_z_scores(draws, truth))) < 4.5


def test_straight_through_has_hard_values_and_a_biased_gradient_that_points_uphill():
    """Values are the bound's; the gradient is many standard errors off, yet close."""
    values, draws = drawn("elbo", estimators.straight_through, 1.0, STRAIGHT)
    exact = exact_bound(params(), bounds.elbo, 1.0)
    assert abs(tree_z_scores(values, exact)).max() < 4
    truth = jax.grad(lambda p: exact_bound(p, bounds.elbo, 1.0))(params())
    scores = tree_z_scores({"gain": draws["gain"]}, {"gain": truth["gain"]})
    assert np.max(abs(scores)) > 6
    mean = np.asarray(draws["gain"]).mean(0)
    cosine = np.vdot(mean, truth["gain"]) / np.linalg.norm(mean)
    assert cosine / np.linalg.norm(truth["gain"]) > 0.8


def test_straight_through_samples_are_coins_of_the_stated_probability():
    """Hard, 4 standard errors of 20,000 draws; their slope is the relaxed coin's."""
    logits = jnp.array([-1.2, 0.3, 2.0])
    keys = jax.random.split(jax.random.key(9), DRAWS)
    draw = lambda l, key: StraightThroughBernoulli(l, jnp.array(0.7)).sample(key)
    z = np.asarray(jax.vmap(lambda key: draw(logits, key))(keys))
    assert set(np.unique(z)) == {0.0, 1.0}
    p = 1 / (1 + np.exp(-np.asarray(logits)))
    assert np.all(abs(z.mean(0) - p) < 4 * np.sqrt(p * (1 - p) / DRAWS))
    again = jax.random.clone(keys)
    slopes = jax.vmap(
        lambda key: jax.jvp(lambda l: draw(l, key), (logits,), (logits,))[1]
    )
    assert np.all(np.std(slopes(again), axis=0) > 0)


def piwae(groups):
    return estimators.paired(
        functools.partial(bounds.miwae, groups=groups), estimators.reparam
    )


def test_piwae_gives_p_one_bound_and_q_another():
    """Sample by sample: p as by IWAE, the encoder as by MIWAE, the value IWAE's."""
    x, key = jnp.array(X, float), jax.random.key(3)

    def both(bound, estimator):
        value = lambda p: per_example(
            WRONG,
            p,
            jax.random.clone(key),
            x,
            num_samples=6,
            bound=bound,
            estimator=estimator,
        )[0]
        return jax.value_and_grad(value)(wrong_params())

    value, got = quick_jit(lambda: both(bounds.iwae, piwae(2)))()
    iwae_value, iwae = quick_jit(lambda: both(bounds.iwae, estimators.reparam))()
    miwae = functools.partial(bounds.miwae, groups=2)
    _, miwae = quick_jit(lambda: both(miwae, estimators.reparam))()
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    assert value == iwae_value
    jax.tree.map(close, got.pop("q"), miwae.pop("q"))
    iwae.pop("q")
    jax.tree.map(close, got, iwae)
    assert any(np.max(abs(got[name] - miwae[name])) > 0.01 for name in got)


@pytest.mark.parametrize(
    "estimator, how, message",
    [
        (estimators.reparam, {}, "vimco"),
        (estimators.stl, {}, "vimco"),
        (estimators.dreg, {"num_samples": 2}, "vimco"),
        (estimators.vimco, {"num_samples": 1}, "score"),
        (estimators.enumeration, {"bound": bounds.iwae}, "vimco"),
        (estimators.wake_sleep, {"bound": bounds.elbo}, "vimco"),
        (estimators.straight_through, {}, "StraightThroughBernoulli"),
    ],
)
def test_a_pair_that_is_undefined_names_the_right_choice(estimator, how, message):
    with pytest.raises(ValueError, match=message):
        per_example(
            DISCRETE, params(), jax.random.key(0), PIXELS, estimator=estimator, **how
        )


def test_enumeration_of_gaussians_names_reparam():
    outcomes = Mixture(jnp.zeros(2), Normal(jnp.zeros((2, 1)), jnp.ones((2, 1))))
    z = jnp.zeros((1, 1))
    with pytest.raises(ValueError, match="Mixture has no finite list.*use `vimco`$"):
        estimators.enumeration(bounds.elbo, None, {}, outcomes, z)
    with pytest.raises(ValueError, match="vimco") as raised:
        estimators.reparam(bounds.elbo, None, {}, outcomes, z)
    assert "enumeration" not in str(raised.value)
    how = {"estimator": estimators.enumeration}
    with pytest.raises(ValueError, match="reparam"):
        per_example(
            EXACT, wrong_params(), jax.random.key(0), jnp.array(X, float), **how
        )
    assert Normal.pathwise
