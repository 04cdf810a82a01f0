"""Seconds per iteration of EM for a Gaussian mixture, beside scikit-learn's.

    python -m experiments.benchmark_em
    python -m experiments.benchmark_em --points 20000 --repeats 3 --out runs/quick

100,000 points, 10 dimensions, 20 components with full covariances, from the same start:
means at random points, equal weights, the covariance of the data. Both run in float32
(the default of vi_jax) and in float64 (that of scikit-learn). The time of an iteration
is that of 11 less that of 1, over 10, so that what either does before and after is not
counted; the contenders take turns, and a ratio is taken within one repeat. After the
same iterations their log-likelihoods must agree. Needs '.[bench]'.
"""

import functools
import importlib.metadata
import os
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from vi_jax import em, runs
from vi_jax.models.gaussian_mixture import unconstrained

PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "scikit-learn")
FEW, MANY = 1, 11


def data(points: int, dimensions: int, components: int) -> tuple[np.ndarray, dict]:
    """x [n, D] of a mixture, and a start: weights, means, covariance of all."""
    rng = np.random.default_rng(0)
    loc = 3 * rng.normal(size=(components, dimensions))
    tril = 0.5 * rng.normal(size=(components, dimensions, dimensions))
    z = rng.integers(0, components, points)
    noise = rng.normal(size=(points, dimensions))
    x = loc[z] + np.einsum("nij,nj->ni", tril[z], noise)
    start = x[rng.choice(points, components, replace=False)]
    return x, {"loc": start, "covariance": np.cov(x.T)}


def with_vi_jax(dtype, x: np.ndarray, start: dict) -> Callable[[int], float]:
    """iterations -> mean log p(x) before the last of them, as scikit-learn reports."""
    m, tril = len(start["loc"]), np.linalg.cholesky(start["covariance"])
    params = {"logits": np.zeros(m), "loc": start["loc"], "scale": np.stack([tril] * m)}
    steps, fits = em.gaussian_mixture_steps(m), {}
    with jax.enable_x64(dtype == np.float64):
        params, x = jax.tree.map(lambda a: jnp.asarray(a, dtype), (params, x))
        params["scale"] = unconstrained(params["scale"])

    def fit(n: int) -> float:
        with jax.enable_x64(dtype == np.float64):
            if n not in fits:
                all_of_them = {"num_iterations": n, "tolerance": -jnp.inf}
                fits[n] = jax.jit(functools.partial(em.em, steps, **all_of_them))
            return float(fits[n](params, x).history[-1])

    return fit


def with_sklearn(dtype, x: np.ndarray, start: dict) -> Callable[[int], float]:
    m, precision = len(start["loc"]), np.linalg.inv(start["covariance"])
    x = x.astype(dtype)

    def fit(n: int) -> float:
        mixture = GaussianMixture(
            m,
            max_iter=n,
            tol=0.0,
            reg_covar=1e-9,
            weights_init=np.full(m, 1 / m, dtype),
            means_init=start["loc"].astype(dtype),
            precisions_init=np.stack([precision.astype(dtype)] * m),
            init_params="random_from_data",
            random_state=0,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return float(mixture.fit(x).lower_bound_)

    return fit


CONTENDERS = {
    "vi_jax float32": functools.partial(with_vi_jax, np.float32),
    "vi_jax float64": functools.partial(with_vi_jax, np.float64),
    "scikit-learn float32": functools.partial(with_sklearn, np.float32),
    "scikit-learn float64": functools.partial(with_sklearn, np.float64),
}


def compare(x: np.ndarray, start: dict, repeats: int) -> dict[str, dict]:
    """By name: seconds per iteration and ratio of each repeat, and mean log p(x).

    Raises ValueError where the log-likelihoods differ by more than 1e-5 nats in float64
    or 1e-2 in float32, where the early iterations enlarge what was rounded.
    """
    running = {name: make(x, start) for name, make in CONTENDERS.items()}
    log_px = {name: [run(FEW), run(MANY)] for name, run in running.items()}
    apart = lambda kind: np.ptp([v for n, v in log_px.items() if kind in n], axis=0)
    if apart("64").max() > 1e-5 or apart("").max() > 1e-2:
        raise ValueError(f"the log-likelihoods must agree, got {log_px}")
    seconds = {name: [] for name in running}
    for repeat in range(repeats):
        for name in [*running][:: (-1) ** repeat]:
            few, many = (timed(running[name], n) for n in (FEW, MANY))
            seconds[name].append((many - few) / (MANY - FEW))
    ours = seconds[next(iter(running))]
    return {
        name: {
            "seconds_per_iteration": own,
            "it_over_vi_jax": np.divide(own, ours).tolist(),
            "log_px": log_px[name],
        }
        for name, own in seconds.items()
    }


def timed(run: Callable[[int], float], n: int) -> float:
    begin = time.perf_counter()
    run(n)
    return time.perf_counter() - begin


def machine() -> dict:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return {
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "devices": [f"{d.platform}:{d.device_kind}" for d in jax.devices()],
        "python": platform.python_version(),
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES},
    }


def table(results: dict[str, dict]) -> str:
    lines = [f"{'':22}ms/iteration  {'it / vi_jax (min-max)':24}log p(x)"]
    for name, r in results.items():
        ratio, own = r["it_over_vi_jax"], 1e3 * np.median(r["seconds_per_iteration"])
        spread = f"{np.median(ratio):.2f} ({min(ratio):.2f}-{max(ratio):.2f})"
        lines.append(f"{name:22}{own:12.1f}  {spread:24}{r['log_px'][-1]:.5f}")
    return "\n".join(lines)


def main(
    points: int = 100_000,
    dimensions: int = 10,
    components: int = 20,
    repeats: int = 7,
    out: Path = Path("runs/benchmark_em"),
) -> None:
    """Time EM in vi_jax and in scikit-learn.

    Args:
        points: Rows of the synthetic data.
        dimensions: Columns of it.
        components: Gaussians, of the data and of the model.
        repeats: Turns of each contender that are timed.
        out: Folder of benchmark_em.json, with the machine.
    """
    about = {"machine": machine(), "points": points, "dimensions": dimensions}
    results = compare(*data(points, dimensions, components), repeats)
    out.mkdir(parents=True, exist_ok=True)
    record = {**about, "components": components, "results": results}
    runs.write_json(out / "benchmark_em.json", record)
    print(f"{table(results)}\nsee {out}/")


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmark_em", description=__doc__)
