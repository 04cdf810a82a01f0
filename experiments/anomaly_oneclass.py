"""One class is normal and all others are anomalies: a VAE of each digit of MNIST.

    python -m experiments.anomaly_vae one-class
    python -m experiments.anomaly_vae one-class --classes 8 --split valid

Protocol 2 of OCGAN (Perera et al. 2019): trained on the training images of one digit,
less --num-valid of them for the threshold; measured on all 10,000 test images; one
score and one set of settings for every digit. The scores that take long are measured
on the first --num-part images of each kind; `part` is every score's AUROC on those.
(AUPRC depends on the share of anomalies: 0.9 of all test images, half of the part.)

To a model of 8s a 1 is likelier than an 8, since it has less ink to get wrong. The
likelihood ratio (Ren et al. 2019, arXiv:1906.02845) takes from -ELBO what a background
model needs for the same image, one that is fitted to the same training images but sees
only four neighbours of a pixel. It and the settings were chosen on the digits 8 and 2
alone, 400 held-out training images of each against 540 of the other digits (the second
command now takes 3,600). AUROC there for digit 8, with z of 8 (of 16): -ELBO 0.799
(0.780), reconstruction error 0.885 (0.875), the ratio 0.965 (0.960); z of 32 was no
better.

Expect, mean AUROC of the ten digits in % +- its standard error over digits (one seed),
in 7 minutes on one core that other jobs shared:

    likelihood ratio             98.55 +- 0.28   (least 97.6, digit 8)
    reconstruction error         96.02 +- 1.04
    likelihood regret            94.44 +- 1.28   (300 images of each kind)
    -log p(x)                    92.35 +- 1.89   (likewise)
    reconstruction probability   92.31 +- 1.90
    -ELBO                        91.96 +- 1.94
    latent distance              56.01 +- 5.27

The published VAE has 96.96. Thresholds for 5% of false alarms had 3.3 to 6.0%.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from experiments.anomaly_images import (
    ELBO,
    RATIO,
    SCORES,
    Recipe,
    Scorers,
    background_nats,
    bernoulli_vae,
    fit_background,
    judged,
    load_scores,
    mean_of,
    plan_of,
    save_scores,
    scorers,
    trained,
)
from vi_jax import plots, runs
from vi_jax.commands import clear_errors
from vi_jax.data import load
from vi_jax.data.sources import Dataset
from vi_jax.evaluation import threshold
from vi_jax.model import Model

PUBLISHED = {
    "VAE": 0.9696,
    "OCGAN": 0.9750,
    "Deep SVDD": 0.9480,
    "AnoGAN": 0.914,
    "KDE": 0.814,
    "DAE": 0.8766,
}


@dataclasses.dataclass(frozen=True)
class Knobs:
    """The knobs of one run, all of them part of what its folder stands for."""

    classes: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
    """The classes that are normal, one after another."""
    split: Literal["test", "valid"] = "test"
    """The test images; or held-out training images, by which settings are chosen."""
    latents: int = 8
    """Dimension of z."""
    hidden: int = 256
    """Width of the one hidden layer of each network."""
    epochs: float = 30.0
    """Passes over the training images of the class."""
    batch_size: int = 100
    """Images per step."""
    learning_rate: float = 1e-3
    """Adam's step size at the start; it falls to 0 along a cosine."""
    num_valid: int = 400
    """Training images of each class that are held out: for the threshold, or valid."""
    num_part: int = 300
    """Images of each kind for the scores that take long."""
    num_samples: int = 100
    """Importance samples per image."""
    regret_steps: int = 50
    """Steps that fit q to one image, for the likelihood regret."""
    false_alarm_rate: float = 0.05
    """Of the threshold, wanted."""
    seed: int = 0
    """Of the initial parameters, the order of the data and every draw in training."""
    dataset: str = "mnist"
    """Name of a set of tensorflow-datasets, or path of an .npz with x_train, y_train,
    x_test and y_test."""
    data_dir: str = ""
    """Where sets are prepared; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""


@dataclasses.dataclass(frozen=True)
class OneClass:
    """One of the runs."""

    normal: int
    knobs: Knobs


@dataclasses.dataclass(frozen=True)
class Data:
    """Images uint8 [n, D] of a class to train on, and of both kinds to score."""

    train: np.ndarray
    valid: np.ndarray  # of the class, held out from training and from the scores
    normal: np.ndarray
    anomalous: np.ndarray
    shape: tuple[int, ...]  # (h, w, c) of an image


def read(knobs: Knobs) -> tuple[Dataset, Dataset]:
    """Training and test images. Raises ValueError where they have no labels."""
    train, test = (
        load(knobs.dataset, split, data_dir=knobs.data_dir or None)
        for split in ("train", "test")
    )
    if train.label is None or test.label is None:
        raise ValueError(f"{knobs.dataset} has no labels, which say what is normal")
    return train, test


def data_of(knobs: Knobs, normal: int, train: Dataset, test: Dataset) -> Data:
    """Raises ValueError where there are too few images of the class, or of others."""
    size = int(np.prod(train.image.shape[1:]))
    of = lambda data, at: data.image[at].reshape(-1, size)
    own = of(train, train.label == normal)
    held = knobs.num_valid * (2 if knobs.split == "valid" else 1)
    if not 1 <= knobs.num_valid or len(own) <= held:
        raise ValueError(
            f"{knobs.dataset} has {len(own)} training images of class {normal}, of "
            f"which {held} are to be held out: needed are at least 1, and some left"
        )
    valid = own[-knobs.num_valid :]
    if knobs.split == "test":
        shown = of(test, test.label == normal), of(test, test.label != normal)
    else:
        # Of the end of the set, in its own order, which mixes the classes.
        others = of(train, train.label != normal)[-9 * knobs.num_valid :]
        shown = own[-held : -knobs.num_valid], others
    if not all(map(len, shown)):
        raise ValueError(f"no image to score is of class {normal}, or all of them are")
    return Data(own[:-held], valid, *shown, train.image.shape[1:])


def one_class(
    asked: OneClass, data: Data, score: Scorers, folder: Path
) -> dict[str, Any]:
    """Train on one class and score; scores.npz in the folder."""
    knobs, model = asked.knobs, model_of(asked.knobs, data)
    plan = plan_of(model, data.train, data.valid, score, recipe_of(knobs))
    params, about = trained(plan, model, data.train.shape[1], folder)
    background = fit_background(data.train, data.shape)

    def scored(x: np.ndarray) -> dict[str, np.ndarray]:
        found = score.cheap(params, x)
        return found | {RATIO: found[ELBO] - background_nats(background, x)}

    valid = scored(data.valid)
    normal, anomalous = (
        scored(x) | score.dear(params, x[: knobs.num_part])
        for x in (data.normal, data.anomalous)
    )
    save_scores(folder / SCORES, {"normal": normal, "anomalous": anomalous})
    alarms = {}
    for name, scores in valid.items():
        line = threshold(scores, knobs.false_alarm_rate)
        alarms[name] = line._asdict() | {
            "false_alarms": float(np.mean(normal[name] > line.value)),
            "detected": float(np.mean(anomalous[name] > line.value)),
        }
    return {
        "normal": asked.normal,
        "num_train": len(data.train),
        "num_valid": len(data.valid),
        "num_normal": len(data.normal),
        "num_anomalous": len(data.anomalous),
        "scores": judged(normal, anomalous, knobs.num_part),
        "threshold": alarms,
        **about,
    }


def model_of(knobs: Knobs, data: Data) -> Model:
    return bernoulli_vae(
        mean_of(data.train), latents=knobs.latents, hidden=knobs.hidden
    )


def recipe_of(knobs: Knobs) -> Recipe:
    return Recipe(knobs.epochs, knobs.batch_size, knobs.learning_rate, knobs.seed)


def run(knobs: Knobs, run_dir: Path) -> dict[str, Any]:
    """All classes, each in its own folder; a finished one is left as it is."""
    train, test = read(knobs)
    each = {c: data_of(knobs, c, train, test) for c in knobs.classes}
    score = checked(knobs, each)

    def work() -> dict[str, Any]:
        rows = []
        for c, data in each.items():
            asked, folder = OneClass(c, knobs), run_dir / f"class{c}"
            work = lambda a=asked, d=data, f=folder: one_class(a, d, score, f)
            rows.append(runs.once(folder, "anomaly_vae one-class, one", asked, work))
            show_row(rows[-1])
        draw(each, run_dir)
        return {
            "dataset": knobs.dataset,
            "split": knobs.split,
            "seed": knobs.seed,
            "num_part": knobs.num_part,
            "mean": means(rows),
            "classes": rows,
        }

    return runs.once(run_dir, "anomaly_vae one-class", knobs, work)


def checked(knobs: Knobs, each: dict[int, Data]) -> Scorers:
    """The scorers. Raises ValueError for wrong knobs, before there is a folder."""
    if not each or min(knobs.num_part, knobs.num_samples, knobs.regret_steps) < 1:
        raise ValueError(
            "needed: a class, and num_part, num_samples and regret_steps of at least 1"
        )
    threshold(np.arange(knobs.num_valid), knobs.false_alarm_rate)
    data = next(iter(each.values()))
    model = model_of(knobs, data)
    score = scorers(model, knobs.num_samples, knobs.regret_steps)
    plan_of(model, data.train, data.valid, score, recipe_of(knobs))
    return score


def means(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The mean over classes of each number, and its standard error over classes."""
    found = {}
    for name, numbers in rows[0]["scores"].items():
        found[name] = {}
        for key in numbers:
            values = np.array([row["scores"][name][key] for row in rows])
            found[name][key] = float(values.mean())
            if len(values) > 1:
                error = values.std(ddof=1) / len(values) ** 0.5
                found[name][f"{key}_stderr"] = float(error)
    return found


def draw(each: dict[int, Data], run_dir: Path) -> None:
    """Histograms of the best score; the oddest normal images, and those missed."""
    panels, rows = {}, {}
    for c, data in each.items():
        scores = load_scores(run_dir / f"class{c}" / SCORES)
        of = {kind: scores[kind][RATIO] for kind in ("normal", "anomalous")}
        panels[f"normal: {c}"] = of
        picture = lambda x, s=data.shape: x.reshape(-1, *s) / 255
        rows[f"oddest {c}"] = picture(data.normal[np.argsort(-of["normal"])[:12]])
        rows[f"likest {c}"] = picture(data.anomalous[np.argsort(of["anomalous"])[:12]])
    histograms = plots.score_histograms(panels, xlabel=RATIO)
    runs.write_picture(run_dir / "histograms.png", histograms)
    if len({len(images) for images in rows.values()}) == 1:
        runs.write_picture(run_dir / "extremes.png", plots.named_rows(rows))


def show_row(row: dict[str, Any]) -> None:
    best, line = row["scores"][RATIO], row["threshold"][RATIO]
    print(
        f"normal: {row['normal']}   {RATIO}: AUROC {best['auroc']:.4f}, AUPRC "
        f"{best['auprc']:.4f}; at the threshold {line['false_alarms']:.3f} false "
        f"alarms, {line['detected']:.3f} detected",
        flush=True,
    )


def show(result: dict[str, Any], run_dir: Path) -> None:
    classes = [row["normal"] for row in result["classes"]]
    print(f"{result['dataset']}, {result['split']} images; AUROC in %")
    print(
        f"{'':28}{'mean':>6}{'+-':>6}{'AUPRC':>7}{'part':>7}",
        *(f"{c:>6}" for c in classes),
    )
    for name, mean in result["mean"].items():
        each = [100 * row["scores"][name]["auroc"] for row in result["classes"]]
        print(
            f"{name:28}{100 * mean['auroc']:6.2f}"
            f"{100 * mean.get('auroc_stderr', float('nan')):6.2f}"
            f"{100 * mean['auprc']:7.2f}{100 * mean['auroc_part']:7.2f}",
            *(f"{value:6.1f}" for value in each),
        )
    print("published:", ", ".join(f"{k} {v:.4f}" for k, v in PUBLISHED.items()))
    print(run_dir)


def main(
    knobs: Annotated[Knobs, tyro.conf.OmitArgPrefixes],
    run_dir: Path = Path("runs/anomaly_one_class"),
) -> None:
    """A VAE of each class: AUROC and AUPRC of every score, thresholds and pictures.

    Args:
        run_dir: Folder of the run; the same command again goes on with it.
    """
    with clear_errors():
        show(run(knobs, run_dir), run_dir)
