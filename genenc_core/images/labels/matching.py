"""Streaming match of the image names of a points file to manifest rows."""

import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from types import MappingProxyType

from genenc_core import errors

_SHOWN = 3
_DEEPLABCUT = "labeled-data"
"""First folder of the image names in DeepLabCut label files, wherever the images are."""
_EXACT = 1 << 30
"""Match strength above any number of path components."""
_BLANK_EDGE = re.compile(r"(?:^|/)\s|\s(?:/|$)")


@dataclass(slots=True)
class _Match:
    """Best rows so far for one image of the points file; a second equally good one is kept for the error message."""

    strength: int = 0
    rows: list[int] = field(default_factory=list)
    image_ids: list[str] = field(default_factory=list)
    path: str = ""
    """Path of the first of the rows."""
    by_id: str = ""
    """Path of the row whose id equals the name, if the path does not end with it."""
    by_path: str = ""
    """Path of another row, with a different id, that ends with the whole name."""
    namesake: str = ""
    """An image with the same file name in another folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Manifest rows of the images of a points file."""

    rows: dict[int, int]
    """Row -> index of the name."""
    absent: tuple[str, ...]
    """Names without a matching image."""
    elsewhere: tuple[tuple[str, str], ...]
    """(name, path of its image) where the name starts with folders that the path does not contain."""


class Matcher:
    """Matches every image name of a points file to one manifest row.

    A name that equals an image's id or whole path matches it. Otherwise the longest common tail of the name and the
    image's full path decides, in whole components: the parent folder must agree if the name has one, and so must all
    folders that both have from the source's own folder (for a list, its entry) on. Backslashes count as slashes, and
    characters are compared in composed form (NFC). Whitespace around a component may have been stripped with its cell,
    so images that differ only in that match equally well. Where a name's folders are only hints, none need agree.
    """

    def __init__(
        self,
        names: Sequence[str],
        folders: Mapping[int, Collection[str]] = MappingProxyType({}),
        hinted: Collection[int] = frozenset(),
        *,
        what: str = "points",
        by_stem: bool = False,
    ) -> None:
        """Take the unique names of a file of labels, normalised by `normal`, and `folders` and `hinted` of its table.

        `what`: the labels, for messages. `by_stem`: the names lack the endings of the images.
        """
        self._names = names
        self._what = what
        self._by_stem = by_stem
        self._folders = folders
        self._hinted = hinted
        self._matches = [_Match() for _ in names]
        self._by_name = {normal(name): index for index, name in enumerate(names)}
        self._by_end: dict[str, list[int]] = {}
        for path, index in self._by_name.items():
            for end in _ends(path):
                self._by_end.setdefault(end, []).append(index)
        self._deepest = max((path.count("/") for path in self._by_name), default=0) + 1

    def add(self, row: int, image_id: str, path: str, *, named: int, alias: tuple[str, str] | None = None) -> None:
        """Compare one image with the names.

        Args:
            row: its manifest row.
            image_id: its identity.
            path: its absolute POSIX path.
            named: number of trailing path components that belong to the source: its folder and everything below.
            alias: another identity, and another path.
        """
        shown_id, shown_path = image_id, path
        if self._by_stem:
            image_id, path = _without_ending(image_id), _without_ending(path)
        if alias is not None:
            self._compare(row, *alias, shown_id, shown_path, named)
        self._compare(row, image_id, path, shown_id, shown_path, named)
        if _BLANK_EDGE.search(path) or _BLANK_EDGE.search(image_id):
            self._compare(row, _without_blanks(image_id), _without_blanks(path), shown_id, shown_path, named)

    def _compare(self, row: int, image_id: str, path: str, shown_id: str, shown_path: str, named: int) -> None:
        exact = self._by_name.get(normal(image_id))
        if exact is not None:
            self._keep(exact, _EXACT, row, shown_id, shown_path)
        longest, length, of_path = "", 0, False
        for count, end in enumerate(_ends(normal(path), deepest=self._deepest), start=1):
            if end not in self._by_end:
                break
            longest, length = end, count
            index = self._by_name.get(end)
            if index is not None and index != exact:
                self._keep(index, count, row, shown_id, shown_path)
                self._matches[index].by_path = shown_path
            of_path = of_path or index == exact
        if exact is not None and not of_path:
            self._matches[exact].by_id = shown_path
        if not length:
            return
        agrees = length >= max(named, 2)
        for index in self._by_end[longest] if agrees or self._hinted else self._by_end[longest][:1]:
            if index == exact or self._by_name.get(longest) == index:
                continue
            if agrees or index in self._hinted:
                self._keep(index, length, row, shown_id, shown_path)
            else:
                self._matches[index].namesake = self._matches[index].namesake or shown_id

    def result(self) -> Placement:
        """Return the rows of the names, after every image was added.

        Raises:
            InputError: no name matches, a name matches two rows equally well, two names match one row, or a name
                without a folder matches an image in the folder of another file of labels than its own.
        """
        self._leave_to_stronger_ones()
        pairs = list(zip(self._names, self._matches, strict=True))
        absent = [name for name, match in pairs if not match.rows]
        if self._names and len(absent) == len(self._names):
            self._refuse_all(absent)
        rows: dict[int, int] = {}
        for index, (name, match) in enumerate(pairs):
            if not match.rows:
                continue
            if len(match.rows) > 1:
                first, second = match.image_ids
                blanks = _without_blanks(first) == _without_blanks(second)
                raise errors.InputError(
                    f"the {self._what} file's image {name!r} matches several images equally well: {first!r} and "
                    f"{second!r}; "
                    + ("their names differ only in whitespace: rename one" if blanks else "write more of its path")
                )
            if match.by_id and match.by_path:
                raise errors.InputError(
                    f"the {self._what} file's image {name!r} is the image_id of {match.by_id!r} and the name of "
                    f"{match.by_path!r}: write more of its path, or change the ids of the rows"
                )
            other = rows.setdefault(match.rows[0], index)
            if other != index:
                raise errors.InputError(
                    f"the {self._what} file's images {self._names[other]!r} and {name!r} both match "
                    f"{match.image_ids[0]!r}; pass the folder that contains all of them, or remove one"
                )
        for index, folders in self._folders.items():
            self._refuse_other_folder(pairs[index][0], pairs[index][1], folders)
        elsewhere = tuple(
            (name, match.path)
            for index, (name, match) in enumerate(pairs)
            if index not in self._hinted and _begins_elsewhere(name, match)
        )
        return Placement(rows=rows, absent=tuple(absent), elsewhere=elsewhere)

    def _leave_to_stronger_ones(self) -> None:
        """Take rows from names that match them by less of a hint than another name does: their images are absent."""
        best: dict[int, int] = {}
        for match in self._matches if self._hinted else ():
            for row in match.rows:
                best[row] = max(best.get(row, 0), match.strength)
        for index in self._hinted:
            match = self._matches[index]
            if match.rows and all(best[row] > match.strength for row in match.rows):
                match.rows, match.image_ids = [], []

    def _refuse_other_folder(self, name: str, match: _Match, folders: Collection[str]) -> None:
        above, _, file = normal(match.path).rpartition("/")
        if not match.rows or file != name:
            return
        every = sorted({*chain(*self._folders.values())} - {"."})
        other = next((each for each in every if _is_of(above, each)), None)
        strange = next((each for each in sorted(folders) if not _is_of(above, each)), None)
        if other is not None and strange is not None:
            raise errors.InputError(
                f"the {self._what} file in {strange!r} has labels of {name!r}, which matches {match.image_ids[0]!r} of "
                f"the {self._what} file in {other!r}: write the image's folder in it, such as {strange}/{name}, or "
                "pass the files of these images alone"
            )

    def _refuse_all(self, absent: Sequence[str]) -> None:
        shown = ", ".join(repr(name) for name in absent[:_SHOWN])
        more = ", ..." if len(absent) > _SHOWN else ""
        message = f"none of the {len(absent)} images of the {self._what} file is in the source: {shown}{more}."
        namesake = next(((n, m.namesake) for n, m in zip(self._names, self._matches, strict=True) if m.namesake), None)
        if namesake is None:
            raise errors.InputError(f"{message} Their names must be image ids, or the tails of image paths")
        raise errors.InputError(
            f"{message} {namesake[0]!r} has the file name of {namesake[1]!r}, but another folder: pass the labelled "
            f"images, or, if these are the ones, correct or remove the folder in the {self._what} file"
        )

    def _keep(self, index: int, strength: int, row: int, image_id: str, path: str) -> None:
        match = self._matches[index]
        if strength > match.strength:
            match.strength, match.rows, match.image_ids, match.path = strength, [row], [image_id], path
        elif strength == match.strength and row not in match.rows and len(match.rows) == 1:
            match.rows.append(row)
            match.image_ids.append(image_id)


def _is_of(folder: str, labels: str) -> bool:
    """Return whether labels in a folder may be of images in another one: the same, one above, or one around it."""
    if labels == ".":
        return True
    parts = labels.split("/")
    around = ("/".join(parts[:count]) for count in range(1, len(parts)))
    return f"/{labels}/" in f"/{folder}/" or any(f"/{folder}".endswith(f"/{each}") for each in around)


def _begins_elsewhere(name: str, match: _Match) -> bool:
    parts = normal(name).split("/")
    if not match.rows or match.strength >= len(parts):
        return False
    return parts[-match.strength - 1] != _DEEPLABCUT or len(parts) > match.strength + 1


def normal(name: str) -> str:
    """Normalise a path: forward slashes only, no empty or `.` components, composed characters (NFC)."""
    if not name.isascii():
        name = unicodedata.normalize("NFC", name)
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def _without_ending(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    stem, dot, _ = name.rpartition(".")
    return f"{folder}{slash}{stem}" if dot and stem and "#" not in name else path


def _without_blanks(path: str) -> str:
    return "/".join(part.strip() for part in path.split("/"))


def _ends(path: str, *, deepest: int | None = None) -> Iterator[str]:
    """Yield the tails of a path in whole components, shortest first, up to `deepest` components."""
    at = len(path)
    while at > 0 and deepest != 0:
        at = path.rfind("/", 0, at)
        yield path[at + 1 :]
        deepest = None if deepest is None else deepest - 1
