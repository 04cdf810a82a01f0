"""Likelihoods p(x | z): Components with `init(key, z)` and `apply(params, z)`.

Each is a normalised density or probability; `log_prob` sums over the event. Those of
pixels, but for the Bernoulli ones, are for x = pixel / 255 in [0, 1], of any shape.
"""

import math

import jax
import jax.numpy as jnp

from vi_jax.checks import at_least
from vi_jax.distributions import (
    AutoregressiveBernoulli,
    Bernoulli,
    ContinuousBernoulli,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    Multinomial,
    Normal,
    PixelCategorical,
    TokenSequence,
)
from vi_jax.types import Array, Component, Key, Latents, Params, SequenceNetwork

# A pixel of 8 bits cannot be known better than its own grid: 1 / 255 / sqrt(12).
SCALE_FLOOR = 1e-3
# An eighth of a bin, about the e^-7 of PixelCNN++ on its range of 2: a pixel can then
# have the probability 0.96.
LOGISTIC_SCALE_FLOOR = 5e-4
# The softplus of it is a tenth of the range of x, less the floor.
_RAW_LOGISTIC_START = math.log(math.expm1(0.1 - LOGISTIC_SCALE_FLOOR))


def bernoulli(network: Component) -> Component:
    """Independent binary pixels, the network giving their logits, shaped as x."""
    apply = lambda params, z: Bernoulli(network.apply(params, z))
    return Component(network.init, apply)


def autoregressive_bernoulli(network: Component, shape: tuple[int, ...]) -> Component:
    """Binary pixels of `shape`, each given those before it in row-major order.

    network.apply(params, (x, z)) are the logits, shaped as x, and its
    init(key, (x, z)) the first parameters: `networks.made`.
    """

    def init(key: Key, z: Latents) -> Params:
        return network.init(key, (jnp.zeros(shape), z))

    def apply(params: Params, z: Latents) -> AutoregressiveBernoulli:
        return AutoregressiveBernoulli(params, z, network, shape)

    return Component(init, apply)


def continuous_bernoulli(network: Component) -> Component:
    """A density of x in [0, 1], the network giving its logits, shaped as x.

    Ref: Loaiza-Ganem & Cunningham 2019, arXiv:1907.06845.
    """
    apply = lambda params, z: ContinuousBernoulli(network.apply(params, z))
    return Component(network.init, apply)


def normal(network: Component, *, per_dimension: bool = False) -> Component:
    """Gaussian around the network's output with one learned scale for all of x.

    scale = softplus(s) + 1e-3 (`SCALE_FLOOR`), starting near 1: without a floor the
    density of a perfectly predicted pixel has no maximum. With `per_dimension` each
    entry of x has a scale of its own, still the same for every z.
    Ref: Rybkin et al. 2021, arXiv:2006.13202 (sigma-VAE).
    """

    def init(key: Key, z: Latents) -> Params:
        params = network.init(key, z)
        shape = jax.eval_shape(network.apply, params, z).shape if per_dimension else ()
        return {"network": params, "raw_scale": jnp.full(shape, 0.5413)}

    def apply(params: Params, z: Latents) -> Normal:
        loc = network.apply(params["network"], z)
        scale = jax.nn.softplus(params["raw_scale"]) + SCALE_FLOOR
        return Normal(loc, jnp.broadcast_to(scale, loc.shape))

    return Component(init, apply)


def optimal_scale(params: Params, mean_square: Array) -> Params:
    """The params of `normal` with the scale that fits a data set best.

    scale^2 = mean_square maximises the mean of log p(x | z), mean_square being the mean
    of (x - loc(z))^2 over the examples, over z ~ q(z | x) and, where the scale is one
    for all, over the entries of x: shaped as params["raw_scale"]. Below `SCALE_FLOOR`^2
    the scale is the floor.

    The scale is a parameter, the same for all examples. N(x; loc, scale(x)^2) with the
    best scale for each x is no density of x: its integral is not 1, and its log, -D / 2
    log(mean square of x) + constant, is not the log-likelihood of any model.
    Raises ValueError where params are not those of `normal` or the shape is another.
    Ref: Rybkin et al. 2021, arXiv:2006.13202.
    """
    if "raw_scale" not in params:
        raise ValueError(f"needed: the params of `likelihoods.normal`, got {[*params]}")
    raw = params["raw_scale"]
    if jnp.shape(mean_square) != raw.shape:
        raise ValueError(
            f"mean_square has shape {jnp.shape(mean_square)}, expected that of the "
            f"scale, {raw.shape}: average over what shares a scale"
        )
    # As good as the floor, but with a finite raw scale.
    above_floor = jnp.sqrt(mean_square) - SCALE_FLOOR
    least = jnp.finfo(raw.dtype).tiny
    return {**params, "raw_scale": _inverse_softplus(jnp.maximum(above_floor, least))}


def discretized_logistic(network: Component) -> Component:
    """256 values from a logistic around the network's output, shaped as x, rounded.

    One learned scale for all of x, softplus(s) + 5e-4 (`LOGISTIC_SCALE_FLOOR`),
    starts at a tenth of the range. Ref: Kingma et al. 2016, arXiv:1606.04934.
    """

    def init(key: Key, z: Latents) -> Params:
        raw = jnp.full((), _RAW_LOGISTIC_START)
        return {"network": network.init(key, z), "raw_logistic_scale": raw}

    def apply(params: Params, z: Latents) -> DiscretizedLogistic:
        loc = network.apply(params["network"], z)
        scale = jax.nn.softplus(params["raw_logistic_scale"]) + LOGISTIC_SCALE_FLOOR
        return DiscretizedLogistic(loc, jnp.broadcast_to(scale, loc.shape))

    return Component(init, apply)


def discretized_logistic_mixture(
    network: Component, num_components: int = 5
) -> Component:
    """For each entry of x a mixture of m = num_components rounded logistics.

    The last axis of the network's output is that of x times 3 m, entry by entry:
    [D 3 m] for x [D], [h, w, c 3 m] for x [h, w, c]. The 3 m numbers of an entry are m
    logits, m locations and m scales. At 0 the weights are equal, the locations spread
    evenly over [0, 1], and the scales, softplus(s + constant) + 5e-4, a tenth.
    Raises ValueError where num_components is below 1, and from `apply` where the last
    axis is no multiple of 3 m.
    Ref: Salimans et al. 2017, arXiv:1701.05517.
    """
    at_least(1, num_components=num_components)

    def apply(params: Params, z: Latents) -> DiscretizedLogisticMixture:
        h = _per_entry(network.apply(params, z), 3 * num_components)
        logits, loc, raw = jnp.split(h, 3, axis=-1)
        spread = (jnp.arange(num_components, dtype=h.dtype) + 0.5) / num_components
        loc += jnp.broadcast_to(spread, loc.shape)
        scale = jax.nn.softplus(raw + _RAW_LOGISTIC_START) + LOGISTIC_SCALE_FLOOR
        return DiscretizedLogisticMixture(logits, loc, scale)

    return Component(network.init, apply)


def pixel_categorical(network: Component) -> Component:
    """Any probabilities for the 256 values of each entry of x.

    The last axis of the network's output is that of x times 256, entry by entry:
    [D 256] for x [D], [h, w, c 256] for x [h, w, c]; ValueError from `apply` otherwise.
    """
    apply = lambda params, z: PixelCategorical(
        _per_entry(network.apply(params, z), 256)
    )
    return Component(network.init, apply)


def tokens(network: SequenceNetwork, length: int) -> Component:
    """Token sequences int32 [length], as `sequences` has them, one token at a time."""
    apply = lambda params, z: TokenSequence(params, z, network, length)
    return Component(network.init, apply)


def multinomial(network: Component) -> Component:
    """Counts x [items] given their total, the network giving their logits [items].

    Ref: Liang et al. 2018, arXiv:1802.05814.
    """
    apply = lambda params, z: Multinomial(network.apply(params, z))
    return Component(network.init, apply)


def bias_from_mean(mean: Array, clip: float = 1e-3) -> Array:
    """The logits of the training mean, clipped to [clip, 1 - clip] as Burda et al. do.

    As the initial bias of the last layer they let the decoder start at the best
    independent model of the pixels.
    """
    mean = jnp.clip(mean, clip, 1 - clip)
    return jnp.log(mean) - jnp.log1p(-mean)


def _inverse_softplus(a: Array) -> Array:
    """log(e^a - 1) for a > 0, without overflow."""
    return a + jnp.log(-jnp.expm1(-a))


def _per_entry(h: Array, size: int) -> Array:
    """[..., c size] -> [..., c, size]."""
    if h.ndim < 1 or h.shape[-1] % size:
        raise ValueError(
            f"the network's output {h.shape} must have x's shape with the last axis "
            f"times {size}, such as networks.mlp(hidden, {size} * x.size) for x [D]"
        )
    return h.reshape(*h.shape[:-1], -1, size)
