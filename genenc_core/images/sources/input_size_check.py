"""Early warning about an input size that was given as width x height."""

import contextlib
import warnings

from genenc_core import spec
from genenc_core.images.containers.reader import ContainerReader
from genenc_core.images.sources import label_check, manifest


class TurnedSize(UserWarning):
    """The model's input is upright where the images lie, or the reverse."""


def check(listed: manifest.Manifest, option: str, size: tuple[int, int], channels: spec.Channels | None = None) -> None:
    """Warn if `size` (height, width), given by this option, is the width and height of the first image.

    Only these two numbers raise the warning: other sizes may be upright on purpose.
    """
    if listed.rows:
        with contextlib.closing(ContainerReader(channels)) as reader:
            found = label_check.row_size(listed, 0, reader)
        if found is not None and found.shown == size and size[0] != size[1]:
            height, width = size
            warnings.warn(
                f"{option} {height}x{width} is height x width, and images such as the first are {height} pixels wide "
                f"and {width} high: for their own shape give {width}x{height}",
                TurnedSize,
                stacklevel=3,
            )
