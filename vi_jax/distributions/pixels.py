"""Grey and coloured pixels: x = pixel / 255, floats in [0, 1] of any event shape.

The discrete ones give a probability to each of the 256 values of a pixel, the
continuous Bernoulli a density to x in [0, 1]; outside, both are 0. The pixels, and
their channels, are independent. `bits_per_dim` says which numbers can be compared.
"""

import math
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp

from vi_jax.checks import at_least
from vi_jax.distributions.base import register
from vi_jax.types import Array, Key

WHITE = 255


@register
class ContinuousBernoulli:
    """The density e^(l x) / A(l) on [0, 1], A(l) = (e^l - 1) / l, from logits l.

    That is the Bernoulli's formula for grey pixels with the constant that makes it a
    density of them. `log_prob` raises ValueError for an integer x.
    Ref: Loaiza-Ganem & Cunningham 2019, arXiv:1907.06845.
    """

    logits: Array
    pathwise: ClassVar[bool] = True

    def sample(self, key: Key) -> Array:
        shape, dtype = jnp.shape(self.logits), jnp.result_type(self.logits)
        u = jax.random.uniform(key, shape, dtype)
        # The inverse of F(x) = (1 - e^(-a x)) / (1 - e^-a), as factors smooth at 0.
        a = abs(self.logits)
        x = u * jnp.exp(_log_mean_decay(a)) * _log1p_ratio(-u * jnp.expm1(-a))
        return jnp.where(self.logits < 0, x, 1 - x)

    def log_prob(self, x: Array) -> Array:
        chex.assert_equal_shape([x, self.logits])
        _require_floats(x)
        l = self.logits
        # From the likelier end of [0, 1], so that nothing large cancels. The derivative
        # of abs at 0 is 1: the other kink must take the same side there.
        from_end = jnp.where(l < 0, l * x, -l * (1 - x))
        each = from_end - _log_mean_decay(abs(l))
        return jnp.sum(jnp.where((x >= 0) & (x <= 1), each, -jnp.inf))

    def mean(self) -> Array:
        total = lambda a: jnp.sum(_log_mean_decay(a))
        from_end = -jax.grad(total)(abs(self.logits))
        return jnp.where(self.logits < 0, from_end, 1 - from_end)


@register
class DiscretizedLogistic:
    """A logistic rounded to the nearest of the values v / 255, v = 0 ... 255.

    P(v) = F(v + 1/2) - F(v - 1/2), F(v) = sigmoid((v / 255 - loc) / scale), where the
    outer values have the tails. Events are rounded to the nearest value. loc and scale
    > 0 are shaped as x. `log_prob` raises ValueError for an integer x.
    Ref: Kingma et al. 2016, arXiv:1606.04934; Salimans et al. 2017, arXiv:1701.05517.
    """

    loc: Array
    scale: Array
    pathwise: ClassVar[bool] = False

    def sample(self, key: Key) -> Array:
        return _rounded_logistic(key, self.loc, self.scale)

    def log_prob(self, x: Array) -> Array:
        chex.assert_equal_shape([x, self.loc, self.scale])
        pixel = _nearest_pixel(x)
        return _sum_where_valid(pixel, _log_mass(pixel, self.loc, self.scale))

    def mean(self) -> Array:
        return _rounded_logistic_mean(self.loc, self.scale)


@register
class DiscretizedLogisticMixture:
    """For each entry of x its own mixture of m `DiscretizedLogistic`s.

    logits, loc and scale > 0 are [..., m] for x [...]. Unlike in PixelCNN++ a channel
    does not see the others. `log_prob` raises ValueError for an integer x.
    Ref: Salimans et al. 2017, arXiv:1701.05517.
    """

    logits: Array
    loc: Array
    scale: Array
    pathwise: ClassVar[bool] = False

    def sample(self, key: Key) -> Array:
        key_m, key_x = jax.random.split(key)
        m = jax.random.categorical(key_m, self.logits)[..., None]
        loc, scale = (
            jnp.take_along_axis(a, m, axis=-1)[..., 0] for a in (self.loc, self.scale)
        )
        return _rounded_logistic(key_x, loc, scale)

    def log_prob(self, x: Array) -> Array:
        chex.assert_equal_shape([self.logits, self.loc, self.scale])
        chex.assert_shape(x, self.logits.shape[:-1])
        pixel = _nearest_pixel(x)
        of_component = jax.vmap(_log_mass, in_axes=(None, -1, -1), out_axes=-1)
        each = of_component(pixel, self.loc, self.scale)  # [..., m]
        log_weights = jax.nn.log_softmax(self.logits)
        return _sum_where_valid(pixel, jax.nn.logsumexp(log_weights + each, axis=-1))

    def mean(self) -> Array:
        means = _rounded_logistic_mean(self.loc, self.scale)
        return jnp.sum(jax.nn.softmax(self.logits) * means, axis=-1)


@register
class PixelCategorical:
    """Any probabilities for the 256 values v / 255: logits [..., 256] for x [...].

    Events are rounded to the nearest value. `log_prob` raises ValueError for an
    integer x.
    """

    logits: Array
    pathwise: ClassVar[bool] = False

    def sample(self, key: Key) -> Array:
        pixel = jax.random.categorical(key, self.logits)
        return pixel.astype(jnp.result_type(self.logits)) / WHITE

    def log_prob(self, x: Array) -> Array:
        chex.assert_shape(self.logits, (*x.shape, WHITE + 1))
        pixel = _nearest_pixel(x)
        index = jnp.clip(pixel, 0, WHITE).astype(int)[..., None]
        log_p = jax.nn.log_softmax(self.logits)
        each = jnp.take_along_axis(log_p, index, axis=-1)[..., 0]
        return _sum_where_valid(pixel, each)

    def mean(self) -> Array:
        values = jnp.arange(WHITE + 1, dtype=jnp.result_type(self.logits)) / WHITE
        return jax.nn.softmax(self.logits) @ values


def bits_per_dim(log_px: Array, num_dims: int, *, bin_width: float = 1.0) -> Array:
    """-(log p(x) + D log(bin_width)) / (D log 2), shaped as log_px; lower is better.

    log_px is in nats, summed over the D = num_dims entries of x; a lower bound on it
    gives an upper bound on the bits. bin_width is 1 for the probability of a pixel of
    256 values, where the result is the length of a lossless code. For a density p it
    is the side of a pixel's cell: 1 / 256 for x = (pixel + u) / 256 with u uniform in
    [0, 1), drawn anew at each use. The mean over u of the result then bounds the bits
    of the probabilities that p gives to the cells, and compares with those.

    A density at x = pixel / 255 itself has no such meaning: it may grow without bound
    at the 256 values, or put mass where no pixel can be, and compares with nothing
    discrete, whatever the bin_width. Neither do the bits of binarized pixels.
    Raises ValueError where num_dims is below 1 or bin_width is not in (0, 1].
    Ref: Theis et al. 2016, arXiv:1511.01844.
    """
    at_least(1, num_dims=num_dims)
    if not 0 < bin_width <= 1:
        raise ValueError(
            f"bin_width must be in (0, 1], such as 1 / 256 for a density, {bin_width=}"
        )
    return -(log_px / num_dims + math.log(bin_width)) / math.log(2)


def _require_floats(x: Array) -> None:
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        raise ValueError(
            f"x must be floats, pixel / 255 in [0, 1], got {jnp.result_type(x)}: "
            "divide the pixels by 255.0"
        )


def _nearest_pixel(x: Array) -> Array:
    """0.0 ... 255.0 for x in [0, 1]."""
    _require_floats(x)
    return jnp.round(WHITE * x)


def _sum_where_valid(pixel: Array, log_p: Array) -> Array:
    return jnp.sum(jnp.where((pixel >= 0) & (pixel <= WHITE), log_p, -jnp.inf))


def _log_mass(pixel: Array, loc: Array, scale: Array) -> Array:
    """The log probability of the logistic between the edges of each pixel.

    With the edges at u and l < u in units of the scale, sigmoid(u) - sigmoid(l) is
    sigmoid(u) sigmoid(-l) (1 - e^(l - u)) exactly, in whose logs nothing cancels.
    """
    below_upper = jax.nn.log_sigmoid(((pixel + 0.5) / WHITE - loc) / scale)
    above_lower = jax.nn.log_sigmoid((loc - (pixel - 0.5) / WHITE) / scale)
    between = jnp.log(-jnp.expm1(-1 / (WHITE * scale)))
    black, white = pixel <= 0, pixel >= WHITE
    return (
        jnp.where(white, 0.0, below_upper)
        + jnp.where(black, 0.0, above_lower)
        + jnp.where(black | white, 0.0, between)
    )


def _rounded_logistic(key: Key, loc: Array, scale: Array) -> Array:
    shape, dtype = jnp.shape(loc), jnp.result_type(loc)
    y = loc + scale * jax.random.logistic(key, shape, dtype)
    return jnp.clip(jnp.round(WHITE * y), 0, WHITE) / WHITE


def _rounded_logistic_mean(loc: Array, scale: Array) -> Array:
    """The mean over the 255 inner edges of the probability above the edge."""
    edges = (jnp.arange(WHITE, dtype=jnp.result_type(loc)) + 0.5) / WHITE
    above = jax.vmap(lambda edge: jax.nn.sigmoid((loc - edge) / scale))(edges)
    return jnp.mean(above, axis=0)


def _log_mean_decay(a: Array) -> Array:
    """log((1 - e^-a) / a), of the mean of e^(-a t) over t in [0, 1]; smooth at 0."""
    near = a < 0.5
    t = jnp.where(near, a, 0.0)
    series = jnp.ones_like(t)
    for n in range(14, 1, -1):  # 1 - a / 2 (1 - a / 3 (1 - ...))
        series = 1 - t / n * series
    far = jnp.where(near, 1.0, a)
    of_far = jnp.log(-jnp.expm1(-far)) - jnp.log(far)
    return jnp.where(near, jnp.log(series), of_far)


def _log1p_ratio(w: Array) -> Array:
    """-log(1 - w) / w for 0 <= w < 1, smooth at 0."""
    near = w < 0.1
    t = jnp.where(near, w, 0.0)
    series = jnp.full_like(t, 1 / 17)
    for n in range(16, 0, -1):  # 1 + w / 2 + w^2 / 3 + ...
        series = 1 / n + t * series
    far = jnp.where(near, 0.5, w)
    return jnp.where(near, series, -jnp.log1p(-far) / far)
