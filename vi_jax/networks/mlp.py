"""Multi-layer perceptrons over one example."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from vi_jax.networks.linen import from_linen
from vi_jax.types import Array, Component


class DenseLayers(linen.Module):
    """The layers of `mlp`, also as a part of other networks."""

    features: tuple[int, ...]
    activation: Callable[[Array], Array]
    output_bias: Array | None = None

    @linen.compact
    def __call__(self, x: Array | tuple[Array, ...]) -> Array:
        h, *others = [jnp.ravel(leaf) for leaf in jax.tree.leaves(x)]
        if not h.size:
            raise ValueError("an input of no numbers has nothing to say to a network")
        dense = functools.partial(
            linen.Dense, kernel_init=linen.initializers.glorot_uniform()
        )
        last = len(self.features) - 1
        for i, width in enumerate(self.features):
            bias_init = linen.initializers.zeros
            if i == last and self.output_bias is not None:
                bias_init = lambda key, shape, dtype: jnp.asarray(
                    self.output_bias, dtype
                )
            h = dense(width, bias_init=bias_init)(h)
            # A product for each part: under vmap over one, the others' are done once.
            for j, other in enumerate(others if i == 0 else ()):
                h += dense(width, use_bias=False, name=f"Part_{j + 1}")(other)
            h = h if i == last else self.activation(h)
        return h


def mlp(
    hidden: Sequence[int],
    outputs: int,
    *,
    activation: Callable[[Array], Array] = jnp.tanh,
    output_bias: Array | None = None,
) -> Component:
    """x of any shape, flattened -> hidden layers -> [outputs], the last layer linear.

    x may be a tuple of arrays, such as (x, c) in a conditional model: the first layer
    sees all of them, with weights for each part of its own.
    Weights start Glorot-uniform and biases at 0, except for `output_bias` [outputs].
    Raises ValueError where a width is below 1 or the bias has another shape.
    """
    if min([*hidden, outputs]) < 1:
        raise ValueError(f"layer widths must be at least 1, got {[*hidden, outputs]}")
    if output_bias is not None and np.shape(output_bias) != (outputs,):
        raise ValueError(
            f"output_bias has shape {np.shape(output_bias)}, expected ({outputs},)"
        )
    return from_linen(DenseLayers((*hidden, outputs), activation, output_bias))
