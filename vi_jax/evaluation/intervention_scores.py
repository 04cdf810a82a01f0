"""Disentanglement by intervention: hold one factor and see which latents stand still.

`encode` takes factors [n, f] (integers, factor k being one of range(factor_sizes[k]))
and returns codes [n, d], the encoder's means for examples made of them. It is called
with `chunk` rows, as often as that takes, and once with the rest. Published numbers,
such as those of Locatello et al. 2019, arXiv:1811.12359, have the default counts.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from vi_jax.checks import at_least
from vi_jax.evaluation.disentanglement import checked_codes, needs_sklearn

Encode = Callable[[np.ndarray], ArrayLike]
"""Factors [n, f] -> codes [n, d]."""


def factor_vae_score(
    encode: Encode,
    factor_sizes: Sequence[int],
    *,
    seed: int = 0,
    num_train: int = 10_000,
    num_eval: int = 5_000,
    examples_per_vote: int = 64,
    num_variance: int = 10_000,
    min_scale: float = 0.05,
    chunk: int = 6_400,
) -> float:
    """FactorVAE's score: does the latent that varies least tell the factor held?

    A vote holds one factor, drawn at random, over `examples_per_vote` examples and goes
    to the latent of least variance, each relative to that over `num_variance` free
    draws. A latent stands for the factor that most of the `num_train` votes for it had;
    the score is the accuracy of that on `num_eval` votes more, in [0, 1]. Latents whose
    standard deviation over the free draws is below `min_scale`, as a collapsed one's
    is, get no votes; where all are, the score is 0.
    Raises ValueError for fewer than 2 factors, values of a factor, latents or examples,
    and where `encode` returns another shape or codes that are not finite.
    Ref: Kim & Mnih 2018, arXiv:1802.05983.
    """
    sizes = _checked_sizes(factor_sizes)
    at_least(2, examples_per_vote=examples_per_vote, num_variance=num_variance)
    at_least(1, num_train=num_train, num_eval=num_eval, chunk=chunk)
    rng = np.random.default_rng(seed)
    free = rng.integers(sizes, size=(num_variance, len(sizes)))
    codes = _encoded(encode, free, chunk)
    variance = np.var(codes, axis=0, ddof=1)
    varies = np.ptp(codes, axis=0) > 0  # of a constant, rounding may leave a variance
    active = np.flatnonzero(varies & (np.sqrt(variance) >= min_scale))
    if active.size == 0:
        return 0.0

    def votes(count: int) -> np.ndarray:
        """How many of the votes held factor k and went to latent j, [f, active]."""
        factors = rng.integers(sizes, size=(count, examples_per_vote, len(sizes)))
        which, held = np.arange(count), rng.integers(len(sizes), size=count)
        factors[which, :, held] = factors[which, :1, held]
        codes = _encoded(encode, factors, chunk)[..., active]
        least = np.argmin(np.var(codes, axis=1, ddof=1) / variance[active], axis=1)
        table = np.zeros((len(sizes), active.size), int)
        np.add.at(table, (held, least), 1)
        return table

    stands_for = votes(num_train).argmax(axis=0)  # [active]
    return float(votes(num_eval)[stands_for, np.arange(active.size)].sum() / num_eval)


def beta_vae_score(
    encode: Encode,
    factor_sizes: Sequence[int],
    *,
    seed: int = 0,
    num_train: int = 10_000,
    num_eval: int = 5_000,
    pairs_per_vote: int = 64,
    chunk: int = 6_400,
) -> float:
    """The beta-VAE score: can a linear classifier tell the factor that pairs share?

    Its input [d] is the mean of |z_1 - z_2| over `pairs_per_vote` pairs of examples
    that share one factor, drawn at random, and a logistic regression of `num_train`
    such inputs has this accuracy on `num_eval` more, in [0, 1]. Guessing, as with
    collapsed latents alone, has 1 / f. Raises ValueError as `factor_vae_score` does.
    Ref: Higgins et al. 2017, "beta-VAE: learning basic visual concepts".
    """
    with needs_sklearn():
        from sklearn.linear_model import LogisticRegression
    sizes = _checked_sizes(factor_sizes)
    at_least(1, pairs_per_vote=pairs_per_vote, num_eval=num_eval, chunk=chunk)
    at_least(2, num_train=num_train)
    rng = np.random.default_rng(seed)

    def inputs(count: int) -> tuple[np.ndarray, np.ndarray]:
        shape = (count, 2, pairs_per_vote, len(sizes))
        factors = rng.integers(sizes, size=shape)
        which, shared = np.arange(count), rng.integers(len(sizes), size=count)
        factors[which, 1, :, shared] = factors[which, 0, :, shared]
        codes = _encoded(encode, factors, chunk)
        return np.abs(codes[:, 0] - codes[:, 1]).mean(axis=1), shared

    machine = LogisticRegression(max_iter=1000).fit(*inputs(num_train))
    return float(machine.score(*inputs(num_eval)))


def _encoded(encode: Encode, factors: np.ndarray, chunk: int) -> np.ndarray:
    """Codes [..., d] of factors [..., f], at most `chunk` examples a call."""
    rows = factors.reshape(-1, factors.shape[-1])
    parts = []
    for start in range(0, len(rows), chunk):
        block = rows[start : start + chunk]
        codes = np.asarray(encode(block), np.float64)
        if codes.ndim != 2 or len(codes) != len(block):
            raise ValueError(
                "`encode` is to return codes [n, d] for factors [n, f]: got "
                f"{codes.shape} for {block.shape}"
            )
        parts.append(codes)
    codes = checked_codes(np.concatenate(parts))
    return codes.reshape(*factors.shape[:-1], codes.shape[-1])


def _checked_sizes(factor_sizes: Sequence[int]) -> np.ndarray:
    sizes = np.asarray(factor_sizes)
    if (
        sizes.ndim != 1
        or sizes.size < 2
        or sizes.dtype.kind not in "iu"
        or min(sizes) < 2
    ):
        raise ValueError(
            "factor_sizes is the number of values of each factor, 2 factors of 2 "
            f"values at least, got {factor_sizes}"
        )
    return sizes
