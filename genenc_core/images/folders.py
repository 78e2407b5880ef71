"""The image files of a folder or a glob, in the order of their paths, one directory at a time."""

import fnmatch
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from genenc_core import errors
from genenc_core.images import sources


class LinkedFolderNotEntered(UserWarning):
    """Images behind a link to a folder outside the source are left out."""


def walk(root: Path, pattern: Sequence[str]) -> Iterator[str]:
    """Yield the image files below `root` that match `pattern`, as relative POSIX paths in string order.

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
            yield path


def _children(root: Path, folder: str, pattern: Sequence[str]) -> list[str]:
    """Return image files and folders (with a final slash, which makes string order the path order), last first."""
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
    if entry.name.startswith("."):
        return None
    if entry.is_dir(follow_symlinks=False):
        return entry.name + "/"
    if entry.is_symlink() and _is_linked_folder(entry):
        _tell_linked(Path(entry.path), root)
        return None
    return entry.name if sources.has_image_extension(entry.name) else None


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
