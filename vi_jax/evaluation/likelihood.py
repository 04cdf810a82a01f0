"""log p(x) of a trained model by importance sampling, in memory that k does not set."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vi_jax.checks import at_least
from vi_jax.evaluation.psis import pareto_k, tail_length
from vi_jax.model import Model, log_weight, sampled_terms
from vi_jax.types import Array, Key, Params


class LogLikelihood(NamedTuple):
    """What k samples from q(z | x) say of one example; all [], in nats but for ess."""

    log_px: Array  # log mean w, a lower bound in expectation and consistent
    stderr: Array  # of log_px, from the spread of the weights; nan for k = 1
    elbo: Array  # mean log w
    rate: Array  # mean log q(z | x) - log p(z), the KL
    distortion: Array  # -mean log p(x | z)
    ess: Array  # (sum w)^2 / sum w^2, in [1, k]
    # Of the tail of w: above 0.7, neither log_px nor stderr can be trusted; nan where
    # it is mostly ties, as of discrete latents, and ess above k / 2 says all is well.
    khat: Array


class _Sums(NamedTuple):
    """Of the draws so far, as differences that stay exact however large log w is."""

    w: Array  # sum w / max w
    w2: Array  # sum (w / max w)^2
    start: Array  # [2], the means of log w and log p(x | z) over the first chunk
    more: Array  # [2], the sums of what each draw has more than that
    top: Array  # the largest log w, falling, which khat is of


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
    nan below 25 samples, and for even weights of which too few differ, as of discrete
    latents.
    Raises ValueError where num_samples or chunk is below 1.
    Ref: Burda et al. 2016, arXiv:1509.00519, section 5; the error by the delta method;
    Vehtari et al. 2024, arXiv:1507.02646 (khat).
    """
    at_least(1, num_samples=num_samples, chunk=chunk)
    chunk = min(chunk, num_samples)
    num_chunks = -(-num_samples // chunk)
    q = model.posterior(params, x)
    terms_of = sampled_terms(model, x)
    num_top = tail_length(num_samples) + 1

    def draw(i: Array) -> tuple[Array, Array]:
        """log w and log p(x | z) of a chunk, [2, chunk], and which of it counts."""
        keys = jax.random.split(jax.random.fold_in(key, i), chunk)
        terms = terms_of(params, q, jax.vmap(q.sample)(keys))
        pair = jnp.stack([jax.vmap(log_weight)(terms), terms.log_lik])
        return pair, i * chunk + jnp.arange(chunk) < num_samples

    def add(sums: _Sums, i: Array) -> tuple[_Sums, None]:
        pair, counts = draw(i)
        kept = jnp.where(counts, pair[0].astype(dtype), -jnp.inf)
        top = jax.lax.top_k(jnp.concatenate([sums.top, kept]), num_top)[0]
        # Not top[0]: on CPU what waits for the sorted ones costs 4% of the whole.
        greatest = _finite(jnp.maximum(sums.top[0], jnp.max(kept)))
        w = jnp.exp(kept - greatest)
        scale = jnp.exp(sums.top[0] - greatest)
        mean = jnp.sum(jnp.where(counts, pair, 0.0), 1) / jnp.sum(counts)
        start = jnp.where(i == 0, _finite(mean.astype(dtype)), sums.start)
        more = jnp.where(counts, pair - start[:, None], 0.0)
        return _Sums(
            scale * sums.w + jnp.sum(w),
            scale**2 * sums.w2 + jnp.sum(w**2),
            start,
            sums.more + jnp.sum(more, 1),
            top,
        ), None

    drawn = jax.eval_shape(draw, jnp.zeros((), jnp.int32))[0].dtype
    dtype = jnp.promote_types(drawn, jnp.float32)
    zero, pair = jnp.zeros((), dtype), jnp.zeros(2, dtype)
    start = _Sums(zero, zero, pair, pair, jnp.full(num_top, -jnp.inf, dtype))
    sums, _ = jax.lax.scan(add, start, jnp.arange(num_chunks))
    return _from_sums(sums, num_samples)


def _finite(a: Array) -> Array:
    """a, or 0 in its place: where everything is infinite, differences would be nan."""
    return jnp.where(jnp.isfinite(a), a, 0.0)


def _from_sums(sums: _Sums, k: int) -> LogLikelihood:
    ess = sums.w**2 / sums.w2
    elbo, log_lik = sums.start + sums.more / k
    # Rounding can put ess a little above k.
    stderr = jnp.sqrt(jnp.maximum(1 / ess - 1 / k, 0.0))
    return LogLikelihood(
        log_px=_finite(sums.top[0]) + jnp.log(sums.w / k),
        stderr=stderr if k > 1 else jnp.full_like(stderr, jnp.nan),
        elbo=elbo,
        rate=log_lik - elbo,
        distortion=-log_lik,
        ess=ess,
        khat=pareto_k(sums.top, even=ess > k / 2),
    )
