"""Warning about rows whose order, that of names as text, is not that of the numbers in them."""

import itertools
import re
import warnings
from collections.abc import Iterator, Sequence

import pyarrow.compute as pc

from genenc_core.images.sources import image_source, manifest

CHECKED_NAMES = 10_000
"""Images, and files with images inside, whose names are checked."""


class TextOrder(UserWarning):
    """Names with numbers whose order as text is not that of the numbers."""


def check(source: image_source.ImageSource, listed: manifest.Manifest) -> None:
    """Warn where the rows of a source are in the order of their names as text, and not of the numbers in them.

    A list has an order of its own, and so has a tar archive whose members are not in the order of text.
    """
    if source.kind == "list":
        return
    for names in _ordered(listed) if source.kind == "members" else (_first(listed).image_ids,):
        before, after = _out_of_order(names)
        if before:
            warnings.warn(
                f"rows are in the order of their paths as text, in which {before!r} comes before {after!r}: join "
                "other tables by image_id, not by position",
                TextOrder,
                stacklevel=3,
            )
            return


def _first(listed: manifest.Manifest) -> manifest.Rows:
    return listed.read(0, min(listed.rows, CHECKED_NAMES))


def _ordered(listed: manifest.Manifest) -> Iterator[list[str]]:
    """Yield names that are in the order of text: of files with images inside, and of images in each of them."""
    first = _first(listed)
    rows = zip(first.paths, first.image_ids, strict=True)
    inside = ([name for _, name in group] for _, group in itertools.groupby(rows, lambda row: row[0]))
    for names in itertools.chain([list(itertools.islice(_files(listed), CHECKED_NAMES))], inside):
        if names == sorted(names):
            yield names


def _files(listed: manifest.Manifest) -> Iterator[str]:
    """Yield the files with images inside, in order."""
    last = None
    for batch in listed.iter_columns(["path"]):
        for path in pc.run_end_encode(batch.column(0)).values.to_pylist():
            if path != last:
                last = path
                yield path


def _out_of_order(names: Sequence[str]) -> tuple[str, str]:
    """Return two names that follow each other against their numbers; "" and "" if none do."""
    pairs = itertools.pairwise(names)
    return next((pair for pair in pairs if _by_numbers(pair[0]) > _by_numbers(pair[1])), ("", ""))


def _by_numbers(name: str) -> list[str | int]:
    parts: list[str | int] = list(re.split(r"([0-9]{1,18})", name))
    return [int(part) if at % 2 else part for at, part in enumerate(parts)]
