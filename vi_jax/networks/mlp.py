"""Multi-layer perceptrons over one example."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import linen

from vi_jax.networks.linen import from_linen
from vi_jax.types import Array, Component


class _Mlp(linen.Module):
    features: tuple[int, ...]
    activation: Callable[[Array], Array]
    output_bias: Array | None

    @linen.compact
    def __call__(self, x: Array) -> Array:
        h = jnp.ravel(x)
        glorot = linen.initializers.glorot_uniform()
        for width in self.features[:-1]:
            h = self.activation(linen.Dense(width, kernel_init=glorot)(h))
        bias_init = linen.initializers.zeros
        if self.output_bias is not None:
            bias_init = lambda key, shape, dtype: jnp.asarray(self.output_bias, dtype)
        out = linen.Dense(self.features[-1], kernel_init=glorot, bias_init=bias_init)
        return out(h)


def mlp(
    hidden: Sequence[int],
    outputs: int,
    *,
    activation: Callable[[Array], Array] = jnp.tanh,
    output_bias: Array | None = None,
) -> Component:
    """x of any shape, flattened -> hidden layers -> [outputs], the last layer linear.

    Weights start Glorot-uniform and biases at 0, except for `output_bias` [outputs].
    Raises ValueError where a width is below 1 or the bias has another shape.
    """
    if min([*hidden, outputs]) < 1:
        raise ValueError(f"layer widths must be at least 1, got {[*hidden, outputs]}")
    if output_bias is not None and output_bias.shape != (outputs,):
        raise ValueError(
            f"output_bias has shape {output_bias.shape}, expected ({outputs},)"
        )
    return from_linen(_Mlp((*hidden, outputs), activation, output_bias))
