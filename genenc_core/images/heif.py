"""HEIC and AVIF, which are read where their decoders are installed."""

import functools
import importlib.util
from collections.abc import Mapping

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
    """Return "AVIF" or "HEIC" by the brands of a file, the main one first; None for others, such as videos."""
    if data[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(data[:4], "big"), 4096)
    brands = (bytes(data[at : at + 4]) for at in (8, *range(16, end, 4)))
    return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), None)


@functools.cache
def is_installed(name: str) -> bool:
    """Return whether the decoder of "AVIF" or "HEIC" is installed."""
    return importlib.util.find_spec(_MODULES[name]) is not None


def extensions() -> tuple[str, ...]:
    """Return the ends of names of the kinds whose decoders are installed."""
    return tuple(end for name, ends in _EXTENSIONS.items() if is_installed(name) for end in ends)


def plugin(name: str) -> type[ImageFile.ImageFile]:
    """Return Pillow's plugin for "AVIF" or "HEIC"; an AVIF's rotation is in its EXIF, a HEIC's is applied.

    Raises:
        ImportError: its decoder is not installed.
    """
    if name == "AVIF":
        from PIL.AvifImagePlugin import AvifImageFile

        return AvifImageFile
    from pillow_heif import HeifImageFile

    found: type[ImageFile.ImageFile] = HeifImageFile
    return found


def remedy(name: str) -> str:
    """Return why a file is not read, and what to do."""
    return f"a file of the kind {name}, whose decoder is not installed: {_REMEDIES[name]}"


def remedy_of(extension: str) -> str | None:
    """Return what to do so that files whose names end so are read; None when nothing helps or is needed."""
    name = next((name for name, ends in _EXTENSIONS.items() if extension in ends), None)
    return None if name is None or is_installed(name) else _REMEDIES[name]
