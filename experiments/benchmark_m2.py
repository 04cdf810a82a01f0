"""Steps per second of M2 without labels: enumeration here, in NumPyro, and sampled.

    python -m experiments.benchmark_m2
    python -m experiments.benchmark_m2 --classes 10 --repeats 9

A step moves by Adam on the unlabelled bound of Kingma et al. 2014 (arXiv:1406.5298) of
a batch of binary images, nets of one hidden layer of 300, z of 50. It is timed in

- vi_jax: `semi_supervised.unlabelled_bound`, all classes in one vmap, by `fit`;
- likeliest and a draw: the same with `top_and_sampled(1)`, two classes of all;
- NumPyro: SVI with TraceEnum_ELBO, y enumerated in parallel, in a lax.scan.

All start at the same parameters, see the same batches and take turns in one process;
their losses must agree and fall before anything is timed.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments.benchmark import compare, in_words, machine
from vi_jax import (
    likelihoods,
    models,
    networks,
    posteriors,
    priors,
    runs,
    semi_supervised,
    training,
)
from vi_jax.data import batches

PIXELS, LATENTS, HIDDEN, LEARNING_RATE = 784, 50, 300, 1e-3


class Setup(NamedTuple):
    """What the contenders share."""

    classes: int
    scan_steps: int
    stream: batches.Batches
    params: dict  # of `m2`


def m2(classes: int) -> models.SemiSupervised:
    mlp = functools.partial(networks.mlp, [HIDDEN])
    conditional = models.conditional_vae(
        models.fixed(priors.standard_normal(LATENTS)),
        posteriors.normal(mlp(2 * LATENTS)),
        likelihoods.bernoulli(mlp(PIXELS)),
    )
    return models.m2(conditional, mlp(classes), np.full(classes, 1 / classes))


def make_setup(classes: int, batch_size: int, scan_steps: int) -> Setup:
    rng = np.random.default_rng(0)
    blobs = rng.random((classes, PIXELS)) < 0.2
    flips = rng.random((10_000, PIXELS)) < 0.05
    image = (blobs[rng.integers(classes, size=len(flips))] ^ flips).astype(np.uint8)
    stream = batches.shuffled({"image": image}, batch_size=batch_size, seed=0)
    params = m2(classes).init(jax.random.key(0), jnp.zeros(PIXELS))
    return Setup(classes, scan_steps, stream, params)


def with_vi_jax(
    setup: Setup, class_mean: semi_supervised.ClassMean = semi_supervised.enumerated
) -> Iterator[float]:
    """The mean loss of each turn."""
    model = m2(setup.classes)

    def loss(params, key, batch):
        x = batch["image"].astype(jnp.float32)
        bound = lambda key, x: semi_supervised.unlabelled_bound(
            model, params, key, x, class_mean=class_mean
        )
        value = jnp.mean(jax.vmap(bound)(jax.random.split(key, len(x)), x))
        return -value, {}

    adam = optax.adam(LEARNING_RATE)
    steps = training.fit(
        loss,
        adam,
        training.init_state(setup.params, adam),
        setup.stream,
        seed=0,
        num_steps=2**31 - 1,
        scan_steps=setup.scan_steps,
    )
    return (metrics["loss"] for _, metrics in steps)


def with_numpyro(setup: Setup) -> Iterator[float]:
    """The mean loss of each turn."""
    import numpyro
    from numpyro import distributions as dist, infer

    c, resident = setup.classes, jnp.array(setup.stream.resident["image"])
    b = len(setup.stream.at(0)["index"])
    everywhere = {"infer": {"enumerate": "parallel"}}

    def two_layers(layers, h, y=None):
        h = h @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"]
        h = h if y is None else h + y @ layers["Part_1"]["kernel"]
        return jnp.tanh(h) @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"]

    def model(x):
        layers = numpyro.param("p", setup.params["likelihood"])
        with numpyro.plate("batch", b):
            y = numpyro.sample("y", dist.Categorical(jnp.full(c, 1 / c)), **everywhere)
            prior = dist.Normal(jnp.zeros(LATENTS), 1.0).to_event(1)
            logits = two_layers(layers, numpyro.sample("z", prior), jnp.eye(c)[y])
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x):
        names = ("classifier", "posterior")
        q_y, q_z = (numpyro.param(name, setup.params[name]) for name in names)
        with numpyro.plate("batch", b):
            q = dist.Categorical(logits=two_layers(q_y, x))
            y = numpyro.sample("y", q, **everywhere)
            loc, h = jnp.split(two_layers(q_z, x, jnp.eye(c)[y]), 2, axis=-1)
            numpyro.sample("z", dist.Normal(loc, jnp.exp(0.5 * h)).to_event(1))

    objective = infer.TraceEnum_ELBO(max_plate_nesting=1)
    svi = infer.SVI(model, guide, optax.adam(LEARNING_RATE), objective)

    @functools.partial(jax.jit, donate_argnums=0)
    def turn(state, index):
        def body(state, rows):
            state, loss = svi.update(state, resident[rows].astype(jnp.float32))
            return state, loss / b

        return jax.lax.scan(body, state, index)

    state, step = svi.init(jax.random.key(0), jnp.zeros((b, PIXELS))), 0
    while True:
        places = range(step, step := step + setup.scan_steps)
        index = np.stack([setup.stream.at(i)["index"] for i in places])
        state, losses = turn(state, index)
        yield float(jnp.mean(losses))


CONTENDERS: dict[str, Callable[[Setup], Iterator[float]]] = {
    "vi_jax": with_vi_jax,
    "likeliest and a draw": functools.partial(
        with_vi_jax, class_mean=semi_supervised.top_and_sampled(1)
    ),
    "NumPyro": with_numpyro,
}


def main(
    classes: tuple[int, ...] = (5, 10, 20, 40),
    batch_size: int = 100,
    scan_steps: int = 20,
    repeats: int = 7,
    out: Path = Path("runs/benchmark_m2"),
) -> None:
    """Time the contenders for each number of classes; NumPyro needs '.[bench]'.

    Args:
        classes: Numbers of classes, one comparison for each.
        batch_size: Images per step.
        scan_steps: Steps in one turn, which is one compiled dispatch.
        repeats: Turns of each contender that are timed.
        out: Folder of benchmark_m2.json.
    """
    out.mkdir(parents=True, exist_ok=True)
    results = {}
    print("classes  contender             steps/s  vi_jax / it (min-max)")
    for c in classes:
        setup = make_setup(c, batch_size, scan_steps)
        running = {name: make(setup) for name, make in CONTENDERS.items()}
        results[str(c)] = compare(running, scan_steps, repeats)
        for name, row in results[str(c)].items():
            print(f"{c:>7}  {name:21}{in_words(row)}", flush=True)
    about = {"machine": machine(), "batch_size": batch_size, "scan_steps": scan_steps}
    runs.write_json(out / "benchmark_m2.json", {**about, "results": results})


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmark_m2", description=__doc__)
