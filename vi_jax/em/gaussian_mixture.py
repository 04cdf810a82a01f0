"""EM and variational EM for the Gaussian mixture, in one pass over the data each."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vi_jax.checks import at_least
from vi_jax.em import moments
from vi_jax.em.checks import (
    CollapsedComponentError,
    check_floor,
    checked_data,
    complaint,
)
from vi_jax.em.kmeans import kmeans_plus_plus
from vi_jax.em.loop import Fit, Steps, em
from vi_jax.em.moments import Moments
from vi_jax.models.gaussian_mixture import Covariance, gaussian_mixture
from vi_jax.types import Array, Key, Params


class MixtureFit(NamedTuple):
    """The best of several restarts, and how the others ended."""

    best: Fit
    log_px: Array  # [restarts] mean log p(x) where each ended
    sound: np.ndarray  # bool [restarts], no component has collapsed


class VariationalFit(NamedTuple):
    """Where variational EM ended, and its way up."""

    fit: Fit  # its history is that of log p(x), which may fall while the ELBO rises
    elbo: Array  # [num_iterations, 2] after each E-step and M-step, nan after the last


def gaussian_mixture_steps(
    num_components: int, *, covariance: Covariance = "full", floor: float = 1e-6
) -> Steps:
    """EM's half-steps for `models.gaussian_mixture`; q is carried as its `Moments`.

    M-step: p(z) = n_z / n with n_z = sum_i q_i(z), mu_z the weighted mean, C_z the
    weighted covariance (averaged as the kind of covariance says). `floor` bounds the
    variance in every direction from below, in squared units of x. What is below it is
    raised to it, variances or eigenvalues: the exact maximum under that bound, so that
    log p(x) never falls from params that keep it. (Adding a constant to the diagonal,
    as scikit-learn does, has no such guarantee.)
    A component whose weight underflows stays where it is. Raises ValueError as
    `gaussian_mixture` does and where the floor is not positive.
    Ref: Dempster, Laird & Rubin 1977; Bishop 2006, section 9.2.
    """
    gaussian_mixture(num_components, covariance=covariance)
    check_floor(floor)
    return steps_with(covariance, floor)


def steps_with(covariance: Covariance, floor: float | Array) -> Steps:
    """`gaussian_mixture_steps` unchecked, whose floor may be traced."""

    def e_step(params: Params, x: Array) -> tuple[Moments, Array]:
        frame = moments.frame(params, covariance)

        def block(x: Array):
            y = moments.whitened(frame, x)
            log_joint = moments.log_joint(frame, y)
            log_px = jax.nn.logsumexp(log_joint, axis=0)  # [b]
            q = jnp.exp(log_joint - log_px[None])
            return (moments.sums(frame, q, y), jnp.sum(log_px)), ()

        (sums, log_px), _ = moments.over_blocks(block, x)
        return moments.from_sums(frame, sums), log_px / len(x)

    def m_step(q: Moments, x: Array) -> Params:
        del x
        return moments.maximise(q, covariance, floor)

    return Steps(e_step, m_step)


def gaussian_mixture_start(
    key: Key, x: Array, num_components: int, *, covariance: Covariance = "full"
) -> Params:
    """Parameters to start from: k-means++ means, equal weights, the data's covariance.

    The distances are those of columns divided by their standard deviation, so that
    units do not matter. The covariance is that of all the data rather than of clusters:
    on six data sets the best of 16 such starts ended as high to 0.03 nats, and once 0.4
    nats higher.
    """
    mean, deviation = jnp.mean(x, axis=0), jnp.std(x, axis=0)
    standard = (x - mean[None]) / deviation[None]
    centers = kmeans_plus_plus(key, standard, num_components)
    if covariance in ("spherical", "diagonal"):
        root = deviation
    else:
        values, vectors = jnp.linalg.eigh(standard.T @ standard / len(x))
        root = deviation[:, None] * vectors * jnp.sqrt(jnp.maximum(values, 0))[None]
    q = Moments(
        jnp.ones(num_components, x.dtype),
        mean[None] + deviation[None] * centers,
        jnp.broadcast_to(root[None], (num_components, *root.shape)),
    )
    return moments.maximise(q, covariance, default_floor(x))


def default_floor(x: Array) -> Array:
    """A millionth of the variance of the column that varies least, []."""
    return 1e-6 * jnp.min(jnp.var(x, axis=0))


def fit_gaussian_mixture(
    key: Key,
    x: Array,
    num_components: int,
    *,
    covariance: Covariance = "full",
    restarts: int = 8,
    num_iterations: int = 1000,
    tolerance: float = 1e-5,
    floor: float | None = None,
) -> MixtureFit:
    """Fit a Gaussian mixture to x [n, D] by EM, the best of several restarts.

    Each starts at a `gaussian_mixture_start` of its own; all run as one program. EM
    stops where mean log p(x) gains less than `tolerance` nats per example, of which
    float32 resolves about 1e-6 at 20 nats. `floor` is the least variance in any
    direction, in squared units of x: by default the `default_floor`.
    Restarts with a collapsed component, one at the floor or with less than a point,
    are passed over: there the likelihood tells of the floor and not of the data. (`em`
    with `gaussian_mixture_steps` and a floor of your choice keeps such components.)
    Raises ValueError where x does not allow the fit, saying why, and
    CollapsedComponentError where all restarts collapsed.
    """
    gaussian_mixture(num_components, covariance=covariance)
    at_least(1, restarts=restarts)
    x = jnp.asarray(checked_data(x, num_components))
    floor = float(default_floor(x)) if floor is None else floor
    check_floor(floor)
    fits = _fit_each(
        jax.random.split(key, restarts),
        x,
        jnp.asarray(floor, x.dtype),
        tolerance,
        num_components,
        covariance,
        num_iterations,
    )
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], fits) for i in range(restarts)]
    complaints = [complaint(fit.params, len(x), floor, covariance) for fit in each]
    sound = np.array([c is None for c in complaints])
    if not sound.any():
        raise CollapsedComponentError(complaints[int(jnp.argmax(fits.log_px))])
    best = np.argmax(np.where(sound, fits.log_px, -np.inf))
    return MixtureFit(each[best], fits.log_px, sound)


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _fit_each(keys, x, floor, tolerance, num_components, covariance, num_iterations):
    def one(key: Key) -> Fit:
        start = gaussian_mixture_start(key, x, num_components, covariance=covariance)
        steps = steps_with(covariance, floor)
        return em(steps, start, x, num_iterations=num_iterations, tolerance=tolerance)

    return jax.vmap(one)(keys)


def variational_em(
    params: Params,
    x: Array,
    *,
    covariance: Covariance = "full",
    step_size: float = 0.5,
    floor: float = 1e-6,
    num_iterations: int = 1000,
    tolerance: float = 1e-6,
) -> VariationalFit:
    """Raise the ELBO by turns in q(z | x_i), free for each example, and in params.

    E-step: log q <- (1 - rho) log q + rho log p(z | x), normalised, rho = step_size: a
    step along the natural gradient of the ELBO, which rho = 1 takes to the top at
    once, so that this is EM. q starts at p(z). M-step: that of EM, under this q. No
    half-step lowers the ELBO; it stops where both together gain less than `tolerance`
    nats per example. A pure function, to be jitted. Raises ValueError where step_size
    is outside (0, 1], the floor is not positive, num_iterations is below 1 or tolerance
    is nan.
    Ref: Neal & Hinton 1998; Hoffman et al. 2013, arXiv:1206.7051.
    """
    check_floor(floor)
    if not 0 < step_size <= 1 or num_iterations < 1:
        raise ValueError(
            "needed: 0 < step_size <= 1 and num_iterations >= 1, got "
            f"{step_size} and {num_iterations}"
        )
    if tolerance != tolerance:
        raise ValueError("tolerance is nan: it must be a number of nats")

    def body(carry):
        i, _, log_q, now, _, elbo, history = carry
        params = moments.maximise(now.moments, covariance, floor)
        log_q, new = _pass(params, log_q, x, covariance, step_size)
        elbo = elbo.at[i].set(jnp.stack([now.after, new.before]))
        history = history.at[i].set(now.log_px)
        return i + 1, params, log_q, new, new.before - now.before, elbo, history

    prior = jax.nn.log_softmax(params["logits"])
    prior = jnp.broadcast_to(prior[None], (len(x), len(prior)))
    log_q, now = _pass(params, prior, x, covariance, step_size)
    empty = jnp.full((num_iterations, 2), jnp.nan, x.dtype)
    first = jnp.full_like(now.after, jnp.inf)
    carry = (jnp.int32(0), params, log_q, now, first, empty, empty[:, 0])
    goes_on = lambda carry: (carry[0] < num_iterations) & (carry[4] >= tolerance)
    i, params, _, now, gain, elbo, history = jax.lax.while_loop(goes_on, body, carry)
    return VariationalFit(Fit(params, now.log_px, history, i, gain < tolerance), elbo)


class _Pass(NamedTuple):
    """What one pass over the data finds, in nats per example."""

    before: Array  # [] the ELBO of the q that came in
    after: Array  # [] the ELBO of the q that goes out
    log_px: Array  # []
    moments: Moments  # of the q that goes out


def _pass(
    params: Params, log_q: Array, x: Array, covariance: Covariance, step_size: float
) -> tuple[Array, _Pass]:
    """An E-step from log_q [n, m] to a new one, and all that is to be known of both."""
    frame = moments.frame(params, covariance)

    def block(x: Array, log_q: Array):
        y = moments.whitened(frame, x)
        log_joint = moments.log_joint(frame, y)
        old = log_q.T
        new = (1 - step_size) * old + step_size * log_joint
        new = jax.nn.log_softmax(new, axis=0)
        elbo = lambda log_q: jnp.sum(jnp.exp(log_q) * (log_joint - log_q))
        log_px = jnp.sum(jax.nn.logsumexp(log_joint, axis=0))
        sums = moments.sums(frame, jnp.exp(new), y)
        return (sums, elbo(old), elbo(new), log_px), new.T

    (sums, *totals), log_q = moments.over_blocks(block, x, log_q)
    before, after, log_px = (total / len(x) for total in totals)
    return log_q, _Pass(before, after, log_px, moments.from_sums(frame, sums))
