"""What a distribution is, and how its class becomes a pytree."""

import dataclasses
import math
from typing import ClassVar, Protocol

import jax

from vi_jax.types import Array, Key

LOG_2PI = math.log(2 * math.pi)


class Distribution(Protocol):
    """What the rest of the library asks of a distribution over one example.

    One of your own is a class under `register`: its fields are its parameters, arrays
    to which `vmap` and `stop_gradient` apply. log_prob is a sum over the event, [] in
    nats, or [g] for g groups of latents; only pictures and metrics need a `mean`.
    `pathwise`, a ClassVar and so no field, says that `sample` is differentiable in the
    parameters, given the key: `reparam`, `stl` and `dreg` need it, `vimco` does not.
    """

    pathwise: ClassVar[bool]

    def sample(self, key: Key) -> Array: ...
    def log_prob(self, x: Array) -> Array: ...
    def mean(self) -> Array: ...


def register(cls):
    """A class of parameters as a frozen dataclass and a pytree of them: a decorator."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))
