"""From a model, a bound and an estimator to a loss that the trainer can minimise."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from vi_jax import backward, bounds, estimators, sharding
from vi_jax.bounds import Bound
from vi_jax.checks import at_least
from vi_jax.distributions import Distribution, Normal
from vi_jax.divergences import has_closed_form_kl, kl
from vi_jax.estimators import Estimator
from vi_jax.math import effective_sample_size, known
from vi_jax.model import (
    Model,
    Terms,
    TermsFn,
    analytic_terms,
    log_weight,
    sampled_terms,
)
from vi_jax.models import Conditional, at_context
from vi_jax.models.hierarchical import Chain
from vi_jax.schedules import Schedule, check_schedule, constant
from vi_jax.types import Array, Batch, Key, Latents, LossFn, Metrics, Params

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
    num_backward: int | None = None,
) -> tuple[Array, Terms]:
    """The bound of one example [], with the estimator's gradient, and its Terms [k].

    The encoder runs once, whatever num_samples. `baseline(params, x)` is for
    `estimators.score`. At most `num_backward` samples have a backward pass, of a
    gradient with the same mean (`backward.of_few`); by default all.
    Raises ValueError where num_samples or num_backward is below 1 or no int, where
    `analytic_terms` meets anything but the ELBO with `reparam`, a baseline another
    estimator, num_backward `enumeration` or `paired`, or where the bound is no scalar.
    """
    if baseline is not None:
        if estimator is not estimators.score:
            raise ValueError("only `score` takes a baseline")
        estimator = functools.partial(estimator, baseline=baseline(params, x))
    _check(bound, estimator, num_samples, num_backward)
    if getattr(terms, "func", terms) is analytic_terms and not (
        bound is bounds.elbo and estimator is estimators.reparam
    ):
        raise ValueError(
            "the analytic KL replaces the log-weights by their mean, which only the "
            "ELBO with `reparam` allows: use `sampled_terms` elsewhere"
        )
    made = jax.eval_shape(bound, jax.ShapeDtypeStruct((num_samples,), jnp.float32))
    if jnp.shape(made):
        raise ValueError(
            f"a bound makes a scalar of the log-weights [k], this one made an array of "
            f"shape {jnp.shape(made)}: reduce it, as by jnp.mean"
        )
    q = model.posterior(params, x)
    z = jax.vmap(q.sample)(jax.random.split(key, num_samples))  # [k, ...]
    z = sharding.split(z, "samples")
    terms_of_x = to_differentiate = terms(model, x)
    if num_backward is not None and num_backward < num_samples:
        to_differentiate = backward.of_few(
            terms_of_x,
            bound,
            jax.random.fold_in(key, num_samples),  # the samples have 0 ... k - 1
            num_backward=num_backward,
            beta=beta,
        )
    value = estimator(bound, to_differentiate, params, q, z, beta=beta)
    if jnp.shape(value):
        raise ValueError(
            f"an estimator makes a scalar of the terms [k], this one made an array of "
            f"shape {jnp.shape(value)}"
        )
    # The same computation once more, for the metrics: XLA merges the two.
    return value, stop_gradient(terms_of_x(params, q, z))


def _check(
    bound: Bound, estimator: Estimator, num_samples: int, num_backward: int | None
) -> None:
    for name, given, such in ("bound", bound, "iwae"), ("estimator", estimator, "dreg"):
        if not callable(given):
            raise ValueError(
                f"the {name} is a function, such as {name}s.{such}, got {given!r}"
            )
    at_least(1, **{"num_samples (k)": num_samples})
    if num_backward is None:
        return
    at_least(1, **{"num_backward (backward_k)": num_backward})
    of_other_weights = (estimators.enumeration, estimators.climb_two)
    if getattr(estimator, "func", estimator) in of_other_weights:
        raise ValueError(
            "num_backward draws samples by their weight in the bound, and "
            "`enumeration` and `paired` weigh by something else: leave it out"
        )


def batch_loss(
    model: Model | Conditional,
    *,
    preprocess: Callable[[Key, Batch], Array],
    bound: Bound = bounds.elbo,
    estimator: Estimator = estimators.reparam,
    num_samples: int = 1,
    beta: Schedule = UNTEMPERED,
    terms: Callable[[Model, Array], TermsFn] = sampled_terms,
    baseline: Baseline | None = None,
    context: Callable[[Batch], Array] | None = None,
    accumulate: int | None = None,
    num_backward: int | None = None,
) -> LossFn:
    """-mean over the batch of `per_example`'s bound, in nats; lower is better.

    `preprocess(key, batch) -> x [n, ...]` runs inside jit (dynamic binarization, say);
    `context(batch) -> c [n, ...]` makes of a `Conditional` the model of each example;
    `beta` is a function of batch["step"]. The metrics are means over the batch, nats:
    `bound` (the one being raised), `elbo` (beta = 1), `rate` (KL), `distortion`, and
    `ess`, the effective sample size of the k weights (with `analytic_terms`, of
    p(x | z) alone).
    `num_backward` (m) lets at most so many of the k samples of an example through the
    backward pass, at no bias, and `terms` and a mesh must divide m as they do k. IWAE's
    weights are so uneven that few will do: 5 of 50 have 1.03 times the variance at most
    in a trained net (`experiments.few_backward`). Where they are even, as the ELBO's,
    take fewer samples: m of k are then no better than k = m.
    `accumulate` takes the batch in as many parts, one after another, and adds up their
    gradients: memory holds one part, and the numbers are those of the whole batch. By
    default, on CPU, as many as keep a part to 2,500 samples, which stay in its cache.
    In parts only the parameters have a gradient; accumulate=1 gives one in the data.
    For many samples an example, `terms=partial(sampled_terms, num_chunks=...)` does so.
    Raises ValueError where a model comes with `context`, or a `Conditional` without,
    beta is a number, bound or estimator is no function, or a count is below 1 or
    no int, and from the loss where `accumulate` does not divide the batch.
    """
    if callable(model) != (context is not None):
        raise ValueError(
            "a conditional model needs `context`, batch -> [n, ...]; a Model takes none"
        )
    check_schedule(beta)
    _check(bound, estimator, num_samples, num_backward)

    def loss(params: Params, key: Key, batch: Batch) -> tuple[Array, Metrics]:
        key_x, key_z = jax.random.split(key)
        x = preprocess(key_x, batch)
        weight_of_kl = beta(batch["step"])

        def of_rows(params: Params, rows: tuple, beta: Array) -> tuple[Array, Metrics]:
            def one(key: Key, x: Array, c: Array | None) -> tuple[Array, Terms]:
                return per_example(
                    at_context(model, c),
                    params,
                    key,
                    x,
                    bound=bound,
                    estimator=estimator,
                    num_samples=num_samples,
                    beta=beta,
                    terms=terms,
                    baseline=baseline,
                    num_backward=num_backward,
                )

            keys, x, c = sharding.split(rows, "data")
            # A copy, since JAX's check of keys takes the parts' for the same ones.
            values, found = jax.vmap(one)(jax.random.clone(keys), x, c)
            metrics = jax.tree.map(jnp.mean, jax.vmap(summary)(found))
            return jnp.mean(values), metrics

        # The keys are those of the whole batch, whatever its parts.
        keys = jax.random.split(key_z, x.shape[0])
        rows = keys, x, context(batch) if context else None
        parts = accumulate
        if parts is None:
            parts = _parts_in_cache(x.shape[0], num_samples)
        of_batch = sharding.mean_in_parts(of_rows, parts)
        value, metrics = of_batch(params, rows, weight_of_kl)
        return -value, {"bound": value, "beta": weight_of_kl, **metrics}

    return loss


# The net of `experiments.benchmark`, a batch of 100, on 2 cores of a CPU, in parts
# beside the whole: 1.07 times as fast at k = 50 with 2,500 samples a part and 1.02 with
# 1,000; 1.48 and 1.52 at k = 500; on one core, k = 50, 1.15 and 1.20. A convolutional
# net became slower (0.87 with parts of 25 images), but for one core (1.17).
_SAMPLES_IN_CACHE = 2_500


def _parts_in_cache(num_examples: int, num_samples: int) -> int:
    """The fewest equal parts of a batch that stay in the cache of a CPU, or one."""
    if jax.default_backend() != "cpu" or sharding.splits():
        return 1
    fits = lambda n: num_examples // n * num_samples <= _SAMPLES_IN_CACHE
    even = (n for n in range(1, num_examples) if num_examples % n == 0)
    return next(filter(fits, even), num_examples)


class EncodedBatch(NamedTuple):
    """What a penalty on a whole batch may depend on."""

    posterior: Distribution  # q(z | x_i), leading with [n]
    prior: Distribution  # p(z)
    z: Latents  # draws z ~ q(z | x_i), leading with [n, k]
    step: Array  # []


Penalty = Callable[[Key, EncodedBatch], tuple[Array, Metrics]]
"""(key, encoded) -> ([] in nats, what to log): in place of the mean KL of the batch."""


def free_bits_loss(
    model: Model,
    *,
    preprocess: Callable[[Key, Batch], Array],
    free_bits: float,
    num_samples: int = 1,
    beta: Schedule = UNTEMPERED,
) -> LossFn:
    """Distortion + beta sum_j max(free_bits, KL_j), KL_j the batch mean for latent j.

    A latent gains nothing by a KL below `free_bits`, which is in nats in spite of its
    name; of a hierarchy of latents, j is a layer, and KL_j comes from its draws. The
    other arguments and the metrics are those of `batch_loss`: `bound` is what is
    raised, minus the loss, and `elbo` the ELBO itself.
    Raises ValueError where free_bits is negative or infinite, and from the loss where
    the prior and the posterior are neither diagonal Gaussians nor hierarchies.
    Ref: Kingma et al. 2016, arXiv:1606.04934, appendix C.8.
    """
    if not all(0 <= bits < float("inf") for bits in known(free_bits)):
        raise ValueError(f"free_bits must be a number of nats >= 0, got {free_bits}")
    check_schedule(beta)

    def penalty(key: Key, encoded: EncodedBatch) -> tuple[Array, Metrics]:
        del key
        weight = beta(encoded.step)
        total = jnp.sum(jnp.maximum(_rates(encoded), free_bits))
        return weight * total, {"beta": weight}

    return penalised_loss(
        model, preprocess=preprocess, penalty=penalty, num_samples=num_samples
    )


def capacity_loss(
    model: Model,
    *,
    preprocess: Callable[[Key, Batch], Array],
    capacity: Schedule,
    gamma: float,
    num_samples: int = 1,
) -> LossFn:
    """Distortion + gamma |KL - C(step)|, KL the batch mean of the rate, in nats.

    The rate is drawn to the `capacity` C, such as `schedules.linear(..., end=25.0)`,
    from both sides. Arguments, metrics and errors otherwise as in `free_bits_loss`.
    Raises ValueError where gamma is not positive.
    Ref: Burgess et al. 2018, arXiv:1804.03599.
    """
    if not all(0 < g < float("inf") for g in known(gamma)):
        raise ValueError(f"gamma must be positive and finite, got {gamma}")
    check_schedule(capacity)

    def penalty(key: Key, encoded: EncodedBatch) -> tuple[Array, Metrics]:
        del key
        rate = jnp.sum(_rates(encoded))
        return gamma * abs(rate - capacity(encoded.step)), {}

    return penalised_loss(
        model, preprocess=preprocess, penalty=penalty, num_samples=num_samples
    )


def penalised_loss(
    model: Model,
    *,
    preprocess: Callable[[Key, Batch], Array],
    penalty: Penalty,
    num_samples: int = 1,
    terms: Callable[[Model, Array], TermsFn] | None = None,
) -> LossFn:
    """Distortion + penalty(key, encoded): for what couples the examples of a batch.

    The penalty stands in place of the KL. The metrics are its own and those of
    `batch_loss`: `bound` is minus the loss and `elbo` the ELBO itself, by `terms`,
    which by default are analytic where the KL has a closed form (`ess` is then that of
    p(x | z) alone).
    Raises ValueError where num_samples is below 1, and from the loss where samples of
    the posterior carry no gradient.
    """
    at_least(1, **{"num_samples (k)": num_samples})
    if callable(model):
        raise ValueError("a penalty is for a Model: give a conditional one its context")

    def loss(params: Params, key: Key, batch: Batch) -> tuple[Array, Metrics]:
        key_x, key_z, key_penalty = jax.random.split(key, 3)
        x = preprocess(key_x, batch)

        def encode(key: Key, x: Array) -> tuple[Distribution, Latents]:
            q = model.posterior(params, x)
            if not q.pathwise:
                raise ValueError(
                    f"samples of {type(q).__name__} carry no gradient: a penalty on "
                    "them needs a posterior whose samples do, such as Normal"
                )
            z = jax.vmap(q.sample)(jax.random.split(key, num_samples))
            return q, sharding.split(z, "samples")

        q, z = jax.vmap(encode)(jax.random.split(key_z, x.shape[0]), x)
        encoded = EncodedBatch(q, model.prior(params), z, batch["step"])
        of_batch, logged = penalty(key_penalty, encoded)
        closed = has_closed_form_kl(q, encoded.prior)
        how = terms or (analytic_terms if closed else sampled_terms)
        parts = jax.vmap(lambda x, q, z: how(model, x)(params, q, z))(x, q, z)
        value = of_batch - jnp.mean(parts.log_lik)
        metrics = jax.tree.map(jnp.mean, jax.vmap(summary)(stop_gradient(parts)))
        return value, {"bound": -value, **logged, **metrics}

    return loss


def _rates(encoded: EncodedBatch) -> Array:
    """The mean over the batch of KL(q(z_j | x) || p(z_j)), [d], or [layers]."""
    q, prior = encoded.posterior, encoded.prior
    if type(q) is type(prior) is Chain:
        ratio = lambda q, z: q.log_prob(z) - prior.log_prob(z)
        each = jax.vmap(jax.vmap(ratio, in_axes=(None, 0)))(q, encoded.z)
        return jnp.mean(each, (0, 1))
    if not (type(q) is type(prior) is Normal):
        raise ValueError(
            "a rate for each latent needs diagonal Gaussians, got a posterior "
            f"{type(q).__name__} and a prior {type(prior).__name__}: use `batch_loss` "
            "with a schedule of beta"
        )
    each = lambda q: jax.vmap(kl)(*jax.tree.map(jnp.ravel, (q, prior)))
    return jnp.mean(jax.vmap(each)(q), 0)


def summary(terms: Terms) -> Metrics:
    """What the Terms [k] of one example say: elbo, rate, distortion, ess."""
    log_w = jax.vmap(log_weight)(terms)
    distortion = -jnp.mean(terms.log_lik)
    elbo = jnp.mean(log_w)
    return {
        "elbo": elbo,
        "rate": -distortion - elbo,
        "distortion": distortion,
        "ess": effective_sample_size(log_w),
    }
