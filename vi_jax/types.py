"""Names for what flows between the modules."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
Key = jax.Array
Params = Any
Latents = Any
Batch = dict[str, Any]
Metrics = dict[str, Any]

LossFn = Callable[[Params, Key, Batch], tuple[Array, Metrics]]
"""(params, key, batch) -> (loss to minimise, metrics): all that the trainer knows."""


class Component(NamedTuple):
    """A parametrised function: `apply(init(key, x), x)`, over one example."""

    init: Callable[..., Params]
    apply: Callable[..., Any]
