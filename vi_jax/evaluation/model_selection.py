"""Which of several trained models to trust: agreement, and scores across seeds."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from vi_jax.divergences import Estimate
from vi_jax.evaluation.disentanglement import (
    checked_codes,
    needs_sklearn,
    standardiser,
)

Similarity = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(codes [n, d_a], codes [n, d_b]), standardised, -> [d_a, d_b], none negative."""


def lasso_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|w_ij| of the L1 regression, of weight 0.1, that predicts latents b from a."""
    with needs_sklearn():
        from sklearn.linear_model import Lasso
    return np.abs(Lasso(alpha=0.1).fit(a, b).coef_.reshape(b.shape[1], a.shape[1]).T)


def spearman_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|Spearman's rank correlation| of each latent of a with each of b."""
    from scipy.stats import rankdata  # slow to import

    a, b = (_standardised(rankdata(codes, axis=0)) for codes in (a, b))
    return np.abs(a.T @ b) / len(a)


def udr(
    codes: ArrayLike,
    kl_per_latent: ArrayLike,
    *,
    similarity: Similarity = lasso_similarity,
    threshold: float = 0.01,
) -> np.ndarray:
    """Unsupervised disentanglement ranking of m models, [m], without any factors.

    A model scores the median over the others of
    (sum_b max_a R_ab^2 / sum_a R_ab + sum_a max_b R_ab^2 / sum_b R_ab) / (d_a + d_b),
    R the `similarity` of the other's informative latents a with its own b: the two
    agree where each latent has one counterpart. codes is [m, n, d], of the same n
    inputs, and kl_per_latent [m, d] in nats; latents with more than `threshold` of it
    are informative. A pair without any on one side has 0.
    Raises ValueError below 2 models and where shapes disagree or codes are not finite.
    Ref: Duan et al. 2020, arXiv:1905.12614.
    """
    codes, rates = np.asarray(codes, np.float64), np.asarray(kl_per_latent, np.float64)
    if codes.ndim != 3 or len(codes) < 2 or rates.shape != codes.shape[::2]:
        raise ValueError(
            "needed: codes [m, n, d] and kl_per_latent [m, d] of m >= 2 models, got "
            f"{codes.shape} and {rates.shape}"
        )
    if np.isnan(rates).any():
        raise ValueError("kl_per_latent has NaN in it")
    informative = [
        _standardised(checked_codes(one))[:, kl > threshold]
        for one, kl in zip(codes, rates, strict=True)
    ]

    def agreement(a: np.ndarray, b: np.ndarray) -> float:
        if a.shape[1] == 0 or b.shape[1] == 0:
            return 0.0
        r = similarity(a, b)
        largest = np.concatenate([r.max(axis=0), r.max(axis=1)])
        totals = np.concatenate([r.sum(axis=0), r.sum(axis=1)])
        return float(np.mean(largest**2 / np.where(totals > 0, totals, 1)))

    return np.array(
        [
            np.median([agreement(a, b) for j, a in enumerate(informative) if j != i])
            for i, b in enumerate(informative)
        ]
    )


def across_seeds(values: ArrayLike) -> Estimate:
    """The mean of a score over m models from different seeds, and its standard error.

    Raises ValueError below 2 values and where one is not finite.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size < 2 or not np.isfinite(values).all():
        raise ValueError(f"needed: 2 finite values at least, [m], got {values}")
    error = values.std(ddof=1) / values.size**0.5
    return Estimate(jnp.asarray(values.mean()), jnp.asarray(error))


def _standardised(codes: np.ndarray) -> np.ndarray:
    mean, scale = standardiser(codes)
    return (codes - mean) / scale
