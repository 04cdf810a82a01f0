"""From a model, a bound and an estimator to a loss that the trainer can minimise."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from vi_jax import bounds, estimators
from vi_jax.bounds import Bound
from vi_jax.estimators import Estimator
from vi_jax.model import (
    Model,
    Terms,
    TermsFn,
    analytic_terms,
    log_weight,
    sampled_terms,
)
from vi_jax.schedules import Schedule, constant
from vi_jax.types import Array, Batch, Key, LossFn, Metrics, Params

UNTEMPERED = constant(1.0)

Baseline = Callable[[Params, Array], Array]
"""(params, x) -> [], a guess at the bound, learned beside it."""


def per_example(
    model: Model,
    params: Params,
    key: Key,
    x: Array,
    *,
    bound: Bound = bounds.elbo,
    estimator: Estimator = estimators.reparam,
    num_samples: int = 1,
    beta: float | Array = 1.0,
    terms: Callable[[Model, Array], TermsFn] = sampled_terms,
    baseline: Baseline | None = None,
) -> tuple[Array, Terms]:
    """The bound of one example [], with the estimator's gradient, and its Terms [k].

    The encoder runs once, whatever num_samples. `baseline(params, x)` is for
    `estimators.score`. Raises ValueError where num_samples is below 1, where
    `analytic_terms` meets anything but the ELBO with `reparam`, or a baseline another
    estimator.
    """
    if baseline is not None:
        if estimator is not estimators.score:
            raise ValueError("only `score` takes a baseline")
        estimator = functools.partial(estimator, baseline=baseline(params, x))
    if num_samples < 1:
        raise ValueError(f"num_samples (k) must be at least 1, got {num_samples}")
    if terms is analytic_terms and not (
        bound is bounds.elbo and estimator is estimators.reparam
    ):
        raise ValueError(
            "the analytic KL replaces the log-weights by their mean, which only the "
            "ELBO with `reparam` allows: use `sampled_terms` elsewhere"
        )
    q = model.posterior(params, x)
    z = jax.vmap(q.sample)(jax.random.split(key, num_samples))  # [k, ...]
    terms_of_x = terms(model, x)
    value = estimator(bound, terms_of_x, params, q, z, beta=beta)
    # The same computation once more, for the metrics: XLA merges the two.
    return value, stop_gradient(terms_of_x(params, q, z))


def batch_loss(
    model: Model,
    *,
    preprocess: Callable[[Key, Batch], Array],
    bound: Bound = bounds.elbo,
    estimator: Estimator = estimators.reparam,
    num_samples: int = 1,
    beta: Schedule = UNTEMPERED,
    terms: Callable[[Model, Array], TermsFn] = sampled_terms,
    baseline: Baseline | None = None,
) -> LossFn:
    """-mean over the batch of `per_example`'s bound, in nats; lower is better.

    `preprocess(key, batch) -> x [n, ...]` runs inside jit (dynamic binarization, say);
    `beta` is a function of batch["step"]. The metrics are means over the batch, nats:
    `bound` (the one being raised), `elbo` (beta = 1), `rate` (KL), `distortion`, and
    `ess`, the effective sample size of the k weights.
    """

    def loss(params: Params, key: Key, batch: Batch) -> tuple[Array, Metrics]:
        key_x, key_z = jax.random.split(key)
        x = preprocess(key_x, batch)
        weight_of_kl = beta(batch["step"])

        def one(key: Key, x: Array) -> tuple[Array, Terms]:
            return per_example(
                model,
                params,
                key,
                x,
                bound=bound,
                estimator=estimator,
                num_samples=num_samples,
                beta=weight_of_kl,
                terms=terms,
                baseline=baseline,
            )

        values, parts = jax.vmap(one)(jax.random.split(key_z, x.shape[0]), x)
        value = jnp.mean(values)
        metrics = jax.tree.map(jnp.mean, jax.vmap(summary)(parts))
        return -value, {"bound": value, "beta": weight_of_kl, **metrics}

    return loss


def summary(terms: Terms) -> Metrics:
    """What the Terms [k] of one example say: elbo, rate, distortion, ess."""
    log_w = jax.vmap(log_weight)(terms)
    distortion = -jnp.mean(terms.log_lik)
    elbo = jnp.mean(log_w)
    ess = jnp.exp(2 * jax.nn.logsumexp(log_w) - jax.nn.logsumexp(2 * log_w))
    return {
        "elbo": elbo,
        "rate": -distortion - elbo,
        "distortion": distortion,
        "ess": ess,
    }
