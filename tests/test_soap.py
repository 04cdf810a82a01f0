"""SOAP against the same equations in numpy, and against what it is a case of."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contracts import quick_jit

from vi_jax.soap import scale_by_soap

PARAMS = {"w": np.zeros((3, 4)), "long": np.zeros((2, 9)), "b": np.zeros(4)}


def gradients(num_steps=8):
    """Gradients whose coordinates depend on one another."""
    rng = np.random.default_rng(0)
    mix = lambda d: rng.normal(size=(d, d))
    draw = lambda p: mix(len(p)) @ rng.normal(size=p.shape)
    return [{k: draw(p) for k, p in PARAMS.items()} for _ in range(num_steps)]


def directions(transformation):
    as_jax = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, float), tree)
    state = transformation.init(as_jax(PARAMS))
    update = quick_jit(transformation.update)
    found = []
    for g in gradients():
        step, state = update(as_jax(g), state)
        found.append(jax.tree.map(np.asarray, step))
    return found


def by_hand(grads, *, b1, b2, refresh, max_side):
    """The docstring's equations for one matrix, in numpy, the mean never rotated."""
    sides = [d if d <= max_side else None for d in grads[0].shape]
    bases = [np.eye(d) if d else None for d in sides]
    averages = [np.zeros((d, d)) if d else None for d in sides]
    mean, square = np.zeros_like(grads[0]), np.zeros_like(grads[0])
    into = lambda g: (
        (bases[0].T @ g if sides[0] else g)
        @ (bases[1] if sides[1] else np.eye(g.shape[1]))
    )
    out = []
    for t, g in enumerate(grads, start=1):
        for i, product in enumerate((g @ g.T, g.T @ g)):
            if sides[i]:
                averages[i] = b2 * averages[i] + (1 - b2) * product
                if t == 1 or t % refresh == 0:
                    bases[i] = np.linalg.qr(averages[i] @ bases[i])[0]
        mean = b1 * mean + (1 - b1) * g
        square = b2 * square + (1 - b2) * into(g) ** 2
        step = into(mean) / (1 - b1**t) / (np.sqrt(square / (1 - b2**t)) + 1e-8)
        step = bases[0] @ step if sides[0] else step
        out.append(step @ bases[1].T if sides[1] else step)
    return out


def test_it_is_its_equations():
    how = {"b1": 0.9, "b2": 0.95, "refresh": 3, "max_side": 4}
    with jax.enable_x64(True):
        found = directions(scale_by_soap(**how))
    for name in ("w", "long"):
        expected = by_hand([g[name] for g in gradients()], **how)
        got = [f[name] for f in found]
        np.testing.assert_allclose(got[1:], expected[1:], rtol=1e-9)
        # The first gradient leaves directions empty but for rounding, over eps.
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)


@pytest.mark.parametrize("name", PARAMS)
def test_without_rotation_it_is_adam(name):
    adam = directions(optax.scale_by_adam(0.9, 0.95))
    soap = directions(scale_by_soap(0.9, 0.95, max_side=1))
    for a, b in zip(adam, soap, strict=True):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-5)


def test_a_vector_is_never_rotated():
    adam = directions(optax.scale_by_adam(0.9, 0.95))
    soap = directions(scale_by_soap(0.9, 0.95))
    for a, b in zip(adam, soap, strict=True):
        np.testing.assert_allclose(a["b"], b["b"], rtol=1e-5)


def test_it_falls_faster_than_adam_along_rotated_valleys():
    """f = |A W B|^2 / 2 of 20 random A and B, condition number 1e8, after 200 steps.

    Of one pair the rounding of a chip decides: the ratio is 0.1 to 400. Its geometric
    mean is 23 on one.
    """

    def problem(seed):
        rng = np.random.default_rng(seed)
        turn = lambda: np.linalg.qr(rng.normal(size=(6, 6)))[0]
        scales = np.diag(np.logspace(0, -2, 6))
        return [np.float32(turn() @ scales @ turn()) for _ in range(2)]

    pairs = np.array([problem(seed) for seed in range(20)])

    def final(direction):
        optimizer = optax.chain(direction, optax.scale(-0.02))

        def run(pair):
            loss = lambda w: 0.5 * jnp.sum((pair[0] @ w @ pair[1]) ** 2)

            def step(_, carry):
                w, state = carry
                updates, state = optimizer.update(jax.grad(loss)(w), state)
                return w + updates, state

            w = jnp.ones((6, 6))
            return loss(jax.lax.fori_loop(0, 200, step, (w, optimizer.init(w)))[0])

        return np.log(jax.jit(lambda pairs: jax.lax.map(run, pairs))(pairs))

    fewer = final(optax.scale_by_adam()) - final(scale_by_soap(refresh=5))
    assert np.exp(fewer.mean()) > 5


def test_bfloat16_parameters_are_moved_as_float32_ones():
    """Their gradients are exact in float32: the steps differ in the last rounding."""
    soap = scale_by_soap(refresh=1)
    short = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), PARAMS)
    as_long = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float32), tree)
    states, update = (
        [soap.init(short), soap.init(as_long(short))],
        quick_jit(soap.update),
    )
    for g in gradients(4):
        g = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), g)
        steps, states[0] = update(g, states[0])
        expected, states[1] = update(as_long(g), states[1])
        assert {a.dtype for a in jax.tree.leaves(steps)} == {jnp.dtype(jnp.bfloat16)}
        for a, b in zip(*map(jax.tree.leaves, (steps, expected)), strict=True):
            np.testing.assert_array_equal(a, b.astype(jnp.bfloat16))


def test_no_parameters_are_no_steps():
    soap = scale_by_soap()
    steps, state = soap.update({}, soap.init({}))
    assert steps == {} and state.count == 1 and state.parameters == ()


@pytest.mark.parametrize(
    "how", [{"b1": 1.0}, {"b2": -0.1}, {"refresh": 0}, {"max_side": 0}]
)
def test_settings_out_of_range_are_errors(how):
    with pytest.raises(ValueError, match="needed: 0 <= b1, b2 < 1"):
        scale_by_soap(**how)


def test_the_kernel_of_a_convolution_is_taken_as_a_matrix():
    kernel = {"k": jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 5)))}
    matrix = jax.tree.map(lambda a: a.reshape(24, 5), kernel)
    soap = scale_by_soap(refresh=1, max_side=5)
    step = lambda tree: quick_jit(soap.update)(tree, soap.init(tree))[0]["k"]
    np.testing.assert_allclose(step(kernel).reshape(24, 5), step(matrix), rtol=1e-6)
    # And it is rotated: Adam's first step is the sign of the gradient.
    assert (abs(abs(step(kernel)) - 1) > 0.1).any()


def test_products_are_in_full_float32_on_every_device():
    """In the short floats of accelerators the bases would lose their right angles."""
    t, g = scale_by_soap(), jax.tree.map(jnp.asarray, gradients(1)[0])
    text = jax.jit(t.update).lower(g, t.init(g)).as_text()
    products = re.findall(r"stablehlo.dot_general.*", text)
    assert len(products) > 4
    assert all("precision = [HIGHEST, HIGHEST]" in product for product in products)
