"""Masked autoregressive networks over binary events, given latents."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from vi_jax.networks.linen import from_linen
from vi_jax.networks.mlp import DenseLayers
from vi_jax.types import Array, Component, Latents


class _Shift(linen.Module):
    """A bias [width], plus a linear map of every part of z."""

    width: int
    start: Array | None = None

    @linen.compact
    def __call__(self, z: Latents) -> Array:
        start = jnp.zeros(self.width) if self.start is None else jnp.ravel(self.start)
        if start.size != self.width:
            raise ValueError(
                f"output_bias has shape {self.start.shape}, expected as many numbers "
                f"as x has entries, {self.width}"
            )
        shift = self.param("bias", lambda key: start)
        for part in jax.tree.leaves(z):
            shift += linen.Dense(self.width, use_bias=False)(jnp.ravel(part))
        return shift


class _Made(linen.Module):
    """A unit of degree m knows x_0 ... x_(m-1), so it may feed those of degree >= m."""

    hidden: tuple[int, ...]
    latent_hidden: tuple[int, ...]
    direct: bool
    activation: Callable[[Array], Array]
    output_bias: Array | None

    @linen.compact
    def __call__(self, inputs: tuple[Array, Latents]) -> Array:
        x, z = inputs
        if self.latent_hidden:
            z = self.activation(DenseLayers(self.latent_hidden, self.activation)(z))
        pixels, outputs = np.arange(x.size) + 1, np.arange(x.size)
        h, degrees = jnp.ravel(x), pixels
        for i, width in enumerate(self.hidden):
            after = np.arange(width) * x.size // width  # evenly over 0 ... D - 1
            h = self._masked(f"hidden_{i}", h, degrees, after) + _Shift(width)(z)
            h, degrees = self.activation(h), after
        logits = _Shift(x.size, self.output_bias)(z)
        if self.hidden:
            logits += self._masked("output", h, degrees, outputs)
        if self.direct:
            logits += self._masked("direct", jnp.ravel(x), pixels, outputs)
        return logits.reshape(x.shape)

    def _masked(
        self, name: str, h: Array, before: np.ndarray, after: np.ndarray
    ) -> Array:
        init = linen.initializers.glorot_uniform()
        kernel = self.param(name, init, (before.size, after.size))
        return h @ jnp.where(before[:, None] <= after[None, :], kernel, 0.0)


def made(
    hidden: Sequence[int],
    *,
    latent_hidden: Sequence[int] = (),
    direct: bool = True,
    activation: Callable[[Array], Array] = jax.nn.relu,
    output_bias: Array | None = None,
) -> Component:
    """(x, z) -> logits shaped as x, of which entry i depends on x_0 ... x_(i-1) and z.

    The entries of x, of any shape, are in row-major order; the masks of the weights
    leave out all that would let an entry see itself or a later one. z, any arrays or ()
    for none, goes through dense layers of the widths `latent_hidden` and from there,
    unmasked, into each hidden layer and the output. Every hidden layer's degrees (how
    many entries a unit may know of) are spread evenly over 0 ... D - 1: from width D on
    every earlier entry can matter. `direct` adds weights [D, D] from x to the logits,
    so that narrow layers do not hide the nearest pixels. `output_bias`, as many as x
    has entries, is where the bias starts, as `likelihoods.bias_from_mean`.

    At many z for one x a pass costs the widths' products from the first hidden layer
    on: what depends on x alone is done once.
    Raises ValueError where a width is below 1, where there is neither a hidden layer
    nor `direct`, and from `init` where the bias has another size.
    Ref: Germain et al. 2015, arXiv:1502.03509.
    """
    if min([*hidden, *latent_hidden], default=1) < 1:
        raise ValueError(
            f"layer widths must be at least 1, got hidden {[*hidden]} and "
            f"latent_hidden {[*latent_hidden]}"
        )
    if not hidden and not direct:
        raise ValueError("no entry would depend on others: give hidden or direct=True")
    network = from_linen(
        _Made(tuple(hidden), tuple(latent_hidden), direct, activation, output_bias)
    )
    # One program for the first parameters: by itself each operation would be one.
    return Component(jax.jit(network.init), network.apply)
