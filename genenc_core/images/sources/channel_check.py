"""Early refusal of images whose channels are not those that the model takes."""

import contextlib
import os
from collections.abc import Iterator

import numpy as np
import tifffile

from genenc_core import errors, spec
from genenc_core.images.containers.reader import ContainerReader
from genenc_core.images.decode import channels, decode, load_image, tiff_channels
from genenc_core.images.decode.decoded import ImageUnreadable
from genenc_core.images.sources import manifest

SAMPLED_IMAGES = 8
_Found = tuple[int, tuple[str, ...]]


def check(listed: manifest.Manifest, wanted: spec.Channels) -> None:
    """Check that some of a sample of images have the channels that are wanted; others are rows of the run.

    Raises:
        InputError: none of those that can be read has; with the remedy.
    """
    refused = ""
    for name, (count, names) in _counts(listed, wanted):
        try:
            channels.chosen_of(count, wanted, names)
            return
        except ImageUnreadable as error:
            refused = refused or f"{name!r}: {error}"
    if refused:
        raise errors.InputError(f"no image that was looked at has the channels that the model takes. {refused}")


def _counts(listed: manifest.Manifest, wanted: spec.Channels) -> Iterator[tuple[str, _Found]]:
    """Yield names of images, evenly spread, and what channels they have; those that cannot be read are passed over."""
    rows = np.unique(np.linspace(0, listed.rows - 1, min(listed.rows, SAMPLED_IMAGES)).astype(int))
    with contextlib.closing(ContainerReader(wanted)) as reader:
        for row in rows.tolist():
            found = listed.read(row, row + 1)
            with contextlib.suppress(Exception):  # damage may raise anything; the run reports the image
                yield found.image_ids[0], _count(found.paths[0], found.members[0], reader)


def _count(path: str, member: str, reader: ContainerReader) -> _Found:
    """Return how many channels an image has, and their names."""
    if not member:
        if os.path.splitext(path)[1].lower() in (".tif", ".tiff"):  # noqa: PTH122
            with tifffile.TiffFile(path, _multifile=False) as file:
                layout = tiff_channels.Layout.of(file, named=True)
                return layout.channels, layout.names
        return channels.count_of(load_image.read(path)[0])
    content = reader.read(path, member, most_pixels=decode.MAX_PIXELS)
    if content.samples is not None:
        return int(content.samples.values.shape[2]), content.samples.names
    return channels.count_of(content.data) if content.pixels is None else (3, ())
