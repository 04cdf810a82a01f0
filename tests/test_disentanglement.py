"""Scores of disentanglement: hand-made codes, closed forms, and brute force."""

import collections
import itertools
import statistics
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import Lasso, LogisticRegression
from sklearn.metrics import mutual_info_score
from sklearn.tree import DecisionTreeClassifier

from vi_jax.evaluation import (
    across_seeds,
    beta_vae_score,
    dci,
    explicitness,
    factor_vae_score,
    lasso_similarity,
    latent_factor_information,
    mig,
    modularity,
    sap,
    spearman_similarity,
    udr,
)

TREE = DecisionTreeClassifier(random_state=0)


def grid(*sizes, repeats=1):
    """All combinations of factor values, the same number of each: [n, f]."""
    rows = list(itertools.product(*(range(size) for size in sizes)))
    return np.array(rows * repeats)


def rotated(factors):
    """Two factors, each mixed evenly into both of two latents."""
    return factors @ np.array([[1.0, 1.0], [1.0, -1.0]])


def noisy(n, seed=0):
    """Codes [n, 3] that carry some of each of two factors with odd labels [n, 2]."""
    rng = np.random.default_rng(seed)
    factors = rng.integers([3, 5], size=(n, 2))
    mix = np.array([[1.0, 0.4, 0.2], [0.1, 0.7, 0.0]])
    codes = factors @ mix + rng.normal(size=(n, 3)) * [0.3, 0.8, 2.0]
    return codes, factors * 7 - 3


def information_by_sklearn(codes, factors, bins):
    """[d, f], bin by bin from the definition of a histogram."""
    table = []
    for z in codes.T:
        edges = np.linspace(z.min(), z.max(), bins + 1)
        binned = np.digitize(z, edges[1:-1])
        table.append([mutual_info_score(v, binned) for v in factors.T])
    return np.array(table)


# One latent a factor, and two factors in each latent.


def test_a_latent_for_each_factor_has_the_best_scores():
    factors = grid(2, 2, 2, repeats=75)
    # Another order, sign and scale, and one latent more that tells nothing.
    codes = (2.0 * factors - 1)[:, [2, 0, 1]] * [1.5, -1.0, 3.0]
    with_dead = np.column_stack([codes, np.full(len(codes), 0.1)])
    assert mig(with_dead, factors) == pytest.approx(1, abs=1e-12)
    assert modularity(codes, factors) == pytest.approx(1, abs=1e-12)
    assert modularity(with_dead, factors) == pytest.approx(3 / 4, abs=1e-12)
    assert sap(with_dead, factors) == pytest.approx(1 / 2, abs=0.1)  # 1 against chance
    got = dci(with_dead, factors)
    assert got[:3] == pytest.approx((1, 1, 1), abs=1e-6)
    expected = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(got.importances, expected, atol=1e-6)
    assert explicitness(with_dead, factors) == 1


def test_factors_mixed_evenly_are_told_by_all_latents_together_only():
    factors = grid(2, 2, repeats=300)
    codes = rotated(2 * factors - 1)
    # A latent of -2, 0 or 2 leaves log 2 nats of either factor in half of the cases.
    got = latent_factor_information(codes, factors)
    np.testing.assert_allclose(got, np.full((2, 2), np.log(2) / 2), rtol=1e-12)
    assert mig(codes, factors) == pytest.approx(0, abs=1e-12)
    assert modularity(codes, factors) == pytest.approx(0, abs=1e-12)
    assert sap(codes, factors) < 0.1
    got = dci(codes, factors)
    assert got.disentanglement < 0.1 and got.completeness < 0.1
    assert got.informativeness == 1
    assert explicitness(codes, factors) == 1


def test_collapsed_latents_have_the_lowest_scores_and_never_nan():
    factors = grid(2, 2, repeats=100)
    codes = np.full((400, 3), [0.1, -1.2, 0.0])
    assert mig(codes, factors) == 0
    assert modularity(codes, factors) == 0
    assert sap(codes, factors) == 0
    got = dci(codes, factors)
    assert got[:2] == (0, 0)
    assert got.informativeness == pytest.approx(0.5, abs=0.1)
    assert explicitness(codes, factors) == 0.5


# Information.


def test_mig_of_flipped_bits_is_that_of_the_two_channels():
    """z_j is v flipped with p_j: I = log 2 - H(p_j). Exact counts, so no noise."""
    entropy = lambda p: stats.entropy([p, 1 - p])
    v = np.repeat([0, 1], 64)
    flips = np.arange(64) < np.array([[8], [16], [24]])  # 1/8, 1/4 and 3/8 of each v
    codes = (v ^ np.tile(flips, 2)).T.astype(float)
    got = latent_factor_information(codes, v[:, None])
    expected = [[np.log(2) - entropy(p)] for p in (1 / 8, 1 / 4, 3 / 8)]
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    gap = (entropy(1 / 4) - entropy(1 / 8)) / np.log(2)
    assert mig(codes, v[:, None]) == pytest.approx(gap, rel=1e-12)


@pytest.mark.parametrize("bins", [2, 7, 20])
def test_information_and_what_follows_from_it_are_those_of_sklearns(bins):
    codes, factors = noisy(700)
    table = information_by_sklearn(codes, factors, bins)
    got = latent_factor_information(codes, factors, bins=bins)
    np.testing.assert_allclose(got, table, rtol=1e-9)
    gaps = []
    for k, v in enumerate(factors.T):
        second, first = sorted(table[:, k])[-2:]
        gaps.append(
            (first - second) / stats.entropy(list(collections.Counter(v).values()))
        )
    assert mig(codes, factors, bins=bins) == pytest.approx(np.mean(gaps))
    each = [1 - min(row) ** 2 / max(row) ** 2 for row in table]  # 2 factors: f - 1 = 1
    assert modularity(codes, factors, bins=bins) == pytest.approx(np.mean(each))


def test_modularity_of_a_latent_about_three_factors():
    """I_j^2 of 1 : 1/4 : 0 is 1 - (1/4) / 2, worked by hand, and 1 for the pure one."""
    # Of four bits, two make the first factor, and one each of the others.
    bits = grid(2, 2, 2, 2)
    factors = np.column_stack([2 * bits[:, 0] + bits[:, 1], bits[:, 2], bits[:, 3]])
    both = bits @ [4.0, 2.0, 1.0, 0.0]  # 2 bits of the first, 1 bit of the second
    pure = bits[:, 3].astype(float)
    got = modularity(np.column_stack([both, pure]), factors)
    assert got == pytest.approx((1 - (1 / 4) / 2 + 1) / 2, rel=1e-12)


def test_a_transpose_by_reshape_cannot_pass_for_mig():
    """The bug of others: codes [n, d] read as if they were [d, n], latents mixed."""
    factors = np.random.default_rng(1).permutation(grid(4, 5, 3, repeats=30))
    codes = factors * [1.0, 0.1, 5.0]
    assert mig(codes, factors) > 0.95
    assert mig(codes.reshape(3, -1).T, factors) < 0.05
    assert modularity(codes, factors) > 0.99
    with pytest.raises(ValueError, match="same n examples"):
        mig(codes.T, factors)


def test_scores_care_for_no_order_and_no_scale_of_latents():
    codes, factors = noisy(600)
    other = codes[:, [2, 0, 1]] * [0.5, 4.0, 2.0]
    # Deep down in a tree splits tie, and the order of the latents decides.
    tree = lambda *data: dci(*data, classifier=clone(TREE).set_params(max_depth=3))
    for score in (mig, modularity, explicitness):
        assert score(other, factors) == pytest.approx(score(codes, factors), abs=1e-4)
    assert sap(codes[:, [2, 0, 1]], factors) == sap(codes, factors)
    got, expected = tree(other, factors), tree(codes, factors)
    assert got[:3] == pytest.approx(expected[:3], abs=1e-9)
    np.testing.assert_allclose(
        got.importances, expected.importances[[2, 0, 1]], rtol=1e-9
    )


def test_jax_arrays_and_any_labels_will_do():
    codes, factors = noisy(300)
    codes = codes.astype(np.float32)
    got = mig(jnp.array(codes), jnp.array(factors))
    assert got == mig(codes, (factors + 3) // 7)
    assert isinstance(got, float)


# Classifiers.


def test_sap_of_gaussian_latents_is_the_gap_between_their_accuracies():
    """z_j | v ~ N(+-mu_j, 1), v rarely 1: with classes weighted alike, Phi(mu_j)."""
    rng = np.random.default_rng(2)
    v = (rng.random(12_000) < 0.25).astype(int)
    codes = rng.normal(size=(12_000, 3)) + np.outer(2 * v - 1, [0.4, 0.0, -1.2])
    gap = stats.norm.cdf(1.2) - stats.norm.cdf(0.4)
    # Two accuracies of 4000 examples: an s.d. below 0.0091, and 4 of them.
    assert sap(codes, v[:, None]) == pytest.approx(gap, abs=0.036)


def test_sap_of_a_constant_latent_is_the_share_of_the_value_seen_most():
    """The lead of a perfect latent: 1 - 3/4, if no more than the constant is left."""
    v = np.repeat([0, 1, 1, 1], 1000)
    codes = np.column_stack([2.0 * v - 1, np.full(4000, 0.3)])
    assert sap(codes, v[:, None]) == pytest.approx(1 / 4, abs=0.05)


def test_explicitness_of_a_gaussian_latent_is_its_area():
    """z | v ~ N(+-mu, 1): P(z_1 > z_0) = Phi(sqrt(2) mu)."""
    rng = np.random.default_rng(3)
    v = rng.integers(2, size=9000)
    codes = np.column_stack([rng.normal(size=9000) + v, np.full(9000, 0.1)])
    area = stats.norm.cdf(0.5 * np.sqrt(2))
    # Hanley & McNeil: 3000 examples have an s.d. of about 0.0088.
    assert explicitness(codes, v[:, None]) == pytest.approx(area, abs=0.035)


def test_explicitness_weighs_factors_alike_and_wants_a_plane_for_each_value():
    """The middle one of three values on a line has 1/2, so that its factor has 5/6."""
    factors = grid(2, 3, repeats=500)
    line = factors.astype(float)
    expected = (1 + (1 + 1 / 2 + 1) / 3) / 2
    assert explicitness(line, factors) == pytest.approx(expected, abs=0.01)
    one_hot = np.column_stack([line[:, 0], np.eye(3)[factors[:, 1]]])
    assert explicitness(one_hot, factors) == 1


class Known(BaseEstimator):
    """Predicts 0 and has importances that depend on the number of values only."""

    IMPORTANCES = {2: [0.5, 0.5, 0.0], 3: [0.25, 0.0, 0.75]}

    def fit(self, x, y):
        del x
        self.feature_importances_ = np.array(self.IMPORTANCES[y.max() + 1])
        return self

    def score(self, x, y):
        del x
        return np.mean(y == 0)


def test_dci_of_known_importances():
    """By hand, logarithms to base f = 2 for latents, to base d = 3 for factors.

    The latents have weights 3/4, 1/2 and 3/4 of 2, and the first is mixed, 2 to 1.
    """
    got = dci(np.ones((1200, 3)), grid(2, 3, repeats=200), classifier=Known())
    np.testing.assert_array_equal(got.importances.T, [[0.5, 0.5, 0], [0.25, 0, 0.75]])
    mixed = -(2 / 3 * np.log2(2 / 3) + 1 / 3 * np.log2(1 / 3))
    disentanglement = (0.75 * (1 - mixed) + 0.5 + 0.75) / 2
    assert got.disentanglement == pytest.approx(disentanglement, rel=1e-12)
    halves, quarters = np.log(2), -(np.log(1 / 4) + 3 * np.log(3 / 4)) / 4
    completeness = 1 - (halves + quarters) / 2 / np.log(3)
    assert got.completeness == pytest.approx(completeness, rel=1e-12)
    assert got.informativeness == pytest.approx((1 / 2 + 1 / 3) / 2, abs=0.05)


def test_informativeness_is_that_of_examples_held_out():
    """A tree learns labels by heart, which helps it with other examples in no way."""
    rng = np.random.default_rng(4)
    codes, factors = rng.normal(size=(900, 2)), rng.integers(2, size=(900, 2))
    got = dci(codes, factors, eval_fraction=2 / 3, classifier=TREE)
    assert got.informativeness == pytest.approx(0.5, abs=0.06)  # 4 s.d. of 1200


def test_examples_may_come_sorted():
    factors = grid(4, 2, repeats=60)
    factors = factors[np.argsort(factors[:, 0], kind="stable")]
    codes = factors * 1.0
    got = dci(codes, factors, classifier=TREE)
    assert got[:3] == pytest.approx((1, 1, 1), abs=1e-6)
    assert explicitness(codes[:, ::-1], factors[:, [1]]) == 1


# Interventions.


class Spy:
    """An encoder that keeps what it was asked for, and its answers."""

    def __init__(self, function):
        self.function, self.factors, self.codes = function, [], []

    def __call__(self, factors):
        codes = self.function(factors)
        self.factors.append(factors.copy())
        self.codes.append(codes)
        return codes

    def rows(self):
        return np.concatenate(self.factors), np.concatenate(self.codes)


def entangled(factors):
    """Three latents of different scales, one of them collapsed, of three factors."""
    v = factors / 4.0
    mix = [np.sin(v[:, 0] + 0.4 * v[:, 1]), 0.01 * v[:, 2], 4 * v[:, 1] + v[:, 2]]
    return np.stack([*mix, v[:, 2] - 0.5 * v[:, 1] * v[:, 0]], axis=1)


def constant_column(rows):
    (k,) = [k for k in range(rows.shape[1]) if len(set(rows[:, k])) == 1]
    return k


def test_the_factor_vae_score_is_the_vote_of_its_definition():
    spy = Spy(entangled)
    how = {"num_train": 40, "num_eval": 30, "examples_per_vote": 12, "num_variance": 50}
    got = factor_vae_score(spy, (9, 8, 7), seed=5, chunk=101, **how)
    assert max(map(len, spy.factors)) == 101
    factors, codes = spy.rows()
    assert len(codes) == 50 + (40 + 30) * 12
    spread = [statistics.variance(z) for z in codes[:50].T]
    active = [j for j in range(4) if spread[j] ** 0.5 >= 0.05]
    assert active == [0, 2, 3]
    votes, held = [], set()
    for start in range(50, len(codes), 12):
        rows = slice(start, start + 12)
        ratio = {j: statistics.variance(codes[rows, j]) / spread[j] for j in active}
        k = constant_column(factors[rows])
        votes.append((min(ratio, key=ratio.get), k))
        held.add((k, factors[start, k]))
    assert {k for k, _ in held} == {0, 1, 2} and len(held) > 15  # of 24 values
    counts = {
        j: collections.Counter(k for i, k in votes[:40] if i == j) for j in active
    }
    right = [counts[j].most_common(1)[0][0] == k for j, k in votes[40:]]
    assert got == statistics.mean(right)
    assert 0.4 < got < 0.95  # neither chance nor perfect, which are easy
    assert got == factor_vae_score(entangled, (9, 8, 7), seed=5, **how)


def test_the_beta_vae_score_is_the_accuracy_of_its_definition():
    spy = Spy(entangled)
    how = {"num_train": 60, "num_eval": 40, "pairs_per_vote": 9}
    got = beta_vae_score(spy, (9, 8, 7), seed=6, chunk=100, **how)
    factors, codes = spy.rows()
    assert len(codes) == (60 + 40) * 2 * 9
    inputs, labels = [], []
    for start in range(0, len(codes), 18):
        first, second = slice(start, start + 9), slice(start + 9, start + 18)
        labels.append(constant_column(factors[first] - factors[second]))
        assert len(set(factors[first, labels[-1]])) > 1
        gaps = [abs(a - b) for a, b in zip(codes[first], codes[second], strict=True)]
        inputs.append(sum(gaps) / 9)
    classifier = LogisticRegression(max_iter=1000).fit(inputs[:60], labels[:60])
    assert got == pytest.approx(classifier.score(inputs[60:], labels[60:]), abs=1e-12)
    assert 0.4 < got < 0.95
    assert got == beta_vae_score(entangled, (9, 8, 7), seed=6, **how)


FEW = {"num_train": 400, "num_eval": 400}


def test_interventions_on_known_encoders():
    """Perfect: 1. Mixed evenly: chance, 1/2, up to 4 s.d. of 400 votes (0.1)."""
    sizes = (6, 6)
    for score in (factor_vae_score, beta_vae_score):
        perfect = lambda v: v[:, ::-1] * [1.0, -3.0]
        assert score(perfect, sizes, **FEW) == 1
        assert score(rotated, sizes, **FEW) == pytest.approx(0.5, abs=0.1)


def test_factor_vae_votes_relative_to_the_free_variance():
    """Scales change nothing, and a latent of noise splits the votes of a lost factor.

    Held v_1, latent 0 stands still. Held v_0, which no latent has, both vary as freely
    and each gets half of the votes: 1/2 + 1/4 of all are right.
    """
    rng = np.random.default_rng(7)
    noise = lambda v: rng.integers(6, size=len(v)) * 1.0
    encode = lambda v: np.stack([v[:, 1], noise(v)], axis=1)
    got = factor_vae_score(encode, (6, 6), **FEW)
    assert got == pytest.approx(3 / 4, abs=0.087)  # 4 s.d. of 400 votes
    scaled = lambda v: entangled(v) * [8, 2, 0.25, 16]
    expected = factor_vae_score(entangled, (9, 8, 7), **FEW)
    assert factor_vae_score(scaled, (9, 8, 7), **FEW) == expected


def test_a_collapsed_latent_has_no_vote():
    """Without its latent, the votes of v_0 split and 3/4 are right, as above."""
    rng = np.random.default_rng(8)

    def encode(v):
        return np.stack([0.02 * v[:, 0], v[:, 1], rng.integers(6, size=len(v))], axis=1)

    assert 0.02 * np.std(range(6)) < 0.05
    got = factor_vae_score(encode, (6, 6), **FEW)
    assert got == pytest.approx(3 / 4, abs=0.087)
    assert factor_vae_score(encode, (6, 6), min_scale=0.03, **FEW) == 1


def test_interventions_on_collapsed_latents():
    collapsed = lambda v: np.full((len(v), 3), 0.1)
    for min_scale in (0.05, 0.0):
        assert factor_vae_score(collapsed, (3, 4), min_scale=min_scale, **FEW) == 0
    got = beta_vae_score(collapsed, (3, 4), **FEW)
    assert got == pytest.approx(1 / 2, abs=0.1)


# Several models.


def models(m=4, n=300, d=3, seed=9):
    """Codes [m, n, d]: one model's, two like it but for noise, and an entangled one."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(n, d))
    turn, _ = np.linalg.qr(rng.normal(size=(d, d)))
    return np.stack(
        [
            base,
            -2 * base[:, [1, 2, 0]] + 0.3 * rng.normal(size=(n, d)),
            base[:, [2, 1, 0]] ** 3 + 0.3 * rng.normal(size=(n, d)),
            base @ turn,
        ][:m]
    )


def spearman_by_pairs(a, b):
    return [[abs(stats.spearmanr(x, y).statistic) for y in b.T] for x in a.T]


def lasso_by_latent(a, b):
    scaled = lambda z: (z - z.mean(0)) / z.std(0)
    weights = [Lasso(alpha=0.1).fit(scaled(a), y).coef_ for y in scaled(b).T]
    return np.abs(weights).T


def udr_by_sums(codes, kl, matrix):
    """Loops over the equation of Duan et al., with their indicators I_KL."""
    scores = []
    for i, j in itertools.product(range(len(codes)), repeat=2):
        a_on, b_on = (np.flatnonzero(kl[model] > 0.01) for model in (j, i))
        r = dict(enumerate(matrix(codes[j][:, a_on], codes[i][:, b_on])))
        total = 0.0
        for b in range(len(b_on)):
            column = [r[a][b] for a in r]
            total += max(column) ** 2 / (sum(column) or 1)  # 0 / 0 is 0
        for a in r:
            total += max(r[a]) ** 2 / (sum(r[a]) or 1)
        scores.append(total / (len(a_on) + len(b_on)))
    pairs = np.reshape(scores, (len(codes), len(codes)))
    return [np.median(np.delete(row, i)) for i, row in enumerate(pairs)]


@pytest.mark.parametrize(
    "similarity, matrix",
    [(spearman_similarity, spearman_by_pairs), (lasso_similarity, lasso_by_latent)],
)
def test_udr_is_its_equation_and_puts_the_entangled_model_last(similarity, matrix):
    codes = models()
    kl = np.ones((4, 3))
    kl[1, 2], kl[3, 0], kl[0, 1] = 0.0, 0.01, 0.02  # the first two are not informative
    got = udr(codes, kl, similarity=similarity)
    np.testing.assert_allclose(got, udr_by_sums(codes, kl, matrix), rtol=1e-6)
    all_on = udr(codes, np.ones((4, 3)), similarity=similarity)
    assert all_on.argmin() == 3


def test_udr_of_equal_models_is_one_and_the_lasso_takes_its_share():
    """Uncorrelated latents of variance 1: the Lasso has 1 - 0.1, and so has R^2 / R."""
    latents, _ = np.linalg.qr(models(1)[0] - models(1)[0].mean(axis=0))
    same = np.stack([latents, -7 * latents[:, [2, 0, 1]] + 1])
    np.testing.assert_allclose(udr(same, np.ones((2, 3))), 0.9, rtol=1e-6)
    ranks = models(1)[0]
    same = np.stack([ranks, np.exp(ranks[:, [1, 2, 0]]), ranks])  # any monotone map
    got = udr(
        same, np.ones((3, 3)), similarity=lambda a, b: spearman_similarity(a, b) ** 9
    )
    np.testing.assert_allclose(got, 1.0, atol=1e-6)


def test_udr_of_collapsed_models_is_zero():
    codes, kl = models(3), np.ones((3, 3))
    for similarity in (spearman_similarity, lasso_similarity):
        kl[0] = 0.0
        got = udr(codes, kl, similarity=similarity)
        assert got[0] == 0 and (got[1:] > 0).all()
        constant = udr(np.full_like(codes, 0.1), kl + 1, similarity=similarity)
        np.testing.assert_array_equal(constant, 0)


def test_across_seeds_is_the_mean_and_its_standard_error():
    values = [0.3, 0.45, 0.21, 0.5]
    got = across_seeds(values)
    np.testing.assert_allclose(got.value, np.mean(values), rtol=1e-6)
    np.testing.assert_allclose(got.stderr, stats.sem(values), rtol=1e-6)


# Wrong use.


def test_codes_and_factors_that_make_no_sense_are_errors():
    codes, factors = noisy(50)
    spoilt = codes.copy()
    spoilt[7, 1] = np.nan
    bad = {
        r"NaN or infinite codes in latents \[1\]": (spoilt, factors),
        "2 latents at least": (codes[:, :1], factors),
        "same n examples": (codes[:-1], factors),
        r"factors \[1\] have one value": (codes, factors * [1, 0]),
        "factors are integers": (codes, factors * 1.0),
    }
    for message, data in bad.items():
        for score in (mig, modularity, sap, dci, explicitness):
            with pytest.raises(ValueError, match=message):
                score(*data)
    with pytest.raises(ValueError, match="same n examples"):
        mig(codes, factors[:, 0])
    with pytest.raises(ValueError, match="2 bins"):
        mig(codes, factors, bins=1)
    for score in (modularity, dci):
        with pytest.raises(ValueError, match="one factor alone"):
            score(codes, factors[:, :1])


def test_halves_that_do_not_suffice_are_errors():
    codes, factors = noisy(60)
    for fraction in (0.0, 1.0):
        with pytest.raises(ValueError, match="eval_fraction"):
            sap(codes, factors, eval_fraction=fraction)
    rare = (np.arange(60) == 3).astype(int)[:, None]
    with pytest.raises(ValueError, match="value of factor 0 is missing"):
        explicitness(codes, rare, eval_fraction=0.1)
    with pytest.raises(ValueError, match="one value in the training examples"):
        sap(codes, rare, eval_fraction=0.97)


def test_wrong_interventions_are_errors():
    perfect = lambda v: v * 1.0
    for score, per_vote in (
        (factor_vae_score, {"examples_per_vote": 1}),
        (beta_vae_score, {"pairs_per_vote": 0}),
    ):
        for sizes in ((5,), (5, 1), (5.0, 4.0), ((5, 4), (5, 4))):
            with pytest.raises(ValueError, match="factor_sizes"):
                score(perfect, sizes)
        for how in (per_vote, {"num_train": 0}, {"num_eval": 0}, {"chunk": 0}):
            (name,) = how
            with pytest.raises(ValueError, match=f"{name} must be at least"):
                score(perfect, (5, 4), **how)
        with pytest.raises(ValueError, match="is to return codes"):
            score(lambda v: v[:-1] * 1.0, (5, 4), **FEW)
        with pytest.raises(ValueError, match=r"latents \[0\]"):
            score(lambda v: v + [np.inf, 1.0], (5, 4), **FEW)
        with pytest.raises(ValueError, match="2 latents at least"):
            score(lambda v: v[:, :1], (5, 4), **FEW)


def test_wrong_models_are_errors():
    codes, kl = models(), np.ones((4, 3))
    for bad in ((codes[0], kl[0]), (codes[:1], kl[:1]), (codes, kl[:, :2])):
        with pytest.raises(ValueError, match="m >= 2 models"):
            udr(*bad)
    with pytest.raises(ValueError, match="kl_per_latent has NaN"):
        udr(codes, kl * np.nan)
    with pytest.raises(ValueError, match="NaN or infinite codes"):
        udr(codes * np.nan, kl)
    for values in ([0.5], [0.5, np.nan], [[0.5, 0.4]]):
        with pytest.raises(ValueError, match="2 finite values"):
            across_seeds(values)


def test_a_missing_sklearn_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    with pytest.raises(ImportError, match=r"pip install 'vi_jax\[applications\]'"):
        sap(*noisy(50))
