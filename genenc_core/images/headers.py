"""What the first bytes of an image file say: a JPEG's frame, an EXIF orientation, or that it is no image at all."""

import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SOF_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SOS_MARKER, _APP1_MARKER = 0xDA, 0xE1
_SEGMENT = struct.Struct(">BBH")
_EXIF_MARK = b"Exif\0\0"
_TIFF_ORDERS: Mapping[bytes, str] = {b"II*\0": "<", b"MM\0*": ">"}
_ORIENTATION_TAG = 0x0112
_TIFF_INTEGERS: Mapping[int, str] = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}

_NOT_IMAGES: Mapping[bytes, str] = {
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
    b"<?xml": "an XML document",
    b"<svg": "an SVG drawing",
    b"%pdf": "a PDF document",
    b"version https://git-lfs": "a Git LFS pointer, fetch the real file",
    b"pk\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "gzip data",
    b"\x89hdf": "an HDF5 file",
}


class JpegHeader(NamedTuple):
    """The frame of a JPEG as stored, before any rotation."""

    height: int
    width: int
    components: int
    bits: int
    orientation: int
    many_scans: bool
    """Whether a decoder goes on reading scans after the first: progressive, or not all components in one scan."""

    @property
    def plain(self) -> bool:
        """Whether it is grey or colour, of 8 bits."""
        return self.bits == 8 and self.components in (1, 3)


def jpeg_header(data: bytes | bytearray) -> JpegHeader | None:
    """Return the frame of a JPEG, or None when `data` is no JPEG or has no plain marker sequence up to its pixels.

    What libjpeg could read otherwise than this function (markers without a length, a second frame) is not plain.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    frame: tuple[int, int, int, int] | None = None
    progressive = False
    exif = b""
    at = 2
    for at, marker, length in _jpeg_segments(data):
        if marker == _SOS_MARKER:
            break
        if marker < 0xC0 or 0xD0 <= marker <= 0xD9 or length < 2:
            return None
        if marker in _SOF_MARKERS:
            if frame is not None or at + 10 > len(data):
                return None
            frame = struct.unpack_from(">BHHB", data, at + 4)
            progressive = marker & 0x03 == 0x02
        elif marker == _APP1_MARKER:
            exif = _with_exif(exif, data, at, length)
    if frame is None or 0 in frame or at + 5 > len(data) or data[at + 1] != _SOS_MARKER:
        return None
    return JpegHeader(
        bits=frame[0],
        height=frame[1],
        width=frame[2],
        components=frame[3],
        orientation=exif_orientation(exif),
        many_scans=progressive or data[at + 4] < frame[3],
    )


def jpeg_orientation(data: bytes | bytearray) -> int:
    """Return the EXIF Orientation (1 to 8) of a JPEG; 1 when there is none.

    The first EXIF segment with a TIFF header counts; further ones continue it, as a segment ends at 64 KiB.
    """
    exif = b""
    for at, marker, length in _jpeg_segments(data):
        if marker == _SOS_MARKER:
            break
        if marker == _APP1_MARKER:
            exif = _with_exif(exif, data, at, length)
    return exif_orientation(exif)


def _with_exif(exif: bytes, data: bytes | bytearray, at: int, length: int) -> bytes:
    """Return what EXIF was collected before the APP1 segment at a position, and that of the segment."""
    if not data.startswith(_EXIF_MARK, at + 4):
        return exif
    body = bytes(data[at + 4 + len(_EXIF_MARK) : at + 2 + length])
    return exif + body if exif or body[:4] in _TIFF_ORDERS else exif


def _jpeg_segments(data: bytes | bytearray) -> Iterator[tuple[int, int, int]]:
    """Yield (position, marker, length) of the segments of a JPEG, until one does not begin where the last one ends."""
    at = 2
    while at + 4 <= len(data):
        prefix, marker, length = _SEGMENT.unpack_from(data, at)
        if prefix != 0xFF:
            return
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        yield at, marker, length
        at += 2 + length


def exif_orientation(exif: bytes) -> int:
    """Return the Orientation (1 to 8) of an EXIF block, marked "Exif" or not; 1 when there is no valid one."""
    tiff = exif.removeprefix(_EXIF_MARK)
    order = _TIFF_ORDERS.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack_from(order + "HHI", tiff, entry)
            if tag == _ORIENTATION_TAG and kind in _TIFF_INTEGERS and count:
                code = order + _TIFF_INTEGERS[kind]
                # Up to four bytes stand in the entry itself, more elsewhere; the first value counts.
                inside = count * struct.calcsize(code) <= 4
                (place,) = (entry + 8,) if inside else struct.unpack_from(order + "I", tiff, entry + 8)
                return valid_orientation(struct.unpack_from(code, tiff, place)[0])
    except struct.error:  # a damaged block says nothing; the pixels are still good
        return 1
    return 1


def valid_orientation(value: object) -> int:
    """Return an EXIF orientation as it is when it is 1 to 8, else 1."""
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def what_instead(data: bytes | bytearray) -> str:
    """Return in a few words what `data` seems to be, given that it is no image that can be read."""
    start = bytes(data[:64]).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for prefix, kind in _NOT_IMAGES.items():
        if start.startswith(prefix):
            return f"not an image: {kind}"
    if data[4:8] == b"ftyp":
        return "not a supported image: a video, or an image of another kind in its container"
    return f"not a known image format: begins with {bytes(data[:8])!r}"
