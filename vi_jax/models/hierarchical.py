"""Several stochastic layers: a prior and a posterior that are each one walk."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vi_jax.distributions import Distribution, register
from vi_jax.model import Model
from vi_jax.models.vae import vae
from vi_jax.types import Array, Component, Key, Latents, Params


@register
class Chain:
    """The law of z = (z_1, ..., z_L), each layer given the one before it on the walk.

    Downward the walk is z_L, ..., z_1, as in a prior; upward z_1, ..., z_L. Sampling,
    the density and the mean are one loop. `log_prob` is [L], layer by layer: the sum
    is log p(z), and the rate of each layer comes for free.
    """

    first: Distribution  # of the layer where the walk begins
    params: tuple[Params, ...]  # of the links
    links: tuple[Callable[[Params, Array], Distribution], ...] = dataclasses.field(
        metadata={"static": True}
    )
    downward: bool = dataclasses.field(metadata={"static": True})

    def walk(self, choose: Callable[[int, Distribution], Array]) -> None:
        """Call choose(layer, its distribution) along the walk; it returns the z."""
        layers = range(len(self.links) + 1)
        layer, *rest = reversed(layers) if self.downward else layers
        z = choose(layer, self.first)
        for layer, link, params in zip(rest, self.links, self.params, strict=True):
            z = choose(layer, link(params, z))

    def _collect(self, choose, record=lambda z, distribution: z) -> list:
        found: list[Any] = [None] * (len(self.links) + 1)

        def note(layer: int, distribution: Distribution) -> Array:
            z = choose(layer, distribution)
            found[layer] = record(z, distribution)
            return z

        self.walk(note)
        return found

    @property
    def pathwise(self) -> bool:
        """Whether every layer's sample carries the gradient."""
        record = lambda z, distribution: distribution.pathwise
        draw = lambda i, d: d.sample(jax.random.key(0))  # its shape and type matter
        return all(self._collect(draw, record))

    def sample(self, key: Key) -> Latents:
        """(z_1, ..., z_L)."""
        draw = lambda i, d: d.sample(jax.random.fold_in(key, i))
        return tuple(self._collect(draw))

    def log_prob(self, z: Latents) -> Array:
        """log p(z_l | the layer before), [L], nats."""
        record = lambda z, distribution: jnp.sum(distribution.log_prob(z))
        return jnp.stack(self._collect(lambda i, d: z[i], record))

    def mean(self) -> Latents:
        """Each layer's mean where the one before it is at its own."""
        return tuple(self._collect(lambda i, d: d.mean()))


def hierarchical_vae(
    prior: Component,
    down: Sequence[Component],
    posterior: Component,
    up: Sequence[Component],
    likelihood: Component,
) -> Model:
    """p(z_L) p(z_L-1 | z_L) ... p(x | z_1) with q(z_1 | x) q(z_2 | z_1) ...

    `prior` is of z_L and down[0] of z_L-1 given z_L; `posterior` is of z_1 given x and
    up[0] of z_2 given z_1; the likelihood sees z_1. Latents are tuples
    (z_1, ..., z_L). With no links this is `vae`. Raises ValueError where the two walks
    differ in length, and from `init` where a layer has another shape in each.
    Ref: Burda et al. 2016, arXiv:1509.00519; Sonderby et al. 2016, arXiv:1602.02282.
    """
    if len(down) != len(up):
        raise ValueError(
            f"{len(down)} links down and {len(up)} up: the prior and the posterior "
            "must walk through the same layers"
        )
    return vae(
        _chain(prior, down, downward=True),
        _chain(posterior, up, downward=False),
        Component(
            lambda key, z: likelihood.init(key, z[0]),
            lambda params, z: likelihood.apply(params, z[0]),
        ),
    )


def _chain(first: Component, links: Sequence[Component], *, downward: bool):
    applies = tuple(link.apply for link in links)

    def init(key: Key, x: Any) -> Params:
        key, *keys = jax.random.split(key, len(links) + 1)
        params = first.init(key, x[-1] if downward else x)
        at = () if downward else (x,)
        # Draws are for their shapes: whatever the key.
        z = first.apply(params, *at).sample(jax.random.clone(key))
        of_links = []
        for key, link in zip(keys, links, strict=True):
            of_links.append(link.init(key, z))
            z = link.apply(of_links[-1], z).sample(jax.random.clone(key))
        return {"first": params, "links": tuple(of_links)}

    def apply(params: Params, *x: Array) -> Chain:
        start = first.apply(params["first"], *x)
        return Chain(start, params["links"], applies, downward)

    return Component(init, apply)
