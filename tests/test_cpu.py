"""Products over one axis, random bits in one pass: the same results, in any program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.extend import core
from jax.sharding import PartitionSpec as P

from vi_jax import cpu, evaluator, sharding, training
from vi_jax.cpu import for_cpu
from vi_jax.data import batches
from vi_jax.networks.convolution import downsample, upsample

pytestmark = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="elsewhere programs stay as they are"
)

ROWS = (3, 4)  # of two `vmap`s


def layers(w, x):
    """Two layers of one vector, mapped over n and k."""
    one = lambda x: jnp.tanh(jnp.tanh(x @ w["in"]) @ w["out"])
    return jnp.sum(jax.vmap(jax.vmap(one))(x) ** 2)


def under(transform):
    """The layers within something that has a program of its own."""

    def loss(w, x):
        return transform(lambda w: layers(w, x), w)

    return loss


def in_scan(f, w):
    def body(total, scale):
        value, grads = jax.value_and_grad(f)(jax.tree.map(lambda a: scale * a, w))
        more = sum(jnp.sum(g**2) for g in jax.tree.leaves(grads))
        return total + value + more, None

    # The carry begins as a Python number, of weak type.
    return lax.scan(body, 0.0, jnp.arange(1.0, 4.0))[0]


def in_while(f, w):
    grow = lambda s: (s[0] + 1, s[1] + jax.grad(f)(w)["in"].sum() * s[0])
    start = (jnp.int32(0), jnp.zeros((), w["in"].dtype))
    # No gradient goes through a while loop: that of the rest is enough.
    return lax.stop_gradient(lax.while_loop(lambda s: s[0] < 3, grow, start)[1]) * f(w)


@jax.custom_vjp
def clipped(x):
    return x


clipped.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -0.1, 0.1),))

PROGRAMS = {
    "vmaps": layers,
    "jit": under(lambda f, w: jax.jit(f)(w)),
    "checkpoint": under(lambda f, w: jax.checkpoint(f)(w)),
    "scan": under(in_scan),
    "while": under(in_while),
    "cond": under(lambda f, w: lax.cond(w["in"][0, 0] > 0, f, lambda w: -f(w), w)),
    "custom_vjp": under(lambda f, w: clipped(f(w))),
    # Steps whose parameters are NamedTuples.
    "gather and convolution": under(
        lambda f, w: (
            f({**w, "in": w["in"][jnp.array([0, 2, 2, 1, 4])]})
            + jnp.sum(
                lax.conv(w["in"][None, None], w["out"][None, None], (1, 1), "SAME")
            )
        )
    ),
    "second derivative": under(
        lambda f, w: sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(f)(w)))
    ),
}


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def arguments():
    rng = np.random.default_rng(0)
    w = {"in": rng.normal(size=(5, 6)), "out": rng.normal(size=(6, 2))}
    return jax.tree.map(jnp.asarray, w), jnp.asarray(rng.normal(size=(*ROWS, 5)))


def sums(program) -> list[int]:
    """Over how many axes each product of a program sums, those of loops included."""
    found = []
    for step in program.eqns:
        if step.primitive is lax.dot_general_p:
            found.append(len(step.params["dimension_numbers"][0][0]))
    return found + [n for inner in core.subjaxprs(program) for n in sums(inner)]


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_gradient_is_the_same_and_sums_over_one_axis(float64, name):
    plain = jax.value_and_grad(PROGRAMS[name])
    for here in (plain, jax.jit(plain)):
        expected, found = here(*arguments()), for_cpu(here)(*arguments())
        same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12)
        jax.tree.map(same, found, expected)
    before = sums(jax.make_jaxpr(plain)(*arguments()).jaxpr)
    after = sums(jax.make_jaxpr(for_cpu(plain))(*arguments()).jaxpr)
    assert max(before) == 2 and max(after) == 1
    assert len(before) == len(after)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("convolve", [downsample, upsample])
def test_the_gradient_of_a_convolution_is_the_same(float64, convolve, stride):
    """Batches of images: the sum is over the image, its rows and its columns."""
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(2, 6, 4, 3)))
    shape = (3, 3, 3, 5) if convolve is downsample else (3, 3, 5, 3)

    def loss(kernel, x):
        y = jax.vmap(lambda x: convolve(x, kernel, stride))(x)
        return jnp.sum(jnp.sin(y)), y

    kernel = jnp.asarray(rng.normal(size=shape))
    gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
    expected, found = gradient(kernel, x), for_cpu(gradient)(kernel, x)
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)
    jax.tree.map(same, found, expected)
    program = jax.make_jaxpr(for_cpu(gradient))(kernel, x)
    assert max(sums(program.jaxpr)) == 1


def test_a_program_over_devices_is_left_as_it_is():
    """Its axes are not known outside of it."""
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    over = functools.partial(jax.shard_map, mesh=mesh, in_specs=P("d"), out_specs=P())
    w, x = arguments()
    f = over(lambda x: lax.psum(jnp.einsum("abi,abj->ij", x, x), "d"))
    outer = lambda x: jnp.einsum("abi,abj->ij", x, x) + jax.jit(f)(x)
    np.testing.assert_allclose(for_cpu(outer)(x), outer(x), rtol=1e-5)


def test_a_sum_over_nothing_is_zero():
    nothing = jnp.zeros((3, 0, 5))
    f = lambda x: jnp.einsum("abi,abj->ij", x, x)
    np.testing.assert_array_equal(for_cpu(f)(nothing), np.zeros((5, 5)))


def test_other_products_are_left_as_they_are():
    """Batched ones, sums over other than the leading axes, and over one."""

    def several(a, b):
        return (
            jnp.einsum("nki,nkj->nij", a, b),
            jnp.einsum("nki,ijn->kj", a, jnp.moveaxis(b, 0, 2)[:2]),
            lax.dot_general(a, b, (((0, 1), (1, 0)), ((), ()))),
            lax.dot_general(a, b, (((1, 0), (0, 1)), ((), ()))),
            a[0] @ b[0],
        )

    rng = np.random.default_rng(2)
    a, b = (jnp.asarray(rng.normal(size=(2, 2, d)), "f") for d in (2, 3))
    text = lambda f: str(jax.make_jaxpr(f)(a, b))
    assert text(for_cpu(several)) == text(several)


def test_it_can_be_used_under_jit_and_differentiated(float64):
    w, x = arguments()
    both = jax.jit(jax.grad(for_cpu(layers)))(w, x)
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12)
    jax.tree.map(same, both, jax.grad(layers)(w, x))


@pytest.mark.parametrize("rows", [(3, 4), (12,), (20, 25), (500,)])
@pytest.mark.parametrize("widths", [(6, 5), (5, 6), (1, 3)])
def test_products_asked_in_bfloat16_are(rows, widths):
    """Exactly those of the rounded factors, but for the sums, which are float32."""
    rng = np.random.default_rng(3)
    sizes = widths, (*rows, widths[0]), (*rows, widths[1])
    w, x, g = (jnp.asarray(rng.normal(size=size), "f") for size in sizes)
    rounded = lambda a: np.asarray(a.astype(jnp.bfloat16), float)
    of_w = lambda tensordot, x, g: tensordot(x, g, axes=[[*range(len(rows))]] * 2)

    def products(w, x, g):
        y, pull = jax.vjp(lambda w, x: jnp.einsum("...i,ij->...j", x, w), w, x)
        # Both ways round, since XLA takes a transposition into the product.
        return y, *pull(g), of_w(jnp.tensordot, x, g), of_w(jnp.tensordot, g, x)

    with jax.default_matmul_precision("BF16_BF16_F32"):
        found = jax.jit(for_cpu(products))(w, x, g)
    a, b, c = map(rounded, (w, x, g))
    expected = [b @ a, of_w(np.tensordot, b, c), c @ a.T]
    expected += [expected[1], expected[1].T]
    exact = jax.jit(products)(w, x, g)
    for ours, short, full in zip(found, expected, exact, strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, short, rtol=1e-5, atol=3e-5)
        assert abs(ours - full).max() > 1e-3


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("int32", 257), ("float16", 1 + 2**-9), ("bfloat16", 1.5), ("complex64", 257j)],
)
def test_products_of_other_types_are_those_of_xla(dtype, value):
    a = jnp.full((500, 2), value, dtype)
    of_rows = lambda a: jnp.tensordot(a, a, axes=[[0], [0]])
    with jax.default_matmul_precision("BF16_BF16_F32"):
        found, expected = for_cpu(of_rows)(a), of_rows(a)
        text = lambda f: str(jax.make_jaxpr(f)(a))
        assert text(for_cpu(of_rows)) == text(of_rows)
    np.testing.assert_array_equal(found, expected)


def test_a_factor_is_rounded_once_for_all_products_that_read_it():
    """Else XLA may take the same layers, written twice, for different ones."""
    w, x = jnp.ones((5, 5)), jnp.ones((4, 5))
    with jax.default_matmul_precision("BF16_BF16_F32"):
        text = str(jax.make_jaxpr(for_cpu(lambda w, x: (x @ w, x @ w, w @ w)))(w, x))
    assert text.count("new_dtype=bfloat16") == 2


@pytest.mark.parametrize("name", ["highest", "float32", "bfloat16", "tensorfloat32"])
def test_other_precisions_leave_a_product_as_it_is(name):
    """On CPU JAX's `bfloat16` is a lower bound, which float32 keeps."""
    a = jnp.asarray(np.random.default_rng(4).normal(size=(4, 4)), "f")
    with jax.default_matmul_precision(name):
        product = lambda a: a @ a
        text = lambda f: str(jax.make_jaxpr(f)(a))
        assert text(for_cpu(product)) == text(product)


def test_products_that_ask_for_all_of_float32_keep_it():
    """The knob is for training's products: those that ask for the highest have it."""
    a = jnp.asarray(np.random.default_rng(5).normal(size=(4, 4)), "f")

    @jax.default_matmul_precision("highest")
    def full(a):
        return a @ a

    # `lax.dot`, as in Linen's layers, does not say of what type its result is.
    with jax.default_matmul_precision("BF16_BF16_F32"):
        found = for_cpu(lambda a: (full(a), a @ a, lax.dot(a, a)))(a)
    np.testing.assert_array_equal(found[0], full(a))
    np.testing.assert_array_equal(found[1], found[2])
    assert abs(found[1] - full(a)).max() > 1e-3
    assert {y.dtype for y in found} == {jnp.dtype("float32")}


def test_training_runs_the_rewritten_gradient(monkeypatch):
    """On one device: over a mesh a product may be split along either of its axes."""
    found = []

    def seen(f):
        def run(*args):
            program = jax.make_jaxpr(rewritten := for_cpu(f))(*args)
            found.append(
                (max(sums(jax.make_jaxpr(f)(*args).jaxpr)), sums(program.jaxpr))
            )
            return rewritten(*args)

        return run

    monkeypatch.setattr(cpu, "for_cpu", seen)
    w, x = jax.tree.map(lambda a: jnp.asarray(a, "f"), arguments())
    loss = lambda w, key, batch: (layers(w, x), {})
    sgd = optax.sgd(1e-3)
    how = {"seed": 0, "num_steps": 1, "scan_steps": 1}
    for mesh in (None, sharding.mesh(data=1)):
        state = training.init_state(w, sgd)
        next(training.fit(loss, sgd, state, batches.no_data(), mesh=mesh, **how))
        assert len(found) == 1
    before, after = found[0]
    assert before == 2 and max(after) == 1


def test_evaluation_runs_the_rewritten_program(monkeypatch):
    """On one device, likewise."""
    found = []
    monkeypatch.setattr(evaluator, "for_cpu", lambda f: found.append(f) or for_cpu(f))
    one = lambda params, key, x, c: params * x + jax.random.normal(key)
    x = np.arange(6.0, dtype="f")
    plain = evaluator.over_examples(one, progress=False, mesh=sharding.mesh(data=1))
    expected = plain(2.0, x)
    assert not found
    np.testing.assert_array_equal(
        evaluator.over_examples(one, progress=False)(2.0, x), expected
    )
    assert len(found) == 1


def test_on_other_devices_nothing_is_done(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert for_cpu(layers) is layers


DRAWS = {
    "bits": lambda key: jax.random.bits(key, (5, 3)),
    "one": lambda key: jax.random.bits(key),
    "none": lambda key: jax.random.bits(key, (0, 2)),
    "bytes": lambda key: jax.random.bits(key, (7,), jnp.uint8),
    "normal": lambda key: jax.random.normal(key, (64, 33)),
    "coins": lambda key: jax.random.bernoulli(key, 0.3, (100,)),
    "classes": lambda key: jax.random.categorical(key, jnp.zeros((4, 9))),
    "gamma": lambda key: jax.random.gamma(key, jnp.array([0.5, 3.0, 10.0])),
    "poisson": lambda key: jax.random.poisson(key, 3.0, (20,)),
    "of many keys": lambda key: jax.vmap(lambda k: jax.random.normal(k, (6,)))(
        jax.random.split(key, (3, 4)).reshape(-1)
    ),
    "of a grid of keys": lambda key: jax.vmap(jax.vmap(jax.random.uniform))(
        jax.random.split(key, (3, 4))
    ),
    "in a scan": lambda key: lax.scan(
        lambda k, _: (jax.random.fold_in(k, 1), jax.random.normal(k, (5,))),
        key,
        length=3,
    )[1],
}


OTHER = [("rbg", name) for name in DRAWS if name != "poisson"]  # of threefry only


@pytest.mark.parametrize(
    ("impl", "name"), [*(("threefry2x32", n) for n in DRAWS), *OTHER]
)
def test_every_draw_is_that_of_jax(impl, name):
    draw, key = DRAWS[name], jax.random.key(7, impl=impl)
    with jax.debug_key_reuse(False):
        found, expected = jax.jit(for_cpu(draw))(key), jax.jit(draw)(key)
    np.testing.assert_array_equal(found, expected)


def test_the_other_way_to_count_is_left_as_it_is():
    draw, key = lambda key: jax.random.bits(key, (9,)), jax.random.key(0)
    with jax.debug_key_reuse(False):
        with jax.threefry_partitionable(False):
            found = jax.jit(for_cpu(draw))(key)
            np.testing.assert_array_equal(found, draw(key))
        assert np.any(found != draw(key))


def test_a_key_that_is_used_twice_is_still_found():
    twice = lambda key: jax.random.normal(key) + jax.random.uniform(key)
    with jax.debug_key_reuse(True), pytest.raises(jax.errors.KeyReuseError):
        jax.jit(for_cpu(twice))(jax.random.key(0))


def test_random_bits_are_drawn_once_and_without_a_loop():
    """What the rewriting is for: one branch, no `while`, whatever reads the bits."""

    def draw(key):
        z = jax.random.normal(key, (1000,))
        return jnp.sum(z), jnp.sum(z**2), jnp.max(z)

    key = jax.random.key(0)
    compiled = lambda f: jax.jit(f).lower(key).compile().as_text()
    with jax.debug_key_reuse(False):
        assert " while(" in compiled(draw)
        text = compiled(for_cpu(draw))
    assert " while(" not in text and text.count(" conditional(") == 1
