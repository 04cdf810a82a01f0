"""A sigmoid belief network small enough to sum over: exact, with discrete latents."""

import jax
import jax.numpy as jnp

from vi_jax.distributions import Bernoulli, JointBernoulli, Mixture, binary_states
from vi_jax.model import ExactModel
from vi_jax.types import Array, Key, Params

MAX_LATENTS = 12


def sigmoid_belief_network(latents: int) -> ExactModel:
    """z in {0, 1}^d independent coins, x | z ~ Bernoulli(sigmoid(W z + c)), exactly.

    params = {"prior": [d], "weight": [D, d], "bias": [D]}, all logits. The marginal is
    a mixture over the 2^d states and the posterior a table of them, each a sum: the
    ground truth for estimators that cannot differentiate through samples.
    Raises ValueError where latents is outside [1, 12].
    Ref: Neal 1992; Mnih & Gregor 2014, arXiv:1402.0030.
    """
    if not 1 <= latents <= MAX_LATENTS:
        raise ValueError(
            f"latents is {latents}: the sums over 2^d states allow 1 to {MAX_LATENTS}, "
            "more need a Model with an approximate posterior"
        )

    def init(key: Key, x: Array) -> Params:
        weight = jax.random.normal(key, (x.size, latents), x.dtype)
        return {
            "prior": jnp.zeros(latents, x.dtype),
            "weight": weight,
            "bias": -jnp.sum(weight, 1) / 2,
        }

    def prior(params: Params) -> Bernoulli:
        return Bernoulli(params["prior"])

    def likelihood(params: Params, z: Array) -> Bernoulli:
        return Bernoulli(params["weight"] @ z + params["bias"])

    def marginal(params: Params) -> Mixture:
        states = binary_states(latents).astype(params["weight"].dtype)
        log_prior = jax.vmap(prior(params).log_prob)(states)
        return Mixture(log_prior, jax.vmap(lambda z: likelihood(params, z))(states))

    def posterior(params: Params, x: Array) -> JointBernoulli:
        p = marginal(params)
        log_lik = jax.vmap(lambda c: c.log_prob(x))(p.components)
        return JointBernoulli(p.logits + log_lik)

    return ExactModel(init, prior, posterior, likelihood, marginal)
