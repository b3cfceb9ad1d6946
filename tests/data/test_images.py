import io
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image
from site_folder import write_image

from medfusion.data import images as module
from medfusion.data.images import ImageCache, decode_image, image_problems
from medfusion.data.task import ImageSpec
from medfusion.errors import DataError

GREY = ImageSpec(size=(16, 16))
COLOUR = ImageSpec(size=(16, 16), channels=3)


class Decodes:
    def __init__(self) -> None:
        self.n = 0

    def __call__(self) -> None:
        self.n += 1


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def random_grey(side: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)


def test_an_image_of_the_right_size_is_unchanged(tmp_path: Path) -> None:
    grey = random_grey()
    path = save(Image.fromarray(grey), tmp_path / "x.png")
    assert_array_equal(decode_image(path, GREY), grey[None])
    assert_array_equal(decode_image(path, COLOUR), np.stack([grey] * 3))
    colour = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    path = save(Image.fromarray(colour), tmp_path / "y.png")
    assert_array_equal(decode_image(path, COLOUR), colour.transpose(2, 0, 1))


def test_height_comes_first(tmp_path: Path) -> None:
    path = save(Image.new("L", (40, 20), 7), tmp_path / "x.png")
    assert decode_image(path, ImageSpec(size=(16, 24))).shape == (1, 16, 24)


def test_shrinking_is_antialiased(tmp_path: Path) -> None:
    board = (np.indices((160, 160)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = decode_image(save(Image.fromarray(board), tmp_path / "x.png"), GREY)
    assert np.abs(small.astype(int) - 127).max() <= 3


@pytest.mark.parametrize("top", [255, 1023, 4095, 16383, 65535])
def test_deep_scans_use_the_depth_that_holds_them(tmp_path: Path, top: int) -> None:
    deep = np.linspace(0, top, 256).reshape(16, 16).astype(np.uint16)
    pixels = decode_image(save(Image.fromarray(deep), tmp_path / "x.png"), GREY)
    assert_array_equal(pixels[0], np.rint(deep * (255 / top)).astype(np.uint8))


def test_palette_alpha_and_bilevel(tmp_path: Path) -> None:
    grey = random_grey()
    palette = Image.fromarray(grey).convert("P")
    assert_array_equal(decode_image(save(palette, tmp_path / "p.png"), GREY)[0], grey)
    clear = Image.merge("LA", (Image.fromarray(grey), Image.new("L", (16, 16), 0)))
    assert decode_image(save(clear, tmp_path / "a.png"), GREY).max() == 0
    solid = Image.merge("LA", (Image.fromarray(grey), Image.new("L", (16, 16), 255)))
    assert_array_equal(decode_image(save(solid, tmp_path / "s.png"), GREY)[0], grey)
    black_and_white = Image.fromarray(grey).convert("1")
    pixels = decode_image(save(black_and_white, tmp_path / "b.png"), GREY)
    assert_array_equal(pixels[0], np.asarray(black_and_white) * 255)


def test_jpeg_grey_colour_large_and_turned(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 255, 512), (512, 1)).astype(np.uint8)
    expected = decode_image(save(Image.fromarray(ramp), tmp_path / "x.png"), GREY).astype(int)
    for mode in ("L", "RGB", "CMYK"):
        path = save(Image.fromarray(ramp).convert(mode), tmp_path / f"{mode}.jpg", quality=95)
        assert np.abs(decode_image(path, GREY) - expected).max() <= 4
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show the file rotated clockwise
    path = save(Image.fromarray(ramp), tmp_path / "t.jpg", quality=95, exif=exif)
    turned = decode_image(path, GREY).astype(int)
    assert np.abs(turned - np.rot90(expected, -1, axes=(1, 2))).max() <= 4


@given(st.integers(0, 399), st.sampled_from(["PNG", "JPEG"]))
@settings(max_examples=40)
def test_truncated_files_are_refused_without_their_path(cut: int, kind: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(random_grey(20)).save(buffer, kind)
    data = buffer.getvalue()
    cut = min(cut, len(data) - 20)
    with pytest.raises(DataError, match="truncated or damaged"):
        module._decode(data[:cut], GREY)


def test_other_formats_and_no_file_are_refused(tmp_path: Path) -> None:
    path = save(Image.fromarray(random_grey()), tmp_path / "secret.gif")
    with pytest.raises(DataError) as error:
        decode_image(path, GREY)
    assert "secret" not in str(error.value)
    with pytest.raises(DataError) as error:
        decode_image(tmp_path / "secret.png", GREY)
    assert "secret" not in str(error.value)


def test_a_second_epoch_and_a_second_process_never_decode(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{i}.png", i) for i in range(5)]
    wanted = [paths[0], None, *paths]
    cache, decodes = ImageCache(tmp_path / "cache", GREY), Decodes()
    rows = cache.rows(wanted, decodes)
    assert decodes.n == 5
    assert rows[1] == -1
    assert rows.dtype == np.int64
    for path, row in zip(wanted, rows, strict=True):
        if path is not None:
            assert_array_equal(cache.array[row], decode_image(path, GREY))
    for again in (cache, ImageCache(tmp_path / "cache", GREY)):
        assert_array_equal(again.rows(wanted, decodes), rows)
        assert decodes.n == 5
    assert isinstance(cache.array, np.memmap)
    assert cache.array.shape == (5, 1, 16, 16)
    assert not cache.array.flags.writeable


def test_the_key_is_content_not_name(tmp_path: Path) -> None:
    one, copy = write_image(tmp_path / "1.png", 1), write_image(tmp_path / "sub" / "2.png", 1)
    cache, decodes = ImageCache(tmp_path / "cache", GREY), Decodes()
    rows = cache.rows([one, copy], decodes)
    assert rows[0] == rows[1]
    assert decodes.n == 1
    write_image(one, 2)  # the same name, another content
    new = cache.rows([one, copy], decodes)
    assert new[1] == rows[1]
    assert decodes.n == 2
    assert_array_equal(cache.array[new[0]], decode_image(one, GREY))


def test_another_spec_has_another_cache(tmp_path: Path) -> None:
    path = write_image(tmp_path / "x.png")
    for spec in (GREY, COLOUR, ImageSpec(size=(16, 32))):
        cache = ImageCache(tmp_path / "cache", spec)
        assert cache.array.shape == (0, spec.channels, *spec.size)
        row = cache.rows([path])[0]
        assert_array_equal(cache.array[row], decode_image(path, spec))


@given(batches=st.lists(st.lists(st.integers(0, 7), max_size=6), min_size=1, max_size=5))
@settings(max_examples=15)
def test_any_order_of_requests_gives_the_right_pixels(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    paths = [write_image(folder / f"{i}.png", i) for i in range(8)]
    decodes = Decodes()
    for batch in batches:
        cache = ImageCache(folder / "cache", GREY)
        rows = cache.rows([paths[i] for i in batch], decodes)
        for i, row in zip(batch, rows, strict=True):
            assert_array_equal(cache.array[row], decode_image(paths[i], GREY))
    assert decodes.n == len(set().union(*batches))


def test_two_nodes_may_fill_one_cache_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_image(tmp_path / f"{i}.png", i) for i in range(4)]
    both_want_it, decodes, original = Barrier(2), Decodes(), ImageCache._locked

    def late(cache: ImageCache) -> AbstractContextManager[None]:
        both_want_it.wait(timeout=10)
        return original(cache)

    monkeypatch.setattr(ImageCache, "_locked", late)
    caches = [ImageCache(tmp_path / "cache", GREY) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        futures = [
            pool.submit(caches[0].rows, paths[:3], decodes),
            pool.submit(caches[1].rows, paths[1:], decodes),
        ]
        found = [future.result() for future in futures]
    assert decodes.n == 4
    for cache, wanted, rows in zip(caches, (paths[:3], paths[1:]), found, strict=True):
        for path, row in zip(wanted, rows, strict=True):
            assert_array_equal(cache.array[row], decode_image(path, GREY))


@pytest.mark.parametrize("crash_before", ["fsync", "replace"])
def test_a_crash_leaves_a_usable_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_before: str
) -> None:
    paths = [write_image(tmp_path / f"{i}.png", i) for i in range(4)]
    cache = ImageCache(tmp_path / "cache", GREY)
    cache.rows(paths[:2])

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.os, crash_before, crash)
        with pytest.raises(KeyboardInterrupt):
            cache.rows(paths[2:3])
    again, decodes = ImageCache(tmp_path / "cache", GREY), Decodes()
    rows = again.rows(paths[::-1], decodes)
    assert decodes.n == 2
    for path, row in zip(paths[::-1], rows, strict=True):
        assert_array_equal(again.array[row], decode_image(path, GREY))


@pytest.mark.parametrize("damage", ["index", "pixels"])
def test_a_damaged_cache_is_rebuilt(tmp_path: Path, damage: str) -> None:
    path = write_image(tmp_path / "x.png")
    ImageCache(tmp_path / "cache", GREY).rows([path])
    index = next((tmp_path / "cache").rglob("index.json"))
    assert json.loads(index.read_text())["schema"] == 1
    if damage == "index":
        index.write_text("{")
    else:
        index.with_name("pixels.u8").write_bytes(b"short")
    cache = ImageCache(tmp_path / "cache", GREY)
    rows = cache.rows([path])
    assert_array_equal(cache.array[rows[0]], decode_image(path, GREY))


def test_unreadable_images_are_counted_by_row_and_the_rest_kept(tmp_path: Path) -> None:
    good, bad = write_image(tmp_path / "good.png"), tmp_path / "secret.png"
    bad.write_bytes(good.read_bytes()[:60])
    cache, decodes = ImageCache(tmp_path / "cache", GREY), Decodes()
    with pytest.raises(DataError, match=r"2 images \(rows 5, 9\)") as error:
        cache.rows([bad, None, good, bad], table_rows=[9, 2, 3, 5])
    assert "secret" not in str(error.value)
    with pytest.raises(DataError, match="site check"):
        cache.rows([bad, tmp_path / "gone.png"])
    cache.rows([good], decodes)
    assert decodes.n == 0
    problems = image_problems([bad, None, good], GREY)
    assert "truncated or damaged" in problems[0]
    assert problems[1:] == ["", ""]
