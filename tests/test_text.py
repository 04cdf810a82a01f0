"""Sentences: files, tokens, and the command from end to end."""

import gzip
import itertools
import json
import math

import numpy as np
import pytest

from experiments import text_vae
from experiments.text import decode, encode, fit_tokenizer, read_text, split_sentences
from vi_jax.data import load_sentences
from vi_jax.sequences import END, UNKNOWN, unpad

WORDS = "the a small old red ship house dog sees finds leaves sleeps".split()


def phrases(n: int) -> list[str]:
    """Different sentences of few words."""
    rng = np.random.default_rng(0)
    found = {" ".join(rng.choice(WORDS, rng.integers(2, 6))) for _ in range(3 * n)}
    return sorted(found)[:n]


def test_the_package_brings_its_sentences():
    found = load_sentences("wordnet")
    assert len(found) == len(set(found)) == 48_223
    assert "he played baseball in high school" in found


def test_a_line_ends_at_a_line_end_alone(tmp_path):
    """Not where Unicode has other breaks, which sentences from the web may hold."""
    path = tmp_path / "lines.txt"
    for end in ("\n", "\r\n", "\r"):
        path.write_bytes(f"a\u2028b\x85c{end}d\x0ce\x1cf{end}".encode())
        assert load_sentences(path) == ["a\u2028b\x85c", "d\x0ce\x1cf"]


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_has_a_sentence_a_line(tmp_path, compressed):
    data = "\ufeffone two\r\n  three\n".encode()
    path = tmp_path / "lines.txt"
    path.write_bytes(gzip.compress(data, mtime=0) if compressed else data)
    assert load_sentences(path) == ["one two", "three"]
    assert load_sentences(str(path)) == ["one two", "three"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"one\n\ntwo\n", "line 2 is empty"),
        ("one\u2028one\n\n".encode(), "line 2 is empty"),
        (b"", "holds no sentence"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
        (gzip.compress(b"one two three\n", mtime=0)[:-9], "damaged"),
    ],
)
def test_a_bad_file_is_named(tmp_path, data, message):
    path = tmp_path / "bad.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        load_sentences(path)
    assert str(path) in str(error.value)


def test_a_missing_file_and_an_unprepared_set_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_sentences(tmp_path / "none.txt")
    with pytest.raises(FileNotFoundError, match="not prepared"):
        load_sentences("tiny_shakespeare", data_dir=tmp_path)
    with pytest.raises(ValueError, match="neither"):
        load_sentences("no name")


def test_pieces_of_words_are_never_unknown():
    tokenizer = fit_tokenizer(phrases(60), kind="bpe", size=300)
    unseen = ["the zebra's café, 東京!", "x"]
    x, kept = encode(tokenizer, unseen, 60)
    assert decode(tokenizer, x) == kept == unseen
    assert UNKNOWN not in x
    assert (x == END).sum() == 2


def test_rare_words_are_unknown():
    sentences = ["a b", "a c", "a b"]
    tokenizer = fit_tokenizer(sentences, kind="words", size=5)  # 3 special, a, b
    x, _ = encode(tokenizer, ["b a c"], 5)
    assert decode(tokenizer, x) == ["b a <unknown>"]
    assert unpad(x)[0][2] == UNKNOWN


def test_the_split_is_of_different_sentences_and_disjoint():
    sentences = phrases(100) * 2
    train, valid, test = split_sentences(sentences, 0)
    assert (len(train), len(valid), len(test)) == (90, 5, 5)
    assert sorted([*train, *valid, *test]) == sorted(set(sentences))
    assert split_sentences(sentences, 1)[2] != test
    assert split_sentences(sentences[::-1], 0)[2] == test


def test_long_sentences_are_left_out_and_counted():
    sentences = [*phrases(99), " ".join(WORDS)]
    how = {"kind": "words", "vocabulary": 40, "max_tokens": 5, "seed": 0}
    text = read_text(sentences, **how)
    assert text.left_out == 1
    assert sum(map(len, text.data[:3])) == 99
    assert decode(text.tokenizer, text.data.test) == text.test


def test_wrong_sentences_and_sizes_are_errors():
    tokenizer = fit_tokenizer(["a b"], kind="words", size=9)
    with pytest.raises(ValueError, match="sentence 1 is empty"):
        encode(tokenizer, ["a", " "], 5)
    with pytest.raises(ValueError, match="no sentence has at most 1"):
        encode(tokenizer, ["a b"], 1)
    with pytest.raises(ValueError, match="too few"):
        split_sentences(["a"] * 100, 0)
    with pytest.raises(ValueError, match="at least 259 for bpe"):
        fit_tokenizer(["a b"], kind="bpe", size=100)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("--eval-samples 0", "eval_samples must be at least 1"),
        ("--batch-size 0", "batch_size must be at least 1, got 0"),
        ("--batch-size 500", "batch_size is 500"),
        ("--epochs nan", "epochs must be 0 or more and not infinite"),
        ("--epochs 0", "at least 1 step"),
        ("--learning-rate 0", "learning_rate"),
        ("--cures none word_dropout --word-dropout 2", "word dropout must be in"),
        ("--cures none free_bits --free-bits -1", "free_bits must be"),
        ("--latents -1", "at least 1"),
    ],
)
def test_a_wrong_knob_is_one_clear_message_before_any_training(
    tmp_path, monkeypatch, capsys, wrong, message
):
    monkeypatch.setattr(text_vae.resumable, "train", None)
    (tmp_path / "some.txt").write_text("\n".join(phrases(80)))
    small = "--tokens words --vocabulary 100 --max-tokens 6 --width 8 --layers 1"
    files = f"--dataset {tmp_path / 'some.txt'} --run-dir {tmp_path / 'run'}"
    with pytest.raises(SystemExit) as caught:
        text_vae.main([*f"{small} {files} --decoder gru".split(), *wrong.split()])
    assert caught.value.code == 1
    assert message in capsys.readouterr().err
    assert not [*(tmp_path / "run").glob("[!.]*")], "nothing is written for a bad knob"


def test_the_command_learns_beside_a_language_model(tmp_path, capsys):
    """Any three of twelve words: 3 log 12 nats a sentence, and the end for nothing."""
    path = tmp_path / "three.txt"
    path.write_text("\n".join(map(" ".join, itertools.product(WORDS, repeat=3))))
    command = (
        f"--dataset {path} --tokens words --vocabulary 120 --max-tokens 3 --width 16 "
        "--layers 1 --latents 2 --epochs 5 --batch-size 50 --learning-rate 0.02 "
        f"--checkpoint-epochs 2.5 --eval-samples 10 --run-dir {tmp_path / 'run'} "
        "--cures free_bits --decoder gru --patience 0"
    ).split()
    text_vae.main(command)
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["num_train"], result["num_test"]) == (1556, 86)
    rows = result["rows"]
    assert set(rows) == {"language_model", "free_bits"}
    for row in rows.values():
        assert abs(row["nll"] - 3 * math.log(12)) < 0.2
        np.testing.assert_allclose(row["perplexity"], math.exp(row["nll"] / 4))
    assert rows["language_model"]["above_language_model"] == 0
    difference = rows["free_bits"]["nll"] - rows["language_model"]["nll"]
    np.testing.assert_allclose(
        rows["free_bits"]["above_language_model"], difference, atol=1e-3
    )
    assert rows["free_bits"]["rate"] > 0.1
    assert "| free_bits |" in printed and "# reconstructed" in printed
    # A finished folder is left as it is; other knobs in it are an error.
    text_vae.main(command)
    with pytest.raises(SystemExit):
        text_vae.main([*command, "--seed", "1"])
    assert "seed: 0 there, 1 now" in capsys.readouterr().err
