"""Interactions from a file of ratings, or from a prepared public set of them."""

import csv
import gzip
import itertools
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vi_jax.checks import at_least
from vi_jax.data import files
from vi_jax.data.interactions import Interactions, from_pairs
from vi_jax.data.records import open_records

SUPPORTED = (".csv", ".tsv", ".inter", ".dat", ".data", ".txt")
# What a header may call the columns, in lower case and without "_" and ":type".
_NAMES = {
    "user": ("user", "userid", "uid"),
    "item": ("item", "itemid", "movie", "movieid", "iid"),
    "rating": ("rating", "userrating", "score"),
}


def load_interactions(
    dataset: str | Path,
    *,
    threshold: float = 4.0,
    min_interactions: int = 5,
    data_dir: str | Path | None = None,
) -> Interactions:
    """The choices in a file, or in a prepared set such as "movielens/20m-ratings".

    A file has one interaction a line: user, item and, if it likes, rating and
    timestamp, split by tabs, "::" or commas; see `SUPPORTED` for its name. A header may
    name the columns (user_id, item_id or movieId, rating; RecBole's "user_id:token"
    too) and then gives their order; other columns are ignored. Quotes around a field
    are no part of it between commas, or where the first field of all has them. A choice
    is a rating of at least `threshold`, or any line of a file without ratings; users
    with fewer than `min_interactions` choices are left out, and then items that nobody
    chose. A pair that is there twice counts once.
    A set has to be prepared once, by python -m vi_jax.data prepare NAME, which needs
    TensorFlow (reading does not). Its items are named by title.
    Raises ValueError (wrong format; two columns of one meaning; a bad line, by its
    number; nobody left), FileNotFoundError (no such file or set), OSError (damaged).
    """
    at_least(1, min_interactions=min_interactions)
    if files.is_path(dataset):
        found = _read_file(files.existing(dataset), threshold)
    else:
        found = _read_prepared(str(dataset), threshold, data_dir)
    user, item, user_names, item_names = found
    pairs = np.unique(user.astype(np.int64) * len(item_names) + item)
    user, item = np.divmod(pairs, max(len(item_names), 1))
    enough = np.bincount(user, minlength=len(user_names)) >= min_interactions
    keep = enough[user]
    if not keep.any():
        raise ValueError(
            f"{dataset}: no user has {min_interactions} interactions with a rating of "
            f"at least {threshold:g}: lower threshold or min_interactions"
        )
    (users, user), (items, item) = (
        np.unique(a[keep], return_inverse=True) for a in (user, item)
    )
    return from_pairs(user, item, user_names[users], item_names[items])


def _read_file(path: Path, threshold: float):
    """(user [m], item [m], user names, item names) of the lines that count."""
    name = path.name.lower()
    if not name.removesuffix(".gz").endswith(SUPPORTED):
        endings = ", ".join(SUPPORTED)
        raise ValueError(f"{path}: the name must end in {endings}, or in these and .gz")
    opener = gzip.open if name.endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            return _parse(path, file, threshold)
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is no text, or damaged ({error})") from error


def _parse(path: Path, lines: Iterator[str], threshold: float):
    rows = _rows(path, lines)
    first = next(rows, None)
    if first is None:
        raise ValueError(f"{path} is empty: it must have an interaction a line")
    columns = _columns(path, *first)
    if columns is None:
        columns = {"user": 0, "item": 1} | ({"rating": 2} if len(first[1]) > 2 else {})
        rows = itertools.chain([first], rows)
    codes, pairs = ({}, {}), (array("i"), array("i"))
    for number, row in rows:
        user, item, rating = _interaction(path, number, row, columns)
        if rating is None or rating >= threshold:
            for name, code, of in zip((user, item), codes, pairs, strict=True):
                of.append(code.setdefault(name, len(code)))
    names = (np.array(list(code), str) for code in codes)
    return *(np.array(of, np.int32) for of in pairs), *names


def _rows(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of the lines that are not blank."""
    there = ((i, line) for i, line in enumerate(lines) if line.strip())
    before, first = next(there, (0, ""))
    if not first:
        return
    mark = next((m for m in ("\t", "::", ",") if m in first), None)
    if mark is None:
        raise ValueError(
            f"{path}, line {before + 1}: {first.strip()[:40]!r} has one column: needed "
            "are user and item, split by a tab, '::' or a comma"
        )
    split = (line.replace("::", "\t") if mark == "::" else line for line in lines)
    start = first.replace("::", "\t") if mark == "::" else first
    text = itertools.chain([start], split)
    comma, head = mark == ",", start.split("\t")[0].strip()
    # Elsewhere a quote may be a part of a name, unless the writer put names in quotes.
    quoted = comma or (len(head) > 1 and head[0] == head[-1] == '"')
    how = {"strict": True} if quoted else {"quoting": csv.QUOTE_NONE}
    reader = csv.reader(text, delimiter="," if comma else "\t", **how)
    try:
        for row in reader:
            if row:
                yield before + reader.line_num, [field.strip() for field in row]
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {before + reader.line_num}: this is no table of ratings "
            f"({error})"
        ) from error


def _columns(path: Path, number: int, row: list[str]) -> dict[str, int] | None:
    """Where a header says that the columns are; None where the row is no header."""
    plain = [field.split(":")[0].lower().replace("_", "") for field in row]
    places = {
        column: [place for place, field in enumerate(plain) if field in names]
        for column, names in _NAMES.items()
    }
    for column, there in places.items():
        if len(there) > 1:
            raise ValueError(
                f"{path}, line {number}: {[row[i] for i in there]} all name the "
                f"{column}: rename or delete all of these columns but one"
            )
    found = {column: there[0] for column, there in places.items() if there}
    if found and not {"user", "item"} <= set(found):
        raise ValueError(
            f"{path}, line {number}: the header {row} must name a user and an item "
            "column, such as user_id and item_id"
        )
    return found or None


def _interaction(path: Path, number: int, row: list[str], columns: dict[str, int]):
    if len(row) <= max(columns.values()):
        raise ValueError(
            f"{path}, line {number}: {row} has {len(row)} columns, needed are "
            f"{', '.join(columns)}"
        )
    user, item = row[columns["user"]], row[columns["item"]]
    if not user or not item:
        raise ValueError(f"{path}, line {number}: the user or the item is empty")
    if "rating" not in columns:
        return user, item, None
    text = row[columns["rating"]]
    try:
        rating = float(text) if "_" not in text else np.nan  # Python reads 1_1 as 11
    except ValueError:
        rating = np.nan
    if not np.isfinite(rating):
        raise ValueError(f"{path}, line {number}: the rating {text!r} is no number")
    return user, item, rating


def _read_prepared(name: str, threshold: float, data_dir: str | Path | None):
    needed = {"user_id", "movie_id", "movie_title", "user_rating"}
    source = open_records(name, "train", needed=needed, data_dir=data_dir)
    return _collect(source, threshold)


def _collect(source, threshold: float):
    codes, titles, pairs = ({}, {}), {}, (array("i"), array("i"))
    for start in range(0, len(source), 10_000):
        places = range(start, min(start + 10_000, len(source)))
        for row in source.__getitems__(list(places)):
            if row["user_rating"] >= threshold:
                keys = row["user_id"], row["movie_id"]
                titles[keys[1]] = row["movie_title"].decode()
                for key, code, of in zip(keys, codes, pairs, strict=True):
                    of.append(code.setdefault(key, len(code)))
    users = np.array([key.decode() for key in codes[0]], str)
    items = np.array([titles[key] for key in codes[1]], str)
    return *(np.array(of, np.int32) for of in pairs), users, items
