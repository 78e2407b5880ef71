"""Which manifest row each image of a points file means, found while the images stream by."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from genenc_core import errors

_SHOWN = 3
_DEEPLABCUT = "labeled-data"
"""The folder that names in its label files begin with, wherever they lie."""
_EXACT = 1 << 30
"""Stronger than any number of path components."""
_BLANK_EDGE = re.compile(r"(?:^|/)\s|\s(?:/|$)")


@dataclass(slots=True)
class _Match:
    """The best rows seen for one image of the points file; a second equally good one is kept for the message."""

    strength: int = 0
    rows: list[int] = field(default_factory=list)
    image_ids: list[str] = field(default_factory=list)
    path: str = ""
    """Of the first of the rows."""
    by_id: str = ""
    """The path of the row whose id the name is, where that path does not end so."""
    by_path: str = ""
    """The path of another row, whose id the name is not, where it ends with the whole name."""
    namesake: str = ""
    """An image of the same file name in another folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where the images of a points file lie in the manifest."""

    rows: dict[int, int]
    """row -> index of the name"""
    absent: tuple[str, ...]
    """names of the points file that are no image's"""
    elsewhere: tuple[tuple[str, str], ...]
    """names, each with the path of its image, where the name begins with folders that the path has not"""


class Matcher:
    """Finds for every image name of a points file the one row that it means.

    A name that is an image's id, or its whole path, means it. Else the longest common end counts, in whole components,
    of the name and the image's full path; the folder that holds the file must agree where the name has one, and so
    must all folders that both name from the source's own folder (for a list: its entry) on. Backslashes count as
    slashes, and characters as their composed form (NFC). Blanks around a component may have been lost with the cell
    that held it, so that two images which differ in them alone are equally good.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Take the names of a points file, as `normal` writes them, each once."""
        self._names = names
        self._matches = [_Match() for _ in names]
        self._by_name = {normal(name): index for index, name in enumerate(names)}
        self._by_end: dict[str, list[int]] = {}
        for path, index in self._by_name.items():
            for end in _ends(path):
                self._by_end.setdefault(end, []).append(index)
        self._deepest = max((path.count("/") for path in self._by_name), default=0) + 1

    def see(self, row: int, image_id: str, path: str, *, named: int) -> None:
        """Compare one image with the names.

        Args:
            row: its row.
            image_id: its identity.
            path: absolute and POSIX.
            named: how many of the path's last components belong to the source: below its folder, and that itself.
        """
        self._compare(row, image_id, path, image_id, path, named)
        if _BLANK_EDGE.search(path) or _BLANK_EDGE.search(image_id):
            self._compare(row, _without_blanks(image_id), _without_blanks(path), image_id, path, named)

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
        for index in self._by_end[longest] if agrees else self._by_end[longest][:1]:
            if index == exact or self._by_name.get(longest) == index:
                continue
            if agrees:
                self._keep(index, length, row, shown_id, shown_path)
            else:
                self._matches[index].namesake = self._matches[index].namesake or shown_id

    def placed(self) -> Placed:
        """Return where the names lie once every image was seen.

        Raises:
            InputError: no name has a row, a name has two equally good rows, or a row two names.
        """
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
                    f"the points file's image {name!r} fits several images equally well: {first!r} and {second!r}; "
                    + ("their names differ in blanks alone: rename one" if blanks else "write more of its path")
                )
            if match.by_id and match.by_path:
                raise errors.InputError(
                    f"the points file's image {name!r} is the image_id of {match.by_id!r} and the name of "
                    f"{match.by_path!r}: write more of its path, or give the rows other ids"
                )
            other = rows.setdefault(match.rows[0], index)
            if other != index:
                raise errors.InputError(
                    f"the points file's images {self._names[other]!r} and {name!r} both mean {match.image_ids[0]!r}; "
                    "give the folder that holds all of them, or remove one"
                )
        elsewhere = tuple((name, match.path) for name, match in pairs if _begins_elsewhere(name, match))
        return Placed(rows=rows, absent=tuple(absent), elsewhere=elsewhere)

    def _refuse_all(self, absent: Sequence[str]) -> None:
        shown = ", ".join(repr(name) for name in absent[:_SHOWN])
        more = ", ..." if len(absent) > _SHOWN else ""
        message = f"none of the {len(absent)} images of the points file is among the images: {shown}{more}."
        namesake = next(((n, m.namesake) for n, m in zip(self._names, self._matches, strict=True) if m.namesake), None)
        if namesake is None:
            raise errors.InputError(f"{message} Their names must be image ids, or ends of the images' paths")
        raise errors.InputError(
            f"{message} {namesake[0]!r} has the file name of {namesake[1]!r}, but names another folder: give the "
            "images that were labelled, or, if these are they, correct the folder in the points file or leave it out"
        )

    def _keep(self, index: int, strength: int, row: int, image_id: str, path: str) -> None:
        match = self._matches[index]
        if strength > match.strength:
            match.strength, match.rows, match.image_ids, match.path = strength, [row], [image_id], path
        elif strength == match.strength and row not in match.rows and len(match.rows) == 1:
            match.rows.append(row)
            match.image_ids.append(image_id)


def _begins_elsewhere(name: str, match: _Match) -> bool:
    parts = normal(name).split("/")
    if not match.rows or match.strength >= len(parts):
        return False
    return parts[-match.strength - 1] != _DEEPLABCUT or len(parts) > match.strength + 1


def normal(name: str) -> str:
    """Return a path's text with slashes alone, without empty and `.` components, in composed characters."""
    if not name.isascii():
        name = unicodedata.normalize("NFC", name)
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def _without_blanks(path: str) -> str:
    return "/".join(part.strip() for part in path.split("/"))


def _ends(path: str, *, deepest: int | None = None) -> Iterator[str]:
    """Yield the ends of a path in whole components, shortest first, up to `deepest` components."""
    at = len(path)
    while at > 0 and deepest != 0:
        at = path.rfind("/", 0, at)
        yield path[at + 1 :]
        deepest = None if deepest is None else deepest - 1
