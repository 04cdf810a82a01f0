"""Several models of one architecture trained together, as one compiled program.

Parameters, optimizer state and metrics lead with [m], one row a model; the models see
the same batches and draws, so that what differs is what the sweep is over: a number in
the loss, such as beta, or one in the optimizer, such as the learning rate. A number
that is swept is not checked: its range is for the one who chooses the values.

loss_of = lambda beta: batch_loss(model, ..., beta=schedules.constant(beta))
loss = loss_of_all(loss_of, betas)                       # betas [m]

adam = optax.inject_hyperparams(optax.adam)(learning_rate=0.0)
loss = loss_of_all(lambda rate: batch_loss(model, ...), rates)
state = init_state(params, optimizer_of_all(adam))
state.opt_state.hyperparams["learning_rate"] = rates     # [m], instead of the 0
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from vi_jax.types import Array, Batch, Key, LossFn, Metrics, Params


def loss_of_all(loss_of: Callable[[Array], LossFn], values: Array) -> LossFn:
    """sum_i loss_of(values[i])(params[i], key, batch), whose gradients are each one's.

    values is [m, ...], and the leaves of params lead with [m]. The metrics are [m], and
    `bound` their mean, beside `bound_each` [m].
    Raises ValueError where values has no leading axis.
    """
    if jnp.ndim(values) < 1 or len(values) < 1:
        raise ValueError(
            "values must be an array of one value for each model, [m, ...]"
        )
    values = jnp.asarray(values)

    def loss(params: Params, key: Key, batch: Batch) -> tuple[Array, Metrics]:
        one = lambda value, params: loss_of(value)(params, key, batch)
        each, metrics = jax.vmap(one)(values, params)
        bound = metrics.pop("bound", -each)
        return jnp.sum(each), {
            **metrics,
            "bound": jnp.mean(bound),
            "bound_each": bound,
        }

    return loss


def optimizer_of_all(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """`optimizer` for each of m models by itself, whatever it couples within one."""

    def update(grads: Params, state: optax.OptState, params: Params | None = None):
        return jax.vmap(optimizer.update)(grads, state, params)

    return optax.GradientTransformation(jax.vmap(optimizer.init), update)


def init_of_all(
    init: Callable[[Key], Params], key: Key, num_models: int, *, same: bool = True
) -> Params:
    """The first parameters of m models, of one key, or of a key each."""
    keys = jax.random.split(key, num_models)
    return jax.vmap(init)(jnp.repeat(keys[:1], num_models) if same else keys)


def one_of_all(params: Params, i: int) -> Params:
    """The parameters of model i."""
    return jax.tree.map(lambda leaf: leaf[i], params)
