"""Table 1 of Burda et al. 2016 (arXiv:1509.00519), cell by cell, on dynamic MNIST.

    python -m experiments.iwae_table                        # what there is, beside it
    python -m experiments.iwae_table train --k 50           # a cell, then the table
    python -m experiments.iwae_table train --layers 2 --k 50 --seed 1

A cell is a run of `mnist_iwae` with the architecture of the paper and the recipe below;
the table has the runs in --run-dir or, in cells that they leave empty, those stored in
experiments/results. The paper takes 3,280 epochs of Adam at batch 20, some 18 hours
here at k = 50. The way to less, measured on one core of two (-log p(x) of held-out
training images, nats; k = 1 unless it says k; cosine decay from the step size given,
DReG gradients):

    optimizer, batch, step size, epochs      nats    seconds
    Adam, 100, 2e-3, 20                     95.60         41
    Adam, 50, 2e-3, 60                      91.29        130
    SOAP, 100, 2e-3, 20                     93.00        158
      bases anew each 50 steps, not 20      92.83        145
    SOAP, 250, 4e-3, 40                     90.18        157
    SOAP, 500, 4e-3, 40                     91.26        108
    SOAP, 500, 1e-2, 40                     90.02        107    the best of its time
      step size rising over the first 2%    90.08        101
      b1 = 0.95, b2 = 0.99                  90.83        104
    SOAP, 500, 2e-2, 40                    108.40        104    too large a step
    SOAP, 1000, 1e-2, 40                    90.48         79
    SOAP, 100, 4e-3, 8, k = 5               93.85         88
    SOAP, 100, 1e-2, 8, k = 5               95.95         88    too large a step

A SOAP step costs the same whatever the batch, so that it pays where the gradient is
dear: large batches, or many samples (nothing measurable at k = 50). DReG takes 1.02
times a step of `reparam` at k = 50. Many samples sharpen what few have reached: at
k = 50 the first half of the epochs is with 5 samples, in a third of the time, and then
5 of the 50 have a backward pass (`few_backward`), 29 ms a step for 40 on two cores.
With all 50, 155 epochs of which 110 with 5 samples gave 84.95, and 82.97 with two
layers. Of no use (in `mnist_vae`'s setting): averaged parameters, KL annealing.

Expect of the IWAE objective 85.74 (k = 1) and 85.27 (k = 5) nats after 20 and 48
minutes on one core, 84.39 (k = 50) after 71 on two, other programs beside; and with two
layers 83.45 (k = 1) after 22 on two cores, 83.03 (k = 5) after 7 on an H200 beside four
other cells, and 82.52 (k = 50) after 6 on an H200, other programs beside, and 30 on two
cores for the last tenth of the steps. Of the VAE objective, on that H200: 85.91 (k = 5)
after 6 minutes, 86.14 (k = 50) with a quarter of the steps on one core in 45 more, and
with two layers 83.26 (k = 5) after 7 and 83.44 (k = 50) with three tenths of the steps
on two cores in 64 more. By itself an H200 does 835 steps a second of two layers with 5
samples, and 690 with 50.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro

from experiments import mnist_iwae
from experiments.stored import own_or_stored
from vi_jax.commands import clear_errors
from vi_jax.experiment import run

STORED = Path(__file__).parent / "results" / "iwae_table.json"


class Cell(NamedTuple):
    """A number of the table: which model, raised by which bound."""

    layers: int
    objective: str
    k: int


# Table 1: -log p(x) in nats, and active units. The one-layer active units but for 25
# and all those of two layers are quoted from memory of the paper.
PUBLISHED = {
    Cell(1, "vae", 1): (86.76, "19"),
    Cell(1, "vae", 5): (86.47, "20"),
    Cell(1, "vae", 50): (86.35, "20"),
    Cell(1, "iwae", 1): (86.76, "19"),
    Cell(1, "iwae", 5): (85.54, "22"),
    Cell(1, "iwae", 50): (84.78, "25"),
    Cell(2, "vae", 1): (85.33, "16+5"),
    Cell(2, "vae", 5): (85.01, "17+5"),
    Cell(2, "vae", 50): (84.78, "17+5"),
    Cell(2, "iwae", 1): (85.33, "16+5"),
    Cell(2, "iwae", 5): (83.89, "21+5"),
    Cell(2, "iwae", 50): (82.90, "26+7"),
}

# The work per step grows with k: many samples take smaller batches, and begin with few.
RECIPES = {
    1: {"batch_size": 500, "learning_rate": 8e-3, "epochs": 400.0},
    5: {"batch_size": 200, "learning_rate": 5e-3, "epochs": 200.0},
    50: {
        "batch_size": 100,
        "learning_rate": 3e-3,
        "epochs": 300.0,
        "first_k": 5,
        "first_epochs": 150.0,
        "backward_k": 5,
    },
}

# Where all samples weigh the same, all have a backward pass: fewer of the epochs.
OF_EVEN_WEIGHTS = {"backward_k": 0, "epochs": 155.0, "first_epochs": 110.0}


@dataclasses.dataclass(frozen=True)
class Train:
    """Train and evaluate one cell, then print the table."""

    layers: Literal[1, 2] = 1
    """Stochastic layers."""
    objective: Literal["vae", "iwae"] = "iwae"
    """The mean of k log-weights, or the log of their mean."""
    k: Literal[1, 5, 50] = 1
    """Importance samples in training."""
    seed: int = 0
    """Of the initial parameters, the order of the data and every draw in training."""
    run_dir: Path = Path("runs/iwae_table")
    """Folder of the runs, one folder a cell and seed."""
    dataset: str = "mnist"
    """Name of a set of tensorflow-datasets, or path of an .npz with x_train, x_test."""
    data_dir: str = ""
    """Where sets are prepared; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    epochs: float = 0.0
    """Passes over the training images; 0 for the recipe's."""
    eval_samples: int = 5000
    """Importance samples per test image."""


@dataclasses.dataclass(frozen=True)
class Show:
    """Print the table."""

    run_dir: Path = Path("runs/iwae_table")
    """Folder of the runs."""


def knobs_of(train: Train) -> mnist_iwae.Knobs:
    """The run of `mnist_iwae` that is this cell."""
    recipe = dict(RECIPES[train.k])
    if (train.objective, train.k) == ("vae", 50):
        recipe |= OF_EVEN_WEIGHTS
    if train.epochs:
        shorter = train.epochs / recipe["epochs"]
        recipe["epochs"] = train.epochs
        if "first_epochs" in recipe:
            recipe["first_epochs"] *= shorter
    return mnist_iwae.Knobs(
        k=train.k,
        layers=train.layers,
        bound={"vae": "elbo", "iwae": "iwae"}[train.objective],
        optimizer="soap",
        seed=train.seed,
        dataset=train.dataset,
        data_dir=train.data_dir,
        eval_samples=train.eval_samples,
        **recipe,
    )


def train_cell(asked: Train) -> None:
    """Train one cell into its own folder; a finished one is left as it is."""
    name = f"{asked.objective}-layers{asked.layers}-k{asked.k}-seed{asked.seed}"
    knobs = knobs_of(asked)
    built = mnist_iwae.build(knobs)
    # The folder is one of mnist_iwae's, whose other commands work on it.
    run(built, asked.run_dir / name, name="mnist_iwae", knobs=knobs)


def cells_of(result: dict[str, Any]) -> list[Cell]:
    """The cells that a result belongs to: at k = 1 the two objectives are one."""
    objectives = {"elbo": ["vae"], "iwae": ["iwae"]}.get(result["bound"], [])
    objectives = ["vae", "iwae"] if objectives and result["k"] == 1 else objectives
    return [Cell(result["layers"], name, result["k"]) for name in objectives]


def collect(run_dir: Path) -> dict[Cell, list[dict[str, Any]]]:
    """The results of every cell, one a seed, as `own_or_stored` has them."""
    needed = {"nll", "seed", "layers", "bound", "k", "active_units_per_layer"}
    return own_or_stored(run_dir, STORED, cells_of, needed=needed)


def table(found: dict[Cell, list[dict[str, Any]]]) -> str:
    """The table in Markdown: ours beside the published, nats, active units in brackets.

    With several seeds: their mean, and its standard error over seeds behind +-.
    """
    lines = [
        "| layers | k | VAE, published | VAE, ours | IWAE, published | IWAE, ours |",
        "|---|---|---|---|---|---|",
    ]
    for layers, k in sorted({(c.layers, c.k) for c in PUBLISHED}):
        row = [str(layers), str(k)]
        for name in ("vae", "iwae"):
            cell = Cell(layers, name, k)
            nll, units = PUBLISHED[cell]
            row += [f"{nll:.2f} ({units})", _ours(found.get(cell, []))]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _ours(results: list[dict[str, Any]]) -> str:
    if not results:
        return ""
    nll = [r["nll"] for r in results]
    stderr = np.std(nll, ddof=1) / len(nll) ** 0.5 if len(nll) > 1 else 0.0
    spread = f" +- {stderr:.2f}" if len(nll) > 1 else ""
    layers = zip(*(r["active_units_per_layer"] for r in results), strict=True)
    between = lambda units: "-".join(map(str, sorted({min(units), max(units)})))
    units = "+".join(map(between, layers))
    seeds = f", {len(nll)} seeds" if len(nll) > 1 else ""
    return f"{np.mean(nll):.2f}{spread} ({units}{seeds})"


def main(argv: list[str] | None = None) -> None:
    """The command line; exits with 1 after one clear message."""
    argv = sys.argv[1:] if argv is None else argv
    train = argv[:1] == ["train"]
    program = f"python -m experiments.iwae_table{' train' if train else ''}"
    description = None if train else __doc__
    asked = tyro.cli(
        Train if train else Show,
        prog=program,
        description=description,
        args=argv[1:] if train else argv,
    )
    with clear_errors():
        if train:
            train_cell(asked)
        print(table(collect(asked.run_dir)))


if __name__ == "__main__":
    main()
