"""Estimators: the value of the bound, an unbiased gradient, and errors elsewhere."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import (
    BOUNDS,
    ESTIMATORS,
    EXACT,
    MODELS,
    WRONG,
    X,
    exact_elbo,
    exact_log_px,
    exact_params,
    exact_posterior,
    is_valid,
    quick_jit,
    tree_z_scores,
    wrong_params,
)
from jax.lax import stop_gradient

from vi_jax import bounds, distributions, estimators
from vi_jax.distributions import Bernoulli, Categorical, FullNormal, Normal
from vi_jax.model import (
    Model,
    Terms,
    analytic_terms,
    log_weight,
    sampled_terms,
)
from vi_jax.objectives import per_example

K = 5
DRAWS = 20_000
BETAS = (0.5, 1.0, 2.0)
# Renyi(2) weighs the worst sample most: its gradients have no useful standard error.
STOCHASTIC = ("iwae", "renyi_half", "renyi_minus_1")


@pytest.mark.parametrize("x64, tolerance", [(False, 1e-5), (True, 1e-10)])
def test_exact_posterior_gives_the_exact_marginal_whatever_the_bound(x64, tolerance):
    """The master test: bound x estimator x k, against scipy's log N(x; mu, C)."""
    combinations = [
        (bound, estimator, k)
        for bound in BOUNDS
        for estimator in ESTIMATORS
        for k in (1, 2, 7)
        if is_valid(estimator, bound, k)
    ]

    def every_value(params, x):
        q, values = EXACT.posterior(params, x), []
        terms = {}
        for k in (1, 2, 7):
            z = jax.vmap(q.sample)(jax.random.split(jax.random.key(k), k))
            terms[k] = sampled_terms(EXACT, x)(params, q, z)
        for bound, estimator, k in combinations:
            apply = functools.partial(ESTIMATORS[estimator], BOUNDS[bound].bound)
            known = lambda params, q, z, k=k: terms[k]
            values.append(apply(known, params, q, jnp.zeros((k, 2))))
        return values

    with jax.enable_x64(x64):
        got = quick_jit(every_value)(exact_params(), jnp.array(X, float))
        np.testing.assert_allclose(got, exact_log_px(), rtol=tolerance, atol=tolerance)
    assert len(combinations) == 58


@pytest.mark.parametrize("bound", BOUNDS)
def test_every_estimator_has_the_value_of_the_bound(bound):
    """To the last digit, with the same key: the surrogate leaves no trace."""
    params, x, key = wrong_params(), jnp.array(X, float), jax.random.key(1)
    f = BOUNDS[bound].bound
    values = [
        per_example(
            WRONG,
            params,
            jax.random.clone(key),
            x,
            bound=f,
            estimator=e,
            num_samples=K,
            beta=0.5,
        )
        for name, e in ESTIMATORS.items()
        if is_valid(name, bound, K)
    ]
    log_w = jax.vmap(lambda t: log_weight(t, 0.5))(values[0][1])
    assert {float(value) for value, _ in values} == {float(f(log_w))}
    np.testing.assert_allclose(
        values[0][0], BOUNDS[bound].naive(np.asarray(log_w, np.float64)), rtol=1e-5
    )


def stl_without_its_guard(bound, terms, params, q, z, *, beta):
    """Biased beyond the ELBO: the power check of the tests of unbiasedness."""
    log_w = lambda t: log_weight(t, beta)
    return bound(jax.vmap(log_w)(terms(params, stop_gradient(q), z)))


def squared_weights(bound, terms, params, q, z, *, beta):
    """DReG for the IWAE as printed, right at beta = 1 only."""
    del bound
    log_w = lambda params, q, z: jax.vmap(lambda t: log_weight(t, beta))(
        terms(params, q, z)
    )
    w = stop_gradient(jax.nn.softmax(log_w(params, q, z)))
    along_params = log_w(params, stop_gradient(q), stop_gradient(z))
    along_path = log_w(stop_gradient(params), stop_gradient(q), z)
    return w @ along_params + w**2 @ along_path


@functools.cache
def drawn_gradients(model, bound, estimator, k=K):
    """Gradients by each beta, DRAWS of each parameter; the same keys for everyone."""
    model, make = MODELS[model]

    def value(params, key, beta):
        x = jnp.array(X, float)
        how = {"bound": BOUNDS[bound].bound, "estimator": estimator}
        return per_example(model, params, key, x, num_samples=k, beta=beta, **how)[0]

    keys = jax.random.split(jax.random.key(11), DRAWS)
    each = jax.vmap(jax.vmap(jax.grad(value), (None, 0, None)), (None, None, 0))
    draws = quick_jit(each)(make(), keys, jnp.array(BETAS, float))
    return {
        beta: jax.tree.map(lambda a, i=i: np.asarray(a, np.float64)[i], draws)
        for i, beta in enumerate(BETAS)
    }


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_elbo_gradient_is_that_of_the_closed_form(model, estimator):
    """3 betas x 20 parameters a case, 120 in all x 3 estimators: |z| < 4.5."""
    record, make = MODELS[model]
    draws = drawn_gradients(model, "elbo", ESTIMATORS[estimator])
    x = jnp.array(X, float)
    exact = quick_jit(jax.grad(lambda p, b: exact_elbo(record, p, x, b)))
    for beta in BETAS:
        truth = exact(make(), beta)
        assert np.max(abs(tree_z_scores(draws[beta], truth))) < 4.5
        assert min(np.max(abs(leaf)) for leaf in jax.tree.leaves(truth)) > 0.01


def paired(a, b):
    return jax.tree.map(np.subtract, a, b)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("bound", STOCHASTIC)
def test_dreg_is_unbiased_for_every_bound_and_beta(model, bound):
    """Paired with `reparam`: 3 betas x 20 parameters a case, 360 in all: |z| < 4.5."""
    reference = drawn_gradients(model, bound, estimators.reparam)
    draws = drawn_gradients(model, bound, estimators.dreg)
    for beta in BETAS:
        scores = tree_z_scores(paired(draws[beta], reference[beta]))
        assert np.max(abs(scores)) < 4.5
        assert np.sum(scores != 0) >= 10  # two estimators are compared, not one


def test_the_comparison_can_tell_a_biased_estimator():
    """STL on the IWAE, and the textbook's squared weights at beta = 1/2: |z| > 10."""
    reference = drawn_gradients("own", "iwae", estimators.reparam)
    stl = drawn_gradients("own", "iwae", stl_without_its_guard)
    assert np.max(abs(tree_z_scores(paired(stl[1.0], reference[1.0])))) > 10
    squared = drawn_gradients("own", "iwae", squared_weights)
    assert np.max(abs(tree_z_scores(paired(squared[0.5], reference[0.5])))) > 10


def minus_square(log_w):
    return -jnp.mean((log_w + 2) ** 2)


@pytest.mark.parametrize("name", ["dreg", "stl"])
def test_one_sample_of_a_bound_that_bends_is_unbiased_too(name, monkeypatch):
    """k = 1 does not make f'' 0: |z| < 4.5 against `reparam`, 60 numbers a case.

    The same by `reparam` without the score, which is right for the ELBO: |z| > 10.
    """
    monkeypatch.setitem(BOUNDS, "bent", BOUNDS["elbo"]._replace(bound=minus_square))
    drawn = lambda estimator: drawn_gradients("own", "bent", estimator, k=1)
    reference, draws = drawn(estimators.reparam), drawn(ESTIMATORS[name])
    for beta in BETAS:
        scores = tree_z_scores(paired(draws[beta], reference[beta]))
        assert np.max(abs(scores)) < 4.5
        assert np.sum(scores != 0) >= 10
    if name == "stl":
        biased = paired(drawn(stl_without_its_guard)[1.0], reference[1.0])
        assert np.max(abs(tree_z_scores(biased))) > 10


def test_dreg_has_less_variance_than_reparam_in_the_posterior():
    for bound in STOCHASTIC:
        dreg = drawn_gradients("own", bound, estimators.dreg)[1.0]["q"]["gain"]
        reparam = drawn_gradients("own", bound, estimators.reparam)[1.0]["q"]["gain"]
        assert np.all(dreg.std(0) < 0.8 * reparam.std(0))


def posterior_with_parameters() -> tuple[Model, dict]:
    """The exact posterior, written with parameters of its own."""
    gain, offset, covariance = exact_posterior()

    def posterior(params, x):
        q = params["q"]
        return FullNormal(q["gain"] @ x + q["offset"], q["scale_tril"])

    scale_tril = np.linalg.cholesky(covariance)
    q = {"gain": gain, "offset": offset, "scale_tril": scale_tril}
    params = {**exact_params(), "q": jax.tree.map(jnp.array, q)}
    return Model(EXACT.init, EXACT.prior, posterior, EXACT.likelihood), params


def test_gradient_of_the_posterior_vanishes_at_the_exact_posterior():
    """Sample by sample for stl and dreg, float64; not for reparam, nor for p."""
    cases = [("elbo", estimators.stl), *[(b, estimators.dreg) for b in BOUNDS]]
    cases.append(("iwae", estimators.reparam))

    def gradients(params, key):
        value = lambda params, bound, estimator: per_example(
            model,
            params,
            jax.random.clone(key),
            jnp.array(X, float),
            bound=BOUNDS[bound].bound,
            estimator=estimator,
            num_samples=K,
        )[0]
        return [jax.grad(value)(params, *case) for case in cases]

    with jax.enable_x64(True):
        model, params = posterior_with_parameters()
        keys = jax.random.split(jax.random.key(2), 20)
        got = quick_jit(jax.vmap(gradients, (None, 0)))(params, keys)
        largest = lambda tree: max(np.max(abs(a)) for a in jax.tree.leaves(tree))
        for gradient in got[:-1]:
            assert largest(gradient["q"]) < 1e-10
            assert largest(gradient["weight"]) > 0.1
        assert largest(got[-1]["q"]) > 0.1


def by_hand(estimator_weights, eps):
    """Gradient of WRONG's log-weights with the weights given, from the definitions.

    sum_i a_i dl_i along p's parameters + sum_i c_i (dl_i / dz_i) dz_i along q's, where
    (a, c) = estimator_weights(l).
    """
    params, x = wrong_params(), jnp.array(X, float)
    q = WRONG.posterior(params, x)

    def log_w(params, z):
        noise = jnp.exp(params["log_noise"])
        log_normal = lambda a, loc, scale: jnp.sum(
            -0.5 * ((a - loc) / scale) ** 2 - jnp.log(scale) - 0.5 * np.log(2 * np.pi)
        )
        log_lik = log_normal(x, params["weight"] @ z + params["mean"], noise)
        return log_lik + log_normal(z, 0.0, jnp.ones(2)) - log_normal(z, q.loc, q.scale)

    def sample(params, eps):
        q = WRONG.posterior(params, x)
        return q.loc + q.scale * eps

    z = jax.vmap(lambda e: sample(params, e))(eps)
    a, c = estimator_weights(jax.vmap(lambda z: log_w(params, z))(z))
    along_p = jax.vmap(lambda z: jax.grad(log_w)(params, z))(z)
    slopes = jax.vmap(lambda z: jax.grad(log_w, argnums=1)(params, z))(z)  # [k, d]
    paths = jax.vmap(lambda e: jax.jacobian(sample)(params, e))(eps)  # [k, d, ...]
    along_q = jax.tree.map(lambda j: jnp.einsum("k,kd,kd...->...", c, slopes, j), paths)
    weighted = jax.tree.map(lambda g: jnp.tensordot(a, g, 1), along_p)
    return jax.tree.map(jnp.add, weighted, along_q)


def test_dreg_of_the_iwae_is_the_textbooks_squared_weights():
    """Sample by sample at beta = 1; and for the ELBO it is sticking the landing."""
    with jax.enable_x64(True):
        params, x = wrong_params(), jnp.array(X, float)
        keys = jax.random.split(jax.random.key(3), K)
        q = WRONG.posterior(params, x)
        draw = lambda key: (q.sample(key) - q.loc) / q.scale
        eps = jax.vmap(draw)(jax.random.clone(keys))

        def value(params, bound, estimator):
            q = WRONG.posterior(params, x)
            z = jax.vmap(q.sample)(jax.random.clone(keys))
            return estimator(bound, sampled_terms(WRONG, x), params, q, z, beta=1.0)

        def squared(log_w):
            w = jax.nn.softmax(log_w)
            return w, w**2

        uniform = lambda log_w: (jnp.full(K, 1 / K), jnp.full(K, 1 / K))
        gradient = quick_jit(jax.grad(value), static_argnums=(1, 2))
        expected = quick_jit(by_hand, static_argnums=0)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
        dreg = gradient(params, bounds.iwae, estimators.dreg)
        jax.tree.map(close, dreg, expected(squared, eps))
        dreg = gradient(params, bounds.elbo, estimators.dreg)
        jax.tree.map(close, dreg, expected(uniform, eps))
        stl = gradient(params, bounds.elbo, estimators.stl)
        jax.tree.map(np.testing.assert_array_equal, dreg, stl)


def grouped(x: jax.Array, num_groups: int):
    """Terms of WRONG with log p(z) and log q(z | x) per latent, [g]."""

    def terms(params, q, z):
        def one(z):
            log_lik = WRONG.likelihood(params, z).log_prob(x)
            each = jax.vmap(lambda loc, scale, z: Normal(loc, scale).log_prob(z))
            log_prior = each(jnp.zeros(num_groups), jnp.ones(num_groups), z)
            return Terms(log_lik, log_prior, each(q.loc, q.scale, z))

        return jax.vmap(one)(z)

    return terms


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_terms_per_group_of_latents_are_summed(estimator):
    """[g] or [] per sample: the same value and the same gradient."""
    params, x = wrong_params(), jnp.array(X, float)
    keys = jax.random.split(jax.random.key(4), K)
    bound = bounds.elbo if estimator == "stl" else bounds.iwae

    def value(params, terms):
        q = WRONG.posterior(params, x)
        z = jax.vmap(q.sample)(jax.random.clone(keys))
        return ESTIMATORS[estimator](bound, terms, params, q, z, beta=0.7)

    both = quick_jit(jax.value_and_grad(value), static_argnums=1)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        both(params, grouped(x, 2)),
        both(params, sampled_terms(WRONG, x)),
    )


@pytest.mark.parametrize("name", ["reparam", "dreg", "score", "vimco", "wake_sleep"])
def test_an_impossible_sample_leaves_value_and_gradient_finite(name):
    """log w = -inf where z < 0: the bound is that of the other samples."""
    k = 2 if name == "vimco" else 6

    def value(loc, bound=bounds.iwae):
        q = Normal(loc, jnp.ones(1))
        z = jax.vmap(q.sample)(jax.random.split(jax.random.key(0), k))
        log_lik = lambda z: jnp.where(z[0] < 0, -jnp.inf, -(z[0] ** 2))
        zero = lambda z: jnp.zeros(z.shape[0])
        terms = lambda params, q, z: Terms(jax.vmap(log_lik)(z), zero(z), zero(z))
        return getattr(estimators, name)(bound, terms, {}, q, z)

    z = jax.vmap(Normal(jnp.zeros(1), jnp.ones(1)).sample)(
        jax.random.split(jax.random.key(0), k)
    )[:, 0]
    assert 0 < (z < 0).sum() < k
    found, slope = jax.value_and_grad(value)(jnp.zeros(1))
    possible = np.asarray(z[z > 0], float)
    expected = np.log(np.sum(np.exp(-(possible**2))) / k)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.isfinite(slope).all()


def test_stl_on_a_multi_sample_bound_names_dreg():
    params, x = wrong_params(), jnp.array(X, float)
    for name in ("iwae", "renyi_half"):
        stl = {"bound": BOUNDS[name].bound, "estimator": estimators.stl}
        with pytest.raises(ValueError, match="dreg"):
            per_example(WRONG, params, jax.random.key(0), x, num_samples=2, **stl)


def test_stl_names_the_only_bound_that_it_knows():
    params, x = wrong_params(), jnp.array(X, float)
    how = {"bound": lambda log_w: bounds.elbo(log_w), "estimator": estimators.stl}
    with pytest.raises(ValueError, match=r"`bounds\.elbo` itself"):
        per_example(WRONG, params, jax.random.key(0), x, num_samples=2, **how)


@distributions.register
class SinhNormal:
    """One's own: sinh of a Gaussian."""

    base: Normal
    pathwise: ClassVar[bool] = True

    def sample(self, key):
        return jnp.sinh(self.base.sample(key))

    def log_prob(self, x):
        log_slope = jnp.sum(0.5 * jnp.log1p(x**2))
        return self.base.log_prob(jnp.arcsinh(x)) - log_slope


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_distribution_of_ones_own_is_what_its_docstring_says(estimator):
    """In sinh coordinates, prior and posterior alike: value and gradient as without."""
    here, there = wrong_params(), jnp.array(X, float)
    mapped = Model(
        init=None,
        prior=lambda params: SinhNormal(WRONG.prior(params)),
        posterior=lambda params, x: SinhNormal(WRONG.posterior(params, x)),
        likelihood=lambda params, z: WRONG.likelihood(params, jnp.arcsinh(z)),
    )
    how = {"estimator": ESTIMATORS[estimator], "num_samples": 3}

    def of(model):
        value = lambda p: per_example(model, p, jax.random.key(0), there, **how)[0]
        return quick_jit(jax.value_and_grad(value))(here)

    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, of(mapped), of(WRONG))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("posterior", [Bernoulli, Categorical])
@pytest.mark.parametrize("k", [1, 3])
def test_a_posterior_without_a_path_is_an_error(estimator, posterior, k):
    """Its gradient would be silently 0."""
    logits = lambda params: posterior(params["logits"])
    model = Model(
        init=None,
        prior=logits,
        posterior=lambda params, x: posterior(params["q"] @ x),
        likelihood=lambda params, z: Normal(params["loc"] + z, jnp.ones(3)),
    )
    params = {"logits": np.zeros(3), "q": np.eye(3), "loc": np.zeros(3)}
    how = {"estimator": ESTIMATORS[estimator], "num_samples": k}
    value = lambda params, key: per_example(model, params, key, np.ones(3), **how)
    with pytest.raises(ValueError, match=posterior.__name__):
        jax.eval_shape(value, params, jax.random.key(0))


@pytest.mark.parametrize("k", [0, -1])
def test_no_samples_is_an_error(k):
    with pytest.raises(ValueError, match="num_samples"):
        per_example(
            WRONG, wrong_params(), jax.random.key(0), jnp.array(X, float), num_samples=k
        )


@pytest.mark.parametrize(
    "how",
    [
        {"bound": bounds.iwae},
        {"bound": bounds.iwae, "num_samples": 3},
        {"estimator": estimators.stl},
        {"estimator": estimators.dreg, "num_samples": 3},
    ],
)
def test_the_analytic_kl_is_for_the_elbo_with_reparam(how):
    for terms in (analytic_terms, functools.partial(analytic_terms)):
        with pytest.raises(ValueError, match="sampled_terms"):
            per_example(
                WRONG,
                wrong_params(),
                jax.random.key(0),
                jnp.array(X, float),
                terms=terms,
                **how,
            )
