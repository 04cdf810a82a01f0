"""log p(x) by annealed importance sampling, from below and, on simulated x, from above.

Between a start r(z), of normalised density, and p(x, z) lie f_b = r^(1 - b) p(x, z)^b;
a chain crosses them by Hamiltonian Monte Carlo and its weight has the mean p(x).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vi_jax.distributions import Distribution, is_continuous
from vi_jax.math import effective_sample_size, log_mean_exp
from vi_jax.model import Model, log_joint
from vi_jax.types import Array, Key, Params

TARGET_ACCEPTANCE = 0.65
STEP_SIZES = (1e-4, 2.0)


class Annealing(NamedTuple):
    """How a chain goes from r(z) to the posterior; made by `tune`."""

    betas: Array  # [t + 1], rising from 0 to 1
    step_sizes: Array  # [t], of the leapfrog at betas[1:]
    num_leapfrog: int


class AisEstimate(NamedTuple):
    """What the chains of one example say of log p(x), nats."""

    log_px: Array  # [] log mean w: a lower bound in expectation; an upper one backwards
    stderr: Array  # [] of log_px, from the spread of the weights; nan for one chain
    log_w: Array  # [num_chains]
    acceptance: Array  # [] mean, of all transitions


def sigmoid_betas(num_steps: int, *, steepness: float = 4.0) -> Array:
    """num_steps + 1 inverse temperatures from 0 to 1, dense at both ends.

    s(r (2 i / t - 1)) rescaled to [0, 1], s the logistic function and r `steepness`.
    Raises ValueError where num_steps is below 1 or the steepness is not positive.
    Ref: Wu et al. 2017, arXiv:1611.04273.
    """
    if num_steps < 1:
        raise ValueError(f"annealing needs at least 1 step, got {num_steps}")
    if not 0 < steepness < np.inf:
        raise ValueError(f"steepness is {steepness}: it must be positive and finite")
    rise = np.tanh(0.5 * steepness * np.linspace(-1, 1, num_steps + 1))
    return jnp.asarray((rise - rise[0]) / (rise[-1] - rise[0]), float)


class _Bridge(NamedTuple):
    start: Distribution  # r(z)
    log_f: Callable[[Array, Array], Array]  # (z, b) -> log f_b(z)
    slope: Callable[[Array], Array]  # z -> log p(x, z) - log r(z), that of log f in b


def _bridge(
    model: Model, params: Params, start: Distribution | None, x: Array
) -> _Bridge:
    prior = model.prior(params)
    start = prior if start is None else start
    for each in (prior, start):
        if not is_continuous(each):
            raise ValueError(
                "annealing moves continuous latents along a gradient, and those of "
                f"{type(each).__name__} are discrete: use importance sampling"
            )
    log_r = lambda z: jnp.sum(start.log_prob(z))
    slope = lambda z: log_joint(model, params, x, z) - log_r(z)
    return _Bridge(start, lambda z, beta: log_r(z) + beta * slope(z), slope)


def _draws(start: Distribution, key: Key, num_chains: int) -> Array:
    return _one_array(jax.vmap(start.sample)(jax.random.split(key, num_chains)))


def _one_array(z: Array) -> Array:
    if not isinstance(z, jax.Array | np.ndarray):
        raise ValueError(
            "annealing moves latents that are one array, and these are a "
            f"{type(z).__name__} of several: use importance sampling"
        )
    return z


def _hmc(
    key: Key, z: Array, log_f: Callable[[Array], Array], step_size: Array, length: int
) -> tuple[Array, Array]:
    """One Hamiltonian transition that leaves f invariant; (z, chance of acceptance).

    Ref: Neal 2011, arXiv:1206.1901.
    """
    key_v, key_u = jax.random.split(key)
    velocity = jax.random.normal(key_v, z.shape, z.dtype)
    slope = jax.grad(log_f)

    def leap(_, state):
        at, v = state
        at = at + step_size * v
        return at, v + step_size * slope(at)

    half = velocity + 0.5 * step_size * slope(z)
    at, v = jax.lax.fori_loop(0, length, leap, (z, half))
    v = v - 0.5 * step_size * slope(at)
    energy = lambda z, v: log_f(z) - 0.5 * jnp.sum(v**2)
    log_ratio = energy(at, v) - energy(z, velocity)
    # A diverged path has no finite energy, and is refused.
    chance = jnp.where(jnp.isfinite(log_ratio), jnp.exp(jnp.minimum(log_ratio, 0)), 0)
    moved = jax.random.uniform(key_u, dtype=z.dtype) < chance
    return jnp.where(moved, at, z), chance


def tune(
    model: Model,
    params: Params,
    key: Key,
    x: Array,
    *,
    num_steps: int = 1000,
    num_leapfrog: int = 10,
    num_chains: int = 16,
    step_size: float = 0.1,
    start: Distribution | None = None,
) -> Annealing:
    """Step sizes for `ais` on one example, from a run whose weights are thrown away.

    At each temperature the chains move and the step size grows by 10% or shrinks by 10%
    as their mean acceptance lies above or below 0.65, towards which it is carried along
    the run. To adapt inside the weighted run would make its transitions depend on its
    own past, and the bound would be lost. `start` is r(z), by default p(z). The
    schedule is `sigmoid_betas(num_steps)`.
    Raises ValueError where num_steps, num_leapfrog, num_chains or step_size is not
    positive, and where latents are discrete or not one array.
    """
    if num_leapfrog < 1 or num_chains < 1 or not step_size > 0:
        raise ValueError(
            "needed: num_leapfrog >= 1, num_chains >= 1 and step_size > 0, got "
            f"{num_leapfrog}, {num_chains} and {step_size}"
        )
    betas = sigmoid_betas(num_steps)
    bridge = _bridge(model, params, start, x)
    key_start, key_moves = jax.random.split(key)
    z = _draws(bridge.start, key_start, num_chains)

    def at(carry, i_and_beta):
        z, size = carry
        i, beta = i_and_beta
        log_f = lambda z: bridge.log_f(z, beta)
        move = lambda key, z: _hmc(key, z, log_f, size, num_leapfrog)
        keys = jax.random.split(jax.random.fold_in(key_moves, i), num_chains)
        z, chance = jax.vmap(move)(keys, z)
        grow = jnp.where(jnp.mean(chance) > TARGET_ACCEPTANCE, 1.1, 1 / 1.1)
        return (z, jnp.clip(size * grow, *STEP_SIZES)), size

    first = (z, jnp.asarray(step_size, z.dtype))
    _, step_sizes = jax.lax.scan(at, first, (jnp.arange(num_steps), betas[1:]))
    return Annealing(betas, step_sizes, num_leapfrog)


def ais(
    model: Model,
    params: Params,
    key: Key,
    x: Array,
    annealing: Annealing,
    *,
    num_chains: int = 16,
    start: Distribution | None = None,
) -> AisEstimate:
    """log p(x) of one example by annealed importance sampling, from below.

    log w = sum_i (b_i+1 - b_i) log(p(x, z_i) / r(z_i)) along a chain z_i ~ f_b_i, and
    E[w] = p(x) whatever the transitions do, so that log mean w is a lower bound in
    expectation; it nears log p(x) as the steps grow. One step is importance sampling
    from r. `start` must be that of `tune`.
    Raises ValueError where num_chains is below 1 or the schedule has no step, and where
    latents are discrete or not one array.
    Ref: Neal 2001; Wu et al. 2017, arXiv:1611.04273.
    """
    _check_chains(num_chains, annealing)
    bridge = _bridge(model, params, start, x)
    key_start, key_moves = jax.random.split(key)
    z = _draws(bridge.start, key_start, num_chains)
    rises = jnp.diff(annealing.betas)
    log_w = rises[0] * jax.vmap(bridge.slope)(z)
    log_w, acceptance = _walk(bridge, key_moves, z, log_w, rises[1:], annealing)
    return _estimate(log_w, acceptance)


def reverse_ais(
    model: Model,
    params: Params,
    key: Key,
    x: Array,
    z: Array,
    annealing: Annealing,
    *,
    num_chains: int = 16,
    start: Distribution | None = None,
) -> AisEstimate:
    """log p(x) from above, where (z, x) was drawn from the model: the chains back.

    z is then an exact draw from p(z | x), and the weight of a chain from it to r(z) has
    the mean 1 / p(x): -log mean of these is an upper bound in expectation. Chains from
    the same z are not independent: the error is that between examples. With `ais` on
    the same x it sandwiches log p(x) (bidirectional Monte Carlo).
    Raises ValueError as `ais` does. Ref: Grosse et al. 2015, arXiv:1511.02543.
    """
    _check_chains(num_chains, annealing)
    bridge = _bridge(model, params, start, x)
    zs = jnp.broadcast_to(_one_array(z), (num_chains, *z.shape))
    falls = -jnp.diff(annealing.betas)
    log_w = falls[-1] * jax.vmap(bridge.slope)(zs)
    log_w, acceptance = _walk(
        bridge, key, zs, log_w, falls[:-1], annealing, reverse=True
    )
    log_inverse, *rest = _estimate(log_w, acceptance)
    return AisEstimate(-log_inverse, *rest)


def _walk(
    bridge: _Bridge,
    key: Key,
    z: Array,
    log_w: Array,
    changes: Array,
    annealing: Annealing,
    *,
    reverse: bool = False,
) -> tuple[Array, Array]:
    """Chains z [c, ...] over the temperatures strictly between 0 and 1, either way.

    At each: move, then add its change times the slope to log_w [c]. Returns log_w and
    the mean acceptance.
    """
    num_chains = z.shape[0]

    def step(carry, now):
        z, log_w = carry
        i, change, beta, size = now
        log_f = lambda z: bridge.log_f(z, beta)
        move = lambda key, z: _hmc(key, z, log_f, size, annealing.num_leapfrog)
        keys = jax.random.split(jax.random.fold_in(key, i), num_chains)
        z, chance = jax.vmap(move)(keys, z)
        return (z, log_w + change * jax.vmap(bridge.slope)(z)), chance

    betas, step_sizes = annealing.betas[1:-1], annealing.step_sizes[:-1]
    steps = (jnp.arange(changes.size), changes, betas, step_sizes)
    (_, log_w), chances = jax.lax.scan(step, (z, log_w), steps, reverse=reverse)
    # One step has no transition.
    return log_w, jnp.mean(chances) if chances.size else jnp.ones(())


def _check_chains(num_chains: int, annealing: Annealing) -> None:
    if num_chains < 1 or len(annealing.betas) < 2:
        raise ValueError("annealing needs at least one chain and one step")


def _estimate(log_w: Array, acceptance: Array) -> AisEstimate:
    k = log_w.shape[0]
    ess = effective_sample_size(log_w)
    stderr = jnp.sqrt(jnp.maximum(1 / ess - 1 / k, 0.0)) if k > 1 else ess * jnp.nan
    return AisEstimate(log_mean_exp(log_w), stderr, log_w, acceptance)
