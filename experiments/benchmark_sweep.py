"""Seconds to train 8 values of beta together, and one after another.

    python -m experiments.benchmark_sweep
    python -m experiments.benchmark_sweep --epochs 5 --repeats 1

The models and the training of `rate_distortion`, compilation included, each time from
nothing; one after another is the sweep of one beta, eight times. In turns, in one
process.
"""

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import rate_distortion
from experiments.benchmark import machine
from vi_jax import resumable, runs, sweep, training
from vi_jax.data.images import ImageData, image_data


def seconds(knobs: rate_distortion.Knobs, data: ImageData) -> tuple[float, float]:
    """The time of one training, and its mean loss a model at the end."""
    start = time.perf_counter()
    model, plan = rate_distortion.build(knobs, data)
    init = lambda key: model.init(key, jnp.zeros(data.mean.shape))
    params = sweep.init_of_all(init, resumable.init_key(knobs.seed), len(knobs.betas))
    state = training.init_state(params, plan.optimizer)
    steps = training.fit(
        plan.loss,
        plan.optimizer,
        state,
        plan.batches,
        seed=plan.seed,
        num_steps=plan.num_steps,
        scan_steps=plan.scan_steps,
    )
    state, metrics = list(steps)[-1]
    jax.block_until_ready(state.params)
    return time.perf_counter() - start, metrics["loss"] / len(knobs.betas)


def main(
    epochs: float = 5.0,
    batch_size: int = 100,
    repeats: int = 3,
    out: Path = Path("runs/benchmark_sweep"),
) -> None:
    """Time both ways; writes benchmark_sweep.json.

    Args:
        epochs: Passes over the training images.
        batch_size: Images per step.
        repeats: Times that each is trained.
        out: Folder of benchmark_sweep.json.
    """
    out.mkdir(parents=True, exist_ok=True)
    data = image_data("mnist", binarize="dynamic", batch_size=batch_size, seed=0)
    together = rate_distortion.Knobs(epochs=epochs, batch_size=batch_size)
    alone = [dataclasses.replace(together, betas=(b,)) for b in together.betas]
    found = {"together": [], "one_after_another": []}
    for _ in range(repeats):
        time_together, loss = seconds(together, data)
        each = [seconds(knobs, data) for knobs in alone]
        of_each = np.mean([loss for _, loss in each])
        if not np.isclose(loss, of_each, rtol=0.02):
            raise ValueError(f"the losses must agree within 2%: {loss}, {of_each}")
        found["together"].append(time_together)
        found["one_after_another"].append(sum(time for time, _ in each))
    ratios = np.divide(found["together"], found["one_after_another"])
    for name, times in found.items():
        print(f"{name:18}{np.median(times):8.1f} s")
    print(f"ratio {np.median(ratios):.2f} ({ratios.min():.2f}-{ratios.max():.2f})")
    about = {"machine": machine(), "epochs": epochs, "batch_size": batch_size}
    record = {**about, **found, "ratio": ratios.tolist()}
    runs.write_json(out / "benchmark_sweep.json", record)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmark_sweep", description=__doc__)
