"""The training loop: pure in (seed, step), and never harmed by what is not finite."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from threadpoolctl import threadpool_info, threadpool_limits

from vi_jax import training
from vi_jax.data import batches

X = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
STREAM = batches.shuffled({"x": X}, batch_size=8, seed=1)
PARAMS = {"offset": jnp.zeros(3), "scale": jnp.ones(())}


def noisy_loss(params, key, batch):
    """A quadratic whose gradient is random, so that the order of keys is seen."""
    noise = 0.1 * jax.random.normal(key, batch["x"].shape)
    error = (batch["x"] + noise - params["offset"][None]) * params["scale"]
    loss = jnp.mean(jnp.sum(error**2, axis=-1)) + params["scale"] ** -2
    return loss, {"error": jnp.max(jnp.abs(error))}


def broken_at(bad_steps, leaf=None):
    """`noisy_loss`, with nan in its value or the gradient of a leaf at some steps."""

    def loss(params, key, batch):
        bad = jnp.isin(batch["step"], jnp.asarray(bad_steps))
        value, metrics = noisy_loss(params, key, batch)
        if leaf is None:
            return value + jnp.where(bad, jnp.nan, 0.0), metrics
        # sqrt has an infinite slope at 0 but a finite value.
        slope = jnp.sqrt(jnp.where(bad, 0 * jnp.sum(params[leaf]), 1.0))
        return value + slope, metrics

    return loss


def trained(loss=noisy_loss, *, optimizer=None, start=None, num_steps=60, **options):
    optimizer = optimizer or optax.adam(0.05)
    state = start or training.init_state(PARAMS, optimizer)
    options = {"seed": 3, "scan_steps": 10, **options}
    outputs = list(
        training.fit(loss, optimizer, state, STREAM, num_steps=num_steps, **options)
    )
    return outputs[-1][0], [metrics for _, metrics in outputs]


@pytest.fixture(scope="module")
def whole():
    """The state of 60 steps, ten to a dispatch."""
    return trained()[0]


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_loop_equals_the_steps_written_by_hand():
    optimizer = optax.adam(0.05)
    params, opt_state = PARAMS, optimizer.init(PARAMS)
    seen = []
    for t in range(7):
        travelling = STREAM.at(t)
        batch = {"x": jnp.asarray(X[travelling["index"]]), "step": t}
        key = jax.random.fold_in(jax.random.key(3), t)
        grads, metrics = jax.grad(noisy_loss, has_aux=True)(params, key, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        seen.append(float(metrics["error"]))
    state, metrics = trained(num_steps=7)
    chex.assert_trees_all_close(state.params, params, rtol=1e-5)
    np.testing.assert_allclose(metrics[0]["error"], np.mean(seen), rtol=1e-5)


@pytest.mark.parametrize("scan_steps", [1, 7, 100])
def test_the_number_of_steps_in_a_dispatch_changes_nothing(scan_steps, whole):
    other, metrics = trained(scan_steps=scan_steps)
    assert int(other.step) == 60
    assert len(metrics) == -(-60 // scan_steps)
    chex.assert_trees_all_close(other.params, whole.params, rtol=1e-5)


def test_a_run_that_stopped_goes_on_bit_for_bit(whole):
    half, _ = trained(num_steps=25)
    assert_same(trained(start=half)[0], whole)


def test_another_seed_is_another_run(whole):
    other, _ = trained(seed=4)
    assert not np.allclose(whole.params["offset"], other.params["offset"])


def test_parameters_of_weak_types_compile_no_second_step():
    """As jnp.full(shape, 0.5), a number, or an optimizer's state may be."""
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.01)
    params = {"offset": jnp.full(3, 0.5), "scale": 1.0}
    state = training.init_state(params, optimizer)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))
    counting = optax.GradientTransformation(lambda params: 3, None)
    count = training.init_state(params, counting).opt_state
    assert count == 3 and count.dtype == jnp.int32 and not count.weak_type
    dtypes = lambda tree: [leaf.dtype for leaf in jax.tree.leaves(tree)]
    new, _ = trained(optimizer=optimizer, start=state, num_steps=20)
    assert dtypes(new) == dtypes(state)
    num = []

    def loss(params, key, batch):
        num.append(1)
        return noisy_loss(params, key, batch)

    trained(loss, optimizer=optimizer, start=state, num_steps=10)
    once = len(num)
    trained(loss, optimizer=optimizer, start=state, num_steps=30)
    assert len(num) == 2 * once


def test_fit_compiles_once_though_the_last_dispatch_is_shorter():
    traces = []

    def loss(params, key, batch):
        traces.append(1)
        return noisy_loss(params, key, batch)

    trained(loss, num_steps=10)
    once = len(traces)
    trained(loss, num_steps=37)
    assert len(traces) == 2 * once


@pytest.mark.parametrize("loss", [noisy_loss, broken_at([13])], ids=["sound", "broken"])
def test_on_a_gpu_the_loop_knows_its_length_and_counts_the_same(monkeypatch, loss):
    on_cpu, metrics = trained(loss, num_steps=25)
    known = []
    make = training._make_dispatches

    def watched(*args):
        trusting, guarded = make(*args)
        see = lambda *given: (known.append(given[-1] is None), trusting(*given))[1]
        return training._Dispatches(see, guarded)

    monkeypatch.setattr(training, "_make_dispatches", watched)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    other, again = trained(loss, num_steps=25)
    assert known == [True, True, False]
    chex.assert_trees_all_close(other.params, on_cpu.params, rtol=1e-5)
    for a, b in zip(again, metrics, strict=True):
        chex.assert_trees_all_close(a, b, rtol=1e-5)
    # A loop of unknown length is a `while`, of a known one a `scan`.
    run = make(noisy_loss, optax.adam(0.05), STREAM, 3, 10, None).trusting
    travelling = training._stack([STREAM.at(i) for i in range(4)], 4)
    state = training.init_state(PARAMS, optax.adam(0.05))
    program = lambda n: str(jax.make_jaxpr(run)(state, STREAM.resident, travelling, n))
    assert "length=4" in program(None) and "while[" not in program(None)
    assert "while[" in program(4)


def test_the_next_batches_are_read_while_the_device_computes():
    read = []
    stream = STREAM._replace(at=lambda step: read.append(step) or STREAM.at(step))
    adam = optax.adam(0.05)
    state = training.init_state(PARAMS, adam)
    many = dict(seed=3, num_steps=25, scan_steps=10)
    seen = [len(read) for _ in training.fit(noisy_loss, adam, state, stream, **many)]
    assert seen == [20, 25, 25]  # of 10, 20 and 25 steps that are done
    assert read == list(range(25))  # each once, and none beyond the end


def test_the_callers_state_is_not_consumed():
    state = training.init_state(PARAMS, optax.adam(0.05))
    trained(start=state)
    np.testing.assert_array_equal(state.params["offset"], np.zeros(3))


def test_no_parameter_is_copied_in_a_step():
    """A dispatch copies each array of the state once, before its first step."""

    def loss(params, key, batch):
        h = batch["x"]
        for kernel in params:
            h = jnp.tanh(h @ kernel)
        return jnp.mean(h**2), {}

    adam, params = optax.adam(1e-3), [jnp.ones((60, 60))] * 3
    stream = batches.shuffled({"x": np.ones((50, 60), "f")}, batch_size=8, seed=1)
    run = training._make_dispatches(loss, adam, stream, 0, 10, None).trusting
    travelling = training._stack([stream.at(i) for i in range(4)], 4)
    state = training.init_state(params, adam)
    text = run.lower(state, stream.resident, travelling, 4).compile().as_text()
    # Parameters and Adam's two moments.
    assert len(re.findall(r"f32\[60,60\]\S* copy\(", text)) == 3 * len(params)


def test_lapack_has_one_thread_in_a_step_and_what_it_had_outside():
    """It waits for its threads while XLA's have the cores: up to 50 times as long."""
    blas = lambda: [lib for lib in threadpool_info() if lib["user_api"] == "blas"]
    threads = lambda: {lib["num_threads"] for lib in blas()}
    seen = []

    def loss(params, key, batch):
        jax.debug.callback(lambda: seen.append(threads()))
        return noisy_loss(params, key, batch)

    adam = optax.adam(0.05)
    state = training.init_state(PARAMS, adam)
    scipy.linalg.eigvalsh(np.eye(2))  # loads the library that JAX calls
    with threadpool_limits(2, user_api="blas"):
        how = {"seed": 3, "num_steps": 6, "scan_steps": 3}
        for _ in training.fit(loss, adam, state, STREAM, **how):
            assert threads() == {2}
    jax.effects_barrier()
    assert seen == 6 * [{1}]


@pytest.mark.parametrize("leaf", [None, "offset"])
@pytest.mark.parametrize("scan_steps", [1, 10])
def test_steps_that_are_not_finite_change_nothing_and_are_counted(leaf, scan_steps):
    loss = broken_at([12, 13, 17], leaf)
    optimizer = optax.adam(0.05)
    states, counts, losses = {}, [], []
    start = training.init_state(PARAMS, optimizer)
    # A state is consumed by the next iteration, so what is looked at is copied.
    for state, metrics in training.fit(
        loss, optimizer, start, STREAM, seed=3, num_steps=18, scan_steps=scan_steps
    ):
        states[int(state.step)] = jax.tree.map(np.array, state)
        counts.append(metrics["skipped"])
        losses += [metrics["loss"]] if metrics["skipped"] < scan_steps else []
    assert sum(counts) == 3 and np.isfinite(losses).all()
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(states[18]))
    if scan_steps == 1:
        assert counts[12] == counts[13] == counts[17] == 1
        assert_same(states[14][1:], states[12][1:])
        assert not np.array_equal(states[15].params["offset"], PARAMS["offset"])
        assert_same(states[18][1:], states[17][1:])


@pytest.mark.parametrize(
    "leaf, name", [(None, "the loss"), ("scale", "gradient of ['scale']")]
)
def test_a_row_of_bad_steps_stops_the_run_and_is_named(leaf, name):
    # The row crosses the border of a dispatch, after a shorter row that is forgiven.
    loss = broken_at([2, 3, 8, 9, 10, 11, 12], leaf)
    with pytest.raises(training.NonFiniteError) as caught:
        trained(loss, max_skipped=4)
    assert "4 steps in a row" in str(caught.value)
    assert "from step 8 on" in str(caught.value)
    assert name in str(caught.value)


def test_the_average_follows_its_formula():
    optimizer = training.averaging(optax.sgd(0.1), decay=0.9)
    params, state = PARAMS, optimizer.init(PARAMS)
    expected = np.zeros(3)
    for t in range(5):
        grads = jax.tree.map(lambda p, t=t: jnp.full(p.shape, t - 1.5), params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        d = min(0.9, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * np.asarray(params["offset"])
    full = training.TrainState(jnp.asarray(5), params, state)
    average = training.averaged_params(full)
    np.testing.assert_allclose(average["offset"], expected, rtol=1e-5)


def test_the_average_of_parameters_of_16_bits_has_32():
    """Or the last steps, of a thousandth of what is there, would not reach it."""
    short = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), PARAMS)
    optimizer = training.adam(1e-2, num_steps=10, ema=0.999)
    start = training.init_state(short, optimizer)
    state, _ = trained(optimizer=optimizer, start=start, num_steps=10)
    assert {a.dtype for a in jax.tree.leaves(state.params)} == {jnp.bfloat16.dtype}
    average = training.averaged_params(state)
    assert {a.dtype for a in jax.tree.leaves(average)} == {jnp.float32.dtype}
    assert jnp.abs(average["offset"]).min() > 0


def test_a_dispatch_is_no_longer_than_the_run(monkeypatch):
    """Places for a thousand million batches would not fit into memory."""
    stack, places = training._stack, []
    seen = lambda items, length: stack(items, places.append(length) or len(items))
    monkeypatch.setattr(training, "_stack", seen)
    state, metrics = trained(num_steps=5, scan_steps=10**9)
    assert places == [5] and len(metrics) == 1
    assert_same(state, trained(num_steps=5, scan_steps=5)[0])


def test_an_average_within_another_transformation_is_an_error():
    """What clips behind it would change the steps that it has averaged."""
    optimizer = optax.chain(training.averaging(optax.adam(0.1), 0.9), optax.clip(1.0))
    with pytest.raises(ValueError, match="outermost"):
        training.averaged_params(training.init_state(PARAMS, optimizer))


def test_without_averaging_the_last_parameters_are_used(whole):
    assert training.averaged_params(whole) is whole.params


def test_clipping_bounds_the_gradient_that_the_optimizer_sees():
    clipped = training.adam(0.1, num_steps=10, clip_norm=1e-3)
    state = clipped.init(PARAMS)
    grads = {"offset": jnp.array([30.0, 0.0, 40.0]), "scale": jnp.zeros(())}
    _, state = clipped.update(grads, state, PARAMS)
    mu = optax.tree_utils.tree_get(state, "mu")
    np.testing.assert_allclose(mu["offset"], 0.1 * np.array([6e-4, 0, 8e-4]), rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"clip_norm": -1.0}]
    + [{"num_steps": 0}, {"ema": 1.0}],
)
def test_wrong_optimizer_settings_are_errors(options):
    with pytest.raises(ValueError):
        training.adam(**{"learning_rate": 1e-3, "num_steps": 10, **options})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"scan_steps": 0}, "at least 1"),
        ({"max_skipped": 0}, "at least 1"),
        ({"mesh": jax.make_mesh((1,), ("x",))}, r"\('x',\), which splits nothing"),
    ],
)
def test_wrong_loop_settings_are_errors_of_the_call(options, message):
    """Not only of its first step."""
    state = training.init_state(PARAMS, optax.sgd(0.1))
    with pytest.raises(ValueError, match=message):
        training.fit(
            noisy_loss, optax.sgd(0.1), state, STREAM, seed=0, num_steps=1, **options
        )
