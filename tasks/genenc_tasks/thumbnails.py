"""Thumbnails of unreadable images as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Final

from genenc_core import text
from genenc_core.report import broken
from genenc_core.run.folder import RunFolder

MOST: Final = 12


def markdown(run: RunFolder, unreadable: Sequence[Mapping[str, object]]) -> str:
    """Return the first unreadable images of which something can be drawn, as a Markdown table; empty if there is none.

    Args:
        run: the run folder.
        unreadable: `row`, `image_id` and `reason` of each image.
    """
    rows = {int(str(item["row"])): item for item in unreadable[:MOST]}
    paths = {row: run.manifest.read(row, row + 1).paths[0] for row in rows}
    drawn = broken.drawn(list(paths.values()))
    lines = [
        f"| {_cell(rows[row]['image_id'])} | {_cell(rows[row]['reason'])} | ![]({drawn[path]}) |"
        for row, path in paths.items()
        if path in drawn
    ]
    return "\n".join(["| image | reason | what can be drawn |", "|---|---|---|", *lines]) if lines else ""


def _cell(value: object) -> str:
    return text.markdown(str(value))
