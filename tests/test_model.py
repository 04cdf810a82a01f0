"""What one does with a model, where the answers are known in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import (
    EXACT,
    LOG_NOISE,
    MEAN,
    MODELS,
    WEIGHT,
    WRONG,
    X,
    exact_elbo,
    exact_log_px,
    exact_params,
    exact_posterior,
    quick_jit,
    wrong_params,
    z_scores,
)
from scipy import stats

import vi_jax
from vi_jax.model import (
    Terms,
    analytic_terms,
    interpolate,
    linear,
    log_weight,
    sampled_terms,
    spherical,
    traverse,
)
from vi_jax.models import linear_gaussian
from vi_jax.objectives import per_example

X_B = np.array([-0.9, 1.4, 0.2])
Z = np.array([0.7, -1.2])


def check_draws(draws, mean, covariance):
    """Mean and second moments of draws [n, d], each within 4.5 standard errors."""
    draws = np.asarray(draws, np.float64)
    assert np.all(abs(z_scores(draws, mean)) < 4.5)
    centred = draws - mean
    products = centred[:, :, None] * centred[:, None, :]
    assert np.all(abs(z_scores(products, covariance)) < 4.5)


def test_generate_decodes_draws_of_the_prior():
    """mu + W z with z ~ N(0, I), and no noise of p(x | z) on top; 20,000 draws."""
    keys = jax.random.split(jax.random.key(0), 20_000)
    draw = jax.vmap(lambda key: vi_jax.generate(EXACT, exact_params(), key))
    check_draws(quick_jit(draw)(keys), MEAN, WEIGHT @ WEIGHT.T)


def test_reconstruct_decodes_draws_of_the_posterior():
    keys = jax.random.split(jax.random.key(1), 20_000)
    x = jnp.array(X, float)
    draw = jax.vmap(lambda key: vi_jax.reconstruct(EXACT, exact_params(), key, x))
    gain, offset, covariance = exact_posterior()
    mean = WEIGHT @ (gain @ X + offset) + MEAN
    check_draws(quick_jit(draw)(keys), mean, WEIGHT @ covariance @ WEIGHT.T)


def test_infer_is_the_exact_posterior():
    gain, offset, covariance = exact_posterior()
    with jax.enable_x64(True):
        q = vi_jax.infer(EXACT, exact_params(), jnp.array(X, float))
        np.testing.assert_allclose(q.loc, gain @ X + offset, rtol=1e-12)
        np.testing.assert_allclose(q.scale_tril @ q.scale_tril.T, covariance, 1e-12)


def test_marginal_is_scipys():
    with jax.enable_x64(True):
        got = EXACT.marginal(exact_params()).log_prob(jnp.array(X, float))
    np.testing.assert_allclose(got, exact_log_px(), rtol=1e-12)


def test_init_of_the_linear_gaussian_fits_the_example():
    params = linear_gaussian(4).init(jax.random.key(0), jnp.zeros(6))
    assert params["weight"].shape == (6, 4)
    assert np.std(np.asarray(params["weight"])) > 0.1


def test_log_joint_is_scipys():
    log_lik = stats.norm(WEIGHT @ Z + MEAN, np.exp(LOG_NOISE)).logpdf(X).sum()
    with jax.enable_x64(True):
        got = vi_jax.log_joint(
            EXACT, exact_params(), jnp.array(X, float), jnp.array(Z, float)
        )
    np.testing.assert_allclose(got, log_lik + stats.norm.logpdf(Z).sum(), rtol=1e-12)


def test_terms_are_scipys_log_densities():
    """Each under its own name, for each of k samples; so is their log-weight."""
    with jax.enable_x64(True):
        params, x = wrong_params(), jnp.array(X, float)
        q = WRONG.posterior(params, x)
        z = np.stack([Z, -Z, 0.3 * Z])
        got = quick_jit(sampled_terms(WRONG, x))(params, q, jnp.array(z))
        weights = jax.vmap(lambda t: log_weight(t, 0.7))(got)
    log_lik = stats.norm(z @ WEIGHT.T + MEAN, np.exp(LOG_NOISE)).logpdf(X).sum(-1)
    log_prior = stats.norm.logpdf(z).sum(-1)
    log_post = stats.norm(q.loc, q.scale).logpdf(z).sum(-1)
    for a, b in zip(got, (log_lik, log_prior, log_post), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    np.testing.assert_allclose(
        weights, log_lik + 0.7 * (log_prior - log_post), rtol=1e-12
    )


def test_log_weight_sums_over_groups_and_tempers_the_kl_alone():
    terms = Terms(
        jnp.array(-7.0), jnp.array([-1.0, -2.5, 0.5]), jnp.array([0.25, -2.0, 1.0])
    )
    difference = -1.25 - 0.5 - 0.5
    assert log_weight(terms) == -7 + difference
    assert log_weight(terms, 0.5) == -7 + 0.5 * difference
    assert log_weight(terms, jnp.float32(4)) == -7 + 4 * difference


def test_log_weight_of_several_samples_is_an_error():
    """It would sum over the samples, as over groups of latents."""
    many = Terms(jnp.zeros(5), jnp.zeros(5), jnp.zeros(5))
    with pytest.raises(ValueError, match=r"one sample.*\(5,\).*jax\.vmap"):
        log_weight(many)
    assert jax.vmap(log_weight)(many).shape == (5,)


@pytest.mark.parametrize("model", MODELS)
def test_analytic_elbo_is_the_mean_of_the_sampled_one(model):
    """By closed form, for 3 betas; and analytic terms leave log p(x | z) alone.

    10,000 draws, 4.5 standard errors; the noise that remains is that of log p(x | z).
    """
    record, make = MODELS[model]
    params, x = make(), jnp.array(X, float)

    def value(key, beta, terms):
        return per_example(record, params, key, x, beta=beta, terms=terms)[0]

    keys = jax.random.split(jax.random.key(2), 10_000)
    betas = jnp.array([0.5, 1.0, 3.0])
    spread = {}
    for terms in (analytic_terms, sampled_terms):
        each = lambda key, beta, terms=terms: value(key, beta, terms)
        draws = quick_jit(jax.vmap(jax.vmap(each, (0, None)), (None, 0)))(
            jax.random.clone(keys), betas
        )
        for i, beta in enumerate((0.5, 1.0, 3.0)):
            expected = exact_elbo(record, params, x, beta)
            assert abs(z_scores(draws[i], expected)) < 4.5
        spread[terms] = np.asarray(draws).std(1)
    # Without the noise of the KL, beta does not change the spread.
    np.testing.assert_allclose(spread[analytic_terms], spread[analytic_terms][0], 1e-3)
    assert np.ptp(spread[sampled_terms]) > 0.01


def test_interpolation_ends_at_the_reconstructions_from_the_means():
    """On the straight path everything between is their straight path too."""
    gain, offset, _ = exact_posterior()
    decode = lambda x: WEIGHT @ (gain @ x + offset) + MEAN
    a, b = decode(X), decode(X_B)
    ends = jnp.array(X, float), jnp.array(X_B, float)
    walk = lambda **how: quick_jit(
        functools.partial(interpolate, EXACT, num_points=5, **how)
    )(exact_params(), *ends)
    for path in (linear, spherical):
        got = walk(path=path)
        assert got.shape == (5, 3)
        np.testing.assert_allclose(got[0], a, atol=1e-5)
        np.testing.assert_allclose(got[-1], b, atol=1e-5)
    got = walk(path=linear)
    np.testing.assert_allclose(got[1], 0.75 * a + 0.25 * b, atol=1e-5)
    curved = walk()
    assert np.max(abs(curved[2] - got[2])) > 0.01  # spherical is the default


def test_a_traversal_moves_one_latent_and_leaves_the_others_at_their_means():
    gain, offset, _ = exact_posterior()
    z = gain @ X + offset
    walk = quick_jit(functools.partial(traverse, EXACT, num_points=3, limit=1.5))
    got = walk(exact_params(), jnp.array(X, float))
    assert got.shape == (z.size, 3, 3)
    for j in range(z.size):
        for p, value in enumerate((-1.5, 0.0, 1.5)):
            moved = np.where(np.arange(z.size) == j, value, z)
            np.testing.assert_allclose(got[j, p], WEIGHT @ moved + MEAN, atol=1e-5)


def test_a_traversal_of_layers_is_an_error():
    layered = EXACT._replace(
        posterior=lambda params, x: vi_jax.distributions.Normal(x[None], x[None])
    )
    with pytest.raises(ValueError, match="latents"):
        traverse(layered, exact_params(), jnp.array(X, float))


def test_the_great_circle_keeps_the_length_and_moves_at_constant_angle():
    rng = np.random.default_rng(3)
    a, b = (v / np.linalg.norm(v) * 3 for v in rng.normal(size=(2, 6)))
    t = np.linspace(0, 1, 7)
    path = jax.vmap(lambda t: spherical(jnp.array(a, float), jnp.array(b, float), t))
    points = np.asarray(path(jnp.array(t, float)), np.float64)
    np.testing.assert_allclose(np.linalg.norm(points, axis=-1), 3, rtol=1e-5)
    angles = np.arccos(np.clip(points @ a / 9, -1, 1))
    np.testing.assert_allclose(angles, t * np.arccos(a @ b / 9), atol=2e-3)


VECTOR = np.array([1.0, -2.0, 0.5])
DEGENERATE = {
    "parallel": (VECTOR, 2.5 * VECTOR),
    "equal": (VECTOR, VECTOR),
    "opposite": (VECTOR, -VECTOR),
    "zero": (VECTOR, 0 * VECTOR),
    "both_zero": (0 * VECTOR, 0 * VECTOR),
    "tiny_angle": (VECTOR, VECTOR + [0.0, 0.0, 1e-6]),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_without_a_great_circle_the_path_is_straight(name):
    """The docstring's exceptions, ends included."""
    a, b = (jnp.array(v, float) for v in DEGENERATE[name])
    t = jnp.array([0.0, 0.25, 0.5, 1.0])
    points = jax.vmap(lambda t: spherical(a, b, t))(t)
    expected = jax.vmap(lambda t: (1 - t) * a + t * b)(t)
    np.testing.assert_allclose(points, expected, atol=1e-5)
    np.testing.assert_array_equal(points[0], a)
    np.testing.assert_array_equal(points[-1], b)


def test_opposite_vectors_of_any_direction_take_the_straight_path():
    """Rounding of the cosine must not put a direction on a circle of its own."""
    vectors = jax.random.normal(jax.random.key(5), (2000, 50))
    points = quick_jit(jax.vmap(lambda a: spherical(a, -a, 0.25)))(vectors)
    np.testing.assert_allclose(points, 0.5 * vectors, atol=1e-3)


@pytest.mark.parametrize("name", DEGENERATE)
def test_the_gradient_of_a_path_is_finite(name):
    a, b = (jnp.array(v, float) for v in DEGENERATE[name])
    length = lambda a, b: jnp.sum(spherical(a, b, 0.3) ** 2)
    gradients = quick_jit(jax.grad(length, argnums=(0, 1)))(a, b)
    assert all(np.all(np.isfinite(g)) for g in gradients)
