"""The training loop. It knows a loss and a stream of batches, and nothing of VAEs.

Data and randomness are pure functions of (seed, step), so a state is all that a run
needs to go on exactly as if it had never stopped.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from vi_jax import cpu, sharding
from vi_jax.checks import at_least
from vi_jax.soap import scale_by_soap
from vi_jax.types import Array, Batches, LossFn, Metrics, Params


class TrainState(NamedTuple):
    """All that a run is, between two steps."""

    step: Array  # int32 [], the steps done
    params: Params
    opt_state: optax.OptState


class NonFiniteError(FloatingPointError):
    """Too many steps in a row had a loss or a gradient that is not finite."""


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""

    def strong(leaf):
        # jnp.full(shape, 0.5) has a weak type, which a step would make a strong one:
        # to be compiled once more.
        if not getattr(leaf, "weak_type", isinstance(leaf, (int, float))):
            return leaf
        return jax.lax.convert_element_type(leaf, jnp.result_type(leaf))

    params = jax.tree.map(strong, params)
    opt_state = jax.tree.map(strong, optimizer.init(params))
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state)


def adam(
    learning_rate: float, *, num_steps: int, clip_norm: float = 0.0, ema: float = 0.0
) -> optax.GradientTransformation:
    """Adam whose step size falls to 0 along a cosine over num_steps, those of `fit`.

    clip_norm > 0 bounds the norm of the gradient first, ema > 0 keeps `averaging`.
    Raises ValueError where a number is out of its range.
    Ref: Kingma & Ba 2015, arXiv:1412.6980; Loshchilov & Hutter 2017, arXiv:1608.03983.
    """
    return _scheduled(optax.scale_by_adam(), learning_rate, num_steps, clip_norm, ema)


def soap(
    learning_rate: float, *, num_steps: int, clip_norm: float = 0.0, ema: float = 0.0
) -> optax.GradientTransformation:
    """`scale_by_soap` with the step size, and the options, of `adam`.

    The step size also rises along a line over the first 50th of the steps, while the
    first bases are rough. Raises ValueError where a number is out of its range.
    Ref: Vyas et al. 2025, arXiv:2409.11321.
    """
    return _scheduled(
        scale_by_soap(), learning_rate, num_steps, clip_norm, ema, num_steps // 50
    )


def _scheduled(
    direction: optax.GradientTransformation,
    learning_rate: float,
    num_steps: int,
    clip_norm: float,
    ema: float,
    rise: int = 0,
) -> optax.GradientTransformation:
    if not 0 < learning_rate < np.inf or num_steps < 1 or not clip_norm >= 0:
        raise ValueError(
            "needed: 0 < learning_rate < inf, num_steps >= 1, clip_norm >= 0, got "
            f"{learning_rate}, {num_steps} and {clip_norm}"
        )
    schedule = optax.cosine_decay_schedule(learning_rate, num_steps)
    if rise:
        schedule = optax.warmup_cosine_decay_schedule(
            0.0, learning_rate, rise, num_steps
        )
    optimizer = optax.chain(direction, optax.scale_by_learning_rate(schedule))
    if clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
    return averaging(optimizer, ema) if ema else optimizer


class _AverageState(NamedTuple):
    inner: optax.OptState
    average: Params


def averaging(
    optimizer: optax.GradientTransformation, decay: float
) -> optax.GradientTransformation:
    """`optimizer`, also keeping the moving average of the parameters.

    average <- d average + (1 - d) params with d = min(decay, (1 + t) / (10 + t)), so
    that it forgets its start. Read it with `averaged_params`: in float32, where the
    parameters have less. Raises ValueError where decay is outside [0, 1).
    Ref: Polyak & Juditsky 1992.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"the averaging decay must be in [0, 1), got {decay}")

    def init(params: Params):
        count = jnp.zeros((), jnp.int32)
        # In 16 bits what a step adds would be rounded off.
        copy = lambda p: jnp.array(p, jnp.promote_types(p.dtype, jnp.float32))
        return _AverageState(
            (count, optimizer.init(params)), jax.tree.map(copy, params)
        )

    def update(grads, state, params):
        count, inner = state.inner
        updates, inner = optimizer.update(grads, inner, params)
        new = optax.apply_updates(params, updates)
        step_size = 1 - jnp.minimum(decay, (1 + count) / (10 + count))
        average = optax.incremental_update(new, state.average, step_size)
        return updates, _AverageState((count + 1, inner), average)

    return optax.GradientTransformation(init, update)


def averaged_params(state: TrainState) -> Params:
    """The averaged parameters where the optimizer keeps them, else the last ones.

    Raises ValueError where `averaging` is within another transformation, which may
    change the step that it has averaged.
    """
    is_average = lambda part: isinstance(part, _AverageState)
    if is_average(state.opt_state):
        return state.opt_state.average
    if any(map(is_average, jax.tree.leaves(state.opt_state, is_leaf=is_average))):
        raise ValueError(
            "`averaging` must be the outermost: averaging(optax.chain(...), decay)"
        )
    return state.params


class _Health(NamedTuple):
    """Steps skipped in a row, and where the present row began."""

    in_a_row: Array  # int32 []
    since: Array  # int32 [], the step that began it
    leaf: Array  # int32 [], the first leaf that was not finite in that step
    stop: Array  # bool [], the row has reached its limit


def _healthy() -> _Health:
    zero = jnp.zeros((), jnp.int32)
    return _Health(zero, zero, zero, jnp.zeros((), bool))


def _next_health(health: _Health, bad: Array, step: Array, limit: int) -> _Health:
    skip = jnp.any(bad)
    begins = skip & (health.in_a_row == 0)
    in_a_row = jnp.where(skip, health.in_a_row + 1, 0)
    new = _Health(
        in_a_row,
        jnp.where(begins, step, health.since),
        jnp.where(begins, jnp.argmax(bad).astype(jnp.int32), health.leaf),
        in_a_row >= limit,
    )
    # Once a row has reached the limit, what it was is kept for the message.
    return jax.tree.map(lambda old, new: jnp.where(health.stop, old, new), health, new)


class _Dispatches(NamedTuple):
    """Many steps in one program, at full speed or with a look at every gradient."""

    # n is the number of steps, None for as many as are travelling.
    trusting: Callable  # (state, resident, travelling, n) -> (state, totals, sound)
    guarded: Callable  # ((state, health), resident, ...) -> ((state, health), totals)


def _make_dispatches(
    loss: LossFn, optimizer, batches: Batches, seed: int, limit: int, mesh: Mesh | None
):
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    if mesh is None:
        value_and_grad = cpu.for_cpu(value_and_grad)

    def gradient(state: TrainState, resident, travelling):
        batch = sharding.split(batches.gather(resident, travelling), "data")
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        (value, metrics), grads = value_and_grad(state.params, key, batch)
        return {"loss": value, **metrics}, grads

    def move(state: TrainState, grads):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state)

    def trusting_step(state: TrainState, resident, travelling):
        metrics, grads = gradient(state, resident, travelling)
        new = move(state, cpu.after_backward(grads))
        return new, _totals(metrics, jnp.isfinite(metrics["loss"]))

    def guarded_step(carry, resident, travelling):
        state, health = carry
        metrics, grads = gradient(state, resident, travelling)
        parts = [metrics["loss"], *jax.tree.leaves(grads)]
        bad = jnp.stack([~jnp.all(jnp.isfinite(part)) for part in parts])
        stay = lambda state, grads: state._replace(step=state.step + 1)
        new = jax.lax.cond(jnp.any(bad), stay, move, state, grads)
        health = _next_health(health, bad, state.step, limit)
        return (new, health), _totals(metrics, ~jnp.any(bad))

    def trusting(state: TrainState, resident, travelling, n):
        new, totals = _repeat(trusting_step, state, resident, travelling, n)
        return new, totals, _is_finite(new, state)

    guarded = functools.partial(_repeat, guarded_step)
    return _Dispatches(sharding.jit(trusting, mesh), sharding.jit(guarded, mesh))


def _totals(metrics: Metrics, counts: Array) -> Metrics:
    # where, not a product: 0 * nan is nan.
    kept = jax.tree.map(lambda m: jnp.where(counts, m, 0.0), metrics)
    return {"steps": counts.astype(jnp.float32), **kept}


def _is_finite(new: TrainState, old: TrainState) -> Array:
    """Whether all that was finite in `old` still is; an optimizer may start at inf."""
    same = lambda a, b: jnp.all(jnp.isfinite(a) | ~jnp.isfinite(b))
    return jnp.all(jnp.stack(jax.tree.leaves(jax.tree.map(same, new, old))))


def _repeat(step: Callable, carry, resident, travelling, n: Array | None):
    """n times `step(carry, resident, now) -> (carry, metrics)`, metrics added up."""
    first = jax.tree.map(lambda a: a[0], travelling)
    length = jax.tree.leaves(travelling)[0].shape[0]
    if length == 1:
        # No loop: on CPU a convolution inside one would lose its threads.
        return step(carry, resident, first)
    shapes = jax.eval_shape(step, carry, resident, first)[1]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    # In one vector: on a GPU each addition of its own costs a microsecond.
    totals, as_tree = ravel_pytree(zeros)

    def body(i, state):
        carry, totals = state
        now = jax.tree.map(lambda a: a[i], travelling)
        carry, more = step(carry, resident, now)
        return carry, totals + ravel_pytree(more)[0]

    length = length if n is None else n
    carry, totals = jax.lax.fori_loop(0, length, body, (carry, totals))
    return carry, as_tree(totals)


def fit(
    loss: LossFn,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batches: Batches,
    *,
    seed: int,
    num_steps: int,
    scan_steps: int = 100,
    max_skipped: int = 10,
    mesh: Mesh | None = None,
) -> Iterator[tuple[TrainState, Metrics]]:
    """Train from state.step to num_steps, yielding after every `scan_steps` steps.

    Yields (state, metrics): the metrics are means over the dispatch, as floats, or as
    lists where a metric is an array, with `skipped`, the number of its steps whose loss
    or gradient was not finite and which changed nothing. scan_steps steps run in one
    dispatch, during which those of the next are read; 1 runs each without a loop.
    On a GPU a shorter one, such as the last, is compiled by itself.

    A dispatch runs at full speed and is checked at its end: what is not finite stays in
    the parameters or the optimizer's state once it is there. Where there is any, or a
    loss was not finite, the steps are taken again from the state before, each with a
    look at its gradient. (To look at every gradient took 6 to 10% of the step of a
    small net on CPU. The state before a dispatch is therefore kept, not donated.)
    With a `sharding.mesh` the examples and samples of a step are split over devices,
    with the same numbers but for the order of sums.
    Raises NonFiniteError after `max_skipped` skipped steps in a row, naming the first
    step and leaf, and ValueError where scan_steps or max_skipped is below 1, the mesh
    is none of `sharding.mesh`, or does not divide the batch or the samples.
    """
    at_least(1, scan_steps=scan_steps, max_skipped=max_skipped)
    if mesh is not None and set(mesh.axis_names) != {"data", "samples"}:
        raise ValueError(
            f"the axes of the mesh are {mesh.axis_names}, which splits nothing: make "
            "it by `vi_jax.sharding.mesh`"
        )
    scan_steps = min(scan_steps, max(num_steps, 1))  # what a dispatch has room for
    # A generator would raise at its first step, and not where it is made.
    return _fit(
        loss, optimizer, state, batches, seed, num_steps, scan_steps, max_skipped, mesh
    )


def _fit(
    loss, optimizer, state, batches, seed, num_steps, scan_steps, max_skipped, mesh
) -> Iterator[tuple[TrainState, Metrics]]:
    dispatches = _make_dispatches(loss, optimizer, batches, seed, max_skipped, mesh)
    one_blas_thread = cpu.one_blas_thread()
    step = int(state.step)
    resident = sharding.replicated(batches.resident, mesh)
    state, healthy = sharding.replicated((state, _healthy()), mesh)
    health = healthy
    upto = lambda step: min(step - step % scan_steps + scan_steps, num_steps)
    read = lambda step: _stack(
        [batches.at(i) for i in range(step, upto(step))], scan_steps
    )
    travelling = read(step) if step < num_steps else None
    while step < num_steps:
        n = upto(step) - step
        # A number of steps that is data: the shorter, last dispatch compiles nothing
        # new. But a GPU would ask the host after each step whether it was the last.
        known = n == scan_steps and jax.default_backend() == "gpu"
        given = (resident, travelling, None if known else n)
        with sharding.over(mesh), one_blas_thread():
            new, totals, sound = dispatches.trusting(state, *given)
            # The next batches, while the device computes with these.
            travelling = read(step + n) if step + n < num_steps else None
            totals, sound = jax.device_get((totals, sound))  # the only wait
            if sound and totals["steps"] == n:
                state, health = new, healthy
            else:
                (state, health), totals = dispatches.guarded((state, health), *given)
        if health.stop:
            raise NonFiniteError(
                _what_was_not_finite(health, state.params, max_skipped)
            )
        step += n
        yield state, _means(jax.device_get(totals), n)


def _stack(items: list, length: int):
    """Leaves stacked to [length, ...], the last item repeated where there are fewer."""
    items = items + items[-1:] * (length - len(items))
    # What a stream has put on devices stays there.
    of = lambda leaf: jnp if isinstance(leaf, jax.Array) else np
    return jax.tree.map(lambda *leaves: of(leaves[0]).stack(leaves), *items)


def _means(totals: Metrics, n: int) -> Metrics:
    steps = float(totals.pop("steps"))
    mean = lambda total: (total / steps if steps else total * np.nan).tolist()
    means = {k: mean(np.asarray(v, float)) for k, v in totals.items()}
    return {**means, "skipped": n - int(steps)}


def _what_was_not_finite(health: _Health, params: Params, limit: int) -> str:
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    names = ["the loss", *(f"the gradient of {jax.tree_util.keystr(p)}" for p in paths)]
    return (
        f"{limit} steps in a row were not finite, from step {int(health.since)} on, "
        f"where {names[int(health.leaf)]} was the first. They changed no parameter. "
        "Look at the data for what the model has no value of (a NaN, a token or class "
        "beyond its number), or try a lower learning rate or gradient clipping"
    )
