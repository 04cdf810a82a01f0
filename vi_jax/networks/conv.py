"""Convolutional networks over one image of any size, channels last."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from vi_jax.networks.convolution import downsample, upsample
from vi_jax.networks.linen import from_linen
from vi_jax.networks.mlp import DenseLayers
from vi_jax.types import Array, Component

Shape = tuple[int, int, int]


class Conv(linen.Module):
    """A convolution, or its transpose, with a bias for each feature."""

    features: int
    kernel_size: int
    stride: int = 1
    transposed: bool = False

    @linen.compact
    def __call__(self, x: Array) -> Array:
        k, channels = self.kernel_size, x.shape[-1]
        ends = (
            (self.features, channels) if self.transposed else (channels, self.features)
        )
        # Each pixel of a transposed one sums k^2 / stride^2 taps of every channel.
        fan_in = k * k * channels / (self.stride**2 if self.transposed else 1)
        init = linen.initializers.normal(math.sqrt(2 / fan_in))
        kernel = self.param("kernel", init, (k, k, *ends))
        bias = self.param("bias", linen.initializers.zeros, (self.features,))
        apply = upsample if self.transposed else downsample
        return apply(x, kernel, self.stride) + bias[None, None]


class Residual(linen.Module):
    """x + f(x), f of two convolutions, each after a group norm and the activation."""

    kernel_size: int
    activation: Callable[[Array], Array]

    @linen.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        h = x
        for _ in range(2):
            # Statistics of one image alone: those of a batch would tie examples.
            norm = linen.GroupNorm(
                num_groups=math.gcd(8, channels), reduction_axes=(0, 1, 2)
            )
            h = Conv(channels, self.kernel_size)(self.activation(norm(h)))
        return x + h


class _Encoder(linen.Module):
    shape: Shape
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    dense: tuple[int, ...]
    kernel_size: int
    num_blocks: int
    activation: Callable[[Array], Array]

    @linen.compact
    def __call__(self, x: Array | tuple[Array, ...]) -> Array:
        x, *others = jax.tree.leaves(x)
        if x.size != math.prod(self.shape):
            raise ValueError(
                f"the image has shape {x.shape}, the network is for {self.shape}: pass "
                "it, or all of its pixels in a row"
            )
        h = x.reshape(self.shape)
        for width, stride in zip(self.channels, self.strides, strict=True):
            h = self.activation(Conv(width, self.kernel_size, stride)(h))
            for _ in range(self.num_blocks):
                h = Residual(self.kernel_size, self.activation)(h)
        return DenseLayers(self.dense, self.activation)((h, *others))


class _Decoder(linen.Module):
    shape: Shape
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    dense: tuple[int, ...]
    kernel_size: int
    num_blocks: int
    resize: bool
    activation: Callable[[Array], Array]
    output_bias: Array | None

    @linen.compact
    def __call__(self, z: Array | tuple[Array, ...]) -> Array:
        *sizes, first = _sizes(self.shape, self.strides)
        start = (*first, self.channels[0])
        h = DenseLayers((*self.dense, math.prod(start)), self.activation)(z)
        h = self.activation(h).reshape(start)
        widths = (*self.channels[1:], self.shape[-1])
        layers = list(zip(widths, self.strides[::-1], sizes[::-1], strict=True))
        for i, (width, stride, (height, length)) in enumerate(layers):
            for _ in range(self.num_blocks):
                h = Residual(self.kernel_size, self.activation)(h)
            if self.resize:
                h = jnp.repeat(jnp.repeat(h, stride, axis=0), stride, axis=1)
                h = Conv(width, self.kernel_size)(h)
            else:
                h = Conv(width, self.kernel_size, stride, transposed=True)(h)
            h = h[:height, :length]
            h = self.activation(h) if i < len(layers) - 1 else h
        return _with_bias(self, h)


class _Broadcast(linen.Module):
    shape: Shape
    features: tuple[int, ...]
    stride: int
    kernel_size: int
    activation: Callable[[Array], Array]
    output_bias: Array | None

    @linen.compact
    def __call__(self, z: Array | tuple[Array, ...]) -> Array:
        height, width, channels = self.shape
        sides = [-(-n // self.stride) for n in (height, width)]
        across = [jnp.linspace(-1, 1, n) if n > 1 else jnp.zeros(1) for n in sides]
        place = jnp.stack(jnp.meshgrid(*across, indexing="ij"), axis=-1)  # [h, w, 2]
        # The first layer sees z and the place: a product for z, once for all places.
        h = DenseLayers(self.features[:1], self.activation)(z)[None, None]
        h = self.activation(h + linen.Dense(self.features[0], use_bias=False)(place))
        for width_of_layer in self.features[1:]:
            h = self.activation(linen.Dense(width_of_layer)(h))
        h = Conv(channels, self.kernel_size, self.stride, transposed=True)(h)
        h = h[:height, :width]
        return _with_bias(self, h)


def _with_bias(module: linen.Module, h: Array) -> Array:
    """h flat, plus a bias for every pixel where the module has one."""
    if module.output_bias is not None:
        start = lambda key: jnp.asarray(module.output_bias).reshape(h.shape)
        h += module.param("output_bias", start)
    return h.ravel()


def conv_encoder(
    shape: Shape,
    outputs: int,
    *,
    channels: Sequence[int] = (32, 64, 64),
    strides: Sequence[int] = (2, 2, 1),
    dense: Sequence[int] = (256,),
    kernel_size: int = 3,
    num_blocks: int = 0,
    activation: Callable[[Array], Array] = jax.nn.relu,
) -> Component:
    """x of `shape` (h, w, c), or flat -> convolutions -> dense layers -> [outputs].

    Convolution i has channels[i] features, shrinks the image by strides[i] (rounded up)
    and is followed by `num_blocks` residual blocks with group normalisation. x may be a
    tuple (x, c): the first dense layer sees c too.
    Raises ValueError where the numbers do not fit each other or the image.
    Ref: He et al. 2016, arXiv:1603.05027 (blocks); Wu & He 2018, arXiv:1803.08494.
    """
    _check(shape, channels, strides, [*dense, outputs], kernel_size, num_blocks)
    return _compiled_init(
        _Encoder(
            tuple(shape),
            tuple(channels),
            tuple(strides),
            (*dense, outputs),
            kernel_size,
            num_blocks,
            activation,
        )
    )


def conv_decoder(
    shape: Shape,
    *,
    channels: Sequence[int] = (64, 64, 32),
    strides: Sequence[int] = (2, 2, 1),
    dense: Sequence[int] = (256,),
    kernel_size: int = 3,
    num_blocks: int = 0,
    resize: bool = False,
    activation: Callable[[Array], Array] = jax.nn.relu,
    output_bias: Array | None = None,
) -> Component:
    """z -> dense layers -> transposed convolutions -> [h w c], flat, of `shape`.

    `strides` are those of the encoder that it mirrors, from the image inwards: the
    smallest image has channels[0] features, and each layer grows it by the stride,
    cut where the encoder had rounded up. With `resize` pixels are repeated and then
    convolved, which leaves no checkerboard. z may be a tuple (z, c) or of layers.
    `output_bias` [h w c] is where the bias of every pixel starts, as `bias_from_mean`.
    For a likelihood with several numbers a channel, make `shape` (h, w, numbers).
    Raises ValueError where the numbers do not fit each other or the image.
    Ref: Odena et al. 2016, doi:10.23915/distill.00003 (resizing).
    """
    _check(shape, channels, strides, dense, kernel_size, num_blocks)
    _check_bias(shape, output_bias)
    return _compiled_init(
        _Decoder(
            tuple(shape),
            tuple(channels),
            tuple(strides),
            tuple(dense),
            kernel_size,
            num_blocks,
            resize,
            activation,
            output_bias,
        )
    )


def broadcast_decoder(
    shape: Shape,
    *,
    features: Sequence[int] = (64, 64),
    stride: int = 2,
    kernel_size: int = 4,
    activation: Callable[[Array], Array] = jax.nn.relu,
    output_bias: Array | None = None,
) -> Component:
    """z -> the same layers at every place, which see z and the place -> [h w c], flat.

    The places are every stride-th pixel of `shape`, their coordinates in [-1, 1]; a
    transposed convolution makes the pixels of what the layers say. That something moves
    is then simple to say, and latents of position come apart sooner. z may be a tuple.
    `output_bias` [h w c] is where the bias of every pixel starts.
    Raises ValueError where the numbers do not fit each other or the image.
    Ref: Watters et al. 2019, arXiv:1901.07017 (spatial broadcast decoder).
    """
    _check(shape, features, [1] * len(features), [stride], kernel_size, 0)
    _check_bias(shape, output_bias)
    return _compiled_init(
        _Broadcast(
            tuple(shape), tuple(features), stride, kernel_size, activation, output_bias
        )
    )


def _compiled_init(module: linen.Module) -> Component:
    """One program for the first parameters: by itself each operation would be one."""
    init, apply = from_linen(module)
    return Component(jax.jit(init), apply)


def _check_bias(shape: Shape, output_bias: Array | None) -> None:
    if output_bias is not None and np.size(output_bias) != math.prod(shape):
        raise ValueError(
            f"output_bias has shape {np.shape(output_bias)}, expected "
            f"({math.prod(shape)},)"
        )


def _sizes(shape: Shape, strides: Sequence[int]) -> list[tuple[int, int]]:
    """(h, w) before and after each convolution."""
    sizes = [shape[:2]]
    for stride in strides:
        sizes.append(tuple(-(-n // stride) for n in sizes[-1]))
    return sizes


def _check(shape, channels, strides, dense, kernel_size, num_blocks) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape must be (height, width, channels), got {shape}")
    if not channels or len(channels) != len(strides):
        raise ValueError(
            f"channels and strides must be as many, and one at least, got {channels} "
            f"and {strides}"
        )
    if min([*channels, *strides, *dense, kernel_size]) < 1 or num_blocks < 0:
        raise ValueError(
            "channels, strides, dense widths and kernel_size must be at least 1 and "
            f"num_blocks 0, got {channels}, {strides}, {dense}, {kernel_size} and "
            f"{num_blocks}"
        )
    for i, (size, stride) in enumerate(
        zip(_sizes(shape, strides), strides, strict=False)
    ):
        if stride > max(size):
            raise ValueError(
                f"an image of {shape[0]} x {shape[1]} has shrunk to {size[0]} x "
                f"{size[1]} before convolution {i}, too small for its stride of "
                f"{stride}: use fewer or smaller strides than {list(strides)}"
            )
