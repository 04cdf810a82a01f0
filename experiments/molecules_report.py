"""Pictures of molecules, and the table of the runs beside the published."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from rdkit import Chem
from rdkit.Chem import Draw

from experiments.molecules import canonical
from experiments.molecules_properties import properties
from vi_jax import runs

MEASURES = (
    *("validity", "unique_1k", "unique_10k", "novelty", "diversity"),
    *("w_logP", "w_QED", "w_weight"),
)

# MOSES, mean of three runs, 30,000 samples; 1.6 million training molecules.
PUBLISHED = {
    "VAE (MOSES)": (0.9767, 1.0, 0.9984, 0.6949, 0.8558),
    "CharRNN (MOSES)": (0.9748, 1.0, 0.9994, 0.8419, 0.8562),
    "AAE (MOSES)": (0.9368, 1.0, 0.9973, 0.7931, 0.8557),
    "JTN-VAE (MOSES)": (1.0, 1.0, 0.9996, 0.9143, 0.8551),
}


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """The measures in Markdown: runs, the held-out molecules, and published models."""
    names = ("model", "n", "train", *MEASURES)
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]

    def add(name: str, n: Any, train: Any, values: Sequence[float]) -> None:
        cells = [f"{value:.3f}" for value in values]
        cells += [""] * (len(MEASURES) - len(cells))
        lines.append("| " + " | ".join([name, str(n), str(train), *cells]) + " |")

    for result in results:
        of = lambda measures: [measures[name] for name in MEASURES]
        name = f"{result['representation']} {result['model']}"
        if result["temperature"] != 1:
            name += f" at temperature {result['temperature']}"
        add(name, result["samples"], result["num_train"], of(result["measures"]))
    bars = [
        (r["num_bar"], r["num_train"], tuple(r["bar"][name] for name in MEASURES))
        for r in results
    ]
    for n, train, bar in dict.fromkeys(bars):
        add("held-out molecules", n, train, bar)
    for name, values in PUBLISHED.items():
        add(name, 30_000, 1_584_663, values)
    return "\n".join(lines)


def molecule_grid(
    smiles: Sequence[str], *, columns: int, legends: Sequence[str] | None = None
) -> Image.Image:
    """Drawings of molecules, row by row."""
    molecules = [Chem.MolFromSmiles(text) for text in smiles]
    return Draw.MolsToGridImage(
        molecules,
        molsPerRow=columns,
        subImgSize=(200, 160),
        legends=list(legends or [""] * len(molecules)),
        returnPNG=False,
    )


def property_histograms(
    values: Mapping[str, Mapping[str, np.ndarray]],
) -> Figure:
    """A panel a property, a line a set of molecules: {set: {property: [n]}}."""
    names = list(next(iter(values.values())))
    figure = Figure(figsize=(3.2 * len(names), 2.8), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
        pooled = np.concatenate([of[name] for of in values.values()])
        edges = np.linspace(*np.quantile(pooled, (0.001, 0.999)), 41)
        for label, of in values.items():
            axes.hist(of[name], edges, density=True, histtype="step", label=label)
        axes.set_xlabel(name)
        axes.set_yticks([])
    axes.legend(fontsize=7)
    return figure


def asked_against_got(asked: np.ndarray, got: np.ndarray, name: str) -> Figure:
    """What was asked for, [n], and what RDKit finds; nan where there is no molecule."""
    figure = Figure(figsize=(3.6, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(asked, got, ".", markersize=2, alpha=0.3)
    ends = [np.min(asked), np.max(asked)]
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.set(xlabel=f"{name} asked for", ylabel=f"{name} got")
    return figure


def draw_pictures(
    smiles: Sequence[str], of_held_out: Mapping[str, np.ndarray], folder: Path
) -> None:
    """Some of the samples, and their properties beside the held-out molecules'."""
    valid = [text for text in map(canonical, smiles) if text is not None]
    with runs.whole_file(folder / "samples.png") as file:
        molecule_grid(valid[:24], columns=6).save(file, "png")
    of_each = {"samples": properties(valid), "held-out": of_held_out}
    runs.write_picture(folder / "properties.png", property_histograms(of_each))
