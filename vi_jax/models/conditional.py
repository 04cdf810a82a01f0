"""The conditional VAE: a model of x for every context c, such as a label."""

import inspect
from collections.abc import Callable

from vi_jax.distributions import Normal
from vi_jax.model import Model
from vi_jax.models.vae import vae
from vi_jax.types import Array, Component, Key, Latents, Params

Conditional = Callable[[Array], Model]
"""c -> the Model of p(x, z | c) and q(z | x, c); every c has the same parameters."""


def conditional_vae(
    prior: Component, posterior: Component, likelihood: Component
) -> Conditional:
    """p(z | c) p(x | z, c) with q(z | x, c), a function of one example's context c.

    `conditional_vae(...)(c)` is a `Model`: every bound, estimator and measure applies
    to it, and bounds are on log p(x | c). The Components are those of `vae`, given the
    context too: the prior has `init(key, c)` and `apply(params, c)`, such as
    `posteriors.normal(network)`, or is `fixed`; the others see the pairs (x, c) and
    (z, c), which `networks.mlp` takes. A label is best given one-hot. Parameters are
    those of any one example: `conditional_vae(...)(c).init(key, x)`.
    Errors are those of `vae`, and a ValueError where the prior takes no context.
    Ref: Sohn et al. 2015; Kingma et al. 2014, arXiv:1406.5298.
    """
    try:
        inspect.signature(prior.apply).bind({}, None)
    except TypeError:
        raise ValueError(
            "the prior of a conditional model takes the context, apply(params, c): "
            "give one without as `models.fixed(prior)`"
        ) from None

    def given(c: Array) -> Model:
        with_context = lambda part: Component(
            lambda key, a: part.init(key, (a, c)),
            lambda params, a: part.apply(params, (a, c)),
        )
        prior_of_c = Component(
            lambda key, z: prior.init(key, c), lambda params: prior.apply(params, c)
        )
        return vae(prior_of_c, with_context(posterior), with_context(likelihood))

    return given


def at_context(model: Model | Conditional, c: Array | None) -> Model:
    """The Model given c; a Model itself, which takes no context, where c is None.

    Raises ValueError where a Model comes with a context, or a Conditional without, and
    for what is neither.
    """
    if not callable(model) and not hasattr(model, "likelihood"):
        raise ValueError(
            f"needed is a Model, such as `models.vae` makes, got {type(model).__name__}"
        )
    if callable(model) != (c is not None):
        raise ValueError(
            "a conditional model needs a context c for each example; a Model takes none"
        )
    return model if c is None else model(c)


def moved(
    model: Conditional, params: Params, z: Latents, c: Array, to: Array
) -> Latents:
    """The z of an example of context c, for the context `to` in the same style.

    Its place in p(z | c) is kept, that is what p(z) leaves free: loc_to + scale_to
    (z - loc_c) / scale_c of diagonal Gaussians; z itself under a `fixed` prior.
    Raises ValueError where the priors are others.
    """
    here, there = model(c).prior(params), model(to).prior(params)
    if not (type(here) is type(there) is Normal):
        raise ValueError(
            f"the place of z in a {type(here).__name__} is not known: needed is a "
            "prior of diagonal Gaussians"
        )
    return there.loc + there.scale * (z - here.loc) / here.scale


def fixed(prior: Component) -> Component:
    """A prior p(z) without parameters as one that is the same for every context.

    Raises ValueError where it has parameters.
    """
    try:
        prior.apply({})
    except KeyError as error:
        raise ValueError(
            f"a fixed prior has no parameters, this one needs {error}: give it as "
            "Component(lambda key, c: prior.init(key, z), lambda params, c: "
            "prior.apply(params)), z being latents of its shape"
        ) from None

    def init(key: Key, c: Array) -> Params:
        del key, c
        return {}

    def apply(params: Params, c: Array) -> Latents:
        del c
        return prior.apply(params)

    return Component(init, apply)
