"""The images of a source one by one, as tests like to look at them."""

from typing import Any, NamedTuple

from genenc_core.images import listing, sources


class Listed(NamedTuple):
    """One image of a `listing.Block`."""

    image_id: str
    path: str
    bytes: int
    mtime_ns: int


def images(source: sources.ImageSource, **options: Any) -> list[Listed]:
    """Return the images of a source."""
    return [
        Listed(*fields)
        for block in listing.iter_blocks(source, **options)
        for fields in zip(block.image_ids, block.paths, block.bytes, block.mtime_ns, strict=True)
    ]
