"""Masks in image files of their own, one per image: binary masks, or label images with a value per region."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from genenc_core import errors
from genenc_core.images.labels.masks import Mask
from genenc_core.images.labels.region_table import Region

SUFFIXES: Final = (".png", ".tif", ".tiff")
_ENDINGS: Final = re.compile(r"(.+?)[_-](?:cp_masks?|masks?|seg|segmentation|labels?|instances?|inst)\Z", re.IGNORECASE)
"""What tools put behind the name of the image."""
_GREY: Final = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
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
    """Return the values `[H, W]`, and whether they have 8 bits; one bit counts as 0 and 255."""
    try:
        with Image.open(path) as opened:
            mode = opened.mode
            if mode not in _GREY:
                raise errors.InputError(
                    f"the mask {str(path)!r} is of the mode {mode}, with {len(opened.getbands())} channels: which "
                    "colour is which region is not known. Write label images: one channel, 0 for none, and a value per "
                    "region"
                )
            values = np.asarray(opened)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise errors.InputError(f"cannot read the mask {str(path)!r}: {errors.reason(error)}") from error
    if mode == "1":
        return values.astype(np.uint8) * _FULL, True
    return values, mode in ("L", "P")
