"""What a sample of images is: formats, pixels, sizes, orientations, and which cannot be read."""

import contextlib
import io
import re
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import tifffile
from PIL import Image

from genenc_core import spec, text
from genenc_core.encoding import cancellation
from genenc_core.images.containers import kinds
from genenc_core.images.containers.reader import ContainerReader
from genenc_core.images.decode import heif, tiff_channels
from genenc_core.images.decode.limits import Limits
from genenc_core.images.load.loader import ImageLoader
from genenc_core.images.sources.manifest import Manifest

UNREADABLE_SHOWN: Final = 20
_MODES: Final = {
    "1": "1-bit",
    "L": "8-bit grey",
    "P": "8-bit palette",
    "RGB": "8-bit RGB",
    "RGBA": "8-bit RGB with alpha",
    "LA": "8-bit grey with alpha",
    "CMYK": "8-bit CMYK",
    "YCbCr": "8-bit YCbCr",
    "I": "32-bit grey",
    "I;16": "16-bit grey",
    "I;16B": "16-bit grey",
    "F": "32-bit float grey",
    "HDR": "float RGB",
}
_PNG_COLOURS: Final = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
_TIFF_COLOURS: Final = {
    **dict.fromkeys(("MINISWHITE", "MINISBLACK", "MASK"), "grey"),
    "PALETTE": "palette",
    "SEPARATED": "CMYK",
    "YCBCR": "YCbCr",
    "CIELAB": "Lab",
    "ICCLAB": "Lab",
    "ITULAB": "Lab",
}
_FLOAT: Final = 3
_NAMED: Final = 8
"""Channels that are named."""
"""TIFF's SampleFormat."""


@dataclass(kw_only=True)
class Sample:
    """Rows of a manifest as the model sees them, and what their files are."""

    rows: np.ndarray
    """Of the readable images, int64 `[n]`."""
    sizes: np.ndarray
    """Height and width of the upright sources, int64 `[n, 2]`."""
    affines: np.ndarray
    """Source to model pixels, float64 `[n, 4]`: scale x and y, offset x and y."""
    orientations: np.ndarray
    """EXIF, uint8 `[n]`."""
    pixels: dict[int, np.ndarray]
    """Of the rows that are kept, uint8 RGB or float32 channels, `[C, H, W]`."""
    unreadable: dict[int, str]
    """Row -> reason."""
    formats: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    """Bits and colours, such as `16-bit grey`."""


def look(listed: Manifest, preprocessing: spec.Preprocessing, *, keep: int, workers: int, limits: Limits) -> Sample:
    """Decode all images of a manifest, in decode workers.

    Args:
        listed: the images.
        preprocessing: how they are fitted.
        keep: how many to keep the pixels of, evenly spread.
        workers: decode workers.
        limits: bounds per image.

    Raises:
        OSError: a fault of the volume, not of an image.
        Stopped: a stop was requested.
    """
    wanted = {int(row) for row in np.linspace(0, listed.rows - 1, min(keep, listed.rows)).round()}
    found = Sample(
        rows=np.empty(0, np.int64),
        sizes=np.empty((0, 2), np.int64),
        affines=np.empty((0, 4)),
        orientations=np.empty(0, np.uint8),
        pixels={},
        unreadable={},
    )
    with ImageLoader(listed, preprocessing, workers=workers, batch=min(16, listed.rows), limits=limits) as loader:
        for batch in loader.iter_batches(0, listed.rows):
            found.rows = np.concatenate([found.rows, batch.rows])
            found.sizes = np.concatenate([found.sizes, np.stack([batch.heights, batch.widths], axis=1)])
            found.affines = np.concatenate([found.affines, batch.affines])
            found.orientations = np.concatenate([found.orientations, batch.orientations])
            found.unreadable |= {item.row: item.reason for item in batch.unreadable}
            images = (image for part in batch.parts for image in part)
            for row, image in zip(batch.rows.tolist(), images, strict=True):
                if row in wanted:
                    found.pixels[row] = image.numpy().copy()
            batch.release()
            cancellation.current().raise_if_cancelled()
    # Only files that a worker has decoded: what broke one must not break this process.
    with contextlib.closing(ContainerReader(preprocessing.channels)) as reader:
        for row in found.rows.tolist():
            cancellation.current().raise_if_cancelled()
            (path,), (member,) = listed.places(listed.read(row, row + 1))
            form, kind = _described(reader, path, member, limits, preprocessing.channels)
            found.formats[form] += 1
            found.kinds[kind] += 1
    return found


def _described(
    reader: ContainerReader, path: str, member: str, limits: Limits, channels: spec.Channels | None
) -> tuple[str, str]:
    """Return the format, and bits and colours, of an image or a container's member."""
    if not member:
        with contextlib.suppress(OSError), Path(path).open("rb") as file:
            form, kind = describe_file(file)
            if channels is None or form != "TIFF":
                return form, kind
            file.seek(0)
            return form, _channels_of_tiff(file)
        return "unknown", "unknown"
    content = reader.read(path, member, most_pixels=limits.pixels)
    far = kinds.is_remote(path)
    kind = kinds.remote_extension(path) if far else kinds.extension(kinds.place_of(path))
    kind = "" if far and kind != "tar" else kind
    if content.samples is not None:
        values = content.samples.values
        said = f"{text.plural(values.shape[2], 'channel')}{_listed(content.samples.names)}"
        return f"frame of {kind}" if kind else "object", f"{values.dtype}, {said}"
    if content.pixels is None:
        form, pixels = describe_file(io.BytesIO(content.data))
        return f"{form} in {kind}" if kind else form, pixels
    return f"frame of {kind}", "8-bit RGB, as read"


def _listed(names: tuple[str, ...]) -> str:
    return f" ({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})" if names else ""


def _channels_of_tiff(file: BinaryIO) -> str:
    """Return the type and channels of a TIFF, of which pages may be channels."""
    with contextlib.suppress(Exception), tifffile.TiffFile(file, _multifile=False) as tiff:
        layout = tiff_channels.Layout.of(tiff, named=True)
        return f"{tiff.pages[0].dtype}, {text.plural(layout.channels, 'channel')}{_listed(layout.names)}"
    return "unknown"


def describe_file(file: BinaryIO) -> tuple[str, str]:
    """Return the format, and bits and colours, of an image file from its header; `unknown` if it does not say."""
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        head = file.read(32)
        file.seek(0)
        if head[1:4] == b"PNG":
            return "PNG", f"{head[24]}-bit {_PNG_COLOURS[head[25]]}"
        if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            with tifffile.TiffFile(file) as tiff:
                return "TIFF", _tiff_kind(tiff.pages[0])
        if (bits := _pnm_bits(head)) is not None:
            return "PNM", f"{bits}-bit {'RGB' if head[1:2] in b'36' else 'grey'}"
        if heif.kind(head) == "HEIC":
            with heif.plugin("HEIC")(file) as image:
                return "HEIC", _MODES.get(image.mode, image.mode).replace("8", str(image.info.get("bit_depth", 8)), 1)
        with Image.open(file) as image:
            form = (image.format or "unknown").replace("PPM", "PNM")
            mode = "I;16" if (form, image.mode) == ("PNM", "I") else image.mode
            kind = _MODES.get(mode, mode)
        if form == "AVIF":  # which Pillow reduces to 8 bits
            file.seek(0)
            return form, kind.replace("8", str(heif.bits(file.read(2**16))), 1)
        return form, kind
    return "unknown", "unknown"


def _pnm_bits(head: bytes) -> int | None:
    """Return the bits of a PGM or PPM, which Pillow reduces or widens; None if its header is another's or goes on."""
    found = re.match(rb"P[2356]\s+\d+\s+\d+\s+(\d{1,5})\s", head)
    return None if found is None else 8 if int(found[1]) < 256 else 16


def _tiff_kind(page: Any) -> str:
    bits, count = page.bitspersample, int(page.samplesperpixel)
    bits = max(bits) if isinstance(bits, tuple) else bits
    number = "float " if page.sampleformat == _FLOAT else ""
    colours = _TIFF_COLOURS.get(page.photometric.name, page.photometric.name)
    expected = {"grey": 1, "palette": 1, "CMYK": 4}.get(colours, 3)
    more = f" with {count - expected} more channels" if count > expected else ""
    return f"{bits}-bit {number}{colours}{more}"
