"""DICOM files as pictures."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import shipped, write_dicom
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medfusion.data.dicom import read_picture, read_tags
from medfusion.data.images import ImageCache, decode_image, image_problems, stored_size
from medfusion.data.task import ImageSpec
from medfusion.errors import DataError

GREY = ImageSpec(size=(16, 16))
COLOUR = ImageSpec(size=(16, 16), channels=3)


def random_pixels(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    highest = np.iinfo(dtype).max
    return np.random.default_rng(0).integers(0, highest, shape, dtype=dtype, endpoint=True)


@pytest.mark.parametrize("name", ["x.dcm", "x", "IM0001"])
def test_eight_bits_without_a_window_are_what_a_png_of_them_is(tmp_path: Path, name: str) -> None:
    for spec in (GREY, COLOUR, ImageSpec(size=(24, 20))):
        for pixels in (random_pixels(16, 16), random_pixels(40, 32, 3)):
            png = tmp_path / "x.png"
            Image.fromarray(pixels).save(png)
            path = write_dicom(tmp_path / name, pixels)
            assert_array_equal(decode_image(path, spec), decode_image(png, spec))
            assert stored_size(path) == stored_size(png)


def test_a_window_acts_on_rescaled_values(tmp_path: Path) -> None:
    stored = np.linspace(0, 4095, 256).reshape(16, 16).astype(np.uint16)
    about = {"BitsStored": 12, "RescaleSlope": 2, "RescaleIntercept": -1000}
    path = write_dicom(tmp_path / "x.dcm", stored, WindowCenter=40, WindowWidth=400, **about)
    unit = 2.0 * stored - 1000.0
    expected = 255 * np.clip((unit - 39.5) / 399 + 0.5, 0, 1)  # PS3.3 C.11.2.1.2.1
    assert_array_equal(decode_image(path, GREY)[0], np.rint(expected))
    several = {"WindowCenter": [40, 900], "WindowWidth": [400, 90]}
    assert_array_equal(
        decode_image(write_dicom(tmp_path / "y.dcm", stored, **several, **about), GREY)[0],
        np.rint(expected),
    )
    exact = {"WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "LINEAR_EXACT"}
    expected = 255 * np.clip((unit - 40) / 400 + 0.5, 0, 1)
    path = write_dicom(tmp_path / "z.dcm", stored, **exact, **about)
    assert_array_equal(decode_image(path, GREY)[0], np.rint(expected))


def test_empty_tags_of_the_transform_say_nothing_and_huge_images_are_refused(tmp_path) -> None:
    pixels = random_pixels(16, 16)
    path = write_dicom(tmp_path / "x.dcm", pixels, RescaleSlope="", RescaleIntercept="")
    assert_array_equal(decode_image(path, GREY)[0], pixels)
    huge = write_dicom(tmp_path / "y.dcm", pixels, Rows=60000, Columns=60000)
    with pytest.raises(DataError, match="too many pixels"):
        decode_image(huge, GREY)


def test_without_a_window_deep_values_have_their_own_range(tmp_path: Path) -> None:
    stored = np.linspace(300, 700, 256).reshape(16, 16).astype(np.uint16)
    found = decode_image(write_dicom(tmp_path / "x.dcm", stored), GREY)[0]
    low, high = np.percentile(stored, (0.5, 99.5))
    assert_array_equal(found, np.rint(255 * np.clip((stored - low) / (high - low), 0, 1)))
    padded = stored.copy()
    padded[:8] = 9999
    path = write_dicom(tmp_path / "y.dcm", padded, PixelPaddingValue=9999)
    low, high = np.percentile(stored[8:], (0.5, 99.5))
    expected = np.rint(255 * np.clip((stored - low) / (high - low), 0, 1))
    assert_array_equal(decode_image(path, GREY)[0, 8:], expected[8:])
    assert not decode_image(path, GREY)[0, :8].any()


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    pixels = random_pixels(16, 16)
    one = write_dicom(tmp_path / "x.dcm", pixels, PhotometricInterpretation="MONOCHROME1")
    assert_array_equal(decode_image(one, GREY)[0], 255 - pixels)
    window = {"WindowCenter": 100, "WindowWidth": 51}
    one = write_dicom(tmp_path / "y.dcm", pixels, PhotometricInterpretation="MONOCHROME1", **window)
    two = write_dicom(tmp_path / "z.dcm", pixels, **window)
    total = decode_image(one, GREY).astype(int) + decode_image(two, GREY)
    assert np.abs(total - 255).max() <= 1


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 500, "WindowWidth": 400}])
@pytest.mark.parametrize("padding", [0, 1000])
def test_padding_is_black(tmp_path: Path, kind: str, window: dict, padding: int) -> None:
    stored = np.linspace(300, 700, 256).reshape(16, 16).astype(np.uint16)
    stored[:4] = padding
    path = write_dicom(
        tmp_path / "x.dcm",
        stored,
        PhotometricInterpretation=kind,
        PixelPaddingValue=padding,
        **window,
    )
    found = decode_image(path, GREY)[0]
    assert not found[:4].any()
    assert found[4:].max() > 150


def test_padding_of_eight_bits_is_black(tmp_path: Path) -> None:
    pixels = np.full((16, 16), 100, np.uint8)
    pixels[:4] = 0
    about = {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 0}
    found = decode_image(write_dicom(tmp_path / "x.dcm", pixels, **about), GREY)[0]
    assert_array_equal(found, np.where(pixels == 0, 0, 155))


def test_a_voi_table_comes_before_a_window(tmp_path: Path) -> None:
    pixels = random_pixels(16, 16)
    table = Dataset()
    table.LUTDescriptor = [256, 0, 16]
    table.LUTData = (np.arange(256)[::-1] * 257).astype("<u2").tobytes()
    path = write_dicom(
        tmp_path / "x.dcm",
        pixels,
        VOILUTSequence=Sequence([table]),
        WindowCenter=3,
        WindowWidth=2,
    )
    assert_array_equal(decode_image(path, GREY)[0], 255 - pixels)


def test_an_enhanced_image_says_of_its_frame_what_others_say_of_all(tmp_path: Path) -> None:
    stored = np.linspace(0, 4095, 256).reshape(16, 16).astype(np.uint16)
    plain = {"RescaleSlope": 1, "RescaleIntercept": -24, "WindowCenter": 900, "WindowWidth": 800}
    value, window, shared, frame = (Dataset() for _ in range(4))
    value.RescaleSlope, value.RescaleIntercept = 1, -24
    window.WindowCenter, window.WindowWidth = 900, 800
    shared.PixelValueTransformationSequence = Sequence([value])
    frame.FrameVOILUTSequence = Sequence([window])
    enhanced = write_dicom(
        tmp_path / "x.dcm",
        stored,
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence([frame]),
    )
    assert_array_equal(
        decode_image(enhanced, GREY),
        decode_image(write_dicom(tmp_path / "y.dcm", stored, **plain), GREY),
    )


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("MR_small_bigendian.dcm", "MR_small.dcm"),
        ("MR_small_implicit.dcm", "MR_small.dcm"),
        ("SC_rgb_rle.dcm", "SC_rgb_rle_16bit.dcm"),
    ],
)
def test_compressed_files_give_the_same_picture(name: str, like: str) -> None:
    assert_array_equal(
        np.asarray(read_picture(shipped(name))), np.asarray(read_picture(shipped(like)))
    )


def test_palettes_and_ybr_become_rgb() -> None:
    palette = np.asarray(read_picture(shipped("examples_palette.dcm")))
    assert palette.shape[2] == 3
    assert (palette[..., 0] != palette[..., 2]).any()
    ybr = np.asarray(read_picture(shipped("SC_ybr_full_422_uncompressed.dcm"))).astype(int)
    rgb = np.asarray(read_picture(shipped("SC_rgb_dcmtk_+eb+cr.dcm"))).astype(int)
    assert np.abs(ybr - rgb).mean() < 4
    assert decode_image(shipped("examples_palette.dcm"), GREY).shape == (1, 16, 16)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reportsi.dcm", r"holds no image \(Basic Text SR Storage\)"),
        ("waveform_ecg.dcm", "holds no image"),
        ("MR_truncated.dcm", "truncated, damaged"),
        ("no_meta.dcm", "encrypted, or of another format"),
        ("rtdose.dcm", "holds 15 frames where one image is expected"),
        ("MR_small_jpeg_ls_lossless.dcm", "JPEG-LS Lossless.*pip install pyjpegls"),
        ("SC_rgb_jpeg_gdcm.dcm", "JPEG Lossless.*pip install pylibjpeg pylibjpeg-libjpeg"),
        ("JPEG-lossy.dcm", "JPEG Extended.*pip install pylibjpeg pylibjpeg-libjpeg"),
    ],
)
def test_what_gives_no_picture_is_refused(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode_image(shipped(name), GREY)
    assert image_problems([shipped(name)], GREY)[0]


@given(st.integers(0, 700))
@example(141)  # in the middle of a number
@settings(max_examples=40, deadline=None)
def test_a_file_that_was_cut_is_refused_without_a_value(tmp_path_factory, cut: int) -> None:
    path = write_dicom(
        tmp_path_factory.mktemp("cut") / "secret.dcm",
        random_pixels(16, 16),
        PatientName="Secret^Person",
        PatientID="secret-1",
    )
    data = path.read_bytes()
    path.write_bytes(data[: min(cut, len(data) - 1)])
    with pytest.raises(DataError) as error:
        decode_image(path, GREY)
    assert "ecret" not in str(error.value)


def test_a_damaged_deflated_file_is_refused(tmp_path: Path) -> None:
    data = shipped("image_dfl.dcm").read_bytes()
    assert read_picture(shipped("image_dfl.dcm")).size == (512, 512)
    cut, changed = tmp_path / "cut.dcm", tmp_path / "changed.dcm"
    cut.write_bytes(data[: len(data) // 2])
    changed.write_bytes(data[:-1000] + bytes(1000))
    for path in (cut, changed):
        with pytest.raises(DataError, match="truncated, damaged"):
            decode_image(path, GREY)
        assert stored_size(path) is None


def test_a_folder_stands_for_the_one_file_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    with pytest.raises(DataError, match="folder is empty"):
        decode_image(folder, GREY)
    path = write_dicom(folder / "1", random_pixels(16, 16))
    (folder / "DICOMDIR").write_bytes(b"an index")
    (folder / ".hidden").write_bytes(b"")
    assert_array_equal(decode_image(folder, GREY), decode_image(path, GREY))
    cache = ImageCache(tmp_path / "cache", GREY)
    row = cache.rows([folder])[0]
    path.rename(folder / "2")
    assert cache.rows([folder])[0] == row
    write_dicom(folder / "2", 255 - random_pixels(16, 16))
    assert cache.rows([folder])[0] != row
    write_dicom(folder / "1", random_pixels(16, 16))
    with pytest.raises(DataError, match="holds 2 files where one image is expected"):
        cache.rows([folder])


def test_links_in_a_folder_are_not_followed(tmp_path: Path) -> None:
    outside = write_dicom(tmp_path / "outside.dcm", random_pixels(16, 16))
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "1.dcm").symlink_to(outside)
    with pytest.raises(DataError, match="links"):
        decode_image(tmp_path / "study", GREY)


def test_pydicom_says_nothing_of_a_patient(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = write_dicom(tmp_path / "x.dcm", random_pixels(16, 16), PatientName="Secret^Person")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"1.2.826", b"1.2.ecr"))  # no UID: pydicom warns, quoting it
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with ThreadPoolExecutor(4) as pool:
            tags = list(pool.map(lambda _: read_tags(path, ["SeriesInstanceUID"]), range(40)))
            list(pool.map(lambda _: decode_image(path, GREY), range(40)))
        assert tags == [{"SeriesInstanceUID": "1.2.ecr.0.1.3680043.8.498.1"}] * 40
        assert told == []
        assert caplog.text == ""
        warnings.warn("as before", stacklevel=1)
        assert len(told) == 1
    assert pydicom.dcmread(shipped("MR_small.dcm")).Rows == 64
