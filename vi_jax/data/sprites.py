"""Sprites with dSprites' factors, drawn from an index when needed and never stored.

Images a second on 2 CPU cores, in jit, batches of 5,000, the median of 5: 260,000 of
64 x 64 and 1,000,000 of 32 x 32; coloured, 50,000 and 300,000. Beside one more job on
the same cores half of that, beside four a third.
"""

import colorsys
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from vi_jax.checks import at_least
from vi_jax.data.batches import Batches
from vi_jax.data.images import ImageData, divide_by_255
from vi_jax.types import Array, Batch

FACTORS = {"shape": 3, "scale": 6, "orientation": 40, "x": 32, "y": 32}
"""dSprites' factors and how many values each has; shapes: square, ellipse, heart."""

COLOURED_FACTORS = {"colour": 8, **FACTORS}
"""The same with a hue, k / 8 of the colour circle, before them."""

# Red at k = 0, fully saturated.
_COLOURS = np.array(
    [colorsys.hsv_to_rgb(k / 8, 1, 1) for k in range(COLOURED_FACTORS["colour"])]
)
_EVALUATION_SEED = 123
_NUM_FOR_MEAN = 10_000


def num_images(factors: Mapping[str, int] = FACTORS) -> int:
    """The size of the grid: 737,280, and 5,898,240 of COLOURED_FACTORS."""
    return math.prod(factors.values())


def factors_of(index: Array, factors: Mapping[str, int] = FACTORS) -> Array:
    """The factors int32 [f] of image number `index` [], the last factor fastest.

    `factors` is FACTORS or COLOURED_FACTORS. An index outside [0, num_images) wraps.
    """
    sizes = np.array(list(factors.values()), np.int32)
    return jnp.asarray(index, jnp.int32) // _strides(factors) % sizes


def index_of(values: Array, factors: Mapping[str, int] = FACTORS) -> Array:
    """The number int32 [] of the image that has the factors `values`, int [f].

    Raises ValueError where `values` are not f whole numbers.
    """
    _check(values, factors)
    return (jnp.asarray(values, jnp.int32) * _strides(factors)).sum()


def _strides(factors: Mapping[str, int]) -> np.ndarray:
    sizes = list(factors.values())
    strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    return np.array(strides, np.int32)


def render(factors: Array, *, size: int = 64) -> Array:
    """The image uint8 [size, size, 1], 0 or 255, with the factors int [5] of FACTORS.

    scale is 1/2, 6/10, ..., 1; orientation 2 pi i / 39, so that the last is the first
    again; x and y are i / 31. Factors outside the grid are not noticed: they carry on
    the same sequences (a shape above 2 is a heart).
    Raises ValueError where factors are not 5 whole numbers, or size is below 1.
    Ref: Matthey et al. 2017, github.com/deepmind/dsprites-dataset.
    """
    _check(factors, FACTORS)
    shape, by_tenths, orientation, x, y = jnp.asarray(factors)
    turn = orientation * (2 * math.pi / 39)
    return draw(shape, 0.5 + by_tenths / 10, turn, x / 31, y / 31, size=size)


def render_coloured(factors: Array, *, size: int = 64) -> Array:
    """The image uint8 [size, size, 3] on black, factors int [6] of COLOURED_FACTORS.

    Raises ValueError as `render` does.
    """
    _check(factors, COLOURED_FACTORS)
    factors = jnp.asarray(factors)
    ink = render(factors[1:], size=size) > 0
    colour = jnp.asarray(np.rint(255 * _COLOURS), jnp.uint8)[factors[0]]
    return jnp.where(ink, colour[None, None, :], jnp.uint8(0))


def draw(
    shape: Array, scale: Array, orientation: Array, x: Array, y: Array, *, size: int
) -> Array:
    """One sprite, uint8 [size, size, 1], 0 or 255, at any scale, angle and place.

    In units of 1/64 of the picture, from the sprite's centre (16 + 32 x, 16 + 32 y), a
    pixel's centre (X, Y) has u = (X cos o - Y sin o) / scale and
    v = (X sin o + Y cos o) / scale, v downwards. It is ink where
      shape 0, a square:   |u|, |v| <= 9.6
      shape 1, an ellipse: (u / 12.76)^2 + (v / 7.205)^2 <= 1
      shape 2, a heart:    inside u = 9.62 sin^3 t, v = -1.47 - 0.663
                           (13 cos t - 5 cos 2t - 2 cos 3t - cos 4t)
    The numbers were fitted to 12 true dSprites images, which they give pixel by pixel;
    fitted without one of these, its overlap (intersection over union) is above 0.98.
    Raises ValueError where size is below 1.
    """
    at_least(1, size=size)
    place = (jnp.arange(size, dtype=jnp.float32) + 0.5) * (64 / size)
    across = (place - (16 + 32 * x))[None, :]
    down = (place - (16 + 32 * y))[:, None]
    cos, sin = jnp.cos(orientation) / scale, jnp.sin(orientation) / scale
    u, v = cos * across - sin * down, sin * across + cos * down  # [size, size]
    square = jnp.maximum(jnp.abs(u), jnp.abs(v)) <= 9.6
    ellipse = jnp.square(u / 12.76) + jnp.square(v / 7.205) <= 1
    ink = jnp.where(shape == 0, square, jnp.where(shape == 1, ellipse, _heart(u, v)))
    return jnp.where(ink, jnp.uint8(255), jnp.uint8(0))[..., None]


def _heart(u: Array, v: Array) -> Array:
    """Whether (u, v) is inside the heart.

    u gives sin^2 t, so t or pi - t, whose v are the ends of a segment: with c = cos t
    >= 0, they are at 4 - 2 c^2 - 8 c^4 -+ c (19 - 8 c^2).
    """
    # exp and log are 6 times as fast as a power here, and 16 times as cbrt.
    sin2 = jnp.exp(jnp.log(jnp.square(u / 9.62)) / 3)
    cos2 = 1 - sin2
    from_middle = -(v + 1.47) / 0.663 - (4 - 2 * cos2 - 8 * jnp.square(cos2))
    return jnp.square(from_middle) <= cos2 * jnp.square(19 - 8 * cos2)


def _check(values: Array, factors: Mapping[str, int]) -> None:
    shape, dtype = jnp.shape(values), jnp.result_type(values)
    if shape != (len(factors),) or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"the factors are {dtype} {list(shape)}: pass {len(factors)} whole numbers "
            f"({', '.join(factors)}) of one image; vmap adds a batch"
        )


def stream(
    *, batch_size: int, seed: int, size: int = 64, coloured: bool = False
) -> Batches:
    """Batches of b sprites drawn uniformly from the grid, with repetition.

    A batch, a function of (seed, step), is {"image": uint8 [b, D], "factors":
    int32 [b, f], "step": int32 []}, D = size^2, or 3 size^2 coloured: flat, as those
    of `image_data`. An index travels; the images are made inside jit.
    Raises ValueError for a batch_size or size below 1, or a seed outside [0, 2^64).
    """
    at_least(1, batch_size=batch_size, size=size)
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}: it must lie in [0, 2**64)")
    total = num_images(_grid(coloured))

    def at(step: int) -> dict[str, np.ndarray]:
        key = np.array([seed, step], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        index = rng.integers(0, total, batch_size, np.int32)
        return {"index": index, "step": np.int32(step)}

    def gather(resident: Batch, travelling: Batch) -> Batch:
        del resident
        made = _sprites(travelling["index"], size=size, coloured=coloured)
        return {**made, "step": travelling["step"]}

    return Batches({}, at, gather)


def sprite_data(
    *,
    batch_size: int,
    seed: int,
    size: int = 64,
    coloured: bool = False,
    num_valid: int = 400,
    num_test: int = 2000,
) -> ImageData:
    """Sprites for a flat model: `stream`, and two fixed draws to evaluate on.

    x is pixel / 255, 0 or 1 without colour. Every draw is from the whole grid, so that
    what is evaluated may be among what is trained on; the two, and the mean image (of
    10,000 more), are the same whatever the seed of the run. num_train is the size of
    the grid. There are no labels.
    Raises ValueError as `stream` does, and for a num_valid or num_test below 1.
    """
    at_least(1, num_valid=num_valid, num_test=num_test)
    train = stream(batch_size=batch_size, seed=seed, size=size, coloured=coloured)
    total = num_images(_grid(coloured))

    def fixed(number: int, n: int) -> np.ndarray:  # int32 [n]
        rng = np.random.Generator(np.random.PCG64([_EVALUATION_SEED, number]))
        return rng.integers(0, total, n, np.int32)

    # Of its own generator each, so that none depends on how many the others are.
    parts = [fixed(0, num_valid), fixed(1, num_test), fixed(2, _NUM_FOR_MEAN)]
    images = _sprites(np.concatenate(parts), size=size, coloured=coloured)["image"]
    ends = np.cumsum([num_valid, num_test])
    valid, test, others = np.split(np.asarray(images), ends)
    return ImageData(
        train,
        divide_by_255,
        num_train=total,
        # Copies: a part of the whole would keep the whole.
        valid=valid.copy(),
        test=test.copy(),
        valid_label=None,
        test_label=None,
        mean=(others.mean(axis=0) / 255).astype(np.float32),
        shape=(size, size, 3 if coloured else 1),
    )


def _grid(coloured: bool) -> dict[str, int]:
    return COLOURED_FACTORS if coloured else FACTORS


@functools.partial(jax.jit, static_argnames=("size", "coloured"))
def _sprites(index: Array, *, size: int, coloured: bool) -> Batch:
    """The flat images and the factors of the numbers int32 [b]."""
    one = functools.partial(render_coloured if coloured else render, size=size)
    factors = jax.vmap(functools.partial(factors_of, factors=_grid(coloured)))(index)
    return {"image": jax.vmap(lambda f: one(f).ravel())(factors), "factors": factors}
