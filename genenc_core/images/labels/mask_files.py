"""Masks in image files of their own, one per image: binary masks, or label images with a value per region."""

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from genenc_core import errors
from genenc_core.images.decode import decode, headers, png, tiff, tiff_channels
from genenc_core.images.decode.decoded import ImageUnreadable
from genenc_core.images.labels.masks import Mask
from genenc_core.images.labels.region_table import Region

SUFFIXES: Final = (".png", ".tif", ".tiff")
_ENDINGS: Final = re.compile(r"(.+?)[_-](?:cp_masks?|masks?|seg|segmentation|labels?|instances?|inst)\Z", re.IGNORECASE)
"""What tools put behind the name of the image."""
_FULL: Final = 255
MOST_REGIONS: Final = 65_535
"""In one file."""


def regions(files: Sequence[Path], root: Path) -> Iterator[Region]:
    """Yield the masks of the files of a folder, of images named as the files below `root`, whatever their endings.

    Binary: every file has the values 0 and 255 alone (or 0 and 1): one region per file. Otherwise label images: every
    value but 0 is a region of that name.

    Raises:
        InputError: a file that is no image of one channel, or files of both kinds.
    """
    stems = _stems(files)
    binary: Path | None = None
    labels: Path | None = None
    for path, stem in zip(files, stems, strict=True):
        values, eight_bit = _read(path)
        found = np.unique(values)
        found = found[found != 0]
        if eight_bit and _FULL in found and len(found) > 1:
            raise errors.InputError(
                f"the mask {str(path)!r} has the value 255 beside {len(found) - 1} others, such as {found[0]}: it is a "
                "binary mask with blurred edges, or a label image with an area to ignore. Write it with the values 0 "
                "and 255 alone, or as a label image of 16 bits, or without 255"
            )
        if len(found) > MOST_REGIONS:
            raise errors.InputError(f"the mask {str(path)!r} has {len(found)} values: it is no label image")
        if len(found) and found.tolist() == [_FULL] and eight_bit:
            binary = binary or path
        elif found.tolist() not in ([], [1]):
            labels = labels or path
        if binary is not None and labels is not None:
            raise errors.InputError(
                f"the masks are of two kinds: {str(binary)!r} has the values 0 and 255, as a binary mask, and "
                f"{str(labels)!r} has others, as a label image: give one kind at a time, or write both as label images "
                "of 16 bits"
            )
        name = (path.parent.relative_to(root) / stem).as_posix()
        for value in found.tolist():
            yield Region(
                file=str(path),
                row="the mask" if value == _FULL and eight_bit else f"value {value}",
                image=name,
                name="1" if value == _FULL and eight_bit else str(value),
                mask=Mask.from_pixels(values == value),
                frame_size=(values.shape[1], values.shape[0]),
            )


def _stems(files: Sequence[Path]) -> list[str]:
    """Return the names of the images: those of the files, without what a tool put behind all of them."""
    matches = [_ENDINGS.fullmatch(path.stem) for path in files]
    if all(matches):
        return [match[1] for match in matches if match]
    return [path.stem for path in files]


def _read(path: Path) -> tuple[np.ndarray, bool]:
    """Return the values as stored `[H, W]`, and whether they have 8 bits; one bit counts as 0 and 255."""
    try:
        data = path.read_bytes()
        values, bits = _of_png(data) if data.startswith(headers.PNG_SIGNATURE) else _of_tiff(data)
    except ImageUnreadable as error:
        raise errors.InputError(f"cannot read the mask {str(path)!r}: {error}") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise errors.InputError(f"cannot read the mask {str(path)!r}: {errors.reason(error)}") from error
    if values.ndim != 2:
        raise errors.InputError(
            f"the mask {str(path)!r} has {values.shape[2]} channels: which colour is which region is not known. Write "
            "label images: one channel, 0 for none, and a value per region"
        )
    if values.dtype.kind not in "uib" or values.min() < 0:
        raise errors.InputError(
            f"the mask {str(path)!r} has values from {values.min():g}, of type {values.dtype}: write whole numbers, 0 "
            "for none, and a value per region"
        )
    return (values.astype(np.uint8) * _FULL, True) if bits == 1 else (values, bits == 8)


def _of_png(data: bytes) -> tuple[np.ndarray, int]:
    """Return the pixels and their bits; of a palette the indices."""
    parsed = png.parse(data)
    _refuse_turned(headers.exif_orientation(parsed.exif))
    with Image.open(io.BytesIO(data)) as opened:
        mode, values = opened.mode, np.asarray(opened)
    if mode == "L" and parsed.bits < 8:
        values = values // (_FULL // (2**parsed.bits - 1))  # the decoder expands them to 8 bits
    return values, 8 if mode == "P" else parsed.bits


def _of_tiff(data: bytes) -> tuple[np.ndarray, int]:
    """Return what is stored and its bits, whether white or black stands for 0."""
    with tiff_channels.opened(data) as file:
        if len(file.pages) > 1 or tiff.has_planes_behind(file):
            raise ImageUnreadable("it has several pages: write one label image per image, with a value per region")
        page = tiff.Page(file)
        _refuse_turned(page.orientation)
        decode.check_size(page.height, page.width, decode.MAX_PIXELS)
        values = page.stored()
        return values[..., 0] if values.shape[2:] == (1,) else values, page.bits


def _refuse_turned(orientation: int) -> None:
    if orientation != 1:
        raise ImageUnreadable(f"it states the orientation {orientation}: write it upright")
