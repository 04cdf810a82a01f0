"""Training steps per second: vi_jax beside other ways to write the same step.

    python -m experiments.benchmark --k 1 5 50 --batch-size 20 100 --repeats 7
    python -m experiments.benchmark --k 1 --batch-size 20 --repeats 2 --out runs/quick

A step gathers a batch of resident uint8 images, binarizes it anew and moves by Adam on
the bound of Burda et al. 2016 (arXiv:1509.00519), k samples, reparametrised, float32,
on their net, 784-200-200-50 and back. As a turn of --scan-steps steps it is timed in

- vi_jax: `training.fit`, with its metrics and its search for what is not finite;
- vi_jax, few: the same with a backward pass of 2 samples of 5, of 5 of 50 (a tenth),
  which is another gradient of the same mean: see `few_backward` for its variance;
- by hand: one JAX function, lax.scan and optax: beside it, what the library costs;
- NumPyro: SVI with Trace_ELBO (k = 1) or RenyiELBO(alpha=0), in the same lax.scan;
- PyTorch: fused Adam, as many threads as cores, eager and compiled (on a GPU with CUDA
  graphs), with products as exact as JAX's;
- pythae: its VAE (k = 1) or IWAE with this net, and an Adam step on its loss, which for
  k > 1 has the gradient of the bound, not its value;
- flax: a Linen module, and the step of flax's VAE example, which is not jitted (k = 1);
- matmul limit: the matrix products of the step, forward and backward, in JAX, alone.

All start at the same parameters and index the same batches of synthetic images. Each is
written as its users write it: exp without a bound on the scale, and the framework's own
Bernoulli draws. The losses must agree and fall before anything is timed. The contenders
take turns in one process, and a ratio is taken within one repeat.
"""

import functools
import importlib.metadata
import importlib.util
import itertools
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments import benchmark_peers as peers
from experiments.benchmark_step import (
    Setup,
    by_hand,
    make_setup,
    matmul_limit,
    with_vi_jax,
)
from vi_jax import runs

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpyro", "torch", "pythae", "numpy")


def with_few(setup: Setup) -> Iterator[float]:
    return with_vi_jax(setup, num_backward=max(2, setup.k // 10))


def has(name: str, k: int) -> bool:
    """Whether a contender does k samples: flax's example has one, few are of more."""
    return {"flax": k == 1, "vi_jax, few": k > 2}.get(name, True)


# Name: what starts it and yields each turn's mean loss, and the package it needs.
CONTENDERS = {
    "vi_jax": (with_vi_jax, "vi_jax"),
    "vi_jax, few": (with_few, "vi_jax"),
    "by hand": (by_hand, "jax"),
    "NumPyro": (peers.with_numpyro, "numpyro"),
    "PyTorch": (peers.with_pytorch, "torch"),
    "PyTorch compiled": (functools.partial(peers.with_pytorch, compiled=True), "torch"),
    "pythae": (peers.with_pythae, "pythae"),
    "flax": (peers.with_flax, "flax"),
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


# What `compare` gives, by batch size and k.
Results = dict[int, dict[int, dict[str, dict]]]


def table(results: Results) -> str:
    lines = [f"batch    k  {'':17}steps/s  {'vi_jax / it (min-max)':23}loss"]
    for batch_size, k, by_name in _settings(results):
        for name, row in by_name.items():
            loss = row["loss"]
            fell = "-" if loss[0] is None else f"{loss[0]:.1f} -> {loss[-1]:.1f}"
            lines.append(f"{batch_size:>5} {k:>4}  {name:16}{in_words(row):33}{fell}")
    return "\n".join(lines)


def _settings(results: Results) -> list[tuple[int, int, dict[str, dict]]]:
    return [(b, k, found) for b, by_k in results.items() for k, found in by_k.items()]


def in_words(row: dict) -> str:
    """Of a row of `compare`: median steps per second, and ratio (min-max)."""
    speed, ratio = row["steps_per_second"], row["vi_jax_over_it"]
    spread = f"{np.median(ratio):.2f} ({min(ratio):.2f}-{max(ratio):.2f})"
    return f"{np.median(speed):8.1f}  {spread}"


def figure(results: Results) -> Figure:
    """Median steps per second, with the slowest and the fastest turn."""
    rows, columns = len(results), max(map(len, results.values()))
    size = (4 * columns, 2.6 * rows)
    fig = Figure(figsize=size, dpi=120, layout="constrained")
    panels = fig.subplots(rows, columns, squeeze=False).ravel()
    for axes, (b, k, by_name) in zip(panels, _settings(results), strict=True):
        speeds = [r["steps_per_second"] for r in by_name.values()]
        low, mid, high = np.quantile(speeds, [0, 0.5, 1], axis=1)
        colors = ["C0" if name.startswith("vi_jax") else "0.7" for name in by_name]
        axes.barh(list(by_name), mid, xerr=[mid - low, high - mid], color=colors)
        axes.invert_yaxis()
        axes.set(title=f"batch {b}, k = {k}", xlabel="training steps per second")
    return fig


def main(
    k: tuple[int, ...] = (1, 5, 50),
    batch_size: tuple[int, ...] = (20, 100),
    scan_steps: int = 100,
    repeats: int = 7,
    without: tuple[str, ...] = (),
    out: Path = Path("runs/benchmark"),
) -> None:
    """Time every contender that is installed.

    Args:
        k: Samples of z per image.
        batch_size: Images per step; one comparison for each of these with each k.
        scan_steps: Steps in one turn, which is one compiled dispatch in JAX.
        repeats: Turns of each contender that are timed.
        without: Names of contenders to leave out; flax's steps take long on a GPU.
        out: Folder of benchmark.json, with the machine, and benchmark.png.
    """
    if unknown := {*without} - {*CONTENDERS} | {*without} & {"vi_jax"}:
        raise SystemExit(f"cannot leave out {unknown}; there are {[*CONTENDERS]}")
    found = lambda name: importlib.util.find_spec(CONTENDERS[name][1])
    names = [name for name in CONTENDERS if name not in without and found(name)]
    left_out = [name for name in CONTENDERS if name not in names]
    about = {"machine": machine(), "scan_steps": scan_steps, "left_out": left_out}
    out.mkdir(parents=True, exist_ok=True)
    results = {b: {} for b in batch_size}
    for b, n in itertools.product(batch_size, k):
        setup = make_setup(n, b, scan_steps)
        able = [name for name in names if has(name, n)]
        running = {name: CONTENDERS[name][0](setup) for name in able}
        results[b][n] = compare(running, scan_steps, repeats)
    runs.write_json(out / "benchmark.json", {**about, "results": results})
    figure(results).savefig(out / "benchmark.png")
    print(table(results))
    print(f"left out: {', '.join(left_out) or 'none'}; see {out}/")


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmark", description=__doc__)
