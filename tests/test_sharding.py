"""Training and evaluation split over devices: the same numbers, and the work split."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vi_jax import (
    bounds,
    estimators,
    likelihoods,
    models,
    networks,
    objectives,
    posteriors,
    priors,
    resumable,
    sharding,
    training,
)
from vi_jax.data import batches
from vi_jax.evaluation import log_likelihood
from vi_jax.evaluator import make_evaluator
from vi_jax.model import sampled_terms

ROOT = Path(__file__).parents[1]
X = np.random.default_rng(0).integers(0, 256, (60, 12)).astype(np.uint8)
STREAM = batches.shuffled({"image": X}, batch_size=16, seed=1)
MODEL = models.vae(
    priors.standard_normal(3),
    posteriors.normal(networks.mlp([7], 6)),
    likelihoods.bernoulli(networks.mlp([7], 12)),
)


@functools.cache
def params():
    """Some, without the wait for `init` to compile in each of many processes."""
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros(12))
    rng = np.random.default_rng(5)
    draw = lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), leaf.dtype)
    return jax.tree.map(draw, shapes)


def loss_of(k, **options):
    return objectives.batch_loss(
        MODEL,
        preprocess=lambda key, batch: batches.binarize_dynamic(key, batch["image"]),
        bound=bounds.iwae,
        estimator=estimators.dreg,
        num_samples=k,
        **options,
    )


def curve(k, mesh, *, num_steps=30, **options):
    """The loss of every step, and the parameters after the last."""
    optimizer = optax.adam(0.02)
    steps = training.fit(
        loss_of(k, **options),
        optimizer,
        training.init_state(params(), optimizer),
        STREAM,
        seed=3,
        num_steps=num_steps,
        scan_steps=1,
        mesh=mesh,
    )
    states, metrics = zip(*steps, strict=True)
    return [m["loss"] for m in metrics], jax.device_get(states[-1].params)


def log_px(mesh):
    """Of 60 examples, which 8 devices take 24 at a time, and the last time 12."""
    evaluator = make_evaluator(MODEL, num_samples=20, batch_size=3, chunk=8, mesh=mesh)
    return evaluator(params(), X).log_px


# data, samples, k, and how many of these have a backward pass
MESHES = ((8, 1, 1, None), (4, 2, 8, None), (1, 8, 8, None), (4, 2, 8, 2))


def test_what_eight_devices_give_is_what_one_gives():
    """Here on one device; there, in a process of eight virtual ones, on every mesh."""
    found = on_eight_devices("tests.test_sharding", "what_eight_devices_give")
    expected = {
        (k, few): curve(k, None, num_backward=few)
        for k, few in {mesh[2:] for mesh in MESHES}
    }
    evaluated = log_px(None)
    for data, samples, k, few in MESHES:
        there = found[f"{data} {samples} {k} {few}"]
        losses, last = expected[k, few]
        np.testing.assert_allclose(there["losses"], losses, rtol=1e-5)
        np.testing.assert_allclose(there["params"], flat(last), rtol=1e-4, atol=1e-5)
        # Of the 16 k rows of logits that one device makes, a step makes an eighth.
        assert there["rows"] == 2 * k
    np.testing.assert_allclose(found["log_px"], evaluated, rtol=1e-5)
    np.testing.assert_allclose(found["of_one"], of_one(), rtol=1e-5)


def on_eight_devices(module: str, name: str) -> dict:
    """What a function of a module prints as JSON in a process of 8 devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    command = f"from {module} import {name} as run; run()"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def what_eight_devices_give():
    assert jax.device_count() == 8
    found = {}
    for data, samples, k, few in MESHES:
        mesh = sharding.mesh(data=data, samples=samples)
        losses, last = curve(k, mesh, num_backward=few)
        found[f"{data} {samples} {k} {few}"] = {
            "losses": losses,
            "params": flat(last).tolist(),
            "rows": rows_of_logits(k, mesh),
        }
    found["log_px"] = log_px(mesh).tolist()
    with sharding.over(mesh):
        found["of_one"] = float(of_one())
    print(json.dumps(found))


def of_one():
    """log p(x) of one example, whose chunks of 8 samples a mesh may split."""
    one = jax.jit(functools.partial(log_likelihood, MODEL, num_samples=64, chunk=8))
    return one(params(), jax.random.key(7), X[0] / np.float32(255)).log_px


def rows_of_logits(k, mesh):
    """Rows of the product with the decoder's last weights in what a device runs."""
    batch = STREAM.gather(STREAM.resident, STREAM.at(0))
    loss = lambda p, batch: loss_of(k)(p, jax.random.key(0), batch)[0]
    with sharding.over(mesh):
        text = jax.jit(loss).lower(params(), batch).compile().as_text()
    shapes = re.findall(r"= f32\[([\d,]+),12\]\S* dot\(", text)
    return max(np.prod(list(map(int, s.split(",")))) for s in shapes).item()


def flat(tree):
    return np.concatenate([a.ravel() for a in jax.tree.leaves(tree)])


@pytest.mark.parametrize(
    "k, mesh, message",
    [
        (1, {"samples": 2}, "1 samples of an example .* 2 devices .* 'samples'"),
        (2, {"data": 2}, "15 examples of a batch .* 2 devices .* 'data'"),
    ],
)
def test_what_does_not_split_evenly_is_named_before_training(k, mesh, message):
    plan = resumable.Training(
        loss_of(k),
        optax.adam(0.1),
        STREAM if k == 1 else batches.shuffled({"image": X}, batch_size=15, seed=1),
        seed=0,
        num_steps=1,
        scan_steps=1,
        checkpoint_steps=1,
        validate=lambda params: {},
        mesh=sharding.mesh(**{"data": 1, **mesh}),
    )
    with pytest.raises(ValueError, match=message):
        resumable.check(plan, params())


@pytest.mark.parametrize("data, samples", [(2, 2), (0, 1), (1, 3), (-1, 1)])
def test_a_mesh_that_there_are_no_devices_for_is_an_error(data, samples):
    with pytest.raises(ValueError, match=f"data = {data} and samples = {samples}"):
        sharding.mesh(data=data, samples=samples)
    assert dict(sharding.mesh().shape) == {"data": 2, "samples": 1}


def test_a_step_that_is_not_finite_is_skipped_on_a_mesh_too():
    def loss(params, key, batch):
        error = batch["image"] / 255 - params
        value = jnp.mean(jnp.sum(error**2, -1))
        return value / jnp.where(batch["step"] == 1, 0.0, 1.0), {}

    def last(mesh):
        start = training.init_state(jnp.zeros((1, 12)), optax.sgd(0.1))
        how = {"seed": 3, "num_steps": 4, "scan_steps": 2, "mesh": mesh}
        steps = list(training.fit(loss, optax.sgd(0.1), start, STREAM, **how))
        assert [m["skipped"] for _, m in steps] == [1, 0]
        return steps[-1][0].params

    np.testing.assert_allclose(last(sharding.mesh(data=2)), last(None), rtol=1e-5)


@pytest.mark.parametrize(
    "options, mesh",
    [
        ({"accumulate": 4}, {"data": 2}),
        ({"terms": functools.partial(sampled_terms, num_chunks=2)}, None),
        (
            {"accumulate": 2, "terms": functools.partial(sampled_terms, num_chunks=4)},
            {"data": 1, "samples": 2},
        ),
    ],
)
def test_parts_of_a_batch_and_of_the_samples_sum_to_the_whole(options, mesh, whole):
    losses, last = curve(8, mesh and sharding.mesh(**mesh), num_steps=10, **options)
    np.testing.assert_allclose(losses, whole[0], rtol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, last, whole[1])


@pytest.fixture(scope="module")
def whole():
    return curve(8, None, num_steps=10)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"accumulate": 3}, "16 rows do not make 3 parts"),
        ({"accumulate": 0}, "16 rows do not make 0 parts"),
        (
            {"terms": functools.partial(sampled_terms, num_chunks=3)},
            "8 rows do not make 3 parts",
        ),
    ],
)
def test_parts_that_are_not_equal_are_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        curve(8, None, num_steps=1, **options)


def test_in_parts_keeps_the_order_of_rows_and_the_gradient():
    a = jnp.arange(24.0).reshape(12, 2)

    def f(tree):
        of_one = lambda a: {"out": jnp.sin(a).sum(), "pairs": jnp.outer(a, a)}
        return jax.vmap(of_one)(tree["a"])

    for num in (1, 3, 12):
        found = sharding.in_parts(f, num)({"a": a})
        np.testing.assert_allclose(found["out"], np.sin(a).sum(1), rtol=1e-5)
        np.testing.assert_array_equal(found["pairs"], a[:, :, None] * a[:, None])
        grad = jax.grad(
            lambda a, n=num: sharding.in_parts(f, n)({"a": a})["out"].sum()
        )(a)
        np.testing.assert_allclose(grad, np.cos(a), rtol=1e-6)


def test_chunks_hold_the_memory_of_training_down():
    """At ten times the samples at most 2.5 times, by chunks or, on CPU, by default."""

    def bytes_at(k, num_chunks=1, accumulate=1):
        wide = models.vae(
            priors.standard_normal(50),
            posteriors.normal(networks.mlp([200], 100)),
            likelihoods.bernoulli(networks.mlp([200, 200], 784)),
        )
        weights = jax.eval_shape(wide.init, jax.random.key(0), jnp.zeros(784))
        loss = objectives.batch_loss(
            wide,
            preprocess=lambda key, batch: batch["x"],
            bound=bounds.iwae,
            num_samples=k,
            accumulate=accumulate,
            terms=functools.partial(sampled_terms, num_chunks=num_chunks),
        )
        batch = {"x": jnp.zeros((100, 784)), "step": 0}
        step = jax.jit(jax.grad(lambda *a: loss(*a), has_aux=True))
        compiled = step.lower(weights, jax.random.key(0), batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    fifty = bytes_at(50)
    assert bytes_at(500, num_chunks=10) < 2.5 * fifty < bytes_at(500)
    assert bytes_at(500, accumulate=None) < 2.5 * bytes_at(50, accumulate=None)
