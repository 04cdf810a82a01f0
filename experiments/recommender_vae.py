"""Recommend items to new users: the multinomial VAE (Liang et al. 2018), EASE, ItemKNN.

    python -m experiments.recommender_vae --dataset movielens/20m-ratings
    python -m experiments.recommender_vae --dataset ml-100k.inter --splits 5 \\
        --batch-size 50 --learning-rate 3e-3 --beta 0.4 --epochs 50 \\
        --anneal-epochs 20 --checkpoint-epochs 4
    python -m experiments.recommender_vae --dataset ratings.csv

A rating of 4 or more is a choice, and users have 5 at least. A tenth of the users, at
most 10,000, are for validation and as many for the test; a fifth of the items of each
is held out. The defaults are the paper's, arXiv:1802.05814, but for the step size,
which falls along a cosine, and 50 epochs of annealing to a beta of 0.2; movielens/1m-
ratings and 20m-ratings run by the same command and were not run here. Recall is divided
by min(k, held-out items). A run folder gets result.json, embeddings.npz (users, items
and their names) and recommended.txt.

Expect for MovieLens-100k with the second command (seeds 0 to 4; 752 training, 93 and 93
held-out users; mean over splits +- standard error):

                 Recall@20        Recall@50         NDCG@100
    VAE      0.406 +- 0.018   0.571 +- 0.016   0.450 +- 0.015
    EASE     0.404 +- 0.017   0.557 +- 0.012   0.449 +- 0.014
    ItemKNN  0.355 +- 0.015   0.517 +- 0.013   0.413 +- 0.014

The VAE's NDCG@100 less that of EASE, split by split: 0.001 +- 0.005. A split takes 30
to 60 seconds of training on one shared core.

What it took, NDCG@100 of the 93 validation users of seed 1: the net 200-64-200, beta
0.2, step size 1e-3, batches of 100: 0.396; step size 4e-3: 0.422. 600-200-600 with
2e-3: 0.433; with 4e-3 and beta 0.4: 0.436 (beta 0.7: 0.422, dropout of 0.3: 0.433);
batches of 50 with 3e-3: 0.438 (one run each, 40 to 60 epochs). The last, with 50,
was then run on the five splits, once. Of no use to the small net: a weight decay of
0.02 (0.362, not 0.396), dropout of 0.7 (0.416, not 0.422).

A set of the size of 20M, synthetic/137000/20000/11500000 (11.1 million interactions to
train on), with the default net: 400 users a second of one core's own time (1.23 s for a
batch of 500), with a peak of 1.9 GiB in the process, the making of the set included
(6 steps, without checkpoints and embeddings). Pass
--no-baselines: EASE takes items^2 numbers.
"""

import dataclasses
import functools
import itertools
import json
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.recommender_baselines import (
    Scores,
    baselines,
    compared,
    measure,
    table,
)
from vi_jax import (
    likelihoods,
    models,
    networks,
    posteriors,
    priors,
    resumable,
    runs,
    schedules,
    training,
)
from vi_jax.commands import clear_errors
from vi_jax.data import (
    Interactions,
    batches,
    interaction_batches,
    load_interactions,
    strong_split,
)
from vi_jax.data.interactions import Split, from_pairs
from vi_jax.early_stopping import EarlyStopping
from vi_jax.model import Model, analytic_terms
from vi_jax.objectives import per_example, summary
from vi_jax.semi_supervised import dropout
from vi_jax.types import Array, Batch, Key, LossFn, Metrics, Params

STORED = Path(__file__).parent / "results" / "recommender_vae.json"


@dataclasses.dataclass(frozen=True)
class Knobs:
    """The knobs of one split, all of them part of what its folder stands for."""

    dataset: str
    """Name of a set of ratings of tensorflow-datasets, such as movielens/20m-ratings;
    path of a file of interactions (.csv, .tsv, .inter, .gz); or synthetic/U/I/N, that
    is N interactions drawn for U users and I items of power-law popularity."""
    threshold: float = 4.0
    """The least rating that counts as a choice."""
    min_interactions: int = 5
    """Choices that a user needs to take part."""
    num_valid: int = 0
    """Validation users; 0 for a tenth, at most 10,000."""
    num_test: int = 0
    """Test users; 0 for a tenth, at most 10,000."""
    hidden: int = 600
    """Width of the one hidden layer of each network."""
    latents: int = 200
    """Dimension of z."""
    dropout: float = 0.5
    """Share of the encoder's input that is left out in training."""
    beta: float = 0.2
    """Weight of the KL term at the end of its rise from 0."""
    anneal_epochs: float = 50.0
    """Epochs until it is there."""
    epochs: float = 200.0
    """Passes over the training users."""
    batch_size: int = 500
    """Users per step, or all of a smaller set."""
    learning_rate: float = 1e-3
    """Adam's step size at the start; it falls to 0 along a cosine."""
    weight_decay: float = 0.0
    """Weight, in the loss, of the sum of the squared parameters."""
    baselines: bool = True
    """Whether to fit EASE and ItemKNN, which take items x items numbers."""
    seed: int = 0
    """Of the split, the initial parameters, the order of the data and every draw."""
    scan_steps: int = 10
    """Steps in one compiled dispatch."""
    checkpoint_epochs: float = 5.0
    """Epochs from one checkpoint, with its validation, to the next."""
    data_dir: str = ""
    """Where sets are prepared; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""


def synthetic(users: int, items: int, interactions: int, seed: int) -> Interactions:
    """About as many interactions (a pair drawn twice is one), 5 a user at least.

    The i-th most popular item has a share ~ 1 / (i + items / 100), and the numbers of
    the users' draws are log-normal. There is nothing to learn but the popularity.
    Raises ValueError where there are fewer than 5 interactions a user.
    """
    if min(users, items) < 1 or interactions < 5 * users:
        raise ValueError(f"needed: 5 interactions a user, got {interactions}/{users}")
    rng = np.random.default_rng(seed)
    share = rng.lognormal(0.0, 1.0, users)
    counts = 5 + (share / share.sum() * (interactions - 5 * users)).astype(int)
    popularity = np.cumsum(1 / (np.arange(items) + items / 100))
    draws = rng.random(counts.sum()) * popularity[-1]
    item = np.searchsorted(popularity, draws).astype(np.int32)
    user = np.repeat(np.arange(users, dtype=np.int32), counts)
    names = (np.arange(n).astype(str) for n in (users, items))
    return from_pairs(user, item, *names)


def read(knobs: Knobs) -> Split:
    """The interactions of the knobs, split by their seed."""
    if match := re.fullmatch(r"synthetic/(\d+)/(\d+)/(\d+)", knobs.dataset):
        data = synthetic(*(int(n) for n in match.groups()), seed=0)
    else:
        data = load_interactions(
            knobs.dataset,
            threshold=knobs.threshold,
            min_interactions=knobs.min_interactions,
            data_dir=knobs.data_dir or None,
        )
    tenth = min(10_000, data.num_users // 10)
    return strong_split(
        data,
        num_valid=knobs.num_valid or tenth,
        num_test=knobs.num_test or tenth,
        seed=knobs.seed,
    )


def normalised(counts: Array) -> Array:
    """x / |x|, [items]: users of many and of few items look alike; 0 stays 0."""
    return counts / jnp.sqrt(jnp.maximum(jnp.sum(counts**2), 1.0))


def build_model(knobs: Knobs, num_items: int) -> Model:
    """A VAE that encodes x / |x| and gives the chances of the items."""
    encoder = networks.mlp([knobs.hidden], 2 * knobs.latents)
    decoder = networks.mlp([knobs.hidden], num_items)
    return models.vae(
        priors.standard_normal(knobs.latents),
        posteriors.normal(encoder),
        likelihoods.multinomial(decoder),
    )


def multinomial_loss(
    model: Model, *, rate: float, beta: schedules.Schedule, weight_decay: float
) -> LossFn:
    """-mean of E[log p(x | z)] - beta KL(q(z | noisy x) || p(z)), + the decay, nats.

    The encoder sees x / |x| with a share `rate` left out, the likelihood x.
    """
    drop = dropout(rate)

    def one(params: Params, key: Key, counts: Array, beta: Array):
        key_drop, key_z = jax.random.split(key)
        noisy = drop(key_drop, normalised(counts))
        encode = lambda params, _: model.posterior(params, noisy)
        given = model._replace(posterior=encode)
        return per_example(
            given, params, key_z, counts, beta=beta, terms=analytic_terms
        )

    def loss(params: Params, key: Key, batch: Batch) -> tuple[Array, Metrics]:
        counts, weight = batch["counts"], beta(batch["step"])
        keys = jax.random.split(key, counts.shape[0])
        values, terms = jax.vmap(one, (None, 0, 0, None))(params, keys, counts, weight)
        bound = jnp.mean(values)
        squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
        metrics = jax.tree.map(jnp.mean, jax.vmap(summary)(terms))
        logged = {"bound": bound, "beta": weight, **metrics}
        return weight_decay * squares - bound, logged

    return loss


def scores_of(model: Model) -> Callable[[Params], Scores]:
    """params -> `Scores`: the log of the items' chances at the mean of q(z | x)."""

    @jax.jit
    def some(params: Params, counts: Array) -> Array:
        def one(counts: Array) -> Array:
            z = model.posterior(params, normalised(counts)).mean()
            return model.likelihood(params, z).logits

        return jax.vmap(one)(counts)

    def scores(params: Params) -> Scores:
        return lambda seen: np.asarray(some(params, seen.toarray()))

    return scores


def plan_of(knobs: Knobs, model: Model, split: Split) -> resumable.Training:
    """How the model is trained, and chosen by the validation users' NDCG@100."""
    if (items := split.train.num_items) < 100:
        raise ValueError(f"{knobs.dataset} has {items} items: NDCG@100 needs 100")
    users = split.train.num_users
    size = min(knobs.batch_size, users)
    steps = functools.partial(batches.steps_per_run, users, batch_size=size)
    num_steps = steps(epochs=knobs.epochs)
    beta = schedules.linear(
        steps(epochs=knobs.anneal_epochs), total_steps=num_steps, end=knobs.beta
    )
    if not knobs.weight_decay >= 0:
        raise ValueError(f"weight_decay must be at least 0, got {knobs.weight_decay}")
    scores = scores_of(model)
    valid = lambda params: measure(scores(params), split.valid)["ndcg@100"].mean()
    return resumable.Training(
        multinomial_loss(
            model, rate=knobs.dropout, beta=beta, weight_decay=knobs.weight_decay
        ),
        training.adam(knobs.learning_rate, num_steps=num_steps),
        interaction_batches(split.train, batch_size=size, seed=knobs.seed),
        seed=knobs.seed,
        num_steps=num_steps,
        scan_steps=knobs.scan_steps,
        checkpoint_steps=steps(epochs=knobs.checkpoint_epochs),
        validate=lambda params: {"valid_ndcg": float(valid(params))},
        score="valid_ndcg",
        # All epochs are run; the best of its checkpoints is the outcome.
        early_stopping=EarlyStopping(num_steps, start=0),
    )


def embeddings(model: Model, params: Params, split: Split) -> dict[str, np.ndarray]:
    """Where users and items lie, with their names.

    A user is the mean of q(z | x) [latents], of a held-out one the seen items alone; an
    item is its weights in the decoder's last layer [hidden].
    """
    one = lambda x: model.posterior(params, normalised(x)).mean()
    encode = jax.jit(jax.vmap(one))
    parts = (split.train, split.valid.seen, split.test.seen)
    found = []
    for part in parts:
        rows = part.matrix()
        for users, real in batches.padded(np.arange(part.num_users), batch_size=200):
            found.append(np.asarray(encode(rows[users].toarray()))[real])
    kernels = [a for a in jax.tree.leaves(params["likelihood"]) if a.ndim == 2]
    return {
        "user_names": np.concatenate([part.user_names for part in parts]),
        "users": np.concatenate(found),
        "item_names": split.train.item_names,
        "items": np.asarray(kernels[-1]).T,
    }


def recommended(scores: Scores, split: Split, *, users: int = 3, n: int = 5) -> str:
    """What a few test users have seen, and the best n of what they have not."""
    lines = []
    for user in range(min(users, split.test.seen.num_users)):
        seen = split.test.seen.of_users(np.array([user]))
        rows = seen.matrix()
        ranked = np.where(rows.toarray() > 0, -np.inf, scores(rows))[0].argsort()[::-1]
        names = split.train.item_names
        lines += [
            f"user {seen.user_names[0]}",
            "  seen: " + "; ".join(names[seen.items[:n]]),
            "  best: " + "; ".join(names[ranked[:n]]),
        ]
    return "\n".join(lines)


def users_per_second(folder: Path, batch_size: int) -> float | None:
    """The median over dispatches that end without a validation; None without any."""
    records = runs.read_metrics(folder)
    rates = [
        batch_size * (b["step"] - a["step"]) / (b["seconds"] - a["seconds"])
        for a, b in itertools.pairwise(records)
        if "valid_ndcg" not in b
    ]
    return round(float(np.median(rates)), 1) if rates else None


def peak_gib() -> float:
    """The largest memory of this process so far, in GiB."""
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 2)


def run(knobs: Knobs, run_dir: Path) -> dict[str, Any]:
    """One split in its own folder of `run_dir`; a finished one is left as it is."""
    split = read(knobs)
    model = build_model(knobs, split.train.num_items)
    plan = plan_of(knobs, model, split)
    example = jnp.zeros(split.train.num_items)
    params = jax.jit(model.init)(resumable.init_key(knobs.seed), example)
    resumable.check(plan, params)
    folder = run_dir / f"seed{knobs.seed}"

    def work() -> dict[str, Any]:
        state = training.init_state(params, plan.optimizer)
        trained, about = resumable.train(plan, state, folder)
        with runs.whole_file(folder / "embeddings.npz") as file:
            np.savez(file, **embeddings(model, trained, split))
        scores = scores_of(model)(trained)
        runs.write_text(folder / "recommended.txt", recommended(scores, split) + "\n")
        size = min(knobs.batch_size, split.train.num_users)
        about |= {
            "users_per_second": users_per_second(folder, size),
            "peak_gib": peak_gib(),
        }
        fitted = {"vae": (scores, {})}
        if knobs.baselines:
            fitted |= baselines(split)
        return facts(knobs, split) | compared(fitted, split) | about

    return runs.once(folder, "recommender_vae", knobs, work)


def facts(knobs: Knobs, split: Split) -> dict[str, Any]:
    """What the result is of."""
    return {
        "dataset": Path(knobs.dataset).name if "." in knobs.dataset else knobs.dataset,
        "threshold": knobs.threshold,
        "num_train": split.train.num_users,
        "num_valid": split.valid.seen.num_users,
        "num_test": split.test.seen.num_users,
        "num_items": split.train.num_items,
        "num_interactions": len(split.train.items),
        "num_unseen": split.num_unseen,
        "num_too_short": split.num_too_short,
    }


def main(
    knobs: Annotated[Knobs, tyro.conf.OmitArgPrefixes],
    splits: int = 1,
    run_dir: Path = Path("runs/recommender_vae"),
) -> None:
    """Train and compare on each split, and print the table over all of them.

    Args:
        splits: Random splits, of the seeds seed, seed + 1, ...; each has its folder.
        run_dir: Folder of the runs; the same command again goes on with them.
    """
    with clear_errors():
        if splits < 1 or knobs.seed < 0:
            raise ValueError("needed: splits >= 1 and seed >= 0")
        results = []
        for seed in range(knobs.seed, knobs.seed + splits):
            results.append(run(dataclasses.replace(knobs, seed=seed), run_dir))
            print(json.dumps(results[-1], indent=2), flush=True)
        print((run_dir / f"seed{knobs.seed}" / "recommended.txt").read_text())
        print(table(results))


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.recommender_vae", description=__doc__)
