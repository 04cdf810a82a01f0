"""Molecules as text: files of SMILES, tokens of SMILES or SELFIES, vocabularies.

RDKit says which SMILES are molecules, and what their canonical form is.
"""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from vi_jax.sequences import FIRST_TOKEN, pad, unpad

try:
    import selfies
    from rdkit import Chem, rdBase
except ImportError as error:
    raise ImportError(
        "molecules need RDKit and selfies: pip install 'vi_jax[applications]'"
    ) from error

Representation = Literal["smiles", "selfies"]

# Atoms in brackets, then atoms of two letters and of one, bonds, branches and rings.
# Ref: Schwaller et al. 2018, arXiv:1711.04810.
_SMILES_TOKEN = re.compile(
    r"\[[^\[\]]+\]|Br|Cl|[BCNOPSFI]|[bcnops]|[-=#$:/\\.()*~]|%\d\d|\d"
)
_MAGIC = {b"\x1f\x8b": "gzip", b"PK": "zip"}


class Row(NamedTuple):
    """A SMILES and where it stands, such as "train.csv, line 7"."""

    smiles: str
    where: str


def read(path: Path | str) -> list[Row]:
    """The molecules of a text file, which may be compressed by gzip.

    A .csv or .tsv file, as in "train.csv.gz", has a header with one column `smiles`
    or `SMILES`; any other file has a SMILES a line, which a name may follow after a
    space. Lines are counted from 1. Raises FileNotFoundError where there is no file,
    and ValueError where it is of another format, has no molecule, or has an empty line
    or field, which it names.
    """
    path = Path(path)
    text = _text(path)
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    separator = {"csv": ",", "tsv": "\t"}.get(kind)
    lines = _column(text, separator, path) if separator else _lines(text)
    rows = [Row(smiles, f"{path.name}, line {line}") for line, smiles in lines]
    for row in rows:
        if not row.smiles:
            raise ValueError(f"{row.where}: there is no SMILES; delete the line")
    if not rows:
        raise ValueError(f"{path} holds no molecule")
    return rows


def _text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    data = path.read_bytes()
    # What a file is, not what it is called: a .gz may be anything.
    container = _MAGIC.get(data[:2])
    if container == "zip":
        raise ValueError(f"{path} is a zip archive: unpack it first")
    try:
        data = gzip.decompress(data) if container else data
        return data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is neither text nor text compressed by gzip ({error})"
        ) from error


def _lines(text: str) -> Iterable[tuple[int, str]]:
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        yield number, (line.split() or [""])[0]


def _column(text: str, separator: str, path: Path) -> Iterable[tuple[int, str]]:
    reader = csv.reader(io.StringIO(text), delimiter=separator, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        if sum(name in ("smiles", "SMILES") for name in names) != 1:
            raise ValueError(
                f"{path}: needed is one column smiles or SMILES, got {names}"
            )
        place = names.index("smiles" if "smiles" in names else "SMILES")
        for row in reader:
            yield reader.line_num, row[place].strip() if place < len(row) else ""
    except csv.Error as error:
        kind = {",": "commas", "\t": "tabs"}[separator]
        raise ValueError(
            f"{path.name}, line {reader.line_num}: this is no table of fields between "
            f"{kind} ({error})"
        ) from error


def canonical(smiles: str) -> str | None:
    """The canonical SMILES; None where it is no molecule, as the empty one."""
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
        if molecule is None or molecule.GetNumAtoms() == 0:
            return None
        return Chem.MolToSmiles(molecule)


def canonicalised(rows: Sequence[Row]) -> list[Row]:
    """The rows with canonical SMILES. Raises ValueError that names one without."""
    found = [Row(canonical(row.smiles), row.where) for row in rows]
    for row, new in zip(rows, found, strict=True):
        if new.smiles is None:
            raise ValueError(f"{row.where}: RDKit reads no molecule in {row.smiles!r}")
    return found


def split_smiles(text: str) -> list[str]:
    """The tokens of a SMILES: atoms, bonds, branches, ring numbers.

    Raises ValueError where a part of it is none of these.
    """
    tokens = _SMILES_TOKEN.findall(text)
    if "".join(tokens) != text:
        raise ValueError(f"{text!r} is no SMILES: the tokens found are {tokens}")
    return tokens


def as_text(smiles: str, representation: Representation) -> str:
    """A SMILES as it is, or its SELFIES.

    Raises ValueError where it has no SELFIES. Ref: Krenn et al. 2020, arXiv:1905.13741.
    """
    if representation == "smiles":
        return smiles
    try:
        return selfies.encoder(smiles)
    except selfies.EncoderError as error:
        raise ValueError(f"{smiles!r} has no SELFIES: {error}".strip()) from error


def as_smiles(text: str, representation: Representation) -> str:
    """The SMILES of a text; that of a broken SELFIES is empty."""
    if representation == "smiles":
        return text
    try:
        return selfies.decoder(text)
    except selfies.DecoderError:
        return ""


class Vocabulary(NamedTuple):
    """The tokens of some training molecules; the first has the id FIRST_TOKEN."""

    representation: Representation
    tokens: tuple[str, ...]
    longest: int  # tokens of the longest molecule

    @property
    def size(self) -> int:
        """Ids are below it."""
        return FIRST_TOKEN + len(self.tokens)


def _tokens(row: Row, representation: Representation) -> list[str]:
    try:
        text = as_text(row.smiles, representation)
        if representation == "selfies":
            return list(selfies.split_selfies(text))
        return split_smiles(text)
    except ValueError as error:
        raise ValueError(f"{row.where}: {error}") from error


def tokenised(rows: Sequence[Row], representation: Representation) -> list[list[str]]:
    """The tokens of each row. Raises ValueError that names a row without."""
    return [_tokens(row, representation) for row in rows]


def build_vocabulary(
    tokens: Sequence[Sequence[str]], representation: Representation
) -> Vocabulary:
    """All tokens of the training molecules, in the order of the alphabet."""
    known = sorted({token for row in tokens for token in row})
    return Vocabulary(representation, tuple(known), max(map(len, tokens)))


def encode(
    vocabulary: Vocabulary,
    rows: Sequence[Row],
    tokens: Sequence[Sequence[str]],
    length: int,
) -> np.ndarray:
    """Ids of the tokens with END and PAD behind them, int32 [n, length].

    Raises ValueError that names a row with a token that is not in the vocabulary, or
    with more tokens than length - 1.
    """
    ids = {token: FIRST_TOKEN + i for i, token in enumerate(vocabulary.tokens)}
    for row, parts in zip(rows, tokens, strict=True):
        unknown = [token for token in parts if token not in ids]
        if unknown:
            raise ValueError(
                f"{row.where}: no training molecule has the token {unknown[0]!r} of "
                f"{row.smiles!r}; leave the row out, or train on more molecules"
            )
        if len(parts) >= length:
            raise ValueError(
                f"{row.where}: {row.smiles!r} has {len(parts)} tokens, and there is "
                f"room for {length - 1}; leave the row out, or raise max_tokens"
            )
    return pad([[ids[token] for token in parts] for parts in tokens], length)


def decode(vocabulary: Vocabulary, x: np.ndarray) -> list[str]:
    """The SMILES that token ids x [n, t] spell, molecules or not."""
    # An id below FIRST_TOKEN, which no molecule has, makes the text unreadable.
    names = ["[?]"] * FIRST_TOKEN + list(vocabulary.tokens)
    texts = ["".join(names[i] for i in row) for row in unpad(x)]
    return [as_smiles(text, vocabulary.representation) for text in texts]
