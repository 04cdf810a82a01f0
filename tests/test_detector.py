"""The detector: scikit-learn's own checks, and scores that are those of its model."""

import jax
import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import check_estimator

from vi_jax import detector as detectors
from vi_jax.data import tables
from vi_jax.detector import SCORES, VAEDetector
from vi_jax.evaluation import log_likelihood

QUICK = {"latents": 1, "hidden": (8,), "num_samples": 20, "batch_size": 32}
QUICK |= {"random_state": 0, "num_steps": 300, "learning_rate": 0.01}


def on_a_line(n, seed):
    """Three numbers that one other, t, makes, with a little noise; far from 0."""
    rng = np.random.default_rng(seed)
    t = rng.normal(size=(n, 1))
    clean = t * [3.0, -20.0, 0.5] + [100.0, 7.0, -2.0]
    return clean + rng.normal(size=(n, 3)) * [0.3, 2.0, 0.05]


def off_the_line(n, seed):
    """Each column as before, but independent of the others."""
    rows = on_a_line(3 * n, seed).reshape(3, n, 3)
    return np.stack([rows[j, :, j] for j in range(3)], 1)


@pytest.fixture(scope="module")
def fitted():
    return VAEDetector(**QUICK, contamination=0.2).fit(on_a_line(150, seed=0))


def test_scikit_learns_own_checks_pass():
    """Every check that does not skip itself: no failure is expected."""
    quick = VAEDetector(
        anomaly_score="reconstruction_error",
        num_steps=20,
        batch_size=32,
        latents=1,
        hidden=(),
    )
    results = check_estimator(quick, on_skip=None)
    passed = {r["check_name"] for r in results if r["status"] == "passed"}
    assert len(passed) >= 35
    assert {
        *("check_outliers_train", "check_outliers_fit_predict"),
        *("check_methods_subset_invariance", "check_estimators_pickle"),
        *("check_fit_idempotent", "check_n_features_in_after_fitting"),
    } <= passed


@pytest.mark.parametrize("missing", [False, True])
def test_what_breaks_the_relation_of_the_columns_is_an_outlier(missing):
    train = on_a_line(150, seed=0)
    test = np.concatenate([on_a_line(100, seed=1), off_the_line(100, seed=2)])
    if missing:  # one entry of every third row
        rng = np.random.default_rng(3)
        for rows in (train, test):
            gaps = np.arange(0, len(rows), 3)
            rows[gaps, rng.integers(3, size=len(gaps))] = np.nan
    found = VAEDetector(**QUICK).fit(train).score_samples(test)
    outlier = np.arange(200) >= 100
    assert roc_auc_score(outlier, -found) > (0.9 if missing else 0.94)
    if not missing:  # nearly what the true family does, and no single column does it
        best = multivariate_normal(train.mean(0), np.cov(train.T)).logpdf(test)
        assert roc_auc_score(outlier, -found) > roc_auc_score(outlier, -best) - 0.04
        alone = abs(test - train.mean(0)) / train.std(0)
        assert max(roc_auc_score(outlier, alone[:, j]) for j in range(3)) < 0.65


def test_scores_are_those_of_the_model_and_the_schema(fitted):
    rows = on_a_line(2, seed=4)
    rows[1, 2] = np.nan
    model, x = fitted.model(), tables.encode(fitted.schema_, rows)
    got = fitted.score_samples(rows)
    log_px = jax.jit(
        lambda x: (
            log_likelihood(
                model, fitted.params_, jax.random.key(0), x, num_samples=20
            ).log_px
        )
    )
    np.testing.assert_allclose(got, [log_px(row) for row in x], rtol=1e-4)
    np.testing.assert_array_equal(fitted.decision_function(rows), got - fitted.offset_)
    # Standardised by the training rows, in float64.
    train = on_a_line(150, seed=0)
    np.testing.assert_allclose(
        x[0], (rows[0] - train.mean(0)) / train.std(0), rtol=1e-5
    )
    try:
        fitted.set_params(anomaly_score="reconstruction_error")
        by_distance = fitted.score_samples(rows)
    finally:
        fitted.set_params(anomaly_score="negative_log_likelihood")
    params = fitted.params_
    away = x[1] - np.asarray(
        model.likelihood(params, model.posterior(params, x[1]).mean()).mean()
    )
    np.testing.assert_allclose(by_distance[1], -(away[:2] ** 2).sum(), rtol=1e-4)


def test_a_row_has_one_score_wherever_it_stands(fitted):
    rows = on_a_line(300, seed=5)  # two blocks, the second filled up
    got = fitted.score_samples(rows)
    np.testing.assert_allclose(fitted.score_samples(rows[299:]), got[299:], rtol=1e-5)
    np.testing.assert_allclose(fitted.score_samples(rows[::-1]), got[::-1], rtol=1e-5)


def test_another_shape_counts_from_the_next_fit():
    rows = on_a_line(20, seed=0)
    short = QUICK | {"num_steps": 5}
    found = VAEDetector(**short).fit(rows)
    before = found.score_samples(rows)
    found.set_params(latents=2, hidden=(4, 4))
    np.testing.assert_array_equal(found.score_samples(rows), before)
    z = lambda: found.model().prior(found.params_).mean()
    assert z().shape == (1,)
    found.fit(rows)
    assert z().shape == (2,) and (found.score_samples(rows) != before).any()


def test_the_share_beyond_the_offset_and_the_calibrated_rate(fitted):
    train = on_a_line(150, seed=0)
    assert (fitted.predict(train) == -1).sum() == 30  # 0.2 of 150
    held_out = on_a_line(399, seed=6)
    before = fitted.offset_
    try:
        line = fitted.calibrate(held_out, 0.05)
        flagged = fitted.predict(held_out) == -1
        assert flagged.sum() == 20 - 1  # (399 + 1) 0.05 less the one at the line
        assert fitted.offset_ == -line.value
        new = (fitted.predict(on_a_line(2000, seed=7)) == -1).mean()
        assert line.low - 0.02 < new < line.high + 0.02
    finally:
        fitted.offset_ = before


def test_categories_that_do_not_belong_together_are_outliers():
    rng = np.random.default_rng(8)
    word = rng.integers(3, size=300)
    agree = rng.random(300) < 0.97
    coin = np.where(agree, word == 1, word != 1)
    rows = np.stack([word, coin, word + rng.normal(0, 0.1, 300)], 1)
    kinds = ("categorical", "binary", "continuous")
    longer = QUICK | {"num_steps": 2000, "latents": 2}
    found = VAEDetector(**longer, kinds=kinds, unseen="missing").fit(rows)
    assert found.schema_.num_logits == (3, 1, 0)
    right = np.array([[0, 0, 0.0], [1, 1, 1.0], [2, 0, 2.0]])
    wrong = np.array([[0, 1, 0.0], [1, 0, 1.0], [2, 1, 2.0]])
    shifted = np.array([[0, 0, 2.0], [1, 1, 0.0], [2, 0, 0.0]])
    scores = [found.score_samples(rows) for rows in (right, wrong, shifted)]
    assert scores[0].min() > max(scores[1].max(), scores[2].max())
    # A category that no training row has: missing, or an error that names the row.
    unseen, gap = np.array([[7.0, 0, 0]]), np.array([[np.nan, 0, 0]])
    np.testing.assert_array_equal(*map(found.score_samples, (unseen, gap)))
    found.set_params(unseen="error")
    with pytest.raises(ValueError, match="row 0, column 'x0'.*no category"):
        found.score_samples(unseen)


def test_detectors_of_one_shape_share_their_programs(fitted):
    shape = fitted._shape
    train = detectors._trainer(shape, QUICK["batch_size"])
    before = train._cache_size()
    for n, steps, rate in ((20, 3, 0.1), (256, 7, 0.01)):
        other = QUICK | {"num_steps": steps, "learning_rate": rate}
        VAEDetector(**other).fit(on_a_line(n, seed=9))
    assert detectors._trainer(shape, QUICK["batch_size"]) is train
    assert before == train._cache_size() == 1


def test_what_fills_up_the_rows_is_never_drawn(fitted, monkeypatch):
    def filled_with_nonsense(x):
        return np.pad(x, ((0, 256 - len(x)), (0, 0)), constant_values=1e4)

    monkeypatch.setattr(detectors, "_filled_up", filled_with_nonsense)
    again = VAEDetector(**QUICK).fit(on_a_line(150, seed=0))
    jax.tree.map(np.testing.assert_array_equal, again.params_, fitted.params_)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"anomaly_score": "loss"}, "anomaly_score is 'loss'"),
        ({"latents": 0}, "latents must be an integer >= 1"),
        ({"num_steps": 2.5}, "num_steps must be an integer"),
        ({"contamination": 0.6}, r"contamination must be in \(0, 0.5\]"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0"),
        ({"kinds": ("binary",)}, "1 kinds for 3 columns"),
        ({"kinds": ("date",) * 3}, "kind is 'date'"),
        ({"unseen": "guess"}, "unseen is 'guess'"),
    ],
)
def test_a_parameter_out_of_its_range_is_an_error(wrong, message):
    with pytest.raises(ValueError, match=message):
        VAEDetector(**(QUICK | wrong)).fit(on_a_line(20, seed=0))


def test_rows_that_cannot_be_are_an_error(fitted):
    rows = on_a_line(20, seed=0)
    rows[:, 1] = np.nan
    with pytest.raises(ValueError, match="column 'x1': all 20 values are missing"):
        VAEDetector(**QUICK).fit(rows)
    with pytest.raises(ValueError, match="2 features"):
        fitted.score_samples(rows[:, :2])
    rate = QUICK | {"learning_rate": 1e30}
    with pytest.raises(FloatingPointError, match="pass a lower learning_rate"):
        VAEDetector(**rate).fit(on_a_line(20, seed=0))


def test_every_score_is_finite_and_its_sign_is_right(fitted):
    near, far = on_a_line(20, seed=10), off_the_line(20, seed=11)
    try:
        for name in set(SCORES) - {"latent_distance", "likelihood_regret"}:
            fitted.set_params(anomaly_score=name)
            assert np.median(fitted.score_samples(near)) > np.median(
                fitted.score_samples(far)
            )
    finally:
        fitted.set_params(anomaly_score="negative_log_likelihood")


def test_the_experiment_measures_tables_of_text_and_of_numbers(tmp_path, monkeypatch):
    """With the forest alone: files, split, protocol, areas and the second start."""
    from experiments import anomaly_tables

    rows = np.concatenate([on_a_line(60, seed=12), 40 + on_a_line(12, seed=13)])
    label = np.repeat([0, 1], [60, 12])
    np.savez(tmp_path / "numbers.npz", X=rows, y=label)
    lines = ["a,b,colour,label"]
    for i, (x, y) in enumerate(zip(rows, label, strict=True)):
        lines.append(f"{x[0]},{'' if i % 7 == 0 else x[1]},{'rg'[i % 2]},{y}")
    (tmp_path / "text.csv").write_text("\n".join(lines))
    only = {"forest": anomaly_tables.forest_scores}
    monkeypatch.setattr(anomaly_tables, "METHODS", only)
    tables_asked = f"{tmp_path / 'numbers.npz'}, {tmp_path / 'text.csv'}"
    knobs = anomaly_tables.Knobs(tables=tables_asked, seeds=2, pyod=False)
    results = anomaly_tables.run_tables(knobs, tmp_path / "run")
    assert [(r["table"], r["seed"]) for r in results] == [
        (table, seed) for table in ("numbers", "text") for seed in (0, 1)
    ]
    for r in results:
        # 30% of 72 rows, stratified; the anomalies of the others are left out.
        assert (r["num_test"], r["num_train"]) == (22, 42)
        assert r["areas"]["isolation forest"]["auroc"] > 0.65
    assert results == anomaly_tables.run_tables(knobs, tmp_path / "run")
    area = np.array([r["areas"]["isolation forest"]["auprc"] for r in results])
    of_seeds = area.reshape(2, 2).mean(0)
    error = abs(of_seeds[0] - of_seeds[1]) / 2
    last = anomaly_tables.summary(results, "auprc").splitlines()[-1]
    assert last == f"| mean of 2 | {area.mean():.4f} +- {error:.4f} |"
    lines[3] = lines[3][:-1] + "nan"
    (tmp_path / "nan.csv").write_text("\n".join(lines))
    np.savez(
        tmp_path / "nan.npz", X=rows, y=np.where(np.arange(72) < 70, label, np.nan)
    )
    for wrong, message in (
        ({"seeds": 0}, "seeds >= 1"),
        ({"tables": str(tmp_path / "run")}, "holds no .npz"),
        ({"tables": f"{tmp_path / 'text.csv'}", "label": "a"}, "are anomalies"),
        ({"tables": f"{tmp_path / 'text.csv'}", "label": "b"}, "no number"),
        ({"tables": f"{tmp_path / 'nan.csv'}"}, "nan.csv, row 2: the label is nan"),
        ({"tables": f"{tmp_path / 'nan.npz'}"}, "nan.npz, row 70: the label is nan"),
    ):
        with pytest.raises(ValueError, match=message):
            anomaly_tables.run_tables(anomaly_tables.Knobs(**wrong), tmp_path / "other")
