"""Images: decoded once into a memory-mapped cache, keyed by their content."""

import fcntl
import hashlib
import io
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from medfusion.atomic_files import write_atomically
from medfusion.data.dicom import read_picture, read_tags
from medfusion.data.findings import plural, rows_text
from medfusion.data.image_files import content_digest, is_dicom, single_file
from medfusion.data.task import ImageSpec
from medfusion.data.volumes import decode_volume
from medfusion.errors import DataError

Pixels = NDArray[np.uint8]

_DECODER = 3  # raise it whenever decode_image comes to give other pixels
_UNOPENED = "an image cannot be opened"
_CHUNK_BYTES = 64 * 2**20
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


def decode_image(path: Path, spec: ImageSpec) -> Pixels:
    """Decode a PNG, JPEG or DICOM file to uint8 [C, H, W] of the size in ``spec``.

    With ``dims = 3`` it is a volume, see `medfusion.data.volumes.decode_volume`. A folder stands
    for the one file in it. How grey values of DICOM are shown: `medfusion.data.dicom.read_picture`.

    Grey, colour, palette and alpha (over black), 8 and 16 bit; the camera's orientation tag is
    applied; resized with antialiasing. Deep grey scans are brought to 8 bit by the smallest
    depth of 8, 10, 12, 14, 16 bits that holds their values, since scanners store fewer bits
    than the file has room for.

    Raises
    ------
    DataError
        If it cannot be read; the message leaves out the path.
    """
    if spec.dims == 3:
        return decode_volume(path, spec)
    file = single_file(path)
    if is_dicom(file):
        return _sized(read_picture(file).convert(_mode(spec)), spec)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"an image cannot be opened ({error.strerror})") from None
    return _decode(data, spec)


def stored_size(path: Path) -> tuple[int, int] | None:
    """Return width and height in pixels of an image as it is looked at; None if unreadable.

    Only the file's head is read. The camera's orientation tag is applied, as in decoding.
    """
    try:
        file = single_file(path)
        if is_dicom(file):
            tags = read_tags(file, ["Columns", "Rows"])
            return int(tags["Columns"]), int(tags["Rows"])
        with Image.open(file, formats=("PNG", "JPEG")) as image:
            width, height = image.size
            on_its_side = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except (*_DAMAGED, Image.DecompressionBombError, DataError, KeyError):
        return None
    return (height, width) if on_its_side else (width, height)


class ImageCache:
    """Decoded images in a folder: ``pixels.u8`` (appended) and ``index.json`` (replaced).

    The index is written after the pixels it speaks of, so that a crash loses at most the last
    chunk; several processes may use one folder.
    """

    def __init__(self, folder: Path, spec: ImageSpec) -> None:
        of_volumes = [spec.spacing, spec.window] if spec.dims == 3 else []
        key = json.dumps([_DECODER, spec.dims, list(spec.size), spec.channels, *of_volumes])
        self._spec = spec
        self._shape = (spec.channels, *spec.size)
        self._folder = folder / hashlib.sha256(key.encode()).hexdigest()[:16]
        self._rows: dict[str, int] = {}

    @property
    def array(self) -> Pixels:
        """All cached images, uint8 [M, C, *size], memory-mapped read-only."""
        self._read_index()
        if not self._rows:
            return np.zeros((0, *self._shape), dtype=np.uint8)
        shape = (len(self._rows), *self._shape)
        return np.memmap(self._folder / "pixels.u8", dtype=np.uint8, mode="r", shape=shape)

    def digests(self, paths: Sequence[Path | None]) -> list[str]:
        """Return the SHA-256 of each image; empty for a missing or unreadable one."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(lambda path: content_digest(path) if path else "", paths))

    def rows(
        self,
        paths: Sequence[Path | None],
        on_decode: Callable[[], None] | None = None,
        *,
        table_rows: Sequence[int] | NDArray[np.int64] | None = None,
    ) -> NDArray[np.int64]:
        """Return where each image is in `array`: int64 [N], -1 for a missing one.

        Images that are not cached yet are decoded on every core; ``on_decode`` is called after
        each. ``table_rows`` [N] lets an error name the spreadsheet rows.

        Raises
        ------
        DataError
            If images cannot be decoded: how many, and on which rows.
        """
        files = list(dict.fromkeys(path for path in paths if path is not None))
        digests = dict(zip(files, self.digests(files), strict=True))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            unreadable = self._add(digests, pool, on_decode)
        if unreadable:
            problems = [unreadable.get(digests[path], "") if path else "" for path in paths]
            raise DataError(_describe_unreadable(problems, table_rows, self._spec))
        return np.array(
            [-1 if path is None else self._rows[digests[path]] for path in paths],
            dtype=np.int64,
        )

    def _add(
        self,
        digests: dict[Path, str],
        pool: ThreadPoolExecutor,
        on_decode: Callable[[], None] | None,
    ) -> dict[str, str]:
        """Decode and append what is not there yet; return why digests cannot be decoded."""
        self._read_index()
        unreadable = {"": _UNOPENED} if "" in digests.values() else {}
        new = {
            digest: path for path, digest in digests.items() if digest and digest not in self._rows
        }
        if not new:
            return unreadable
        chunk = max(1, _CHUNK_BYTES // int(np.prod(self._shape)))
        with self._locked():
            self._read_index()  # another process may have added some meanwhile
            todo = [item for item in new.items() if item[0] not in self._rows]
            for start in range(0, len(todo), chunk):
                part = todo[start : start + chunk]
                decoded: dict[str, Pixels] = {}
                images = pool.map(partial(_decoded_or_why, spec=self._spec), [p for _, p in part])
                for (digest, _), image in zip(part, images, strict=True):
                    if isinstance(image, str):
                        unreadable[digest] = image
                    else:
                        decoded[digest] = image
                    if on_decode:
                        on_decode()
                self._append(decoded)
        return unreadable

    def _append(self, decoded: dict[str, Pixels]) -> None:
        size = int(np.prod(self._shape))
        with open(self._folder / "pixels.u8", "ab") as file:
            file.truncate(len(self._rows) * size)  # drops what a crash left behind
            file.seek(0, os.SEEK_END)
            for image in decoded.values():
                file.write(image.tobytes())
            file.flush()
            os.fsync(file.fileno())
        for digest in decoded:
            self._rows[digest] = len(self._rows)
        index = {"schema": 1, "shape": self._shape, "sha256": list(self._rows)}
        write_atomically(self._folder / "index.json", json.dumps(index), durable=True)

    def _read_index(self) -> None:
        """Learn what is cached; an index that does not suit the pixels is worth nothing."""
        try:
            content = json.loads((self._folder / "index.json").read_text(encoding="utf-8"))
            digests = content["sha256"]
            held = (self._folder / "pixels.u8").stat().st_size // int(np.prod(self._shape))
        except (FileNotFoundError, ValueError, KeyError):
            digests, held = [], 0
        self._rows = {
            digest: row for row, digest in enumerate(digests if len(digests) <= held else [])
        }

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._folder / "lock", "w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def formats_of(spec: ImageSpec) -> str:
    """Name the formats that are read."""
    return "NIfTI, npz, npy or DICOM" if spec.dims == 3 else "PNG, JPEG or DICOM"


def image_problems(
    paths: Sequence[Path | None], spec: ImageSpec, on_decode: Callable[[], None] | None = None
) -> list[str]:
    """Try every image and say why it cannot be decoded, "" where it can; nothing is written."""
    files = list(dict.fromkeys(path for path in paths if path is not None))
    problems: dict[Path | None, str] = {None: ""}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, why in zip(files, pool.map(partial(_problem, spec=spec), files), strict=True):
            problems[path] = why
            if on_decode:
                on_decode()
    return [problems[path] for path in paths]


def _problem(path: Path, spec: ImageSpec) -> str:
    image = _decoded_or_why(path, spec)
    return image if isinstance(image, str) else ""


def _decoded_or_why(path: Path, spec: ImageSpec) -> Pixels | str:
    try:
        return decode_image(path, spec)
    except DataError as error:
        return str(error)


def _describe_unreadable(
    problems: Sequence[str], table_rows: Sequence[int] | NDArray[np.int64] | None, spec: ImageSpec
) -> str:
    found = []
    for problem in sorted(set(problems) - {""}):
        bad = [i for i, other in enumerate(problems) if other == problem]
        where = "`medfusion site check` names the rows"
        if table_rows is not None:
            where = rows_text(table_rows[i] for i in bad)
        found.append(f"{plural(len(bad), 'image')} ({where}): {problem}")
    return (
        f"table of studies, column {spec.column!r}: expected readable {formats_of(spec)} files, "
        f"found {'; '.join(found)}; export them again or blank the cells"
    )


def _decode(data: bytes, spec: ImageSpec) -> Pixels:
    height, width = spec.plane
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            # large JPEG: decode at a lower resolution
            image.draft(_mode(spec), (2 * width, 2 * height))
            return _sized(_flatten(image, _mode(spec)), spec)
    except (*_DAMAGED, Image.DecompressionBombError):
        raise DataError(
            "an image is not a readable PNG or JPEG file (truncated or damaged)"
        ) from None


def _mode(spec: ImageSpec) -> str:
    return "L" if spec.channels == 1 else "RGB"


def _sized(image: Image.Image, spec: ImageSpec) -> Pixels:
    """Resize an 8-bit image, with antialiasing: [C, H, W]."""
    height, width = spec.plane
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized, dtype=np.uint8)
    return np.ascontiguousarray(pixels.reshape(height, width, -1).transpose(2, 0, 1))


def _flatten(image: Image.Image, mode: str) -> Image.Image:
    """Apply orientation, depth and alpha: an 8-bit image of the given mode."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        values = np.asarray(upright).astype(np.float64)
        depth = next(bits for bits in (8, 10, 12, 14, 16) if values.max() < 2**bits or bits == 16)
        grey = np.clip(np.rint(values * (255 / (2**depth - 1))), 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert(mode)
    if upright.mode in ("LA", "PA", "RGBA") or "transparency" in upright.info:
        layer = upright.convert("RGBA")
        black = Image.new("RGBA", layer.size, (0, 0, 0, 255))
        upright = Image.alpha_composite(black, layer).convert("RGB")
    return upright.convert(mode)
