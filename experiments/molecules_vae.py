"""Molecules: a VAE of SMILES or SELFIES, and the same network as a language model.

    python -m experiments.molecules_vae
    python -m experiments.molecules_vae --representation selfies
    python -m experiments.molecules_vae --model language_model
    python -m experiments.molecules_vae --model conditional
    python -m experiments.molecules_vae --data train.csv.gz --held-out test.csv.gz

Each run has its own folder in --run-dir; the table joins them with those stored in
experiments/results and with what MOSES publishes. Its measures are those of MOSES
(arXiv:1811.12823), over draws from the prior; the Wasserstein distances and the row of
held-out molecules are to other held-out molecules. A run of the VAE also raises a
property along a direction of z, and one of the conditional VAE compares the property
that was asked for with what RDKit finds.

Expect of --data MOSES' train.csv.gz, --held-out its test.csv.gz, 57 minutes, seed 0:

    validity 0.899 (0.933 at temperature 0.9, 0.954 at 0.8), unique_10k 1.000 (0.999,
    0.998), novelty to 800,000 molecules 0.972; distances of logP 0.080 (0.078, 0.094),
    QED 0.002 (0.005, 0.011), weight 4.7 (4.9, 4.8); -log p(x) 20.8 nats, KL 2.6.

The language model, after 400,000 molecules: validity 0.886, logP 0.084, QED 0.004,
weight 4.7. SELFIES, after 150,000: validity 1.000, unique_10k 0.999, logP 0.316, QED
0.127. Given logP, after as many: a correlation of 0.81 with what was asked for, a mean
error of 0.48 (1.08 for another's request), validity 0.63. Raised along its direction in
z, 2% of 500 molecules get a higher logP at a similarity of 0.4 to their start, and 4%
along a random one (62 and 74% at any similarity): the direction is worth nothing here.
Less beta tells z more and costs validity: in trials of 800,000 molecules in batches of
128, beta 0.3, 0.6 and 1.0 had a KL of 26, 13 and 0.9 nats, and a validity of 0.66, 0.81
and 0.87 (without z: 0.91).
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import molecules, molecules_control as control, sequence_runs
from experiments.molecules import Row, Vocabulary
from experiments.molecules_control import Contexts
from experiments.molecules_properties import Reference, appraise, properties
from experiments.molecules_report import asked_against_got, draw_pictures, table
from experiments.stored import own_or_stored
from vi_jax import (
    decoding,
    likelihoods,
    models,
    networks,
    objectives,
    posteriors,
    priors,
    resumable,
    runs,
    schedules,
    training,
)
from vi_jax.checks import at_least
from vi_jax.commands import clear_errors
from vi_jax.data import MOSES, batches
from vi_jax.evaluator import over_examples
from vi_jax.model import Model, analytic_terms
from vi_jax.models import Conditional, at_context
from vi_jax.resumable import Training
from vi_jax.training import TrainState
from vi_jax.types import Array, Component, Key, Params

STORED = Path(__file__).parent / "results" / "molecules_vae.json"
VALID = 500
"""Training molecules held out for validation."""


@dataclasses.dataclass(frozen=True)
class Knobs:
    """What a run is."""

    data: str = "moses"
    """Training molecules: a file of SMILES, or `moses`, the test set in the package."""
    held_out: str = ""
    """File of the molecules to compare with; empty for a tenth of the training file."""
    model: Literal["vae", "language_model", "conditional"] = "vae"
    """A VAE, its decoder alone, or a VAE given a property."""
    representation: molecules.Representation = "smiles"
    """The text that a molecule is written in."""
    asked: Literal["logP", "QED", "weight"] = "logP"
    """The property that is given (conditional), or to be raised (vae)."""
    max_molecules: int = 800_000
    """Training molecules, drawn from the file; 0 for all."""
    max_held_out: int = 10_000
    """Molecules to compare with, and as many again as a bar for the measures."""
    max_tokens: int = 60
    """Tokens in the longest molecule."""
    latents: int = 64
    """Size of z."""
    width: int = 256
    """Of the decoder's GRU; the encoder's two have half of it each."""
    beta: float = 0.9
    """Weight of the KL term after its rise from 0, over a fifth of the training."""
    examples: int = 1_400_000
    """Molecules shown in training, with repetition."""
    batch_size: int = 64
    """Molecules a step."""
    learning_rate: float = 3e-3
    """Of Adam, at the start; it falls to 0."""
    samples: int = 12_000
    """Molecules drawn for the measures."""
    temperature: float = 1.0
    """Of the draws of tokens; 1 is the model itself."""
    seed: int = 0
    """Of the parameters, the batches and the draws."""


class Data(NamedTuple):
    """Molecules, and token ids int32 [n, t] of those that are trained on."""

    train: list[str]
    x_train: np.ndarray
    valid: list[str]
    x_valid: np.ndarray
    held_out: list[str]
    x_held_out: np.ndarray
    bar: list[str]  # more held-out molecules
    vocabulary: Vocabulary

    @property
    def length(self) -> int:
        return self.x_train.shape[1]


def read(knobs: Knobs) -> Data:
    """The molecules of the files, canonical. Raises ValueError that names a bad row."""
    train, held_out = _rows(knobs)
    tokens = molecules.tokenised(train, knobs.representation)
    vocabulary = molecules.build_vocabulary(tokens, knobs.representation)
    length = knobs.max_tokens + 1
    x = molecules.encode(vocabulary, train, tokens, length)
    # No longer than need be: every place costs.
    tokens = molecules.tokenised(held_out, knobs.representation)
    x_held_out = molecules.encode(vocabulary, held_out, tokens, length)
    used = max(int((a != 0).sum(1).max()) for a in (x, x_held_out))
    half = -(-len(held_out) // 2)
    text = lambda rows: [row.smiles for row in rows]
    return Data(
        text(train[VALID:]),
        x[VALID:, :used],
        text(train[:VALID]),
        x[:VALID, :used],
        text(held_out[:half]),
        x_held_out[:half, :used],
        text(held_out[half:]),
        vocabulary,
    )


def _rows(knobs: Knobs) -> tuple[list[Row], list[Row]]:
    rng = np.random.default_rng(0)  # one choice of molecules for all seeds

    def mixed(rows: list[Row]) -> list[Row]:
        return [rows[i] for i in rng.permutation(len(rows))]

    train = mixed(molecules.read(MOSES if knobs.data == "moses" else knobs.data))
    wanted = 2 * knobs.max_held_out
    if knobs.held_out:
        held_out = mixed(molecules.read(knobs.held_out))[:wanted]
    else:
        cut = min(wanted, len(train) // 10)
        held_out, train = train[:cut], train[cut:]
    if knobs.max_molecules:
        train = train[: knobs.max_molecules + VALID]
    if len(train) < 2 * VALID or len(held_out) < 2:
        raise ValueError(
            f"there are {len(train)} training and {len(held_out)} held-out molecules: "
            f"needed are at least {2 * VALID} and 2"
        )
    return molecules.canonicalised(train), molecules.canonicalised(held_out)


def build(knobs: Knobs, data: Data) -> Model | Conditional:
    """The model; a conditional one takes the standardised property, [1]."""
    if min(knobs.width // 2, knobs.latents) < 1:
        raise ValueError("width must be at least 2, and latents at least 1")
    size = data.vocabulary.size
    decoder = networks.gru_decoder(size, width=knobs.width)
    likelihood = likelihoods.tokens(decoder, data.length)
    if knobs.model == "language_model":
        return models.without_latents(likelihood)
    encoder = networks.gru_encoder(size, 2 * knobs.latents, width=knobs.width // 2)
    prior = priors.standard_normal(knobs.latents)
    if knobs.model == "vae":
        return models.vae(prior, posteriors.normal(encoder), likelihood)
    # The property is a function of the molecule: q(z | x, c) has nothing to learn of c.
    of_x = Component(
        lambda key, pair: encoder.init(key, pair[0]),
        lambda params, pair: encoder.apply(params, pair[0]),
    )
    return models.conditional_vae(
        models.fixed(prior), posteriors.normal(of_x), likelihood
    )


def prepare(
    knobs: Knobs, model: Model | Conditional, data: Data, contexts: Contexts | None
) -> tuple[Training, TrainState]:
    """How the model is trained, and its first state; wrong knobs are an error."""
    decoding.tempered(knobs.temperature)
    counts = ("examples", "batch_size", "samples")
    at_least(1, **{name: getattr(knobs, name) for name in counts})
    num_steps = -(-knobs.examples // knobs.batch_size)
    rise = max(1, num_steps // 5)
    loss = objectives.batch_loss(
        model,
        preprocess=lambda key, batch: batch["x"],
        terms=analytic_terms,
        beta=schedules.linear(rise, total_steps=num_steps, end=knobs.beta),
        context=(lambda batch: batch["c"]) if contexts else None,
    )
    optimizer = training.adam(knobs.learning_rate, num_steps=num_steps, clip_norm=1.0)
    columns = {"x": data.x_train} | ({"c": contexts.train} if contexts else {})
    plan = Training(
        loss,
        optimizer,
        batches.shuffled(columns, batch_size=knobs.batch_size, seed=knobs.seed),
        seed=knobs.seed,
        num_steps=num_steps,
        scan_steps=min(25, num_steps),
        checkpoint_steps=max(1, num_steps // 10),
        validate=validation(model, data.x_valid, contexts.valid if contexts else None),
    )
    given = at_context(model, jnp.zeros(1) if contexts else None)
    key = resumable.init_key(knobs.seed)
    params = jax.jit(given.init)(key, jnp.asarray(data.x_train[0]))
    resumable.check(plan, params)
    return plan, training.init_state(params, optimizer)


def validation(
    model: Model | Conditional, x: np.ndarray, c: np.ndarray | None
) -> Callable[[Params], dict[str, float]]:
    """The ELBO (beta = 1) of the validation molecules, and its rate, in nats."""

    def one(params: Params, key: Key, x: Array, c: Array | None) -> dict[str, Array]:
        given = at_context(model, c)
        _, terms = objectives.per_example(given, params, key, x, terms=analytic_terms)
        return objectives.summary(terms)

    of_all = over_examples(one, batch_size=100, progress=False)

    def validate(params: Params) -> dict[str, float]:
        found = of_all(params, x, c)
        means = {name: float(np.mean(values)) for name, values in found.items()}
        return {"valid_bound": means["elbo"], "valid_rate": means["rate"]}

    return validate


def draw(
    knobs: Knobs, model: Model | Conditional, params: Params, c: np.ndarray | None
) -> np.ndarray:
    """Sequences at z ~ p(z), one for each context of c, int32 [n, t]."""
    choose = decoding.tempered(knobs.temperature)

    def one(params: Params, key: Key, _: Array, c: Array | None) -> Array:
        given = at_context(model, c)
        key_z, key_x = jax.random.split(key)
        z = given.prior(params).sample(key_z)
        return given.likelihood(params, z).decode(key_x, choose)

    n = knobs.samples if c is None else len(c)
    at_once = {"batch_size": min(n, 500), "unit": "molecule"}
    draws = over_examples(one, seed=knobs.seed, **at_once)
    return draws(params, np.zeros(n), c)


def run(knobs: Knobs, run_dir: Path) -> dict[str, Any]:
    """One run in its own folder of `run_dir`; a finished one is left as it is."""
    folder = run_dir / f"{knobs.representation}-{knobs.model}-seed{knobs.seed}"
    if (folder / "result.json").exists():
        return runs.once(folder, "molecules_vae", knobs, dict)
    data = read(knobs)
    model, contexts = build(knobs, data), None
    if knobs.model == "conditional":
        contexts = control.contexts_of(data.train, data.valid, knobs.asked)
    plan, state = prepare(knobs, model, data, contexts)

    def work() -> dict[str, Any]:
        params, trained = resumable.train(plan, state, folder)
        return trained | report(knobs, model, params, data, contexts, folder)

    return runs.once(folder, "molecules_vae", knobs, work)


def report(
    knobs: Knobs,
    model: Model | Conditional,
    params: Params,
    data: Data,
    contexts: Contexts | None,
    folder: Path,
) -> dict[str, Any]:
    """What the run is of, and all measures of its samples."""
    c = contexts.train[: knobs.samples] if contexts else None
    smiles = molecules.decode(data.vocabulary, draw(knobs, model, params, c))
    runs.write_text(folder / "samples.txt", "\n".join(smiles) + "\n")
    reference = Reference(frozenset(data.train), properties(data.held_out))
    result = {
        **dataclasses.asdict(knobs),
        "samples": len(smiles),
        "data": Path(knobs.data).name,
        "held_out": Path(knobs.held_out).name,
        **{"num_train": len(data.train), "num_held_out": len(data.held_out)},
        **{"num_bar": len(data.bar), "vocabulary": len(data.vocabulary.tokens)},
        "measures": appraise(smiles, reference),
        "bar": appraise(data.bar, reference),
    }
    draw_pictures(smiles, reference.properties, folder)
    if contexts:
        return result | {"given": given_report(knobs, contexts, smiles, c, folder)}
    some = data.x_held_out[:500]
    found = sequence_runs.measure(model, params, some, num_samples=100)
    del found["nll_each"]
    if knobs.model == "vae":
        found["search"] = search_report(knobs, model, params, data)
    return result | found


def given_report(
    knobs: Knobs, contexts: Contexts, smiles: list[str], c: np.ndarray, folder: Path
) -> dict[str, float]:
    """The property that was asked for against that of what was drawn."""
    asked = contexts.in_units(c)
    got = control.property_of(smiles, knobs.asked)
    figure = asked_against_got(asked, got, knobs.asked)
    runs.write_picture(folder / "asked_got.png", figure)
    return {"property": knobs.asked, **control.asked_and_got(asked, got)}


def search_report(
    knobs: Knobs, model: Model, params: Params, data: Data
) -> dict[str, Any]:
    """Reconstructions, and molecules sought along a direction of z."""
    mean = lambda params, key, x, c: model.posterior(params, x).mean()
    likeliest = lambda params, key, z, c: model.likelihood(params, z).mean()
    encode = over_examples(mean, batch_size=100, progress=False)
    greedy = over_examples(likeliest, batch_size=100, progress=False)
    decode = lambda z: molecules.decode(data.vocabulary, greedy(params, z))

    n = 5 * VALID
    z, z_test = encode(params, data.x_train[:n]), encode(params, data.x_valid)
    values = control.property_of(data.train[:n], knobs.asked)
    of_valid = control.property_of(data.valid, knobs.asked)
    direction, r2 = control.fit_direction(z, values, z_test, of_valid)
    starts = data.held_out[:500]
    z_start = encode(params, data.x_held_out[:500])
    rng = np.random.default_rng(knobs.seed)
    anywhere = rng.standard_normal(z_start.shape)
    anywhere /= np.linalg.norm(anywhere, axis=1, keepdims=True)
    climb = lambda moves: control.climb(
        decode, z_start, moves.astype(np.float32), starts, knobs.asked
    )
    texts = decode(z_start)
    return {
        "property": knobs.asked,
        "r2": r2,
        **control.reconstruction(texts, starts),
        "along": climb(np.broadcast_to(direction, z_start.shape)),
        "anywhere": climb(anywhere),
    }


def collect(run_dir: Path) -> list[dict[str, Any]]:
    """Results of each model and temperature, as `own_or_stored` has them."""
    keys = ("representation", "model", "temperature")
    cells_of = lambda result: [tuple(result[key] for key in keys)]
    found = own_or_stored(run_dir, STORED, cells_of, needed={*keys, "measures"})
    return [result for results in found.values() for result in results]


def main(
    knobs: Annotated[Knobs, tyro.conf.OmitArgPrefixes],
    run_dir: Path = Path("runs/molecules_vae"),
) -> None:
    """Train, draw molecules, measure them, and print the table.

    Args:
        run_dir: Folder of the runs; the same command again goes on with them.
    """
    with clear_errors():
        print(json.dumps(run(knobs, run_dir), indent=2), flush=True)
        print(table(collect(run_dir)))


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.molecules_vae", description=__doc__)
