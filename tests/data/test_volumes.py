"""Volumes: from files to voxels of the task's size."""

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from site_folder import HEADER, make_site

from medfusion.data.check import check_site
from medfusion.data.images import ImageCache, image_problems
from medfusion.data.task import ImageSpec
from medfusion.data.volumes import decode_volume, lacks_orientation, resample
from medfusion.errors import DataError

SPEC = ImageSpec(dims=3, size=(16, 18, 20))
needs_nibabel = pytest.mark.skipif(
    importlib.util.find_spec("nibabel") is None, reason="nibabel is not installed"
)


def ramp(*shape: int, axis: int = 0) -> np.ndarray:
    """Values that rise along one axis."""
    sides = [side if at == axis else 1 for at, side in enumerate(shape)]
    return np.broadcast_to(np.arange(shape[axis], dtype=np.float64).reshape(sides), shape)


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_eight_bit_voxels_of_the_right_size_stay_as_they_are(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 256, SPEC.size).astype(np.uint8)
    found = decode_volume(save(tmp_path / "a.npz", volume=voxels), SPEC)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, voxels[None])
    np.save(tmp_path / "a.npy", voxels)
    np.testing.assert_array_equal(decode_volume(tmp_path / "a.npy", SPEC), voxels[None])


def test_a_window_is_public_and_percentiles_are_the_volumes_own(tmp_path):
    values = ramp(16, 18, 20) * 100.0  # 0 to 1500
    path = save(tmp_path / "a.npz", volume=values)
    window = SPEC.model_copy(update={"window": (500.0, 1000.0)})
    along = decode_volume(path, window)[0, :, 0, 0].tolist()
    assert along[:6] == [0] * 6
    assert along[10:] == [255] * 6
    assert along[7] == round(255 * 200 / 500)
    own = decode_volume(path, SPEC)[0, :, 0, 0]
    assert own[0] == 0
    assert own[-1] == 255
    shifted = decode_volume(save(tmp_path / "b.npz", volume=3 * values + 7), SPEC)
    np.testing.assert_array_equal(shifted[0, :, 0, 0], own)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_resampling_is_linear_where_voxels_shrink_and_a_mean_where_they_grow(axis):
    size = [4, 5, 6]
    size[axis] = 2 * size[axis]
    finer = resample(ramp(4, 5, 6, axis=axis).astype(np.float32), tuple(size))
    inner = np.moveaxis(finer, axis, 0)[1:-1]
    assert np.diff(inner, axis=0) == pytest.approx(0.5, abs=1e-5)
    checks = (-1.0) ** ramp(16, 16, 16, axis=axis)  # the finest texture there is
    size = [16, 16, 16]
    size[axis] = 5
    coarse = np.moveaxis(resample(checks.astype(np.float32), tuple(size)), axis, 0)
    assert np.abs(coarse[1:-1]).max() < 0.1  # looking at single voxels: 0.4
    constant = resample(np.full((7, 9, 5), 3.0, np.float32), (4, 12, 6))
    assert constant == pytest.approx(3.0, abs=1e-5)


def test_with_a_spacing_a_volume_is_cut_or_filled_up_around_its_centre(tmp_path):
    voxels = np.zeros((20, 40, 10), np.uint8)
    voxels[9:11, 19:21, 4:6] = 255
    path = save(tmp_path / "a.npz", volume=voxels, spacing=np.array([2.0, 1.0, 4.0]))
    found = decode_volume(path, ImageSpec(dims=3, size=(24, 16, 20), spacing=2.0))[0]
    centre = np.array(np.nonzero(found > 60)).mean(axis=1)
    assert centre == pytest.approx((np.array(found.shape) - 1) / 2)
    assert not found[:2].any()
    assert not found[-2:].any()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"volume": np.zeros((4, 4))}, "three dimensions"),
        ({"volume": np.zeros((4, 0, 4))}, "three dimensions"),
        ({"a": np.zeros((4, 4, 4)), "b": np.zeros(3)}, "several arrays"),
        ({"volume": np.zeros((4, 4, 4)), "spacing": np.array([1.0, -1.0, 1.0])}, "three lengths"),
        ({"volume": np.full((4, 4, 4), np.nan)}, "no finite value"),
        ({"volume": np.array([{"a": 1}], dtype=object)}, "cannot be read"),
    ],
)
def test_what_is_no_volume_is_refused_without_its_path(tmp_path, content, message):
    path = save(tmp_path / "secret.npz", **content)
    with pytest.raises(DataError, match=message) as told:
        decode_volume(path, SPEC)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.dcm"])
def test_damaged_and_foreign_files_are_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"PK\x03\x04 and then nothing of use")
    with pytest.raises(DataError, match=r"cannot be read|is not DICOM"):
        decode_volume(path, SPEC)
    assert [bool(problem) for problem in image_problems([path, None], SPEC)] == [True, False]


def test_volumes_are_cached_by_content_and_by_how_they_are_read(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 256, (8, 9, 10)).astype(np.uint8)
    path = save(tmp_path / "a.npz", volume=voxels)
    cache = ImageCache(tmp_path / "cache", SPEC)
    rows = cache.rows([None, path])
    assert rows.tolist() == [-1, 0]
    assert cache.array.shape == (1, 1, 16, 18, 20)
    np.testing.assert_array_equal(cache.array[0], decode_volume(path, SPEC))
    other = ImageCache(tmp_path / "cache", SPEC.model_copy(update={"window": (0.0, 99.0)}))
    assert len(other.array) == 0
    path.write_bytes(b"")
    with pytest.raises(DataError, match="readable NIfTI, npz, npy or DICOM files"):
        cache.rows([path])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": 3, "size": (16, 16)}, "expected 3 sides"),
        ({"dims": 2, "size": (16, 16, 16)}, "expected 2 sides"),
        ({"dims": 3, "size": (16, 16, 8)}, "16 to 2048"),
        ({"dims": 3, "size": (16, 16, 16), "channels": 3}, "expected 1 for volumes"),
        ({"dims": 3, "size": (16, 16, 16), "window": (1.0, 1.0)}, "lower end first"),
        ({"spacing": 2.0}, "for volumes"),
    ],
)
def test_a_section_that_fits_no_volume_is_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        ImageSpec(**options)


def test_images_keep_their_digest():
    assert ImageSpec().model_dump() == {
        "column": "image",
        "dims": 2,
        "size": (128, 128),
        "channels": 1,
    }


@needs_nibabel
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_nifti_file_is_turned_to_the_patients_axes_and_brings_its_spacing(tmp_path, name):
    import nibabel

    voxels = np.zeros((20, 16, 18), np.float32)  # upwards, to the left, to the front
    voxels[15, 2, 9] = 900.0
    affine = np.array([[0, -2, 0, 0], [0, 0, 2, 0], [2, 0, 0, 0], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / name)
    spec = ImageSpec(dims=3, size=(16, 18, 20), spacing=2.0, window=(0.0, 900.0))
    found = decode_volume(tmp_path / name, spec)[0]
    assert np.argwhere(found == 255).tolist() == [[13, 9, 15]]
    (tmp_path / name).write_bytes(b"no NIfTI")
    with pytest.raises(DataError, match="cannot be read"):
        decode_volume(tmp_path / name, spec)


@pytest.mark.parametrize("content", [np.array([["a"]]), np.zeros((3, 3, 3), complex)])
def test_what_holds_no_numbers_is_no_volume(tmp_path, content):
    np.save(tmp_path / "v.npy", content)
    with pytest.raises(DataError, match="voxels are not numbers"):
        decode_volume(tmp_path / "v.npy", SPEC)


def test_a_compressed_file_is_read_to_its_checksum(tmp_path):
    path = tmp_path / "v.nii.gz"
    nibabel = pytest.importorskip("nibabel")
    values = np.random.default_rng(0).integers(0, 255, (20, 20, 20)).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    decode_volume(path, SPEC)
    data = bytearray(path.read_bytes())
    data[-8] ^= 1  # of the checksum: the voxels could as well be others
    path.write_bytes(data)
    with pytest.raises(DataError, match="cannot be read"):
        decode_volume(path, SPEC)


def write_nifti(
    path: Path, spacing: object = 1.0, *, axes: str = "RAS", unit: str = "", version: int = 1
) -> Path:
    """Write a cube of 20 mm with a bright half to the front; ``axes`` "" tells no orientation."""
    nibabel = pytest.importorskip("nibabel")
    voxels = np.full((20, 20, 20), 100, np.uint8)
    voxels[:, 10:] = 200
    ornt = nibabel.orientations.axcodes2ornt(axes or "LAS")
    affine = nibabel.orientations.inv_ornt_aff(ornt, voxels.shape)
    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    image = kind(nibabel.orientations.apply_orientation(voxels, ornt), affine)
    if unit:
        image.header.set_xyzt_units(unit, "sec")
    data = bytearray(image.to_bytes())
    header = kind.header_class(data[: image.header.sizeof_hdr])
    header["pixdim"][1:4] = spacing
    if not axes:
        header["sform_code"] = header["qform_code"] = 0
    data[: header.sizeof_hdr] = header.binaryblock
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("spacing", [np.nan, np.inf, 0.0, -1.0, (1.0, 1.0, np.nan)], ids=str)
@pytest.mark.parametrize("axes", ["RAS", "SPL", ""])
def test_a_nifti_files_spacing_is_three_lengths(tmp_path, axes, spacing):
    path = write_nifti(tmp_path / "secret.nii", spacing, axes=axes)
    for wanted in (None, 2.0):
        spec = SPEC.model_copy(update={"spacing": wanted})
        with pytest.raises(DataError, match="expected a spacing of three lengths above 0") as told:
            decode_volume(path, spec)
        assert "secret" not in str(told.value)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("unit", "of_a_mm"), [("", 1.0), ("mm", 1.0), ("micron", 1000.0), ("meter", 0.001)]
)
def test_a_nifti_files_spacing_is_in_its_unit(tmp_path, unit, of_a_mm, version):
    spec = ImageSpec(dims=3, size=(32, 32, 32), spacing=1.0, window=(0.0, 255.0))
    path = write_nifti(tmp_path / "v.nii", of_a_mm, unit=unit, version=version)
    assert [len(set(side)) for side in np.nonzero(decode_volume(path, spec)[0])] == [20] * 3


@pytest.mark.parametrize("axes", ["RAS", "LPI", "SPL"])
def test_distances_go_with_their_axes_whatever_the_affine_says(tmp_path, axes):
    """An affine may lead to a template, to which it stretches; pixdim is the scanner's."""
    along = {"R": 2.0, "L": 2.0, "A": 1.0, "P": 1.0, "S": 0.5, "I": 0.5}
    path = write_nifti(tmp_path / "v.nii", [along[axis] for axis in axes], axes=axes)
    spec = ImageSpec(dims=3, size=(64, 64, 64), spacing=1.0, window=(0.0, 255.0))
    found = decode_volume(path, spec)[0]
    assert [len(set(side)) for side in np.nonzero(found)] == [40, 20, 10]
    assert found[32, 40, 32] == 200
    assert found[32, 24, 32] == 100


@pytest.mark.parametrize(
    ("spacing", "found"), [(1000.0, "more"), ((1e7, 0.01, 0.01), "more"), (0.001, "one")]
)
def test_a_volume_of_an_absurd_size_is_refused_before_it_takes_memory(tmp_path, spacing, found):
    spec = SPEC.model_copy(update={"spacing": 1.0})
    expected = f"expected at most 268,435,456 voxels.*found {found}: .*unit.*mend the file"
    with pytest.raises(DataError, match=expected):
        decode_volume(write_nifti(tmp_path / "a.nii", spacing), spec)
    voxels, lengths = np.zeros((20, 20, 20), np.uint8), np.ones(3) * spacing
    with pytest.raises(DataError, match=expected):
        decode_volume(save(tmp_path / "a.npz", volume=voxels, spacing=lengths), spec)


@pytest.mark.parametrize(("axes", "lacks"), [("", True), ("RAS", False), ("SPL", False)])
@pytest.mark.parametrize("version", [1, 2])
def test_whether_a_file_tells_its_orientation(tmp_path, axes, lacks, version):
    plain = write_nifti(tmp_path / "v.nii", axes=axes, version=version)
    packed = tmp_path / "v.nii.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert [lacks_orientation(path) for path in (plain, packed)] == [lacks, lacks]
    (tmp_path / "folder").mkdir()
    plain.rename(tmp_path / "folder" / "v.nii")
    assert lacks_orientation(tmp_path / "folder") == lacks


def test_what_cannot_be_read_lacks_no_orientation(tmp_path):
    for name in ("v.nii", "v.nii.gz", "v.npz"):
        assert not lacks_orientation(tmp_path / name)
        (tmp_path / name).write_bytes(b"no NIfTI")
        assert not lacks_orientation(tmp_path / name)


def test_site_check_names_the_rows_of_odd_volumes(tmp_path):
    rows = [f"secret{n},p{n},secret{n}.nii,,60,1,F,{n % 2},0" for n in range(6)]
    site = make_site(tmp_path, tuple(rows), header=HEADER)
    task = (tmp_path / "task.toml").read_text()
    volumes = "dims = 3\nsize = [16, 16, 16]\nspacing = 1.0"
    (tmp_path / "task.toml").write_text(task.replace("size = [16, 16]", volumes))
    for number, axes in enumerate(["RAS", "", "SPL", "", "LPI", "RAS"]):
        spacing = {4: np.nan, 5: 1000.0}.get(number, 1.0 + 0.1 * number)
        write_nifti(site / "images" / f"secret{number}.nii", spacing, axes=axes)
    report = check_site(site)
    found = {
        code: [(f.severity, f.message) for f in report.findings if f.code == code]
        for code in ("image-unreadable", "volume-unoriented")
    }
    ((severity, message),) = found["volume-unoriented"]
    assert severity == "warning"
    assert message.startswith("2 cells (rows 3, 5): the NIfTI header does not tell how")
    assert [severity for severity, _ in found["image-unreadable"]] == ["error"] * 2
    told = " ".join(message for _, message in found["image-unreadable"])
    assert "1 cell (row 6): " in told
    assert "1 cell (row 7): " in told
    assert "secret" not in str(report.to_json())
