"""Gradient estimators: a number whose value is the bound, and a choice of gradient.

Every estimator is called as `(bound, terms, params, q, z, *, beta) -> []` with
`terms` a `TermsFn`, q the posterior and z its samples, leading with [k]. They differ in
where they stop the gradient, and by construction agree on the value.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from vi_jax import bounds
from vi_jax.bounds import Bound
from vi_jax.distributions import Distribution
from vi_jax.math import with_gradient_of
from vi_jax.model import TermsFn, log_weight
from vi_jax.types import Array, Latents, Params

Estimator = Callable[..., Array]


def _require_pathwise(q: Distribution, name: str) -> None:
    if not q.pathwise:
        raise ValueError(
            f"`{name}` differentiates through samples, and samples of "
            f"{type(q).__name__} carry no gradient: use a posterior that does, "
            "such as Normal"
        )


def _num_samples(z: Latents) -> int:
    return jax.tree.leaves(z)[0].shape[0]


def _log_weights(terms: TermsFn, beta: float | Array):
    """(params, q, z) -> log_w [k]."""
    one = lambda t: log_weight(t, beta)
    return lambda params, q, z: jax.vmap(one)(terms(params, q, z))


def reparam(
    bound: Bound,
    terms: TermsFn,
    params: Params,
    q: Distribution,
    z: Latents,
    *,
    beta: float | Array = 1.0,
) -> Array:
    """The reparameterization trick: differentiate bound(log_w) through z, [].

    Unbiased for any bound. Raises ValueError where q is not pathwise.
    Ref: Kingma & Welling 2014, arXiv:1312.6114.
    """
    _require_pathwise(q, "reparam")
    return bound(_log_weights(terms, beta)(params, q, z))


def stl(
    bound: Bound,
    terms: TermsFn,
    params: Params,
    q: Distribution,
    z: Latents,
    *,
    beta: float | Array = 1.0,
) -> Array:
    """Sticking the landing: `reparam` without the score of q, whose mean is 0, [].

    The gradient vanishes, sample by sample, where q is the exact posterior. Unbiased
    for the ELBO only, or k = 1. Raises ValueError elsewhere, and where q is not
    pathwise. Ref: Roeder et al. 2017, arXiv:1703.09194.
    """
    _require_pathwise(q, "stl")
    if bound is not bounds.elbo and _num_samples(z) > 1:
        raise ValueError(
            "`stl` is biased for multi-sample bounds other than the ELBO: use `dreg`, "
            "which is its unbiased form for any bound"
        )
    return bound(_log_weights(terms, beta)(params, stop_gradient(q), z))


def dreg(
    bound: Bound,
    terms: TermsFn,
    params: Params,
    q: Distribution,
    z: Latents,
    *,
    beta: float | Array = 1.0,
) -> Array:
    """Doubly reparameterized gradients, for any bound f and any beta, [].

    With l = log_w, the gradient is sum_i f'_i dl_i along the parameters of p, plus
    sum_i (f'_i - beta f''_ii) dl_i along the path z(q): the score of q, reparameterized
    once more, is where f'' comes from. For IWAE and beta = 1 the second weight is the
    squared normalised weight; for the ELBO this is `stl`. Stopping z or the parameters,
    rather than "encoder" or "decoder", keeps shared parameters right.
    Raises ValueError where q is not pathwise.
    Ref: Tucker et al. 2019, arXiv:1810.04152; Bauer & Mnih 2021, arXiv:2101.11046.
    """
    _require_pathwise(q, "dreg")
    if bound is bounds.elbo or _num_samples(z) == 1:
        # f' is constant and f'' is 0: the two passes below are one.
        return stl(bound, terms, params, q, z, beta=beta)
    log_w = _log_weights(terms, beta)
    value = log_w(params, q, z)
    at = stop_gradient(value)
    first, second = jax.grad(bound)(at), jnp.diagonal(jax.hessian(bound)(at))
    along_params = log_w(params, stop_gradient(q), stop_gradient(z))
    along_path = log_w(stop_gradient(params), stop_gradient(q), z)
    surrogate = jnp.vdot(first, along_params)
    surrogate += jnp.vdot(first - beta * second, along_path)
    return with_gradient_of(bound(value), surrogate)
