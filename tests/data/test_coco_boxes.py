"""COCO JSON as a site's file of boxes: which images were looked at, and what is refused."""

import numpy as np
import pytest
from box_folder import HEADER, HEIGHT, ROWS, WIDTH, findings, make, read, refused, write_coco

from medfusion.data.check import check_site

NAN = float("nan")
CATEGORIES = [{"id": 1, "name": "icu"}, {"id": 2, "name": "death"}]
IMAGES = [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "b.png"}]
ICU = {"image_id": 7, "category_id": 1, "bbox": [2, 3, 6, 5]}
DEATH = {"image_id": 8, "category_id": 2, "bbox": [12, 10, 12, 10]}


def sized(**sides: object) -> list[dict[str, object]]:
    """The images, of which the second declares its sides."""
    return [IMAGES[0], {**IMAGES[1], **sides}]


def test_coco_json_gives_the_same_boxes(tmp_path):
    expected = read(make(tmp_path / "csv")).boxes
    site = write_coco(make(tmp_path / "coco"))
    found = read(site).boxes
    np.testing.assert_array_equal(found.corners, expected.corners)
    np.testing.assert_array_equal(found.classes, expected.classes)
    assert "expected images with id and file_name" in refused(write_coco(site, categories=[]))


@pytest.mark.parametrize("linked", ["site", "folder", "file"])
def test_coco_json_finds_images_behind_links(tmp_path, linked):
    site = write_coco(make(tmp_path / "real"), annotations=[ICU])
    if linked == "site":
        (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
        site = tmp_path / "link" / site.name
    else:
        moved = "images" if linked == "folder" else "images/a.png"
        (site / moved).rename(site / "kept")
        (site / moved).symlink_to(site / "kept")
    assert read(site).boxes.classes.tolist() == [[0] * 3, [0] * 3, [1, 0, 0]]


def test_an_image_that_is_not_listed_is_unknown_and_one_without_boxes_negative(tmp_path):
    site = write_coco(make(tmp_path), annotations=[ICU])
    # s1 has no image
    np.testing.assert_array_equal(read(site).labels, [[NAN, NAN], [0, 0], [1, 0]])
    assert "image-not-listed" not in findings(site)
    write_coco(site, annotations=[ICU], images=IMAGES[:1])
    np.testing.assert_array_equal(read(site).labels, [[NAN, NAN], [NAN, NAN], [1, 0]])
    found = findings(site)["image-not-listed"]
    assert found.startswith("note boxes.json: does not list the images of 1 study (row 4 of the")


def test_a_column_of_the_label_speaks_for_images_that_are_not_listed(tmp_path):
    rows = tuple(f"{row},0" for row in ROWS)
    site = make(tmp_path, rows=rows, header=HEADER + ",death")
    write_coco(site, annotations=[ICU], images=IMAGES[:1])
    np.testing.assert_array_equal(read(site).labels, [[NAN, 0], [NAN, 0], [1, 0]])


def test_a_label_that_is_no_category_is_unknown(tmp_path):
    site = write_coco(make(tmp_path), annotations=[ICU], categories=CATEGORIES[:1])
    np.testing.assert_array_equal(read(site).labels, [[NAN, NAN], [0, NAN], [1, NAN]])
    assert findings(site)["label-unknown"] == (
        "warning boxes.json, label 'death': known for no study, so this site teaches nothing about "
        "it; if it was looked for, name it in the file's categories"
    )


@pytest.mark.parametrize(
    ("categories", "found"),
    [
        ([], "none;"),
        (["ICU"], "ICU;"),
        ([f"c{i}" for i in range(10)], "c0, c1, c2, c3, c4, c5, c6, c7 and 2 more;"),
    ],
)
def test_categories_that_are_no_labels_are_named_beside_those(tmp_path, categories, found):
    named = [{"id": number, "name": name} for number, name in enumerate(categories)]
    site = write_coco(make(tmp_path), annotations=[], categories=named)
    (told,) = [f for f in check_site(site).findings if f.severity == "error"]
    assert told.where == "boxes.json"
    assert f"(icu, death) among its categories, found {found} name the categories" in told.message
    assert told.message in refused(site)


def test_categories_are_not_blamed_where_they_are_not_what_lacks(tmp_path):
    site = write_coco(make(tmp_path / "unlisted"), annotations=[], categories=[], images=[])
    assert "found neither" in findings(site)["no-positives"]
    rows = tuple(f"{row},," for row in ROWS)
    site = make(tmp_path / "blank", rows=rows, header=HEADER + ",icu,death")
    write_coco(site, annotations=[], categories=[])
    assert "found neither" in findings(site)["no-positives"]
    site = make(tmp_path / "one", rows=tuple(f"{row}," for row in ROWS), header=HEADER + ",death")
    write_coco(site, annotations=[], categories=CATEGORIES[1:])
    assert "at for (icu) among its categories, found death;" in refused(site)


def test_a_column_of_the_label_speaks_where_it_is_no_category(tmp_path):
    rows = tuple(f"{row},0" for row in ROWS)
    site = make(tmp_path, rows=rows, header=HEADER + ",death")
    write_coco(site, annotations=[ICU], categories=CATEGORIES[:1])
    np.testing.assert_array_equal(read(site).labels, [[NAN, 0], [0, 0], [1, 0]])
    assert "label-unknown" not in findings(site)
    write_coco(site, annotations=[], categories=[])
    np.testing.assert_array_equal(read(site).labels, [[NAN, 0]] * 3)


def test_listed_images_of_no_study_are_pointed_out(tmp_path):
    site = write_coco(make(tmp_path), images=[*IMAGES, {"id": 9, "file_name": "secret.png"}])
    assert findings(site)["image-of-unknown-study"].startswith("warning boxes.json: image 3: ")
    assert read(site).boxes.present(2).sum() == 3


@pytest.mark.parametrize("annotated", [True, False])
def test_a_declared_size_must_be_that_of_the_stored_image(tmp_path, annotated):
    drawn = [ICU, DEATH] if annotated else [ICU]
    site = write_coco(
        make(tmp_path), images=sized(width=2 * WIDTH, height=HEIGHT), annotations=drawn
    )
    text = refused(site)
    assert "boxes.json: image 2: expected the width and height of the stored image" in text
    assert "24 x 20 of image 2, found 48 x 20" in text
    assert "scale the boxes" in text
    assert findings(site)["image-size"].startswith("error")
    assert "b.png" not in text


@pytest.mark.parametrize(
    "sides", [{"width": WIDTH, "height": HEIGHT}, {"width": 9, "height": None}, {"height": 9}]
)
def test_a_size_that_is_right_or_not_declared_is_taken(tmp_path, sides):
    site = write_coco(make(tmp_path), images=sized(**sides))
    assert read(site).boxes.present(2).sum() == 3


def test_annotations_are_numbered_as_such(tmp_path):
    site = make(tmp_path)
    lost = {"image_id": 5, "category_id": 1, "bbox": [1, 1, 2, 2]}
    other = {**lost, "image_id": 9}
    more = {"id": 9, "file_name": "secret.png"}
    text = refused(write_coco(site, images=[*IMAGES, more], annotations=[ICU, lost, DEATH, other]))
    assert "boxes.json: annotations 2, 4: expected the image of a study in the table" in text
    assert not any(word in text for word in ("row", "cell", "secret"))
    text = refused(write_coco(site, annotations=[{**ICU, "bbox": [20, 1, 9, 2]}]))
    assert "boxes.json: annotation 1: expected x, y, width and height in pixels" in text


def test_an_image_of_two_studies_is_numbered_once(tmp_path):
    rows = (*ROWS, "s4,p3,b.png,,,0,M")
    site = write_coco(make(tmp_path, rows=rows), images=sized(width=9, height=9))
    assert "boxes.json: image 2: expected the width" in refused(site)
    found = read(write_coco(site)).boxes.present(2)
    np.testing.assert_array_equal(found[1], found[3])


@pytest.mark.parametrize("what", ["images", "categories"])
def test_repeated_ids_are_refused(tmp_path, what):
    repeated = {
        "images": [*IMAGES, {"id": 7, "file_name": "b.png"}],
        "categories": [*CATEGORIES, {"id": 1, "name": "death"}],
    }
    site = write_coco(make(tmp_path), **{what: repeated[what]})
    noun = {"images": "image", "categories": "category"}[what]
    assert f"boxes.json: {noun} 3: has the id of an earlier {noun}" in refused(site)


def test_crowds_are_refused_with_what_to_do(tmp_path):
    site = write_coco(make(tmp_path), annotations=[{**ICU, "iscrowd": 0}, {**DEATH, "iscrowd": 1}])
    text = refused(site)
    assert "boxes.json: annotation 2: expected a box around one thing, found iscrowd = 1" in text
    assert "draw a box around each" in text


def test_polygons_and_masks_are_told_not_to_be_read(tmp_path):
    polygon = {"segmentation": [[2, 3, 8, 3, 8, 8]]}
    site = write_coco(make(tmp_path), annotations=[{**ICU, **polygon}, {**DEATH, **polygon}])
    found = findings(site)["segmentation-unread"]
    assert found.startswith("note boxes.json: 2 annotations with a segmentation")
    assert read(site).boxes.present(2).sum() == 2
    empty = [{**ICU, "segmentation": []}, DEATH]
    assert "segmentation-unread" not in findings(write_coco(site, annotations=empty))


@pytest.mark.parametrize(
    "changes",
    [
        {"images": [{"id": [], "file_name": "a.png"}]},
        {"images": sized(width="wide", height=2)},
        {"annotations": [{**ICU, "image_id": []}]},
        {"annotations": [{**ICU, "iscrowd": "many"}]},
        {"annotations": [{**ICU, "bbox": [1, 2, 3]}]},
        {"annotations": [{**ICU, "bbox": [10**400, 2, 6, 5]}]},
        {"annotations": None},
    ],
)
def test_other_files_are_refused_as_no_coco(tmp_path, changes):
    assert "not readable as COCO JSON" in refused(write_coco(make(tmp_path), **changes))
