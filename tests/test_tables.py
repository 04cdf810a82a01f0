"""Tables: read, described and encoded, and what is wrong with them said."""

import datetime
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from vi_jax.data.tables import (
    Column,
    TableSchema,
    decode,
    encode,
    fit_schema,
    read_table,
    schema_from_json,
    schema_to_json,
)

TEXT = (
    "age,colour,smokes,note\n31,red,no,a\n, green ,yes,b\n47,red,NaN,a\n39,blue,no,c\n"
)
CELLS = np.array(
    [
        ["31", "red", "no", "a"],
        ["", "green", "yes", "b"],
        ["47", "red", "NaN", "a"],
        ["39", "blue", "no", "c"],
    ],
    object,
)
ADBENCH = Path(__file__).parents[2] / "shared" / "data" / "adbench"


def written(folder, name, text) -> Path:
    path = folder / name
    data = text if isinstance(text, bytes) else text.encode()
    packed = name.lower().endswith(".gz")
    path.write_bytes(gzip.compress(data) if packed else data)
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "A.TSV.GZ"])
def test_a_text_table_is_its_header_and_its_cells(tmp_path, name):
    text = TEXT.replace(",", "\t") if ".tsv" in name.lower() else TEXT
    data = (
        gzip.compress(text.encode()) if name.lower().endswith("gz") else text.encode()
    )
    path = tmp_path / name
    path.write_bytes(data)
    table = read_table(path, label="note")
    assert table.names == ("age", "colour", "smokes")
    np.testing.assert_array_equal(table.cells, CELLS[:, :3])
    np.testing.assert_array_equal(table.label, CELLS[:, 3])
    assert read_table(path).label is None


def test_quoted_cells_and_blank_lines(tmp_path):
    path = written(tmp_path, "q.csv", 'a,b\n"x,\ny",2\n\n"say ""z""",3\n')
    table = read_table(path)
    assert table.cells.tolist() == [["x,\ny", "2"], ['say "z"', "3"]]
    column = read_table(written(tmp_path, "one.csv", "a\n1\n\n3\n"))
    assert column.cells.tolist() == [["1"], [""], ["3"]]  # a missing value


def test_an_npz_is_numbers_and_labels(tmp_path):
    x, y = np.arange(6, dtype=np.int16).reshape(3, 2), np.array([0, 0, 1])
    np.savez(tmp_path / "t.npz", X=x, y=y)
    table = read_table(tmp_path / "t.npz")
    assert table.names == ("x0", "x1") and table.cells.dtype == np.float64
    np.testing.assert_array_equal(table.cells, x)
    np.testing.assert_array_equal(table.label, y)


def test_adbench_tables_have_the_sizes_that_are_published():
    if not ADBENCH.is_dir():
        pytest.skip("no ../shared/data/adbench")
    table = read_table(ADBENCH / "4_breastw.npz")
    assert table.cells.shape == (683, 9) and table.label.sum() == 239


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.xls", "a,b\n1,2\n", "must end in one of"),
        ("a.csv", "a,b\n1,2\n3\n", "line 3: 1 cells, but the header names 2"),
        ("a.csv", "a,b\n1,2,3\n", "line 2: 3 cells"),
        ("a.csv", "a,a\n1,2\n", "called \\['a'\\]"),
        ("a.csv", "a,b\n", "header and at least one row"),
        ("a.csv", "", "header and at least one row"),
        ("a.csv", b"\x89PNG\r\n\x1a\n\xff\xfe", "no text table"),
        ("a.csv", b"\x1f\x8bbroken", "no text table"),
        ("a.csv", 'a\n"never closed\n', "no text table"),
        ("a.npz", "a,b\n1,2\n", "cannot be read"),
    ],
)
def test_a_file_of_the_wrong_format_is_an_error(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read_table(written(tmp_path, name, text))


def test_an_npz_without_numbers_or_with_objects_is_an_error(tmp_path):
    path = tmp_path / "a.npz"
    for held, message in (
        ({"x": np.zeros((2, 2))}, "must hold numbers 'X'"),
        ({"X": np.zeros(3)}, "must hold numbers 'X'"),
        ({"X": np.array([["a", "b"]])}, "must hold numbers 'X'"),
        ({"X": np.zeros((2, 2)), "y": np.zeros(3)}, "y has shape"),
        ({"X": np.array([[None]], object)}, "cannot be read"),
    ):
        np.savez(path, **held)
        with pytest.raises(ValueError, match=message):
            read_table(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="no column 'y'"):
        read_table(written(tmp_path, "b.csv", TEXT), label="y")


def test_the_schema_is_inferred_by_the_rule():
    schema = fit_schema(CELLS, names=("age", "colour", "smokes", "note"))
    age, colour, smokes, note = schema.columns
    assert age.kind == "continuous" and age.mean == 39.0
    np.testing.assert_allclose(age.scale, np.std([31, 47, 39]))
    assert colour == Column("colour", "categorical", 0.0, 1.0, ("blue", "green", "red"))
    assert (smokes.kind, smokes.categories) == ("binary", ("no", "yes"))
    assert note.categories == ("a", "b", "c")
    assert schema.num_logits == (0, 3, 1, 3)
    # Numbers of two values are binary; of three they are codes only when declared.
    numbers = np.array([[0, 1.0], [5, 2], [5, 3], [np.nan, 2]])
    assert [c.kind for c in fit_schema(numbers).columns] == ["binary", "continuous"]
    declared = fit_schema(numbers, kinds={"x0": "continuous", "x1": "categorical"})
    assert declared.columns[1].categories == (1.0, 2.0, 3.0)
    assert declared.columns[0].kind == "continuous" and declared.num_logits == (0, 3)


def test_rows_become_standardised_numbers_codes_and_nan_and_come_back():
    schema = fit_schema(CELLS, names=("age", "colour", "smokes", "note"))
    x = encode(schema, CELLS)
    scale = np.std([31, 47, 39])
    expected = [
        [-8 / scale, 2, 0, 0],
        [np.nan, 1, 1, 1],
        [8 / scale, 2, np.nan, 0],
        [0, 0, 0, 2],
    ]
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, expected, rtol=1e-6)
    back = decode(schema, x)
    assert back[1].tolist() == [None, "green", "yes", "b"]
    np.testing.assert_allclose(float(back[2, 0]), 47.0, rtol=1e-6)
    # A list of mixed cells is as good as text; the training rows' numbers are used.
    np.testing.assert_allclose(
        encode(schema, np.array([[55, "red", None, "c"]], object)),
        [[16 / scale, 2, np.nan, 2]],
        rtol=1e-6,
    )


def test_a_schema_goes_through_json_whole():
    numbers = np.array([[0, 1.5, 7], [5, 2.25, 8], [5, -3, 9]])
    for schema in (
        fit_schema(CELLS),
        fit_schema(numbers, kinds={"x2": "categorical"}),
    ):
        assert (
            schema_from_json(json.loads(json.dumps(schema_to_json(schema)))) == schema
        )
    good = schema_to_json(fit_schema(CELLS))
    for wrong in (
        {},
        {"columns": []},
        {"columns": [{**good["columns"][0], "kind": "date"}]},
        {"columns": [{**good["columns"][0], "scale": 0.0}]},
        {"columns": [{**good["columns"][0], "more": 1}]},
    ):
        with pytest.raises(ValueError, match="no schema"):
            schema_from_json(wrong)


def test_a_category_unseen_in_training_is_an_error_that_names_it_or_missing():
    schema = fit_schema(CELLS, names=("age", "colour", "smokes", "note"))
    strange = CELLS.copy()
    strange[2:, 1] = "mauve"
    with pytest.raises(ValueError, match="row 2, column 'colour'.*'mauve'.*2 such"):
        encode(schema, strange)
    x = encode(schema, strange, unseen="missing")
    np.testing.assert_array_equal(np.isnan(x[:, 1]), [False, False, True, True])
    with pytest.raises(ValueError, match="'error' or 'missing'"):
        encode(schema, CELLS, unseen="guess")


def test_constant_columns_have_a_scale_of_one_or_a_single_category():
    cells = np.array([[0.1, "k"], [0.1, "k"], [0.1, "k"]], object)
    number, word = fit_schema(cells).columns
    assert number == Column("x0", "continuous", 0.1, 1.0)
    assert word == Column("x1", "binary", categories=("k",))
    schema = TableSchema((number, word))
    np.testing.assert_allclose(encode(schema, cells), np.zeros((3, 2)))
    other = encode(schema, np.array([[2.1, "k"]], object))
    np.testing.assert_allclose(other, [[2.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize(
    "cells, options, message",
    [
        ([["1", ""], ["2", "nan"]], {}, "'x1': all 2 values are missing"),
        ([["1"], ["b"]], {"kinds": {"x0": "continuous"}}, "row 1, .*'b' is no finite"),
        ([[1.0], [np.inf]], {"kinds": {"x0": "continuous"}}, "row 1.*finite"),
        ([["a"], ["b"], ["c"]], {"kinds": {"x0": "binary"}}, "binary, but has 3"),
        ([["a"]], {"kinds": {"x0": "date"}}, "kind is 'date'"),
        ([["a"]], {"kinds": {"b": "binary"}}, "kinds names \\['b'\\]"),
        ([["a"]], {"names": ("a", "b")}, "2 names for 1 columns"),
        ([["a", "b"]], {"names": ("a", "a")}, "no two the same"),
        ([["1"], ["2"], ["NA"], [""]], {}, "row 2, .*'x0': 'NA' is no .* 2 of 3"),
        ([[0.5], ["NA"], ["?"], [7], [2]], {}, "row 1, .*'NA' .* 3 of 5 .*2 such"),
        ([["1,5"], ["2,5"]], {}, "row 0, .*'1,5' .*write 1.5 for 1,5"),
        ([["1,5"], ["2"], ["3"]], {}, "row 0, .*'1,5' .* 3 of 3"),
        ([], {}, "the rows have shape"),
        ([1.0, 2.0], {}, "the rows have shape"),
    ],
)
def test_a_schema_that_cannot_be_is_an_error(cells, options, message):
    with pytest.raises(ValueError, match=message):
        fit_schema(np.array(cells), **options)


@pytest.mark.parametrize(
    "cells, options",
    [
        ([["1"], ["2"], ["a"], ["b"]], {}),
        ([["2"], ["3"], ["4"], ["5more"]], {}),
        ([["0"], ["0"], ["0"], ["Y"]], {}),
        ([["250.8"], ["38"], ["401"], ["V57"], ["?"]], {}),
        ([["1"], ["2"], ["NA"]], {"kinds": {"x0": "categorical"}}),
        ([["1"], [""], [""]], {}),
    ],
)
def test_text_among_numbers_may_be_a_category(cells, options):
    (column,) = fit_schema(np.array(cells), **options).columns
    present = sorted({cell for (cell,) in cells if cell})
    kind = {1: "continuous", 2: "binary"}.get(len(present), "categorical")
    assert column.kind == options.get("kinds", {}).get("x0", kind)
    assert list(column.categories) == (present if len(present) > 1 else [])


def test_what_is_no_number_is_not_missing_for_that():
    """A date is text; None, NaN and pandas' NaT are missing; bytes are refused."""
    day = datetime.date(2020, 1, 31)
    nat = np.datetime64("NaT", "D")
    cells = np.array([[day], [3.0], [None], [np.nan], [nat]], object)
    (column,) = fit_schema(cells).columns
    assert column.kind == "binary" and column.categories == ("2020-01-31", "3.0")
    with pytest.raises(ValueError, match=r"row 0.*'2020-01-31' is no finite number"):
        fit_schema(cells, kinds={"x0": "continuous"})
    with pytest.raises(ValueError, match=r"needed are numbers or text"):
        fit_schema(np.array([[b"a"], [b"nan"]]))


def test_codes_with_an_underscore_are_text():
    """Python's own way to write 1000."""
    (column,) = fit_schema(np.array([["1_1"], ["1_2"], ["2_1"]], object)).columns
    assert column == Column("x0", "categorical", categories=("1_1", "1_2", "2_1"))


@pytest.mark.parametrize("size", [1e-200, 1e39, 1e200, 1.7e308])
def test_the_scale_of_very_large_and_small_numbers_is_exact(size):
    """By powers of 2 it goes with the numbers; that of 1, 2, 2, -2 is known."""
    unit = 2.0 ** np.floor(np.log2(size) - 1)
    rows = np.array([[1.0], [2.0], [2.0], [-2.0]])
    schema = fit_schema(unit * rows)
    (column,) = schema.columns
    assert (column.mean, column.scale) == (0.75 * unit, np.std(rows) * unit)
    assert schema_from_json(json.loads(json.dumps(schema_to_json(schema)))) == schema
    np.testing.assert_array_equal(
        encode(schema, unit * rows), encode(fit_schema(rows), rows)
    )


def test_rows_that_do_not_fit_the_schema_are_an_error():
    numbers = fit_schema(np.array([[1.0], [2.0], [3.0]]))
    for far in (1e39, -1e300):
        with pytest.raises(ValueError, match="row 1, column 'x0': .* for float32"):
            encode(numbers, np.array([[2.0], [far]]))
    schema = fit_schema(CELLS)
    with pytest.raises(ValueError, match="have 3 columns, the schema 4"):
        encode(schema, CELLS[:, :3])
    wrong = CELLS.copy()
    wrong[3, 0] = "old"
    with pytest.raises(ValueError, match="row 3, column 'x0': 'old' is no finite"):
        encode(schema, wrong)
    with pytest.raises(ValueError, match="row 0, column 'x1': 3.0 is no code"):
        decode(schema, np.array([[0.0, 3.0, 0.0, 0.0]]))
    with pytest.raises(ValueError, match="needed is"):
        decode(schema, np.zeros((2, 3)))
