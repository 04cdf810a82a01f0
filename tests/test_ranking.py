"""Ranking measures: hand-made cases, and every user against plain Python."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import quick_jit
from scipy import stats

from vi_jax.evaluation import mean_interval, ndcg_at, recall_at

RNG = np.random.default_rng(0)


def by_hand(scores, held, seen, k):
    """(recall, NDCG) from the paper's words, with lists and floats."""
    unseen = [i for i in range(len(scores)) if not seen[i]]
    ranked = sorted(unseen, key=lambda i: (-scores[i], i))[:k]
    wanted = {i for i in unseen if held[i]}
    places = [r for r, i in enumerate(ranked, start=1) if i in wanted]
    fitting = min(k, len(wanted))
    dcg = sum(1 / math.log2(r + 1) for r in places)
    best = sum(1 / math.log2(r + 1) for r in range(1, fitting + 1))
    return len(places) / fitting, dcg / best


@quick_jit
def both(scores, held, seen):
    """[users, (k = 1, 3, 20), (recall, NDCG)]."""
    one = lambda *a: jnp.array([[recall_at(*a, k), ndcg_at(*a, k)] for k in (1, 3, 20)])
    return jax.vmap(one)(scores, held, seen)


def test_users_of_many_kinds_are_measured_as_by_hand():
    """Ties, more held out than k, more places than unseen items, seen items on top."""
    scores = RNG.integers(0, 6, (60, 20)).astype(np.float32)  # many ties
    kind = RNG.random((60, 20))
    held = (kind < RNG.uniform(0.1, 0.9, (60, 1))) & (kind < 0.8)
    seen = kind > 0.8
    held[:, 0], seen[:, 0] = True, False  # everyone holds something out
    scores[seen] += 10  # a leak of the seen would show
    assert (held.sum(1) > 3).any() and (held.sum(1) < 3).any()
    got = np.asarray(both(scores, held.astype(np.float32), seen))
    for user in range(60):
        for i, k in enumerate((1, 3, 20)):
            expected = by_hand(scores[user], held[user], seen[user], k)
            np.testing.assert_allclose(got[user, i], expected, rtol=1e-6)


def test_known_values():
    """Items 0, 1, 2 held out of 20; 1 and 2 at the places 1 and 3, item 0 last."""
    scores = np.zeros(20, np.float32)
    scores[[1, 5, 2]], scores[0] = (3, 2, 1), -1
    held, seen = np.zeros((2, 20), bool)
    held[:3] = True
    (first, third, all_of_them) = np.asarray(
        both(*(a[None] for a in (scores, held, seen)))
    )[0]
    assert first.tolist() == [1.0, 1.0]
    best = 1 + 1 / math.log2(3) + 0.5
    np.testing.assert_allclose(third, [2 / 3, 1.5 / best], rtol=1e-6)
    last = 1 / math.log2(21)
    np.testing.assert_allclose(all_of_them, [1.0, (1.5 + last) / best], rtol=1e-6)


def test_what_has_no_value_is_nan():
    """Nothing held out, or a score that is nan; of a seen item it does not matter."""
    scores = np.zeros((3, 20), np.float32)
    held, seen = np.zeros((2, 3, 20), bool)
    held[1:, 4] = True
    seen[:, 7] = True
    scores[1, 6] = scores[2, 7] = np.nan
    got = np.asarray(both(scores, held, seen))
    assert np.isnan(got[:2]).all()
    assert np.isfinite(got[2]).all()


@pytest.mark.parametrize("k", [0, 21])
def test_k_is_a_number_of_items(k):
    row = jnp.zeros(20)
    for measure in (recall_at, ndcg_at):
        with pytest.raises(ValueError, match=rf"k is {k}: it must lie in \[1, 20\]"):
            measure(row, row, row, k)


def test_the_interval_is_that_of_a_t_test_and_covers_the_mean_as_often_as_it_says():
    values = RNG.gamma(2.0, size=12)
    got = mean_interval(values, level=0.9)
    theirs = stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
    np.testing.assert_allclose(got, [values.mean(), stats.sem(values), *theirs])
    draws = RNG.normal(3.0, 2.0, (2000, 5))
    intervals = [mean_interval(row) for row in draws]
    covered = np.mean([i.low < 3.0 < i.high for i in intervals])
    assert abs(covered - 0.95) < 4 * (0.95 * 0.05 / 2000) ** 0.5


@pytest.mark.parametrize(
    "values, level, message",
    [
        ([1.0], 0.95, "n >= 2"),
        ([[1.0, 2.0]], 0.95, "n >= 2"),
        ([1.0, 2.0], 1.0, r"a level in \(0, 1\)"),
        ([1.0, np.nan], 0.95, "value 1 is nan"),
    ],
)
def test_an_interval_of_nothing_is_an_error(values, level, message):
    with pytest.raises(ValueError, match=message):
        mean_interval(np.array(values), level=level)
