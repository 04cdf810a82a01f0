"""Tables of continuous, binary and categorical columns: read, described, encoded.

A table is read as cells (text, or numbers from .npz), a `TableSchema` is fitted to the
training rows, and `encode` makes of any rows the floats [n, columns] that models see.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from vi_jax.data import files

Kind = Literal["continuous", "binary", "categorical"]
KINDS = ("continuous", "binary", "categorical")
_MARKS = ("na", "n/a", "null", "none", "?", "-", ".")  # of what is not known
SUPPORTED = ".csv, .tsv, .csv.gz, .tsv.gz, .npz"


class Table(NamedTuple):
    """A table as it was read."""

    names: tuple[str, ...]  # of the columns
    cells: np.ndarray  # [n, columns]: text, or floats from an .npz
    label: np.ndarray | None  # [n]


class Column(NamedTuple):
    """What the training rows say of one column."""

    name: str
    kind: Kind
    mean: float = 0.0  # of a continuous one
    scale: float = 1.0  # its standard deviation; 1 where it is constant
    categories: tuple[str | float, ...] = ()  # of the others: code i is categories[i]


class TableSchema(NamedTuple):
    """The columns of a table, in order.

    `schema_from_json(json.loads(json.dumps(schema_to_json(schema))))` is the schema.
    """

    columns: tuple[Column, ...]

    @property
    def num_logits(self) -> tuple[int, ...]:
        """0 for a continuous column, 1 for a binary one, else its categories: [c]."""
        sizes = {"continuous": lambda c: 0, "binary": lambda c: 1}
        categories = lambda column: len(column.categories)
        return tuple(sizes.get(c.kind, categories)(c) for c in self.columns)


def read_table(path: str | Path, *, label: str | None = None) -> Table:
    """A table from a file: .csv or .tsv with a header, gzipped or not, or .npz.

    An .npz holds the numbers "X" [n, columns] and, if any, the labels "y" [n], as in
    ADBench; its columns are called x0, x1, ... In a text file `label` names the column
    that is the label and no column of the table. An empty cell, or nan in any case, is
    a missing value.
    Raises FileNotFoundError for a missing file and ValueError for any other fault,
    naming the line: another format, no header or no rows, a row with more or fewer
    cells than the header, two columns of one name, no column `label`.
    """
    path = files.existing(path)
    name = path.name.lower()
    if name.endswith(".npz"):
        return _read_npz(path)
    kind = name.removesuffix(".gz")
    if not kind.endswith((".csv", ".tsv")):
        raise ValueError(f"{path}: the name must end in one of {SUPPORTED}")
    names, cells = _read_text(path, "," if kind.endswith(".csv") else "\t")
    if label is None:
        return Table(names, cells, None)
    if label not in names:
        raise ValueError(f"{path} has no column {label!r}, only {list(names)}")
    place = names.index(label)
    rest = names[:place] + names[place + 1 :]
    return Table(rest, np.delete(cells, place, 1), cells[:, place])


def _read_npz(path: Path) -> Table:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            held = {key: archive[key] for key in archive.files if key in ("X", "y")}
    # np.load raises nearly anything for a damaged file.
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read ({error}): it must be an .npz of plain numbers "
            "'X' [n, columns] and 'y' [n]"
        ) from error
    x, label = held.get("X"), held.get("y")
    # A member that is no .npy file comes as bytes.
    if np.ndim(x) != 2 or x.dtype.kind not in "biuf" or not x.size:
        raise ValueError(f"{path} must hold numbers 'X' [n, columns], n >= 1")
    if label is not None and np.shape(label) != (len(x),):
        raise ValueError(
            f"{path}: y has shape {np.shape(label)}, needed: one label for each of "
            f"{len(x)} rows"
        )
    names = tuple(f"x{j}" for j in range(x.shape[1]))
    return Table(names, x.astype(np.float64), label)


def _read_text(path: Path, delimiter: str) -> tuple[tuple[str, ...], np.ndarray]:
    try:
        text = io.StringIO(files.contents(path).decode("utf-8-sig"), newline="")
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        # A blank line is no row; in a table of one column it is a missing value.
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except Exception as error:
        raise ValueError(f"{path} is no text table ({error}): write it again") from (
            error
        )
    (_, header), *rows = lines or [(0, [])]
    rows = [(line, row or [""]) for line, row in rows if row or len(header) == 1]
    if not header or not rows:
        raise ValueError(f"{path} must have a header and at least one row")
    if len(set(header)) < len(header):
        twice = sorted({name for name in header if header.count(name) > 1})
        raise ValueError(f"{path}: two columns are called {twice}: rename one")
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(
                f"{path}, line {line}: {len(row)} cells, but the header names "
                f"{len(header)} columns"
            )
    return tuple(header), np.array([row for _, row in rows], dtype=object)


def fit_schema(
    cells: np.ndarray,
    *,
    names: Sequence[str] | None = None,
    kinds: Mapping[str, Kind] | None = None,
) -> TableSchema:
    """The schema of training rows: cells [n, columns] of numbers, text or both.

    A column is of the kind that `kinds` (name -> kind) declares, or inferred from its
    values that are not missing (None, NaN, "" and "nan" are): numbers of exactly two
    values, or text of at most two, are binary; other numbers continuous; other text
    categorical. Numbers that are codes of more than two categories have to be declared,
    and so has a column of numbers with a mark such as "NA", or with decimal commas.
    Categories are in sorted order; numbers are categories as floats. The mean and the
    standard deviation (divided by n) are of the values that are there.
    Raises ValueError that names the column: all values missing, a value that is no
    finite number in a continuous one or, undeclared, among numbers (the row is named
    too), more than two values in a binary one, an unknown kind or name; and where cells
    is not [n >= 1, columns >= 1].
    """
    cells = _as_cells(cells)
    names = tuple(names or (f"x{j}" for j in range(cells.shape[1])))
    kinds = dict(kinds or {})
    if len(names) != cells.shape[1] or len(set(names)) < len(names):
        raise ValueError(
            f"{len(names)} names for {cells.shape[1]} columns: needed is one each, "
            "no two the same"
        )
    if unknown := set(kinds) - set(names):
        raise ValueError(f"kinds names {sorted(unknown)}, the columns are {names}")
    return TableSchema(
        tuple(
            _fit_column(name, cells[:, j], kinds.get(name))
            for j, name in enumerate(names)
        )
    )


def _fit_column(name: str, cells: np.ndarray, kind: Kind | None) -> Column:
    if kind not in (None, *KINDS):
        raise ValueError(f"column {name!r}: kind is {kind!r}, needed is one of {KINDS}")
    numbers, is_number, missing = _parse(cells)
    if missing.all():
        raise ValueError(
            f"column {name!r}: all {len(cells)} values are missing: leave it out"
        )
    numeric = bool((is_number | missing).all())
    values = numbers[~missing] if numeric else np.array(_texts(cells[~missing]))
    distinct = np.unique(values)
    if kind is None and numeric:
        kind = "binary" if len(distinct) == 2 else "continuous"
    elif kind is None:
        # A stray "NA", or "1,5" for 1.5, would turn each number into a category.
        meant = [v for v in values if v.lower() not in _MARKS]
        alike = not any(math.isnan(_number(v.replace(",", "."))) for v in meant)
        if alike and len(meant) > max(1, len(values) / 2):
            why = f"is no number, where {len(meant)} of {len(values)} values seem to be"
            why += ": leave it empty, write 1.5 for 1,5, or declare the column's kind"
            _refuse(name, cells, ~is_number & ~missing, why)
        kind = "binary" if len(distinct) <= 2 else "categorical"
    if kind == "continuous":
        finite = _finite(name, cells, numbers, missing)[~missing]
        # A constant column has no scale of its own; its mean may round.
        constant = len(distinct) == 1
        mean, scale = (finite[0], 1.0) if constant else _mean_and_scale(finite)
        return Column(name, kind, float(mean), float(scale))
    if kind == "binary" and len(distinct) > 2:
        raise ValueError(f"column {name!r} is binary, but has {len(distinct)} values")
    if kind == "categorical" and len(distinct) < 2:
        kind = "binary"  # one category, and room for what is not it
    return Column(name, kind, categories=tuple(distinct.tolist()))


def _mean_and_scale(values: np.ndarray) -> tuple[float, float]:
    """The mean and the standard deviation, 1 where float64 cannot divide by it."""
    greatest = abs(values).max()
    # Sums and squares overflow long before what they give; powers of 2 do not round.
    exponent = np.frexp(greatest)[1]
    of_one = np.ldexp(values, -exponent)
    mean, spread = (np.ldexp(a, exponent) for a in (of_one.mean(), of_one.std()))
    return mean, spread if spread > 1e-12 * max(1e-280, greatest) else 1.0


def encode(
    schema: TableSchema,
    cells: np.ndarray,
    *,
    unseen: Literal["error", "missing"] = "error",
) -> np.ndarray:
    """Rows as float32 [n, columns]: standardised numbers, integer codes, NaN.

    A continuous value is (value - mean) / scale, a category its place in the column's
    categories, a missing value NaN. A category that the training rows did not have has
    no code: it raises, or with unseen="missing" counts as missing.
    Raises ValueError for another number of columns, a value that is no finite number in
    a continuous column or is beyond float32 when standardised, and an unseen category,
    naming the row (from 0), the column and how many there are.
    """
    cells = _as_cells(cells)
    if unseen not in ("error", "missing"):
        raise ValueError(f"unseen is {unseen!r}, needed is 'error' or 'missing'")
    if cells.shape[1] != len(schema.columns):
        raise ValueError(
            f"the rows have {cells.shape[1]} columns, the schema {len(schema.columns)}"
        )
    encoded = [
        _encode_column(column, cells[:, j], unseen)
        for j, column in enumerate(schema.columns)
    ]
    return np.stack(encoded, 1).astype(np.float32)


def _encode_column(column: Column, cells: np.ndarray, unseen: str) -> np.ndarray:
    numbers, is_number, missing = _parse(cells)
    if column.kind == "continuous":
        values = _finite(column.name, cells, numbers, missing)
        with np.errstate(over="ignore"):
            standard = (values - column.mean) / column.scale
        far = abs(standard) > np.finfo(np.float32).max
        _refuse(column.name, cells, far, f"is too far from {column.mean:g} for float32")
        return standard
    code_of = {value: float(code) for code, value in enumerate(column.categories)}
    of_text = isinstance(column.categories[0], str)
    values = _texts(cells) if of_text else numbers.tolist()
    codes = np.array([code_of.get(value, np.nan) for value in values])
    strange = np.isnan(codes) & ~missing
    if unseen == "error" and strange.any():
        row = int(np.argmax(strange))
        raise ValueError(
            f"row {row}, column {column.name!r}: the training rows have no category "
            f"{str(cells[row])!r} ({int(strange.sum())} such rows): pass "
            "unseen='missing' to count it as missing, or fit the schema to rows that "
            "have it"
        )
    return np.where(missing, np.nan, codes)


def decode(schema: TableSchema, x: np.ndarray) -> np.ndarray:
    """What `encode` made floats of, as objects [n, columns]; NaN gives None.

    x [n, columns] are numbers and codes, such as a likelihood's `sample` (its mean has
    no codes). Raises ValueError for another number of columns, and for no code.
    """
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or x.shape[1] != len(schema.columns):
        raise ValueError(
            f"x has shape {x.shape}, needed is [n, {len(schema.columns)}] as in encode"
        )
    out = np.empty(x.shape, object)
    for j, column in enumerate(schema.columns):
        for i in np.flatnonzero(~np.isnan(x[:, j])):
            out[i, j] = _decode_cell(column, float(x[i, j]), int(i))
    return out


def _decode_cell(column: Column, value: float, row: int) -> Any:
    if column.kind == "continuous":
        return value * column.scale + column.mean
    if not (value.is_integer() and 0 <= value < len(column.categories)):
        raise ValueError(
            f"row {row}, column {column.name!r}: {value} is no code of "
            f"{len(column.categories)} categories"
        )
    return column.categories[int(value)]


def schema_to_json(schema: TableSchema) -> dict[str, Any]:
    """The schema as what JSON holds."""
    columns = [
        {**c._asdict(), "categories": list(c.categories)} for c in schema.columns
    ]
    return {"columns": columns}


def schema_from_json(value: dict[str, Any]) -> TableSchema:
    """The schema that `schema_to_json` wrote. Raises ValueError for anything else."""
    try:
        columns = tuple(
            Column(**{**column, "categories": tuple(column["categories"])})
            for column in value["columns"]
        )
        sound = columns and all(_is_sound(column) for column in columns)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"this is no schema of a table ({error!r})") from error
    if not sound:
        raise ValueError("this is no schema of a table: a kind or a scale is wrong")
    return TableSchema(columns)


def _is_sound(column: Column) -> bool:
    if not isinstance(column.name, str) or column.kind not in KINDS:
        return False
    if column.kind == "continuous":
        return 0 < column.scale < math.inf and math.isfinite(column.mean)
    found = column.categories
    alike = all(isinstance(c, str) for c in found) or all(
        isinstance(c, (int, float)) for c in found
    )
    allowed = range(1, 3) if column.kind == "binary" else range(2, len(found) + 1)
    return alike and len(found) in allowed and len(set(found)) == len(found)


def _as_cells(cells: np.ndarray) -> np.ndarray:
    cells = np.asarray(cells)
    if cells.ndim != 2 or not cells.size:
        raise ValueError(
            f"the rows have shape {cells.shape}: needed is [n, columns], at least one "
            "row and one column"
        )
    if cells.dtype.kind not in "biufOU":  # bytes would be read as "b'a'"
        raise ValueError(f"the rows are {cells.dtype}: needed are numbers or text")
    return cells


def _parse(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(float64, NaN where it is no number; whether it is one; whether it is missing).

    A truth value is a number, 0 or 1.
    """
    if cells.dtype.kind in "biuf":
        numbers = cells.astype(np.float64)
        return numbers, ~np.isnan(numbers), np.isnan(numbers)
    numbers = np.array([_number(cell) for cell in cells])
    missing = np.array([_is_missing(cell) for cell in cells])
    return numbers, ~np.isnan(numbers), missing


def _number(cell: Any) -> float:
    if isinstance(cell, str) and "_" in cell:  # a code: Python reads 1_1 as 11
        return math.nan
    try:
        return float(cell)
    except (TypeError, ValueError):
        return math.nan
    except OverflowError:
        return math.inf


def _is_missing(cell: Any) -> bool:
    if cell is None:
        return True
    if isinstance(cell, str):
        return cell.strip().lower() in ("", "nan")
    return type(cell).__name__ == "NAType" or bool(cell != cell)  # pandas' NA, any NaN


def _texts(cells: np.ndarray) -> list[str]:
    return [str(cell).strip() for cell in cells]


def _finite(
    name: str, cells: np.ndarray, numbers: np.ndarray, missing: np.ndarray
) -> np.ndarray:
    """The numbers, NaN where missing; an error where one is anything else."""
    _refuse(name, cells, ~missing & ~np.isfinite(numbers), "is no finite number")
    return np.where(missing, np.nan, numbers)


def _refuse(name: str, cells: np.ndarray, wrong: np.ndarray, why: str) -> None:
    """Raise ValueError that names the first of the wrong cells, where there is one."""
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"row {row}, column {name!r}: {str(cells[row])!r} {why} "
            f"({int(wrong.sum())} such rows)"
        )
