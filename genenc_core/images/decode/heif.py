"""Detection of HEIC and AVIF, and their optional decoders."""

import functools
import importlib.util
from collections.abc import Iterator, Mapping

from PIL import ImageFile

_BRANDS: Mapping[bytes, str] = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "HEIC"),
}
_MODULES: Mapping[str, str] = {"AVIF": "PIL._avif", "HEIC": "pillow_heif"}
_EXTENSIONS: Mapping[str, tuple[str, ...]] = {"AVIF": ("avif",), "HEIC": ("heic", "heif", "hif")}
_REMEDIES: Mapping[str, str] = {
    "AVIF": "install Pillow 11.3 or later, built with AVIF",
    "HEIC": "install genenc[heif] (pillow-heif)",
}


def kind(data: bytes | bytearray) -> str | None:
    """Return "AVIF" or "HEIC" by the brands of a file, major brand first; None for others, such as videos."""
    if data[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(data[:4], "big"), 4096)
    brands = (bytes(data[at : at + 4]) for at in (8, *range(16, end, 4)))
    return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), None)


def is_cropped(data: bytes | bytearray) -> bool:
    """Return whether a file has a clean aperture, a crop of its pixels (`clap`, ISO/IEC 14496-12)."""
    return any(name == b"meta" and b"clap" in data[start:end] for name, start, end in _boxes(data))


def bits(data: bytes | bytearray) -> int:
    """Return the bits per channel of an AVIF or HEIC by its codec's configuration; 8 for other files.

    `av1C` is defined by AV1 in ISOBMFF, 2.3, `hvcC` by ISO/IEC 14496-15, 8.3.3.
    """
    codec = {"AVIF": b"av1C", "HEIC": b"hvcC"}.get(kind(data) or "", b"")
    for name, start, end in _boxes(data):
        at = data.find(codec, start, end) + 4
        if not codec or name != b"meta" or at < 4:
            continue
        if codec == b"hvcC":
            return 8 + (data[at + 17] & 7) if len(data) > at + 17 else 8
        if len(data) > at + 2:
            is_high, is_twelve = data[at + 2] & 0x40, data[at + 2] & 0x20
            return 12 if is_high and is_twelve else 10 if is_high else 8
    return 8


def is_truncated(data: bytes | bytearray) -> bool:
    """Return whether a file ends before its pixels or metadata do; libheif renders such tiles as one colour.

    Also if its pixels end in zeros, as a download or copy leaves that broke off in a file of the whole size.
    """
    for name, start, end in _boxes(data):
        if name in (b"mdat", b"meta", b"moov") and end > len(data):
            return True
        if name == b"mdat" and _zeros_at_end(data[start:end]) > max(_MOST_ZEROS, (end - start) // 50):
            return True
    return False


_MOST_ZEROS = 16
"""Zero bytes at the end of compressed pixels; encoders here wrote 3 at most."""


def _zeros_at_end(data: bytes | bytearray) -> int:
    return len(data) - len(data.rstrip(b"\0"))


def _boxes(data: bytes | bytearray) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, start, declared end) of the top-level boxes (ISO/IEC 14496-12, 4.2)."""
    start = 0
    while len(head := data[start : start + 16]) >= 8:
        size = int.from_bytes(head[:4], "big")
        if size == 1:  # 64-bit size
            size = int.from_bytes(head[8:], "big")
        end = start + size if size else len(data)
        yield bytes(head[4:8]), start, end
        if size < 8:  # extends to the end of the file, or invalid
            return
        start = end


@functools.cache
def is_installed(name: str) -> bool:
    """Return whether the decoder of "AVIF" or "HEIC" is installed."""
    return importlib.util.find_spec(_MODULES[name]) is not None


def extensions() -> tuple[str, ...]:
    """Return the file name extensions of the installed decoders."""
    return tuple(end for name, ends in _EXTENSIONS.items() if is_installed(name) for end in ends)


def plugin(name: str) -> type[ImageFile.ImageFile]:
    """Return Pillow's plugin for "AVIF" or "HEIC"; it reports an AVIF's rotation as EXIF and applies a HEIC's.

    Raises:
        ImportError: its decoder is not installed.
    """
    if name == "AVIF":
        from PIL.AvifImagePlugin import AvifImageFile

        return AvifImageFile
    from pillow_heif import HeifImageFile

    heif_plugin: type[ImageFile.ImageFile] = HeifImageFile
    return heif_plugin


def not_installed(name: str) -> str:
    """Return the error message for a file whose decoder is not installed."""
    return f"the decoder for {name} is not installed: {_REMEDIES[name]}"


def remedy_for(extension: str) -> str | None:
    """Return how to enable reading files with this extension; None if it is enabled or cannot be."""
    name = next((name for name, ends in _EXTENSIONS.items() if extension in ends), None)
    return None if name is None or is_installed(name) else _REMEDIES[name]
