"""Images of a source as individual records, for tests."""

from typing import Any, NamedTuple

from genenc_core.images.sources import image_source, listing


class Listed(NamedTuple):
    """One image of a `listing.Block`."""

    image_id: str
    path: str
    bytes: int
    mtime_ns: int


def images(source: image_source.ImageSource, **options: Any) -> list[Listed]:
    """Return the images of a source."""
    return [
        Listed(*fields)
        for block in listing.iter_blocks(source, **options)
        for fields in zip(block.image_ids, block.paths, block.bytes, block.mtime_ns, strict=True)
    ]
