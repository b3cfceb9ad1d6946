import numpy as np
import pytest
from dicom_files import write_dicom
from PIL import Image

from medfusion.data.cohorts.partition import Partition
from medfusion.data.cohorts.registry import importer
from medfusion.data.cohorts.vindr_cxr import LABELS
from medfusion.data.site import open_site
from medfusion.data.studies import read_studies
from medfusion.errors import DataError

HEADER = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"
WIDTH, HEIGHT = 60, 80


def write_source(folder, *extra: str, count: int = 45, scale: int = 1):
    """Of three radiographs one is clear, one has a nodule for two of three, one only for one."""
    (folder / "train").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = [HEADER]
    for number in range(count):
        name = f"b{number:03}"
        pixels = rng.integers(0, 255, (HEIGHT, WIDTH), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "train" / f"{name}.png")
        readers = [f"R{1 + (number + reader) % 5}" for reader in range(3)]
        drawn = (0, 2, 1)[number % 3]
        for reader in readers[drawn:]:
            rows.append(f"{name},No finding,14,{reader},,,,")
        for place, reader in enumerate(readers[:drawn]):
            box = (10 + 2 * place, 20, 30, 40 + 4 * place)
            sides = ",".join(str(scale * side) for side in box)
            rows.append(f"{name},Nodule/Mass,8,{reader},{sides}")
    sizes = [f"b{number:03},{scale * HEIGHT},{scale * WIDTH}" for number in range(count)]
    (folder / "train_meta.csv").write_text("\n".join(["image_id,dim0,dim1", *sizes]) + "\n")
    (folder / "train.csv").write_text("\n".join([*rows, *extra]) + "\n")
    return folder


def run(src, out):
    return importer("vindr-cxr").run(src, out, Partition(sites=1))


def read(out):
    (site,) = (out / "sites").iterdir()
    return read_studies(open_site(site))


def test_what_most_readers_drew_is_there_and_the_rest_is_not(tmp_path):
    imported = run(write_source(tmp_path / "src"), tmp_path / "out")
    assert len(imported.notices) == 1
    studies = read(tmp_path / "out")
    nodule = LABELS.index("nodule_mass")
    np.testing.assert_array_equal(np.delete(studies.labels, nodule, axis=1), 0)
    assert studies.labels[:, nodule].sum() == 15
    np.testing.assert_array_equal(studies.boxes.present(len(LABELS)), studies.labels)
    boxed = studies.boxes.classes[:, 0] > 0
    expected = [11 / WIDTH, 20 / HEIGHT, 30 / WIDTH, 42 / HEIGHT]  # the mean of two readers
    np.testing.assert_allclose(studies.boxes.corners[boxed, 0], [expected] * 15, rtol=1e-6)


def test_a_finding_that_readers_place_differently_is_unknown(tmp_path):
    apart = [f"b000,ILD,5,R{n},{5 * n},{5 * n},{5 * n + 4},{5 * n + 4}" for n in (8, 9)]
    src = write_source(tmp_path / "src", *apart)  # five readers by now, of whom two: a minority
    run(src, tmp_path / "few")
    assert not np.isnan(read(tmp_path / "few").labels).any()
    more = [row.replace("R9,45,45,49,49", "R10,1,1,3,3") for row in apart[1:]]
    more += [row.replace("R8,40,40,44,44", "R11,20,1,30,3") for row in apart[:1]]
    src = write_source(tmp_path / "more", *apart, *more)  # four of seven
    imported = run(src, tmp_path / "out")
    assert "1 study with a finding" in imported.notices[-1]
    labels = read(tmp_path / "out").labels
    assert np.argwhere(np.isnan(labels))[:, 1].tolist() == [LABELS.index("ild")]


def test_pictures_of_another_size_need_the_table_of_sizes(tmp_path):
    src = write_source(tmp_path / "src", scale=2)
    run(src, tmp_path / "out")
    studies = read(tmp_path / "out")
    boxed = studies.boxes.classes[:, 0] > 0
    expected = [11 / WIDTH, 20 / HEIGHT, 30 / WIDTH, 42 / HEIGHT]
    np.testing.assert_allclose(studies.boxes.corners[boxed, 0], [expected] * 15, rtol=1e-6)
    table = src / "train_meta.csv"
    rows = table.read_text().splitlines()
    clear, small = rows[1], rows[2]  # one without boxes, one whose box fits in either size
    table.write_text("\n".join(row for row in rows if row != clear) + "\n")
    run(src, tmp_path / "no box")
    table.write_text("\n".join(row for row in rows if row != small) + "\n")
    with pytest.raises(DataError, match=r"1 cell .*expected its dim0 and dim1 in train_meta.csv"):
        run(src, tmp_path / "partly")
    table.unlink()
    with pytest.raises(DataError, match=r"30 cells .*expected its dim0 and dim1"):
        run(src, tmp_path / "without")
    table.write_text("\n".join(["image_id,dim0,dim1", "b000,0,10"]) + "\n")
    with pytest.raises(DataError, match="1 or more pixels"):
        run(src, tmp_path / "none")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("b000,Hernia,3,R1,1,1,2,2", "expected one of Aortic enlargement"),
        ("b000,ILD,5,,1,1,2,2", "expected a value"),
        ("b000,ILD,5,R9,1,1,,2", "expected a number of pixels"),
        ("b000,ILD,5,R9,5,1,2,2", "expected more than x_min"),
        ("b000,ILD,5,R9,1,1,2,1", "expected more than y_min"),
        ("b000,ILD,5,R1,1,1,2,2", "a box beside 'No finding'"),
        ("b001,Nodule/Mass,8,R2,10,20,30,40", "expected each box once"),
    ],
)
def test_wrong_rows_are_refused(tmp_path, row, message):
    src = write_source(tmp_path / "src", row)
    with pytest.raises(DataError, match=message) as told:
        run(src, tmp_path / "out")
    assert "b000" not in str(told.value)


def test_dicom_files_tell_age_and_sex(tmp_path):
    src = write_source(tmp_path / "src")
    for path in sorted((src / "train").iterdir()):
        pixels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        write_dicom(path.with_suffix(".dicom"), pixels, PatientAge="030Y", PatientSex="O")
        path.unlink()
    (src / "train_meta.csv").unlink()  # they tell their sizes themselves
    imported = run(src, tmp_path / "out")
    assert "PatientSex: blanked 45 cells outside F, M" in imported.notices
    features = read(tmp_path / "out").features
    assert set(features[:, 0]) == {30}
    assert np.isnan(features[:, 1]).all()
