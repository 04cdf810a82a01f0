"""Probabilistic PCA and factor analysis, against scipy, scikit-learn and each other."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import quick_jit
from scipy import stats
from sklearn import datasets, decomposition
from threadpoolctl import threadpool_limits

from vi_jax import em, estimators, networks, objectives, posteriors, training
from vi_jax.data import batches
from vi_jax.distributions import FullNormal
from vi_jax.evaluation import exact_elbo
from vi_jax.maximum_likelihood import moments, ppca
from vi_jax.model import Model
from vi_jax.models import linear_gaussian
from vi_jax.models.gaussian_mixture import scale_tril
from vi_jax.types import Component

NOISES = ("isotropic", "diagonal")
PRECISIONS = {"float32": (False, 1e-5), "float64": (True, 1e-10)}


@pytest.fixture(autouse=True)
def one_blas_thread():
    # Small matrices on threads that wait for a busy core took 40 times as long.
    with threadpool_limits(1):
        yield


class Numbers(NamedTuple):
    """Parameters in numpy float64, and what follows from them there."""

    weight: np.ndarray
    mean: np.ndarray
    log_noise: np.ndarray

    def params(self) -> dict:
        return {name: jnp.array(v, float) for name, v in self._asdict().items()}

    def covariance(self) -> np.ndarray:
        noise = np.exp(2 * self.log_noise) * np.ones(len(self.mean))
        return self.weight @ self.weight.T + np.diag(noise)

    def posterior(self, x) -> stats.multivariate_normal:
        """p(z | x), from the blocks of the joint Gaussian's covariance."""
        gain = self.weight.T @ np.linalg.inv(self.covariance())
        covariance = np.eye(self.weight.shape[1]) - gain @ self.weight
        return stats.multivariate_normal(gain @ (x - self.mean), covariance)


def numbers(noise: str, *, columns=5, latents=2, seed=0) -> Numbers:
    rng = np.random.default_rng(seed)
    size = () if noise == "isotropic" else columns
    weight, mean = rng.normal(size=(columns, latents)), rng.normal(size=columns)
    return Numbers(weight, mean, rng.normal(-0.5, 0.3, size))


def as_numbers(params) -> Numbers:
    return Numbers(**{k: np.asarray(v, np.float64) for k, v in params.items()})


def mean_log_px(params, x) -> float:
    """Mean log p(x), by scipy in float64."""
    p = as_numbers(params)
    return stats.multivariate_normal(p.mean, p.covariance()).logpdf(x).mean()


def data(n=200, columns=5, latents=2, *, noise="diagonal", seed=1) -> np.ndarray:
    p, rng = numbers(noise, columns=columns, latents=latents), np.random.default_rng
    return rng(seed).multivariate_normal(p.mean, p.covariance(), size=n)


@functools.cache
def real(name: str) -> np.ndarray:
    x = getattr(datasets, f"load_{name}")().data
    if name == "digits":
        return x[:, x.std(0) > 0.3]  # for factor analysis, without the blank border
    return (x - x.mean(0)) / x.std(0)


# ------------------------------------------------------------------------ the model


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_marginal_and_the_posterior_are_those_of_the_joint_gaussian(
    noise, precision
):
    x64, rtol = PRECISIONS[precision]
    p, model = numbers(noise), linear_gaussian(2, noise=noise)
    rng = np.random.default_rng(2)
    x, z = 3 * rng.normal(size=(20, 5)), rng.normal(size=(20, 2))
    with jax.enable_x64(x64):

        def both(x, z):
            params = p.params()
            q = model.posterior(params, x)
            return model.marginal(params).log_prob(x), q.loc, q.log_prob(z)

        got = quick_jit(jax.vmap(both))(jnp.array(x, float), jnp.array(z, float))
    log_px = stats.multivariate_normal(p.mean, p.covariance()).logpdf(x)
    np.testing.assert_allclose(got[0], log_px, rtol)
    exact = [p.posterior(row) for row in x]
    np.testing.assert_allclose(got[1], [q.mean for q in exact], rtol, atol=rtol)
    log_q = [q.logpdf(row) for q, row in zip(exact, z, strict=True)]
    np.testing.assert_allclose(got[2], log_q, rtol)


def test_one_latent_agrees_with_its_integral_over_a_grid():
    """log p(x), E[z | x] and var[z | x] by the trapezoid rule, which is exact here."""
    p, x = numbers("diagonal", latents=1), np.array([0.3, -1.0, 0.8, 2.0, -0.4])
    z, step = np.linspace(-12, 12, 4001, retstep=True)
    means = z[:, None] * p.weight[:, 0] + p.mean
    joint = stats.norm(means, np.exp(p.log_noise)).pdf(x).prod(1) * stats.norm.pdf(z)
    evidence = joint.sum() * step
    loc = (joint * z).sum() * step / evidence
    var = (joint * (z - loc) ** 2).sum() * step / evidence
    model = linear_gaussian(1)
    with jax.enable_x64(True):
        both = lambda p, x: (model.posterior(p, x), model.marginal(p).log_prob(x))
        q, log_px = quick_jit(both)(p.params(), jnp.array(x))
    np.testing.assert_allclose(log_px, np.log(evidence), 1e-10)
    np.testing.assert_allclose([q.loc[0], q.scale_tril[0, 0] ** 2], [loc, var], 1e-10)


def test_the_posterior_in_float32_bears_precise_data():
    """Noise of 0.01 beside weights of 10: a precision of condition number 2e7."""
    weight = np.array([[10.0, 0.1], [9.0, 0.101], [11.0, 0.099], [10.0, -0.1]])
    p = Numbers(weight, np.zeros(4), np.log(0.1))
    scaled = weight / 0.1
    exact = np.linalg.inv(np.eye(2) + scaled.T @ scaled)
    model = linear_gaussian(2, noise="isotropic")
    q = quick_jit(model.posterior)(p.params(), jnp.zeros(4))
    tril = np.asarray(q.scale_tril, np.float64)
    np.testing.assert_array_equal(tril, np.tril(tril))
    np.testing.assert_allclose(tril @ tril.T, exact, 1e-4, atol=1e-6)


@pytest.mark.parametrize("columns, scale", [(100, 1e-2), (20, 1e-3), (5, 1e-4)])
def test_the_marginal_in_float32_bears_small_noise(columns, scale):
    """log p(x) and its slopes, against scipy and themselves in float64."""
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(columns, 2))
    p = Numbers(weight, rng.normal(size=columns), np.log(scale))
    x = p.mean + weight @ rng.normal(size=2) + scale * rng.normal(size=columns)
    model = linear_gaussian(2, noise="isotropic")

    def found(x64):
        with jax.enable_x64(x64):
            log_px = lambda params: model.marginal(params).log_prob(jnp.array(x, float))
            got = quick_jit(jax.value_and_grad(log_px))(p.params())
            return jax.tree.map(np.asarray, got)

    (value, slopes), (_, exact) = found(False), found(True)
    log_px = stats.multivariate_normal(p.mean, p.covariance()).logpdf(x)
    # What x, rounded to float32, says of the noise: 1e-7 beside 1e-4, squared.
    np.testing.assert_allclose(value, log_px, atol=0.02)
    for name, slope in exact.items():
        error = np.max(abs(slopes[name] - slope)) / np.max(abs(slope))
        assert error < 0.02, (name, error)


@pytest.mark.parametrize("noise", NOISES)
def test_rotating_the_latents_leaves_the_marginal_as_it_is(noise):
    p = numbers(noise)
    rotation = np.array([[0.6, -0.8], [0.8, 0.6]])
    other = Numbers(p.weight @ rotation, p.mean, p.log_noise)
    x = jnp.array(data(1)[0], float)
    log_px = quick_jit(lambda q: linear_gaussian(2).marginal(q).log_prob(x))
    a, b = log_px(p.params()), log_px(other.params())
    np.testing.assert_allclose(a, b, 1e-5)


# ------------------------------------------------------------------- the closed form


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["digits", "breast_cancer", "wine"])
def test_the_closed_form_scores_as_scikit_learns_pca(name, precision):
    """scikit-learn divides the covariance by n - 1, so that its W and s are longer."""
    x64, rtol = PRECISIONS[precision]
    x = real(name)
    expected = decomposition.PCA(3, svd_solver="full").fit(x).score(x)
    with jax.enable_x64(x64):
        params = ppca(x, 3)
        assert params["weight"].dtype == (np.float64 if x64 else np.float32)
    longer = np.sqrt(len(x) / (len(x) - 1))
    found = as_numbers(params)
    theirs = {
        "weight": found.weight * longer,
        "mean": found.mean,
        "log_noise": found.log_noise + np.log(longer),
    }
    np.testing.assert_allclose(mean_log_px(theirs, x), expected, rtol)
    # Theirs is not the maximum, ours is.
    assert mean_log_px(params, x) > expected


@pytest.mark.parametrize(
    "x",
    [data(), data(8, 30, 2), np.c_[data(), np.full(200, 0.1)]],
    ids=["n > D", "D > n", "a constant column"],
)
def test_the_closed_form_is_the_eigendecomposition_and_a_maximum(x):
    """In float64: W W^T and s^2 by numpy, and the gradient of log p(x) vanishes."""
    observed = np.cov(x.T, bias=True)
    values, vectors = np.linalg.eigh(observed)
    noise_var = values[:-2].mean()
    top = vectors[:, -2:]
    with jax.enable_x64(True):
        params = ppca(x, 2)
    found = as_numbers(params)
    np.testing.assert_allclose(found.mean, x.mean(0), 1e-10)
    np.testing.assert_allclose(np.exp(2 * found.log_noise), noise_var, 1e-10)
    np.testing.assert_allclose(
        found.weight @ found.weight.T,
        (top * (values[-2:] - noise_var)) @ top.T,
        rtol=1e-10,
        atol=1e-12,
    )
    across = found.weight.T @ found.weight
    assert abs(across[0, 1]) < 1e-10 * across[0, 0]
    # d/dW is slope W, and d/ds^2 half the trace of slope.
    inverse = np.linalg.inv(found.covariance())
    slope = inverse @ observed @ inverse - inverse
    assert abs(slope @ found.weight).max() < 1e-9 * abs(inverse).max()
    assert abs(np.trace(slope)) < 1e-9 * np.trace(inverse)


def test_latent_means_span_the_subspace_of_pca():
    """The principal angles between W and scikit-learn's components are 0."""
    x = real("wine")
    pca = decomposition.PCA(3, svd_solver="full").fit(x)
    with jax.enable_x64(True):
        params = ppca(x, 3)
        model = linear_gaussian(3, noise="isotropic")
        z = quick_jit(jax.vmap(lambda x: model.posterior(params, x).loc))(jnp.array(x))
    ours = np.linalg.qr(np.asarray(params["weight"]))[0]
    np.testing.assert_allclose(
        np.linalg.svd(ours.T @ pca.components_.T)[1], 1, rtol=1e-12
    )
    # Each latent mean is its principal component, scaled: |correlation| is 1.
    both = np.corrcoef(np.asarray(z).T, pca.transform(x).T)[:3, 3:]
    np.testing.assert_allclose(abs(both), np.eye(3), atol=1e-10)


def test_the_closed_form_turns_with_the_data_and_ignores_their_order():
    x = data()
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(5, 5)))[0]
    with jax.enable_x64(True):
        a = as_numbers(ppca(x, 2))
        b = as_numbers(ppca(x[::-1] @ turn.T, 2))
    np.testing.assert_allclose(b.covariance(), turn @ a.covariance() @ turn.T, 1e-10)


def test_float32_bears_a_mean_far_from_0_and_spreads_far_apart():
    """Standard deviations from 1e-3 to 10 around 100, against float64 on the same."""
    rng = np.random.default_rng(4)
    spreads = np.array([10, 3, 1, 1e-3, 1e-3])
    x = (100 * (spreads > 0.1) + spreads * rng.normal(size=(5000, 5))).astype("f")
    narrow = ppca(x, 3)
    with jax.enable_x64(True):
        wide = ppca(x.astype("d"), 3)
    np.testing.assert_allclose(narrow["mean"], wide["mean"], 1e-6, atol=1e-7)
    np.testing.assert_allclose(narrow["log_noise"], wide["log_noise"], 1e-5)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "float16"])
def test_integers_and_half_precision_are_data_too(dtype):
    x = np.round(5 * abs(data())).astype(dtype)
    a, b = ppca(x, 2), ppca(x.astype("f"), 2)
    assert jax.tree.map(np.array_equal, a, b) == dict.fromkeys(a, True)


# ------------------------------------------------------------------------------- EM


def mean_elbo(noise, params, q: em.LinearPosterior, x):
    """The exact ELBO, mean over x, by quadrature, which order 2 makes exact."""
    model = linear_gaussian(2, noise=noise)

    def one(x):
        posterior = FullNormal(q.gain @ (x - q.center), q.scale_tril)
        return exact_elbo(model, params, posterior, x, order=2)

    return jnp.mean(jax.vmap(one)(x))


@pytest.mark.parametrize("noise", NOISES)
def test_each_half_step_of_em_raises_the_elbo_as_far_as_it_goes(noise):
    """From anywhere, a wrong mean included, in float64.

    After the E-step the ELBO is log p(x); after the M-step no parameter has a slope.
    """
    x, params = data(), numbers(noise, seed=9)
    steps = em.linear_gaussian_steps(2, noise=noise)
    with jax.enable_x64(True):
        elbo = quick_jit(jax.value_and_grad(functools.partial(mean_elbo, noise)))
        e_step, m_step = quick_jit(steps.e_step), quick_jit(steps.m_step)
        x, params, found = jnp.array(x), params.params(), moments(x)
        values, q = [], None
        for _ in range(3):
            if q is not None:
                values.append(float(elbo(params, q, x)[0]))
            q, log_px = e_step(params, found)
            np.testing.assert_allclose(log_px, mean_log_px(params, x), 1e-10)
            values.append(float(elbo(params, q, x)[0]))
            np.testing.assert_allclose(values[-1], log_px, 1e-10)
            params = m_step(q, found)
            value, slope = elbo(params, q, x)
            values.append(float(value))
            slopes = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(slope)]
            assert abs(np.concatenate(slopes)).max() < 1e-10
    assert np.all(np.diff(values) >= -1e-12)
    assert values[1] > values[0] + 1e-3


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_log_px_never_falls_and_is_that_of_the_parameters(noise, precision):
    x64, rtol = PRECISIONS[precision]
    x = real("wine")
    with jax.enable_x64(x64):
        fit = em.fit_linear_gaussian(
            jax.random.key(0), x, 3, noise=noise, num_iterations=2000
        )
    done = int(fit.iterations)
    history = np.asarray(fit.history, np.float64)
    assert fit.converged and 5 < done < 2000
    rises = np.diff(np.append(history[:done], float(fit.log_px)))
    # A step of rounding, in float32.
    assert rises.min() > -rtol * abs(history[0])
    np.testing.assert_allclose(fit.log_px, mean_log_px(fit.params, x), rtol)
    assert np.all(np.isnan(history[done:]))


@pytest.mark.parametrize("name", ["digits", "wine"])
def test_em_with_isotropic_noise_reaches_the_closed_form(name):
    x = real(name)
    with jax.enable_x64(True):
        best = ppca(x, 3)
        fit = em.fit_linear_gaussian(
            jax.random.key(1),
            x,
            3,
            noise="isotropic",
            num_iterations=2000,
            tolerance=1e-12,
        )
        a, b = as_numbers(best), as_numbers(fit.params)
    np.testing.assert_allclose(fit.log_px, mean_log_px(best, x), 1e-10)
    np.testing.assert_allclose(b.covariance(), a.covariance(), atol=1e-3)
    np.testing.assert_allclose(b.mean, a.mean, 1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["digits", "wine"])
def test_em_with_diagonal_noise_reaches_scikit_learns_factor_analysis(name):
    x = real(name)
    theirs = decomposition.FactorAnalysis(
        3, svd_method="lapack", tol=1e-8, max_iter=5000
    )
    expected = theirs.fit(x).score(x)
    with jax.enable_x64(True):
        fit = em.fit_linear_gaussian(
            jax.random.key(0), x, 3, num_iterations=2000, tolerance=1e-9
        )
    assert abs(float(fit.log_px) - expected) < 1e-4
    found = as_numbers(fit.params).covariance()
    np.testing.assert_allclose(found, theirs.get_covariance(), atol=1e-2 * found.max())


def test_factor_analysis_is_blind_to_the_scale_of_a_column():
    """The same start and path, log p(x) less by sum log scale; columns 1e16 apart."""
    x, scale = data(), np.array([1e-8, 2e-8, 1e8, 3e-8, 1e8])
    with jax.enable_x64(True):
        a, b = (
            em.fit_linear_gaussian(jax.random.key(2), x, 2, num_iterations=50)
            for x in (x, x * scale)
        )
    expected = np.asarray(a.history) - np.log(scale).sum()
    np.testing.assert_allclose(np.asarray(b.history), expected, 1e-10)


def test_em_works_for_more_columns_than_rows_and_under_vmap():
    """Three starts at once, D = 30 and n = 8, all at the closed form."""
    x = data(8, 30, 2)
    with jax.enable_x64(True):
        steps, found = em.linear_gaussian_steps(2, noise="isotropic"), moments(x)
        assert found.root.shape == (8, 30)
        starts = [numbers("isotropic", columns=30, seed=s).params() for s in range(3)]
        starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
        run = functools.partial(em.em, steps, num_iterations=20_000, tolerance=1e-13)
        fit = quick_jit(jax.vmap(lambda params: run(params, found)))(starts)
        best = mean_log_px(ppca(x, 2), x)
    np.testing.assert_allclose(fit.log_px, best, 1e-8)


def test_a_heywood_case_names_the_columns_and_em_alone_keeps_the_floor():
    """A column that is there twice is reproduced exactly, and p(x) is unbounded."""
    x = data(columns=6, latents=2)
    x[:, 4] = 2 * x[:, 1] + 1
    key = jax.random.key(0)
    with jax.enable_x64(True):
        with pytest.raises(ValueError, match=r"noise of columns \[1, 4\] fell .*1e-06"):
            em.fit_linear_gaussian(key, x, 1)
        steps = em.linear_gaussian_steps(1, floor=0.01)
        start = numbers("diagonal", columns=6, latents=1).params()
        fit = quick_jit(functools.partial(em.em, steps))(start, moments(x))
        share = np.exp(2 * np.asarray(fit.params["log_noise"])) / x.var(0)
    np.testing.assert_allclose(share[[1, 4]], 0.01, 1e-8)
    assert share[[0, 2, 3, 5]].min() > 0.02
    rises = np.diff(np.asarray(fit.history)[: int(fit.iterations)])
    assert rises.min() > -1e-12


# ---------------------------------------------------------- variational inference


def amortised(model, posterior) -> Model:
    """p(x, z) of an exact model with a posterior that is learned beside it."""

    def init(key, x):
        key_p, key_q = jax.random.split(key)
        return {**model.init(key_p, x), "posterior": posterior.init(key_q, x)}

    q = lambda params, x: posterior.apply(params["posterior"], x)
    return Model(init, model.prior, q, model.likelihood)


def trained(model: Model, loss, x, *, learning_rate, num_steps) -> dict:
    params = model.init(jax.random.key(0), jnp.array(x[0], jnp.float32))
    optimizer = training.adam(learning_rate, num_steps=num_steps)
    # Every batch is the whole set: what is random is z alone.
    stream = batches.shuffled({"x": x.astype(np.float32)}, batch_size=len(x), seed=0)
    *_, (state, _) = training.fit(
        loss,
        optimizer,
        training.init_state(params, optimizer),
        stream,
        seed=0,
        num_steps=num_steps,
        scan_steps=num_steps,
    )
    return state.params


def elbo_of(model: Model, params, x):
    one = lambda x: exact_elbo(model, params, model.posterior(params, x), x, order=2)
    return jnp.mean(jax.vmap(one)(x))


def own(params) -> dict:
    return {k: v for k, v in params.items() if k != "posterior"}


def test_a_linear_encoder_of_diagonal_covariance_reaches_the_closed_form():
    """On the exact ELBO: the optimum makes W's columns orthogonal, so that q is exact.

    Ref: Lucas et al. 2019, arXiv:1911.02469.
    """
    x = data(noise="isotropic")
    model = amortised(
        linear_gaussian(2, noise="isotropic"),
        posteriors.normal(networks.mlp([], 4)),
    )
    loss = lambda params, key, batch: (-elbo_of(model, params, batch["x"]), {})
    params = trained(model, loss, x, learning_rate=0.1, num_steps=6000)
    best = mean_log_px(ppca(x, 2), x)
    assert best - 1e-3 < mean_log_px(own(params), x) < best + 1e-5
    assert (
        best - 1e-3
        < quick_jit(functools.partial(elbo_of, model))(params, jnp.array(x, float))
        < best + 1e-5
    )
    across = np.asarray(params["weight"].T @ params["weight"])
    assert abs(across[0, 1]) < 0.01 * across[1, 1]


def test_a_linear_encoder_of_full_covariance_reaches_em_by_sampling():
    """For factor analysis, with one sample of z for each x a step."""
    x = data()
    exact = linear_gaussian(2)

    def init(key, x):
        del key, x
        return {
            "gain": jnp.zeros((2, 5)),
            "offset": jnp.zeros(2),
            "scale": jnp.zeros((2, 2)),
        }

    def apply(q, x) -> FullNormal:
        return FullNormal(q["gain"] @ x + q["offset"], scale_tril(q["scale"]))

    model = amortised(exact, Component(init, apply))
    loss = objectives.batch_loss(
        model,
        preprocess=lambda key, batch: batch["x"],
        estimator=estimators.stl,
    )
    params = trained(model, loss, x, learning_rate=0.03, num_steps=8000)
    with jax.enable_x64(True):
        fit = em.fit_linear_gaussian(jax.random.key(0), x, 2, tolerance=1e-9)
        best = float(fit.log_px)
    assert best - 1e-3 < mean_log_px(own(params), x) < best + 1e-5
    assert (
        best - 1e-3
        < quick_jit(functools.partial(elbo_of, model))(params, jnp.array(x, float))
        < best + 1e-5
    )


# ------------------------------------------------------------------------ bad input


def _with(x, index, value):
    x = x.copy()
    x[index] = value
    return x


BAD = {
    "NaN": (_with(data(9), (3, 1), np.nan), 2, r"x\[3, 1\] is nan"),
    "infinity": (_with(data(9), (0, 4), np.inf), 2, r"x\[0, 4\] is inf"),
    "a vector": (np.ones(4), 1, r"shape \[4\]: it must be \[n, D\]"),
    "images": (np.ones((9, 2, 2)), 1, r"shape \[9, 2, 2\]"),
    "one row": (data(1), 2, "n >= 2"),
    "no rows": (data(1)[:0], 2, "n >= 2"),
    "no columns": (np.ones((3, 0)), 2, r"shape \[3, 0\]"),
    "no latents": (data(9), 0, "at least 1, got 0"),
    "as many latents as columns": (data(9), 5, "latents is 5: it must be below 5"),
    "latents for every row": (data(4), 3, "it must be below 3"),
    "one column": (data(9)[:, :1], 1, "it must be below 1"),
    "nothing varies": (np.ones((9, 3)), 1, "nothing varies"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_get_a_clear_error_from_both_fits(case):
    x, latents, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        ppca(x, latents)
    for noise in NOISES:
        with pytest.raises(ValueError, match=message):
            em.fit_linear_gaussian(jax.random.key(0), x, latents, noise=noise)


def test_constant_columns_are_named_by_factor_analysis_alone():
    x = _with(data(50, 9), (slice(None), [0, 2, 3, 4, 5, 7]), 0.1)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"\[0, 2, 3, 4, 5\] and 1 more .*constant"):
        em.fit_linear_gaussian(key, x, 1)
    fit = em.fit_linear_gaussian(jax.random.clone(key), x, 1, noise="isotropic")
    assert abs(fit.log_px - mean_log_px(ppca(x, 1), x)) < 1e-2


@pytest.mark.parametrize("floor", [0.0, 1.0, -1.0, float("nan")])
def test_the_floor_is_a_share(floor):
    with pytest.raises(ValueError, match="floor is a share"):
        em.linear_gaussian_steps(2, floor=floor)


def test_an_unknown_noise_is_refused():
    with pytest.raises(ValueError, match="'isotropic' or 'diagonal'"):
        em.linear_gaussian_steps(2, noise="full")
