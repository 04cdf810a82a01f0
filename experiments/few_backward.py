"""How few of the k samples of IWAE need a backward pass.

    python -m experiments.few_backward
    python -m experiments.few_backward --run-dir runs/iwae_table/iwae-layers1-k50-seed0

Trains the net of `benchmark` (k = 50, batches of 100, Adam, DReG) on dynamic MNIST with
a backward pass of all samples and of few (`num_backward`), taking turns, from the same
parameters, on the same batches, with the same draws of x and z. Then, at the parameters
of the run with all samples: the variance of the gradient of one batch of held-out
images, binarized once (over z and the choice of the few), summed over the encoder and
over the decoder, over that of all; its error is that of the numerator alone, and the
draws of z are the same for all. With --run-dir so at the parameters of a run of
`mnist_iwae`, which is trained longer.

Expect with 5 of 50 a variance of 1.00 times that of all for the encoder, and for the
decoder 1.002 after 1,000 steps (effective sample size 1.9) and 1.028 in the model of
`iwae_table` (3.0), at 1.38 times the steps a second; with 1 of 50, which Burda et al.
2016 propose, 1.29 and 2.16 at 1.69 times. 15 minutes on 2 cores.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import benchmark_step, mnist_iwae
from experiments.benchmark import machine
from experiments.precision import BATCH, NUM_SAMPLES, bounds_of, in_turns
from vi_jax import bounds, estimators, objectives, runs
from vi_jax.commands import clear_errors, opened
from vi_jax.cpu import for_cpu
from vi_jax.data.images import ImageData, image_data
from vi_jax.evaluation import gradient_moments
from vi_jax.model import Model
from vi_jax.types import LossFn, Params

NUMS = (50, 10, 5, 3, 2, 1)
PARTS = {"encoder": "posterior", "decoder": "likelihood"}


def loss_of(model: Model, data: ImageData, num_backward: int) -> LossFn:
    return objectives.batch_loss(
        model,
        preprocess=data.preprocess,
        bound=bounds.iwae,
        estimator=estimators.dreg,
        num_samples=NUM_SAMPLES,
        num_backward=num_backward,
    )


def variances(model: Model, params: Params, data: ImageData, draws: int) -> dict:
    """By num_backward: variance of the gradient by each part, and its error."""
    batch = {"image": jnp.asarray(data.valid[:BATCH]), "step": 0}

    def of_few(num: int) -> dict:
        gradient = jax.value_and_grad(loss_of(model, data, num), has_aux=True)

        def one(key):
            (_, metrics), grads = gradient(params, key, batch)
            return {**{p: grads[name] for p, name in PARTS.items()}, **metrics}

        draw = lambda key: gradient_moments(one, key, num_draws=draws, chunk=10)
        moments = jax.jit(for_cpu(draw))(jax.random.key(0))
        total = lambda tree: float(sum(jax.tree.leaves(tree)))
        # The leaves depend on each other: their errors are added, not their squares.
        found = {
            part: {
                "variance": total(moments.trace.value[part]),
                "stderr": total(moments.trace.stderr[part]),
            }
            for part in PARTS
        }
        return {**found, "ess": float(moments.mean.value["ess"])}

    return {num: of_few(num) for num in NUMS}


def table_of_runs(speeds: dict[int, list], iwae: dict[int, list]) -> str:
    lines = ["samples  steps/s          IWAE of test images, less that of all (se)"]
    for num in NUMS:
        ratio = np.median(np.divide(speeds[num], speeds[NUM_SAMPLES]))
        gain = np.subtract(iwae[num], iwae[NUM_SAMPLES])
        stderr = np.std(gain, ddof=1) / len(gain) ** 0.5
        lines.append(
            f"{num:>5}  {np.median(speeds[num]):6.1f} ({ratio:.2f})  "
            f"{np.mean(iwae[num]):.2f}, {gain.mean():.2f} ({stderr:.2f})"
        )
    return "\n".join(lines)


def table_of_variances(found: dict[int, dict]) -> str:
    ess = found[NUM_SAMPLES]["ess"]
    lines = [f"of {NUM_SAMPLES}, ess {ess:.1f}     variance over that of all (its se)"]
    for num, row in found.items():
        cells = []
        for part in PARTS:
            all_of_it = found[NUM_SAMPLES][part]["variance"]
            ratio, error = (row[part][of] / all_of_it for of in ("variance", "stderr"))
            cells.append(f"{part} {ratio:.3f} ({error:.3f})")
        lines.append(f"{num:>5}  {'  '.join(cells)}")
    return "\n".join(lines)


def main(
    steps: int = 1000,
    seeds: int = 3,
    num_test: int = 1000,
    draws: int = 200,
    run_dir: Path | None = None,
    out: Path = Path("runs/few_backward"),
) -> None:
    """Train and measure; writes few_backward.json.

    Args:
        steps: Training steps, a multiple of 50.
        seeds: Runs of each, 2 or more.
        num_test: Test images whose bounds are compared.
        draws: Gradients that a variance is of, a multiple of 10.
        run_dir: Folder of a run of mnist_iwae, one layer, to measure gradients at, too.
        out: Folder of few_backward.json.
    """
    data = image_data("mnist", binarize="dynamic", batch_size=BATCH, seed=0)
    model = benchmark_step.vae()
    of_iwae = "mnist_iwae", mnist_iwae.Knobs, mnist_iwae.build
    of_longer = opened(run_dir, *of_iwae) if run_dir else None
    x = (data.test[:num_test] > 0).astype("f")
    shape = (num_test, NUM_SAMPLES, benchmark_step.LATENTS)
    eps = np.random.default_rng(0).standard_normal(shape, "f")
    speeds = {num: [] for num in NUMS}
    iwae = {num: [] for num in NUMS}
    measured = None
    for seed in range(seeds):
        losses = {num: loss_of(model, data, num) for num in NUMS}
        by_num = in_turns(model, losses, data, steps, seed)
        for num, found in by_num.items():
            speeds[num] += found.steps_per_second
            values = bounds_of(model, found.params, x, eps, "float32")
            iwae[num].append(float(values[:, 1].mean()))
        of_all = by_num[NUM_SAMPLES].params
        measured = measured or variances(model, of_all, data, draws)
    print(table_of_runs(speeds, iwae))
    record = {
        "machine": machine(),
        **{"k": NUM_SAMPLES, "steps": steps, "seeds": seeds, "num_test": num_test},
        "steps_per_second": speeds,
        "iwae": iwae,
        "variance": {f"{steps} steps": measured},
    }
    print(table_of_variances(measured))
    if of_longer:
        experiment, params = of_longer
        longer = variances(experiment.model, params, data, draws)
        record["variance"][run_dir.name] = longer
        print(run_dir, table_of_variances(longer), sep="\n")
    out.mkdir(parents=True, exist_ok=True)
    runs.write_json(out / "few_backward.json", record)


if __name__ == "__main__":
    with clear_errors():
        tyro.cli(main, prog="python -m experiments.few_backward", description=__doc__)
