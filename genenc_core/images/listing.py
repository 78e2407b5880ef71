"""The images of a source in blocks of rows: their names, and what the file system says of each file.

Millions of rows are listed in seconds a million: whatever can be done for a block at once is, and names that need a
closer look (`..`, odd bytes, empty cells) are looked at one by one. Threads ask for files, for the sake of networks.
"""

import functools
import os
import re
import unicodedata
import urllib.parse
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import fs

from genenc_core import errors
from genenc_core.images import folders, names, sources, tables

_THREADS = 8
_ASKED = 2048
"""Files that a thread asks for at once."""
_FILES = fs.LocalFileSystem()
_GONE = (-1, -1)
_Facts = list[tuple[int, int]]
_UNCLEAN = ("//", "/.", "/\0", "\0.", "\\", ":/", "\0~", " \0", "\0 ")
"""What a name that may not be its own normal form has in it, or at an end; another form has one that is not ASCII."""
_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\|//")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_LONGEST_NAME = 4096
"""bytes, with all its folders: PATH_MAX of Linux"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Consecutive images: their identities, and what the file system says about them."""

    image_ids: list[str]
    """Same as `paths`, or the list's `image_id` column."""
    paths: list[str]
    """POSIX; relative to the source's root when it lies under it, else absolute; as `names.to_text` writes them."""
    bytes: list[int]
    """File sizes; -1 when there is no such file."""
    mtime_ns: list[int]
    """Modification times in nanoseconds; -1 when there is no such file."""

    def __len__(self) -> int:
        return len(self.paths)

    def first(self, count: int) -> "Block":
        """Return the first `count` images, or all where there are fewer."""
        if count >= len(self):
            return self
        return Block(
            image_ids=self.image_ids[:count],
            paths=self.paths[:count],
            bytes=self.bytes[:count],
            mtime_ns=self.mtime_ns[:count],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    """Images of which only names are known; `files` are what the file system knows them by."""

    image_ids: list[str]
    paths: list[str]
    files: list[str]


def iter_blocks(
    source: sources.ImageSource,
    *,
    limit: int | None = None,
    block_rows: int = 16384,
    left_out: folders.LeftOut | None = None,
) -> Iterator[Block]:
    """Yield the images in the order of their rows, at most `limit`, in blocks of `block_rows`; the last is shorter.

    Folders and globs are sorted by path and streamed one directory at a time; hidden files and folders are skipped.
    Links to files are followed wherever they lead; links to folders are not entered, with a warning when they lead
    out of the source. A list keeps its own order; its relative paths start at the list's folder, and a file that does
    not exist is still listed, with bytes and mtime_ns -1. Memory for a list: 8 bytes a row. `left_out` counts the files
    of a folder or a glob that no reader takes, as far as it was listed.

    Raises:
        InputError: a folder that cannot be listed, an empty or repeated entry of a list (a repeated one once the list
            is through).
    """
    listed = _of_list if source.kind == "list" else functools.partial(_of_folder, left_out=left_out)
    prefix = _prefix(source.root)
    waiting: deque[tuple[_Named, list[Future[_Facts]]]] = deque()
    with ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="genenc-list") as pool:
        for named in listed(source, limit, block_rows):
            full = [path if path[0] == "/" else prefix + path for path in named.files]
            parts = (full[at : at + _ASKED] for at in range(0, len(full), _ASKED))
            waiting.append((named, [pool.submit(_facts, part) for part in parts]))
            if len(waiting) > 2:
                yield _block(*waiting.popleft())
        while waiting:
            yield _block(*waiting.popleft())


def _prefix(root: Path) -> str:
    return f"{str(root).rstrip('/')}/"


def _block(named: _Named, facts: Sequence[Future[_Facts]]) -> Block:
    found = [fact for part in facts for fact in part.result()]
    return Block(
        image_ids=named.image_ids,
        paths=named.paths,
        bytes=[size for size, _ in found],
        mtime_ns=[mtime for _, mtime in found],
    )


def _facts(paths: list[str]) -> _Facts:
    """Return size and modification time of files; Arrow asks for all of them without holding Python up."""
    try:
        found = [(info.size, info.mtime_ns) for info in _FILES.get_file_info(paths)]
    except (OSError, ValueError, pa.ArrowException):  # of one of them: a name that is not UTF-8, no permission
        return [_fact(path) for path in paths]
    return [_fact(path) if size is None else (size, mtime) for path, (size, mtime) in zip(paths, found, strict=True)]


def _fact(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)  # noqa: PTH116 -- a Path per file would double the cost
    except (OSError, ValueError):
        return _GONE
    return status.st_size, status.st_mtime_ns


def _of_folder(
    source: sources.ImageSource, limit: int | None, block_rows: int, *, left_out: folders.LeftOut | None
) -> Iterator[_Named]:
    pattern: tuple[str, ...] = ("**",)
    if source.kind == "glob":
        pattern = Path(source.location).parts[len(source.root.parts) :]
    found = islice(folders.walk(source.root, pattern, left_out, extensions=source.extensions), limit)
    while files := list(islice(found, block_rows)):
        texts = [names.to_text(path) for path in files]
        yield _Named(image_ids=texts, paths=texts, files=files)


def _of_list(source: sources.ImageSource, limit: int | None, block_rows: int) -> Iterator[_Named]:
    hashes = array("q")
    for named in _regrouped(_entries(source, limit, block_rows), block_rows):
        hashes.extend(map(hash, named.image_ids))
        yield named
    _refuse_duplicates(source, hashes, limit)


def _regrouped(blocks: Iterator[_Named], block_rows: int) -> Iterator[_Named]:
    """Yield the same rows in blocks of one size: a list in Parquet comes in its own row groups."""
    ids: list[str] = []
    paths: list[str] = []
    files: list[str] = []
    for block in blocks:
        ids += block.image_ids
        paths += block.paths
        files += block.files
        while len(ids) >= block_rows:
            yield _Named(image_ids=ids[:block_rows], paths=paths[:block_rows], files=files[:block_rows])
            del ids[:block_rows], paths[:block_rows], files[:block_rows]
    if ids:
        yield _Named(image_ids=ids, paths=paths, files=files)


def _entries(source: sources.ImageSource, limit: int | None, block_rows: int) -> Iterator[_Named]:
    """Yield the first `limit` rows of a list."""
    path = Path(source.location)
    column = source.image_column or sources.IMAGE_COLUMNS[0]
    with_ids = column != "image_id" and "image_id" in tables.column_names(path)
    columns = [column, "image_id"] if with_ids else [column]
    blocks = tables.iter_blocks(path, columns, block_rows=block_rows, limit=limit, with_blanks=[column])
    for numbers, cells in blocks:
        texts = [_texts(values) for values in cells]
        told = ["\0" + "\0".join(values) + "\0" for values in texts]
        if any(text.count("\0") != len(numbers) + 1 or "\0\0" in text for text in told):
            bad = next(at for at, row in enumerate(zip(*texts, strict=True)) if not all(row) or "\0" in "".join(row))
            raise errors.InputError(f"{path}: row {numbers[bad]} has an empty {column!r} or image_id (or a NUL in it)")
        clean = told[0].isascii() and not any(mark in told[0] for mark in _UNCLEAN)
        try:
            files, found = _files(source.root, texts[0], clean=clean)
        except errors.InputError as error:
            raise errors.InputError(f"{path}: {error}") from error
        yield _Named(image_ids=texts[1] if with_ids else found, paths=found, files=files)


def _texts(values: Sequence[object]) -> list[str]:
    return ["" if value is None else value if type(value) is str else str(value) for value in values]


def _files(root: Path, entries: list[str], *, clean: bool) -> tuple[list[str], list[str]]:
    """Return the files that entries of a list name, relative to the root where they lie under it, and their texts."""
    prefix = _prefix(root)
    long = next((entry for entry in entries if len(entry) > _LONGEST_NAME), None)
    if long is not None:
        raise errors.InputError(
            f"an entry of {len(long)} characters begins {long[:40]!r} and is not a path: if the column holds the "
            "images themselves (base64), write them to files first, and give that folder"
        )
    if clean:
        files = [entry.removeprefix(prefix) for entry in entries]
        return files, files
    files = [_listed_path(root, entry).removeprefix(prefix) for entry in entries]
    return files, [names.to_text(file) for file in files]


def _listed_path(root: Path, entry: str) -> str:
    """Return the path of a list's entry: as it stands, or the first of its other readings of which there is a file.

    Raises:
        InputError: no such file, and the entry is of another machine, or means two files.
    """
    full = _joined(root, entry)
    if Path(full).exists():
        return full
    found = [path for reading in _readings(entry) if Path(path := _joined(root, reading)).exists()]
    forms = {path for path in found if _composed(path) == _composed(full)}
    if len(forms) > 1:
        raise errors.InputError(
            f"{entry!r} may be either of two files whose names look alike, {' and '.join(map(ascii, sorted(forms)))}: "
            "rename one"
        )
    if not found:
        _refuse_foreign(entry)
    return found[0] if found else _joined(root, entry.strip())


def _joined(root: Path, entry: str) -> str:
    """Return the path of an entry without `.` and `..`; behind a link to a folder `..` is where the system goes."""
    full = os.path.join(root, entry)  # noqa: PTH118 -- a Path would drop what is to be kept
    climb, dots, rest = full.rpartition("/../")
    if dots and (there := os.path.realpath(f"{climb}/..")) != os.path.realpath(os.path.normpath(f"{climb}/..")):
        full = f"{there}/{rest}"
    return os.path.normpath(full)


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _readings(entry: str) -> Iterator[str]:
    """Yield what an entry may mean where there is no file of exactly its name."""
    if names.has_escape(entry):
        yield names.to_path(entry)
    if entry.lower().startswith("file://"):
        # Of a file `?` and `#` are parts of its name.
        yield urllib.parse.unquote("/" + entry[len("file://") :].partition("/")[2])
    slashes = entry.strip().replace("\\", "/")
    for text in dict.fromkeys((entry.strip(), slashes)):
        yield text
        if text.startswith("~"):
            yield os.path.expanduser(text)  # noqa: PTH111 -- an unknown user is left as it is
        yield _composed(text)
        yield unicodedata.normalize("NFD", text)


def _refuse_foreign(entry: str) -> None:
    """Raise `InputError` for an entry that can be no file of this machine."""
    address = _ADDRESS.match(entry)
    if address and address[1].lower() != "file":
        raise errors.InputError(
            f"{entry[:200]!r} is an address ({address[1]}://), and images are read from files: download them, and list "
            "their paths"
        )
    if _DRIVE.match(entry):
        raise errors.InputError(
            f"{entry[:200]!r} is a path of a Windows machine, and there is no such file here: write the paths relative "
            "to the list, or as this machine sees them"
        )


def _refuse_duplicates(source: sources.ImageSource, hashes: "array[int]", limit: int | None) -> None:
    ordered = np.frombuffer(hashes, dtype=np.int64) if hashes else np.empty(0, dtype=np.int64)
    ordered.sort()
    suspects = {int(value) for value in ordered[1:][ordered[1:] == ordered[:-1]]}
    if not suspects:
        return
    seen: set[str] = set()
    for named in _entries(source, limit, 16384):
        for image_id in named.image_ids:
            if image_id in seen:
                raise errors.InputError(
                    f"{source.describe()} names the image {image_id!r} twice; one image is one row: remove one, or "
                    "give each row its own image_id column"
                )
            if hash(image_id) in suspects:
                seen.add(image_id)
