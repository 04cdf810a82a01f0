"""Convolutions of one image [h, w, c], in the form that each platform runs fastest.

On CPU, XLA's convolution loses its threads inside a loop, and its gradients are slow
outside one too. There a convolution is written as patches times a matrix, and its
transpose as a matrix times the pixels, whose overlapping parts are added; `vmap` makes
one large product of either. With stride 1 each is half of both. Elsewhere it is XLA's
own.
"""

import jax
import jax.numpy as jnp
from jax import lax

from vi_jax.types import Array

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def downsample(x: Array, kernel: Array, stride: int = 1) -> Array:
    """The convolution of x [h, w, c] with a kernel [k, k, c, o], padding "SAME".

    The result is [ceil(h / stride), ceil(w / stride), o].
    """
    if jax.default_backend() != "cpu":
        strides = (stride, stride)
        return lax.conv_general_dilated(
            x[None], kernel, strides, "SAME", dimension_numbers=_LAYOUT
        )[0]
    k, features = kernel.shape[0], kernel.shape[-1]
    if stride == 1:
        return _in_place(x, kernel, before=(k - 1) // 2)
    return _patches(x, k, stride) @ kernel.reshape(-1, features)


def upsample(x: Array, kernel: Array, stride: int = 1) -> Array:
    """The transposed convolution of x [h, w, c] with a kernel [k, k, o, c].

    It is the transpose, as a linear map, of `downsample` from an image of [stride h,
    stride w, o], which is its result's shape.
    """
    if jax.default_backend() != "cpu":
        return lax.conv_transpose(
            x[None],
            kernel,
            (stride, stride),
            "SAME",
            dimension_numbers=_LAYOUT,
            transpose_kernel=True,
        )[0]
    k = kernel.shape[0]
    if stride == 1:
        turned = jnp.swapaxes(kernel[::-1, ::-1], -1, -2)
        return _in_place(x, turned, before=k // 2)
    taps = x @ jnp.moveaxis(kernel, -1, 0).reshape(x.shape[-1], -1)
    return _overlapped(taps, k, stride)


def _in_place(x: Array, kernel: Array, *, before: int) -> Array:
    """sum_ij x[m + i - before, n + j - before] kernel[i, j], of x [h, w, c]: [h, w, o].

    Patches of 1 x k, and of the products the parts of k rows, added: so k c + k o
    numbers a pixel are written where patches of k x k would take k k c. It made the
    step of `experiments.benchmark_conv` 1.1 times as fast.
    """
    k, _, c, o = kernel.shape
    zero = jnp.zeros((), x.dtype)
    # A sum of padded arrays is one loop; XLA copies the parts of a concatenation twice.
    right = lambda j: (before - j, j - before, 0)
    part = lambda j: (j * c, (k - 1 - j) * c, 0)
    patches = sum(lax.pad(x, zero, ((0, 0, 0), right(j), part(j))) for j in range(k))
    weights = jnp.moveaxis(kernel, 0, 2).reshape(k * c, k * o)
    taps = patches @ weights
    of_row = lambda i: taps[..., i * o : (i + 1) * o]
    return sum(_moved(of_row(i), before - i, 0) for i in range(k))


def _padding(k: int, stride: int, size: int) -> tuple[int, int, int]:
    """The length of the result, and the zeros before the first and after the last."""
    length = -(-size // stride)
    zeros = max((length - 1) * stride + k - size, 0)
    return length, zeros // 2, zeros - zeros // 2


def _patches(x: Array, k: int, stride: int) -> Array:
    """The k x k patches of x [h, w, c], at every stride-th pixel: [h', w', k k c]."""
    (height, top, below), (width, left, right) = (
        _padding(k, stride, size) for size in x.shape[:2]
    )
    x = jnp.pad(x, ((top, below), (left, right), (0, 0)))
    end = lambda i, n: i + (n - 1) * stride + 1
    parts = [
        x[i : end(i, height) : stride, j : end(j, width) : stride]
        for i in range(k)
        for j in range(k)
    ]
    return jnp.concatenate(parts, axis=-1)


def _overlapped(taps: Array, k: int, stride: int) -> Array:
    """The transpose of `_patches` from [s h, s w, o], of taps [h, w, k k o].

    Pixel s m + i - first gets tap i of place m. Pixels of one remainder of division by
    s, a phase, take the same taps, at places moved alike.
    """
    h, w, _ = taps.shape
    # The gradient of a split is one concatenation: of so many parts, faster than a sum.
    parts = jnp.split(taps, k * k, axis=-1)
    first = _padding(k, stride, stride)[1]  # of any multiple of the stride
    moves = [divmod(i - first, stride) for i in range(k)]  # (places, phase)

    def phase(a: int, b: int) -> Array:
        total = jnp.zeros_like(parts[0])
        for i, (down, of_row) in enumerate(moves):
            for j, (right, of_column) in enumerate(moves):
                if (of_row, of_column) == (a, b):
                    total += _moved(parts[i * k + j], down, right)
        return total

    phases = [[phase(a, b) for b in range(stride)] for a in range(stride)]
    rows = [jnp.stack(row, axis=2) for row in phases]  # [h, w, s, o]
    return jnp.stack(rows, axis=1).reshape(stride * h, stride * w, -1)


def _moved(x: Array, down: int, right: int) -> Array:
    """x [h, w, o] moved by whole places, zeros where nothing comes from."""
    zero = jnp.zeros((), x.dtype)
    return lax.pad(x, zero, ((down, -down, 0), (right, -right, 0), (0, 0, 0)))
