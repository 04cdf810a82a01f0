"""Sentences from a VAE, beside the same decoder as a plain language model.

    python -m experiments.text_vae
    python -m experiments.text_vae --cures none anneal cyclical free_bits word_dropout
    python -m experiments.text_vae --dataset ptb.train.txt --tokens words

Each cure of posterior collapse is a VAE of its own (Bowman et al. 2016,
arXiv:1511.06349; Kingma et al. 2016, arXiv:1606.04934; Fu et al. 2019,
arXiv:1903.10145), trained like the language model but for that. -log p(x) is per
sentence, its end included, by importance sampling; perplexity is per word, exp(sum of
-log p(x) / (words + ends)), whatever the tokens. The split is random, 90:5:5.

Expect of the first command (its cure alone: --cures free_bits; seed 0, 2,357 test
sentences, 500 samples; 15 and 20 minutes of training and 15 of evaluation on a shared
core):

                       -log p(x)       ELBO    KL    I(x; z)  active  perplexity
    language model   47.30 +- 0.45                                        1164.7
    free_bits        47.25            -48.80  4.72    3.37      16        1155.8

The difference, sentence by sentence, is -0.05 +- 0.07 nats.
"""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from experiments import sequence_runs
from experiments.sequence_runs import SequenceData
from experiments.text import Text, decode, read_text
from vi_jax import decoding, model as models, resumable, runs, schedules
from vi_jax.checks import at_least
from vi_jax.commands import clear_errors
from vi_jax.data import batches
from vi_jax.data.text import load_sentences
from vi_jax.model import Model
from vi_jax.resumable import Training
from vi_jax.training import TrainState
from vi_jax.types import Params

Cure = Literal["none", "anneal", "cyclical", "free_bits", "word_dropout"]


@dataclasses.dataclass(frozen=True)
class Knobs:
    """The knobs of the run, all of them part of what the run folder stands for."""

    cures: tuple[Cure, ...] = ("none", "free_bits")
    """Against posterior collapse: one VAE each, beside the language model."""
    decoder: Literal["transformer", "gru"] = "transformer"
    """Kind of the encoder and the decoder."""
    latents: int = 16
    """Dimension of z."""
    width: int = 128
    """Width of encoder and decoder."""
    layers: int = 2
    """Layers of the decoder, and of a Transformer's encoder."""
    free_bits: float = 0.3
    """Nats that each latent has for nothing, with that cure."""
    word_dropout: float = 0.3
    """Share of the words that the decoder may not read, with that cure."""
    tokens: Literal["bpe", "words"] = "bpe"
    """Pieces of words down to bytes, so that nothing is unknown, or whole words."""
    vocabulary: int = 2000
    """Tokens at most; of whole words, the most frequent ones."""
    max_tokens: int = 24
    """Sentences with more tokens are left out, and counted."""
    epochs: float = 8.0
    """Passes over the training sentences."""
    batch_size: int = 64
    """Sentences per step."""
    learning_rate: float = 1e-3
    """The step size at its highest; it falls to 0 along a cosine."""
    patience: int = 8
    """Validations in a row without a new best that end the training; 0 for none."""
    seed: int = 0
    """Of the split, the initial parameters, the order of the data and every draw."""
    dataset: str = "wordnet"
    """`wordnet`, a path to a file with a sentence a line, or a prepared set's name."""
    data_dir: str = ""
    """Where sets are prepared; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    eval_samples: int = 500
    """Importance samples per test sentence."""
    checkpoint_epochs: float = 0.5
    """Epochs from one checkpoint, with its validation, to the next."""


def make_loss(knobs: Knobs, model: Model, cure: Cure, num_steps: int):
    """The loss of a cure, and the step from which it is what it stays."""
    third = max(1, num_steps // 3)
    betas = {
        "anneal": lambda: schedules.linear(third, total_steps=num_steps),
        "cyclical": lambda: schedules.cyclical(num_steps, total_steps=num_steps),
    }
    beta = betas.get(cure, schedules.constant)()
    loss = sequence_runs.make_loss(
        model,
        beta=beta,
        free_bits=knobs.free_bits if cure == "free_bits" else 0.0,
        word_dropout=knobs.word_dropout if cure == "word_dropout" else 0.0,
    )
    return loss, schedules.settled(beta, total_steps=num_steps)


def run(knobs: Knobs, run_dir: Path) -> dict[str, Any]:
    """Train and measure the language model and each VAE, each in its own folder."""
    at_least(1, eval_samples=knobs.eval_samples)
    sentences = load_sentences(knobs.dataset, data_dir=knobs.data_dir or None)
    text = read_text(
        sentences,
        kind=knobs.tokens,
        vocabulary=knobs.vocabulary,
        max_tokens=knobs.max_tokens,
        seed=knobs.seed,
    )
    asked: dict[str, tuple[Cure, int]] = {"language_model": ("none", 0)}
    asked |= {cure: (cure, knobs.latents) for cure in knobs.cures}
    # All of them first: a wrong knob of one is an error before any is trained.
    prepared = {name: _prepare(knobs, text.data, *of) for name, of in asked.items()}
    rows = {
        name: _row(knobs, text, *parts, run_dir / name)
        for name, parts in prepared.items()
    }
    baseline = np.array(rows["language_model"]["nll_each"])
    for row in rows.values():
        difference = np.array(row.pop("nll_each")) - baseline
        row["above_language_model"] = float(difference.mean())
        row["above_stderr"] = float(difference.std(ddof=1) / math.sqrt(len(baseline)))
    return {
        "rows": rows,
        "dataset": knobs.dataset,
        "split": "random 90:5:5",
        "seed": knobs.seed,
        "num_train": len(text.data.train),
        "num_test": len(text.data.test),
        "left_out": text.left_out,
        "tokens": knobs.tokens,
        "vocabulary": text.data.vocabulary,
    }


def _prepare(
    knobs: Knobs, data: SequenceData, cure: Cure, latents: int
) -> tuple[Model, Training, TrainState]:
    """A model, how it is trained and its first state; wrong knobs are an error."""
    nets = sequence_runs.make_networks(
        knobs.decoder, data, width=knobs.width, layers=knobs.layers
    )
    model = sequence_runs.make_model(nets, data, latents)
    steps = functools.partial(
        batches.steps_per_run, len(data.train), batch_size=knobs.batch_size
    )
    num_steps = steps(epochs=knobs.epochs)
    loss, settled = make_loss(knobs, model, cure, num_steps)
    plan, state = sequence_runs.prepare(
        model,
        loss,
        data,
        learning_rate=knobs.learning_rate,
        batch_size=knobs.batch_size,
        num_steps=num_steps,
        checkpoint_steps=steps(epochs=knobs.checkpoint_epochs),
        seed=knobs.seed,
        patience=knobs.patience,
        settled=settled,
    )
    return model, plan, state


def _row(
    knobs: Knobs,
    text: Text,
    model: Model,
    plan: Training,
    state: TrainState,
    folder: Path,
) -> dict[str, Any]:
    """One model: trained, measured, and heard."""
    folder.mkdir(exist_ok=True)
    done = folder / "row.json"
    if done.exists():
        return runs.read_json(done)
    params, about = resumable.train(plan, state, folder)
    row = sequence_runs.measure(
        model, params, text.data.test, num_samples=knobs.eval_samples
    )
    # A sentence is its words and its end.
    words = np.array([len(sentence.split()) + 1 for sentence in text.test])
    row["perplexity"] = math.exp(row["nll"] * len(words) / words.sum())
    row |= about
    runs.write_text(folder / "sentences.txt", spoken(text, model, params))
    runs.write_json(done, row)
    return row


def spoken(text: Text, model: Model, params: Params, num: int = 10) -> str:
    """Draws, and of a VAE reconstructions and paths between test sentences."""
    as_text = functools.partial(decode, text.tokenizer)
    draw = lambda choose: as_text(
        sequence_runs.draw(model, params, num=num, choose=choose)
    )
    parts = {
        "drawn": draw(decoding.sampled),
        "drawn, of the likeliest 0.9": draw(decoding.nucleus(0.9)),
    }
    if model.prior(params).mean().size:
        x, test = text.data.test, text.test
        few = min(num, len(test))
        again = jax.jit(
            jax.vmap(lambda key, x: models.reconstruct(model, params, key, x))
        )(jax.random.split(jax.random.key(0), few), x[:few])
        pairs = zip(test[:few], as_text(again), strict=True)
        parts["reconstructed"] = [f"{a} -> {b}" for a, b in pairs]
        path = jax.jit(
            lambda a, b: models.interpolate(model, params, a, b, num_points=6)
        )
        for i in range(0, min(len(test), 6) - 1, 2):
            name = f"from {test[i]!r} to {test[i + 1]!r}"
            parts[name] = as_text(path(x[i], x[i + 1]))
    return "\n".join("\n".join([f"# {k}", *v, ""]) for k, v in parts.items())


def table(result: dict[str, Any]) -> str:
    """In Markdown, nats per sentence."""
    lines = [
        "| model | -log p(x) | above the language model | perplexity a word | ELBO "
        "| KL | I(x; z) | active units |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in result["rows"].items():
        of_latents = ["", "", ""]
        if row["latents"]:
            of_latents = [
                f"{row['rate']:.2f}",
                f"{row['mutual_information']:.2f}",
                f"{row['active_units']} of {row['latents']}",
            ]
        cells = [
            name,
            f"{row['nll']:.2f} +- {row['nll_stderr']:.2f}",
            f"{row['above_language_model']:.2f} +- {row['above_stderr']:.2f}",
            f"{row['perplexity']:.1f}",
            f"{row['elbo']:.2f}",
            *of_latents,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """The command line; exits with 1 after one clear message."""

    def train(
        knobs: Annotated[Knobs, tyro.conf.OmitArgPrefixes],
        run_dir: Path = Path("runs/text_vae"),
    ) -> None:
        result = runs.once(run_dir, "text_vae", knobs, lambda: run(knobs, run_dir))
        print(table(result))
        for file in sorted(run_dir.glob("*/sentences.txt")):
            print(f"\n## {file.parent.name}\n{file.read_text()}")

    train.__doc__ = __doc__
    with clear_errors():
        tyro.cli(train, prog="python -m experiments.text_vae", args=argv)


if __name__ == "__main__":
    main()
