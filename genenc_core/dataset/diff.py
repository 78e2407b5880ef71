"""The difference of two versions: which images were added, removed, encoded again or renamed."""

import dataclasses

import numpy as np

from genenc_core.dataset import origins, rows
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.dataset.rows import CurrentRows
from genenc_core.text import plural

NAMED = 20
"""Names that are given of each kind, unless told otherwise."""
_SHOWN = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Names:
    """How many images, and the first names of them."""

    count: int
    first: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """How a version differs from another. Compaction is no difference: the rows are the same."""

    versions: tuple[int, int]
    rows: tuple[int, int]
    added: Names
    """In the order of the second version."""
    removed: Names
    """In the order of the first version."""
    encoded_again: Names
    """In both, with a row that was encoded anew: another file, other points, or tried again."""
    renamed: Names
    """The same row under another name, the new one."""
    renamed_from: tuple[str, ...]
    """The earlier names of `renamed.first`."""

    @property
    def same(self) -> bool:
        """Whether both have the same images with the same rows."""
        return not any(names.count for names in (self.added, self.removed, self.encoded_again, self.renamed))

    def lines(self) -> list[str]:
        """Return the difference as text."""
        (old, new), (before, after) = self.versions, self.rows
        found = [f"version {old} -> {new}: {before} -> {plural(after, 'image')}{', the same rows' * self.same}"]
        for names, word in ((self.added, "added"), (self.removed, "removed"), (self.encoded_again, "encoded again")):
            found += _line(names, word, names.first)
        pairs = [f"{one} -> {other}" for one, other in zip(self.renamed_from, self.renamed.first, strict=True)]
        return found + _line(self.renamed, "renamed", pairs)


def diff(folder: DatasetFolder, one: int | str, other: int | str, *, most: int = NAMED) -> Diff:
    """Compare two versions, given by number or tag, in this order.

    Args:
        folder: the dataset.
        one: the version that is compared with.
        other: the version whose difference is told.
        most: names of each kind to return; the counts are exact.

    Raises:
        InputError: there is no such version, or it was pruned.
        StoreError: a document or manifest is missing or damaged.
    """
    versions = folder.version(one), folder.version(other)
    old, new = (rows.current(folder, version) for version in versions)
    position = rows.index(new, old)
    kept_old = np.zeros(len(old), bool)
    kept_old[position[position >= 0]] = True
    added, removed = np.flatnonzero(position < 0), np.flatnonzero(~kept_old)
    before, after = (_keys(folder, known) for known in (old, new))
    common = np.flatnonzero(position >= 0)
    again = common[after[common] != before[position[common]]]
    _, at_old, at_new = np.intersect1d(before[removed], after[added], return_indices=True)
    order = np.argsort(at_new)
    at_old, at_new = removed[at_old[order]], added[at_new[order]]
    return Diff(
        versions=(versions[0].version, versions[1].version),
        rows=(len(old), len(new)),
        added=_names(new, np.setdiff1d(added, at_new), most),
        removed=_names(old, np.setdiff1d(removed, at_old), most),
        encoded_again=_names(new, again, most),
        renamed=_names(new, at_new, most),
        renamed_from=_names(old, at_old, most).first,
    )


def _keys(folder: DatasetFolder, known: CurrentRows) -> np.ndarray:
    """Return a number for each row that tells by which part, as which row, it was encoded."""
    part, row = origins.resolved(folder, known.part, known.row)
    keys: np.ndarray = (part << 33) + row
    return keys


def _names(known: CurrentRows, positions: np.ndarray, most: int) -> Names:
    return Names(len(positions), tuple(known.text("image_id", positions[: max(most, 0)])))


def _line(names: Names, word: str, shown: tuple[str, ...] | list[str]) -> list[str]:
    more = ", ..." if names.count > min(_SHOWN, len(shown)) else ""
    return [f"  {names.count} {word}: {', '.join(shown[:_SHOWN])}{more}"] if names.count else []
