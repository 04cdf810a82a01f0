"""Training steps per second: vi_jax beside other ways to write the same step.

    python -m experiments.benchmark --k 1 50 --batch-size 100 --repeats 7
    python -m experiments.benchmark --k 1 --scan-steps 50 --repeats 2 --out runs/quick

A step gathers a batch of resident uint8 images, binarizes it anew and moves by Adam on
the bound of Burda et al. 2016 (arXiv:1509.00519), k samples, reparametrised, float32,
on their net, 784-200-200-50 and back. As a turn of --scan-steps steps it is timed in

- vi_jax: `training.fit`, with its metrics and its search for what is not finite;
- by hand: one JAX function, lax.scan and optax: beside it, what the library costs;
- NumPyro: SVI with Trace_ELBO (k = 1) or RenyiELBO(alpha=0), in the same lax.scan;
- PyTorch: eager, fused Adam, on the CPU, as many threads as cores;
- matmul limit: the matrix products of the step, forward and backward, in JAX, alone.

All start at the same parameters and index the same batches of synthetic images. Each is
written as its users write it: exp without a bound on the scale, and the framework's own
Bernoulli draws. The losses must agree and fall before anything is timed. The contenders
take turns in one process, and a ratio is taken within one repeat.
"""

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

IMAGES, PIXELS, LATENTS, LEARNING_RATE, SEED = 60_000, 784, 50, 1e-3, 0
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpyro", "torch", "numpy")


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


def with_vi_jax(setup: Setup) -> Iterator[float]:
    loss = objectives.batch_loss(
        vae(),
        preprocess=lambda key, batch: batches.binarize_dynamic(key, batch["image"]),
        bound=bounds.iwae,
        estimator=estimators.reparam,
        num_samples=setup.k,
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


def with_numpyro(setup: Setup) -> Iterator[float]:
    import numpyro
    from numpyro import distributions as dist, infer

    b, (encoder, decoder) = setup.batch_size, setup.layers

    def model(x):
        with numpyro.plate("batch", b):
            prior = dist.Normal(jnp.zeros(LATENTS), 1.0).to_event(1)
            logits = mlp(numpyro.param("p", decoder), numpyro.sample("z", prior))
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x):
        loc, h = jnp.split(mlp(numpyro.param("q", encoder), x), 2, axis=-1)
        scale = jnp.exp(0.5 * h)
        with numpyro.plate("batch", b):
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    def step(state, key, image):
        state, loss = svi.update(state, draw(key, image))
        # NumPyro minimises the sum over the batch; Adam's steps do not see the factor.
        return state, loss / b

    objective = infer.Trace_ELBO() if setup.k == 1 else infer.RenyiELBO(0, setup.k)
    svi = infer.SVI(model, guide, optax.adam(LEARNING_RATE), objective)
    return scanned(setup, step, svi.init(jax.random.key(SEED), jnp.zeros((b, PIXELS))))


def with_pytorch(setup: Setup) -> Iterator[float]:
    import torch

    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(SEED)
    images = torch.from_numpy(setup.stream.resident["image"])
    leaf = lambda a: torch.from_numpy(a.T.copy()).requires_grad_()  # as in nn.Linear
    layers = jax.tree.map(leaf, setup.layers)
    adam = torch.optim.Adam(jax.tree.leaves(layers), LEARNING_RATE, fused=True)
    for _, index in turns(setup):
        losses = []
        for rows in torch.from_numpy(index):
            adam.zero_grad()
            loss = pytorch_loss(layers, images[rows], setup.k)
            loss.backward()
            adam.step()
            losses.append(loss.detach())
        yield float(torch.stack(losses).mean())


def pytorch_loss(layers, image, k: int):
    import torch
    from torch.nn import functional as F

    def mlp(layers, h):
        for layer in layers[:-1]:
            h = torch.tanh(F.linear(h, *layer))
        return F.linear(h, *layers[-1])

    x = (255 * torch.rand(image.shape) < image).float()
    loc, h = mlp(layers[0], x).chunk(2, -1)
    log_scale = 0.5 * h
    eps = torch.randn(k, *loc.shape)
    z = loc + torch.exp(log_scale) * eps
    logits, x = mlp(layers[1], z), x.expand(k, -1, -1)
    log_lik = -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
    log_w = log_lik + (0.5 * (eps**2 - z**2) + log_scale).sum(-1)
    return -(torch.logsumexp(log_w, 0) - np.log(k)).mean()


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


# Name: what starts it and yields each turn's mean loss, and the package it needs.
CONTENDERS = {
    "vi_jax": (with_vi_jax, "vi_jax"),
    "by hand": (by_hand, "jax"),
    "NumPyro": (with_numpyro, "numpyro"),
    "PyTorch": (with_pytorch, "torch"),
    "matmul limit": (matmul_limit, "jax"),
}


def compare(
    running: dict[str, Iterator], scan_steps: int, repeats: int
) -> dict[str, dict]:
    """By name: steps per second and ratio of each repeat, and loss of every turn.

    Each iterator of `running` yields after a turn of scan_steps steps, their mean loss
    or None. Raises ValueError where the losses do not agree within 10%, or do not fall.
    """
    names = list(running)
    losses = {name: [next(turns), next(turns)] for name, turns in running.items()}
    seen = np.array([pair for pair in losses.values() if None not in pair])
    if (abs(seen / seen[0] - 1) > 0.1).any() or (seen[:, 1] >= seen[:, 0]).any():
        raise ValueError(f"the losses must agree within 10% and fall, got {losses}")
    speeds = {name: [] for name in names}
    for repeat in range(repeats):
        for name in names[:: (-1) ** repeat]:
            start = time.perf_counter()
            losses[name].append(next(running[name]))
            speeds[name].append(scan_steps / (time.perf_counter() - start))
    ratios = {n: np.divide(speeds["vi_jax"], speeds[n]).tolist() for n in names}
    kinds = {"steps_per_second": speeds, "vi_jax_over_it": ratios, "loss": losses}
    return {n: {kind: by_name[n] for kind, by_name in kinds.items()} for n in names}


def machine() -> dict:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    found = [p for p in PACKAGES if importlib.util.find_spec(p)]
    return {
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "devices": [f"{d.platform}:{d.device_kind}" for d in jax.devices()],
        "python": platform.python_version(),
        "versions": {p: importlib.metadata.version(p) for p in found},
    }


def table(results: dict[str, dict[str, dict]]) -> str:
    lines = [f"   k  {'':14}steps/s  {'vi_jax / it (min-max)':23}loss"]
    for k, by_name in results.items():
        for name, row in by_name.items():
            loss = row["loss"]
            fell = "-" if loss[0] is None else f"{loss[0]:.1f} -> {loss[-1]:.1f}"
            lines.append(f"{k:>4}  {name:13}{in_words(row):33}{fell}")
    return "\n".join(lines)


def in_words(row: dict) -> str:
    """Of a row of `compare`: median steps per second, and ratio (min-max)."""
    speed, ratio = row["steps_per_second"], row["vi_jax_over_it"]
    spread = f"{np.median(ratio):.2f} ({min(ratio):.2f}-{max(ratio):.2f})"
    return f"{np.median(speed):8.1f}  {spread}"


def figure(results: dict[str, dict[str, dict]]) -> Figure:
    """Median steps per second, with the slowest and the fastest turn."""
    fig = Figure(figsize=(5 * len(results), 2.6), dpi=150, layout="constrained")
    panels = fig.subplots(1, len(results), squeeze=False)[0]
    for axes, (k, by_name) in zip(panels, results.items(), strict=True):
        speeds = [r["steps_per_second"] for r in by_name.values()]
        low, mid, high = np.quantile(speeds, [0, 0.5, 1], axis=1)
        colors = ["C0" if name == "vi_jax" else "0.7" for name in by_name]
        axes.barh(list(by_name), mid, xerr=[mid - low, high - mid], color=colors)
        axes.invert_yaxis()
        axes.set(title=f"k = {k}", xlabel="training steps per second")
    return fig


def main(
    k: tuple[int, ...] = (1, 50),
    batch_size: int = 100,
    scan_steps: int = 100,
    repeats: int = 7,
    out: Path = Path("runs/benchmark"),
) -> None:
    """Time every contender that is installed.

    Args:
        k: Samples of z per image, one comparison for each.
        batch_size: Images per step.
        scan_steps: Steps in one turn, which is one compiled dispatch in JAX.
        repeats: Turns of each contender that are timed.
        out: Folder of benchmark.json, with the machine, and benchmark.png.
    """
    found = lambda name: importlib.util.find_spec(CONTENDERS[name][1])
    names = [name for name in CONTENDERS if found(name)]
    left_out = [name for name in CONTENDERS if name not in names]
    about = {"machine": machine(), "batch_size": batch_size, "scan_steps": scan_steps}
    out.mkdir(parents=True, exist_ok=True)
    results = {}
    for n in k:
        setup = make_setup(n, batch_size, scan_steps)
        running = {name: CONTENDERS[name][0](setup) for name in names}
        results[str(n)] = compare(running, scan_steps, repeats)
    record = {**about, "left_out": left_out, "results": results}
    runs.write_json(out / "benchmark.json", record)
    figure(results).savefig(out / "benchmark.png")
    print(table(results))
    print(f"left out, not installed: {', '.join(left_out) or 'none'}; see {out}/")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
