"""Models trained together against the same models trained alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vi_jax import sweep
from vi_jax.data.batches import no_data
from vi_jax.training import fit, init_state

VALUES = jnp.array([0.5, 1.0, 3.0])


def loss_of(value):
    """A least-squares fit to noise that the key and the step draw."""

    def loss(params, key, batch):
        x = jax.random.normal(key, (4, 3)) + batch["step"]
        error = jnp.sum((x @ params["w"] - params["b"]) ** 2)
        penalty = value * jnp.sum(params["w"] ** 2)
        return error + penalty, {"bound": -error, "penalty": penalty}

    return loss


def start(key):
    return {"w": jax.random.normal(key, (3,)), "b": jnp.zeros(())}


def train(loss, optimizer, params):
    states = fit(
        loss,
        optimizer,
        init_state(params, optimizer),
        no_data(),
        seed=1,
        num_steps=6,
        scan_steps=3,
    )
    return list(states)[-1]


def test_each_ends_where_it_would_alone():
    """Clipping by the norm couples the leaves of a model, but not two models."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    first = sweep.init_of_all(start, jax.random.key(0), 3, same=False)
    state, metrics = train(
        sweep.loss_of_all(loss_of, VALUES), sweep.optimizer_of_all(optimizer), first
    )
    for i, value in enumerate(VALUES):
        alone, expected = train(loss_of(value), optimizer, sweep.one_of_all(first, i))
        ours = sweep.one_of_all(state.params, i)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            ours,
            alone.params,
        )
        np.testing.assert_allclose(
            metrics["penalty"][i], expected["penalty"], rtol=1e-5
        )
        np.testing.assert_allclose(
            metrics["bound_each"][i], expected["bound"], rtol=1e-5
        )
    np.testing.assert_allclose(metrics["bound"], np.mean(metrics["bound_each"]))


def test_they_start_alike_or_each_with_its_own_key():
    alike = np.asarray(sweep.init_of_all(start, jax.random.key(0), 3)["w"])
    assert (alike == alike[0]).all()
    apart = sweep.init_of_all(start, jax.random.key(0), 3, same=False)["w"]
    assert len(np.unique(np.asarray(apart))) == 9


def test_a_sweep_over_nothing_is_an_error():
    for values in (jnp.array(1.0), jnp.zeros(0)):
        with pytest.raises(ValueError, match="one value for each model"):
            sweep.loss_of_all(loss_of, values)
