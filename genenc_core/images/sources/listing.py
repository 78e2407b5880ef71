"""Listing of a source in blocks of rows: image names, file sizes and modification times.

Built for millions of rows at seconds per million: work is done per block where possible, and only names that need it
(`..`, non-UTF-8 bytes, empty cells) are handled one by one. Threads query the files, to hide network latency.
"""

import os
import re
import unicodedata
import urllib.parse
from array import array
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs

from genenc_core import errors, text
from genenc_core.images.containers import kinds
from genenc_core.images.sources import addresses, folders, image_source, tables
from genenc_core.images.sources.block import Block

_THREADS = 64
"""Files that are asked for at once: a network file system takes 0.1 to 1 ms for each."""
_FILES_PER_QUERY = 512
_BLOCKS_AHEAD = 4
_FILESYSTEM = fs.LocalFileSystem()
_MISSING = (-1, -1)
_Stats = tuple[list[int], list[int]]
"""Sizes and modification times of files."""
_Asked = tuple[list[int], list[int], list[str]]
"""The same of files some of which addresses name, and their members."""
_UNCLEAN = {"/": ("//", "/.", "/\0"), ".": ("\0.",), "\\": ("\\",), ":": (":/",), "~": ("\0~",), " ": (" \0", "\0 ")}
"""Marks of ASCII names, joined by NUL, that may not be in normal form, by a character that is found fast."""
_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\|//")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_LONGEST_NAME = 4096
"""PATH_MAX of Linux, in bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    """Images before their files are queried; `files` are unescaped paths."""

    image_ids: list[str]
    paths: list[str]
    files: list[str]
    columns: dict[str, list[str]] = field(default_factory=dict)
    addresses: bool = False
    """Whether the list, not always these rows of it, names files by addresses."""


def iter_blocks(
    source: image_source.ImageSource,
    *,
    limit: int | None = None,
    block_rows: int = 16384,
    left_out: folders.LeftOut | None = None,
    checkpoint: Callable[[], None] = folders.no_checkpoint,
) -> Generator[Block, None, None]:
    """Yield the images in row order, at most `limit`, in blocks of `block_rows` (the last may be shorter).

    Folders and globs are sorted by path and streamed one directory at a time; hidden files and folders are skipped.
    Links to files are always followed; links to folders are not, with a warning if they point outside the source. A
    list keeps its order; its relative paths start at the list's folder, and a missing file is still listed, with bytes
    and mtime_ns -1. A list takes 8 bytes of memory per row. `left_out` counts the unreadable files of the part of a
    folder or glob that was listed. `checkpoint` is called several times a second, and ends the listing if it raises.

    Raises:
        InputError: a folder cannot be listed, or a list has an empty or repeated entry (repeats are found at the end).
    """
    if source.kind == "members":
        from genenc_core.images.sources import members  # which needs torch

        yield from members.iter_blocks(
            source, limit=limit, block_rows=block_rows, left_out=left_out, checkpoint=checkpoint
        )
        return
    named_blocks = (
        _iter_list(source, limit, block_rows)
        if source.kind == "list"
        else _iter_folder(source, limit, block_rows, left_out=left_out, checkpoint=checkpoint)
    )
    prefix = _prefix(source.root)
    waiting: deque[tuple[_Named, list[Future[Any]]]] = deque()
    pool = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="genenc-list")
    try:
        for named in named_blocks:
            checkpoint()
            if named.addresses:
                full = [path if path[0] == "/" or kinds.is_remote(path) else prefix + path for path in named.files]
                waiting.append((named, [pool.submit(_ask_all, part) for part in _parts(full, addresses.TOGETHER)]))
            else:
                full = [path if path[0] == "/" else prefix + path for path in named.files]
                waiting.append((named, [pool.submit(_stat_all, part) for part in _parts(full, _FILES_PER_QUERY)]))
            if len(waiting) > _BLOCKS_AHEAD:
                yield _block(*waiting.popleft())
        while waiting:
            checkpoint()
            yield _block(*waiting.popleft())
    finally:
        named_blocks.close()
        pool.shutdown(cancel_futures=True)


def _parts(items: list[str], size: int) -> Iterator[list[str]]:
    return (items[at : at + size] for at in range(0, len(items), size))


def _prefix(root: Path) -> str:
    return f"{str(root).rstrip('/')}/"


def _block(named: _Named, futures: Sequence[Future[Any]]) -> Block:
    stats = [part.result() for part in futures]
    return Block(
        image_ids=named.image_ids,
        paths=named.paths,
        bytes=[size for sizes, *_ in stats for size in sizes],
        mtime_ns=[time for _, times, *_ in stats for time in times],
        members=[member for *_, members in stats for member in members] if named.addresses else None,
        columns=named.columns,
    )


def _ask_all(paths: list[str]) -> _Asked:
    """Return size, modification time and place of files, some of which addresses name."""
    far = [path for path in paths if kinds.is_remote(path)]
    known = dict(zip(far, addresses.ask(far), strict=True))
    found = [known[path] if path in known else (*_stat(path), "") for path in paths]
    sizes, times, members = map(list, zip(*found, strict=True))
    return sizes, times, members


def _stat_all(paths: list[str]) -> _Stats:
    """Return size and modification time of files; Arrow queries them all with the GIL released."""
    try:
        found = _FILESYSTEM.get_file_info(paths)
        sizes, times = [info.size for info in found], [info.mtime_ns for info in found]
    except (OSError, ValueError, pa.ArrowException):  # one of them is not UTF-8, or not permitted
        sizes, times = [None] * len(paths), [None] * len(paths)
    # Arrow reports a time of -1 ns as None.
    for at, pair in enumerate(zip(sizes, times, strict=True)) if None in sizes or None in times else ():
        if None in pair:
            sizes[at], times[at] = _stat(paths[at])
    return sizes, times


def _stat(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)  # noqa: PTH116 -- a Path per file would double the cost
    except (OSError, ValueError):
        return _MISSING
    return status.st_size, status.st_mtime_ns


def _iter_folder(
    source: image_source.ImageSource,
    limit: int | None,
    block_rows: int,
    *,
    left_out: folders.LeftOut | None,
    checkpoint: Callable[[], None],
) -> Generator[_Named, None, None]:
    walked = folders.walk(
        source.root,
        folders.pattern_of(source),
        left_out,
        extensions=source.extensions,
        earlier_glob=source.earlier_glob,
        system_folders=source.system_folders,
        limit=limit,
        checkpoint=checkpoint,
    )
    for files in _joined_lists(walked, block_rows):
        joined = "".join(files)
        plain = joined.isascii() and "\\" not in joined
        texts = files if plain else [folders.to_text(path) for path in files]
        yield _Named(image_ids=texts, paths=texts, files=files)


def _joined_lists(lists: Iterable[list[str]], size: int) -> Iterator[list[str]]:
    """Yield the same items in lists of `size`; the last may be shorter."""
    held: list[str] = []
    for each in lists:
        held += each
        if len(held) >= size:
            whole = len(held) // size * size
            yield from (held[at : at + size] for at in range(0, whole, size))
            del held[:whole]
    if held:
        yield held


def _iter_list(source: image_source.ImageSource, limit: int | None, block_rows: int) -> Generator[_Named, None, None]:
    hashes = array("q")
    for named in _regrouped(_entries(source, limit, block_rows), block_rows):
        hashes.extend(map(hash, named.image_ids))
        yield named
    _refuse_duplicates(source, hashes, limit)


def _regrouped(blocks: Iterator[_Named], block_rows: int) -> Iterator[_Named]:
    """Yield the same rows in blocks of equal size, since a Parquet list is read by its own row groups."""
    ids: list[str] = []
    paths: list[str] = []
    files: list[str] = []
    columns: dict[str, list[str]] = {}
    far = False
    for block in blocks:
        far = block.addresses
        ids += block.image_ids
        paths += block.paths
        files += block.files
        for name, values in block.columns.items():
            columns.setdefault(name, []).extend(values)
        while len(ids) >= block_rows:
            some = {name: values[:block_rows] for name, values in columns.items()}
            yield _Named(
                image_ids=ids[:block_rows],
                paths=paths[:block_rows],
                files=files[:block_rows],
                columns=some,
                addresses=far,
            )
            del ids[:block_rows], paths[:block_rows], files[:block_rows]
            for values in columns.values():
                del values[:block_rows]
    if ids:
        yield _Named(image_ids=ids, paths=paths, files=files, columns=columns, addresses=far)


def _entries(source: image_source.ImageSource, limit: int | None, block_rows: int) -> Iterator[_Named]:
    """Yield the first `limit` rows of a list."""
    path = Path(source.location)
    column = source.image_column or image_source.IMAGE_COLUMNS[0]
    with_ids = column != "image_id" and "image_id" in tables.column_names(path)
    columns = [column, "image_id"] if with_ids else [column]
    more = tables.further_columns(path, columns) if source.columns else []
    if source.columns:
        tables.warn_of_left_out(path, [*columns, *more])
    far = addresses.are_in(path, column)
    distinct = addresses.Distinct()
    blocks = tables.iter_blocks(path, [*columns, *more], block_rows=block_rows, limit=limit, with_blanks=[column])
    for numbers, cells in blocks:
        texts = [_texts(values) for values in cells[: len(columns)]]
        kept = {name: _texts(values) for name, values in zip(more, cells[len(columns) :], strict=True)}
        joined = ["\0" + "\0".join(values) + "\0" for values in texts]
        if any(text.count("\0") != len(numbers) + 1 or "\0\0" in text for text in joined):
            bad = next(at for at, row in enumerate(zip(*texts, strict=True)) if not all(row) or "\0" in "".join(row))
            raise errors.InputError(f"{path}: row {numbers[bad]} has an empty {column!r} or image_id, or a NUL in one")
        try:
            if far:
                files, paths = _files_and_addresses(source.root, texts[0], distinct)
            else:
                files, paths = _files(source.root, texts[0], clean=_is_clean(joined[0]))
        except errors.InputError as error:
            raise errors.InputError(f"{path}: {error}") from error
        yield _Named(image_ids=texts[1] if with_ids else paths, paths=paths, files=files, columns=kept, addresses=far)


def _is_clean(joined: str) -> bool:
    """Return whether all names, with a NUL around each, are in normal form; never for non-ASCII ones."""
    return joined.isascii() and not any(
        mark in joined for character, marks in _UNCLEAN.items() if character in joined for mark in marks
    )


def _texts(values: Sequence[object]) -> list[str]:
    return ["" if value is None else value if type(value) is str else str(value) for value in values]


def _files(root: Path, entries: list[str], *, clean: bool) -> tuple[list[str], list[str]]:
    """Return the files that list entries name, relative to the root if below it, and their escaped texts."""
    prefix = _prefix(root)
    if max(map(len, entries)) > _LONGEST_NAME:
        long = next(entry for entry in entries if len(entry) > _LONGEST_NAME)
        raise errors.InputError(
            f"an entry of {len(long)} characters, beginning with {long[:40]!r}, is not a path: if the column holds the "
            "images themselves (base64), write them to files first, and pass that folder"
        )
    if clean:
        files = [entry.removeprefix(prefix) for entry in entries]
        return files, files
    files = [_listed_path(root, entry).removeprefix(prefix) for entry in entries]
    return files, [folders.to_text(file) for file in files]


def _files_and_addresses(root: Path, entries: list[str], distinct: addresses.Distinct) -> tuple[list[str], list[str]]:
    """Return as `_files` does; addresses among the files are whole, and among the texts without credentials."""
    entries = [entry.strip() if kinds.is_remote(entry.strip()) else entry for entry in entries]
    near = [entry for entry in entries if not kinds.is_remote(entry)]
    known = dict(zip(near, zip(*_files(root, near, clean=False), strict=True), strict=True)) if near else {}
    both = [known[entry] if entry in known else (entry, distinct.add(entry)) for entry in entries]
    return [file for file, _ in both], [text for _, text in both]


def _listed_path(root: Path, entry: str) -> str:
    """Return the path of a list entry: as written, or its first alternative reading that names an existing file.

    Raises:
        InputError: the entry is ambiguous, or missing and a URL or a path of another machine.
    """
    full = _joined(root, entry)
    if Path(full).exists():
        return full
    existing = [path for reading in _readings(entry) if Path(path := _joined(root, reading)).exists()]
    forms = {path for path in existing if _composed(path) == _composed(full)}
    if len(forms) > 1:
        raise errors.InputError(
            f"{entry!r} may be either of two files whose names look the same, "
            f"{' and '.join(map(ascii, sorted(forms)))}: rename one"
        )
    if not existing:
        _refuse_foreign(entry)
    return existing[0] if existing else _joined(root, entry.strip())


def _joined(root: Path, entry: str) -> str:
    """Return the path of an entry without `.` and `..`; `..` after a link to a folder follows the link."""
    full = os.path.join(root, entry)  # noqa: PTH118 -- a Path would drop parts that matter here
    climb, dots, rest = full.rpartition("/../")
    if dots and (there := os.path.realpath(f"{climb}/..")) != os.path.realpath(os.path.normpath(f"{climb}/..")):
        full = f"{there}/{rest}"
    return os.path.normpath(full)


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _readings(entry: str) -> Iterator[str]:
    """Yield alternative readings of an entry, for when no file has exactly its name."""
    if folders.has_escape(entry):
        yield folders.to_path(entry)
    if entry.lower().startswith("file://"):
        # In a file URL, `?` and `#` are taken as part of the name.
        yield urllib.parse.unquote("/" + entry[len("file://") :].partition("/")[2])
    slashes = entry.strip().replace("\\", "/")
    for each in dict.fromkeys((entry.strip(), slashes)):
        yield each
        if each.startswith("~"):
            yield os.path.expanduser(each)  # noqa: PTH111 -- leaves an unknown user as it is
        yield _composed(each)
        yield unicodedata.normalize("NFD", each)


def _refuse_foreign(entry: str) -> None:
    """Raise `InputError` for a URL or a path of another machine."""
    address = _ADDRESS.match(entry)
    if address and address[1].lower() != "file":
        raise errors.InputError(
            f"{text.redacted(entry[:200])!r} is a URL ({address[1]}://), and images are read from files, https://, "
            "s3:// and gs://: download them and list their paths"
        )
    if _DRIVE.match(entry):
        raise errors.InputError(
            f"{entry[:200]!r} is a Windows path that does not exist on this machine: write paths relative to the list, "
            "or as they are on this machine"
        )


def _refuse_duplicates(source: image_source.ImageSource, hashes: "array[int]", limit: int | None) -> None:
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
                    f"{source.describe()} contains the image {image_id!r} twice: remove one, or give each row a unique "
                    "image_id"
                )
            if hash(image_id) in suspects:
                seen.add(image_id)
