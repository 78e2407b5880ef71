"""The image files of a folder or a glob, in the order of their paths, one directory at a time."""

import fnmatch
import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from genenc_core import errors
from genenc_core.images import heif, sources


class LinkedFolderNotEntered(UserWarning):
    """Images behind a link to a folder outside the source are left out."""


class FilesLeftOut(UserWarning):
    """Files beside the images that no reader takes."""


class LeftOut:
    """Files that a folder or a glob holds and no reader takes, counted by the ends of their names."""

    examples = 3

    def __init__(self) -> None:
        self.kinds: dict[str, tuple[int, tuple[str, ...]]] = {}
        """End of the name, in lower case ("" for none) -> how many, and the first few."""

    def add(self, path: str) -> None:
        """Count one file; of hidden ones those that may be images."""
        name = path.rpartition("/")[2]
        hidden = name.startswith(".")
        image = sources.has_image_extension(name) and not name.startswith("._")  # macOS: what belongs to a file
        if name.lower() in _SYSTEM_FILES or (hidden and not image):
            return
        _, dot, end = name.rpartition(".")
        kind = f".{end.lower()}" if dot and len(end) <= _LONGEST_END else ""
        kind = f"hidden {kind}" if hidden else kind
        count, first = self.kinds.get(kind, (0, ()))
        self.kinds[kind] = count + 1, first if len(first) == self.examples else (*first, path)


def describe(kinds: Mapping[str, tuple[int, Sequence[str]]]) -> str:
    """Return what was left out in words: `3 files are not images that genenc reads: 2 .heic (a.heic, b.heic), ...`."""
    total = sum(count for count, _ in kinds.values())
    shown = sorted(kinds.items(), key=lambda item: (-item[1][0], item[0]))[:_KINDS_SHOWN]
    parts = [
        f"{count} {kind or 'without an extension'} ({', '.join(first)}{', ...' if count > len(first) else ''})"
        for kind, (count, first) in shown
    ]
    more = f", and {len(kinds) - len(shown)} more kinds" if len(kinds) > len(shown) else ""
    what = "1 file is not an image" if total == 1 else f"{total} files are not images"
    remedies = "".join(f"; for {kind} {remedy}" for kind, _ in shown if (remedy := heif.remedy_of(kind[1:])))
    return f"{what} that genenc reads: {', '.join(parts)}{more}{remedies}"


_KINDS_SHOWN = 8
_SYSTEM_FILES = frozenset(("thumbs.db", "desktop.ini"))
_LONGEST_END = 10


def walk(
    root: Path, pattern: Sequence[str], left_out: LeftOut | None = None, *, extensions: Collection[str] | None = None
) -> Iterator[str]:
    """Yield the image files below `root` that match `pattern`, as relative POSIX paths in string order.

    Image files are those whose names end in one of `extensions`; None: of every kind that can be read here. Others that
    match are counted in `left_out`, but for the system's own, and hidden files that are no images. Hidden folders are
    not entered.

    Raises:
        InputError: a folder that cannot be listed.
    """
    everything = tuple(pattern) == ("**",)
    stack = _children(root, "", pattern)
    while stack:
        path = stack.pop()
        if path.endswith("/"):
            stack += _children(root, path, pattern)
        elif everything or _matches(tuple(path.split("/")), pattern):
            if sources.has_image_extension(path, extensions) and not path.rpartition("/")[2].startswith("."):
                yield path
            elif left_out is not None:
                left_out.add(path)


def _children(root: Path, folder: str, pattern: Sequence[str]) -> list[str]:
    """Return files and folders (with a final slash, which makes string order the path order), last first."""
    try:
        with os.scandir(root / folder) as entries:
            found = [folder + name for entry in entries if (name := _wanted(entry, root))]
    except OSError as error:
        raise errors.InputError(
            f"cannot list the folder {str(root / folder)!r}: {error.strerror}; make it readable or give a list"
        ) from error
    wanted = [path for path in found if path[-1] != "/" or _leads_to(path[:-1].split("/"), pattern)]
    return sorted(wanted, reverse=True)


def _wanted(entry: os.DirEntry[str], root: Path) -> str | None:
    hidden = entry.name.startswith(".")
    if entry.is_dir(follow_symlinks=False):
        return None if hidden else entry.name + "/"
    if not hidden and entry.is_symlink() and _is_linked_folder(entry):
        _tell_linked(Path(entry.path), root)
        return None
    return entry.name


def _is_linked_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: one unreadable image
        return False


def _tell_linked(link: Path, root: Path) -> None:
    target = link.resolve()
    if not target.is_relative_to(root):
        warnings.warn(
            f"{str(link)!r} leads to the folder {str(target)!r}, outside {str(root)!r}: it is not entered; give that "
            "folder itself, link its files, or give a list",
            LinkedFolderNotEntered,
            stacklevel=2,
        )


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return len(pattern) == 1 or any(_matches(parts[skip:], pattern[1:]) for skip in range(len(parts)))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _leads_to(folder: Sequence[str], pattern: Sequence[str]) -> bool:
    for part, wanted in zip(folder, pattern, strict=False):
        if wanted == "**":
            return True
        if not fnmatch.fnmatchcase(part, wanted):
            return False
    return len(folder) < len(pattern)
