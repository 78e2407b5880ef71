"""Walking of folders and globs in path order, one directory at a time, and escaping of non-UTF-8 names."""

import fnmatch
import functools
import itertools
import os
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from genenc_core import errors
from genenc_core.images.decode import heif
from genenc_core.images.sources import image_source

_NEEDS_ESCAPE = re.compile(r"[\udc80-\udcff]|\\(?=x[0-9a-f]{2})")
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")


def to_text(path: str) -> str:
    """Return a path as valid text: surrogate-escaped (non-UTF-8) bytes become hex escapes."""
    if path.isascii() and "\\" not in path:
        return path
    return _NEEDS_ESCAPE.sub(lambda match: f"\\x{os.fsencode(match[0]).hex()}", path)


def to_path(text: str) -> str:
    """Return the path that `to_text` turned into this text."""
    if "\\" not in text:
        return text
    return _ESCAPE.sub(lambda match: os.fsdecode(bytes.fromhex(match[1])), text)


def has_escape(text: str) -> bool:
    """Return whether a text contains an escape, so that `to_path` changes it."""
    return _ESCAPE.search(text) is not None


class LinkedFolderNotEntered(UserWarning):
    """Images behind a link to a folder outside the source are skipped."""


class SystemFolderNotEntered(UserWarning):
    """A folder in which a system keeps deleted files, snapshots or thumbnails was not listed."""


class FilesLeftOut(UserWarning):
    """The source also holds files that genenc cannot read as images."""


class TextOrder(UserWarning):
    """Names with numbers whose order as text is not that of the numbers."""


def warn_of_text_order(names: Sequence[str]) -> None:
    """Warn where the order of names as text, which rows have, is not that of the numbers in them."""
    for before, after in itertools.pairwise(names):
        if _by_numbers(before) > _by_numbers(after):
            warnings.warn(
                f"rows are in the order of their paths as text, in which {before!r} comes before {after!r}: join "
                "other tables by image_id, not by position",
                TextOrder,
                stacklevel=3,
            )
            return


def _by_numbers(name: str) -> list[str | int]:
    parts: list[str | int] = list(re.split(r"([0-9]{1,18})", name))
    return [int(part) if at % 2 else part for at, part in enumerate(parts)]


class LeftOut:
    """Files of a folder or glob that cannot be read as images, counted by extension."""

    examples = 3

    def __init__(self) -> None:
        self.kinds: dict[str, tuple[int, tuple[str, ...]]] = {}
        """Lower-case extension ("" for none) -> count and the first few paths."""

    def add(self, path: str) -> None:
        """Count one file; hidden files only if they may be images."""
        name = path.rpartition("/")[2]
        hidden = name.startswith(".")
        image = image_source.has_image_extension(name) and not name.startswith("._")  # macOS metadata files
        if name.lower() in _SYSTEM_FILES or (hidden and not image):
            return
        _, dot, end = name.rpartition(".")
        kind = f".{end.lower()}" if dot and len(end) <= _LONGEST_EXTENSION else ""
        kind = f"hidden {kind}" if hidden else kind
        count, first = self.kinds.get(kind, (0, ()))
        self.kinds[kind] = count + 1, first if len(first) == self.examples else (*first, path)


def describe(kinds: Mapping[str, tuple[int, Sequence[str]]]) -> str:
    """Return a message such as `3 files are not images that genenc can read: 2 .heic (a.heic, b.heic), ...`."""
    total = sum(count for count, _ in kinds.values())
    shown = sorted(kinds.items(), key=lambda item: (-item[1][0], item[0]))[:_KINDS_SHOWN]
    parts = [
        f"{count} {kind or 'without an extension'} ({', '.join(first)}{', ...' if count > len(first) else ''})"
        for kind, (count, first) in shown
    ]
    more = f", and {len(kinds) - len(shown)} more kinds" if len(kinds) > len(shown) else ""
    what = "1 file is not an image" if total == 1 else f"{total} files are not images"
    remedies = "".join(f"; for {kind} {remedy}" for kind, _ in shown if (remedy := heif.remedy_for(kind[1:])))
    return f"{what} that genenc can read: {', '.join(parts)}{more}{remedies}"


_KINDS_SHOWN = 8
SYSTEM_FOLDERS = frozenset(
    ("$recycle.bin", "recycler", "#recycle", "@eadir", "#snapshot", "system volume information", "lost+found")
)
"""Folders of Windows, Linux and network storage that hold copies of a user's files, in lower case."""
_SYSTEM_FILES = frozenset(("thumbs.db", "desktop.ini"))
_LONGEST_EXTENSION = 10


def walk(
    root: Path,
    pattern: Sequence[str],
    left_out: LeftOut | None = None,
    *,
    extensions: Collection[str] | None = None,
    earlier_glob: bool = False,
    system_folders: bool = False,
) -> Iterator[str]:
    """Yield the image files below `root` that match `pattern`, as relative POSIX paths in string order.

    Image files have one of `extensions`; None means all supported ones. Other matching files are counted in `left_out`,
    except system files and hidden files that are not images. Hidden folders are skipped. `earlier_glob` and
    `system_folders` are those of `ImageSource`.

    Raises:
        InputError: a folder cannot be listed.
    """
    everything = tuple(pattern) == ("**",)
    known = frozenset(image_source.readable_extensions() if extensions is None else extensions)
    children = functools.partial(_children, root, pattern=pattern, system_folders=system_folders)
    stack = [("", iter(children("")))]
    while stack:
        folder, names = stack[-1]
        for name in names:
            if name[-1] == "/":
                stack.append((folder + name, iter(children(folder + name))))
                break
            path = folder + name
            if everything or _matches(tuple(path.split("/")), pattern, min_parts=0 if earlier_glob else 1):
                if name[0] != "." and path.rpartition(".")[2].lower() in known:
                    yield path
                elif left_out is not None:
                    left_out.add(path)
        else:
            stack.pop()


def _children(root: Path, folder: str, *, pattern: Sequence[str], system_folders: bool) -> list[str]:
    """Return names of files and folders in order; the final slash of folders makes string order path order."""
    names = []
    try:
        with os.scandir(root / folder) as entries:
            for entry in entries:  # of millions: no call that most of them do not need
                name = entry.name
                if entry.is_dir(follow_symlinks=False):
                    if _is_entered(entry, system_folders) and _may_contain((folder + name).split("/"), pattern):
                        names.append(f"{name}/")
                elif name[0] == "." or not entry.is_symlink() or not _is_linked_folder(entry):
                    names.append(name)
                else:
                    _warn_linked_folder(Path(entry.path), root)
    except OSError as error:
        raise errors.InputError(
            f"cannot list the folder {str(root / folder)!r}: {error.strerror}; make it readable or pass a list"
        ) from error
    names.sort()
    return names


def _is_entered(entry: os.DirEntry[str], system_folders: bool) -> bool:
    """Return whether a folder is listed; warn of a system's own."""
    if entry.name.lower() in SYSTEM_FOLDERS and not system_folders:
        warnings.warn(
            f"skipped {entry.path!r}: such folders hold deleted files, snapshots or thumbnails. If its images are "
            "wanted, pass that folder itself, or a list",
            SystemFolderNotEntered,
            stacklevel=2,
        )
        return False
    return not entry.name.startswith(".")


def _is_linked_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself counts as one unreadable image
        return False


def _warn_linked_folder(link: Path, root: Path) -> None:
    target = link.resolve()
    if not target.is_relative_to(root):
        warnings.warn(
            f"skipped {str(link)!r}, a link to the folder {str(target)!r} outside {str(root)!r}: pass that folder "
            "itself, link its files, or pass a list",
            LinkedFolderNotEntered,
            stacklevel=2,
        )


def _matches(parts: Sequence[str], pattern: Sequence[str], *, min_parts: int) -> bool:
    """Return whether a file's path matches; a final `**` stands for at least `min_parts` components."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        if len(pattern) == 1:
            return len(parts) >= min_parts
        return any(_matches(parts[skip:], pattern[1:], min_parts=min_parts) for skip in range(len(parts)))
    if not parts or not fnmatch.fnmatchcase(parts[0], pattern[0]):
        return False
    return _matches(parts[1:], pattern[1:], min_parts=min_parts)


def _may_contain(folder: Sequence[str], pattern: Sequence[str]) -> bool:
    for part, wanted in zip(folder, pattern, strict=False):
        if wanted == "**":
            return True
        if not fnmatch.fnmatchcase(part, wanted):
            return False
    return len(folder) < len(pattern)
