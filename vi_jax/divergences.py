"""KL divergences and entropies: closed forms, and, asked for by name, Monte Carlo."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import betaln, digamma, gammaln

from vi_jax.checks import at_least
from vi_jax.distributions import (
    LOG_2PI,
    Bernoulli,
    Beta,
    Categorical,
    Distribution,
    FullNormal,
    Gamma,
    JointBernoulli,
    Normal,
    binary_states,
)
from vi_jax.math import exp_remainder, log_ratio
from vi_jax.types import Array, Key


def _kl_normal(q: Normal, p: Normal) -> Array:
    spread = exp_remainder(2 * log_ratio(q.scale, p.scale))
    return 0.5 * jnp.sum(spread + ((q.loc - p.loc) / p.scale) ** 2)


def _kl_full_normal(q: FullNormal, p: FullNormal) -> Array:
    solve = lambda b: solve_triangular(p.scale_tril, b, lower=True)
    # |L_p^-1 L_q|^2 - d - log|..|^2, its diagonal apart: no term is negative.
    below = jnp.sum(jnp.tril(solve(q.scale_tril), -1) ** 2)
    ratios = log_ratio(jnp.diagonal(q.scale_tril), jnp.diagonal(p.scale_tril))
    shift = jnp.sum(solve(q.loc - p.loc) ** 2)
    return 0.5 * (below + shift + jnp.sum(exp_remainder(2 * ratios)))


def _full(d: Normal) -> FullNormal:
    chex.assert_rank(d.loc, 1)
    return FullNormal(d.loc, jnp.diag(jnp.broadcast_to(d.scale, d.loc.shape)))


def _kl_logits(a: Array, b: Array) -> Array:
    """KL(softmax(a) || softmax(b)) = sum q (e^r - 1 - r), r = log p / q, over [c].

    No term is negative, and where all of r is small it comes from b - a rather than
    from two rounded logarithms. A class that q excludes adds its p.
    """
    log_q, log_p = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
    q, p = jnp.exp(log_q), jnp.exp(log_p)
    both = (a > -jnp.inf) & (b > -jnp.inf)
    delta = jnp.where(both, b, 0.0) - jnp.where(both, a, 0.0)
    delta = delta - q @ delta
    near = jnp.all(both) & (jnp.max(abs(delta)) < 1)
    delta = jnp.where(near, delta, 0.0)
    has = q > 0
    far_r = jnp.where(has, log_p, 0.0) - jnp.where(has, log_q, 0.0)
    r = jnp.where(near, delta - jnp.log1p(q @ jnp.expm1(delta)), far_r)
    small = abs(r) < 1
    close = q * exp_remainder(jnp.where(small, r, 0.0))
    return jnp.sum(jnp.where(small & has, close, jnp.where(has, p - q - q * r, p)))


def _kl_bernoulli(q: Bernoulli, p: Bernoulli) -> Array:
    chex.assert_equal_shape([q.logits, p.logits])
    two = lambda d: jnp.stack([jnp.zeros(d.logits.size), d.logits.ravel()], -1)
    return jnp.sum(jax.vmap(_kl_logits)(two(q), two(p)))


def _kl_categorical(q: Categorical, p: Categorical) -> Array:
    chex.assert_equal_shape([q.logits, p.logits])
    return _kl_logits(q.logits, p.logits)


def _joint(d: Bernoulli) -> JointBernoulli:
    chex.assert_rank(d.logits, 1)
    return JointBernoulli(jax.vmap(d.log_prob)(binary_states(d.logits.size)))


def _kl_gamma(q: Gamma, p: Gamma) -> Array:
    a, b = q.concentration, p.concentration
    log_r = log_ratio(p.rate, q.rate)
    shapes = (a - b) * (digamma(a) + log_r) - gammaln(a) + gammaln(b)
    return jnp.sum(shapes + a * exp_remainder(log_r))


def _kl_beta(q: Beta, p: Beta) -> Array:
    slope = lambda u, v: (u - v) * digamma(u)
    total = slope(q.a + q.b, p.a + p.b)
    norm = betaln(p.a, p.b) - betaln(q.a, q.b)
    return jnp.sum(norm + slope(q.a, p.a) + slope(q.b, p.b) - total)


_CLOSED_FORM_KL: dict[tuple[type, type], Callable[..., Array]] = {
    (Normal, Normal): _kl_normal,
    (FullNormal, FullNormal): _kl_full_normal,
    (Normal, FullNormal): lambda q, p: _kl_full_normal(_full(q), p),
    (FullNormal, Normal): lambda q, p: _kl_full_normal(q, _full(p)),
    (Bernoulli, Bernoulli): _kl_bernoulli,
    (Categorical, Categorical): _kl_categorical,
    (JointBernoulli, JointBernoulli): _kl_categorical,
    (Bernoulli, JointBernoulli): lambda q, p: _kl_categorical(_joint(q), p),
    (JointBernoulli, Bernoulli): lambda q, p: _kl_categorical(q, _joint(p)),
    (Gamma, Gamma): _kl_gamma,
    (Beta, Beta): _kl_beta,
}


def has_closed_form_kl(q: Distribution, p: Distribution) -> bool:
    """Whether `kl(q, p)` exists."""
    return (type(q), type(p)) in _CLOSED_FORM_KL


def kl(q: Distribution, p: Distribution) -> Array:
    """KL(q || p) = E_q[log q - log p] in closed form, [] in nats.

    Gaussian pairs, Bernoulli and Categorical ones keep their relative accuracy where q
    and p nearly agree; Gamma and Beta that of their largest term, so that with large
    parameters it may come out below 0.
    Raises ValueError for a pair that has none, never falling back on samples, and for
    events of two shapes.
    """
    if not has_closed_form_kl(q, p):
        raise ValueError(
            f"KL({type(q).__name__} || {type(p).__name__}) has no closed form here: "
            "`kl_monte_carlo(key, q, p, num_samples=...)` estimates it, with its error"
        )
    shapes = [jax.eval_shape(lambda d=d: d.mean()).shape for d in (q, p)]
    # One that broadcasts would be counted several times.
    if shapes[0] != shapes[1]:
        raise ValueError(f"KL between events of shapes {shapes[0]} and {shapes[1]}")
    return _CLOSED_FORM_KL[type(q), type(p)](q, p)


class Estimate(NamedTuple):
    """A Monte Carlo mean and its standard error."""

    value: Array  # []
    stderr: Array  # []


def kl_monte_carlo(
    key: Key, q: Distribution, p: Distribution, *, num_samples: int
) -> Estimate:
    """KL(q || p) as the mean of log q(z) - log p(z) over z ~ q, with its error, nats.

    For any pair; the value may come out negative. Where q has mass that floats round
    away, as `Beta` and `Gamma` with small parameters, its error is not in the stderr.
    Raises ValueError below 2 samples.
    """
    at_least(2, num_samples=num_samples)  # one has no error

    def one(key: Key) -> Array:
        z = q.sample(key)
        # Of several layers there is one each.
        return jnp.sum(q.log_prob(z)) - jnp.sum(p.log_prob(z))

    ratios = jax.vmap(one)(jax.random.split(key, num_samples))
    return Estimate(jnp.mean(ratios), jnp.std(ratios, ddof=1) / num_samples**0.5)


def _entropy_normal(d: Normal) -> Array:
    log_scale = jnp.broadcast_to(jnp.log(d.scale), jnp.shape(d.loc))
    return jnp.sum(log_scale + 0.5 * (1 + LOG_2PI))


def _entropy_full_normal(d: FullNormal) -> Array:
    return jnp.sum(jnp.log(jnp.diagonal(d.scale_tril)) + 0.5 * (1 + LOG_2PI))


def _entropy_bernoulli(d: Bernoulli) -> Array:
    # Not -log_prob(mean): of a nearly certain coin the mean is rounded to 1.
    size = jnp.minimum(abs(d.logits), jnp.finfo(d.logits.dtype).max)
    return jnp.sum(jnp.log1p(jnp.exp(-size)) + size * jax.nn.sigmoid(-size))


def _entropy_logits(d: Categorical | JointBernoulli) -> Array:
    log_p = jax.nn.log_softmax(d.logits)
    # An impossible class adds 0, where 0 * -inf would add nan.
    log_p = jnp.where(log_p > -jnp.inf, log_p, 0.0)
    return -jnp.sum(jax.nn.softmax(d.logits) * log_p)


def _entropy_gamma(d: Gamma) -> Array:
    a = d.concentration
    return jnp.sum(a - jnp.log(d.rate) + gammaln(a) + (1 - a) * digamma(a))


def _entropy_beta(d: Beta) -> Array:
    both = (d.a + d.b - 2) * digamma(d.a + d.b)
    each = (d.a - 1) * digamma(d.a) + (d.b - 1) * digamma(d.b)
    return jnp.sum(betaln(d.a, d.b) - each + both)


_ENTROPY: dict[type, Callable[..., Array]] = {
    Normal: _entropy_normal,
    FullNormal: _entropy_full_normal,
    Bernoulli: _entropy_bernoulli,
    Categorical: _entropy_logits,
    JointBernoulli: _entropy_logits,
    Gamma: _entropy_gamma,
    Beta: _entropy_beta,
}


def entropy(d: Distribution) -> Array:
    """H[d] = -E_d[log d] in closed form, [] in nats.

    Raises ValueError where there is none, as for a mixture of Gaussians.
    """
    if type(d) not in _ENTROPY:
        raise ValueError(
            f"the entropy of {type(d).__name__} has no closed form here: average "
            "-log_prob over samples, or use `quadrature.expectation`"
        )
    return _ENTROPY[type(d)](d)
