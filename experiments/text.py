"""Sentences as tokens, by a library's tokenizers, and back."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from experiments.sequence_runs import SequenceData
from vi_jax import sequences

try:
    import tokenizers
    from tokenizers import decoders, pre_tokenizers, trainers
except ImportError as error:
    raise ImportError(
        "text needs tokenizers: pip install 'vi_jax[applications]'"
    ) from error

SPECIAL = ["<pad>", "<end>", "<unknown>"]  # the ids of vi_jax.sequences


class Text(NamedTuple):
    """Sentences as tokens."""

    tokenizer: tokenizers.Tokenizer
    data: SequenceData
    test: list[str]  # the sentences of data.test
    left_out: int  # sentences that were too long


def fit_tokenizer(
    sentences: Sequence[str], *, kind: Literal["bpe", "words"], size: int
) -> tokenizers.Tokenizer:
    """A tokenizer of at most `size` tokens for these sentences.

    Raises ValueError where size leaves no room for tokens.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind == "bpe" else []
    least = len(SPECIAL) + max(1, len(alphabet))
    if size < least:
        raise ValueError(f"vocabulary must be at least {least} for {kind}, got {size}")
    how = {"vocab_size": size, "special_tokens": SPECIAL, "show_progress": False}
    if kind == "bpe":
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(initial_alphabet=alphabet, **how)
    else:
        unknown = SPECIAL[sequences.UNKNOWN]
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token=unknown))
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(**how)
    made.train_from_iterator(sentences, trainer)
    return made


def split_sentences(sentences: Sequence[str], seed: int) -> tuple[list[str], ...]:
    """Training, validation and test sentences, 90:5:5, at random, each only once.

    Raises ValueError for fewer than 60 different ones, or a negative seed.
    """
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    different = sorted(set(sentences))
    if len(different) < 60:
        raise ValueError(
            f"{len(different)} different sentences are too few to split: 60 at least"
        )
    order = np.random.default_rng(seed).permutation(len(different))
    cut = len(different) // 20
    parts = order[2 * cut :], order[:cut], order[cut : 2 * cut]
    return tuple([different[i] for i in part] for part in parts)


def read_text(
    sentences: Sequence[str],
    *,
    kind: Literal["bpe", "words"],
    vocabulary: int,
    max_tokens: int,
    seed: int,
) -> Text:
    """Sentences split at random, and the tokens of those that are short enough.

    The tokenizer sees the training sentences alone. Raises ValueError as its parts do.
    """
    train, valid, test = split_sentences(sentences, seed)
    tokenizer = fit_tokenizer(train, kind=kind, size=vocabulary)
    parts = [encode(tokenizer, part, max_tokens) for part in (train, valid, test)]
    (train_x, _), (valid_x, _), (test_x, short) = parts
    data = SequenceData(train_x, valid_x, test_x, tokenizer.get_vocab_size())
    kept = sum(len(x) for x, _ in parts)
    return Text(tokenizer, data, short, len(train) + len(valid) + len(test) - kept)


def encode(
    tokenizer: tokenizers.Tokenizer, sentences: Sequence[str], max_tokens: int
) -> tuple[np.ndarray, list[str]]:
    """Tokens int32 [n, max_tokens + 1] of the sentences that fit, and these.

    Raises ValueError where a sentence is empty, which it names, or none fits.
    """
    for i, sentence in enumerate(sentences):
        if not sentence.strip():
            raise ValueError(f"sentence {i} is empty")
    ids = [found.ids for found in tokenizer.encode_batch(list(sentences))]
    kept = [i for i, tokens in enumerate(ids) if len(tokens) <= max_tokens]
    if not kept:
        raise ValueError(f"no sentence has at most {max_tokens} tokens")
    rows = sequences.pad([ids[i] for i in kept], max_tokens + 1)
    return rows, [sentences[i] for i in kept]


def decode(tokenizer: tokenizers.Tokenizer, x: np.ndarray) -> list[str]:
    """The sentences of tokens [n, t]."""
    rows = sequences.unpad(x)
    found = tokenizer.decode_batch(rows, skip_special_tokens=False)
    return [sentence.strip() for sentence in found]
