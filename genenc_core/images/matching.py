"""Which manifest row each image of a points file means, found while the images stream by."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from genenc_core import errors

_SHOWN = 3
_EXACT_ID, _PATH_END, _ID_END = 3, 2, 1


@dataclass(slots=True)
class _Match:
    """The best rows seen for one image of the points file; a second equally good one is kept for the message."""

    strength: int = 0
    rows: list[int] = field(default_factory=list)
    image_ids: list[str] = field(default_factory=list)


class Matcher:
    """Finds for every image name of a points file the one row that it means.

    Strongest first: the name is the image_id; the name is the end (whole components) of the image's absolute path;
    the image_id is the end of the name. Backslashes count as slashes.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Take the names of a points file.

        Raises:
            InputError: two of them are one image's.
        """
        self._names = names
        self._matches = [_Match() for _ in names]
        self._by_name: dict[str, int] = {}
        self._by_end: dict[str, list[int]] = {}
        for index, name in enumerate(names):
            path = _normal(name)
            other = self._by_name.setdefault(path, index)
            if other != index:
                raise errors.InputError(f"the points file names one image in two ways: {names[other]!r} and {name!r}")
            for end in _ends(path):
                self._by_end.setdefault(end, []).append(index)
        self._deepest = max((path.count("/") for path in self._by_name), default=0) + 1

    def see(self, row: int, image_id: str, path: str) -> None:
        """Compare one image with the names; `path` is absolute and POSIX."""
        normal_id = _normal(image_id)
        exact = self._by_name.get(normal_id)
        if exact is not None:
            self._keep(exact, _EXACT_ID, row, image_id)
        for end in _ends(path.lstrip("/"), deepest=self._deepest):
            index = self._by_name.get(end)
            if index is not None and index != exact:
                self._keep(index, _PATH_END, row, image_id)
        for index in self._by_end.get(normal_id, ()):
            self._keep(index, _ID_END, row, image_id)

    def placed(self) -> dict[int, int]:
        """Return {row: index of the name} once every image was seen.

        Raises:
            InputError: a name without a row, a name with two equally good rows, or two names of one row.
        """
        unmatched = [name for name, match in zip(self._names, self._matches, strict=True) if not match.rows]
        if unmatched:
            shown = ", ".join(repr(name) for name in unmatched[:_SHOWN])
            more = ", ..." if len(unmatched) > _SHOWN else ""
            raise errors.InputError(
                f"{len(unmatched)} of {len(self._names)} images of the points file are not among the images: {shown}"
                f"{more}. Their names must be image ids, or ends of the images' paths"
            )
        rows: dict[int, int] = {}
        for index, (name, match) in enumerate(zip(self._names, self._matches, strict=True)):
            if len(match.rows) > 1:
                first, second = match.image_ids
                raise errors.InputError(
                    f"the points file's image {name!r} fits several images equally well: {first!r} and {second!r}; "
                    "write more of its path"
                )
            other = rows.setdefault(match.rows[0], index)
            if other != index:
                raise errors.InputError(
                    f"the points file's images {self._names[other]!r} and {name!r} both mean {match.image_ids[0]!r}; "
                    "give the folder that holds all of them, or remove one"
                )
        return rows

    def _keep(self, index: int, strength: int, row: int, image_id: str) -> None:
        match = self._matches[index]
        if strength > match.strength:
            match.strength, match.rows, match.image_ids = strength, [row], [image_id]
        elif strength == match.strength and row not in match.rows and len(match.rows) == 1:
            match.rows.append(row)
            match.image_ids.append(image_id)


def _normal(name: str) -> str:
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def _ends(path: str, *, deepest: int | None = None) -> Iterator[str]:
    """Yield the ends of a path in whole components, shortest first, up to `deepest` components."""
    at = len(path)
    while at > 0 and deepest != 0:
        at = path.rfind("/", 0, at)
        yield path[at + 1 :]
        deepest = None if deepest is None else deepest - 1
