"""The fence around flax: a Linen module becomes an (init, apply) pair."""

from flax import linen

from vi_jax.types import Array, Component, Key, Params


def from_linen(module: linen.Module) -> Component:
    """Wrap a Linen module of one example, with parameters and no other state.

    `init` raises ValueError where the module has other collections: batch statistics,
    for one, couple the examples of a batch, and then no bound holds.
    """

    def init(key: Key, x: Array) -> Params:
        variables = module.init(key, x)
        if extra := set(variables) - {"params"}:
            raise ValueError(
                f"{type(module).__name__} keeps state in {sorted(extra)}; a network "
                "here has parameters only (LayerNorm instead of BatchNorm, say)"
            )
        return variables.get("params", {})

    def apply(params: Params, x: Array) -> Array:
        return module.apply({"params": params}, x)

    return Component(init, apply)
