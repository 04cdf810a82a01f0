"""The ELBO where all is known: its four forms, its gap, Jensen, coordinate ascent.

Numpy's float64 says what each number is, by formulas and sums of its own.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import quick_jit, z_scores
from scipy import special, stats

from vi_jax import bounds
from vi_jax.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    FullNormal,
    JointBernoulli,
    Mixture,
    Normal,
)
from vi_jax.evaluation.exact import (
    elbo_forms,
    exact_elbo,
    log_weight_variance,
    variational_gap,
)
from vi_jax.model import ExactModel, log_joint
from vi_jax.models import gaussian_mixture, linear_gaussian, sigmoid_belief_network
from vi_jax.models.gaussian_mixture import unconstrained
from vi_jax.quadrature import expectation

PRECISIONS = pytest.mark.parametrize("x64, tolerance", [(False, 1e-5), (True, 1e-10)])
RNG = np.random.default_rng(0)

# d = 2, D = 3 with both noises; m = 3, D = 2; d = 3, D = 4: nothing is symmetric.
WEIGHT = np.array([[0.9, -0.4], [0.3, 0.7], [-0.5, 1.2]])
MEAN = np.array([0.4, -0.2, 0.1])
LOG_NOISE = {"isotropic": np.array(-0.3), "diagonal": np.array([-0.3, 0.1, -0.5])}
LOGITS = np.array([0.3, -0.5, 0.9])
LOC = np.array([[0.1, 1.0], [-1.0, 0.3], [1.5, -0.7]])
SPREAD = {
    "spherical": RNG.normal(size=3) * 0.3,
    "diagonal": RNG.normal(size=(3, 2)) * 0.3,
    "tied": np.array([[0.2, 0.0], [-0.4, -0.3]]),
    "full": RNG.normal(size=(3, 2, 2)) * 0.4,
}
SBN_WEIGHT = np.array(
    [[1.9, -1.4, 0.3], [0.3, 2.7, -1.0], [-1.5, 0.2, 0.8], [0.6, 0.5, -2.2]]
)
SBN_PRIOR, SBN_BIAS = np.array([0.7, -0.4, -1.2]), np.array([-0.5, 0.2, 0.4, -0.9])


def compute(f, *args):
    """f(*args) compiled, as numpy arrays, which outlive `enable_x64`."""
    return jax.device_get(quick_jit(f)(*args))


class Case(NamedTuple):
    """A model, an example, and its terms under a q, in float64."""

    model: ExactModel
    params: dict  # numpy, to be cast
    q: type
    q_leaves: tuple
    x: np.ndarray
    expected: Callable[[], tuple]  # -> (E_q log p(x | z), -KL to the prior, log p(x))

    def cast(self):
        """(params, q, x) in the current default dtype."""
        f = lambda a: jnp.array(a, float)
        return jax.tree.map(f, self.params), self.q(*map(f, self.q_leaves)), f(self.x)


# ------------------------------------------------------- the numbers, by numpy alone


def linear_case(noise: str, full: bool) -> Case:
    """Closed forms: a quadratic under a Gaussian, and the KL by traces."""
    loc = np.array([0.3, -0.8])
    tril = np.array([[0.6, 0.0], [-0.3, 0.9]]) if full else np.diag([0.6, 0.9])
    x, sd = np.array([1.1, -0.6, 0.3]), np.exp(np.resize(LOG_NOISE[noise], 3))

    def expected():
        s = tril @ tril.T
        square = (x - WEIGHT @ loc - MEAN) ** 2 + np.diag(WEIGHT @ s @ WEIGHT.T)
        lik = stats.norm(0, sd).logpdf(0).sum() - 0.5 * np.sum(square / sd**2)
        kl = 0.5 * (np.trace(s) + loc @ loc - 2 - np.linalg.slogdet(s)[1])
        marginal = stats.multivariate_normal(MEAN, WEIGHT @ WEIGHT.T + np.diag(sd**2))
        return lik, -kl, marginal.logpdf(x)

    params = {"weight": WEIGHT, "mean": MEAN, "log_noise": LOG_NOISE[noise]}
    model = linear_gaussian(2, noise=noise)
    q, spread = (FullNormal, tril) if full else (Normal, np.diag(tril))
    return Case(model, params, q, (loc, spread), x, expected)


def covariances(name: str) -> np.ndarray:
    """[3, 2, 2] of the unconstrained SPREAD."""
    s = SPREAD[name]
    if name in ("spherical", "diagonal"):
        return (
            np.eye(2) * np.exp(2 * np.broadcast_to(s.reshape(3, -1), (3, 2)))[:, None]
        )
    tril = np.tril(s, -1) + np.exp(np.einsum("...ii->...i", s))[..., None] * np.eye(2)
    return np.broadcast_to(tril @ np.swapaxes(tril, -1, -2), (3, 2, 2))


def table_terms(q: np.ndarray, log_lik: np.ndarray, log_prior: np.ndarray) -> tuple:
    """The three terms of a q that is a table; an impossible entry adds 0."""
    kl = np.sum(special.rel_entr(q, np.exp(log_prior)))
    return q @ log_lik, -kl, special.logsumexp(log_lik + log_prior)


def mixture_case(covariance: str, q_logits) -> Case:
    x = np.array([0.4, -0.3])

    def expected():
        each = zip(LOC, covariances(covariance), strict=True)
        log_lik = [stats.multivariate_normal(m, c).logpdf(x) for m, c in each]
        q, log_prior = special.softmax(q_logits), special.log_softmax(LOGITS)
        return table_terms(q, np.array(log_lik), log_prior)

    params = {"logits": LOGITS, "loc": LOC, "scale": SPREAD[covariance]}
    model = gaussian_mixture(3, covariance=covariance)
    return Case(model, params, Categorical, (np.array(q_logits),), x, expected)


STATES = np.array([z[::-1] for z in itertools.product([0.0, 1.0], repeat=3)])


def log_coins(x, logits) -> np.ndarray:
    return -np.logaddexp(0, np.where(x == 1, -logits, logits)).sum(-1)


def network_case(q: type, q_logits) -> Case:
    x = np.array([0.0, 1.0, 1.0, 0.0])

    def expected():
        log_lik = log_coins(x, STATES @ SBN_WEIGHT.T + SBN_BIAS)
        factorised = lambda: np.exp(log_coins(STATES, np.array(q_logits)))
        table = special.softmax(q_logits) if q is JointBernoulli else factorised()
        return table_terms(table, log_lik, log_coins(STATES, SBN_PRIOR))

    params = {"prior": SBN_PRIOR, "weight": SBN_WEIGHT, "bias": SBN_BIAS}
    model = sigmoid_belief_network(3)
    return Case(model, params, q, (np.array(q_logits),), x, expected)


CASES = {
    "linear_isotropic_diagonal_q": linear_case("isotropic", full=False),
    "linear_diagonal_diagonal_q": linear_case("diagonal", full=False),
    "linear_diagonal_full_q": linear_case("diagonal", full=True),
    **{f"mixture_{c}": mixture_case(c, [0.5, -1.0, 0.2]) for c in SPREAD},
    "mixture_impossible_class": mixture_case("full", [0.5, -np.inf, 0.2]),
    "network_mean_field": network_case(Bernoulli, [0.8, -1.5, 0.3]),
    "network_table": network_case(JointBernoulli, np.linspace(-1, 1, 8) ** 3),
    "network_impossible_states": network_case(
        JointBernoulli, [-np.inf, 0.3, -0.2, 1.0, 0.5, -np.inf, 0.1, -0.7]
    ),
}
EVERY_CASE = pytest.mark.parametrize("name", CASES)
TABLES = ("mixture_full", "network_table")
ONE_OF_EACH = pytest.mark.parametrize("name", ["linear_diagonal_full_q", *TABLES])


def posterior(case: Case):
    """(params, p(z | x), x) in the current default dtype."""
    params, _, x = case.cast()
    return params, case.model.posterior(params, x), x


# -------------------------------------------------------------------- the four forms


@EVERY_CASE
@PRECISIONS
def test_the_elbo_is_one_number_in_four_forms(name, x64, tolerance):
    """Relative to 1e-5 in float32 and 1e-10 in float64; the gap is what is left."""
    case = CASES[name]
    log_lik, minus_kl, log_px = case.expected()
    with jax.enable_x64(x64):
        values = lambda *args: (
            elbo_forms(case.model, *args, order=2),
            variational_gap(case.model, *args),
        )
        forms, gap = compute(values, *case.cast())
    for value in forms:
        assert value.shape == ()
        np.testing.assert_allclose(value, log_lik + minus_kl, rtol=tolerance)
    gap_tolerance = tolerance * abs(log_px)
    np.testing.assert_allclose(gap, log_px - log_lik - minus_kl, atol=gap_tolerance)
    assert gap > 0.05


@ONE_OF_EACH
def test_at_the_posterior_the_gap_closes(name):
    """q = p(z | x): no gap, no variance of log w, and the ELBO is log p(x)."""
    case = CASES[name]
    values = lambda *args: (
        exact_elbo(case.model, *args, order=3),
        variational_gap(case.model, *args),
        log_weight_variance(case.model, *args, order=3),
    )
    with jax.enable_x64(True):
        elbo, gap, variance = compute(values, *posterior(case))
    np.testing.assert_allclose(elbo, case.expected()[2], rtol=1e-10)
    assert abs(gap) < 1e-14 and 0 <= variance < 1e-24


def towards(q, target, t):
    """The path q^(1 - t) target^t, normalised: KL(. || target) falls on it."""
    if not isinstance(q, FullNormal):
        return type(q)((1 - t) * q.logits + t * target.logits)
    inverse = lambda d: jnp.linalg.inv(d.scale_tril @ d.scale_tril.T)
    a, b = (1 - t) * inverse(q), t * inverse(target)
    covariance = jnp.linalg.inv(a + b)
    loc = covariance @ (a @ q.loc + b @ target.loc)
    return FullNormal(loc, jnp.linalg.cholesky(covariance))


@ONE_OF_EACH
def test_as_q_moves_to_the_posterior_the_gap_falls_at_every_step(name):
    """And the ELBO rises by as much; 20 steps, the last of which has no gap."""
    case = CASES[name]

    def along(params, q, x):
        target = case.model.posterior(params, x)

        def at(t):
            now = towards(q, target, t)
            gap = variational_gap(case.model, params, now, x)
            return gap, exact_elbo(case.model, params, now, x, order=2)

        return jax.vmap(at)(jnp.linspace(0, 1, 21))

    with jax.enable_x64(True):
        gap, elbo = compute(along, *case.cast())
    assert np.all(np.diff(gap) < 0) and np.all(np.diff(elbo) > 0)
    np.testing.assert_allclose(elbo + gap, case.expected()[2], rtol=1e-10)
    assert gap[0] > 0.05 and gap[-1] < 1e-12


def test_a_factorised_q_leaves_a_gap_that_no_optimum_closes():
    """The best coins by gradient: no better start or step is known to numpy either.

    The least KL over a fine grid of all factorised q is the reference, to 3e-4 nats.
    """
    case = CASES["network_mean_field"]
    log_p = log_coins(case.x, STATES @ SBN_WEIGHT.T + SBN_BIAS)
    log_p = special.log_softmax(log_p + log_coins(STATES, SBN_PRIOR))
    line = special.logit(np.linspace(0.01, 0.99, 99))
    grid = np.stack(np.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3)
    log_q = grid @ STATES.T - np.logaddexp(0, grid).sum(-1)[:, None]
    least = np.min(np.sum(np.exp(log_q) * (log_q - log_p), -1))
    with jax.enable_x64(True):
        params, q, x = case.cast()
        elbo = lambda q: exact_elbo(case.model, params, q, x)
        climb = lambda i, q: jax.tree.map(lambda a, g: a + g, q, jax.grad(elbo)(q))
        best = lambda q: jax.lax.fori_loop(0, 400, climb, q)
        gap = compute(lambda q: variational_gap(case.model, params, best(q), x), q)
    assert least - 3e-4 < gap < least + 1e-12 and gap > 0.005


# ------------------------------------------------------------ gradients and samples


@ONE_OF_EACH
def test_at_the_posterior_the_elbos_gradient_is_that_of_log_px(name):
    """Fisher's identity, which is why the M-step climbs log p(x); q is held."""
    case = CASES[name]

    def both(params, q, x):
        elbo = lambda params: exact_elbo(case.model, params, q, x, order=2)
        log_px = lambda params: case.model.marginal(params).log_prob(x)
        return jax.grad(elbo)(params), jax.grad(log_px)(params)

    with jax.enable_x64(True):
        args = posterior(case)
        at_q, expected = compute(both, *args)
        elsewhere = compute(both, args[0], case.cast()[1], args[2])[0]
    for leaf in expected:
        np.testing.assert_allclose(at_q[leaf], expected[leaf], rtol=1e-9, atol=1e-10)
        assert np.max(abs(elsewhere[leaf] - expected[leaf])) > 1e-3


@pytest.mark.parametrize("name", ["linear_isotropic_diagonal_q", "network_mean_field"])
def test_sampled_log_weights_average_to_the_exact_elbo(name):
    """4,000 draws of 5 log-weights, 4 standard errors; so does their variance."""
    case = CASES[name]
    params, q, x = case.cast()

    def draw(key):
        z = jax.vmap(q.sample)(jax.random.split(key, 5))
        log_w = jax.vmap(lambda z: log_joint(case.model, params, x, z) - q.log_prob(z))(
            z
        )
        return bounds.elbo(log_w), jnp.var(log_w, ddof=1)

    draws = compute(jax.vmap(draw), jax.random.split(jax.random.key(3), 4_000))
    log_lik, minus_kl, _ = case.expected()
    assert abs(z_scores(draws[0], log_lik + minus_kl)) < 4
    both = lambda q: [
        f(case.model, params, q, x, order=3) for f in (exact_elbo, log_weight_variance)
    ]
    elbo, variance = compute(both, q)
    np.testing.assert_allclose(elbo, log_lik + minus_kl, rtol=1e-5)
    assert abs(z_scores(draws[1], variance)) < 4


# ------------------------------------------------------------------- coordinate ascent


def halves(model, e_step, m_step, params, x, num_iterations):
    """[(ELBO, log p(x))] after each half-step, means over x."""
    elbo = jax.vmap(lambda p, q, x: exact_elbo(model, p, q, x), (None, 0, 0))
    log_px = lambda p: jnp.mean(jax.vmap(model.marginal(p).log_prob)(x))
    levels = quick_jit(lambda p, q: (jnp.mean(elbo(p, q, x)), log_px(p)))
    e_step, m_step = quick_jit(e_step), quick_jit(m_step)
    seen = []
    for _ in range(num_iterations):
        q = e_step(params, x)
        seen.append(levels(params, q))
        params = m_step(params, q, x)
        seen.append(levels(params, q))
    return np.array(seen)


def check_staircase(seen, least_gain):
    """After an E-step the ELBO is log p(x); an M-step lifts both; nothing lowers it."""
    elbo, log_px = seen.T
    np.testing.assert_allclose(elbo[::2], log_px[::2], rtol=1e-10)
    assert np.all(elbo <= log_px + 1e-12)
    assert np.all(np.diff(elbo) > -1e-13)
    assert np.all(np.diff(log_px) > -1e-13)
    # The M-step raises log p(x) by at least what it gains on the ELBO.
    gained = np.diff(seen, axis=0)[::2]
    assert np.all(gained[:, 1] >= gained[:, 0] - 1e-12)
    assert elbo[-1] - elbo[0] > least_gain


def batch_posterior(model):
    return jax.vmap(model.posterior, (None, 0))


def test_em_for_a_mixture_is_coordinate_ascent_on_the_elbo():
    """Closed-form M-step, full covariances; 12 iterations gain 0.3 nats a point."""
    model = gaussian_mixture(2)
    rng = np.random.default_rng(1)
    data = rng.normal(size=(60, 2)) @ [[1.0, 0.4], [0.0, 0.6]]
    data[:25] += [3.0, -2.0]

    def m_step(params, q, x):
        r = jax.nn.softmax(q.logits)  # [n, m]
        n = jnp.sum(r, 0)
        loc = r.T @ x / n[:, None]
        centred = x[:, None, :] - loc[None]
        c = jnp.einsum("nm,nmi,nmj->mij", r, centred, centred) / n[:, None, None]
        scale = unconstrained(jnp.linalg.cholesky(c))
        return {"logits": jnp.log(n), "loc": loc, "scale": scale}

    with jax.enable_x64(True):
        start = {
            "logits": jnp.zeros(2),
            "loc": jnp.array([[0.0, 0.1], [0.5, 0.0]]),
            "scale": jnp.zeros((2, 2, 2)),
        }
        x = jnp.array(data)
        check_staircase(
            halves(model, batch_posterior(model), m_step, start, x, 12), least_gain=0.3
        )


def test_em_for_a_network_is_coordinate_ascent_by_gradient_too():
    """A partial M-step, 5 gradient steps on the ELBO with q held, is enough."""
    model = sigmoid_belief_network(3)
    data = np.random.default_rng(2).integers(0, 2, (12, 4)).astype(float)
    data[:, 1] = data[:, 0]

    def m_step(params, q, x):
        each = jax.vmap(lambda p, q, x: exact_elbo(model, p, q, x), (None, 0, 0))
        gradient = jax.grad(lambda p: jnp.mean(each(p, q, x)))
        climb = lambda p: jax.tree.map(lambda a, g: a + 0.3 * g, p, gradient(p))
        return jax.lax.fori_loop(0, 5, lambda i, p: climb(p), params)

    with jax.enable_x64(True):
        params, x = CASES["network_table"].cast()[0], jnp.array(data)
        check_staircase(
            halves(model, batch_posterior(model), m_step, params, x, 8), least_gain=0.4
        )


# ------------------------------------------------------------------------------ Jensen


@pytest.mark.parametrize("scale", [0.1, 1.0, 2.0])
def test_the_log_of_the_mean_is_above_the_mean_of_the_log(scale):
    """For log-normal w by scipy's mean: half of Var[log w] at every variance."""
    with jax.enable_x64(True):
        log_w = Normal(jnp.array([-1.3]), jnp.array([scale]))
        f = lambda a: jnp.stack([jnp.exp(a[0]), a[0]])
        mean_w, mean_log_w = compute(lambda q: expectation(q, f, order=60), log_w)
        gap = np.log(mean_w) - mean_log_w
    expected = np.log(stats.lognorm(scale, scale=np.exp(-1.3)).mean()) + 1.3
    np.testing.assert_allclose(gap, expected, rtol=1e-10)
    np.testing.assert_allclose(gap, 0.5 * scale**2, rtol=1e-10)


def moved(q: FullNormal, shift, ratio) -> FullNormal:
    """q off by `shift` standard deviations and wider by `ratio`."""
    return FullNormal(q.loc + q.scale_tril @ shift, ratio * q.scale_tril)


def gap_and_variance(shifts, ratios) -> tuple[np.ndarray, np.ndarray]:
    case = CASES["linear_diagonal_full_q"]

    def one(params, q, x, shift, ratio):
        q = moved(q, shift, ratio)
        variance = log_weight_variance(case.model, params, q, x, order=3)
        return variational_gap(case.model, params, q, x), variance

    with jax.enable_x64(True):
        each = jax.vmap(one, (None, None, None, 0, 0))
        moves = jnp.array(shifts), jnp.array(ratios)
        return compute(each, *posterior(case), *moves)


def test_the_gap_of_a_shifted_posterior_is_half_the_variance_exactly():
    """Its log w is linear in z, hence Gaussian: the gap is |shift|^2 / 2."""
    shifts = np.array([[0.01, 0.0], [0.3, -0.2], [1.0, 2.0]])
    gap, variance = gap_and_variance(shifts, np.ones(3))
    np.testing.assert_allclose(gap, 0.5 * np.sum(shifts**2, 1), rtol=1e-10)
    np.testing.assert_allclose(variance, 2 * gap, rtol=1e-9)


def test_the_gap_of_a_scaled_posterior_is_half_the_variance_near_zero():
    """Of d = 2: gap s^2 - 1 - 2 log s, variance (1 - s^2)^2; their slope at 0 is 1/2.

    A line through gap / variance, measured, meets s = 1 at 0.5 to 1e-4. Away from it a
    narrow q has more than half, a wide one less.
    """
    ratios = 1 + np.array([-0.5, -0.02, -0.01, 0.01, 0.02, 0.5])
    gap, variance = gap_and_variance(np.zeros((6, 2)), ratios)
    np.testing.assert_allclose(gap, ratios**2 - 1 - 2 * np.log(ratios), rtol=1e-9)
    np.testing.assert_allclose(variance, (1 - ratios**2) ** 2, rtol=1e-9)
    slope = gap / variance
    near = np.polyfit(ratios[1:5] - 1, slope[1:5], 2)
    np.testing.assert_allclose(near[-1], 0.5, atol=1e-4)
    np.testing.assert_allclose(near[-2], -2 / 3, rtol=0.01)
    assert slope[0] > 1.1 and slope[-1] < 0.3


# ------------------------------------------------------------------------------ errors


def test_what_has_no_exact_answer_is_an_error():
    case = CASES["linear_diagonal_full_q"]
    params, q, x = case.cast()
    spread = jax.tree.map(lambda a: jnp.stack([a, a]), q)
    mixture = Mixture(jnp.zeros(2), spread)
    for f in (variational_gap, elbo_forms):
        with pytest.raises(ValueError, match="no closed form"):
            compute(functools.partial(f, case.model), params, mixture, x)
    # The quadrature of that mixture exists: twice the same component is the component.
    expected = sum(case.expected()[:2])
    elbo = lambda q: exact_elbo(case.model, params, q, x, order=3)
    got = compute(elbo, mixture)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    for f in (exact_elbo, log_weight_variance):
        with pytest.raises(ValueError, match="no quadrature here for Beta"):
            f(case.model, params, Beta(jnp.ones(2), jnp.ones(2)), x)
        with pytest.raises(ValueError, match="at least 1"):
            f(case.model, params, q, x, order=0)
