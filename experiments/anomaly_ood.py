"""Train on one set, look at another: where log p(x) fails, and what helps.

    python -m experiments.anomaly_vae ood

A VAE of the 256 values of each pixel. What is simple is likely: to one of Fashion-MNIST
MNIST is likelier than its own test images. Two scores help. The likelihood regret (Xiao
et al. 2020, arXiv:2003.02977) is what the encoder loses on an image. The complexity-
corrected score (Serra et al. 2020, arXiv:1909.11480) takes from -ELBO the length of the
image as a PNG file, in nats too. That length alone separates these sets as well, but
one way only: the other way it has their order wrong.

Expect AUROC, the first 5,000 test images of each set (500 for the last two scores), one
seed, in 2.5 minutes on one core:

    trained on                   Fashion-MNIST   MNIST
    -ELBO                            0.234       0.997
    reconstruction error             0.987       0.997
    -code length                     0.987       0.013
    -ELBO - code length              0.991       0.996
    -log p(x), 200 samples           0.239       0.997
    likelihood regret                0.997       1.000
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from experiments.anomaly_images import (
    ELBO,
    SCORES,
    Recipe,
    Scorers,
    code_lengths,
    judged,
    load_scores,
    logistic_vae,
    plan_of,
    save_scores,
    scorers,
    trained,
)
from vi_jax import plots, runs
from vi_jax.commands import clear_errors
from vi_jax.data.images import ImageData, image_data
from vi_jax.model import Model
from vi_jax.resumable import Training

LENGTH, CORRECTED = "-code length", "-ELBO - code length"
# AUROC, Fashion-MNIST against MNIST, convolutional VAE on 32 x 32 (Xiao et al. 2020).
PUBLISHED = {"likelihood regret": 0.988, ELBO: "0.2 to 0.3"}


@dataclasses.dataclass(frozen=True)
class Knobs:
    """The knobs of one run, all of them part of what its folder stands for."""

    sets: tuple[str, str] = ("fashion_mnist", "mnist")
    """Names of two sets of tensorflow-datasets, or paths of two .npz files, with images
    of one size; each is the normal one in its turn."""
    latents: int = 32
    """Dimension of z."""
    hidden: int = 400
    """Width of the one hidden layer of each network."""
    epochs: float = 5.0
    """Passes over the training images."""
    batch_size: int = 100
    """Images per step."""
    learning_rate: float = 1e-3
    """Adam's step size at the start; it falls to 0 along a cosine."""
    num_test: int = 5000
    """Test images of each set, the first."""
    num_part: int = 500
    """Of them, for the scores that take long."""
    num_samples: int = 200
    """Importance samples per image."""
    regret_steps: int = 100
    """Steps that fit q to one image, for the likelihood regret."""
    seed: int = 0
    """Of the initial parameters, the order of the data and every draw in training."""
    data_dir: str = ""
    """Where sets are prepared; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""


@dataclasses.dataclass(frozen=True)
class OneWay:
    """One of the two runs."""

    normal: str
    anomalous: str
    knobs: Knobs


def read(knobs: Knobs) -> dict[str, ImageData]:
    """Both sets. Raises ValueError where they are one, or differ in their size."""
    data = {
        name: image_data(
            name,
            binarize="none",
            batch_size=knobs.batch_size,
            seed=knobs.seed,
            data_dir=knobs.data_dir or None,
        )
        for name in knobs.sets
    }
    shapes = {name: each.shape for name, each in data.items()}
    if len(data) != 2 or len(set(shapes.values())) != 1:
        raise ValueError(f"needed: two sets with images of one size, got {shapes}")
    return data


def model_of(knobs: Knobs, data: ImageData) -> Model:
    return logistic_vae(data.mean, latents=knobs.latents, hidden=knobs.hidden)


def plan_for(knobs: Knobs, data: ImageData, model: Model, score: Scorers) -> Training:
    recipe = Recipe(knobs.epochs, knobs.batch_size, knobs.learning_rate, knobs.seed)
    return plan_of(model, data.train.resident["image"], data.valid, score, recipe)


def one_way(
    asked: OneWay, data: dict[str, ImageData], score: Scorers, folder: Path
) -> dict[str, Any]:
    """Train on the normal set and score the test images of both."""
    knobs, normal = asked.knobs, data[asked.normal]
    model = model_of(knobs, normal)
    plan = plan_for(knobs, normal, model, score)
    params, about = trained(plan, model, normal.mean.size, folder)
    scores = {}
    for name in knobs.sets:
        x = data[name].test[: knobs.num_test]
        found = score.cheap(params, x) | {LENGTH: -code_lengths(x, normal.shape)}
        found[CORRECTED] = found[ELBO] + found[LENGTH]
        scores[name] = found | score.dear(params, x[: knobs.num_part])
    save_scores(folder / SCORES, scores)
    means = {
        name: {score: float(np.mean(each)) for score, each in found.items()}
        for name, found in scores.items()
    }
    return {
        "normal": asked.normal,
        "anomalous": asked.anomalous,
        "num_train": normal.num_train,
        "num_normal": len(scores[asked.normal][ELBO]),
        "num_anomalous": len(scores[asked.anomalous][ELBO]),
        "scores": judged(scores[asked.normal], scores[asked.anomalous], knobs.num_part),
        "means": means,
        **about,
    }


def run(knobs: Knobs, run_dir: Path) -> dict[str, Any]:
    """Both ways, each in its own folder; a finished one is left as it is."""
    data = read(knobs)
    if min(knobs.num_test, knobs.num_part, knobs.num_samples, knobs.regret_steps) < 1:
        raise ValueError(
            "needed: num_test, num_part, num_samples and regret_steps of at least 1"
        )
    normal = data[knobs.sets[0]]
    model = model_of(knobs, normal)
    score = scorers(model, knobs.num_samples, knobs.regret_steps)
    plan_for(knobs, normal, model, score)

    def work() -> dict[str, Any]:
        rows = []
        for i, (normal, anomalous) in enumerate((knobs.sets, knobs.sets[::-1])):
            asked, folder = OneWay(normal, anomalous, knobs), run_dir / f"way{i}"
            one = lambda a=asked, f=folder: one_way(a, data, score, f)
            rows.append(runs.once(folder, "anomaly_vae ood, one way", asked, one))
            figure = draw(load_scores(folder / SCORES), normal)
            runs.write_picture(folder / "scores.png", figure)
        about = {"num_part": knobs.num_part, "seed": knobs.seed, "split": "test"}
        return {**about, "ways": rows}

    return runs.once(run_dir, "anomaly_vae ood", knobs, work)


def draw(scores: dict[str, dict[str, np.ndarray]], normal: str):
    """Histograms of every score over the test images of both sets."""
    panels = {
        score: {name: found[score] for name, found in scores.items()}
        for score in scores[normal]
    }
    return plots.score_histograms(panels, xlabel=f"trained on {normal}", columns=4)


def show(result: dict[str, Any], run_dir: Path) -> None:
    for row in result["ways"]:
        normal, anomalous = row["normal"], row["anomalous"]
        print(f"trained on {normal}; {anomalous} is the anomaly")
        print(f"{'':28}{'AUROC':>8}{'AUPRC':>8}{'part':>8}{'means':>22}")
        for name, numbers in row["scores"].items():
            both = "".join(
                f"{row['means'][s][name]:11.1f}" for s in (normal, anomalous)
            )
            print(
                f"{name:28}{numbers['auroc']:8.4f}{numbers['auprc']:8.4f}"
                f"{numbers['auroc_part']:8.4f}{both}"
            )
    print(f"published, fashion_mnist against mnist: {PUBLISHED}")
    print(run_dir)


def main(
    knobs: Annotated[Knobs, tyro.conf.OmitArgPrefixes],
    run_dir: Path = Path("runs/anomaly_ood"),
) -> None:
    """A VAE of either set: AUROC and AUPRC of every score, means and histograms.

    Args:
        run_dir: Folder of the run; the same command again goes on with it.
    """
    with clear_errors():
        show(run(knobs, run_dir), run_dir)
