"""Sprites: dSprites' own images, closed forms of what each factor does, the stream."""

import colorsys
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.path import Path as Outline
from scipy import stats

from vi_jax.data import sprites

SHAPES = ("square", "ellipse", "heart")
# Of the outlines at scale 1, in pixels of 64 x 64.
AREAS = (19.2**2, math.pi * 12.76 * 7.205, 180 * math.pi * 9.62 / 16 * 0.663)


@functools.cache
def batched(size=64, coloured=False):
    one = sprites.render_coloured if coloured else sprites.render
    return jax.jit(jax.vmap(functools.partial(one, size=size)))


def render(factors, size=64):  # bool [n, size, size]
    return np.asarray(batched(size)(jnp.asarray(factors, jnp.int32)))[..., 0] > 0


def draw(*args, size=64):  # bool [size, size]
    return np.asarray(jax.jit(functools.partial(sprites.draw, size=size))(*args)) > 0


def every(**fixed):
    """All factors of the grid that have the fixed values, int [n, 5]."""
    values = [
        np.atleast_1d(fixed.get(name, np.arange(n)))
        for name, n in sprites.FACTORS.items()
    ]
    return np.array(list(itertools.product(*values)))


def test_true_dsprites_images(real_data):
    file = real_data / "dsprites_samples" / "dsprites_12.npz"
    samples = np.load(file, allow_pickle=False)
    true = np.unpackbits(samples["imgs"], axis=1).reshape(-1, 64, 64) > 0
    _, shape, scale, orientation, x, y = samples["latents_values"].T
    steps = (shape - 1, 10 * scale - 5, orientation * 39 / (2 * np.pi), 31 * x, 31 * y)
    factors = np.stack(steps, axis=1)
    assert np.abs(factors - factors.round()).max() < 1e-6  # they lie on our grid
    assert set(factors[:, 0]) == {0, 1, 2}
    np.testing.assert_array_equal(render(factors.round()), true)


def outline(shape):
    t = np.linspace(0, 2 * np.pi, 4_001)
    if shape == 0:
        return np.array([[9.6, 9.6], [-9.6, 9.6], [-9.6, -9.6], [9.6, -9.6]])
    if shape == 1:
        return np.stack([12.76 * np.cos(t), 7.205 * np.sin(t)], axis=1)
    cosines = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([9.62 * np.sin(t) ** 3, -1.47 - 0.663 * cosines], axis=1)


@pytest.mark.parametrize("shape", range(3), ids=SHAPES)
@pytest.mark.parametrize("size", [64, 32, 20])
def test_pixels_are_those_whose_centre_is_inside_the_outline(shape, size):
    """The outline is turned and moved as a polygon, in float64."""
    rng = np.random.default_rng(shape)
    factors = np.array([[shape, *rng.integers(0, (6, 40, 32, 32))] for _ in range(8)])
    centre = (np.arange(size) + 0.5) * 64 / size
    pixels = np.stack(np.meshgrid(centre, centre), axis=-1).reshape(-1, 2)
    made = render(factors, size)
    for image, (_, scale, turn, x, y) in zip(made, factors, strict=True):
        angle = turn * 2 * np.pi / 39
        # (u, v) = R (X, Y) / s, so (X, Y) = s R^T (u, v): rows times s R.
        rotation = np.array(
            [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        )
        place = 16 + 32 * np.array([x, y]) / 31
        polygon = (0.5 + scale / 10) * outline(shape) @ rotation + place
        inside = Outline(polygon).contains_points(pixels).reshape(size, size)
        assert 0 < inside.sum() < size**2
        np.testing.assert_array_equal(image, inside)


def test_a_coarse_image_is_every_third_pixel_of_a_fine_one():
    factors = sprites_at_random(50)
    np.testing.assert_array_equal(
        render(factors, 96)[:, 1::3, 1::3], render(factors, 32)
    )


def sprites_at_random(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, list(sprites.FACTORS.values()), (n, 5))


@pytest.mark.parametrize("grid", [sprites.FACTORS, sprites.COLOURED_FACTORS])
def test_index_and_factors_are_numpys(grid):
    sizes, total = tuple(grid.values()), sprites.num_images(grid)
    assert total == {5: 737_280, 6: 5_898_240}[len(sizes)]
    rng = np.random.default_rng(0)
    index = np.concatenate([[0, 1, total - 1], rng.integers(0, total, 1000)])
    index = jnp.asarray(index, jnp.int32)
    factors = jax.vmap(functools.partial(sprites.factors_of, factors=grid))(index)
    want = np.stack(np.unravel_index(np.asarray(index), sizes), axis=1)
    np.testing.assert_array_equal(factors, want)
    back = jax.vmap(functools.partial(sprites.index_of, factors=grid))(factors)
    np.testing.assert_array_equal(back, index)


@pytest.mark.parametrize("name, axis", [("x", 2), ("y", 1)])
def test_a_step_of_place_moves_the_centre_by_32_31_of_a_pixel(name, axis):
    fixed = {"x": 9, "y": 20, "shape": 2, "scale": 3, "orientation": 7}
    del fixed[name]
    images = render(every(**fixed))
    area = images.sum((1, 2))
    centre = {a: (images.sum(3 - a) * np.arange(64)).sum(1) / area for a in (1, 2)}
    slope, start = np.polyfit(np.arange(32), centre[axis], 1)
    assert slope == pytest.approx(32 / 31, abs=0.005)
    # Rounding to pixels moves a centre by less than a fifth of one.
    assert np.abs(centre[axis] - slope * np.arange(32) - start).max() < 0.2
    assert np.ptp(centre[3 - axis]) < 0.4


@pytest.mark.parametrize("size", [64, 32])
def test_area_is_that_of_the_outline_and_grows_as_scale_squared(size):
    """On average over places and angles: pixels are then points of a fine lattice."""
    for shape, area in enumerate(AREAS):
        for scale in range(6):
            some = every(shape=shape, scale=scale, x=[3, 8, 20], y=[5, 17])
            mean = render(some, size).sum((1, 2)).mean() * (64 / size) ** 2
            want = area * (0.5 + scale / 10) ** 2
            # 240 images, each off by some sqrt(outline) ~ 5 pixels of its own size.
            assert mean == pytest.approx(want, abs=2 * (64 / size) ** 1.5)


def test_the_last_orientation_is_the_first_and_of_a_heart_no_other_is():
    images = render(every(scale=5, x=15, y=16)).reshape(3, 40, -1)
    np.testing.assert_array_equal(images[:, 0], images[:, 39])
    assert (images[:, 1:] != images[:, :-1]).any(axis=2).all()
    assert len(np.unique(images[2, :39], axis=0)) == 39


@pytest.mark.parametrize("shape, period", [(0, 90), (1, 180), (2, 360)])
def test_symmetry_of_the_shapes(shape, period):
    at = lambda degrees: draw(shape, 1.0, np.deg2rad(degrees), 0.4, 0.7)
    np.testing.assert_array_equal(at(20.0), at(20.0 + period))
    assert (at(20.0) != at(20.0 + period / 2)).sum() > 20


def test_colours_change_nothing_else():
    factors = sprites_at_random(20)
    grey, background = render(factors), 0
    seen = []
    for hue in range(8):
        coloured = np.insert(factors, 0, hue, axis=1)
        images = np.asarray(batched(coloured=True)(jnp.asarray(coloured, jnp.int32)))
        assert images.shape == (20, 64, 64, 3) and images.dtype == np.uint8
        assert (images[~grey] == background).all()
        colours = np.unique(images[grey], axis=0)
        assert len(colours) == 1
        want = 255 * np.array(colorsys.hsv_to_rgb(hue / 8, 1, 1))
        np.testing.assert_allclose(colours[0], want, atol=0.51)
        seen.append(tuple(colours[0]))
    assert len(set(seen)) == 8


@pytest.mark.parametrize("coloured", [False, True])
def test_stream_is_a_function_of_seed_and_step(coloured):
    make = lambda seed: sprites.stream(
        batch_size=16, seed=seed, size=32, coloured=coloured
    )
    one, again = make(3), make(3)
    assert not jax.tree.leaves(one.resident)
    batches = {step: one.gather({}, one.at(step)) for step in (0, 1, 7)}
    for step in (7, 0, 1):  # in another order
        same = jax.jit(again.gather)({}, again.at(step))
        assert set(same) == {"image", "factors", "step"} and same["step"] == step
        jax.tree.map(np.testing.assert_array_equal, batches[step], same)
    index = [b.at(s)["index"] for b, s in ((one, 0), (one, 1), (make(4), 0))]
    assert len(np.unique(index, axis=0)) == 3


def test_a_batch_is_the_flat_images_of_its_factors():
    stream = sprites.stream(batch_size=30, seed=2**64 - 1)
    travelling = stream.at(5)
    batch = stream.gather({}, travelling)
    assert batch["image"].dtype == jnp.uint8 and batch["factors"].dtype == jnp.int32
    want = np.stack(np.unravel_index(travelling["index"], (3, 6, 40, 32, 32)), axis=1)
    np.testing.assert_array_equal(batch["factors"], want)
    rows = render(want).reshape(30, 4096) * np.uint8(255)
    np.testing.assert_array_equal(batch["image"], rows)


def test_every_factor_is_uniform_and_the_factors_are_independent():
    """Chi-square over 50 batches of 1,000 with fixed seeds, each p above 1e-3."""
    stream = sprites.stream(batch_size=1000, seed=0, coloured=True)
    index = np.concatenate([stream.at(step)["index"] for step in range(50)])
    factors = np.unravel_index(index, tuple(sprites.COLOURED_FACTORS.values()))
    assert len(np.unique(index)) > 49_000  # steps do not repeat one another
    sizes = list(sprites.COLOURED_FACTORS.values())
    for values, size in zip(factors, sizes, strict=True):
        assert stats.chisquare(np.bincount(values, minlength=size)).pvalue > 1e-3
    for i, j in itertools.combinations(range(6), 2):
        pairs = np.bincount(factors[i] * sizes[j] + factors[j])
        table = pairs.reshape(sizes[i], sizes[j])
        assert stats.chi2_contingency(table).pvalue > 1e-3


def test_sprite_data():
    make = functools.partial(sprites.sprite_data, size=32, num_valid=20, num_test=300)
    data, other = make(batch_size=10, seed=0), make(batch_size=5, seed=1)
    assert data.num_train == 737_280 and data.shape == (32, 32, 1)
    assert data.valid.shape == (20, 1024) and data.test.shape == (300, 1024)
    for name in ("valid", "test", "mean"):
        np.testing.assert_array_equal(getattr(data, name), getattr(other, name))
    assert data.valid.dtype == data.test.dtype == np.uint8
    assert (data.valid != data.test[:20]).any(axis=1).all()
    assert len(np.unique(data.test, axis=0)) > 295  # random, not the first ones
    batch = data.train.gather({}, data.train.at(0))
    x = data.preprocess(jax.random.key(0), batch)
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x, np.asarray(batch["image"]) / 255, rtol=1e-6)
    # The expected ink: the mean area, (64 / 32)^2 pixels of 64 x 64 a pixel.
    scales = 0.5 + np.arange(6) / 10
    ink = np.mean(AREAS) * np.mean(scales**2) / 4
    assert data.mean.dtype == np.float32
    # 10,000 images with a standard deviation of 0.45 of it: 4 standard errors.
    assert data.mean.sum() == pytest.approx(ink, rel=4 * 0.45 / 100)
    with pytest.raises(ValueError, match="no labels"):
        data.num_classes()


def test_coloured_sprite_data():
    make = functools.partial(sprites.sprite_data, size=16, coloured=True)
    data = make(batch_size=4, seed=0, num_valid=3, num_test=500)
    assert data.num_train == 5_898_240 and data.shape == (16, 16, 3)
    assert data.valid.shape == (3, 768) and data.mean.shape == (768,)
    ink = data.test.reshape(500, 256, 3).max(axis=(0, 1))
    np.testing.assert_array_equal(ink, [255, 255, 255])  # a pixel's channels are last
    assert data.train.gather({}, data.train.at(0))["image"].shape == (4, 768)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: sprites.render(jnp.zeros(4, jnp.int32)), r"int32 \[4\]: pass 5 whole"),
        (lambda: sprites.render(jnp.zeros(5)), r"float32 \[5\]: pass 5 whole numbers"),
        (lambda: sprites.render_coloured(np.zeros(5, np.int32)), "pass 6 .*colour"),
        (lambda: sprites.index_of(np.zeros((2, 5), np.int32)), r"\[2, 5\].*vmap"),
        (
            lambda: sprites.render(jnp.zeros(5, jnp.int32), size=0),
            "^size must be at least 1, got 0",
        ),
        (
            lambda: sprites.stream(batch_size=0, seed=0),
            "batch_size must be at least 1, got 0",
        ),
        (
            lambda: sprites.stream(batch_size=1, seed=0, size=0),
            "^size must be at least 1, got 0",
        ),
        (lambda: sprites.stream(batch_size=1, seed=-1), "seed is -1"),
        (
            lambda: sprites.sprite_data(batch_size=1, seed=0, num_valid=0),
            "num_valid must be at least 1, got 0",
        ),
    ],
)
def test_wrong_use(call, message):
    with pytest.raises(ValueError, match=message):
        call()
