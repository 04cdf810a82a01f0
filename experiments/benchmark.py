"""Training steps per second: vi_jax beside other ways to write the same step.

    python -m experiments.benchmark --k 1 50 --batch-size 100 --repeats 7
    python -m experiments.benchmark --k 1 --scan-steps 20 --repeats 2 --out runs/quick

One step: gather a batch of uint8 images that lie in memory, binarize it anew, the bound
of Burda et al. 2016 (arXiv:1509.00519) with k samples on their net of one stochastic
layer, 784-200-200-50 and back, its reparametrised gradient, Adam; all in float32.

- vi_jax: `training.fit`, with its metrics and its search for what is not finite.
- by hand: one flat JAX function with lax.scan and optax: what the library costs.
- NumPyro: SVI with Trace_ELBO (k = 1) or RenyiELBO(alpha=0), in the same lax.scan.
- PyTorch: eager, with the fused Adam, on the CPU.
- matmul limit: the matrix products of the step, forward and backward, in JAX alone.

All start at the same parameters, see the same batches and pay for their indices; those
in JAX share the library's binarization. Their losses must agree and fall before they
are timed. They take turns of --scan-steps steps, forth and back, in one process, and a
ratio is taken within a repeat. The images are synthetic, with MNIST's share of ink.
Into --out go benchmark.json, with the machine, and benchmark.png.
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure

from vi_jax import (
    bounds,
    estimators,
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

IMAGES, PIXELS, LATENTS, LEARNING_RATE = 60_000, 784, 50, 1e-3


@dataclasses.dataclass(frozen=True)
class Knobs:
    """What is timed."""

    k: tuple[int, ...] = (1, 50)
    """Samples of z per image, one comparison for each."""
    batch_size: int = 100
    """Images per step."""
    scan_steps: int = 200
    """Steps in one turn, which is one compiled dispatch in JAX."""
    repeats: int = 7
    """Turns of each contender that are timed."""
    threads: int = 2
    """Threads of PyTorch; JAX takes every core it may use."""
    seed: int = 0
    """Of the images, their order, the initial parameters and the draws."""
    out: Path = Path("runs/benchmark")
    """Folder of benchmark.json and benchmark.png."""


class Setup(NamedTuple):
    """What the contenders share."""

    knobs: Knobs
    k: int
    stream: batches.Batches
    params: dict  # of the vi_jax model, numpy leaves
    layers: tuple[list, list]  # the same as (kernel, bias): of the encoder, the decoder


def make_setup(knobs: Knobs, k: int) -> Setup:
    """Smooth images, uint8 [n, 784], about 19% non-zero, and the first parameters."""
    rng = np.random.default_rng(knobs.seed)
    wave = np.cos(np.pi * np.outer(np.arange(5), np.arange(28) + 0.5) / 28)
    basis = np.einsum("ai,bj->abij", wave, wave).reshape(-1, PIXELS).astype("f")
    field = rng.standard_normal((IMAGES, len(basis)), "f") @ basis
    image = np.clip(40 * (field - np.quantile(field[:1000], 0.81)), 0, 255)
    columns = {"image": image.astype(np.uint8)}
    stream = batches.shuffled(columns, batch_size=knobs.batch_size, seed=knobs.seed)
    params = _vae().init(jax.random.key(knobs.seed), jnp.zeros(PIXELS))
    params = jax.tree.map(np.asarray, params)
    layers_of = lambda net: [(net[d]["kernel"], net[d]["bias"]) for d in sorted(net)]
    layers = layers_of(params["posterior"]), layers_of(params["likelihood"])
    return Setup(knobs, k, stream, params, layers)


def _vae():
    return models.vae(
        priors.standard_normal(LATENTS),
        posteriors.normal(networks.mlp([200, 200], 2 * LATENTS)),
        likelihoods.bernoulli(networks.mlp([200, 200], PIXELS)),
    )


def with_vi_jax(setup: Setup) -> Iterator[float]:
    loss = objectives.batch_loss(
        _vae(),
        preprocess=lambda key, batch: batches.binarize_dynamic(key, batch["image"]),
        bound=bounds.iwae,
        estimator=estimators.reparam,
        num_samples=setup.k,
    )
    optimizer = optax.adam(LEARNING_RATE)
    steps = training.fit(
        loss,
        optimizer,
        training.init_state(jax.tree.map(jnp.array, setup.params), optimizer),
        setup.stream,
        seed=setup.knobs.seed,
        num_steps=10**9,
        scan_steps=setup.knobs.scan_steps,
    )
    return (metrics["loss"] for _, metrics in steps)


def by_hand(setup: Setup) -> Iterator[float]:
    optimizer = optax.adam(LEARNING_RATE)

    def loss(layers, key, image):
        encoder, decoder = layers
        key_x, key_z = jax.random.split(key)
        x = batches.binarize_dynamic(key_x, image)
        loc, h = jnp.split(_mlp(encoder, x), 2, axis=-1)
        log_scale = 7.5 * jnp.tanh(h / 15)
        eps = jax.random.normal(key_z, (setup.k, *loc.shape))
        z = loc + jnp.exp(log_scale) * eps
        logits = _mlp(decoder, z)
        log_lik = jnp.sum(x * logits - jax.nn.softplus(logits), -1)
        log_w = log_lik + jnp.sum(0.5 * (eps**2 - z**2) + log_scale, -1)  # [k, b]
        return -jnp.mean(jax.nn.logsumexp(log_w, 0) - np.log(setup.k))

    def step(carry, key, image):
        layers, opt_state = carry
        value, grads = jax.value_and_grad(loss)(layers, key, image)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(layers, updates), opt_state), value

    layers = jax.tree.map(jnp.array, setup.layers)
    return _scanned(setup, step, (layers, optimizer.init(layers)))


def _mlp(layers, h):
    for kernel, bias in layers[:-1]:
        h = jnp.tanh(h @ kernel + bias)
    return h @ layers[-1][0] + layers[-1][1]


def _scanned(setup: Setup, step: Callable, carry) -> Iterator[float]:
    """The mean loss of each turn of `step(carry, key, image) -> (carry, loss)`."""
    images = jnp.array(setup.stream.resident["image"])

    @functools.partial(jax.jit, donate_argnums=0)
    def turn(carry, key, images, index):
        def body(carry, now):
            key, rows = now
            return step(carry, key, jnp.take(images, rows, axis=0, mode="clip"))

        keys = jax.random.split(key, len(index))
        carry, losses = jax.lax.scan(body, carry, (keys, index))
        return carry, jnp.mean(losses)

    for first, index in _turns(setup):
        key = jax.random.fold_in(jax.random.key(setup.knobs.seed), first)
        carry, loss = turn(carry, key, images, index)
        yield float(loss)


def _turns(setup: Setup) -> Iterator[tuple[int, np.ndarray]]:
    """The first step of each turn and the rows of its batches, int32 [s, b]."""
    s, first = setup.knobs.scan_steps, 0
    while True:
        yield first, np.stack([setup.stream.at(first + i)["index"] for i in range(s)])
        first += s


def with_numpyro(setup: Setup) -> Iterator[float]:
    import numpyro
    from numpyro import distributions as dist, infer

    b, (encoder, decoder) = setup.knobs.batch_size, setup.layers

    def model(x):
        with numpyro.plate("batch", b):
            prior = dist.Normal(jnp.zeros(LATENTS), 1.0).to_event(1)
            logits = _mlp(numpyro.param("p", decoder), numpyro.sample("z", prior))
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x):
        loc, h = jnp.split(_mlp(numpyro.param("q", encoder), x), 2, axis=-1)
        scale = jnp.exp(7.5 * jnp.tanh(h / 15))
        with numpyro.plate("batch", b):
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    objective = infer.Trace_ELBO() if setup.k == 1 else infer.RenyiELBO(0, setup.k)
    # A sum over the batch, as is NumPyro's way: Adam's steps do not see the factor.
    svi = infer.SVI(model, guide, optax.adam(LEARNING_RATE), objective)

    def step(state, key, image):
        state, loss = svi.update(state, batches.binarize_dynamic(key, image))
        return state, loss / b

    start = svi.init(jax.random.key(setup.knobs.seed), jnp.zeros((b, PIXELS)))
    return _scanned(setup, step, start)


def with_pytorch(setup: Setup) -> Iterator[float]:
    import torch

    torch.set_num_threads(setup.knobs.threads)
    torch.manual_seed(setup.knobs.seed)
    images = torch.from_numpy(setup.stream.resident["image"])
    leaf = lambda a: torch.from_numpy(a.T.copy()).requires_grad_()  # as in nn.Linear
    layers = jax.tree.map(leaf, setup.layers)
    optimizer = torch.optim.Adam(jax.tree.leaves(layers), LEARNING_RATE, fused=True)

    def step(rows):
        optimizer.zero_grad()
        loss = _pytorch_loss(layers, images[rows], setup.k)
        loss.backward()
        optimizer.step()
        return loss.detach()

    for _, index in _turns(setup):
        losses = [step(rows) for rows in torch.from_numpy(index)]
        yield float(torch.stack(losses).mean())


def _pytorch_loss(layers, image, k: int):
    import torch
    from torch.nn import functional as F

    def mlp(layers, h):
        for layer in layers[:-1]:
            h = torch.tanh(F.linear(h, *layer))
        return F.linear(h, *layers[-1])

    x = (255 * torch.rand(image.shape) < image).float()
    loc, h = mlp(layers[0], x).chunk(2, -1)
    log_scale = 7.5 * torch.tanh(h / 15)
    eps = torch.randn(k, *loc.shape)
    z = loc + torch.exp(log_scale) * eps
    logits = mlp(layers[1], z)
    cross_entropy = functools.partial(
        F.binary_cross_entropy_with_logits, reduction="none"
    )
    log_lik = -cross_entropy(logits, x.expand_as(logits)).sum(-1)
    log_w = log_lik + (0.5 * (eps**2 - z**2) + log_scale).sum(-1)
    return -(torch.logsumexp(log_w, 0) - np.log(k)).mean()


def matmul_limit(setup: Setup) -> Iterator[float]:
    b, s = setup.knobs.batch_size, setup.knobs.scan_steps
    # Inputs that change with the step: constant products would leave the loop.
    normal = np.random.default_rng(setup.knobs.seed).standard_normal
    inputs = normal((8, b, PIXELS), "f"), normal((8, b * setup.k, LATENTS), "f")

    def products(h, kernels):
        y, pull = jax.vjp(lambda h, ws: functools.reduce(jnp.matmul, ws, h), h, kernels)
        return pull(y)

    @functools.partial(jax.jit, donate_argnums=0)
    def turn(carry, kernels, inputs):
        def body(carry, i):
            x, z = jax.tree.map(lambda a: a[i % 8], inputs)
            # No product for the gradient of x: a step has none either.
            return (products(x, kernels[0])[1], products(z, kernels[1])), None

        return jax.lax.scan(body, carry, jnp.arange(s))[0]

    kernels = [[jnp.array(kernel) for kernel, _ in net] for net in setup.layers]
    inputs = jax.tree.map(jnp.array, inputs)
    carry = kernels[0], (inputs[1][0], kernels[1])
    carry = jax.tree.map(jnp.zeros_like, carry)
    while True:
        carry = jax.block_until_ready(turn(carry, kernels, inputs))
        yield float("nan")


class Contender(NamedTuple):
    start: Callable[[Setup], Iterator[float]]  # yields after each turn its mean loss
    package: str


CONTENDERS = {
    "vi_jax": Contender(with_vi_jax, "vi_jax"),
    "by hand": Contender(by_hand, "jax"),
    "NumPyro": Contender(with_numpyro, "numpyro"),
    "PyTorch": Contender(with_pytorch, "torch"),
    "matmul limit": Contender(matmul_limit, "jax"),
}


def compare(setup: Setup, names: list[str]) -> dict[str, dict]:
    """Steps per second, ratios and losses of the contenders, by name.

    Raises ValueError where their losses do not agree within 2%, or do not fall.
    """
    running = {name: CONTENDERS[name].start(setup) for name in names}
    losses = {name: [next(turns), next(turns)] for name, turns in running.items()}
    _check(losses)
    speeds = {name: [] for name in names}
    for repeat in range(setup.knobs.repeats):
        for name in names[:: 1 if repeat % 2 == 0 else -1]:
            start = time.perf_counter()
            losses[name].append(next(running[name]))
            speeds[name].append(setup.knobs.scan_steps / (time.perf_counter() - start))
    ours = np.array(speeds["vi_jax"])
    return {
        name: {
            "steps_per_second": _spread(np.array(speeds[name])),
            "vi_jax_over_it": _spread(ours / np.array(speeds[name])),
            "losses": [loss for loss in losses[name] if np.isfinite(loss)],
        }
        for name in names
    }


def _check(losses: dict[str, list[float]]) -> None:
    seen = np.array([pair for pair in losses.values() if np.isfinite(pair).all()])
    reference = np.array(losses["vi_jax"])
    if (abs(seen / reference - 1) > 0.02).any() or (seen[:, 1] >= seen[:, 0]).any():
        raise ValueError(f"the losses must agree within 2% and fall, got {losses}")


def _spread(values: np.ndarray) -> dict:
    return {
        "median": float(np.median(values)),
        "min": float(values.min()),
        "max": float(values.max()),
        "all": values.tolist(),
    }


def machine() -> dict:
    """What the numbers belong to."""
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.exists() else []
    cpu = [line.split(":")[1].strip() for line in lines if "model name" in line]
    packages = ("jax", "jaxlib", "flax", "optax", "numpyro", "torch", "numpy")
    found = [p for p in packages if importlib.util.find_spec(p)]
    return {
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "devices": [f"{d.platform}:{d.device_kind}" for d in jax.devices()],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {p: importlib.metadata.version(p) for p in found},
    }


def table(results: dict[str, dict[str, dict]]) -> str:
    """A line for each k and contender."""
    head = f"{'k':>4}  {'':<13}{'steps/s':>9}  {'vi_jax / it (min-max)':<24}loss"
    lines = [head]
    for k, by_name in results.items():
        for name, r in by_name.items():
            speed, ratio, losses = r.values()
            fell = f"{losses[0]:.1f} -> {losses[-1]:.1f}" if losses else "-"
            spread = f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})"
            lines.append(
                f"{k:>4}  {name:<13}{speed['median']:>9.1f}  {spread:<24}{fell}"
            )
    return "\n".join(lines)


def figure(results: dict[str, dict[str, dict]]) -> Figure:
    """Median steps per second, with the spread from the slowest to the fastest turn."""
    fig = Figure(figsize=(5 * len(results), 2.6), dpi=150, layout="constrained")
    for axes, (k, by_name) in zip(
        fig.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True
    ):
        speeds = [r["steps_per_second"] for r in by_name.values()]
        low, mid, high = (
            np.array([s[what] for s in speeds]) for what in ("min", "median", "max")
        )
        colors = ["C0" if name == "vi_jax" else "0.7" for name in by_name]
        axes.barh(list(by_name), mid, xerr=[mid - low, high - mid], color=colors)
        axes.invert_yaxis()
        axes.set(title=f"k = {k}", xlabel="training steps per second")
    return fig


def main(knobs: Knobs) -> None:
    """Compare for every k, print the table, write it and its picture."""
    knobs.out.mkdir(parents=True, exist_ok=True)
    found = lambda name: importlib.util.find_spec(CONTENDERS[name].package)
    names = [name for name in CONTENDERS if found(name)]
    left_out = [name for name in CONTENDERS if name not in names]
    about = {"machine": machine(), "knobs": {**vars(knobs), "out": str(knobs.out)}}
    results = {str(k): compare(make_setup(knobs, k), names) for k in knobs.k}
    record = {**about, "left_out": left_out, "results": results}
    runs.write_json(knobs.out / "benchmark.json", record)
    figure(results).savefig(knobs.out / "benchmark.png")
    print(table(results))
    print(f"left out, not installed: {', '.join(left_out) or 'none'}; see {knobs.out}/")


if __name__ == "__main__":
    main(tyro.cli(Knobs, description=__doc__))
