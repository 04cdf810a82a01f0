"""How far each latent stands for one factor, from codes and the factors behind them.

`codes` is [n, d], the encoder's means for n examples drawn independently, and `factors`
[n, f], the integers that made them. numpy or JAX arrays come in, floats go out, and
higher is better. Published numbers, such as those of Locatello et al. 2019,
arXiv:1811.12359, use n = 10,000, and 15,000 where a third of them is held out.

Every score raises ValueError where codes are not finite, have fewer than 2 latents or
another n than the factors, and where a factor is no integer or has one value only.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike


def latent_factor_information(
    codes: ArrayLike, factors: ArrayLike, *, bins: int = 20
) -> np.ndarray:
    """I(z_j; v_k) of the sample, [d, f] in nats, each latent in bins of equal width.

    The bins reach from the latent's smallest code to its largest. The estimate is that
    of the counts, too high by about (bins - 1) (values - 1) / (2 n) without dependence.
    """
    codes, factors = _checked(codes, factors)
    if bins < 2:
        raise ValueError(f"information needs 2 bins at least, got {bins}")
    binned = np.stack([_binned(latent, bins) for latent in codes.T], axis=1)
    pairs = [[_information(z, v) for v in factors.T] for z in binned.T]
    return np.array(pairs)


def mig(codes: ArrayLike, factors: ArrayLike, *, bins: int = 20) -> float:
    """Mutual information gap, mean_k (I_k(1) - I_k(2)) / H(v_k), in [0, 1].

    I_k(1) and I_k(2) are the two largest of I(z_j; v_k) over the latents, as
    `latent_factor_information` has them. Collapsed latents alone have 0.
    Ref: Chen et al. 2018, arXiv:1802.04942.
    """
    information = latent_factor_information(codes, factors, bins=bins)
    counts = [np.unique(v, return_counts=True)[1] for v in np.asarray(factors).T]
    return float(np.mean(_gap(information) / [_entropy(count) for count in counts]))


def modularity(codes: ArrayLike, factors: ArrayLike, *, bins: int = 20) -> float:
    """Whether each latent is about one factor only, in [0, 1].

    mean_j (1 - sum_{k != k*} I_jk^2 / (I_jk*^2 (f - 1))), with I_jk = I(z_j; v_k) as
    `latent_factor_information` has it and k* the factor with the largest. A latent that
    tells nothing, such as a collapsed one, has 0.
    Raises ValueError for a single factor.
    Ref: Ridgeway & Mozer 2018, arXiv:1802.05312.
    """
    squares = latent_factor_information(codes, factors, bins=bins) ** 2
    largest = squares.max(axis=1)
    rest = squares.sum(axis=1) - largest
    others = _other_factors(squares.shape[1])
    # What rounding leaves of no information at all would score like information.
    tells = largest > 1e-20
    share = rest / (others * np.where(tells, largest, 1))
    return float(np.mean(np.where(tells, 1 - share, 0)))


def sap(
    codes: ArrayLike, factors: ArrayLike, *, eval_fraction: float = 1 / 3, seed: int = 0
) -> float:
    """Separated attribute predictability, mean_k (A_k(1) - A_k(2)), in [0, 1].

    A_k(1) and A_k(2) are the two best accuracies over the latents, that of a latent
    being how often, on the held-out examples, a linear classifier of it alone finds
    v_k: the support vector machine of the published numbers, C = 0.01 and classes
    weighted alike. It takes codes as they are, so that their scale matters: compare
    models of one prior. A constant latent predicts the value seen most; collapsed
    latents alone have 0.
    Ref: Kumar et al. 2018, arXiv:1711.00848.
    """
    with needs_sklearn():
        from sklearn.svm import LinearSVC
    data = _split(codes, factors, eval_fraction, seed)

    def accuracy(j: int, k: int) -> float:
        z, y = data.codes[:, [j]], data.factors[:, k]
        if np.ptp(z) == 0:
            return np.mean(data.eval_factors[:, k] == np.bincount(y).argmax())
        machine = LinearSVC(C=0.01, class_weight="balanced", random_state=seed)
        machine.fit(z, y)
        return machine.score(data.eval_codes[:, [j]], data.eval_factors[:, k])

    latents, numbers = range(data.codes.shape[1]), range(data.factors.shape[1])
    accuracies = [[accuracy(j, k) for k in numbers] for j in latents]
    return float(np.mean(_gap(np.array(accuracies))))


class Dci(NamedTuple):
    """Disentanglement, completeness and informativeness, each in [0, 1]."""

    disentanglement: float  # how far a latent matters to one factor only
    completeness: float  # how far one latent only matters to a factor
    informativeness: float  # held-out accuracy, the mean over the factors
    importances: np.ndarray  # [d, f], how much z_j matters to the prediction of v_k


def dci(
    codes: ArrayLike,
    factors: ArrayLike,
    *,
    eval_fraction: float = 1 / 3,
    seed: int = 0,
    classifier: Any = None,
) -> Dci:
    """Disentanglement, completeness and informativeness of trees that predict factors.

    With R [d, f] the importances of the latents to a classifier of each factor, the
    disentanglement is the mean over latents of 1 - H(R_j / sum R_j) / log f, weighted
    by sum_k R_jk, and the completeness is the same of R transposed, over log d.
    Collapsed latents alone have 0 of both, and the accuracy of guessing.

    `classifier` is an unfitted one of sklearn with `feature_importances_`; None stands
    for that of the published numbers, gradient boosting of 100 rounds, a tree for every
    value in each: about 5 minutes of one core for 10,000 training examples with 10
    latents and factors of (3, 6, 40, 32, 32) values, and 1 minute for 2,000 examples.
    RandomForestClassifier(max_depth=8) takes a fortieth of that, but its scores are not
    to be compared with those of boosting.
    Raises ValueError for a single factor. Ref: Eastwood & Williams 2018, "A framework
    for the quantitative evaluation of disentangled representations".
    """
    with needs_sklearn():
        from sklearn.base import clone
        from sklearn.ensemble import GradientBoostingClassifier
    data = _split(codes, factors, eval_fraction, seed)
    _other_factors(data.factors.shape[1])
    if classifier is None:
        classifier = GradientBoostingClassifier(random_state=seed)
    fitted = [clone(classifier).fit(data.codes, v) for v in data.factors.T]
    importances = np.stack([trees.feature_importances_ for trees in fitted], axis=1)
    right = [
        trees.score(data.eval_codes, v)
        for trees, v in zip(fitted, data.eval_factors.T, strict=True)
    ]
    return Dci(
        disentanglement=_concentration(importances),
        completeness=_concentration(importances.T),
        informativeness=float(np.mean(right)),
        importances=importances,
    )


def explicitness(
    codes: ArrayLike, factors: ArrayLike, *, eval_fraction: float = 1 / 3, seed: int = 0
) -> float:
    """How well hyperplanes tell each value of a factor from the rest: chance is 0.5.

    The area under the ROC curve, on held-out examples, of a logistic regression on the
    standardised codes, the mean over the values of a factor and then over factors.
    Collapsed latents alone have 0.5. No hyperplane has an inner value of a line on one
    side, so that an ordered factor with one latent scores low.
    Raises ValueError where the training or the held-out examples lack a value.
    Ref: Ridgeway & Mozer 2018, arXiv:1802.05312.
    """
    with needs_sklearn():
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import roc_auc_score
    data = _split(codes, factors, eval_fraction, seed)
    mean, scale = standardiser(data.codes)
    train, held_out = (data.codes - mean) / scale, (data.eval_codes - mean) / scale

    def area(y: np.ndarray, eval_y: np.ndarray) -> float:
        machine = LogisticRegression().fit(train, y)
        return roc_auc_score(eval_y, machine.decision_function(held_out))

    means = []
    for k, v in enumerate(data.factors.T):
        values, eval_v = np.unique(v), data.eval_factors[:, k]
        if not np.array_equal(values, np.unique(eval_v)):
            raise ValueError(
                f"a value of factor {k} is missing from the training or the held-out "
                "examples: give more examples"
            )
        means.append(np.mean([area(v == value, eval_v == value) for value in values]))
    return float(np.mean(means))


@contextlib.contextmanager
def needs_sklearn() -> Iterator[None]:
    """Say what to install where sklearn, an optional dependency, is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(
            "this score needs scikit-learn: pip install 'vi_jax[applications]'"
        ) from error


def checked_codes(codes: ArrayLike) -> np.ndarray:
    """Codes [n, d] in float64. Raises ValueError unless finite, n >= 2 and d >= 2."""
    codes = np.asarray(codes, np.float64)
    if codes.ndim != 2 or min(codes.shape) < 2:
        raise ValueError(
            "needed: codes [n, d] of 2 examples and 2 latents at least, got "
            f"{codes.shape}"
        )
    finite = np.isfinite(codes).all(axis=0)
    if not finite.all():
        raise ValueError(f"NaN or infinite codes in latents {np.flatnonzero(~finite)}")
    return codes


def standardiser(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each latent, [d] and [d]; 1 for a constant one."""
    return codes.mean(axis=0), np.where(np.ptp(codes, axis=0) > 0, codes.std(axis=0), 1)


def _checked(codes: ArrayLike, factors: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The codes and the factors, these numbered from 0, once they make sense."""
    codes, factors = checked_codes(codes), np.asarray(factors)
    if factors.ndim != 2 or len(factors) != len(codes) or factors.shape[1] == 0:
        raise ValueError(
            "needed: codes [n, d] and factors [n, f] of the same n examples, got "
            f"{codes.shape} and {factors.shape}"
        )
    if factors.dtype.kind not in "iub":
        raise ValueError(
            f"factors are integers, which value it is: got {factors.dtype}"
        )
    numbered = [np.unique(v, return_inverse=True)[1] for v in factors.T]
    single = [k for k, v in enumerate(numbered) if v.max() == 0]
    if single:
        raise ValueError(
            f"factors {single} have one value in all examples, an entropy of 0: leave "
            "them out, or draw more examples"
        )
    return codes, np.stack(numbered, axis=1)


class _Halves(NamedTuple):
    codes: np.ndarray
    factors: np.ndarray
    eval_codes: np.ndarray
    eval_factors: np.ndarray


def _split(
    codes: ArrayLike, factors: ArrayLike, eval_fraction: float, seed: int
) -> _Halves:
    """Examples to train on and others to score, at random, as they may come sorted."""
    codes, factors = _checked(codes, factors)
    num_eval = round(eval_fraction * len(codes))
    if not 0 < num_eval < len(codes):
        raise ValueError(
            f"eval_fraction {eval_fraction} of {len(codes)} examples leaves none to "
            "train on, or none to score"
        )
    order = np.random.default_rng(seed).permutation(len(codes))
    held_out, train = order[:num_eval], order[num_eval:]
    if (np.ptp(factors[train], axis=0) == 0).any():
        raise ValueError("a factor has one value in the training examples: give more")
    return _Halves(codes[train], factors[train], codes[held_out], factors[held_out])


def _binned(latent: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each code, from 0."""
    latent = latent / max(np.abs(latent).max(), 1e-300)  # so that no range overflows
    # What rounding leaves of a constant has no room for bins.
    if np.ptp(latent) < 1e-13:
        return np.zeros(len(latent), int)
    return np.digitize(latent, np.histogram_bin_edges(latent, bins)[1:-1])


def _information(a: np.ndarray, b: np.ndarray) -> float:
    """I(a; b) = H(a) + H(b) - H(a, b) of two rows of integers from 0, in nats."""
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)
    parts = _entropy(table.sum(axis=1)) + _entropy(table.sum(axis=0))
    return max(0.0, parts - _entropy(table.ravel()))


def _entropy(weights: np.ndarray) -> np.ndarray:
    """-sum p log p over the last axis, p the weights over their sum; 0 without any."""
    total = weights.sum(axis=-1, keepdims=True)
    p = weights / np.where(total > 0, total, 1)
    return -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=-1)


def _gap(scores: np.ndarray) -> np.ndarray:
    """By how much the best latent leads, [f] from [d, f]."""
    second, first = np.sort(scores, axis=0)[-2:]
    return first - second


def _concentration(importances: np.ndarray) -> float:
    """1 - H / log b of the rows of [a, b], each weighted by its sum; 0 without any."""
    weights = importances.sum(axis=1)
    purity = 1 - _entropy(importances) / np.log(importances.shape[1])
    return float(weights @ purity / weights.sum()) if weights.any() else 0.0


def _other_factors(count: int) -> int:
    if count < 2:
        raise ValueError("one factor alone can't be mixed with others: give 2 or more")
    return count - 1
