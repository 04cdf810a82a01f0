"""How good generated molecules are, with the measures of MOSES.

Ref: Polykovskiy et al. 2020, arXiv:1811.12823.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import QED, Crippen, Descriptors, rdFingerprintGenerator
from scipy.stats import wasserstein_distance

from experiments.molecules import canonical

PROPERTIES = {"logP": Crippen.MolLogP, "QED": QED.qed, "weight": Descriptors.MolWt}
"""Octanol-water partition, drug-likeness in [0, 1], weight in g/mol."""


class Reference(NamedTuple):
    """What generated molecules are compared with."""

    train: frozenset[str]  # canonical SMILES
    properties: dict[str, np.ndarray]  # of held-out molecules, [n] each


def properties(
    smiles: Sequence[str], names: Sequence[str] = tuple(PROPERTIES)
) -> dict[str, np.ndarray]:
    """The named ones of PROPERTIES of molecules, float64 [n] each."""
    # One molecule at a time: a parsed one takes some 35 kB.
    with rdBase.BlockLogs():
        rows = [
            [PROPERTIES[name](molecule) for name in names]
            for molecule in map(Chem.MolFromSmiles, smiles)
        ]
    columns = np.array(rows, float).reshape(-1, len(names)).T
    return dict(zip(names, columns, strict=True))


def appraise(smiles: Sequence[str], reference: Reference) -> dict[str, float]:
    """The measures of generated SMILES, in the order in which they were drawn.

    - `validity`: share that RDKit reads as a molecule.
    - `unique_1k`, `unique_10k`: share of different ones among the first 1,000 or
      10,000 molecules, or among all where there are fewer.
    - `novelty`: share of the different molecules that no training molecule is.
    - `diversity`: see `internal_diversity`.
    - `w_logP`, `w_QED`, `w_weight`: 1-Wasserstein distances to the held-out molecules,
      in the unit of the property.
    - `molecules`: how many are valid.

    Raises ValueError where not one is valid.
    """
    found = [canonical(text) for text in smiles]
    valid = [text for text in found if text is not None]
    if not valid:
        raise ValueError(f"none of {len(smiles)} samples is a molecule: train longer")
    different = set(valid)
    of_samples = properties(valid)
    distances = {
        f"w_{name}": float(wasserstein_distance(of_samples[name], held_out))
        for name, held_out in reference.properties.items()
    }
    return {
        "validity": len(valid) / len(smiles),
        "unique_1k": len(set(valid[:1_000])) / len(valid[:1_000]),
        "unique_10k": len(set(valid[:10_000])) / len(valid[:10_000]),
        "novelty": len(different - reference.train) / len(different),
        "diversity": internal_diversity(valid),
        **distances,
        "molecules": len(valid),
    }


def fingerprints(smiles: Sequence[str]) -> np.ndarray:
    """Morgan fingerprints of molecules: radius 2, 1024 bits, float32 [n, 1024]."""
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024)
    made = [generator.GetFingerprintAsNumPy(m) for m in _parsed(smiles)]
    return np.array(made, np.float32).reshape(len(made), 1024)


def tanimoto(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a and b| / |a or b| of every pair of bit rows a [n, d] and b [m, d], [n, m]."""
    both = a @ b.T
    either = a.sum(1)[:, None] + b.sum(1)[None] - both
    return both / np.maximum(either, 1)


def paired_tanimoto(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a and b| / |a or b| of each row of a with that of b, [n, d] both, [n]."""
    both = np.sum(a * b, axis=1)
    return both / np.maximum(a.sum(1) + b.sum(1) - both, 1)


def internal_diversity(smiles: Sequence[str]) -> float:
    """1 - the mean Tanimoto similarity of all pairs, of a molecule with itself too.

    IntDiv with p = 1 of MOSES. Ref: Benhenda 2017, arXiv:1708.08227.
    """
    bits = fingerprints(smiles)
    parts = np.array_split(bits, -(-len(bits) // 1_000))
    total = sum(float(tanimoto(part, bits).sum(dtype=np.float64)) for part in parts)
    return 1 - total / len(bits) ** 2


def _parsed(smiles: Sequence[str]) -> list[Chem.Mol]:
    with rdBase.BlockLogs():
        return [Chem.MolFromSmiles(text) for text in smiles]
