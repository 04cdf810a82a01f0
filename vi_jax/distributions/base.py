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
    """A class of parameters as a frozen dataclass and a pytree of them: a decorator.

    A field whose metadata has static=True is no parameter, but a part of the structure.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)
    rest = [f.name for f in fields if f.metadata.get("static")]
    leaves = [f.name for f in fields if f.name not in rest]
    values = lambda d, names: tuple(getattr(d, name) for name in names)

    def with_keys(d):
        keys = map(jax.tree_util.GetAttrKey, leaves)
        return tuple(zip(keys, values(d, leaves), strict=True)), values(d, rest)

    def rebuilt(of_rest, of_leaves):
        return cls(**dict(zip(leaves + rest, (*of_leaves, *of_rest), strict=True)))

    # Not `register_dataclass`: for it (jax 0.10 to 0.12) the trees of all classes with
    # as many fields are equal, and where parts of their hashes agree, too, a program of
    # one class runs for another: on 0.10.2, for 44 of 300 classes under one `jit`.
    flatten = lambda d: (values(d, leaves), values(d, rest))
    jax.tree_util.register_pytree_with_keys(cls, with_keys, rebuilt, flatten)
    return cls
