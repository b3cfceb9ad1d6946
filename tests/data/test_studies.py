import math
import os
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from site_folder import HEADER, ROWS, make_site, write_image

from medfusion.data.columns import number_of
from medfusion.data.site import open_site
from medfusion.data.studies import Studies, read_studies
from medfusion.errors import DataError


def read(folder: Path) -> Studies:
    return read_studies(open_site(folder))


def refused(folder: Path) -> str:
    with pytest.raises(DataError) as error:
        read(folder)
    return str(error.value)


def same(a: Studies, b: Studies) -> bool:
    return (
        a.images == b.images
        and a.notes == b.notes
        and all(
            np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True)
            for name in ("features", "labels")
        )
        and list(a.study_ids) == list(b.study_ids)
        and list(a.patient_ids) == list(b.patient_ids)
    )


def test_values_are_sorted_by_study_and_typed(tmp_path: Path) -> None:
    folder = make_site(tmp_path)
    studies = read(folder)
    nan = math.nan
    assert list(studies.study_ids) == ["s1", "s2", "s3", "s4"]
    assert list(studies.patient_ids) == ["p1", "p2", "p1", "p3"]
    assert_array_equal(studies.rows, [3, 4, 2, 5])
    assert_array_equal(studies.features, [[61, nan, 0], [nan, 0, 1], [60, 1, 0], [30.5, 0, nan]])
    assert_array_equal(studies.labels, [[0, nan], [0, 1], [1, 0], [1, 0]])
    images = folder / "images"
    assert studies.images == (None, images / "b.png", images / "a.png", None)
    assert studies.notes == (None, "cough", "fever", "well")
    assert studies.split_column is None
    assert (studies.features.dtype, studies.labels.dtype) == (np.float64, np.float32)


def test_repr_tells_counts_only(tmp_path: Path) -> None:
    assert repr(read(make_site(tmp_path))) == "Studies(4 studies, 3 patients)"


def test_take_by_index_and_by_mask(tmp_path: Path) -> None:
    studies = read(
        make_site(
            tmp_path,
            split='column = "part"',
            header=HEADER + ",part",
            rows=tuple(f"{row},test" for row in ROWS),
        )
    )
    taken = studies.take([2, 0])
    assert list(taken.study_ids) == ["s3", "s1"]
    assert taken.notes == ("fever", None)
    masked = studies.take(np.array([True, False, True, False]))
    assert list(masked.study_ids) == ["s1", "s3"]
    assert_array_equal(masked.split_column, [2, 2])
    assert len(studies.take([])) == 0


@given(order=st.permutations(ROWS))
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_row_order_changes_nothing(tmp_path: Path, order: list[str]) -> None:
    folder = tmp_path / "north"
    if not folder.exists():
        make_site(tmp_path)
    (folder / "studies.csv").write_text("\n".join([HEADER, *ROWS]) + "\n")
    expected = read(folder)
    (folder / "studies.csv").write_text("\n".join([HEADER, *order]) + "\n")
    assert same(read(folder), expected)


def test_columns_are_mapped_scaled_and_declared_absent(tmp_path: Path) -> None:
    extra = """
[files]
delimiter = ";"
decimal = ","
encoding = "cp1252"
[columns.age]
from = "Alter (Monate)"
map = { unbekannt = "" }
scale = 0.08333333333333333
[columns.sex]
from = "Geschlecht"
map = { w = "F", "männlich" = "M" }
[columns.smoker]
map = { ja = 1, nein = false }
[columns.notes]
from = ""
[columns.death]
from = ""
"""
    folder = make_site(tmp_path, extra=extra)
    table = (
        "study_id;patient_id;image;Alter (Monate);smoker;Geschlecht;icu\n"
        "s1;p1;;1440;ja;w;1\n"
        "s2;p2;;6,6;nein;männlich;0\n"
        "s3;p3;;unbekannt;;;\n"
    )
    (folder / "studies.csv").write_bytes(table.encode("cp1252"))
    studies = read(folder)
    nan = math.nan
    np.testing.assert_allclose(studies.features, [[120, 1, 0], [0.55, 0, 1], [nan, nan, nan]])
    assert_array_equal(studies.labels, [[1, nan], [0, nan], [nan, nan]])
    assert studies.notes == (None, None, None)


def test_parquet_gives_what_csv_gives(tmp_path: Path) -> None:
    folder = make_site(tmp_path)
    expected = read(folder)
    site_toml = (folder / "site.toml").read_text()
    (folder / "site.toml").write_text(site_toml + '[files]\nstudies = "studies.parquet"\n')
    columns = {
        "study_id": ["s3", "s1", "s2", "s4"],
        "patient_id": ["p1", "p1", "p2", "p3"],
        "image": ["a.png", None, "b.png", "gone.png"],
        "notes": ["fever", "", "cough", "well"],
        "age": [60.0, 61.0, None, 30.5],
        "smoker": [True, None, False, False],
        "sex": ["F", "F", "M", None],
        "icu": pyarrow.array([1, 0, 0, 1], pyarrow.int8()),
        "death": [0.0, math.nan, 1.0, 0.0],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "studies.parquet")
    assert same(read(folder), expected)
    (folder / "studies.parquet").write_bytes(b"PAR1 but not really")
    assert "not a readable Parquet file" in refused(folder)


def test_blank_rows_and_a_byte_order_mark_are_skipped(tmp_path: Path) -> None:
    folder = make_site(tmp_path)
    text = "\n".join([HEADER, ROWS[0], ",,,,,,,,", "", ROWS[1]]) + "\n\n"
    (folder / "studies.csv").write_text("\ufeff" + text)
    assert_array_equal(read(folder).rows, [5, 2])


@pytest.mark.parametrize(
    ("row", "where", "said"),
    [
        ("s5,p4,,,151,,,0,0", "column 'age'", "expected 0 to 120 year"),
        ("s5,p4,,,-1,,,0,0", "column 'age'", "outside"),
        ("s5,p4,,,old-secret,,,0,0", "column 'age'", "expected a number"),
        ("s5,p4,,,inf,,,0,0", "column 'age'", "expected a number"),
        ("s5,p4,,,,2,,0,0", "column 'smoker'", "expected 1, 0 or blank"),
        ("s5,p4,,,,,old-secret,0,0", "column 'sex'", "expected F, M or blank"),
        ("s5,p4,,,,,,0.5,0", "column 'icu'", "expected 1, 0 or blank"),
        ("s5,p4,,,,,,0,old-secret", "column 'death'", "expected 1, 0 or blank"),
        ("s5,,,,,,,0,0", "column 'patient_id'", "found blank"),
        ("s5,p4,../old-secret.png,,,,,0,0", "column 'image'", "outside"),
        ("s5,p4,/old-secret.png,,,,,0,0", "column 'image'", "outside"),
        ("s5,p4,../images/../../x/..,,,,,0,0", "column 'image'", "outside"),
        ("s5,p4,old-secret", "studies.csv", "expected 9 cells"),
    ],
)
def test_a_bad_cell_is_named_but_not_shown(tmp_path: Path, row: str, where: str, said: str) -> None:
    message = refused(make_site(tmp_path, rows=(*ROWS, row)))
    assert "site 'north'" in message
    assert "row 6" in message
    assert where in message
    assert said in message
    assert "secret" not in message
    assert "151" not in message


def test_all_problems_are_collected(tmp_path: Path) -> None:
    message = refused(make_site(tmp_path, rows=(*ROWS, "s5,p4,../x,,200,2,X,3,4")))
    for column in ("image", "age", "smoker", "sex", "icu", "death"):
        assert f"column '{column}'" in message


def test_duplicate_studies_give_rows_not_ids(tmp_path: Path) -> None:
    extra = ("s3,p9,,,,,,0,0", "s1,p9,,,,,,0,0", "s1,p9,,,,,,0,0")
    message = refused(make_site(tmp_path, rows=(*ROWS, *extra)))
    assert "2 study ids on several rows (rows 2, 3, 6, 7, 8)" in message
    assert "s3" not in message


def test_an_empty_site(tmp_path: Path) -> None:
    assert "found no rows" in refused(make_site(tmp_path, rows=()))
    (tmp_path / "north" / "studies.csv").write_text("")
    assert "expected a header" in refused(tmp_path / "north")


def test_a_missing_column_comes_with_the_nearest_name(tmp_path: Path) -> None:
    message = refused(make_site(tmp_path, header=HEADER.replace(",age", ",AGE ")))
    assert "column 'age': no such column (did you mean 'AGE'?)" in message
    assert "[columns.age]" in message


def test_the_wrong_encoding_names_row_and_remedy(tmp_path: Path) -> None:
    folder = make_site(tmp_path)
    text = "\n".join([HEADER, ROWS[0], "s9,p9,,Übelkeit,,,,1,0"])
    (folder / "studies.csv").write_bytes(text.encode("cp1252"))
    message = refused(folder)
    assert "row 3" in message
    assert "not UTF-8" in message
    assert "encoding" in message


def test_broken_quotes_and_a_wrong_delimiter(tmp_path: Path) -> None:
    folder = make_site(tmp_path, rows=('s1,p1,,"open,1,1,F,1,0', *ROWS))
    assert "quotes do not match" in refused(folder)
    text = "\n".join([HEADER, *ROWS]).replace(",", ";")
    (folder / "studies.csv").write_text(text)
    assert "set delimiter = ';'" in refused(folder)


def test_a_header_given_twice_is_refused(tmp_path: Path) -> None:
    message = refused(make_site(tmp_path, header=HEADER.replace("smoker", "age")))
    assert "columns 'age' more than once" in message


def test_a_table_without_a_header_does_not_leak_its_first_row(tmp_path: Path) -> None:
    message = refused(make_site(tmp_path, header="8812,771,,,64,1,0,1,0"))
    assert not any(value in message for value in ("8812", "771", "64"))


def test_links_may_not_lead_outside(tmp_path: Path) -> None:
    folder = make_site(tmp_path, rows=("s1,p1,link.png,,,,,1,0",))
    os.symlink(folder / "images" / "a.png", folder / "images" / "link.png")
    assert read(folder).images == (folder / "images" / "a.png",)
    os.remove(folder / "images" / "link.png")
    os.symlink(write_image(tmp_path / "other" / "x.png"), folder / "images" / "link.png")
    assert "outside" in refused(folder)
    (folder / "studies.csv").write_text(f"{HEADER}\ns1,p1,deep/x.png,,,,,1,0\n")
    os.symlink(tmp_path / "other", folder / "images" / "deep")
    assert "outside" in refused(folder)


def test_images_may_lie_elsewhere_if_the_hospital_says_so(tmp_path: Path) -> None:
    image = write_image(tmp_path / "archive" / "x.png")
    extra = f'[files]\nimages = "{image.parent}"\n'
    folder = make_site(tmp_path, rows=("s1,p1,x.png,,,,,1,0",), extra=extra)
    assert read(folder).images == (image,)
    (folder / "studies.csv").write_text(f"{HEADER}\ns1,p1,../task.toml,,,,,1,0\n")
    assert "outside" in refused(folder)


def test_split_column(tmp_path: Path) -> None:
    rows = tuple(
        f"{row},{part}" for row, part in zip(ROWS, ("train", "train", "val", "test"), strict=True)
    )
    extra = '[columns.part]\nmap = { val = "calibration" }\n'
    folder = make_site(
        tmp_path, rows=rows, header=HEADER + ",part", split='column = "part"', extra=extra
    )
    assert_array_equal(read(folder).split_column, [0, 1, 0, 2])
    text = (folder / "studies.csv").read_text()
    (folder / "studies.csv").write_text(text.replace(",val", ",hold-out"))
    assert "expected train, calibration, test" in refused(folder)


def test_a_site_without_the_split_column_is_split_by_hash(tmp_path: Path) -> None:
    folder = make_site(tmp_path, split='column = "part"')
    assert read(folder).split_column is None
    (folder / "studies.csv").write_text(
        "\n".join([HEADER + ",parts", *(f"{row},test" for row in ROWS)])
    )
    assert "did you mean 'parts'" in refused(folder)


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([".", ","]),
)
def test_numbers_survive_text(value: float, decimal: str) -> None:
    assert number_of(repr(value).replace(".", decimal), decimal) == value


@pytest.mark.parametrize("text", ["1_000", "nan", "inf", "1.234,5", "0x10", "1 000", "--"])
@pytest.mark.parametrize("decimal", [".", ","])
def test_what_is_no_plain_number_is_refused(text: str, decimal: str) -> None:
    assert number_of(text, decimal) is None
