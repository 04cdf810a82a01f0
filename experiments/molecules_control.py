"""Molecules with a wanted property: asked of a conditional VAE, or climbed to in z."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.linear_model import RidgeCV

from experiments.molecules import canonical
from experiments.molecules_properties import (
    fingerprints,
    paired_tanimoto,
    properties,
)

STEPS = (0.5, 1.0, 2.0, 3.0, 4.0)
"""Lengths of the moves of z, in standard deviations of its prior."""
SIMILARITIES = (0.0, 0.2, 0.4)
"""A success has to be at least as similar to its start. Ref: Jin 2018, 1802.04364."""


def property_of(smiles: Sequence[str], name: str) -> np.ndarray:
    """One of PROPERTIES of molecules, [n]; nan where a SMILES is none."""
    found = [canonical(text) for text in smiles]
    values = np.full(len(found), np.nan)
    valid = [i for i, text in enumerate(found) if text is not None]
    values[valid] = properties([found[i] for i in valid], [name])[name]
    return values


class Contexts(NamedTuple):
    """A property of molecules, standardised: what a conditional model is given."""

    train: np.ndarray  # [n, 1]
    valid: np.ndarray  # [m, 1]
    mean: float  # of the training molecules, in the unit of the property
    scale: float

    def in_units(self, c: np.ndarray) -> np.ndarray:
        """The property that contexts c [n, 1] stand for, [n]."""
        return self.mean + self.scale * c[:, 0].astype(np.float64)


def contexts_of(train: Sequence[str], valid: Sequence[str], name: str) -> Contexts:
    """The named property of training and validation molecules.

    Raises ValueError where it is the same for all.
    """
    of_train, of_valid = (properties(part, [name])[name] for part in (train, valid))
    mean, scale = float(of_train.mean()), float(of_train.std())
    if not scale > 0:
        raise ValueError(f"all training molecules have the {name} {mean}")
    to = lambda values: ((values - mean) / scale).astype(np.float32)[:, None]
    return Contexts(to(of_train), to(of_valid), mean, scale)


def asked_and_got(asked: np.ndarray, got: np.ndarray) -> dict[str, float]:
    """How well molecules have the property that was asked for, each [n] in its unit.

    `got` is nan where there is no molecule. `mae` and `correlation` are of the others;
    `mae_chance` is the mean absolute error of what was got for another request.
    Raises ValueError where fewer than two are molecules.
    """
    valid = ~np.isnan(got)
    if valid.sum() < 2:
        raise ValueError(f"{valid.sum()} of {len(got)} samples are molecules")
    a, g = asked[valid], got[valid]
    return {
        "validity": float(valid.mean()),
        "correlation": float(np.corrcoef(a, g)[0, 1]),
        "mae": float(np.mean(abs(a - g))),
        "mae_chance": float(np.mean(abs(a[:, None] - g[None]))),
        "molecules": int(valid.sum()),
    }


def reconstruction(texts: Sequence[str], of: Sequence[str]) -> dict[str, float | None]:
    """How near what was decoded is to the molecules that were encoded.

    `reconstructed` is the share that is the same molecule, `similarity` the mean
    Tanimoto similarity of those that are molecules, None where none is.
    """
    found = [canonical(text) for text in texts]
    pairs = [(a, canonical(b)) for a, b in zip(found, of, strict=True) if a is not None]
    ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    near = paired_tanimoto(fingerprints(ours), fingerprints(theirs))
    return {
        "reconstructed": sum(a == b for a, b in pairs) / len(of),
        "similarity": float(np.mean(near)) if pairs else None,
    }


def fit_direction(
    z: np.ndarray, values: np.ndarray, z_test: np.ndarray, values_test: np.ndarray
) -> tuple[np.ndarray, float]:
    """The direction of z [n, d] along which a property rises, of length 1, and R^2.

    That of a linear regression with a penalty chosen by cross-validation, whose R^2 is
    of the test rows.
    """
    model = RidgeCV(alphas=np.logspace(-2, 4, 13)).fit(z, values)
    direction = model.coef_ / np.linalg.norm(model.coef_)
    return direction, float(model.score(z_test, values_test))


def climb(
    decode: Callable[[np.ndarray], list[str]],
    z: np.ndarray,
    directions: np.ndarray,
    starts: Sequence[str],
    name: str,
) -> dict[str, Any]:
    """How often z [n, d], moved along its direction, decodes to a better molecule.

    A success is a molecule, has more of the property than the start, by RDKit, and is
    as similar to it as asked (Tanimoto of fingerprints).
    `rates[i][j]` is the share of starts with a success at SIMILARITIES[i] and STEPS[j],
    where one molecule is decoded and no property is looked at; `best_of_path[i]` counts
    a start if any of the steps is a success: RDKit chooses among len(STEPS) molecules.
    `gain[j]` is the mean rise of the property where the decoded is a molecule (None
    where none is), `validity[j]` how often it is.
    """
    before, bits = property_of(starts, name), fingerprints(starts)
    successes, gains, validity = [], [], []
    for step in STEPS:
        texts = [canonical(text) for text in decode(z + step * directions)]
        valid = np.array([text is not None for text in texts])
        after = property_of([text or "" for text in texts], name)
        better = after > before  # False where it is nan
        near = np.zeros(len(texts))
        if valid.any():
            found = fingerprints([text for text in texts if text is not None])
            near[valid] = paired_tanimoto(found, bits[valid])
        successes.append([better & (near >= least) for least in SIMILARITIES])
        gains.append(float(np.nanmean(after - before)) if valid.any() else None)
        validity.append(float(valid.mean()))
    success = np.array(successes)  # [steps, similarities, n]
    return {
        "rates": success.mean(2).T.round(4).tolist(),
        "best_of_path": success.any(0).mean(1).round(4).tolist(),
        "gain": gains,
        "validity": validity,
        "starts": len(starts),
    }
