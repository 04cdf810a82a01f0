"""The pictures of an experiment, each a figure of its data and parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from vi_jax import plots
from vi_jax.evaluation import kl_per_latent
from vi_jax.model import (
    generate,
    infer,
    interpolate,
    reconstruct,
    spherical,
    traverse,
)
from vi_jax.models import at_context, moved
from vi_jax.types import Array, Params

if TYPE_CHECKING:  # which draws them
    from vi_jax.experiment import Experiment


def _as_images(experiment: Experiment, x: Array) -> np.ndarray:
    return np.asarray(x).reshape(-1, *experiment.data.shape)


def sample_figure(experiment: Experiment, params: Params, *, num=100, seed=0) -> Figure:
    """Means of p(x | z) at draws from the prior; of classes in turn, one a column."""
    columns = experiment.num_classes or 10
    key = jax.random.key(seed)
    # A row has one key: where the prior is that of every class, one z.
    keys = jnp.arange(num) // (columns if experiment.num_classes else 1)

    def draw(i: Array, c: Array | None) -> Array:
        at = at_context(experiment.model, c)
        return generate(at, params, jax.random.fold_in(key, i))

    images = jax.jit(jax.vmap(draw))(
        keys, experiment.contexts(jnp.arange(num) % columns)
    )
    return plots.image_grid(_as_images(experiment, images), columns=columns)


def reconstruction_figure(experiment: Experiment, params: Params) -> Figure:
    """Test images, each beside its reconstruction."""
    x, label = _some(experiment, slice(40))
    keys = jax.random.split(jax.random.key(0), len(x))
    one = lambda key, x, c: reconstruct(at_context(experiment.model, c), params, key, x)
    made = jax.jit(jax.vmap(one))(keys, x, experiment.contexts(label))
    pairs = plots.beside(x, made)
    return plots.image_grid(_as_images(experiment, pairs), columns=10)


def interpolation_figure(
    experiment: Experiment,
    params: Params,
    *,
    rows=8,
    points=10,
    path=spherical,
) -> Figure:
    """Paths between the first test images, taken two by two; given labels, of one.

    Raises ValueError where there are no two.
    """
    chosen = _test_pairs(experiment)[:rows]
    if not len(chosen):
        of = "of one class " if experiment.num_classes else ""
        raise ValueError(f"there are no two test images {of}to draw a path between")
    x, label = _some(experiment, chosen)

    def one(x: Array, c: Array | None) -> Array:
        model = at_context(experiment.model, c)
        return interpolate(model, params, *x, num_points=points, path=path)

    of_pair = None if label is None else label[:, 0]
    images = jax.jit(jax.vmap(one))(x, experiment.contexts(of_pair))
    return plots.image_grid(_as_images(experiment, images), columns=points)


def _test_pairs(experiment: Experiment) -> np.ndarray:
    label = experiment.data.test_label if experiment.num_classes else None
    return _pairs(len(experiment.data.test), label)


def _pairs(n: int, label: np.ndarray | None) -> np.ndarray:
    """Places of n images two by two, [m, 2]; each pair of one label where there are."""
    if label is None:
        return np.arange(n - n % 2).reshape(-1, 2)
    of_class = [np.flatnonzero(label == y) for y in np.unique(label)]
    pairs = [_pairs(len(places), None) for places in of_class]
    found = np.concatenate(
        [places[pair] for places, pair in zip(of_class, pairs, strict=True)]
    )
    return found[np.argsort(found[:, 0])]


def analogy_figure(experiment: Experiment, params: Params, *, rows=10) -> Figure:
    """Test images (first column), and every class in the hand of each."""
    x, label = _some(experiment, slice(rows))
    classes = experiment.contexts(np.arange(experiment.num_classes))
    given = experiment.model
    decode = lambda c, z: given(c).likelihood(params, z).mean()

    def one(x: Array, c: Array) -> Array:
        z = infer(given(c), params, x).mean()
        as_class = lambda to: decode(to, moved(given, params, z, c, to))
        return jnp.concatenate([x[None], jax.vmap(as_class)(classes)])

    images = jax.jit(jax.vmap(one))(x, experiment.contexts(label))
    columns = experiment.num_classes + 1
    return plots.image_grid(_as_images(experiment, images), columns=columns)


def traversals(
    experiment: Experiment, params: Params, rates, *, num=10, points=12
) -> dict[str, np.ndarray]:
    """A test image with one latent moved from -2.5 to 2.5, [points, h, w, c] for each.

    Of the `num` latents of the highest KL, under their names, the highest first.
    """
    x = _some(experiment, slice(1))[0][0]
    how = {"num_points": points, "limit": 2.5}
    along = jax.jit(lambda p, x: traverse(experiment.model, p, x, **how))
    moved = along(params, x)
    order = np.argsort(-np.asarray(rates), kind="stable")[:num]
    return {f"z{j}": _as_images(experiment, moved[j]) for j in order}


def _some(experiment: Experiment, places) -> tuple[Array, np.ndarray | None]:
    """Test images at these places, in [0, 1], and their labels where there are any."""
    label = experiment.data.test_label
    x = jnp.asarray(experiment.data.test[places]) / 255.0
    return x, None if label is None else label[places]


def latent_pictures(experiment: Experiment, params: Params, records) -> dict[str, Any]:
    """Pictures of single latents, for a model that has a KL for each."""
    if not any("kl_per_latent" in r for r in records):
        return {}
    # Not those of the last record: the parameters may be an earlier checkpoint's.
    model, valid = experiment.model, experiment.data.valid
    posteriors = lambda p, x: jax.vmap(lambda x: model.posterior(p, x))(x)
    rate = jax.jit(lambda p, x: kl_per_latent(posteriors(p, x), model.prior(p)))
    rates = np.asarray(rate(params, jnp.asarray(valid) / 255.0))
    of_all = {}
    if len(rates) == 2 and experiment.data.test_label is not None:
        mean = jax.jit(jax.vmap(lambda x: model.posterior(params, x).mean()))
        x, label = _some(experiment, slice(5000))
        of_all["latent_map.png"] = plots.latent_map(np.asarray(mean(x)), label)
    rows = traversals(experiment, params, rates)
    frames = np.stack(list(rows.values()), axis=1)
    return of_all | {
        "kl_per_latent.png": plots.kl_bars(rates),
        "traversals.png": plots.named_rows(rows),
        "traversals.gif": plots.animation(frames, columns=5),
    }


def pictures(experiment: Experiment, params: Params, records) -> dict[str, Any]:
    """All that a run draws, under the names of files: figures, and a GIF's bytes."""
    where = {}  # not of every set and model
    if experiment.num_classes:
        where["analogies.png"] = analogy_figure
    if len(_test_pairs(experiment)):
        where["interpolations.png"] = interpolation_figure
    return {name: draw(experiment, params) for name, draw in where.items()} | {
        "samples.png": sample_figure(experiment, params),
        "reconstructions.png": reconstruction_figure(experiment, params),
        "training.png": plots.training_curves(records),
        **latent_pictures(experiment, params, records),
    }
