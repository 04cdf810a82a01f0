"""Convolutions: the form for CPU against XLA's own, and networks of any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from vi_jax import likelihoods, models, networks, posteriors, priors
from vi_jax.networks.convolution import downsample, upsample

LAYOUT = ("NHWC", "HWIO", "NHWC")
CASES = [
    # height, width, kernel, stride: odd and even, a kernel below its stride too, and
    # one larger than the image
    (4, 5, 3, 1),
    (5, 4, 4, 1),
    (3, 4, 1, 1),
    (2, 1, 5, 1),
    (7, 10, 3, 2),
    (8, 8, 4, 2),
    (5, 6, 5, 2),
    (8, 5, 2, 3),
]


def normal(seed: int, *shape: int):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), float)


def xla(x, kernel, stride: int):
    strides = (stride, stride)
    return lax.conv_general_dilated(
        x[None], kernel, strides, "SAME", dimension_numbers=LAYOUT
    )[0]


@pytest.mark.parametrize(("h", "w", "k", "stride"), CASES)
def test_downsample_is_the_convolution_of_xla(h, w, k, stride):
    with jax.enable_x64(True):
        x, kernel = normal(0, h, w, 3), normal(1, k, k, 3, 4)

        @jax.jit
        def both(x, kernel):
            ours = jax.vjp(lambda *a: downsample(*a, stride), x, kernel)
            theirs = jax.vjp(lambda *a: xla(*a, stride), x, kernel)
            weight = normal(2, *theirs[0].shape)
            return [(value, *vjp(weight)) for value, vjp in (ours, theirs)]

        for ours, expected in zip(*both(x, kernel), strict=True):
            np.testing.assert_allclose(ours, expected, atol=1e-12)


@pytest.mark.parametrize(("h", "w", "k", "stride"), CASES)
def test_upsample_is_the_transpose_of_the_convolution(h, w, k, stride):
    with jax.enable_x64(True):
        y, kernel = normal(0, h, w, 4), normal(1, k, k, 3, 4)
        image = normal(2, stride * h, stride * w, 3)

        @jax.jit
        def both(y, image):
            ours, vjp = jax.vjp(lambda *a: upsample(*a, stride), y, kernel)
            forward = lambda x: xla(x, kernel, stride)
            transpose = jax.linear_transpose(forward, image)(y)
            # <image, upsample(y)> = <downsample(image), y>
            of_kernel = jax.grad(lambda k: jnp.sum(xla(image, k, stride) * y))(kernel)
            return (ours, *vjp(image)), (*transpose, forward(image), of_kernel)

        for ours, expected in zip(*both(y, image), strict=True):
            np.testing.assert_allclose(ours, expected, atol=1e-12)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="begins on a CPU")
@pytest.mark.parametrize("stride", [1, 2])
def test_elsewhere_than_on_cpu_they_are_xlas_own(monkeypatch, stride):
    """The same numbers, from one operation that accelerators have a program for."""
    x, kernel = normal(0, 6, 7, 3), normal(1, 3, 3, 3, 3)
    for apply in (downsample, upsample):
        here = jax.jit(lambda x, f=apply: f(x, kernel, stride))
        on_cpu = here(x)
        assert "conv_general_dilated" not in str(here.trace(x).jaxpr)
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        there = jax.jit(lambda x, f=apply: f(x, kernel, stride))
        np.testing.assert_allclose(there(x), on_cpu, rtol=1e-5, atol=1e-5)
        assert str(there.trace(x).jaxpr).count("conv_general_dilated") == 1
        monkeypatch.undo()


def small(shape, *, resize=False, num_blocks=0, **options):
    how = {"channels": (4, 6), "dense": (5,), "num_blocks": num_blocks}
    how["activation"] = jnp.tanh  # never flat, so that what is cut off shows
    return (
        networks.conv_encoder(shape, 2 * 3, strides=(2, 3), **how),
        networks.conv_decoder(shape, strides=(2, 3), resize=resize, **how, **options),
    )


@pytest.mark.parametrize(
    ("shape", "resize", "num_blocks"),
    [((28, 28, 1), False, 0), ((9, 13, 3), True, 1), ((1, 7, 2), False, 1)],
)
def test_networks_take_images_of_any_size(shape, resize, num_blocks):
    """A VAE checks itself that what comes out has the shape of what goes in."""
    encoder, decoder = small(shape, resize=resize, num_blocks=num_blocks)
    model = models.vae(
        priors.standard_normal(3),
        posteriors.normal(encoder),
        likelihoods.bernoulli(decoder),
    )
    x = normal(0, *shape)
    params = jax.jit(model.init)(jax.random.key(0), x.ravel())
    corners = np.ix_([0, -1], [0, -1])
    others = jnp.stack([x, *(x.at[i, j].add(1) for i in (0, -1) for j in (0, -1))])
    apply = jax.jit(jax.vmap(encoder.apply, in_axes=(None, 0)))
    codes = np.asarray(apply(params["posterior"], others))
    # Nothing is cut off: every corner is seen, and every latent moves every corner.
    assert (np.abs(codes[1:] - codes[0]).max(axis=1) > 1e-6).all()
    z = jnp.concatenate([jnp.ones((1, 3)), 1 + jnp.eye(3)])
    apply = jax.jit(jax.vmap(decoder.apply, in_axes=(None, 0)))
    made = np.asarray(apply(params["likelihood"], z)).reshape(-1, *shape)
    moved = np.abs(made[1:] - made[0]).max(axis=3)
    assert (moved[:, *corners] > 1e-6).all()


def test_a_decoder_starts_at_the_bias_it_is_given():
    shape = (6, 5, 2)
    bias = np.linspace(-1, 1, 60)
    decoder = small(shape, output_bias=bias)[1]
    params = jax.jit(decoder.init)(jax.random.key(0), jnp.zeros(3))
    without = {**params, "output_bias": jnp.zeros(shape)}
    apply = jax.jit(decoder.apply)
    shift = apply(params, jnp.ones(3)) - apply(without, jnp.ones(3))
    np.testing.assert_allclose(shift, bias, atol=1e-6)


def test_a_broadcast_decoder_says_at_each_place_what_z_and_the_place_make():
    """By hand, with one pixel a place; and cut to size where the stride is no part."""
    decoder = networks.broadcast_decoder(
        (3, 4, 2), features=(5, 6), stride=1, kernel_size=1, activation=jnp.tanh
    )
    z = normal(0, 3)
    params = jax.jit(decoder.init)(jax.random.key(0), z)
    p = jax.tree.map(np.asarray, params)
    first = p["DenseLayers_0"]["Dense_0"]
    for i, y in enumerate(np.linspace(-1, 1, 3)):
        for j, x in enumerate(np.linspace(-1, 1, 4)):
            h = z @ first["kernel"] + first["bias"] + [y, x] @ p["Dense_0"]["kernel"]
            h = np.tanh(h) @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]
            pixel = np.tanh(h) @ p["Conv_0"]["kernel"][0, 0].T + p["Conv_0"]["bias"]
            made = decoder.apply(params, z).reshape(3, 4, 2)[i, j]
            np.testing.assert_allclose(made, pixel, rtol=1e-5, atol=1e-6)
    odd = networks.broadcast_decoder((7, 1, 1), features=(3,), stride=3, kernel_size=6)
    assert odd.apply(odd.init(jax.random.key(0), z), z).shape == (7,)


def test_an_encoder_sees_what_it_is_given_beside_the_image():
    encoder = small((6, 6, 1))[0]
    x, c = normal(0, 36), jnp.ones(2)
    params = jax.jit(encoder.init)(jax.random.key(0), (x, c))
    total = lambda c: jnp.sum(encoder.apply(params, (x, c)) ** 2)
    assert (jax.jit(jax.grad(total))(c) != 0).all()


def test_examples_of_a_batch_do_not_touch():
    """Group norm in place of batch norm: one image's output is its own."""
    encoder = small((8, 8, 1), num_blocks=1)[0]
    x = normal(0, 3, 64)
    params = jax.jit(encoder.init)(jax.random.key(0), x[0])
    apply = jax.jit(jax.vmap(lambda x: encoder.apply(params, x)))
    np.testing.assert_allclose(
        apply(x)[0], apply(x.at[1:].set(9.0))[0], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (28, 28)}, "height, width, channels"),
        ({"shape": (0, 28, 1)}, "height, width, channels"),
        ({"strides": (2,)}, "as many"),
        ({"strides": (2, 0)}, "at least 1"),
        ({"kernel_size": 0}, "at least 1"),
        ({"num_blocks": -1}, "num_blocks 0"),
        ({"shape": (4, 3, 1), "strides": (4, 4)}, "shrunk to 1 x 1 before convolution"),
    ],
)
def test_what_cannot_work_is_an_error_at_once(options, message):
    given = {"shape": (28, 28, 1), "channels": (4, 4), "strides": (2, 2)} | options
    shape = given.pop("shape")
    with pytest.raises(ValueError, match=message):
        networks.conv_encoder(shape, 2, **given)
    with pytest.raises(ValueError, match=message):
        networks.conv_decoder(shape, **given)


def test_an_image_of_another_size_is_an_error():
    with pytest.raises(ValueError, match=r"has shape \(30,\), the network is for"):
        small((6, 6, 1))[0].init(jax.random.key(0), jnp.zeros(30))
    with pytest.raises(ValueError, match="output_bias has shape"):
        small((6, 6, 1), output_bias=np.zeros(35))
