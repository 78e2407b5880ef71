"""Files that hold several frames or pages, noticed before anything is encoded: only the first is."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import GifImagePlugin, TiffImagePlugin, WebPImagePlugin

from genenc_core.images import manifest, names

SAMPLED_FILES = 64
"""Files, evenly spread over the manifest, that are looked into; at most twice as many."""
_PLUGINS: Mapping[str, Any] = {
    **dict.fromkeys((".tif", ".tiff"), TiffImagePlugin.TiffImageFile),
    ".gif": GifImagePlugin.GifImageFile,
    ".webp": WebPImagePlugin.WebPImageFile,
}
_NEW_SUBFILE_TYPE = 254
_REDUCED_OR_MASK = 1 | 4


class MoreFrames(UserWarning):
    """Files of which only the first frame or page is encoded."""


def check(listed: manifest.Manifest) -> None:
    """Look into some TIFF, GIF and WebP files of a manifest; warn where they hold more than is encoded."""
    paths = _spread(listed)
    more = [path for path in paths if _has_more(os.path.join(listed.root, names.to_path(path)))]  # noqa: PTH118
    if more:
        warnings.warn(
            f"{len(more)} of {len(paths)} TIFF, GIF and WebP files looked at hold several frames, pages or channels as "
            f"pages, such as {more[0]!r}: only the first of each is encoded. If the others matter, write each to a "
            "file of its own, or channels as one RGB image",
            MoreFrames,
            stacklevel=2,
        )


def _spread(listed: manifest.Manifest) -> list[str]:
    """Return fewer than twice `SAMPLED_FILES` paths, evenly spread over those that may hold several frames."""
    kept: list[str] = []
    step = seen = 0
    for batch in listed.iter_columns(["path"]):
        for path in map(str, batch.column(0)):
            if os.path.splitext(path)[1].lower() not in _PLUGINS:  # noqa: PTH122
                continue
            if seen % (1 << step) == 0:
                kept.append(path)
            if len(kept) == 2 * SAMPLED_FILES:
                kept, step = kept[::2], step + 1
            seen += 1
    return kept


def _has_more(path: str) -> bool:
    plugin = _PLUGINS[Path(path).suffix.lower()]
    try:
        if not Path(path).is_file():  # no pipe is waited for
            return False
        with plugin(path) as image:
            image.seek(1)
            # Smaller versions and masks of the first page are no images of their own.
            kind = image.tag_v2.get(_NEW_SUBFILE_TYPE, 0) if isinstance(image, TiffImagePlugin.TiffImageFile) else 0
            return not int(kind) & _REDUCED_OR_MASK
    except Exception:  # a file that ends here has one; of a hostile one the run says what is wrong
        return False
