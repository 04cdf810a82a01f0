"""Training steps per second of a convolutional VAE: vi_jax beside PyTorch and XLA.

    python -m experiments.benchmark_conv
    python -m experiments.benchmark_conv --batch-size 20 --repeats 9

A step gathers a batch of uint8 images, 28 x 28, binarizes it anew and moves by Adam on
the ELBO (one sample, sampled KL). Kernels of 3 x 3, features 32, 64 and 64 with strides
2, 2 and 1, a dense layer of 256, 40 latents, and the mirrored decoder. It is timed in

- vi_jax: `networks.conv_encoder` and `conv_decoder`, by `training.fit`;
- step by step: the same, but one step in a dispatch;
- XLA's convolution: by hand, `lax.conv_general_dilated`, one step in a dispatch (in a
  loop on CPU it has one thread, and is slower by far);
- PyTorch: eager, fused Adam, as many threads as cores.

All start at the same parameters and index the same batches; their losses must agree and
fall before anything is timed. They take turns in one process.
"""

import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax import lax

from experiments.benchmark import compare, in_words, machine
from experiments.benchmark_peers import torch_device
from vi_jax import (
    likelihoods,
    models,
    networks,
    objectives,
    posteriors,
    priors,
    runs,
    training,
)
from vi_jax.data import batches
from vi_jax.model import Model

SHAPE, LATENTS, DENSE, LEARNING_RATE = (28, 28, 1), 40, 256, 1e-3
STRIDES = (2, 2, 1)


class Setup(NamedTuple):
    """What the contenders share."""

    scan_steps: int
    stream: batches.Batches
    params: dict  # of `vae`


def vae() -> Model:
    how = {"strides": STRIDES, "dense": (DENSE,)}
    encoder = networks.conv_encoder(SHAPE, 2 * LATENTS, channels=(32, 64, 64), **how)
    decoder = networks.conv_decoder(SHAPE, channels=(64, 64, 32), **how)
    return models.vae(
        priors.standard_normal(LATENTS),
        posteriors.normal(encoder),
        likelihoods.bernoulli(decoder),
    )


def make_setup(batch_size: int, scan_steps: int) -> Setup:
    rng = np.random.default_rng(0)
    blobs = rng.integers(0, 256, (10, 784)) * (rng.random((10, 784)) < 0.2)
    image = blobs[rng.integers(10, size=10_000)].astype(np.uint8)
    stream = batches.shuffled({"image": image}, batch_size=batch_size, seed=0)
    return Setup(scan_steps, stream, vae().init(jax.random.key(0), jnp.zeros(784)))


def with_vi_jax(setup: Setup, *, in_a_dispatch: int | None = None) -> Iterator[float]:
    """The mean loss of each turn."""
    preprocess = lambda key, batch: batches.binarize_dynamic(key, batch["image"])
    adam = optax.adam(LEARNING_RATE)
    steps = training.fit(
        objectives.batch_loss(vae(), preprocess=preprocess),
        adam,
        training.init_state(setup.params, adam),
        setup.stream,
        seed=0,
        num_steps=2**31 - 1,
        scan_steps=in_a_dispatch or setup.scan_steps,
    )
    dispatches = setup.scan_steps // (in_a_dispatch or setup.scan_steps)
    while True:
        yield np.mean([next(steps)[1]["loss"] for _ in range(dispatches)])


def by_xla(setup: Setup) -> Iterator[float]:
    """The mean loss of each turn."""
    layout = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    images, adam = jnp.array(setup.stream.resident["image"]), optax.adam(LEARNING_RATE)

    def convolve(p, x, stride: int):
        x = lax.conv_general_dilated(x, p["kernel"], (stride,) * 2, "SAME", **layout)
        return x + p["bias"]

    def grow(p, x, stride: int):
        how = {"transpose_kernel": True, **layout}
        return (
            lax.conv_transpose(x, p["kernel"], (stride,) * 2, "SAME", **how) + p["bias"]
        )

    def dense(layers, h):
        h = jax.nn.relu(h @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"])
        return h @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"]

    def loss(params, key, rows):
        key_x, key_z = jax.random.split(key)
        h = x = batches.binarize_dynamic(key_x, images[rows]).reshape(-1, *SHAPE)
        for i, stride in enumerate(STRIDES):
            h = jax.nn.relu(convolve(params["posterior"][f"Conv_{i}"], h, stride))
        layers = params["posterior"]["DenseLayers_0"]
        loc, h = jnp.split(dense(layers, h.reshape(len(x), -1)), 2, axis=-1)
        eps = jax.random.normal(key_z, loc.shape)
        z = loc + jnp.exp(0.5 * h) * eps
        p = params["likelihood"]
        logits = jax.nn.relu(dense(p["DenseLayers_0"], z)).reshape(-1, 7, 7, 64)
        for i, stride in enumerate(STRIDES[::-1]):
            logits = grow(p[f"Conv_{i}"], jax.nn.relu(logits) if i else logits, stride)
        log_lik = jnp.sum(x * logits - jax.nn.softplus(logits), (1, 2, 3))
        return -jnp.mean(log_lik + jnp.sum(0.5 * (eps**2 - z**2 + h), -1))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, rows):
        params, opt_state, t = state
        key = jax.random.fold_in(jax.random.key(0), t)
        value, grads = jax.value_and_grad(loss)(params, key, rows)
        updates, opt_state = adam.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state, t + 1), value

    params = jax.tree.map(jnp.copy, setup.params)
    state, t = (params, adam.init(params), 0), 0
    while True:
        losses = []
        for _ in range(setup.scan_steps):
            state, value = step(state, setup.stream.at(t)["index"])
            losses.append(value)
            t += 1
        yield float(jnp.mean(jnp.stack(losses)))


def with_pytorch(setup: Setup) -> Iterator[float]:
    """The mean loss of each turn."""
    import torch
    from torch.nn import functional as F

    device = torch_device()
    images = torch.from_numpy(setup.stream.resident["image"]).to(device)
    images = images.reshape(-1, 1, 28, 28)
    leaf = lambda a: torch.from_numpy(np.array(a)).contiguous().to(device)
    as_dense = lambda p: (leaf(np.transpose(p["kernel"])), leaf(p["bias"]))
    # [k, k, c, o] to [o, c, k, k]; that of a transposed one has o and c changed round.
    as_conv = lambda p: (leaf(np.transpose(p["kernel"], (3, 2, 0, 1))), leaf(p["bias"]))
    dense = lambda net: [as_dense(net["DenseLayers_0"][f"Dense_{i}"]) for i in (0, 1)]
    convs = lambda net: [as_conv(net[f"Conv_{i}"]) for i in range(3)]
    nets = [setup.params[name] for name in ("posterior", "likelihood")]
    (down, inward), (up, outward) = [(convs(net), dense(net)) for net in nets]
    leaves = jax.tree.leaves((down, inward, up, outward))
    leaves = [leaf.requires_grad_() for leaf in leaves]
    adam = torch.optim.Adam(leaves, LEARNING_RATE, fused=True)

    def loss(image):
        h = x = (255 * torch.rand(image.shape) < image).float()
        for layer, stride in zip(down, STRIDES, strict=True):
            h = F.relu(F.conv2d(h, *layer, stride=stride, padding=1))
        h = F.linear(F.relu(F.linear(h.flatten(1), *inward[0])), *inward[1])
        loc, h = h.chunk(2, -1)
        eps = torch.randn(loc.shape)
        z = loc + torch.exp(0.5 * h) * eps
        logits = F.linear(F.relu(F.linear(z, *outward[0])), *outward[1])
        logits = logits.view(-1, 64, 7, 7)
        for (kernel, bias), stride in zip(up, STRIDES[::-1], strict=True):
            how = {"stride": stride, "padding": 1, "output_padding": stride - 1}
            logits = F.conv_transpose2d(F.relu(logits), kernel, bias, **how)
        distortion = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        return (distortion - (0.5 * (eps**2 - z**2 + h)).sum()) / len(x)

    t = 0
    while True:
        losses = []
        for _ in range(setup.scan_steps):
            adam.zero_grad()
            rows = torch.from_numpy(setup.stream.at(t)["index"])
            value = loss(images[rows.to(device)])
            value.backward()
            adam.step()
            losses.append(value.detach())
            t += 1
        yield float(torch.stack(losses).mean())


CONTENDERS = {
    "vi_jax": with_vi_jax,
    "step by step": functools.partial(with_vi_jax, in_a_dispatch=1),
    "XLA's convolution": by_xla,
    "PyTorch": with_pytorch,
}


def main(
    batch_size: int = 100,
    scan_steps: int = 40,
    repeats: int = 9,
    out: Path = Path("runs/benchmark_conv"),
) -> None:
    """Time the contenders; PyTorch needs '.[bench]', and is left out without it.

    Args:
        batch_size: Images per step.
        scan_steps: Steps in one turn, which is one compiled dispatch of vi_jax.
        repeats: Turns of each contender that are timed.
        out: Folder of benchmark_conv.json.
    """
    out.mkdir(parents=True, exist_ok=True)
    setup = make_setup(batch_size, scan_steps)
    has_torch = importlib.util.find_spec("torch") is not None
    names = [name for name in CONTENDERS if name != "PyTorch" or has_torch]
    running = {name: CONTENDERS[name](setup) for name in names}
    results = compare(running, scan_steps, repeats)
    print("contender            steps/s  vi_jax / it (min-max)")
    for name, row in results.items():
        print(f"{name:20}{in_words(row)}")
    about = {"machine": machine(), "batch_size": batch_size, "scan_steps": scan_steps}
    runs.write_json(out / "benchmark_conv.json", {**about, "results": results})


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmark_conv", description=__doc__)
