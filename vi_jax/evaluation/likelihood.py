"""log p(x) of a trained model by importance sampling, in memory that k does not set."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vi_jax.evaluation.psis import pareto_k, tail_length
from vi_jax.model import Model, log_weight, sampled_terms
from vi_jax.types import Array, Key, Params


class LogLikelihood(NamedTuple):
    """What k samples from q(z | x) say of one example; all [], in nats but for ess."""

    log_px: Array  # log mean w, a lower bound in expectation and consistent
    stderr: Array  # of log_px, from the spread of the weights: sqrt(1/ess - 1/k)
    elbo: Array  # mean log w
    rate: Array  # mean log q(z | x) - log p(z), the KL
    distortion: Array  # -mean log p(x | z)
    ess: Array  # (sum w)^2 / sum w^2, in [1, k]
    khat: Array  # of the tail of w: above 0.7, neither log_px nor stderr can be trusted


class _Sums(NamedTuple):
    w: Array  # log sum w
    w2: Array  # log sum w^2
    log_w: Array  # sum log w
    log_lik: Array  # sum log p(x | z)
    top: Array  # the largest log w, which khat is of


def log_likelihood(
    model: Model,
    params: Params,
    key: Key,
    x: Array,
    *,
    num_samples: int = 5000,
    chunk: int = 50,
) -> LogLikelihood:
    """log p(x) = log E_q[p(x, z) / q(z | x)] of one example, from num_samples draws.

    `chunk` draws are held at a time, so memory does not grow with num_samples; the last
    chunk is masked where num_samples is no multiple. The encoder runs once. khat is
    nan below 25 samples.
    Raises ValueError where num_samples or chunk is below 1.
    Ref: Burda et al. 2016, arXiv:1509.00519, section 5; the error by the delta method;
    Vehtari et al. 2024, arXiv:1507.02646 (khat).
    """
    if num_samples < 1 or chunk < 1:
        raise ValueError(
            f"num_samples and chunk must be at least 1, got {num_samples} and {chunk}"
        )
    chunk = min(chunk, num_samples)
    num_chunks = -(-num_samples // chunk)
    q = model.posterior(params, x)
    terms_of = sampled_terms(model, x)
    num_top = tail_length(num_samples) + 1

    def add(sums: _Sums, i: Array) -> tuple[_Sums, None]:
        keys = jax.random.split(jax.random.fold_in(key, i), chunk)
        terms = terms_of(params, q, jax.vmap(q.sample)(keys))
        log_w = jax.vmap(log_weight)(terms)  # [chunk]
        counts = i * chunk + jnp.arange(chunk) < num_samples
        kept = jnp.where(counts, log_w, -jnp.inf)
        total = lambda a: jnp.sum(jnp.where(counts, a, 0.0))
        return _Sums(
            jnp.logaddexp(sums.w, jax.nn.logsumexp(kept)),
            jnp.logaddexp(sums.w2, jax.nn.logsumexp(2 * kept)),
            sums.log_w + total(log_w),
            sums.log_lik + total(terms.log_lik),
            jax.lax.top_k(jnp.concatenate([sums.top, kept]), num_top)[0],
        ), None

    zero = jnp.zeros((), jnp.result_type(x, float))
    none = zero - jnp.inf
    start = _Sums(none, none, zero, zero, jnp.full(num_top, -jnp.inf, zero.dtype))
    sums, _ = jax.lax.scan(add, start, jnp.arange(num_chunks))
    return _from_sums(sums, num_samples)


def _from_sums(sums: _Sums, k: int) -> LogLikelihood:
    ess = jnp.exp(2 * sums.w - sums.w2)
    elbo, distortion = sums.log_w / k, -sums.log_lik / k
    return LogLikelihood(
        log_px=sums.w - jnp.log(k),
        # Rounding can put ess a little above k.
        stderr=jnp.sqrt(jnp.maximum(1 / ess - 1 / k, 0.0)),
        elbo=elbo,
        rate=-distortion - elbo,
        distortion=distortion,
        ess=ess,
        khat=pareto_k(sums.top),
    )
