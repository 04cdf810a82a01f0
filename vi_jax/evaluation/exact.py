"""The ELBO of a model whose every quantity is known, written in each of its forms."""

from typing import NamedTuple

import jax.numpy as jnp

from vi_jax.distributions import Distribution
from vi_jax.divergences import entropy, kl
from vi_jax.model import ExactModel, Model, log_joint
from vi_jax.quadrature import expectation
from vi_jax.types import Array, Params


class ElboForms(NamedTuple):
    """Four formulas of one number, each [] in nats."""

    log_ratio: Array  # E_q[log p(x, z) - log q(z)]
    reconstruction_minus_kl: Array  # E_q[log p(x | z)] - KL(q || p(z))
    evidence_minus_gap: Array  # log p(x) - KL(q || p(z | x))
    energy_plus_entropy: Array  # E_q[log p(x, z)] + H[q]


def elbo_forms(
    model: ExactModel, params: Params, q: Distribution, x: Array, *, order: int = 20
) -> ElboForms:
    """The ELBO of one example under any q(z), in four ways that share no cancellation.

    Expectations are sums over outcomes or Gauss-Hermite quadrature of `order`, which is
    exact from order 2 on for a linear-Gaussian model. Raises ValueError where a KL, the
    entropy or the quadrature does not exist for q.
    Ref: Jordan et al. 1999; Neal & Hinton 1998.
    """
    mean = lambda f: expectation(q, f, order=order)
    log_lik = lambda z: model.likelihood(params, z).log_prob(x)
    joint = lambda z: log_joint(model, params, x, z)
    log_px = model.marginal(params).log_prob(x)
    return ElboForms(
        log_ratio=exact_elbo(model, params, q, x, order=order),
        reconstruction_minus_kl=mean(log_lik) - kl(q, model.prior(params)),
        evidence_minus_gap=log_px - variational_gap(model, params, q, x),
        energy_plus_entropy=mean(joint) + entropy(q),
    )


def exact_elbo(
    model: Model | ExactModel,
    params: Params,
    q: Distribution,
    x: Array,
    *,
    order: int = 20,
) -> Array:
    """E_q[log p(x, z) - log q(z)] of one example without sampling, [] in nats.

    Differentiable in params and q: the objective of variational inference where its
    expectation can be had. Raises ValueError where the quadrature does not exist.
    """
    return expectation(q, _log_w(model, params, q, x), order=order)


def variational_gap(
    model: ExactModel, params: Params, q: Distribution, x: Array
) -> Array:
    """KL(q || p(z | x)) = log p(x) - ELBO of one example, [] in nats, never negative.

    Raises ValueError where the KL has no closed form.
    """
    return kl(q, model.posterior(params, x))


def log_weight_variance(
    model: Model | ExactModel,
    params: Params,
    q: Distribution,
    x: Array,
    *,
    order: int = 20,
) -> Array:
    """Var_q[log w] of log w = log p(x, z) - log q(z), one example, [] in nats^2.

    Jensen's gap log E_q[w] - E_q[log w] is the variational gap, since E_q[w] = p(x); it
    is half of this variance where the variance is small, and for every Gaussian log w.
    Raises ValueError where the quadrature does not exist.
    Ref: Maddison et al. 2017, arXiv:1705.09279, who expand it in Var[w / p(x)].
    """
    mean = exact_elbo(model, params, q, x, order=order)
    log_w = _log_w(model, params, q, x)
    return expectation(q, lambda z: (log_w(z) - mean) ** 2, order=order)


def _log_w(model: Model | ExactModel, params: Params, q: Distribution, x: Array):
    """z -> log p(x, z) - log q(z)."""
    return lambda z: log_joint(model, params, x, z) - jnp.sum(q.log_prob(z))
