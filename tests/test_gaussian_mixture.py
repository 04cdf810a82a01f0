"""The Gaussian mixture and its three ways to be fitted, against numpy and sklearn."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import quick_jit, z_scores
from scipy import special, stats
from sklearn import datasets
from sklearn.mixture import GaussianMixture

from vi_jax import em, maximum_likelihood, training
from vi_jax.data import batches
from vi_jax.distributions import Categorical
from vi_jax.em import checks
from vi_jax.evaluation.exact import exact_elbo
from vi_jax.models import gaussian_mixture

KINDS = ("spherical", "diagonal", "tied", "full")


def standardised(x):
    return (x - x.mean(0)) / x.std(0)


IRIS = datasets.load_iris()
WINE = datasets.load_wine()
CANCER = datasets.load_breast_cancer()
DATA = {
    "iris": (IRIS.data, IRIS.target),
    "wine": (standardised(WINE.data), WINE.target),
    "cancer": (standardised(CANCER.data), CANCER.target),
}


def precise(test):
    """Run a test in float64."""

    @functools.wraps(test)
    def wrapped(*args, **kwargs):
        with jax.enable_x64(True):
            return test(*args, **kwargs)

    return wrapped


def example(covariance, m=3, dim=2, seed=0):
    """float64 (params, weight [m], loc [m, D], covariance [m, D, D]), none alike."""
    rng = np.random.default_rng(seed)
    logits, loc = rng.normal(size=m), 2 * rng.normal(size=(m, dim))
    shape = {"spherical": (m,), "diagonal": (m, dim), "tied": (dim, dim)}
    scale = 0.4 * rng.normal(size=shape.get(covariance, (m, dim, dim)))
    if covariance in ("tied", "full"):
        scale = np.tril(scale)
        tril = np.tril(scale, -1) + np.exp(scale) * np.eye(dim)
        tril = np.broadcast_to(tril, (m, dim, dim))
    else:
        tril = np.exp(scale.reshape(m, -1))[:, :, None] * np.eye(dim)
    params = {"logits": logits, "loc": loc, "scale": scale}
    return params, special.softmax(logits), loc, tril @ tril.mT


def on_device(params):
    """numpy leaves in the current default dtype."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, float), params)


def numpy_log_joint(x, weight, loc, covariance):
    each = zip(weight, loc, covariance, strict=True)
    columns = [
        np.log(w) + stats.multivariate_normal(m, c).logpdf(x) for w, m, c in each
    ]
    return np.stack(columns, -1)  # [n, m]


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("covariance", KINDS)
def test_marginal_and_responsibilities_are_scipys(covariance, x64):
    params, *numbers = example(covariance)
    x = np.random.default_rng(1).normal(size=(30, 2)) * 2
    log_joint = numpy_log_joint(x, *numbers)
    model = gaussian_mixture(3, covariance=covariance)

    def both(x):
        p = on_device(params)
        return model.marginal(p).log_prob(x), model.posterior(p, x).mean()

    with jax.enable_x64(x64):
        log_px, q = quick_jit(jax.vmap(both))(jnp.asarray(x, float))
    tolerance = 1e-10 if x64 else 1e-5
    np.testing.assert_allclose(log_px, special.logsumexp(log_joint, -1), tolerance)
    np.testing.assert_allclose(q, special.softmax(log_joint, -1), atol=tolerance)


@pytest.mark.parametrize("covariance", ["diagonal", "tied"])
def test_draws_have_the_moments_of_the_mixture(covariance):
    """From the marginal, and from p(x | z) at z ~ p(z): 20,000 draws, 4.5 errors."""
    params, weight, loc, covariances = example(covariance)
    model = gaussian_mixture(3, covariance=covariance)
    mean = weight @ loc
    second = np.einsum(
        "m,mij->ij", weight, covariances + loc[:, :, None] * loc[:, None]
    )

    def draw(key):
        key_x, key_z, key_p = jax.random.split(key, 3)
        z = model.prior(on_device(params)).sample(key_z)
        by_parts = model.likelihood(on_device(params), z).sample(key_p)
        return model.marginal(on_device(params)).sample(key_x), by_parts

    for x in quick_jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 20_000)):
        x = np.asarray(x, float)
        assert np.all(abs(z_scores(x, mean)) < 4.5)
        assert np.all(abs(z_scores(x[:, :, None] * x[:, None], second)) < 4.5)


def numpy_iteration(x, covariance, weight, loc, covariances, floor):
    """One iteration of EM by plain formulas: (mean log p(x), weight, loc, C [m, D, D]).

    Means first and then centred squares, eigenvalues below the floor raised to it.
    """
    log_joint = numpy_log_joint(x, weight, loc, covariances)
    log_px = special.logsumexp(log_joint, -1)
    q = np.exp(log_joint - log_px[:, None])
    total = q.sum(0)
    loc = q.T @ x / total[:, None]
    y = x[:, None] - loc  # [n, m, D]
    c = np.einsum("nm,nmi,nmj->mij", q, y, y) / total[:, None, None]
    eye = np.eye(x.shape[1])
    if covariance == "tied":
        c = np.broadcast_to(np.einsum("m,mij->ij", total / len(x), c), c.shape)
    if covariance == "diagonal":
        c = c * eye
    if covariance == "spherical":
        c = np.trace(c, axis1=1, axis2=2)[:, None, None] / len(eye) * eye
    values, vectors = np.linalg.eigh(c)
    c = vectors * np.maximum(values, floor)[:, None] @ vectors.mT
    return log_px.mean(), total / len(x), loc, c


def covariances_of(params, covariance):
    """[m, D, D] of a fitted params, in numpy."""
    m, dim = params["loc"].shape
    if covariance in ("tied", "full"):
        tril = np.asarray(params["scale"], float)
        eye = np.eye(dim, dtype=bool)
        tril = np.tril(np.where(eye, np.exp(np.where(eye, tril, 0)), tril))
    else:
        deviation = np.exp(np.asarray(params["scale"], float)).reshape(m, -1)
        tril = deviation[:, :, None] * np.eye(dim)
    return np.broadcast_to(tril @ tril.mT, (m, dim, dim))


FLOOR = 1e-6


@functools.lru_cache
def iteration(m, covariance):
    """params, x -> (params, mean log p(x) before)."""
    steps = em.gaussian_mixture_steps(m, covariance=covariance, floor=FLOOR)

    def one(params, x):
        q, log_px = steps.e_step(params, x)
        return steps.m_step(q, x), log_px

    return quick_jit(one)


def check_iteration(covariance, x, tolerance):
    """One iteration against plain formulas; relative to the size of x."""
    params, weight, loc, c = example(covariance)
    size = x.std()
    params["loc"] = loc = size * loc
    one = iteration(3, covariance)
    params, log_px = one(on_device(params), jnp.asarray(x, float))
    expected = numpy_iteration(x, covariance, weight, loc, c, FLOOR)
    np.testing.assert_allclose(log_px, expected[0], tolerance)
    weight = special.softmax(np.asarray(params["logits"], float))
    np.testing.assert_allclose(weight, expected[1], atol=tolerance)
    np.testing.assert_allclose(params["loc"], expected[2], atol=tolerance * size)
    got = covariances_of(params, covariance)
    np.testing.assert_allclose(got, expected[3], atol=tolerance * size**2)
    return got


def correlated(seed):
    """1,203 rows: two blocks and a rest."""
    x = np.random.default_rng(seed).normal(size=(1203, 2))
    return x @ [[1.0, 0.9], [0.0, 0.2]]


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("covariance", KINDS)
def test_an_iteration_is_that_of_plain_formulas(covariance, x64):
    with jax.enable_x64(x64):
        check_iteration(covariance, 3 * correlated(2), 1e-10 if x64 else 1e-5)


def small_data(covariance):
    """Some of its variances are below FLOOR and some above."""
    if covariance in ("tied", "full"):
        return 2e-3 * correlated(3)
    x = np.random.default_rng(3).normal(size=(1203, 2)) * [2e-3, 4e-4]
    return 0.5 * x if covariance == "spherical" else x


@pytest.mark.parametrize("covariance", KINDS)
@precise
def test_variances_below_the_floor_are_raised_to_it_exactly(covariance):
    x = small_data(covariance)
    values = np.linalg.eigvalsh(check_iteration(covariance, x, 1e-10))
    np.testing.assert_allclose(values.min(), FLOOR, rtol=1e-9)


@pytest.mark.parametrize("covariance", KINDS)
@precise
def test_log_px_never_falls_at_the_floor_either(covariance):
    """100 iterations; where FLOOR is added to the variances instead, it does."""
    x = small_data(covariance)
    params, values = example(covariance)[0], []
    unit = np.eye(2) if covariance in ("tied", "full") else 1
    params["scale"] = params["scale"] + np.log(6 * x.std()) * unit
    params["loc"] = x[:3]
    params = on_device(params)
    for _ in range(100):
        params, log_px = iteration(3, covariance)(params, jnp.asarray(x))
        values.append(float(log_px))
    assert np.min(np.diff(values)) > -1e-12
    assert values[-1] > values[1]
    least = np.linalg.eigvalsh(covariances_of(params, covariance)).min()
    np.testing.assert_allclose(least, FLOOR, rtol=1e-9)


@pytest.mark.parametrize("covariance", KINDS)
def test_float32_loses_nothing_far_from_the_origin(covariance):
    """1,000 away with a deviation of 0.2: products x x^T would leave no digit.

    Against float64 on the same, rounded, data.
    """
    x = (1000 + correlated(4)).astype(np.float32)
    params = example(covariance)[0]
    params["loc"] = np.float32(params["loc"] + 1000).astype(float)
    new, log_px = iteration(3, covariance)(on_device(params), jnp.asarray(x))
    with jax.enable_x64(True):
        expected = iteration(3, covariance)(on_device(params), jnp.asarray(x, float))
    np.testing.assert_allclose(log_px, expected[1], 1e-5)
    np.testing.assert_allclose(new["loc"], expected[0]["loc"], rtol=1e-6)
    np.testing.assert_allclose(new["scale"], expected[0]["scale"], atol=1e-4)


def test_a_component_that_no_point_reaches_stays_and_nothing_is_nan():
    params = on_device(example("full")[0])
    params["loc"] = params["loc"].at[1].set(jnp.array([1e4, -1e4]))
    x = jnp.asarray(correlated(5), jnp.float32)
    new, log_px = iteration(3, "full")(params, x)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((new, log_px)))
    assert jax.nn.softmax(new["logits"])[1] < 1e-30
    np.testing.assert_allclose(new["loc"][1], params["loc"][1])
    before, after = (covariances_of(p, "full")[1] for p in (params, new))
    np.testing.assert_allclose(after, before, rtol=1e-5)


def class_start(x, label, covariance):
    """Classes' means and their covariance, equal weights: our params and sklearn's."""
    m, dim = len(np.unique(label)), x.shape[1]
    loc = np.stack([x[label == i].mean(0) for i in range(m)])
    c = np.cov((x - loc[label]).T)
    variance, inverse, tril = np.diagonal(c), np.linalg.inv(c), np.linalg.cholesky(c)
    tril = np.where(np.eye(dim, dtype=bool), np.log(abs(tril) + (tril == 0)), tril)
    scale, precision = {
        "spherical": (np.log(variance[0]) / 2, 1 / variance[0]),
        "diagonal": (np.log(variance) / 2, 1 / variance),
        "tied": (tril, inverse),
        "full": (tril, inverse),
    }[covariance]
    if covariance != "tied":
        scale, precision = (np.stack([a] * m) for a in (scale, precision))
    theirs = {
        "weights_init": np.full(m, 1 / m),
        "means_init": loc,
        "precisions_init": precision,
        "covariance_type": {"diagonal": "diag"}.get(covariance, covariance),
    }
    return {"logits": np.zeros(m), "loc": loc, "scale": scale}, theirs


PAIRS = [(k, n) for k in KINDS for n in DATA if n != "cancer" or k == "full"]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("covariance, name", PAIRS)
@precise
def test_em_walks_with_sklearn_from_the_same_start(covariance, name):
    """Parameters after 5 iterations to 1e-7, mean log p(x) at the end to 1e-6 nats."""
    x, label = DATA[name]
    params, start = class_start(x, label, covariance)
    m = len(params["loc"])
    theirs = lambda n: GaussianMixture(
        m, tol=1e-9, reg_covar=0.0, max_iter=n, **start
    ).fit(x)
    params, values = on_device(params), []
    for i in range(400):
        params, log_px = iteration(m, covariance)(params, jnp.asarray(x))
        values.append(float(log_px))
        if i == 4:
            check_parameters(params, covariance, theirs(5))
        if i > 5 and values[-1] - values[-2] < 1e-9:
            break
    np.testing.assert_allclose(values[-1], theirs(400).score(x), atol=1e-6)
    assert np.min(np.diff(values)) > -1e-12  # no floor is in play here


def check_parameters(params, covariance, fit):
    weight = special.softmax(np.asarray(params["logits"]))
    np.testing.assert_allclose(weight, fit.weights_, atol=1e-7)
    np.testing.assert_allclose(params["loc"], fit.means_, atol=1e-7)
    c = covariances_of(params, covariance)
    kinds = {
        "spherical": c[:, 0, 0],
        "diagonal": np.diagonal(c, axis1=1, axis2=2),
        "tied": c[0],
        "full": c,
    }
    np.testing.assert_allclose(kinds[covariance], fit.covariances_, atol=1e-7)


def blobs(n=300, seed=6):
    """[n, 2] in three groups that overlap a little."""
    rng = np.random.default_rng(seed)
    loc = np.array([[0.0, 0.0], [6.0, 1.0], [1.0, 6.0]])[rng.integers(0, 3, n)]
    return loc + rng.normal(size=(n, 2)) @ [[1.0, 0.4], [0.0, 0.7]]


def blob_start(covariance="full"):
    start = lambda x: em.gaussian_mixture_start(
        jax.random.key(0), x, 3, covariance=covariance
    )
    return jax.jit(start)(jnp.asarray(blobs(), float))


@precise
def test_each_half_step_raises_the_exact_elbo():
    """By enumeration of z: from q = p(z), E, M, E, M; the E-step reaches log p(x)."""
    x, model = jnp.asarray(blobs()), gaussian_mixture(3)

    @quick_jit
    def elbo(params, q):
        return jnp.mean(jax.vmap(lambda q, x: exact_elbo(model, params, q, x))(q, x))

    posterior = quick_jit(jax.vmap(model.posterior, (None, 0)))
    params = blob_start()
    q = Categorical(jnp.zeros((len(x), 3)))
    values = [elbo(params, q)]
    for _ in range(3):
        q = posterior(params, x)
        values.append(elbo(params, q))
        params, log_px = iteration(3, "full")(params, x)
        np.testing.assert_allclose(values[-1], log_px, rtol=1e-12)
        values.append(elbo(params, q))
    assert np.min(np.diff(values)) > 1e-4


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@precise
def test_three_ways_reach_one_optimum_from_the_same_start(covariance):
    """EM, variational EM and the gradient of the marginal, to 1e-4 nats; there the
    gradient is 0; and no half-step of variational EM lowers the ELBO."""
    x, start = jnp.asarray(blobs()), blob_start(covariance)
    steps = em.gaussian_mixture_steps(3, covariance=covariance)
    how = {"num_iterations": 2000, "tolerance": 1e-11}
    exact = quick_jit(functools.partial(em.em, steps, **how))(start, x)
    free = quick_jit(functools.partial(em.variational_em, covariance=covariance, **how))
    free = free(start, x)
    assert exact.converged and free.fit.converged
    walked = np.ravel(free.elbo[: free.fit.iterations])
    assert np.min(np.diff(walked)) > -1e-12
    np.testing.assert_allclose(free.fit.log_px, exact.log_px, atol=1e-6)
    np.testing.assert_allclose(walked[-1], exact.log_px, atol=1e-6)

    marginal = gaussian_mixture(3, covariance=covariance).marginal
    loss = maximum_likelihood.negative_log_likelihood(marginal)
    value = quick_jit(jax.value_and_grad(lambda p: loss(p, None, {"x": x})[0]))
    gradient = value(exact.params)[1]
    assert max(np.max(abs(g)) for g in jax.tree.leaves(gradient)) < 1e-5
    stream = batches.shuffled({"x": np.asarray(x)}, batch_size=len(x), seed=0)
    adam = training.adam(0.05, num_steps=600)
    state = training.init_state(start, adam)
    how = {"seed": 0, "num_steps": 600, "scan_steps": 600}
    [(state, _)] = training.fit(loss, adam, state, stream, **how)
    np.testing.assert_allclose(-value(state.params)[0], exact.log_px, atol=1e-4)


@precise
def test_variational_em_with_whole_steps_is_em():
    x, start = jnp.asarray(blobs()), blob_start()
    how = {"num_iterations": 5, "tolerance": -jnp.inf}
    whole = functools.partial(em.variational_em, step_size=1.0, **how)
    whole, history, params = quick_jit(whole)(start, x), [], start
    for _ in range(5):
        params, log_px = iteration(3, "full")(params, x)
        history.append(log_px)
    np.testing.assert_allclose(whole.fit.history, history, rtol=1e-12)
    np.testing.assert_allclose(whole.elbo[:, 0], history, rtol=1e-12)
    np.testing.assert_allclose(whole.fit.params["loc"], params["loc"], rtol=1e-10)
    assert whole.fit.iterations == 5 and not whole.fit.converged


@precise
def test_the_elbo_of_variational_em_is_exact():
    """After both halves of two iterations with a step of 0.3, by enumeration of z.

    On 1,203 rows: two blocks and a rest, whose q must come back in their order.
    """
    x, model, start = jnp.asarray(blobs(1203)), gaussian_mixture(3), blob_start()
    run = lambda n: em.variational_em(
        start, x, step_size=0.3, num_iterations=n, tolerance=-jnp.inf
    )
    first, both = quick_jit(lambda: (run(1), run(2)))()

    @quick_jit
    def elbo(params, logits):
        one = lambda q, x: exact_elbo(model, params, Categorical(q), x)
        return jnp.mean(jax.vmap(one)(logits, x))

    logits, expected = jnp.zeros((len(x), 3)), []
    posterior = quick_jit(jax.vmap(model.posterior, (None, 0)))
    before = (start, first.fit.params)
    after = (first.fit.params, both.fit.params)
    for old, new in zip(before, after, strict=True):
        logits = 0.7 * jax.nn.log_softmax(logits) + 0.3 * posterior(old, x).logits
        expected.append([elbo(old, logits), elbo(new, logits)])
    np.testing.assert_allclose(both.elbo, expected, rtol=1e-12)


def test_kmeans_plus_plus_draws_by_squared_distance():
    """All 60 ordered triples of 5 points, one of them twice there: chi-square, 1e-4."""
    x = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [3.0, 1.0], [0.0, 0.0]])
    square = ((x[:, None] - x) ** 2).sum(-1)
    p = {}
    for i, j, k in itertools.product(range(5), repeat=3):
        nearest = np.minimum(square[i], square[j])
        if square[i, j] > 0 and nearest[k] > 0:
            p[i, j, k] = square[i, j] / square[i].sum() * nearest[k] / nearest.sum() / 5
    assert abs(sum(p.values()) - 1) < 1e-12
    keys = jax.random.split(jax.random.key(0), 20_000)
    centers = quick_jit(
        jax.vmap(lambda key: em.kmeans_plus_plus(key, jnp.asarray(x, jnp.float32), 3))
    )(keys)
    # Points 0 and 4 are the same: triples are told apart by their places.
    place = np.argmin(((np.asarray(centers)[:, :, None] - x[:4]) ** 2).sum(-1), -1)
    seen = {}
    for triple, probability in p.items():
        same = tuple(0 if i == 4 else i for i in triple)
        seen[same] = seen.get(same, 0) + probability
    count = np.array([np.sum(np.all(place == triple, -1)) for triple in seen])
    assert count.sum() == len(place)  # none that is impossible
    assert stats.chisquare(count, np.array([*seen.values()]) * len(place)).pvalue > 1e-4


def test_the_start_does_not_depend_on_units():
    x = blobs()
    start = jax.jit(lambda x: em.gaussian_mixture_start(jax.random.key(4), x, 3))
    unit = np.array([1e-2, 1e3])
    a = start(jnp.asarray(x, jnp.float32))
    b = start(jnp.asarray(x * unit, jnp.float32))
    loc = np.asarray(a["loc"])
    np.testing.assert_allclose(loc * unit, b["loc"], rtol=1e-4)
    rows = np.min(np.abs(loc[:, None] - x).sum(-1), 1)
    assert np.all(rows < 1e-5)  # rows of x
    expected = np.broadcast_to(np.cov(x.T, bias=True), (3, 2, 2))
    np.testing.assert_allclose(covariances_of(a, "full"), expected, rtol=1e-4)


@precise
def test_the_best_restart_is_returned_and_each_is_a_run_of_its_own():
    x, keys = jnp.asarray(IRIS.data), jax.random.split(jax.random.key(0), 8)
    kind = {"covariance": "diagonal"}
    fit = em.fit_gaussian_mixture(
        jax.random.key(0), IRIS.data, 5, tolerance=1e-4, **kind
    )
    assert fit.best.converged and fit.best.log_px == np.max(fit.log_px)
    assert np.ptp(fit.log_px) > 1e-3
    floor = 1e-6 * float(np.var(IRIS.data, 0).min())
    steps = em.gaussian_mixture_steps(5, floor=floor, **kind)

    @quick_jit
    def one(key):
        start = em.gaussian_mixture_start(key, x, 5, **kind)
        end = em.em(steps, start, x, tolerance=1e-4)
        p = gaussian_mixture(5, **kind).marginal(end.params)
        return end.log_px, maximum_likelihood.log_likelihood(p, x)

    expected = np.array([one(key) for key in keys])
    np.testing.assert_allclose(fit.log_px, expected[:, 0], rtol=1e-9)
    np.testing.assert_allclose(fit.log_px, expected[:, 1], rtol=1e-9)


BAD_X = {
    "a vector": (np.zeros(5), 1, "must be \\[n, D\\]"),
    "no rows": (np.zeros((0, 2)), 1, "must be \\[n, D\\]"),
    "nan": (np.where(np.eye(4) > 0, np.nan, 1.0), 1, "4 .* nan in row 0, column 0"),
    "inf": (np.array([[0.0, 1.0], [2.0, np.inf]]), 1, "inf in row 1, column 1"),
    "too many": (np.eye(3), 4, "4 components .* 3 in 3 rows"),
    "too many distinct": (np.tile(np.eye(2), (40, 1)), 3, "x has 2 in 80 rows"),
    "constant": (np.eye(3) * [1, 0, 2] + [0, 7, 0], 2, "constant columns \\[1\\]"),
    "one point": (np.ones((1, 3)), 1, "one point"),
    "tiny": (blobs() * [1e-30, 1], 1, "columns \\[0\\] .* float32: change"),
    "huge": (blobs() * [1, 1e30], 1, "columns \\[1\\] .* float32: change"),
}


@pytest.mark.parametrize("name", BAD_X)
def test_data_that_cannot_be_fitted_is_refused(name):
    x, m, message = BAD_X[name]
    with pytest.raises(ValueError, match=message):
        em.fit_gaussian_mixture(jax.random.key(0), x, m)


@pytest.mark.parametrize(
    "how, message",
    [
        ({"num_components": 0}, "num_components"),
        ({"covariance": "round"}, "'round'"),
        ({"floor": 0.0}, "floor is 0.0"),
        ({"floor": np.nan}, "floor is nan"),
        ({"restarts": 0}, "restarts"),
        ({"num_iterations": 0}, "num_iterations"),
    ],
)
def test_a_wrong_setting_is_refused(how, message):
    how = {"num_components": 2, **how}
    with pytest.raises(ValueError, match=message):
        em.fit_gaussian_mixture(jax.random.key(0), blobs(), **how)


@pytest.mark.parametrize(
    "how",
    [{"step_size": 0.0}, {"step_size": 1.5}, {"floor": 0}, {"tolerance": np.nan}],
)
def test_a_wrong_setting_of_variational_em_is_refused(how):
    params = on_device(example("full")[0])
    with pytest.raises(ValueError, match=[*how][0]):
        em.variational_em(params, jnp.asarray(blobs()), **how)


def test_steps_refuse_wrong_settings():
    for how in ({"floor": -1.0}, {"covariance": "diag"}):
        with pytest.raises(ValueError, match=[*how][0]):
            em.gaussian_mixture_steps(2, **how)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        em.gaussian_mixture_steps(0)


def test_a_collapse_of_every_restart_names_the_component():
    """Five copies of one point, far from the others."""
    one_group = np.random.default_rng(7).normal(size=(60, 2))
    x = np.concatenate([np.full((5, 2), 30.0), one_group])
    with pytest.raises(em.CollapsedComponentError) as error:
        em.fit_gaussian_mixture(jax.random.key(0), x, 2, restarts=4)
    assert "(weight 0.077: 5 of 65 points) has collapsed" in str(error.value)
    assert "larger floor" in str(error.value)


def test_a_collapsed_restart_is_passed_over_though_it_scores_higher():
    """Three groups for two components, and five copies of one point."""
    x = np.concatenate([np.full((5, 2), 30.0), blobs(60)])
    fit = em.fit_gaussian_mixture(jax.random.key(0), x, 2, restarts=4)
    assert fit.log_px[~fit.sound].max() > fit.best.log_px + 0.1
    assert fit.best.log_px == fit.log_px[fit.sound].max()


@pytest.mark.parametrize(
    "logit, log_scale, message",
    [
        (-9.0, 0.0, "component 1 .* holds less than one point"),
        (0.0, -7.0, "component 1 .* at the floor 1e-06"),
        (0.0, np.nan, "component 1 .* variance nan"),
    ],
)
def test_what_is_wrong_with_a_component_is_said(logit, log_scale, message):
    params = {
        "logits": jnp.array([0.0, logit]),
        "loc": jnp.zeros((2, 1)),
        "scale": jnp.array([0.0, log_scale]),
    }
    assert re.search(message, checks.complaint(params, 1000, 1e-6, "spherical"))


def test_collinear_columns_are_a_collapse_too():
    x = blobs(65)[:, :1] * [1.0, 2.0]
    with pytest.raises(em.CollapsedComponentError, match="linear functions of others"):
        em.fit_gaussian_mixture(jax.random.key(0), x, 2, restarts=4)


def test_one_column_works():
    x = np.array([[0.0], [1.0], [10.0], [11.0]])
    fit = em.fit_gaussian_mixture(
        jax.random.key(0), x, 2, restarts=4, covariance="spherical"
    )
    assert fit.sound.all() and fit.log_px.dtype == jnp.float32
    loc = np.sort(np.ravel(fit.best.params["loc"]))
    np.testing.assert_allclose(loc, [0.5, 10.5], atol=1e-4)
    expected = np.log(0.5) + np.log(2 / np.sqrt(2 * np.pi)) - 0.5
    np.testing.assert_allclose(fit.best.log_px, expected, atol=1e-4)
