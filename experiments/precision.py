"""Products in bfloat16: what they do to the speed of training, and to the bound.

    JAX_DEFAULT_MATMUL_PRECISION=BF16_BF16_F32 python -m experiments.mnist_conv
    python -m experiments.precision

The first is the knob, for any experiment: the products of training take their factors
in bfloat16 and sum in float32, on CPU, GPU and TPU. Parameters, Adam, densities and
bounds stay in float32, and so do the products of the evaluation and of SOAP, so that
the numbers of two runs can be compared.

The second trains the nets of `benchmark` (k = 1 and 50) and `benchmark_conv` on
dynamic MNIST in both precisions, taking turns, and computes the ELBO and IWAE bound
(k = 50) of test images at the parameters trained in float32, from the same noise: in
float64, and as far from it as the shorter products come.

Expect, on 2 cores of a CPU with AVX512-BF16: 1.14 times the steps of the net of dense
layers, 1.55 with k = 50 and 1.49 of the convolutional one; a bound that is off by at
most 0.007 in the mean over images and by 0.02 to 0.07 nats (standard deviation; 0.34 at
most) for one, where products in float32 are by 1e-5. After 2,000 steps the IWAE bound
of the dense nets is as high (by -0.05 +- 0.32 and 0.05 +- 0.30 nats, over 3 pairs of
seeds), that of the convolutional one lower: by -0.32 +- 0.05.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import benchmark_conv, benchmark_step
from experiments.benchmark import machine
from vi_jax import bounds, objectives, runs, training
from vi_jax.cpu import for_cpu
from vi_jax.data.images import ImageData, image_data
from vi_jax.model import Model, log_weight, sampled_terms
from vi_jax.types import Array, LossFn, Params

PRECISIONS = {"float32": None, "bfloat16": "BF16_BF16_F32"}
# The net, and the samples k of its training: the ELBO's one, or IWAE's.
MODELS = {
    "dense, k = 1": (benchmark_step.vae, 1),
    "dense, k = 50": (benchmark_step.vae, 50),
    "convolutions": (benchmark_conv.vae, 1),
}
BATCH, SCAN_STEPS, LEARNING_RATE, NUM_SAMPLES = 100, 50, 1e-3, 50


class Trained(NamedTuple):
    """Of one way to train."""

    params: Params
    steps_per_second: list[float]  # of each dispatch but the first, which compiles


def train(
    model: Model, k: int, data: ImageData, num_steps: int, seed: int
) -> dict[str, Trained]:
    """The same steps from the same parameters in each precision."""
    how = {"bound": bounds.iwae, "num_samples": k, "preprocess": data.preprocess}
    losses = dict.fromkeys(PRECISIONS, objectives.batch_loss(model, **how))
    within = lambda name: jax.default_matmul_precision(PRECISIONS[name])
    return in_turns(model, losses, data, num_steps, seed, within=within)


def in_turns(
    model: Model,
    losses: dict[Any, LossFn],
    data: ImageData,
    num_steps: int,
    seed: int,
    *,
    within: Callable[[Any], contextlib.AbstractContextManager] = lambda name: (
        contextlib.nullcontext()
    ),
) -> dict[Any, Trained]:
    """By name, each loss from the same parameters by Adam, a dispatch at a time."""
    adam = training.adam(LEARNING_RATE, num_steps=num_steps)
    params = model.init(jax.random.key(seed), jnp.zeros(data.mean.shape))
    state = training.init_state(params, adam)
    how = {"seed": seed, "num_steps": num_steps, "scan_steps": SCAN_STEPS}
    fit = lambda loss: training.fit(loss, adam, state, data.train, **how)
    steps = {name: fit(loss) for name, loss in losses.items()}
    last, speeds = {}, {name: [] for name in losses}
    for _ in range(0, num_steps, SCAN_STEPS):
        for name in losses:
            start = time.perf_counter()
            with within(name):
                last[name], _ = next(steps[name])
            speeds[name].append(SCAN_STEPS / (time.perf_counter() - start))
    return {name: Trained(last[name].params, speeds[name][1:]) for name in losses}


def bounds_of(
    model: Model, params: Params, x: Array, eps: Array, dtype: str
) -> np.ndarray:
    """ELBO and IWAE bound of every image, [n, 2], in float64, float32 or bfloat16.

    x is [n, D] and eps [n, k, latents], the noise behind the samples.
    """

    def of_image(params, x, eps):
        q = model.posterior(params, x)
        z = q.loc + q.scale * eps
        log_w = jax.vmap(log_weight)(sampled_terms(model, x)(params, q, z))
        return jnp.stack([bounds.elbo(log_w), bounds.iwae(log_w)])

    each = lambda params, *a: jax.lax.map(
        lambda one: of_image(params, *one), a, batch_size=20
    )
    double = jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()
    with double, jax.default_matmul_precision(PRECISIONS.get(dtype)):
        cast = lambda a: jnp.asarray(
            np.asarray(a), "f8" if dtype == "float64" else "f4"
        )
        args = jax.tree.map(cast, (params, x, eps))
        return np.asarray(jax.jit(for_cpu(each))(*args), float)


def compare(
    model: Model, k: int, data: ImageData, *, steps: int, num_test: int, seeds: int
) -> dict:
    trained = [train(model, k, data, steps, seed) for seed in range(seeds)]
    rng = np.random.default_rng(0)
    x = (data.test[:num_test] > 0).astype("f")
    shape = model.prior(trained[0]["float32"].params).mean().shape
    eps = rng.standard_normal((num_test, NUM_SAMPLES, *shape), "f")
    at = lambda params, dtype: bounds_of(model, params, x, eps, dtype)
    exact = [at(by_name["float32"].params, "float64") for by_name in trained]
    found = {}
    for name in PRECISIONS:
        error = at(trained[0]["float32"].params, name) - exact[0]
        own = [at(by_name[name].params, "float64") for by_name in trained]
        found[name] = {
            "steps_per_second": [s for t in trained for s in t[name].steps_per_second],
            "error_mean": error.mean(0).tolist(),
            "error_sd": error.std(0).tolist(),
            "error_max": abs(error).max(0).tolist(),
            "trained_in_it": np.mean(own, axis=1).tolist(),
        }
    return found


def table(results: dict[str, dict]) -> str:
    lines = [
        "net           products   steps/s  the ELBO's error: mean, sd, max   IWAE's    "
        "IWAE, trained in it, less float32's (se)"
    ]
    for net, result in results.items():
        trained = {n: np.array(result[n]["trained_in_it"])[:, 1] for n in PRECISIONS}
        for name in PRECISIONS:
            row = result[name]
            errors = [row[f"error_{of}"] for of in ("mean", "sd", "max")]
            elbo, iwae = (" ".join(f"{e[i]:9.1e}" for e in errors) for i in (0, 1))
            # Of one seed the parameters, batches and noise at the start are the same.
            gain = trained[name] - trained["float32"]
            stderr = gain.std(ddof=1) / len(gain) ** 0.5
            lines.append(
                f"{net:13} {name:9} {np.median(row['steps_per_second']):8.1f}  {elbo}  "
                f"{iwae}  {trained[name].mean():.2f}, {gain.mean():.2f} ({stderr:.2f})"
            )
    return "\n".join(lines)


def main(
    steps: int = 2000,
    num_test: int = 1000,
    seeds: int = 3,
    out: Path = Path("runs/precision"),
) -> None:
    """Train and compare; writes precision.json.

    Args:
        steps: Training steps, a multiple of 50.
        num_test: Test images whose bounds are compared.
        seeds: Runs of each net in each precision, 2 or more.
        out: Folder of precision.json.
    """
    data = image_data("mnist", binarize="dynamic", batch_size=BATCH, seed=0)
    how = {"steps": steps, "num_test": num_test, "seeds": seeds}
    results = {
        name: compare(make(), k, data, **how) for name, (make, k) in MODELS.items()
    }
    print(table(results))
    out.mkdir(parents=True, exist_ok=True)
    about = {"machine": machine(), **how}
    runs.write_json(out / "precision.json", {**about, "results": results})


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.precision", description=__doc__)
