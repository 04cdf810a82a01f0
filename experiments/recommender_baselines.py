"""How recommenders are measured and compared, and two linear ones: EASE, ItemKNN."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import linalg, sparse

from vi_jax.data.batches import padded
from vi_jax.data.interactions import HeldOut, Split
from vi_jax.evaluation import mean_interval, ndcg_at, recall_at
from vi_jax.types import Array

Scores = Callable[[sparse.csr_matrix], np.ndarray]
"""What users have seen, [b, items], -> the scores of all items, [b, items]."""

L2 = (30.0, 100.0, 200.0, 300.0, 500.0, 1000.0)
NEIGHBOURS = (20, 50, 100, 200, 500)
SHRINK = (0.0, 10.0, 30.0, 100.0)


@jax.jit
def _ranked(scores: Array, held: Array, seen: Array) -> dict[str, Array]:
    def one(scores: Array, held: Array, seen: Array) -> dict[str, Array]:
        return {
            "recall@20": recall_at(scores, held, seen, 20),
            "recall@50": recall_at(scores, held, seen, 50),
            "ndcg@100": ndcg_at(scores, held, seen, 100),
        }

    return jax.vmap(one)(scores, held, seen)


def measure(scores: Scores, part: HeldOut) -> dict[str, np.ndarray]:
    """Recall@20, Recall@50 and NDCG@100 of every held-out user, [users] each.

    Raises ValueError where there are fewer than 100 items.
    """
    seen, held = part.seen.matrix(), part.held.matrix()
    found = []
    for users, real in padded(np.arange(part.seen.num_users), batch_size=200):
        rows = seen[users]
        given = (scores(rows), held[users].toarray(), rows.toarray())
        values = jax.device_get(_ranked(*(jnp.asarray(a) for a in given)))
        found.append({name: value[real] for name, value in values.items()})
    return {name: np.concatenate([f[name] for f in found]) for name in found[0]}


def ease(x: sparse.csr_matrix, l2: float) -> np.ndarray:
    """The weights B [items, items], of no item for itself, that best give X back.

    argmin |X - X B|^2 + l2 |B|^2 subject to diag(B) = 0: with P = (X^T X + l2 I)^-1,
    B_ij = -P_ij / P_jj off the diagonal. Takes items^2 numbers, twice.
    Ref: Steck 2019, arXiv:1905.03375.
    """
    gram = (x.T @ x).toarray()
    gram[np.diag_indices_from(gram)] += l2
    inverse = linalg.inv(gram, overwrite_a=True)
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    return weights


def item_knn(x: sparse.csr_matrix, neighbours: int, shrink: float) -> sparse.csr_matrix:
    """Cosine similarities [items, items], of an item with its nearest others only.

    s_ij = |users of both| / (sqrt(|users of i| |users of j|) + shrink); column j keeps
    its largest `neighbours`. Ref: Sarwar et al. 2001; Ferrari Dacrema et al. 2021.
    """
    both = (x.T @ x).tocoo()
    size = np.sqrt(both.diagonal())
    similar = both.data / (size[both.row] * size[both.col] + shrink)
    similar[both.row == both.col] = 0.0
    # By column and falling similarity: the first ones of each column are kept.
    order = np.lexsort([-similar, both.col])
    starts = np.searchsorted(both.col[order], np.arange(x.shape[1]))
    rank = np.arange(len(order)) - starts[both.col[order]]
    kept = order[(rank < neighbours) & (similar[order] > 0)]
    return sparse.csr_matrix(
        (similar[kept], (both.row[kept], both.col[kept])), both.shape
    )


def _linear(weights: np.ndarray | sparse.csr_matrix) -> Scores:
    def scores(seen: sparse.csr_matrix) -> np.ndarray:
        product = seen @ weights
        return product.toarray() if sparse.issparse(product) else product

    return scores


def _best(fit: Callable, choices: list[dict[str, Any]], split: Split):
    """(scores, choice) of the highest NDCG@100 over the validation users."""
    x, best = split.train.matrix(), (-np.inf, None, None)
    for choice in choices:
        scores = _linear(fit(x, **choice))
        found = float(measure(scores, split.valid)["ndcg@100"].mean())
        best = max(best, (found, scores, choice), key=lambda b: b[0])
    return best[1:]


def baselines(split: Split) -> dict[str, tuple[Scores, dict[str, Any]]]:
    """EASE and ItemKNN with what the validation users chose, by name."""
    knn = [
        {"neighbours": n, "shrink": s} for n, s in itertools.product(NEIGHBOURS, SHRINK)
    ]
    return {
        "ease": _best(ease, [{"l2": l2} for l2 in L2], split),
        "item_knn": _best(item_knn, knn, split),
    }


def of_users(values: dict[str, np.ndarray]) -> dict[str, Any]:
    """Each measure's mean over the users, with its 95% interval."""
    return {
        name: {k: round(v, 5) for k, v in mean_interval(value)._asdict().items()}
        for name, value in values.items()
    }


def compared(fitted: dict[str, tuple[Scores, dict]], split: Split) -> dict[str, Any]:
    """The measures of every recommender on the test users, and the VAE's lead."""
    values = {name: measure(scores, split.test) for name, (scores, _) in fitted.items()}
    found = {name: of_users(value) for name, value in values.items()}
    lead = {
        f"vae_minus_{name}": of_users({k: values["vae"][k] - v[k] for k in v})
        for name, v in values.items()
        if name != "vae"
    }
    chosen = {name: choice for name, (_, choice) in fitted.items() if choice}
    return {**found, **lead, "chosen": chosen}


def table(results: list[dict[str, Any]]) -> str:
    """Means over splits +- their standard error; of one split, over its test users."""
    lines = ["| | Recall@20 | Recall@50 | NDCG@100 |", "|---|---|---|---|"]
    for name in (key for key in results[0] if key.startswith(("vae", "ease", "item_"))):
        cells = []
        for measured in ("recall@20", "recall@50", "ndcg@100"):
            means = [result[name][measured]["mean"] for result in results]
            if len(means) > 1:
                stderr = mean_interval(means).stderr
            else:
                stderr = results[0][name][measured]["stderr"]
            cells.append(f"{np.mean(means):.4f} +- {stderr:.4f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
