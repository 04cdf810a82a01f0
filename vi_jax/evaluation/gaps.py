"""Where the ELBO falls short: the family of q, or the encoder that picks one of it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from vi_jax import bounds, estimators
from vi_jax.checks import at_least
from vi_jax.distributions import Normal
from vi_jax.evaluation.likelihood import LogLikelihood, log_likelihood
from vi_jax.model import Model, sampled_terms
from vi_jax.types import Array, Key, Params


class Gaps(NamedTuple):
    """log p(x) - ELBO of one example, split in two; all [], in nats."""

    log_px: Array  # by importance sampling from the best q
    log_px_stderr: Array
    khat: Array  # of that sampling: above 0.7, log_px may be too low
    elbo: Array  # of the encoder's q
    best_elbo: Array  # of the best diagonal Gaussian
    approximation: Array  # log_px - best_elbo, of the family of q
    amortisation: Array  # best_elbo - elbo, of the encoder


def best_posterior(
    model: Model,
    params: Params,
    key: Key,
    x: Array,
    *,
    num_steps: int = 1000,
    num_samples: int = 8,
    learning_rate: float = 0.03,
) -> Normal:
    """The diagonal Gaussian of the highest ELBO of one example, from the encoder's on.

    Adam over its mean and log scale, the step size falling to 0 along a cosine, with
    `stl` gradients of num_samples draws. Raises ValueError where a number is not
    positive, or the encoder's q is not a Normal.
    """
    at_least(1, num_steps=num_steps, num_samples=num_samples)
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate}")
    q = model.posterior(params, x)
    if not isinstance(q, Normal):
        raise ValueError(
            f"the best q is sought among diagonal Gaussians, and the encoder gives a "
            f"{type(q).__name__}"
        )
    terms = sampled_terms(model, x)
    as_normal = lambda free: Normal(free[0], jnp.exp(free[1]))

    def loss(free: tuple[Array, Array], key: Key) -> Array:
        q = as_normal(free)
        z = jax.vmap(q.sample)(jax.random.split(key, num_samples))
        return -estimators.stl(bounds.elbo, terms, params, q, z)

    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))

    def step(i: Array, state):
        free, opt_state = state
        grads = jax.grad(loss)(free, jax.random.fold_in(key, i))
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(free, updates), opt_state

    start = (q.loc, jnp.log(q.scale))
    free, _ = jax.lax.fori_loop(0, num_steps, step, (start, optimizer.init(start)))
    return as_normal(free)


def elbo_gaps(
    model: Model,
    params: Params,
    key: Key,
    x: Array,
    *,
    num_samples: int = 5000,
    num_steps: int = 1000,
) -> Gaps:
    """log p(x) - ELBO = approximation gap + amortisation gap of one example.

    The first is KL(q* || p(z | x)) of the best diagonal Gaussian q* (`best_posterior`),
    the second what the encoder's q loses to q*. Both ELBOs, and log p(x) by importance
    sampling from q*, are of num_samples draws. Raises ValueError as `best_posterior`
    and `log_likelihood` do. Ref: Cremer et al. 2018, arXiv:1801.03558.
    """
    key_q, key_best, key_elbo = jax.random.split(key, 3)
    best = best_posterior(model, params, key_q, x, num_steps=num_steps)

    def found(key: Key, q: Normal) -> LogLikelihood:
        with_q = Model(model.init, model.prior, lambda *_: q, model.likelihood)
        return log_likelihood(with_q, params, key, x, num_samples=num_samples)

    of_best = found(key_best, best)
    elbo = found(key_elbo, model.posterior(params, x)).elbo
    return Gaps(
        of_best.log_px,
        of_best.stderr,
        of_best.khat,
        elbo,
        of_best.elbo,
        approximation=of_best.log_px - of_best.elbo,
        amortisation=of_best.elbo - elbo,
    )
