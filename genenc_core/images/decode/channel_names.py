"""Names of the channels of an image file, where it states them: OME-XML, ImageJ's labels, GDAL's band descriptions."""

import xml.etree.ElementTree as ET  # its parser expands no external entities, and few internal ones
from collections.abc import Sequence
from typing import Any, Final

from genenc_core.images.decode.decoded import ImageUnreadable

_GDAL_METADATA: Final = 42112
_LARGEST: Final = 64 * 2**20
"""Characters of a description that is parsed."""
_SHOWN: Final = 20


def of_tiff(file: Any, count: int) -> tuple[str, ...]:
    """Return the names of the channels of an open `tifffile.TiffFile` that has so many; () if it states none."""
    if file.is_ome:
        return _named(_of_ome(file.ome_metadata), count)
    if file.is_imagej:
        labels = (file.imagej_metadata or {}).get("Labels")
        return _named(list(labels) if isinstance(labels, list | tuple) else [], count)
    tag = file.pages[0].tags.get(_GDAL_METADATA)
    return () if tag is None else _named(_of_gdal(tag.value, count), count)


def _of_ome(text: object) -> list[str]:
    """Return the names of the channels of the first image of OME-XML; one of several samples stands for as many."""
    root = _parsed(text)
    pixels = None if root is None else root.find("{*}Image/{*}Pixels")
    if pixels is None:
        return []
    found: list[str] = []
    for channel in pixels.findall("{*}Channel"):
        samples = channel.get("SamplesPerPixel", "1")
        found += [channel.get("Name", "")] * (int(samples) if samples.isdecimal() and len(samples) < 5 else 1)
    return found


def _of_gdal(text: object, count: int) -> list[str]:
    """Return the descriptions of bands in GDAL's metadata."""
    root = _parsed(text)
    found = [""] * count
    for item in () if root is None else root.findall("Item"):
        sample = item.get("sample", "")
        if item.get("role") == "description" and sample.isdecimal() and len(sample) < 6 and int(sample) < count:
            found[int(sample)] = item.text or ""
    return found


def _parsed(text: object) -> ET.Element | None:
    if not isinstance(text, str) or len(text) > _LARGEST:
        return None
    try:
        return ET.fromstring(text.strip("\0 \n"))
    except ET.ParseError:
        return None


def _named(found: Sequence[object], count: int) -> tuple[str, ...]:
    """Return as many names as there are channels; () if there are others, or all are empty."""
    names = tuple(str(each).strip() for each in found)
    return names if len(names) == count and any(names) else ()


def positions(wanted: Sequence[str], names: Sequence[str], count: int) -> list[int]:
    """Return where channels are among those of a file, by their names, whatever the case of letters if that is unique.

    Args:
        wanted: the names.
        names: those of the file's channels; () if it states none.
        count: its channels.

    Raises:
        ImageUnreadable: the file has not those.
    """
    if not names:
        raise ImageUnreadable(
            f"the file names none of its channels, of which it has {count}: choose by number, from 0, such as "
            f"--channels {','.join(map(str, range(len(wanted))))}"
        )
    return [_position(name, names) for name in wanted]


def _position(name: str, names: Sequence[str]) -> int:
    for equal in (name.__eq__, lambda each: each.casefold() == name.casefold()):
        found = [at for at, each in enumerate(names) if equal(each)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ImageUnreadable(
                f"{len(found)} channels of the file are named {name!r}, {' and '.join(map(str, found))}: choose by "
                "number"
            )
    more = ", ..." if len(names) > _SHOWN else ""
    has = ", ".join(each or "(no name)" for each in names[:_SHOWN])
    raise ImageUnreadable(f"there is no channel {name!r}: the file has {has}{more}")
