import gzip

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from medfusion.data.cohorts.source_table import (
    feature_cells,
    keep_rows,
    pseudonym,
    read_source,
    refuse_repeated,
    task_sections,
)
from medfusion.data.task import CategoricalFeature, NumericFeature, Task
from medfusion.errors import DataError

_TEXT = "a,b\n1,?\n?,2\n\n3,x\n"


def _table(tmp_path, text=_TEXT, **options):
    path = tmp_path / "t.csv"
    path.write_text(text)
    return read_source(path, ("a", "b"), **options)


def test_missing_marker_becomes_blank(tmp_path):
    assert _table(tmp_path).columns["a"] == ["1", "?", "3"]
    assert _table(tmp_path, missing="?").columns == {"a": ["1", "", "3"], "b": ["", "2", "x"]}


def test_gzip_and_parquet_read_like_text(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(_TEXT.encode()))
    columns = {"a": ["1", "?", "3"], "b": ["?", "2", "x"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    plain = _table(tmp_path)
    for name in ("t.csv.gz", "t.parquet"):
        assert read_source(tmp_path / name, ("a", "b")).columns == plain.columns
    # Messages speak of the table without its packing.
    assert read_source(tmp_path / "t.csv.gz", ()).name == "t.csv"


def test_ragged_rows_and_missing_columns_are_told_together(tmp_path):
    with pytest.raises(DataError, match=r"t\.csv: expected 2 cells .*; t\.csv: no column 'b'"):
        _table(tmp_path, "a,c\n1\n")


def test_kept_rows_remember_their_place(tmp_path):
    table = keep_rows(_table(tmp_path), np.array([False, True, True]))
    assert table.rows.tolist() == [3, 5]
    with pytest.raises(DataError, match=r"column 'b': 1 cell \(row 5\): expected a number"):
        feature_cells(table, "b", NumericFeature(kind="numeric", low=0, high=1), [])


def test_implausible_cells_are_blanked_and_bounds_kept(tmp_path):
    table = _table(tmp_path, "a,b\n0,yes\n1,0\n1.01,\n,1\n-1,1\n")
    notices = []
    number = NumericFeature(kind="numeric", low=0, high=1)
    assert feature_cells(table, "a", number, notices) == ["0", "1", "", "", ""]
    answer = CategoricalFeature(kind="categorical", values=("0", "1"))
    assert feature_cells(table, "b", answer, notices) == ["", "0", "", "1", "1"]
    assert notices == ["a: blanked 2 cells outside 0 to 1", "b: blanked 1 cell outside 0, 1"]
    recoded = ["1", "0", "0", "", "7"]
    assert feature_cells(table, "b", answer, notices, cells=recoded) == ["1", "0", "0", "", ""]


def test_key_of_two_columns_repeats_only_as_a_whole(tmp_path):
    table = _table(tmp_path, "a,b\n1,1\n1,2\n2,1\n1,2\n")
    with pytest.raises(DataError, match=r"column 'b': 1 cell \(row 5\): expected each key once"):
        refuse_repeated(table, ("a", "b"))
    refuse_repeated(keep_rows(table, np.array([True, True, True, False])), ("a", "b"))


def test_pseudonyms_differ_by_set_and_by_where_a_part_ends():
    assert pseudonym("x", "ab", "c") == pseudonym("x", "ab", "c")
    others = [("y", "ab", "c"), ("x", "a", "bc"), ("x", "abc"), ("x", "ab", "d")]
    assert len({pseudonym(*other) for other in [("x", "ab", "c"), *others]}) == 5


def test_task_has_the_parts_that_the_data_have():
    features = {"age": NumericFeature(kind="numeric", low=0, high=120)}
    small = Task.parse(task_sections("t", features=features, labels=("l",)), where="t")
    assert small.modalities == ("tabular",)
    assert small.split.column is None
    sections = task_sections(
        "t", features=features, labels=("l",), image_size=64, max_tokens=32, split=True
    )
    full = Task.parse(sections, where="t")
    assert full.modalities == ("image", "tabular", "text")
    assert (full.image.size, full.text.max_tokens, full.split.column) == ((64, 64), 32, "split")
