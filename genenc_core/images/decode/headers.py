"""Image headers: JPEG frames, EXIF orientations, and the kind of files that are not images."""

import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SOF_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BASELINE_MARKER = 0xC0
_SOS_MARKER, _APP1_MARKER, _APP14_MARKER = 0xDA, 0xE1, 0xEE
_SAMPLINGS: Mapping[bytes, tuple[bytes, ...]] = {
    b"\1": (b"\x11",),
    b"\1\2\3": (b"\x11\x11\x11", b"\x21\x11\x11", b"\x22\x11\x11"),
}
"""By component ids, those of JFIF, which no decoder takes for RGB."""
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
    """The frame header of a JPEG as stored, before any rotation."""

    height: int
    width: int
    components: int
    bits: int
    orientation: int
    many_scans: bool
    """Whether there are scans after the first: progressive, or not all components in one scan."""

    @property
    def plain(self) -> bool:
        """Whether it is 8-bit grey or colour."""
        return self.bits == 8 and self.components in (1, 3)

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) after rotation."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def jpeg_header(data: bytes | bytearray) -> JpegHeader | None:
    """Return the frame header of a JPEG, or None if `data` is not a JPEG with a plain marker sequence up to its pixels.

    Anything that libjpeg might read differently (markers without a length, a second frame) is not plain.
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


def is_usual_baseline(data: bytes | bytearray) -> bool:
    """Return whether a JPEG is baseline and grey, or unambiguously YCbCr at 4:4:4, 4:2:2 or 4:2:0."""
    frame: tuple[bytes, bytes] | None = None
    for at, marker, _length in _jpeg_segments(data):
        if marker == _SOS_MARKER:
            break
        if marker in _SOF_MARKERS:
            if marker != _BASELINE_MARKER or frame is not None or at + 10 > len(data):
                return False
            components = bytes(data[at + 10 : at + 10 + 3 * data[at + 9]])
            frame = components[0::3], components[1::3]
        elif marker == _APP14_MARKER and data.startswith(b"Adobe", at + 4) and data[at + 15 : at + 16] != b"\1":
            return False
    return frame is not None and frame[1] in _SAMPLINGS.get(frame[0], ())


def without_exif(data: bytes | bytearray) -> bytes | bytearray:
    """Return a JPEG with the marks of its EXIF segments blanked; a copy if it has any."""
    marks = [
        at + 4
        for at, marker, _length in _jpeg_segments(data)
        if marker == _APP1_MARKER and data.startswith(_EXIF_MARK, at + 4)
    ]
    if not marks:
        return data
    copied = bytearray(data)
    for at in marks:
        copied[at : at + len(_EXIF_MARK)] = bytes(len(_EXIF_MARK))
    return copied


def jpeg_orientation(data: bytes | bytearray) -> int:
    """Return the EXIF orientation (1 to 8) of a JPEG; 1 if there is none.

    The first EXIF segment with a TIFF header counts; further ones continue it, since a segment is limited to 64 KiB.
    """
    exif = b""
    for at, marker, length in _jpeg_segments(data):
        if marker == _SOS_MARKER:
            break
        if marker == _APP1_MARKER:
            exif = _with_exif(exif, data, at, length)
    return exif_orientation(exif)


def _with_exif(exif: bytes, data: bytes | bytearray, at: int, length: int) -> bytes:
    """Return `exif` extended by the EXIF data of the APP1 segment at position `at`, if it has any."""
    if not data.startswith(_EXIF_MARK, at + 4):
        return exif
    body = bytes(data[at + 4 + len(_EXIF_MARK) : at + 2 + length])
    return exif + body if exif or body[:4] in _TIFF_ORDERS else exif


def _jpeg_segments(data: bytes | bytearray) -> Iterator[tuple[int, int, int]]:
    """Yield (position, marker, length) of consecutive JPEG segments, up to the first gap."""
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
    """Return the orientation (1 to 8) of an EXIF block, with or without the "Exif" mark; 1 if there is no valid one."""
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
                # Values of up to four bytes are in the entry itself; the first value counts.
                inside = count * struct.calcsize(code) <= 4
                (place,) = (entry + 8,) if inside else struct.unpack_from(order + "I", tiff, entry + 8)
                return valid_orientation(struct.unpack_from(code, tiff, place)[0])
    except struct.error:  # damaged EXIF; the pixels are still good
        return 1
    return 1


def valid_orientation(value: object) -> int:
    """Return an EXIF orientation if it is 1 to 8, else 1."""
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def describe_unknown(data: bytes | bytearray) -> str:
    """Return a short description of data that is not a supported image."""
    start = bytes(data[:64]).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for prefix, kind in _NOT_IMAGES.items():
        if start.startswith(prefix):
            return f"not an image: {kind}"
    if data[4:8] == b"ftyp":
        return "not a supported image: a video, or an unsupported kind of image in the same container"
    return f"not a known image format: begins with {bytes(data[:8])!r}"
