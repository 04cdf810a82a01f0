"""Sentences, one a line: those of the package, of a file, or of a prepared set."""

import io
from pathlib import Path

from vi_jax.data import files
from vi_jax.data.records import open_records

WORDNET = Path(__file__).parent / "wordnet" / "wordnet_examples.txt.gz"


def load_sentences(
    dataset: str | Path, split: str = "train", *, data_dir: str | Path | None = None
) -> list[str]:
    """The sentences of `dataset`, in their order, without blanks around them.

    "wordnet" is what comes with the package, 48,223 examples of use from WordNet 3.0. A
    path is to a text file in UTF-8, gzipped or not, with a sentence a line: Penn
    Treebank's ptb.train.txt, say. Any other name is a set of tensorflow-datasets with
    the feature "text", prepared once by python -m vi_jax.data prepare NAME; each of
    its lines that is not empty is a sentence. `split` is for those alone.
    Raises FileNotFoundError (no such file or set) and ValueError (no text; an empty
    line of a file, by its number; no sentence at all).
    """
    if dataset == "wordnet":
        return _read(WORDNET)
    if files.is_path(dataset):
        return _read(files.existing(dataset))
    found = [line.strip() for line in _prepared(str(dataset), split, data_dir)]
    return _not_empty(dataset, [line for line in found if line])


def _read(path: Path) -> list[str]:
    try:
        lines = _lines(files.contents(path).decode("utf-8-sig"))
    except Exception as error:
        raise ValueError(f"{path} is no text in UTF-8, or damaged ({error})") from error
    found = [line.strip() for line in lines]
    if "" in found:
        number = found.index("") + 1
        raise ValueError(
            f"{path}, line {number} is empty: a sentence a line is needed, delete it"
        )
    return _not_empty(path, found)


def _not_empty(dataset: str | Path, found: list[str]) -> list[str]:
    if not found:
        raise ValueError(f"{dataset} holds no sentence")
    return found


def _prepared(name: str, split: str, data_dir: str | Path | None) -> list[str]:
    records = open_records(name, split, needed={"text"}, data_dir=data_dir)
    texts = (records[i]["text"].decode("utf-8") for i in range(len(records)))
    return [line for text in texts for line in _lines(text)]


def _lines(text: str) -> list[str]:
    # Not `splitlines`, which also cuts at a form feed, U+0085 and U+2028.
    return list(io.StringIO(text, newline=None))
