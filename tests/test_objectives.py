"""The loss of a batch: its value, its metrics, its schedule and its cost."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import BOUNDS, MEAN, WRONG, X, is_valid, quick_jit, wrong_params

from vi_jax import (
    bounds,
    estimators,
    likelihoods,
    models,
    networks,
    posteriors,
    priors,
    schedules,
)
from vi_jax.model import Terms, analytic_terms, log_weight
from vi_jax.objectives import batch_loss, per_example, summary

ROWS = np.stack([X, -0.5 * X, X[::-1], 2 * MEAN])


def preprocess(key, batch):
    del key
    return batch["x"]


def batch_at(step):
    return {"x": jnp.array(ROWS, float), "step": jnp.int32(step)}


def test_a_bound_that_is_no_scalar_is_an_error():
    """Its mean over the batch would be another bound."""
    for estimator in (estimators.reparam, estimators.dreg):
        how = {"bound": lambda log_w: log_w, "estimator": estimator}
        loss = batch_loss(WRONG, preprocess=preprocess, num_samples=2, **how)
        with pytest.raises(ValueError, match=r"a bound makes .* shape \(2,\)"):
            loss(wrong_params(), jax.random.key(0), batch_at(0))
    each = lambda bound, terms, params, q, z, *, beta: terms(params, q, z).log_lik
    loss = batch_loss(WRONG, preprocess=preprocess, num_samples=2, estimator=each)
    with pytest.raises(ValueError, match=r"an estimator makes .* shape \(2,\)"):
        loss(wrong_params(), jax.random.key(0), batch_at(0))


def test_any_record_of_the_four_functions_is_a_model():
    own = types.SimpleNamespace(**WRONG._asdict())
    a, b = (
        batch_loss(model, preprocess=preprocess)(
            wrong_params(), jax.random.key(0), batch_at(0)
        )
        for model in (own, WRONG)
    )
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("num_backward", [None, 1000])
@pytest.mark.parametrize("estimator", [estimators.reparam, estimators.dreg])
def test_a_model_of_16_bits_has_gradients_of_16_bits(estimator, num_backward):
    """Which are those of 32 but for their digits, and for other draws of z."""
    how = {"bound": bounds.iwae, "estimator": estimator, "num_samples": 2000}
    how["num_backward"] = num_backward
    model = models.vae(
        priors.standard_normal(2),
        posteriors.normal(networks.mlp([5], 4)),
        likelihoods.bernoulli(networks.mlp([5], 6)),
    )
    params = model.init(jax.random.key(0), jnp.zeros(6))

    def gradient(dtype):
        cast = lambda a: jnp.asarray(a, dtype)
        x = cast(np.array([0, 1, 1, 0, 1, 0]))
        one = lambda p: per_example(model, p, jax.random.key(1), x, **how)[0]
        return quick_jit(jax.grad(one))(jax.tree.map(cast, params))

    short, full = gradient(jnp.bfloat16), gradient(jnp.float32)
    assert {a.dtype for a in jax.tree.leaves(short)} == {jnp.bfloat16.dtype}
    scale = max(float(abs(a).max()) for a in jax.tree.leaves(full))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, float), b, atol=0.1 * scale
        ),
        short,
        full,
    )


@pytest.mark.parametrize("accumulate", [None, 2, 4])
@pytest.mark.parametrize("bound, estimator", [("elbo", "stl"), ("iwae", "dreg")])
def test_the_loss_is_minus_the_mean_over_examples(bound, estimator, accumulate):
    """Each with a key of its own, and one for preprocessing; value and gradient."""
    assert is_valid(estimator, bound, 3)
    params, key = wrong_params(), jax.random.key(0)
    how = {
        "bound": BOUNDS[bound].bound,
        "estimator": getattr(estimators, estimator),
        "num_samples": 3,
    }
    noisy = lambda key, batch: batch["x"] + jax.random.normal(key, ROWS.shape)
    loss = batch_loss(WRONG, preprocess=noisy, accumulate=accumulate, **how)

    key_x, key_z = jax.random.split(jax.random.clone(key))
    x, keys = noisy(key_x, batch_at(3)), jax.random.split(key_z, len(ROWS))
    one = lambda params, key, x: -per_example(WRONG, params, key, x, **how)[0]
    of_one = quick_jit(jax.value_and_grad(one))
    by_hand = [of_one(params, keys[i], x[i]) for i in range(len(ROWS))]
    expected = jax.tree.map(lambda *rows: sum(rows) / len(ROWS), *by_hand)

    only_loss = lambda params, key: loss(params, key, batch_at(3))[0]
    got = quick_jit(jax.value_and_grad(only_loss))(params, key)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        got,
        expected,
    )


def test_a_batch_of_many_samples_is_taken_in_parts_without_being_asked():
    """At most 2,500 samples a part, or one example; a loop more in the program."""
    params, key = wrong_params(), jax.random.key(0)

    def program(num_samples, **how):
        how |= {"num_samples": num_samples, "bound": bounds.iwae}
        loss = batch_loss(WRONG, preprocess=preprocess, **how)
        step = jax.jit(jax.grad(loss, has_aux=True))
        return step.lower(params, key, batch_at(0)).as_text()

    parts = {625: 1, 626: 2, 1250: 2, 1251: 4, 2501: 4}
    for k, num in parts.items():
        assert program(k) == program(k, accumulate=num)
    loops = lambda text: text.count("stablehlo.while")
    assert loops(program(626)) == loops(program(626, accumulate=1)) + 1


@pytest.mark.parametrize("x64, kind", [(True, "float32"), (False, "bfloat16")])
def test_the_gradient_of_a_batch_in_parts_has_the_type_of_the_parameters(x64, kind):
    """Whatever the precision of the loss."""
    with jax.enable_x64(x64):
        params = jax.tree.map(lambda a: a.astype(kind), wrong_params())
        for num in (1, 2):
            loss = batch_loss(WRONG, preprocess=preprocess, accumulate=num)
            gradient = quick_jit(jax.grad(loss, has_aux=True))
            grads, _ = gradient(params, jax.random.key(0), batch_at(0))
            assert {g.dtype.name for g in jax.tree.leaves(grads)} == {kind}


def test_metrics_carry_no_gradient_in_parts_either():
    for num in (1, 2):
        loss = batch_loss(WRONG, preprocess=preprocess, accumulate=num)
        rate = lambda params, loss=loss: loss(params, jax.random.key(0), batch_at(0))[1]
        only_rate = lambda params, rate=rate: rate(params)["rate"]
        grads = quick_jit(jax.grad(only_rate))(wrong_params())
        assert all(not g.any() for g in jax.tree.leaves(grads))


def test_a_gradient_in_the_data_is_right_or_an_error():
    def of_data(x, num):
        loss = batch_loss(WRONG, preprocess=preprocess, accumulate=num)
        return loss(wrong_params(), jax.random.key(0), {**batch_at(0), "x": x})[0]

    x = jnp.array(ROWS, float)
    with pytest.raises(ValueError, match="accumulate=1"):
        jax.grad(of_data)(x, 2)
    value = quick_jit(lambda x: of_data(x, 1))
    slope = quick_jit(jax.grad(lambda x: of_data(x, 1)))(x)
    ahead = jnp.zeros_like(x).at[1, 2].set(1e-2)
    across = (value(x + ahead) - value(x - ahead)) / 2e-2
    np.testing.assert_allclose(slope[1, 2], across, rtol=2e-2)


def run(loss, step, seed=0):
    return quick_jit(loss)(wrong_params(), jax.random.key(seed), batch_at(step))


def test_metrics_are_nats_that_add_up():
    """rate + distortion = -elbo at beta 1, whatever is being raised; ess in [1, k]."""
    loss = batch_loss(
        WRONG,
        preprocess=preprocess,
        bound=bounds.iwae,
        num_samples=6,
        beta=schedules.constant(0.3),
    )
    value, metrics = run(loss, 0)
    assert set(metrics) == {"bound", "beta", "elbo", "rate", "distortion", "ess"}
    np.testing.assert_allclose(
        metrics["rate"] + metrics["distortion"], -metrics["elbo"], rtol=1e-5
    )
    assert value == -metrics["bound"]
    np.testing.assert_allclose(metrics["beta"], 0.3, rtol=1e-6)
    # -distortion - 0.3 rate is the tempered ELBO, and the bound lies above it.
    tempered = -metrics["distortion"] - 0.3 * metrics["rate"]
    assert 0 < metrics["bound"] - tempered < 1
    assert 1 < metrics["ess"] < 6


def test_beta_follows_the_step_of_the_batch_in_one_compilation():
    traces = []

    def counted(key, batch):
        traces.append(key)
        return batch["x"]

    ramp = schedules.linear(10, total_steps=20, end=2.0)
    loss = quick_jit(batch_loss(WRONG, preprocess=counted, beta=ramp))
    for step, beta in ((0, 0.0), (5, 1.0), (10, 2.0), (15, 2.0)):
        value, metrics = loss(wrong_params(), jax.random.key(1), batch_at(step))
        assert metrics["beta"] == beta
        # k = 1: the loss is the distortion plus beta times the sampled rate.
        expected = metrics["distortion"] + beta * metrics["rate"]
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert len(traces) == 1


def test_summary_is_its_definition():
    rng = np.random.default_rng(0)
    log_lik = rng.normal(-70, 2, 5)
    log_prior, log_post = rng.normal(-4, 1, (2, 5, 3))
    got = summary(Terms(*(jnp.array(a, float) for a in (log_lik, log_prior, log_post))))
    log_w = log_lik + (log_prior - log_post).sum(-1)
    w = np.exp(log_w - log_w.max())
    np.testing.assert_allclose(got["elbo"], log_w.mean(), rtol=1e-6)
    np.testing.assert_allclose(got["distortion"], -log_lik.mean(), rtol=1e-6)
    rate = (log_post - log_prior).sum(-1).mean()
    np.testing.assert_allclose(got["rate"], rate, rtol=1e-4)
    np.testing.assert_allclose(got["ess"], w.sum() ** 2 / (w**2).sum(), rtol=1e-4)


def test_analytic_terms_keep_the_metrics():
    """Their rate is the KL itself, the same for any draw; beta tempers the loss."""
    loss = batch_loss(
        WRONG,
        preprocess=preprocess,
        terms=analytic_terms,
        num_samples=2,
        beta=schedules.constant(4.0),
    )
    (value, a), (_, b) = run(loss, 0), run(loss, 0, seed=1)
    np.testing.assert_allclose(a["rate"], b["rate"], rtol=1e-5)
    assert abs(a["distortion"] - b["distortion"]) > 0.01
    np.testing.assert_allclose(value, a["distortion"] + 4 * a["rate"], rtol=1e-5)


def test_terms_of_the_metrics_carry_no_gradient():
    """They are logged, never trained on."""
    total = lambda params: sum(
        jnp.sum(term)
        for term in per_example(
            WRONG, params, jax.random.key(0), jnp.array(X, float), num_samples=2
        )[1]
    )
    gradient = quick_jit(jax.grad(total))(wrong_params())
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(gradient))


def flops(function, *arguments) -> float:
    return quick_jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def test_the_encoder_runs_once_whatever_k_and_metrics_cost_nothing():
    """XLA's count for a wide encoder (196k multiply-adds) and a narrow decoder."""
    model = models.vae(
        priors.standard_normal(2),
        posteriors.normal(networks.mlp([2000], 4)),
        likelihoods.bernoulli(networks.mlp([3], 96)),
    )
    x = jnp.ones(96)
    params = quick_jit(model.init)(jax.random.key(0), x)
    encoder = 2 * 2000 * (96 + 4)

    def value(params, key, k, with_terms):
        out, terms = per_example(
            model, params, key, x, bound=bounds.iwae, num_samples=k
        )
        return (out, terms) if with_terms else out

    cost = lambda k, with_terms: flops(
        functools.partial(value, k=k, with_terms=with_terms), params, jax.random.key(1)
    )
    assert encoder < cost(1, False) < 1.1 * encoder
    assert cost(20, True) < 1.5 * encoder

    gradient = jax.grad(functools.partial(value, k=20, with_terms=False))
    assert flops(gradient, params, jax.random.key(1)) < 3.5 * encoder


def test_per_example_is_the_bound_of_its_terms():
    x = jnp.array(X, float)
    how = {"bound": bounds.iwae, "num_samples": 4, "beta": 0.7}
    value, terms = quick_jit(functools.partial(per_example, WRONG, **how))(
        wrong_params(), jax.random.key(5), x
    )
    assert [term.shape for term in terms] == [(4,)] * 3
    log_w = jax.vmap(lambda t: log_weight(t, 0.7))(terms)
    naive = BOUNDS["iwae"].naive(np.asarray(log_w, np.float64))
    np.testing.assert_allclose(value, naive, rtol=1e-5)
    assert np.std(np.asarray(log_w)) > 0.01
