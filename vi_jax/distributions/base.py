"""What a distribution is, and how its class becomes a pytree."""

import dataclasses
import math
from typing import ClassVar, Protocol

import jax

from vi_jax.types import Array, Key

LOG_2PI = math.log(2 * math.pi)


class Distribution(Protocol):
    """What the rest of the library asks of a distribution over one example."""

    pathwise: ClassVar[bool]

    def sample(self, key: Key) -> Array: ...
    def log_prob(self, x: Array) -> Array: ...
    def mean(self) -> Array: ...


def register(cls):
    """A class of parameters as a frozen dataclass and a pytree of them."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))
