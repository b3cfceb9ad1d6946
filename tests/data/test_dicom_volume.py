"""Series of DICOM slices, and files of many frames, as volumes."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_files import SERIES, shipped, write_dicom
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medfusion.data.images import ImageCache
from medfusion.data.task import ImageSpec
from medfusion.data.volumes import decode_volume
from medfusion.errors import DataError

SPEC = ImageSpec(dims=3, size=(16, 20, 18), spacing=2.0, window=(0.0, 1000.0))
AXIAL = [1, 0, 0, 0, 1, 0]


def write_series(
    folder: Path, voxels: np.ndarray, direction: list[float], step: float = 2.0, **tags: object
) -> Path:
    """Write [S, H, W]; the names of the files say nothing of their order."""
    folder.mkdir()
    normal = np.cross(direction[:3], direction[3:])
    order = np.random.default_rng(1).permutation(len(voxels))
    for number, pixels in enumerate(voxels):
        where = np.array([5.0, -7.0, 11.0]) + number * step * normal
        about = {
            "ImagePositionPatient": [round(float(mm), 4) for mm in where],
            "ImageOrientationPatient": direction,
            "PixelSpacing": [2.0, 2.0],
        }
        write_dicom(folder / f"{order[number]:03}", pixels, **(about | tags))
    return folder


@given(
    st.permutations([0, 1, 2]),
    st.tuples(st.sampled_from([1, -1]), st.sampled_from([1, -1])),
)
@settings(max_examples=8, deadline=None)
def test_a_series_of_any_direction_is_the_nifti_file_of_it(tmp_path_factory, axes, signs) -> None:
    folder = tmp_path_factory.mktemp("series")
    voxels = np.random.default_rng(0).integers(0, 1000, (10, 12, 14)).astype(np.uint16)
    along_row, along_column = signs[0] * np.eye(3)[axes[0]], signs[1] * np.eye(3)[axes[1]]
    series = write_series(folder / "s", voxels, [*along_row, *along_column])
    affine = np.eye(4)  # of [row, column, slice], to the left and the back; NIfTI: right and front
    normal = np.cross(along_row, along_column)
    affine[:3, :3] = 2.0 * np.stack([along_column, along_row, normal], axis=1)
    affine[:2] *= -1
    nibabel.save(nibabel.Nifti1Image(voxels.transpose(1, 2, 0), affine), folder / "v.nii")
    assert_array_equal(decode_volume(series, SPEC), decode_volume(folder / "v.nii", SPEC))


def test_rescale_is_the_unit_of_the_tasks_window(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 2000, (18, 20, 16)).astype(np.int16)
    plain = write_series(tmp_path / "a", stored, AXIAL)
    rescaled = write_series(
        tmp_path / "b", (stored + 1024) // 2, AXIAL, RescaleSlope=2, RescaleIntercept=-1024
    )
    even = write_series(tmp_path / "c", stored // 2 * 2, AXIAL)
    assert_array_equal(decode_volume(rescaled, SPEC), decode_volume(even, SPEC))
    assert (decode_volume(plain, SPEC) != decode_volume(rescaled, SPEC)).any()


def enhanced(path: Path, voxels: np.ndarray, direction: list[float], step: float = 2.0) -> Path:
    """Write many frames whose places and values stand in functional groups, in another order."""
    shared, plane, measures = Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient = direction
    measures.PixelSpacing = [2.0, 2.0]
    shared.PlaneOrientationSequence = Sequence([plane])
    shared.PixelMeasuresSequence = Sequence([measures])
    order = np.random.default_rng(2).permutation(len(voxels))
    frames = []
    for number in order:
        frame, place, value = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [0.0, 0.0, float(number) * step]
        value.RescaleSlope, value.RescaleIntercept = 1, -float(number)
        frame.PlanePositionSequence = Sequence([place])
        frame.PixelValueTransformationSequence = Sequence([value])
        frames.append(frame)
    stored = (voxels + np.arange(len(voxels))[:, None, None])[order].astype(np.uint16)
    return write_dicom(
        path,
        stored,
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(frames),
    )


def test_many_frames_are_the_series_of_them(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 1000, (9, 12, 14)).astype(np.uint16)
    one = enhanced(tmp_path / "x.dcm", voxels, AXIAL)
    series = write_series(tmp_path / "s", voxels, AXIAL)
    assert_array_equal(decode_volume(one, SPEC), decode_volume(series, SPEC))
    alone = tmp_path / "alone"
    alone.mkdir()
    one.rename(alone / "x")
    assert_array_equal(decode_volume(alone, SPEC), decode_volume(series, SPEC))


def test_a_folder_may_hold_one_volume_of_another_format(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    np.save(tmp_path / "v" / "v.npy", np.zeros((16, 20, 18), np.uint8))
    assert not decode_volume(tmp_path / "v", SPEC).any()
    np.save(tmp_path / "v" / "w.npy", np.zeros((16, 20, 18), np.uint8))
    with pytest.raises(DataError, match="holds 2 files"):
        decode_volume(tmp_path / "v", SPEC)


def change(series: Path, number: int, **tags: object) -> None:
    """Write one slice again, other tags changed."""
    import pydicom

    path = series / f"{number:03}"
    dataset = pydicom.dcmread(path)
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)


@pytest.mark.filterwarnings("ignore:Invalid value for VR DS")
@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"SeriesInstanceUID": f"{SERIES}.2"}, "several series"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, 1]}, "several orientations"),
        ({"PixelSpacing": [1.0, 1.0]}, "several sizes or spacings"),
        ({"ImagePositionPatient": [5.0, -7.0, 500.0]}, "evenly spaced"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "not grey"),
        ({"ImagePositionPatient": None}, "does not tell ImagePositionPatient"),
        ({"PixelSpacing": [0.0, 1.0]}, "no sensible spacing"),
        ({"PixelSpacing": ["inf", "inf"]}, "no sensible spacing"),
        ({"ImagePositionPatient": ["nan", 0, 0]}, "no sensible spacing"),
    ],
)
def test_a_mixed_series_is_refused(tmp_path: Path, tags: dict, message: str) -> None:
    voxels = np.zeros((8, 12, 14), np.uint16)
    series = write_series(tmp_path / "s", voxels, AXIAL)
    decode_volume(series, SPEC)
    change(series, 3, **tags)
    with pytest.raises(DataError, match=message):
        decode_volume(series, SPEC)


def test_gaps_copies_tilts_and_single_slices_are_refused(tmp_path: Path) -> None:
    voxels = np.zeros((8, 12, 14), np.uint16)
    gap = write_series(tmp_path / "gap", voxels, AXIAL)
    inner = np.random.default_rng(1).permutation(8)[4]
    (gap / f"{inner:03}").unlink()
    with pytest.raises(DataError, match="is a slice missing"):
        decode_volume(gap, SPEC)
    double = write_series(tmp_path / "double", voxels, AXIAL, ImagePositionPatient=[1, 2, 3])
    with pytest.raises(DataError, match="several slices at one place"):
        decode_volume(double, SPEC)
    tilted = write_series(tmp_path / "tilted", voxels, AXIAL)
    for file, place in zip(sorted(tilted.iterdir()), range(8), strict=True):
        change(tilted, int(file.name), ImagePositionPatient=[5.0, -7.0 + place, 2.0 * place])
    with pytest.raises(DataError, match="tilted gantry"):
        decode_volume(tilted, SPEC)
    with pytest.raises(DataError, match="one slice"):
        decode_volume(write_series(tmp_path / "one", voxels[:1], AXIAL), SPEC)
    with pytest.raises(DataError, match="position"):
        decode_volume(shipped("rtdose.dcm"), SPEC)
    mixed = write_series(tmp_path / "mixed", voxels, AXIAL)
    (mixed / "notes.txt").write_text("no slice")
    with pytest.raises(DataError, match="not DICOM"):
        decode_volume(mixed, SPEC)
    enhanced(mixed / "notes.txt", voxels, AXIAL)
    with pytest.raises(DataError, match="several frames"):
        decode_volume(mixed, SPEC)


def test_a_series_is_cached_by_its_content(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 1000, (8, 12, 14)).astype(np.uint16)
    series = write_series(tmp_path / "s", voxels, AXIAL)
    cache = ImageCache(tmp_path / "cache", SPEC)
    assert cache.rows([series, None]).tolist() == [0, -1]
    assert_array_equal(cache.array[0], decode_volume(series, SPEC))
    change(series, 0, PatientID="other")
    assert cache.rows([series]).tolist() == [1]
