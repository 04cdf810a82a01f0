"""MADE and its likelihood: what depends on what, and every probability, by listing."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contracts import quick_jit

from experiments import mnist_made
from vi_jax import likelihoods, networks
from vi_jax.distributions import binary_states

LATENTS = 3
NARROW = {"hidden": (4, 6), "direct": True}
WIDE = {"hidden": (12, 9), "direct": False}
FLAT = {"hidden": (), "direct": True}
GIVEN_Z = {"hidden": (7,), "direct": True, "latent_hidden": (5,)}


def decoder(shape, *, hidden, **options):
    network = networks.made(hidden, activation=jnp.tanh, **options)
    return likelihoods.autoregressive_bernoulli(network, shape)


def drawn(made, z, seed=0):
    """Params of the decoder, all of them drawn wide, so that everything matters."""
    like = jax.eval_shape(made.init, jax.random.key(0), z)
    rng = np.random.default_rng(seed)
    draw = lambda leaf: jnp.asarray(rng.normal(0, 0.8, leaf.shape), float)
    return jax.tree.map(draw, like)


def latents(n, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 1, (n, LATENTS)), float)


def all_log_probs(made, params, z, size, shape):
    """log p(x | z) of all 2^size events for each z, [n, 2^size], and the events."""
    x = binary_states(size)
    one = lambda z, x: made.apply(params, z).log_prob(x.reshape(shape))
    each = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
    return np.asarray(quick_jit(each)(z, x)), np.asarray(x)


@pytest.mark.parametrize("options", [NARROW, WIDE, FLAT, GIVEN_Z], ids=str)
def test_a_logit_depends_on_all_earlier_entries_and_on_z_only(options):
    """By the exact Jacobian at several places, in float64."""
    size = 6
    with jax.enable_x64(True):
        made, z = decoder((2, 3), **options), latents(5)
        params = drawn(made, z[0])
        x = jnp.asarray(np.random.default_rng(2).uniform(0, 1, (5, 2, 3)))
        network = made.apply(params, z[0]).network
        logits = lambda x, z: network.apply(params, (x, z)).ravel()
        both = quick_jit(jax.vmap(jax.jacobian(logits, (0, 1))))(x, z)
        by_x, by_z = map(np.asarray, both)
    by_x = abs(by_x).max(0).reshape(size, size)
    earlier = np.tri(size, k=-1, dtype=bool)
    assert (by_x[~earlier] == 0).all()
    assert (by_x[earlier] > 1e-4).all()
    assert (abs(by_z).max(0) > 1e-4).all()


def test_hidden_units_reach_as_far_as_their_degrees_and_z_changes_what_they_say():
    """Two units over four entries: one knows nothing of x, one the first two."""
    made, z = decoder((4,), hidden=(2,), direct=False), latents(2)
    params = drawn(made, z[0])
    network = made.apply(params, z[0]).network
    logits = lambda x, z: network.apply(params, (x, z))
    slopes = quick_jit(jax.vmap(jax.jacobian(logits), (None, 0)))(jnp.full(4, 0.5), z)
    expected = np.zeros((4, 4), bool)
    expected[2:, :2] = True
    np.testing.assert_array_equal(abs(slopes).min(0) > 1e-4, expected)
    np.testing.assert_array_equal(abs(slopes).max(0) > 0, expected)
    # That of one layer would not depend on z, which enters the hidden one too.
    assert (abs(slopes[0] - slopes[1])[2:, :2] > 1e-3).all()


@pytest.mark.parametrize("options", [NARROW, WIDE, FLAT, GIVEN_Z], ids=str)
def test_the_probabilities_of_all_events_add_up_to_one(options):
    size = 9
    with jax.enable_x64(True):
        made, z = decoder((3, 3), **options), latents(3)
        params = drawn(made, z[0])
        log_p, _ = all_log_probs(made, params, z, size, (3, 3))
        np.testing.assert_allclose(np.exp(log_p).sum(1), 1, rtol=1e-12)
        assert abs(log_p[0] - log_p[1]).max() > 0.1  # z matters


def test_log_prob_is_the_sum_of_the_conditionals_one_by_one():
    """Each conditional from sums over all events that begin alike, not from a logit."""
    size = 6
    with jax.enable_x64(True):
        made, z = decoder((size,), **GIVEN_Z), latents(1)
        params = drawn(made, z[0])
        (log_p,), x = all_log_probs(made, params, z, size, (size,))
        network = made.apply(params, z[0]).network
        logits_of = jax.vmap(lambda x: network.apply(params, (x, z[0])))
        logits = np.asarray(quick_jit(logits_of)(jnp.asarray(x)))
    p, total = np.exp(log_p), np.zeros(len(x))
    for i in range(size):
        alike = (x[:, None, :i] == x[None, :, :i]).all(-1)
        began, on = alike @ p, (alike & (x[:, i] == 1)[None]) @ p
        np.testing.assert_allclose(1 / (1 + np.exp(-logits[:, i])), on / began)
        total += np.log(np.where(x[:, i] == 1, on, began - on) / began)
    np.testing.assert_allclose(total, log_p)


def test_samples_come_as_often_as_the_probabilities_say():
    """Chi-square of 20,000 draws over all 16 events; 4 sigma of its 15 degrees."""
    size, n = 4, 20_000
    made, z = decoder((2, 2), **GIVEN_Z), latents(1)
    params = drawn(made, z[0])
    (log_p,), _ = all_log_probs(made, params, z, size, (2, 2))
    sample = lambda key: made.apply(params, z[0]).sample(key)
    draws = quick_jit(jax.vmap(sample))(jax.random.split(jax.random.key(3), n))
    assert draws.shape == (n, 2, 2) and draws.dtype == jnp.float32
    assert set(np.unique(draws)) == {0.0, 1.0}
    place = np.asarray(draws).reshape(n, size) @ 2 ** np.arange(size)
    counts = np.bincount(place.astype(int), minlength=2**size)
    expected = n * np.exp(np.asarray(log_p, np.float64))
    assert expected.min() > 10
    assert ((counts - expected) ** 2 / expected).sum() < 15 + 4 * math.sqrt(30)


def test_the_mean_is_that_of_the_conditionals_along_the_greedy_path():
    size = 5
    made, z = decoder((size,), **NARROW), latents(4)
    params = drawn(made, z[0])
    means = quick_jit(jax.vmap(lambda z: made.apply(params, z).mean()))(z)
    logits = quick_jit(lambda x, z: made.apply(params, z).network.apply(params, (x, z)))
    for z_i, mean in zip(z, means, strict=True):
        x, expected = np.zeros(size, np.float32), np.zeros(size)
        for i in range(size):
            expected[i] = 1 / (1 + np.exp(-logits(x, z_i)[i]))
            x[i] = expected[i] > 0.5
        np.testing.assert_allclose(mean, expected, rtol=1e-5)


def test_the_output_starts_at_the_bias_and_latents_can_be_none():
    bias = jnp.linspace(-2.0, 1.0, 6)
    network = networks.made((4,), direct=False, output_bias=bias)
    made = likelihoods.autoregressive_bernoulli(network, (2, 3))
    at_start = lambda key: network.apply(made.init(key, ()), (jnp.zeros((2, 3)), ()))
    at_zero = quick_jit(at_start)(jax.random.key(0))
    np.testing.assert_allclose(at_zero, bias.reshape(2, 3), rtol=1e-6)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        networks.made((3, 0))
    with pytest.raises(ValueError, match="at least 1"):
        networks.made((3,), latent_hidden=(0,))
    with pytest.raises(ValueError, match="no entry would depend"):
        networks.made((), direct=False)
    made = decoder((4,), hidden=(3,), output_bias=jnp.zeros(3))
    with pytest.raises(ValueError, match="as many numbers as x has entries, 4"):
        jax.eval_shape(made.init, jax.random.key(0), jnp.zeros(2))


def stripes(top):
    """The 3x4 images [n, 12] whose rows all are those of top [n, 4]."""
    return jnp.tile(top, (1, 3))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    x = (255 * stripes(binary_states(4))).astype(np.uint8).reshape(16, 3, 4, 1)
    path = tmp_path_factory.mktemp("data") / "stripes.npz"
    np.savez(path, x_train=np.tile(x, (2, 1, 1, 1)), x_test=x)
    return str(path)


@pytest.mark.parametrize("num_latents", [2, 0])
def test_the_experiment_learns_what_pixels_say_of_later_ones(dataset, num_latents):
    """log 16 = 2.77 nats are the least; independent pixels need 12 log 2 = 8.32."""
    built = mnist_made.build(
        mnist_made.Knobs(
            latents=num_latents,
            hidden=(16,),
            latent_hidden=(8,),
            encoder_hidden=(16,),
            free_bits=0.0,
            learning_rate=0.03,
            epochs=200,
            batch_size=16,
            dataset=dataset,
        )
    )

    def loss(params, key, top):
        batch = {"image": 255 * stripes(top).astype(jnp.uint8), "step": 0}
        return built.loss(params, key, batch)

    def step(state, key):
        params, inner = state
        key_x, key = jax.random.split(key)
        top = jax.random.bernoulli(key_x, shape=(50, 4))
        grad, _ = jax.grad(loss, has_aux=True)(params, key, top)
        updates, inner = built.optimizer.update(grad, inner, params)
        return (optax.apply_updates(params, updates), inner), None

    def run(key):
        key_init, key_train, key = jax.random.split(key, 3)
        params = built.model.init(key_init, jnp.zeros(12))
        keys = jax.random.split(key_train, 200)
        state = (params, built.optimizer.init(params))
        (params, _), _ = jax.lax.scan(step, state, keys)
        return loss(params, key, binary_states(4))[1]

    found = quick_jit(run)(jax.random.key(0))
    assert math.log(16) - 0.05 < -found["elbo"] < 3.2
    if num_latents == 0:  # it is log p(x) itself
        assert abs(found["rate"]) < 1e-5 and math.log(16) < -found["elbo"]
