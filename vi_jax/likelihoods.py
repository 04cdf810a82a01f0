"""Likelihoods p(x | z): Components with `init(key, z)` and `apply(params, z)`.

Each is a normalised density or probability; `log_prob` sums over the event.
"""

import jax
import jax.numpy as jnp

from vi_jax.distributions import Bernoulli, Normal
from vi_jax.types import Array, Component, Key, Latents, Params

# A pixel of 8 bits cannot be known better than its own grid: 1 / 255 / sqrt(12).
SCALE_FLOOR = 1e-3


def bernoulli(network: Component) -> Component:
    """Independent binary pixels, the network giving their logits, shaped as x."""
    apply = lambda params, z: Bernoulli(network.apply(params, z))
    return Component(network.init, apply)


def normal(network: Component) -> Component:
    """Gaussian around the network's output with one learned scale for all of x.

    scale = softplus(s) + 1e-3 (`SCALE_FLOOR`), starting near 1: without a floor the
    density of a perfectly predicted pixel has no maximum.
    Ref: Rybkin et al. 2021, arXiv:2006.13202 (sigma-VAE).
    """

    def init(key: Key, z: Latents) -> Params:
        return {"network": network.init(key, z), "raw_scale": jnp.asarray(0.5413)}

    def apply(params: Params, z: Latents) -> Normal:
        loc = network.apply(params["network"], z)
        scale = jax.nn.softplus(params["raw_scale"]) + SCALE_FLOOR
        return Normal(loc, jnp.full(loc.shape, scale))

    return Component(init, apply)


def bias_from_mean(mean: Array, clip: float = 1e-3) -> Array:
    """The logits of the training mean, clipped to [clip, 1 - clip] as Burda et al. do.

    As the initial bias of the last layer they let the decoder start at the best
    independent model of the pixels.
    """
    mean = jnp.clip(mean, clip, 1 - clip)
    return jnp.log(mean) - jnp.log1p(-mean)
