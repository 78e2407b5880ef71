"""Whether a file holds more than the one frame or page that is decoded."""

import struct
from typing import Any, BinaryIO

from PIL import GifImagePlugin, WebPImagePlugin

from genenc_core import spec
from genenc_core.images.decode import tiff, tiff_channels

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEAD = 12
_BYTE_COUNTS = (279, 325)
"""Tags of the bytes of each strip, or tile."""
_KINDS = {3: "H", 4: "I", 16: "Q"}
_MOST_STRIPS = 2**20


def has_more(file: BinaryIO, channels: spec.Channels | None) -> bool:
    """Return whether a TIFF, GIF or WebP file holds further frames; reduced versions and masks are none.

    With `channels` pages of a TIFF may be those of one frame. Damage, which decoding finds, is no further frame.
    """
    head = file.read(_HEAD)
    file.seek(0)
    try:
        if head.startswith(_TIFF):
            return not _is_alone(file, head) and _has_page(file, channels)
        if head.startswith(b"GIF8"):
            with GifImagePlugin.GifImageFile(file) as gif:
                return bool(gif.is_animated)
        if head.startswith(b"RIFF") and head.endswith(b"WEBP"):
            with WebPImagePlugin.WebPImageFile(file) as webp:
                return bool(webp.n_frames > 1)
    except Exception:  # parsers raise anything for damaged data
        return False
    return False


def _is_alone(file: BinaryIO, head: bytes) -> bool:
    """Return whether a TIFF's first page is its last, and the file has no room for planes behind it.

    Parsing all of its tags takes longer than decoding a small image.
    """
    order, big = "<" if head[:2] == b"II" else ">", head[2:4] in (b"+\0", b"\0+")
    number, count, entry = (order + form for form in (("Q", "Q", "HHQ8s") if big else ("I", "H", "HHI4s")))
    file.seek(8 if big else 4)
    file.seek(_read(number, file)[0])
    (tags,) = _read(f"{_read(count, file)[0] * struct.calcsize(entry)}s", file)
    (following,) = _read(number, file)
    pixels = 0
    for tag, kind, length, value in struct.iter_unpack(entry, tags):
        if tag in _BYTE_COUNTS and kind in _KINDS and length <= _MOST_STRIPS:
            values = f"{order}{length}{_KINDS[kind]}"
            if struct.calcsize(values) > len(value):
                file.seek(struct.unpack(number, value)[0])
                pixels = sum(_read(values, file))
            else:
                pixels = sum(struct.unpack_from(values, value))
    size = file.seek(0, 2)
    file.seek(0)
    return not following and size < 2 * pixels


def _read(form: str, file: BinaryIO) -> tuple[Any, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _has_page(file: BinaryIO, channels: spec.Channels | None) -> bool:
    import tifffile

    with tifffile.TiffFile(file) as opened:
        if channels is not None:
            return tiff_channels.Layout.of(opened).frames > 1
        if tiff.has_planes_behind(opened):
            return True
        if len(opened.pages) == 1:
            return False
        second: Any = opened.pages[1]
        return not (second.is_reduced or second.is_mask)
