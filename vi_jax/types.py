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


class Batches(NamedTuple):
    """A stream of minibatches as a pure function of the step."""

    resident: Batch  # arrays that live on the device for the whole run
    at: Callable[[int], Batch]  # step -> the arrays that travel for this step
    gather: Callable[[Batch, Batch], Batch]  # (resident, travelling) -> batch, in jit


class Component(NamedTuple):
    """A parametrised function: `apply(init(key, x), x)`, over one example."""

    init: Callable[..., Params]
    apply: Callable[..., Any]


class SequenceNetwork(NamedTuple):
    """A causal network over tokens x [t] given z: scores [v] of what comes next.

    `logits` reads a whole sequence at once, `start` and `step` one token at a time with
    a cache between them; row i of the one is the i-th result of the other.
    """

    init: Callable[[Key, Latents], Params]
    logits: Callable[[Params, Latents, Array], Array]  # [t, v], row i from x[:i]
    start: Callable[[Params, Latents], tuple[Any, Array]]  # cache, logits of x[0]
    step: Callable[[Params, Any, Array], tuple[Any, Array]]  # given the next token
