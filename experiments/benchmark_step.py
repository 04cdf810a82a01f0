"""The step of `benchmark`, in vi_jax and by hand, and what all contenders share."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vi_jax import (
    bounds,
    estimators,
    likelihoods,
    models,
    networks,
    objectives,
    posteriors,
    priors,
    training,
)
from vi_jax.data import batches

IMAGES, PIXELS, LATENTS, LEARNING_RATE, SEED = 60_000, 784, 50, 1e-3, 0


class Setup(NamedTuple):
    """What the contenders share."""

    k: int
    batch_size: int
    scan_steps: int
    stream: batches.Batches
    params: dict  # of the vi_jax model, numpy leaves
    layers: tuple[list, list]  # the same: (kernel, bias)s of the encoder, the decoder


def make_setup(k: int, batch_size: int, scan_steps: int) -> Setup:
    rng = np.random.default_rng(SEED)
    wave = np.cos(np.pi * np.outer(np.arange(5), np.arange(28) + 0.5) / 28)
    basis = np.einsum("ai,bj->abij", wave, wave).reshape(-1, PIXELS).astype("f")
    field = rng.standard_normal((IMAGES, len(basis)), "f") @ basis
    # As in MNIST, about 19% of the pixels are not 0 and the mean is about 33.
    image = np.clip(160 * (field - np.quantile(field[:1000], 0.81)), 0, 255)
    columns = {"image": image.astype(np.uint8)}
    stream = batches.shuffled(columns, batch_size=batch_size, seed=SEED)
    params = vae().init(jax.random.key(SEED), jnp.zeros(PIXELS))
    params = jax.tree.map(np.asarray, params)
    layers = lambda net: [(net[d]["kernel"], net[d]["bias"]) for d in sorted(net)]
    both = layers(params["posterior"]), layers(params["likelihood"])
    return Setup(k, batch_size, scan_steps, stream, params, both)


def vae():
    return models.vae(
        priors.standard_normal(LATENTS),
        posteriors.normal(networks.mlp([200, 200], 2 * LATENTS)),
        likelihoods.bernoulli(networks.mlp([200, 200], PIXELS)),
    )


def with_vi_jax(setup: Setup, **how) -> Iterator[float]:
    """The mean loss of each turn; `how` is for `batch_loss`."""
    loss = objectives.batch_loss(
        vae(),
        preprocess=lambda key, batch: batches.binarize_dynamic(key, batch["image"]),
        bound=bounds.iwae,
        estimator=estimators.reparam,
        num_samples=setup.k,
        **how,
    )
    adam = optax.adam(LEARNING_RATE)
    state = training.init_state(jax.tree.map(jnp.array, setup.params), adam)
    many = dict(seed=SEED, num_steps=10**9, scan_steps=setup.scan_steps)
    for _, metrics in training.fit(loss, adam, state, setup.stream, **many):
        yield metrics["loss"]


def by_hand(setup: Setup) -> Iterator[float]:
    def loss(layers, key, image):
        key_x, key_z = jax.random.split(key)
        x = draw(key_x, image)
        loc, h = jnp.split(mlp(layers[0], x), 2, axis=-1)
        log_scale = 0.5 * h
        eps = jax.random.normal(key_z, (setup.k, *loc.shape))
        z = loc + jnp.exp(log_scale) * eps
        logits = mlp(layers[1], z)
        log_lik = jnp.sum(x * logits - jax.nn.softplus(logits), -1)
        log_w = log_lik + jnp.sum(0.5 * (eps**2 - z**2) + log_scale, -1)  # [k, b]
        return -jnp.mean(jax.nn.logsumexp(log_w, 0) - np.log(setup.k))

    def step(carry, key, image):
        layers, opt_state = carry
        value, grads = jax.value_and_grad(loss)(layers, key, image)
        updates, opt_state = adam.update(grads, opt_state)
        return (optax.apply_updates(layers, updates), opt_state), value

    adam, layers = optax.adam(LEARNING_RATE), jax.tree.map(jnp.array, setup.layers)
    return scanned(setup, step, (layers, adam.init(layers)))


def draw(key, image):
    return jax.random.bernoulli(key, image / 255.0).astype(jnp.float32)


def mlp(layers, h):
    for kernel, bias in layers[:-1]:
        h = jnp.tanh(h @ kernel + bias)
    return h @ layers[-1][0] + layers[-1][1]


def scanned(setup: Setup, step: Callable, carry) -> Iterator[float]:
    """The mean loss of each turn of `step(carry, key, image) -> (carry, loss)`."""

    @functools.partial(jax.jit, donate_argnums=0)
    def turn(carry, key, images, index):
        def body(carry, now):
            key, rows = now
            return step(carry, key, jnp.take(images, rows, axis=0, mode="clip"))

        keys = jax.random.split(key, len(index))
        carry, losses = jax.lax.scan(body, carry, (keys, index))
        return carry, jnp.mean(losses)

    images = jnp.array(setup.stream.resident["image"])
    for first, index in turns(setup):
        key = jax.random.fold_in(jax.random.key(SEED), first)
        carry, loss = turn(carry, key, images, index)
        yield float(loss)


def turns(setup: Setup) -> Iterator[tuple[int, np.ndarray]]:
    """The first step of each turn and the rows of its batches, int32 [s, b]."""
    s, first = setup.scan_steps, 0
    while True:
        yield first, np.stack([setup.stream.at(first + i)["index"] for i in range(s)])
        first += s


def matmul_limit(setup: Setup) -> Iterator[None]:
    def products(h, kernels):
        y, pull = jax.vjp(lambda h, ws: functools.reduce(jnp.matmul, ws, h), h, kernels)
        return pull(y)

    @jax.jit
    def turn(inputs, kernels):
        def body(i, _):
            # Inputs that change with the step, else the products would leave the loop.
            x, z = (a[i % 8] for a in inputs)
            # No gradient of x: the step has no such product either.
            return products(x, kernels[0])[1], products(z, kernels[1])

        return jax.lax.fori_loop(1, setup.scan_steps, body, body(0, None))

    shapes = [(8, b := setup.batch_size, PIXELS), (8, b * setup.k, LATENTS)]
    inputs = [jax.random.normal(jax.random.key(SEED), shape) for shape in shapes]
    kernels = [[jnp.array(kernel) for kernel, _ in net] for net in setup.layers]
    while True:
        jax.block_until_ready(turn(inputs, kernels))
        yield None
