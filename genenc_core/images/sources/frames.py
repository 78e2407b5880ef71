"""Early warning about files with several frames or pages, of which only the first is encoded."""

import os
import random
import warnings
from pathlib import Path

from genenc_core import spec
from genenc_core.images.decode import further
from genenc_core.images.sources import folders, manifest

SAMPLED_FILES = 64
"""Files to check, evenly spread over the manifest; at most twice as many are."""
_EXTENSIONS = (".tif", ".tiff", ".gif", ".webp")


class MultipleFrames(UserWarning):
    """Files of which only the first frame or page is encoded."""


def check(listed: manifest.Manifest, channels: spec.Channels | None = None) -> None:
    """Warn if some of a sample of TIFF, GIF and WebP files hold more than the one frame that is encoded.

    With `channels` pages of a TIFF may be those of one frame.
    """
    paths = [] if listed.has_members else _sample(listed)
    more = [path for path in paths if _has_more(os.path.join(listed.root, folders.to_path(path)), channels)]  # noqa: PTH118
    if more:
        warnings.warn(
            f"{len(more)} of {len(paths)} TIFF, GIF and WebP files checked hold several frames, pages or channels as "
            f"pages, such as {more[0]!r}: only the first of each is encoded. If the others matter, take the pages of a "
            "TIFF with --frames all, write others to files of their own, and channels as one RGB image",
            MultipleFrames,
            stacklevel=2,
        )


def _sample(listed: manifest.Manifest) -> list[str]:
    """Return fewer than 2 * `SAMPLED_FILES` paths, evenly spread over the files that may hold several frames.

    One of each block of `size` files, at random, since kinds of files may alternate; the same ones each time.
    """
    kept: list[str] = []
    draw = random.Random(0)
    seen, size, wanted = 0, 1, 0
    for batch in listed.iter_columns(["path"]):
        for path in batch.column(0).to_pylist():
            if not path.lower().endswith(_EXTENSIONS):
                continue
            if seen == wanted:
                kept.append(path)
            if len(kept) == 2 * SAMPLED_FILES:
                kept, size = [draw.choice(kept[at : at + 2]) for at in range(0, len(kept), 2)], 2 * size
            seen += 1
            if seen % size == 0:
                wanted = seen + draw.randrange(size)
    return kept


def _has_more(path: str, channels: spec.Channels | None) -> bool:
    try:
        if not Path(path).is_file():  # opening a pipe would block
            return False
        with Path(path).open("rb") as file:
            return further.has_more(file, channels)
    except OSError:  # which the run reports
        return False
