"""Boxes of a site: read, checked, scaled, joined with their studies."""

from pathlib import Path

import numpy as np
import pytest
from box_folder import (
    BOXES,
    HEADER,
    HEIGHT,
    ROWS,
    WIDTH,
    findings,
    make,
    read,
    refused,
    write_coco,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medfusion.data.box_files import BoxRows
from medfusion.data.boxes import _leaves, place_boxes
from medfusion.data.check import check_site
from medfusion.data.images import stored_size
from medfusion.data.site_data import load_site_data, pool, require_positives
from medfusion.data.task import Task
from medfusion.errors import ConfigError, DataError


def test_boxes_are_shares_of_their_images_and_say_the_labels(tmp_path):
    studies = read(make(tmp_path))
    assert list(studies.study_ids) == ["s1", "s2", "s3"]
    assert studies.boxes.classes.tolist() == [[0, 0, 0], [2, 0, 0], [1, 2, 0]]
    expected = [[0.5, 0.5, 1, 1], [2 / WIDTH, 3 / HEIGHT, 8 / WIDTH, 8 / HEIGHT]]
    np.testing.assert_allclose(studies.boxes.corners[[1, 2], 0], expected, rtol=1e-6)
    np.testing.assert_allclose(studies.boxes.corners[2, 1], [0, 0, 1.5 / WIDTH, 0.1], rtol=1e-6)
    # s1 has no image: nobody can have looked for anything in it
    np.testing.assert_array_equal(studies.labels, [[np.nan, np.nan], [0, 1], [1, 1]])
    assert repr(studies.boxes) == "Boxes(3 boxes, 3 studies)"


def test_the_order_of_rows_changes_nothing(tmp_path):
    first = read(make(tmp_path / "a")).boxes
    second = read(make(tmp_path / "b", BOXES[::-1])).boxes
    np.testing.assert_array_equal(first.corners, second.corners)
    np.testing.assert_array_equal(first.classes, second.classes)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("s9,icu,1,1,2,2", "id of a study in the table"),
        ("s1,icu,1,1,2,2", "expected a study with an image"),
        ("s2,lump,1,1,2,2", "labels (icu, death)"),
        ("s2,icu,1,1,0,2", "width and a height above 0"),
        ("s2,icu,1,1,2,-3", "width and a height above 0"),
        ("s2,icu,one,1,2,2", "numbers of pixels"),
        ("s2,icu,1,,2,2", "numbers of pixels"),
        ("s2,icu,20,1,6,2", "boxes that leave it"),
        ("s2,icu,-2,1,6,2", "boxes that leave it"),
        ("s2,icu,1,15,2,7", "boxes that leave it"),
    ],
)
def test_wrong_boxes_are_refused_with_their_row(tmp_path, row, message):
    text = refused(make(tmp_path, (*BOXES, row)))
    assert message in text
    assert "boxes.csv" in text
    assert "(row 5)" in text


def test_a_box_may_reach_a_pixel_beyond_and_is_cut(tmp_path):
    boxes = read(make(tmp_path, ("s2,icu,-1,0,26,21",))).boxes
    assert boxes.corners[1, 0].tolist() == [0, 0, 1, 1]


def test_more_boxes_than_the_task_allows_are_refused(tmp_path):
    assert "at most 1 boxes of a study" in refused(make(tmp_path, most=1))


def test_missing_columns_and_files_are_named(tmp_path):
    site = make(tmp_path, box_header="study_id,label,x,y,width,hight")
    assert "no such column (did you mean 'hight'?)" in refused(site)
    (site / "boxes.csv").unlink()
    assert "no such file of boxes" in refused(site)


def test_a_file_that_cannot_be_read_is_one_error(tmp_path):
    site = make(tmp_path)
    (site / "boxes.csv").unlink()
    found = check_site(site).findings
    assert [f.code for f in found if f.severity == "error"] == ["unreadable-boxes"]
    assert "no-positives" not in findings(site)


def test_swapped_sides_are_pointed_out(tmp_path):
    tall = ("s2,icu,2,1,3,23", "s3,icu,1,2,2,22")
    found = findings(make(tmp_path, tall))
    assert "width and height swapped" in found["box-swapped"]
    assert found["box-swapped"].startswith("warning")
    corners = ("s2,icu,10,12,20,18", "s3,death,8,12,24,19")
    found = findings(make(tmp_path / "corners", corners))
    assert "right and bottom edges" in found["box-swapped"]
    one_of_many = (*BOXES, "s2,icu,2,1,3,23")
    assert "box-swapped" not in findings(make(tmp_path / "one", one_of_many))


def test_copies_are_pointed_out(tmp_path):
    assert "copied-box" not in findings(make(tmp_path))
    found = findings(make(tmp_path / "copies", (*BOXES, BOXES[0])))
    assert found["copied-box"].startswith("warning boxes.csv: 1 cell (row ")


def test_boxes_in_shares_of_their_images_are_pointed_out(tmp_path):
    shares = ("s2,icu,0.1,0.2,0.5,0.3", "s3,icu,0.5,0.5,0.25,1", "s3,death,0,0,0.001,0.5")
    found = findings(make(tmp_path, shares))["box-tiny"]
    assert found.startswith("warning boxes.csv: 3 cells (rows 2, 3, 4): no wider")
    assert "turn x, y, width and height into pixels" in found
    one_of_many = (*BOXES, "s2,icu,2,1,0.5,0.5")
    assert "box-tiny" not in findings(make(tmp_path / "one", one_of_many))
    assert "box-tiny" not in findings(make(tmp_path / "thin", ("s2,icu,2,1,0.5,9",)))


def counts(site: Path) -> list[str]:
    report = check_site(site)
    assert not report.failed
    return [f"{f.severity} {f.where}: {f.message}" for f in report.findings if "label" in f.where]


def test_the_boxes_of_each_label_are_counted(tmp_path):
    assert counts(make(tmp_path / "both", (*BOXES, "s3,death,4,4,5,5"))) == [
        "note boxes.csv, label 'icu': 1 box in 1 of 2 known studies",
        "note boxes.csv, label 'death': 3 boxes in 2 of 2 known studies",
    ]
    one, other = counts(make(tmp_path / "one", BOXES[:1]))
    assert one == "warning boxes.csv, label 'death': no boxes in 2 known studies"
    assert other.startswith("note boxes.csv, label 'icu'")
    rows = tuple(f"{row},0" for row in ROWS)  # what the column says, it is asked for itself
    boxes, prevalence = BOXES[:1], "boxes.csv, label 'death': 0 boxes in 0 of 3 known studies"
    site = make(tmp_path / "column", boxes, rows=rows, header=HEADER + ",death")
    assert f"note {prevalence}" in counts(site)


def test_a_hospital_without_boxes_may_take_part(tmp_path):
    site = make(tmp_path, ())
    found = findings(site)["no-positives"]
    assert found.startswith("warning boxes.csv: no boxes at all")
    assert not check_site(site).failed
    require_positives(load_site_data(site))
    np.testing.assert_array_equal(read(site).labels, [[np.nan] * 2, [0, 0], [0, 0]])


def test_a_hospital_where_nobody_looked_for_boxes_teaches_nothing(tmp_path):
    site = write_coco(make(tmp_path), images=[], annotations=[])
    found = check_site(site).findings
    assert [(f.code, f.where) for f in found if f.severity == "error"] == [
        ("no-positives", "boxes.json")
    ]
    assert sum(f.code == "label-unknown" for f in found) == 2
    with pytest.raises(DataError, match=r"looked at for them, found neither.*boxes\.json"):
        require_positives(load_site_data(site))


def test_labels_in_the_table_must_agree_with_the_boxes(tmp_path):
    header = HEADER + ",icu,death"
    rows = ("s3,p1,a.png,,60,1,F,1,1", "s1,p1,,,61,,F,,", "s2,p2,b.png,,,0,M,,1")
    studies = read(make(tmp_path / "agree", rows=rows, header=header))
    np.testing.assert_array_equal(studies.labels, [[np.nan, np.nan], [np.nan, 1], [1, 1]])
    rows = ("s3,p1,a.png,,60,1,F,0,1", "s1,p1,,,61,,F,,", "s2,p2,b.png,,,0,M,1,1")
    text = refused(make(tmp_path / "differ", rows=rows, header=header))
    assert "expected 1 in a study that has a box" in text
    assert "expected a box of this label" in text


def test_a_site_may_declare_that_its_boxes_say_the_labels(tmp_path):
    site = make(tmp_path)
    toml = site / "site.toml"
    toml.write_text(toml.read_text() + '[columns.icu]\nfrom = ""\n')
    np.testing.assert_array_equal(read(site).labels[:, 0], [np.nan, 0, 1])
    toml.write_text(toml.read_text().replace('from = ""', 'from = "ward"'))
    assert "no such column" in refused(site)


def test_pooled_sites_keep_their_boxes(tmp_path):
    sites = [load_site_data(make(tmp_path / name)) for name in ("a", "b")]
    together = pool(sites, name="all", state=tmp_path)
    assert together.studies.boxes.classes.tolist() == [[0] * 3, [2, 0, 0], [1, 2, 0]] * 2
    part = together.studies.take([4, 2])
    assert part.boxes.classes.tolist() == [[2, 0, 0], [1, 2, 0]]


def test_boxes_are_part_of_the_content(tmp_path):
    first, other = (
        read(make(tmp_path / name, boxes))
        for name, boxes in (("a", BOXES), ("b", ("s3,icu,2,3,6,6", *BOXES[1:])))
    )
    assert b"".join(first.content([])) != b"".join(other.content([]))


def test_a_turned_photograph_has_the_size_that_is_looked_at(tmp_path):
    image = Image.new("L", (30, 10))
    exif = image.getexif()
    exif[0x0112] = 6  # on its side
    image.save(tmp_path / "a.jpg", exif=exif)
    image.save(tmp_path / "b.jpg")
    (tmp_path / "c.jpg").write_bytes(b"no image")
    sizes = [stored_size(tmp_path / name) for name in ("a.jpg", "b.jpg", "c.jpg")]
    assert sizes == [(10, 30), (30, 10), None]


@given(st.data())
def test_any_boxes_within_their_images_are_placed(data):
    """Whatever is drawn, a box keeps its study, label and place, and nothing else appears."""
    count = data.draw(st.integers(0, 6))
    side = st.floats(0.5, 9.0)
    drawn = [
        (data.draw(st.integers(0, 1)), data.draw(st.sampled_from("ab")), data.draw(side),
         data.draw(side), data.draw(side), data.draw(side))
        for _ in range(count)
    ]  # fmt: skip
    rows = BoxRows(
        where="boxes.csv",
        rows=np.arange(2, 2 + count),
        studies=[f"s{study}" for study, *_ in drawn],
        labels=[label for _, label, *_ in drawn],
        xywh=np.array([sides for _, _, *sides in drawn]).reshape(-1, 4),
    )
    image = Path(__file__).parent / "nowhere.png"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medfusion.data.boxes.stored_size", lambda path: (20, 40))
        boxes, wrong = place_boxes(
            rows, study_ids=["s0", "s1"], images=[image, image], names=("a", "b"), most=6
        )
    assert [f.code for f in wrong if f.severity == "error"] == []
    found = sorted(
        (study, "-ab"[boxes.classes[study, place]], *boxes.corners[study, place].tolist())
        for study, place in zip(*np.nonzero(boxes.classes), strict=True)
    )
    expected = sorted(
        (s, label, *np.float32([x / 20, y / 40, (x + w) / 20, (y + h) / 40]).tolist())
        for s, label, x, y, w, h in drawn
    )
    assert [each[:2] for each in found] == [each[:2] for each in expected]
    np.testing.assert_allclose([e[2:] for e in found], [e[2:] for e in expected], atol=1e-6)


def test_only_a_task_of_detection_has_boxes():
    sections = {
        "task": {"name": "t", "kind": "multilabel"},
        "image": {"size": [32, 32]},
        "labels": {"names": ["a"]},
    }
    plain = Task.parse(sections, where="test")
    assert "boxes" not in plain.to_json()
    assert plain.most_boxes == 0
    with pytest.raises(ConfigError, match="kind 'detection'"):
        Task.parse({**sections, "boxes": {"most": 3}}, where="test")
    detection = {**sections, "task": {"name": "t", "kind": "detection"}}
    assert Task.parse(detection, where="test").most_boxes == 16
    del detection["image"]
    with pytest.raises(ConfigError, match=r"expected \[image\]"):
        Task.parse({**detection, "features": {"x": {"kind": "binary"}}}, where="test")


def test_a_box_beside_its_image_is_refused_though_tools_may_differ_by_a_pixel():
    assert _leaves(np.array([[32.0, 4.0, 1.0, 8.0]]), np.array([[32.0, 32.0]])).all()
    assert not _leaves(np.array([[31.0, 4.0, 2.0, 8.0]]), np.array([[32.0, 32.0]])).any()
