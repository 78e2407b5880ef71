"""Walking of folders and globs in path order, one directory at a time, and escaping of non-UTF-8 names."""

import bisect
import collections
import fnmatch
import functools
import itertools
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

from genenc_core import errors
from genenc_core.images.containers.kinds import WITH_FRAMES
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

    def merge(self, other: "LeftOut") -> None:
        """Count what another one counted."""
        for kind, (count, first) in other.kinds.items():
            before, known = self.kinds.get(kind, (0, ()))
            self.kinds[kind] = before + count, (*known, *first)[: self.examples]


def describe(kinds: Mapping[str, tuple[int, Sequence[str]]], *, frames: bool = False) -> str:
    """Return a message such as `3 files are not images that genenc can read: 2 .heic (a.heic, b.heic), ...`.

    With `frames`, image files are named apart: they can be read, but are no videos, arrays or TIFFs.
    """
    images = {kind: found for kind, found in kinds.items() if frames and _is_image(kind)}
    if images:
        others = {kind: found for kind, found in kinds.items() if kind not in images}
        count = sum(count for count, _ in images.values())
        what = "1 image file is" if count == 1 else f"{count} image files are"
        found = f"{what} not taken by --frames, which reads videos, arrays and TIFFs: {_listed(images)}"
        return "; ".join([found, *([describe(others)] if others else [])])
    total = sum(count for count, _ in kinds.values())
    what = "1 file is not an image" if total == 1 else f"{total} files are not images"
    remedies = "".join(f"; for {kind} {remedy}" for kind in _shown(kinds) if (remedy := heif.remedy_for(kind[1:])))
    return f"{what} that genenc can read: {_listed(kinds)}{remedies}"


def _is_image(kind: str) -> bool:
    return image_source.has_image_extension(kind) and kind.rpartition(".")[2] not in WITH_FRAMES


def _shown(kinds: Mapping[str, tuple[int, Sequence[str]]]) -> list[str]:
    return sorted(kinds, key=lambda kind: (-kinds[kind][0], kind))[:_KINDS_SHOWN]


def _listed(kinds: Mapping[str, tuple[int, Sequence[str]]]) -> str:
    shown = [(kind, *kinds[kind]) for kind in _shown(kinds)]
    parts = [
        f"{count} {kind or 'without an extension'} ({', '.join(first)}{', ...' if count > len(first) else ''})"
        for kind, count, first in shown
    ]
    more = f", and {len(kinds) - len(shown)} more kinds" if len(kinds) > len(shown) else ""
    return f"{', '.join(parts)}{more}"


_KINDS_SHOWN = 8
SYSTEM_FOLDERS = frozenset(
    ("$recycle.bin", "recycler", "#recycle", "@eadir", "#snapshot", "system volume information", "lost+found")
)
"""Folders of Windows, Linux and network storage that hold copies of a user's files, in lower case."""
_SYSTEM_FILES = frozenset(("thumbs.db", "desktop.ini"))
_LONGEST_EXTENSION = 10


_AHEAD = 64
"""Folders that threads read before their turn."""
_NAMES_AHEAD = 16384
"""Names of one folder that are read before its turn."""
_SLOW_SECONDS = 200e-6
"""What a folder takes, by waiting or by its size, from which on it is worth a thread."""
_REMEMBERED = 8
"""Folders that outweigh earlier ones."""
_ENTRIES = 4096
"""Entries that are read at once."""
_FILES = 65536
"""Files that are looked at together."""


def no_checkpoint() -> None:
    """Let the listing go on."""


def walk(
    root: Path,
    pattern: Sequence[str],
    left_out: LeftOut | None = None,
    *,
    extensions: Collection[str] | None = None,
    earlier_glob: bool = False,
    system_folders: bool = False,
    limit: int | None = None,
    checkpoint: Callable[[], None] = no_checkpoint,
) -> Iterator[list[str]]:
    """Yield the image files below `root` that match `pattern`, as relative POSIX paths in string order.

    They come in lists, of files that no sub-folder interrupts. Image files have one of `extensions`; None means all
    supported ones. Other matching files are counted in `left_out`, except system files and hidden files that are not
    images. Hidden folders are skipped. `earlier_glob` and `system_folders` are those of `ImageSource`. The walk ends
    after `limit` images; `checkpoint` is called now and then, and may raise.

    Raises:
        InputError: a folder cannot be listed.
    """
    known = frozenset(image_source.readable_extensions() if extensions is None else extensions)
    divide = functools.partial(_divide, pattern=tuple(pattern), known=known, min_parts=0 if earlier_glob else 1)
    left = sys.maxsize if limit is None else limit
    with _Ahead(functools.partial(_Listing, root, pattern=pattern, system_folders=system_folders)) as ahead:
        levels = [_Level(ahead.take("", checkpoint))]
        while levels and left:
            level = levels[-1]
            if names := level.next_files():
                images, others = divide(level.folder, names)
                if left_out is not None:
                    for path in (path for before, path in others if before < left):
                        left_out.add(path)
                if images:
                    yield images[:left]
                    left -= min(left, len(images))
            elif level.folders:
                ahead.expect(levels)
                levels.append(_Level(ahead.take(level.folders.popleft(), checkpoint)))
            else:
                levels.pop()


def pattern_of(source: image_source.ImageSource) -> tuple[str, ...]:
    """Return the pattern of a folder or glob, by component below its root, as `walk` takes it."""
    return Path(source.location).parts[len(source.root.parts) :] if source.kind == "glob" else ("**",)


def would_list(source: image_source.ImageSource, path: Path) -> bool:
    """Return whether an image written to an absolute path without links would be one of a source's folder or glob."""
    if source.kind not in ("folder", "glob") or not path.is_relative_to(source.root):
        return False
    parts = path.relative_to(source.root).parts
    return not any(part.startswith(".") for part in parts) and _matches(parts, pattern_of(source), min_parts=1)


class _Listing:
    """The entries of one folder, which may be read in parts."""

    def __init__(self, root: Path, folder: str, *, pattern: Sequence[str], system_folders: bool) -> None:
        self.folder = folder
        """Relative to the root; "" or with a final slash."""
        self.files: list[str] = []
        """Names of files, in order once `complete`."""
        self.folders: list[str] = []
        """Folders to enter, as `folder`, in order once `complete`."""
        self.complete = False
        self._root = root
        self._pattern = pattern
        self._system_folders = system_folders
        self._entries: Iterator[os.DirEntry[str]] | None = None
        self._warnings: list[Warning] = []

    def read(self, most: int = sys.maxsize, checkpoint: Callable[[], None] = no_checkpoint) -> None:
        """Read `most` entries, or those that are left.

        Raises:
            InputError: the folder cannot be listed.
        """
        try:
            while not self.complete and most > 0:
                if self._entries is None:
                    self._entries = os.scandir(os.path.join(self._root, self.folder))  # noqa: PTH118 -- of millions
                found = list(itertools.islice(self._entries, _ENTRIES))
                self._add(found)
                most -= len(found)
                if len(found) < _ENTRIES:
                    self.files.sort()
                    self.folders.sort()
                    self.complete = True
                checkpoint()
        except OSError as error:
            raise errors.InputError(
                f"cannot list the folder {str(self._root / self.folder)!r}: {error.strerror}; make it readable or pass "
                "a list"
            ) from error

    def warn(self) -> None:
        """Give the warnings of what was read."""
        for each in self._warnings:
            warnings.warn(each, stacklevel=2)
        self._warnings.clear()

    def close(self) -> None:
        """Close the folder if it was not read to its end."""
        if self._entries is not None:
            self._entries.close()  # type: ignore[attr-defined]

    def _add(self, found: Sequence[os.DirEntry[str]]) -> None:
        plain = [entry.name for entry in found if entry.is_file(follow_symlinks=False)]  # of millions: no other call
        self.files += plain
        for entry in found if len(plain) < len(found) else ():
            if entry.is_file(follow_symlinks=False):
                continue
            if entry.is_dir(follow_symlinks=False):
                path = self.folder + entry.name
                if self._is_entered(entry) and _may_contain(path.split("/"), self._pattern):
                    self.folders.append(f"{path}/")
            elif entry.name[0] == "." or not entry.is_symlink() or not _is_linked_folder(entry):
                self.files.append(entry.name)
            else:
                self._note_linked_folder(Path(entry.path))

    def _is_entered(self, entry: os.DirEntry[str]) -> bool:
        """Return whether a folder is listed; warn of a system's own."""
        if entry.name.lower() in SYSTEM_FOLDERS and not self._system_folders:
            self._warnings.append(
                SystemFolderNotEntered(
                    f"skipped {entry.path!r}: such folders hold deleted files, snapshots or thumbnails. If its images "
                    "are wanted, pass that folder itself, or a list"
                )
            )
            return False
        return not entry.name.startswith(".")

    def _note_linked_folder(self, link: Path) -> None:
        target, path = link.resolve(), (self.folder + link.name).split("/")
        if not _may_contain(path, self._pattern):
            return
        if not target.is_relative_to(self._root):
            where = f"outside {str(self._root)!r}"
        elif not self._lists(target.relative_to(self._root).parts, path):
            where = "which is not listed itself"
        else:
            return
        self._warnings.append(
            LinkedFolderNotEntered(
                f"skipped {str(link)!r}, a link to the folder {str(target)!r} {where}: pass that folder itself, link "
                "its files, or pass a list"
            )
        )

    def _lists(self, target: Sequence[str], link: Sequence[str]) -> bool:
        """Return whether a folder below the root is listed itself, as the link to it would be."""
        hidden = any(part[0] == "." or part.lower() in SYSTEM_FOLDERS for part in target)
        anywhere = "**" in self._pattern[: len(link)]
        return not hidden and _may_contain(target, self._pattern) and (anywhere or len(target) == len(link))


def _is_linked_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself counts as one unreadable image
        return False


class _Level:
    """A folder that is being walked."""

    def __init__(self, listing: _Listing) -> None:
        self.folder = listing.folder
        self.folders = collections.deque(listing.folders)
        """Those not entered yet."""
        self._files = listing.files
        self._next = 0

    def next_files(self) -> list[str]:
        """Return the next files; none if a folder comes first, or nothing."""
        start, stop = self._next, len(self._files)
        if self.folders:
            stop = bisect.bisect_left(self._files, self.folders[0][len(self.folder) :], start)
        self._next = min(stop, start + _FILES)
        return self._files[start : self._next]


class _Ahead:
    """Reads folders in threads before their turn where that hides waiting, as on a network file system."""

    def __init__(self, make: Callable[[str], _Listing]) -> None:
        self._make = make
        self._pool = ThreadPoolExecutor(max_workers=_AHEAD, thread_name_prefix="genenc-folders")
        self._begun: dict[str, tuple[_Listing, Future[None]]] = {}
        self._slow = 0
        """How many more of the folders that were read in turn were slow than were not."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        for listing, _reading in self._begun.values():
            listing.close()

    def take(self, folder: str, checkpoint: Callable[[], None]) -> _Listing:
        """Return a folder's complete listing, after its warnings.

        Raises:
            InputError: the folder cannot be listed.
        """
        begun = self._begun.pop(folder, None)
        listing = self._make(folder) if begun is None else begun[0]
        began = time.perf_counter()
        try:
            if begun is not None and not begun[1].cancel():
                begun[1].result()
            listing.read(checkpoint=checkpoint)
        finally:
            listing.warn()
            listing.close()
        if begun is None:
            self._slow += 1 if time.perf_counter() - began > _SLOW_SECONDS else -1
            self._slow = max(-_REMEMBERED, min(self._slow, _REMEMBERED))
        return listing

    def expect(self, levels: Sequence[_Level]) -> None:
        """Begin to read the folders whose turn is next."""
        if self._slow <= 0 or len(self._begun) > _AHEAD // 2:
            return
        for folder in self._next(itertools.chain.from_iterable(level.folders for level in reversed(levels))):
            if len(self._begun) >= _AHEAD:
                return
            if folder not in self._begun:
                listing = self._make(folder)
                self._begun[folder] = listing, self._pool.submit(listing.read, _NAMES_AHEAD)

    def _next(self, folders: Iterable[str]) -> Iterator[str]:
        """Yield the folders, and those in them where they are read, in the order of the walk."""
        for folder in folders:
            yield folder
            if folder in self._begun and self._begun[folder][0].complete:
                yield from self._next(self._begun[folder][0].folders)


def _divide(
    folder: str, names: list[str], *, pattern: tuple[str, ...], known: Collection[str], min_parts: int
) -> tuple[list[str], list[tuple[int, str]]]:
    """Return the images among sorted files of a folder, and the others, each after how many of the images."""
    paths = [folder + name for name in names]
    everything = pattern == ("**",)
    if everything:  # millions: decided for all at once where they are alike
        kinds = {path.rpartition(".")[2] for path in paths}
        hidden = bisect.bisect_left(names, ".") < bisect.bisect_left(names, "/")
        if not hidden and all(kind.lower() in known for kind in kinds):
            return paths, []
    images: list[str] = []
    others: list[tuple[int, str]] = []
    for name, path in zip(names, paths, strict=True):
        if everything or _matches(tuple(path.split("/")), pattern, min_parts=min_parts):
            if name[0] != "." and path.rpartition(".")[2].lower() in known:
                images.append(path)
            else:
                others.append((len(images), path))
    return images, others


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
