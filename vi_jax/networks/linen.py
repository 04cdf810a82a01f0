"""The fence around flax: a Linen module becomes an (init, apply) pair."""

import functools

import jax
import jax.numpy as jnp
from flax import errors, linen
from jax.extend import core

from vi_jax.types import Array, Component, Key, Params


def from_linen(module: linen.Module) -> Component:
    """Wrap a Linen module of one example, with parameters and no other state.

    `init` raises ValueError where the module has other collections: batch statistics,
    for one, couple the examples of a batch, and then no bound holds; and where it draws
    at random, as Dropout does. `apply` raises it where x has another shape than the one
    that `init` saw, such as that of a batch.
    """

    def init(key: Key, x: Array) -> Params:
        variables = init_variables(module, key, x)
        if extra := set(variables) - {"params"}:
            raise ValueError(
                f"{type(module).__name__} keeps state in {sorted(extra)}; a network "
                "here has parameters only (LayerNorm instead of BatchNorm, say)"
            )
        try:
            jax.eval_shape(module.apply, variables, x)
        except errors.InvalidRngError as error:
            raise ValueError(
                f"{type(module).__name__} draws at random, and a network here is a "
                f"function of its parameters and x: deterministic=True, say ({error})"
            ) from error
        return variables.get("params", {})

    def apply(params: Params, x: Array) -> Array:
        try:
            return module.apply({"params": params}, x)
        except errors.ScopeParamShapeError as error:
            raise ValueError(
                "a network takes one example, shaped as the one that it was made for, "
                f"and got {jax.tree.map(jnp.shape, x)}: use jax.vmap for a batch; "
                f"`preprocess` of a loss must give one ({error})"
            ) from error

    return Component(init, apply)


def init_variables(module: linen.Module, key: Key, *args, method: str | None = None):
    """The variables of a module, without computing what it makes of its inputs.

    Each operation of `module.init` is compiled by itself, and most of a net's are not
    those that draw its parameters: only what its variables depend on is run.
    (`lazy_init` is no help: that of flax 0.12.12 takes the inputs for zeros.)
    """
    init = functools.partial(module.init, method=method)
    closed, shape = jax.make_jaxpr(init, return_shape=True)(key, *args)
    program, kept = closed.jaxpr, []
    needed = {v for v in program.outvars if isinstance(v, core.Var)}
    for step in reversed(program.eqns):
        if not needed.isdisjoint(step.outvars):
            kept.insert(0, step)
            needed |= {v for v in step.invars if isinstance(v, core.Var)}
    run = core.jaxpr_as_fun(closed.replace(jaxpr=program.replace(eqns=kept)))
    found = run(*map(jnp.asarray, jax.tree.leaves((key, args))))
    return jax.tree.unflatten(jax.tree.structure(shape), found)
