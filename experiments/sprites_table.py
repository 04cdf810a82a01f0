"""VAE, beta-VAE, beta-TCVAE and five others on sprites: their scores over seeds.

    python -m experiments.sprites_table                                  # what there is
    python -m experiments.sprites_table train --objective vae --seeds 0 1 2

A run is one of `sprites_beta`, with the recipe below; the table has the runs in
--run-dir or, of objectives without any, those stored in experiments/results. Means over
seeds, and the standard error of the mean; published: three seeds of each, trained for
300,000 steps on dSprites (TopDis, arXiv:2308.12696, table 1).

beta_vae has beta = 4 for the last third of its 30,000 steps, 1 at their start and 10
between. What that is for: from 4 on, or from above, the fourth latent (the direction of
ellipses) is lost in one seed of three or more, and a FactorVAE score of 0.6 is what is
left; beginning at 1 every run of seven kept it, at 10 as well. With nothing but 4 after
the beginning the two latents of place lie between x and y (MIG 0.18 and 0.14, seeds 0
and 1); some steps near 10 turn them (0.20 and 0.17), 10,000 steps there turn them
further (0.23 and 0.19). Beginning at 16 and going down to 1 and up again (seed 0) never
learned a fourth. All these were chosen with seeds 0 and 1, which are two of the three.

Expect of the FactorVAE score and MIG 0.70 +- 0.02 and 0.08 +- 0.02 (vae), 0.80 +- 0.00
and 0.21 +- 0.01 (beta_vae), 0.79 +- 0.01 and 0.32 +- 0.04 (beta_tcvae), 0.79 +- 0.00
and 0.30 +- 0.04 (factor_vae).

The strengths of the other five were chosen with seed 0, which is one of the three, out
of two at most: factor_vae with 10 had 0.81 and 0.18, dip_vae_i with 20 0.64 and 0.05,
dip_vae_ii with 20 0.71 and 0.19; info_vae and capacity have had no other.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import tyro

from experiments import sprites_beta
from experiments.stored import own_or_stored
from vi_jax.commands import clear_errors
from vi_jax.evaluation import across_seeds
from vi_jax.experiment import run

STORED = Path(__file__).parent / "results" / "sprites_table.json"

RECIPES = {
    "vae": {},
    "beta_vae": {
        "strength": 4.0,
        "beta_path": (1.0, 2.0, 4.0, 10.0, 10.0, 10.0, 4.0, 4.0, 4.0, 4.0),
        "learning_rate": 3e-3,
        "steps": 30_000,
    },
    "beta_tcvae": {"strength": 4.0},
    "capacity": {"strength": 25.0},
    "factor_vae": {"strength": 35.0},
    "dip_vae_i": {"strength": 5.0},
    "dip_vae_ii": {"strength": 5.0},
    "info_vae": {"strength": 1000.0},
}

# FactorVAE score and MIG, +- standard deviation.
PUBLISHED = {
    "beta_vae": (".807 +- .037", ".272 +- .101"),
    "beta_tcvae": (".810 +- .058", ".332 +- .029"),
    "factor_vae": (".819 +- .028", ".295 +- .049"),
}


@dataclasses.dataclass(frozen=True)
class Train:
    """Train and measure, then print the table."""

    objective: sprites_beta.Objective = "beta_tcvae"
    """What is minimised."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run each."""
    steps: int = 0
    """Training steps; 0 for the recipe's."""
    run_dir: Path = Path("runs/sprites_table")
    """Folder of the runs, one folder an objective and seed."""


@dataclasses.dataclass(frozen=True)
class Show:
    """Print the table."""

    run_dir: Path = Path("runs/sprites_table")
    """Folder of the runs."""


def train(asked: Train) -> None:
    """Each seed into its own folder; a finished one is left as it is."""
    for seed in asked.seeds:
        recipe = {"steps": asked.steps} if asked.steps else {}
        recipe = RECIPES[asked.objective] | recipe
        knobs = sprites_beta.Knobs(objective=asked.objective, seed=seed, **recipe)
        folder = asked.run_dir / f"{asked.objective}-seed{seed}"
        # The folder is one of sprites_beta's, whose other commands work on it.
        run(sprites_beta.build(knobs), folder, name="sprites_beta", knobs=knobs)


def collect(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """The results of every objective, one a seed, as `own_or_stored` has them."""
    needed = {"objective", "seed", "factor_vae_score", "mig", "elbo", "rate"}
    cells_of = lambda result: [result["objective"]]
    return own_or_stored(run_dir, STORED, cells_of, needed=needed)


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """In Markdown, mean +- standard error over seeds."""
    lines = [
        "| objective | FactorVAE score | published | MIG | published | ELBO | rate "
        "| seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for objective, results in sorted(found.items()):
        mean = lambda name, form, results=results: _mean(
            [r[name] for r in results], form
        )
        published = PUBLISHED.get(objective, ("", ""))
        row = [
            objective,
            mean("factor_vae_score", ".3f"),
            published[0],
            mean("mig", ".3f"),
            published[1],
            mean("elbo", ".1f"),
            mean("rate", ".1f"),
            str(len(results)),
        ]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _mean(values: list[float], form: str) -> str:
    if len(values) < 2:
        return f"{values[0]:{form}}"
    mean, stderr = across_seeds(values)
    return f"{mean:{form}} +- {stderr:{form}}"


def main(argv: list[str] | None = None) -> None:
    """The command line; exits with 1 after one clear message."""
    argv = sys.argv[1:] if argv is None else argv
    trains = argv[:1] == ["train"]
    program = f"python -m experiments.sprites_table{' train' if trains else ''}"
    asked = tyro.cli(
        Train if trains else Show,
        prog=program,
        description=None if trains else __doc__,
        args=argv[1:] if trains else argv,
    )
    with clear_errors():
        if trains:
            train(asked)
        print(table(collect(asked.run_dir)))


if __name__ == "__main__":
    main()
