"""VAEs of tables: mixed columns as a likelihood, as an encoder's input, and imputed."""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from vi_jax.checks import at_least
from vi_jax.distributions import MixedColumns
from vi_jax.distributions.columns import places
from vi_jax.model import Model, log_weight, sampled_terms
from vi_jax.types import Array, Component, Key, Latents, Params

# Of a standardised column: a twentieth of its standard deviation. A column that can be
# computed from the others would otherwise outweigh them all.
COLUMN_SCALE_FLOOR = 0.05


def num_outputs(num_logits: Sequence[int]) -> int:
    """Outputs that `mixed_columns` needs of its network: sum of max(1, logits)."""
    return sum(max(1, size) for size in num_logits)


def mixed_columns(network: Component, num_logits: Sequence[int]) -> Component:
    """p(x | z) of a row x [columns]: `MixedColumns` from the network's outputs.

    The outputs [num_outputs(num_logits)] are, first, the means of the continuous
    columns and then the logits of the others. Each continuous column has one learned
    scale, the same for every z: softplus(s) + 0.05 (`COLUMN_SCALE_FLOOR`), starting
    near 1, for standardised columns.
    Raises ValueError from `init` and `apply` where the outputs are of another number.
    """
    num_logits = tuple(num_logits)
    num_gaussians = places(num_logits).gaussian.size

    def init(key: Key, z: Latents) -> Params:
        raw_scale = jnp.full(num_gaussians, 0.5413)
        return {"network": network.init(key, z), "raw_column_scale": raw_scale}

    def apply(params: Params, z: Latents) -> MixedColumns:
        h = network.apply(params["network"], z)
        if h.shape != (num_outputs(num_logits),):
            raise ValueError(
                f"the network's output has shape {h.shape}, these columns need "
                f"({num_outputs(num_logits)},): see tabular.num_outputs"
            )
        scale = jax.nn.softplus(params["raw_column_scale"]) + COLUMN_SCALE_FLOOR
        loc, logits = h[:num_gaussians], h[num_gaussians:]
        return MixedColumns(loc, scale.astype(h.dtype), logits, num_logits)

    return Component(init, apply)


def row_features(x: Array, num_logits: Sequence[int]) -> Array:
    """What a network can take for a row x [columns] with missing values, [f].

    The continuous values and 0 or 1 for the binary ones, 0 where missing; one-hot
    categories, all 0 where missing; and 1 for each missing entry, else 0.
    """
    chex.assert_shape(x, (len(num_logits),))
    missing = jnp.isnan(x)
    filled = jnp.where(missing, 0.0, x)
    at = places(num_logits)
    codes = jnp.where(missing, -1.0, filled)[at.category]
    one_hot = codes[:, None] == jnp.arange(at.is_category.shape[1])[None, :]
    parts = [
        filled[at.gaussian],
        filled[at.coin],
        one_hot[at.is_category],
        missing,
    ]
    return jnp.concatenate([part.astype(filled.dtype) for part in parts])


def of_rows(network: Component, num_logits: Sequence[int]) -> Component:
    """The network, fed with the `row_features` of a row x [columns]."""
    features = lambda x: row_features(x, num_logits)
    return Component(
        lambda key, x: network.init(key, features(x)),
        lambda params, x: network.apply(params, features(x)),
    )


class Imputed(NamedTuple):
    """A row with its missing entries filled in."""

    x: Array  # [columns]: what was there, and the best guesses
    probabilities: tuple[Array | None, ...]  # of each column's codes, given the rest
    ess: Array  # [], the effective number of the samples, in [1, num_samples]


def impute(
    model: Model, params: Params, key: Key, x: Array, *, num_samples: int = 1000
) -> Imputed:
    """Fill the NaN entries of x [columns] from p(x_missing | x_observed).

    E[f(x_missing) | x_observed] = sum_k w_k E[f(x_missing) | z_k], z_k ~ q(z | x) and
    w_k the importance weights of the observed entries, normalised: right for
    num_samples to infinity whatever q is. A continuous entry is filled with its mean,
    the others with their likeliest code; the probabilities are of all codes of all
    columns, also where the entry is there. Trust them as far as `ess` is large.
    Raises ValueError where num_samples is below 1 or the likelihood is not one of
    `MixedColumns`. Ref: Mattei & Frellsen 2019, arXiv:1812.02633.
    """
    at_least(1, num_samples=num_samples)
    q = model.posterior(params, x)
    z = jax.vmap(q.sample)(jax.random.split(key, num_samples))
    log_w = jax.vmap(log_weight)(sampled_terms(model, x)(params, q, z))
    weight = jax.nn.softmax(log_w)  # [k]

    def expected(z: Latents) -> tuple[Array, tuple[Array | None, ...]]:
        given_z = model.likelihood(params, z)
        if not isinstance(given_z, MixedColumns):
            raise ValueError(
                "needed: a likelihood of MixedColumns, such as tabular.mixed_columns, "
                f"got {type(given_z).__name__}"
            )
        return given_z.mean(), given_z.probabilities()

    mean, probabilities = jax.tree.map(
        lambda a: jnp.tensordot(weight, a, 1), jax.vmap(expected)(z)
    )
    guess = jnp.stack(
        [
            mean[j] if p is None else jnp.argmax(p).astype(mean.dtype)
            for j, p in enumerate(probabilities)
        ]
    )
    filled = jnp.where(jnp.isnan(x), guess, x)
    return Imputed(filled, probabilities, 1 / jnp.sum(weight**2))
