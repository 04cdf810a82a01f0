"""What vi_jax costs beside its steps: start, compilation, memory, evaluation, data.

    python -m experiments.benchmark_costs
    python -m experiments.benchmark_costs --repeats 1 --out runs/quick

It needs pip install '.[bench]'.

The net is that of `benchmark`. Every measurement is a process of its own, and those
that are compared take turns. Memory is the peak of what is resident, less what was
before the training or the evaluation began (from /proc: on Linux).

- import: `import vi_jax`, and `import jax, flax.linen, optax`;
- first dispatch: of training, k = 50, until its metrics are there, without and with
  what an earlier process left in JAX_COMPILATION_CACHE_DIR;
- training: memory at k = 50 and 500, as it is by default, on the batch at once, and
  with ten chunks of the samples;
- evaluation: images per second at k = 5,000; memory at k = 500 and 50,000;
- data: images per second, of a batch of 100 gathered and binarized in a compiled step
  on resident bytes, and of `data.streamed` from a file that is mapped to memory.
"""

import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tyro

IMAGES = 10_000


def _resident_mib(name: str) -> float:
    """VmRSS, what is resident now, or VmHWM, its peak."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"^{name}:\s+(\d+) kB", status, re.M)[1]) / 1024


def _memory_of(work: Callable[[], dict]) -> dict:
    """What `work()` gives, with the memory that it took at its peak."""
    if not Path("/proc/self/clear_refs").exists():
        return work()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _resident_mib("VmRSS")
    found = work()
    return {**found, "peak_mib": _resident_mib("VmHWM") - before}


def _imports(what: str) -> dict:
    start = time.perf_counter()
    exec(f"import {what}")
    return {"seconds": time.perf_counter() - start}


def _training(k: int, steps: int = 4, **how) -> dict:
    """The first dispatch of `steps` steps, compilation and all, beside the second."""
    from experiments.benchmark_step import make_setup, with_vi_jax
    from vi_jax.model import sampled_terms

    if "num_chunks" in how:
        chunks = {"num_chunks": how.pop("num_chunks")}
        how["terms"] = functools.partial(sampled_terms, **chunks)
    turns = with_vi_jax(make_setup(k, 100, steps), **how)

    def timed() -> dict:
        start = time.perf_counter()
        next(turns)
        first = time.perf_counter() - start
        start = time.perf_counter()
        next(turns)
        again = time.perf_counter() - start
        return {"first_seconds": first, "compile_seconds": first - again}

    return _memory_of(timed)


def _evaluation(k: int, num_images: int) -> dict:
    from experiments.benchmark_step import make_setup, vae
    from vi_jax.evaluator import make_evaluator

    setup = make_setup(1, 100, 1)
    x = setup.stream.resident["image"]
    measure = make_evaluator(vae(), num_samples=k)

    def timed() -> dict:
        measure(setup.params, x[:20], None)
        start = time.perf_counter()
        measure(setup.params, x[:num_images], None)
        return {"images_per_second": num_images / (time.perf_counter() - start)}

    return _memory_of(timed)


def _resident(batch_size: int = 100, steps: int = 500) -> dict:
    import jax
    import jax.numpy as jnp

    from experiments.benchmark_step import make_setup
    from vi_jax.data import batches

    stream = make_setup(1, batch_size, steps).stream

    @jax.jit
    def turn(resident, travelling):
        def one(total, now):
            batch = stream.gather(resident, now)
            key = jax.random.fold_in(jax.random.key(0), batch["step"])
            x = batches.binarize_dynamic(key, batch["image"])
            return total + jnp.sum(x), None

        return jax.lax.scan(one, jnp.zeros(()), travelling)[0]

    resident = jax.device_put(stream.resident)

    def run(first: int) -> None:
        at = [stream.at(first + i) for i in range(steps)]
        turn(resident, jax.tree.map(lambda *a: np.stack(a), *at)).block_until_ready()

    run(0)
    start = time.perf_counter()
    run(steps)
    return {"images_per_second": batch_size * steps / (time.perf_counter() - start)}


def _streamed(batch_size: int = 100, steps: int = 200) -> dict:
    from vi_jax.data import streamed

    class Rows:
        def __init__(self, path):
            self.images = np.load(path, mmap_mode="r")

        def __len__(self):
            return len(self.images)

        def __getitem__(self, i):
            return {"image": self.images[i]}

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        rng = np.random.default_rng(0)
        np.save(path, rng.integers(0, 256, (IMAGES, 784), np.uint8))
        stream = streamed(Rows(path), batch_size=batch_size, seed=0)
        stream.at(0)
        start = time.perf_counter()
        for step in range(1, steps + 1):
            stream.at(step)
        seconds = time.perf_counter() - start
    return {"images_per_second": batch_size * steps / seconds}


MEASUREMENTS: dict[str, Callable[[], dict]] = {
    "import jax, flax.linen, optax": lambda: _imports("jax, flax.linen, optax"),
    "import vi_jax": lambda: _imports("vi_jax"),
    "first dispatch": lambda: _training(50),
    "first dispatch, cached": lambda: _training(50),
    "training, k = 50": lambda: _training(50),
    "training, k = 50, batch at once": lambda: _training(50, accumulate=1),
    "training, k = 500": lambda: _training(500),
    "training, k = 500, 10 chunks": lambda: _training(500, num_chunks=10, accumulate=1),
    "evaluation, k = 500": lambda: _evaluation(500, 400),
    "evaluation, k = 5000": lambda: _evaluation(5_000, 200),
    "evaluation, k = 50000": lambda: _evaluation(50_000, 20),
    "resident data": _resident,
    "streamed data": _streamed,
}


def measured(name: str, cache: str) -> dict:
    """What MEASUREMENTS[name] gives, in a process of its own."""
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    if name.startswith("first dispatch"):
        env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        # Cold by a folder that is new each time, and that the next one finds.
        env["JAX_COMPILATION_CACHE_DIR"] = cache
    argv = [sys.executable, "-m", "experiments.benchmark_costs", "measure", name]
    done = subprocess.run(argv, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(repeats: int = 5, out: Path = Path("runs/benchmark_costs")) -> None:
    """Measure everything `repeats` times, in turns; writes benchmark_costs.json.

    Args:
        repeats: Times that each is measured.
        out: Folder of benchmark_costs.json.
    """
    from experiments.benchmark import machine
    from vi_jax import runs

    out.mkdir(parents=True, exist_ok=True)
    found = {name: [] for name in MEASUREMENTS}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for name in MEASUREMENTS:
                found[name].append(measured(name, cache))
    for name, rows in found.items():
        medians = {k: np.median([row[k] for row in rows]) for k in rows[0]}
        print(f"{name:34}", *(f"{k} {v:.4g}  " for k, v in medians.items()))
    record = {"machine": machine(), "measurements": found}
    runs.write_json(out / "benchmark_costs.json", record)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(MEASUREMENTS[sys.argv[2]]()))
    else:
        tyro.cli(
            main, prog="python -m experiments.benchmark_costs", description=__doc__
        )
