"""Which images, in which order: a folder, a glob, or a CSV/Parquet list."""

import fnmatch
import glob
import os
import warnings
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from genenc_core import errors
from genenc_core.images import names, tables

EXTENSIONS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "tif", "tiff", "bmp", "dib"),
    *("gif", "webp", "ppm", "pgm", "pbm", "pnm"),
)
IMAGE_COLUMNS = ("image", "path", "file", "filename", "image_path")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """One image to be: its identity and what the file system says about it."""

    image_id: str
    """Same as `path`, or the list's `image_id` column."""
    path: str
    """POSIX; relative to the source's root when it lies under it, else absolute; as `names.to_text` writes it."""
    bytes: int
    """File size; -1 when there is no such file."""
    mtime_ns: int
    """Modification time in nanoseconds; -1 when there is no such file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """Where images come from."""

    kind: Literal["folder", "glob", "list"]
    root: Path
    """Absolute folder that relative paths start from."""
    location: str
    """The folder, the absolute pattern, or the list file."""
    image_column: str | None
    """Lists only: the column that names the image."""

    def describe(self) -> str:
        """Return the source in words, for messages."""
        return f"the {self.kind} {self.location!r}"


class LinkedFolderNotEntered(UserWarning):
    """Images behind a link to a folder outside the source are left out."""


def open_source(images: str, *, image_column: str | None = None) -> ImageSource:
    """Return the source that `images` names; cheap checks only, nothing is listed yet.

    A glob knows `*`, `?`, `[...]` and `**` (any folders) and, like a folder, yields only image files by extension; a
    single image file is a glob without wildcards. A list needs a column that names the image: `image_column`, or the
    first of image, path, file, filename, image_path.

    Raises:
        InputError: nothing there, an unreadable folder, a file of another kind, or a list without the column.
    """
    _check_utf8(images)
    if not images:
        raise errors.InputError(
            "the images are an empty text, perhaps of a variable that is not set; give '.' for here"
        )
    path = Path(images)
    if path.is_file() and tables.is_table(path):
        return _list_source(path, image_column)
    if image_column is not None:
        raise errors.InputError(
            f"an image column ({image_column!r}) needs a CSV or Parquet list, and {images!r} is none"
        )
    if path.is_dir():
        root = _readable_folder(path)
        return ImageSource(kind="folder", root=root, location=str(root), image_column=None)
    if path.is_file() and _has_image_extension(path.name):
        return _glob_source(glob.escape(images))
    if path.exists():
        raise errors.InputError(
            f"{images!r} is neither a folder, an image, nor a .csv, .tsv or .parquet list of images"
        )
    if glob.has_magic(images):
        return _glob_source(images)
    raise errors.InputError(f"{images!r} does not exist; give a folder, a glob in quotes, or a CSV/Parquet list")


def iter_images(source: ImageSource, *, limit: int | None = None) -> Iterator[ImageFile]:
    """Yield the images in the order of their rows, at most `limit`.

    Folders and globs are sorted by path and streamed one directory at a time; hidden files and folders are skipped.
    Links to files are followed wherever they lead; links to folders are not entered, with a warning when they lead
    out of the source. A list keeps its own order; its relative paths start at the list's folder, and a file that does
    not exist is still yielded, with bytes and mtime_ns -1. Memory for a list: 8 bytes a row.

    Raises:
        InputError: a folder that cannot be listed, an empty or repeated entry of a list (a repeated one once the list
            is through).
    """
    if source.kind == "list":
        yield from _iter_list(source, limit)
        return
    pattern: tuple[str, ...] = ("**",)
    if source.kind == "glob":
        pattern = Path(source.location).parts[len(source.root.parts) :]
    for path in islice(_walk(source.root, pattern), limit):
        yield _image_file(source.root, path, image_id=names.to_text(path))


def _readable_folder(path: Path) -> Path:
    try:
        with os.scandir(path) as entries:
            next(entries, None)
        return path.resolve(strict=True)
    except OSError as error:
        raise errors.InputError(f"cannot list the folder {str(path)!r}: {error.strerror}") from error


def _glob_source(pattern: str) -> ImageSource:
    parts = Path(pattern).parts
    fixed = next((index for index, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    folder = Path(*parts[:fixed])
    if not folder.is_dir():
        raise errors.InputError(f"the glob {pattern!r} starts in {str(folder)!r}, which is not a folder")
    root = _readable_folder(folder)
    return ImageSource(kind="glob", root=root, location=str(root.joinpath(*parts[fixed:])), image_column=None)


def _list_source(path: Path, image_column: str | None) -> ImageSource:
    columns = tables.column_names(path)
    candidates = IMAGE_COLUMNS if image_column is None else (image_column,)
    column = next((name for name in candidates if name in columns), None)
    if column is None:
        raise errors.InputError(
            f"the list {str(path)!r} has no image column: looked for {', '.join(candidates)}; its columns are: "
            f"{', '.join(columns) or 'none'}. Name the right one with --image-column"
        )
    file = path.resolve()
    return ImageSource(kind="list", root=file.parent, location=str(file), image_column=column)


def _has_image_extension(name: str) -> bool:
    return name.rpartition(".")[2].lower() in EXTENSIONS


def _check_utf8(name: str) -> None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise errors.InputError(
            f"{name!r} is not valid UTF-8, so it cannot be recorded as it was given: change into the folder and give "
            "'.', or rename it (names below it may be anything)"
        ) from None


def _image_file(root: Path, path: str, *, image_id: str) -> ImageFile:
    text = names.to_text(path)
    try:
        status = os.stat(os.path.join(root, path))  # noqa: PTH116, PTH118 -- a Path per file would double the cost
    except (OSError, ValueError):
        return ImageFile(image_id=image_id, path=text, bytes=-1, mtime_ns=-1)
    return ImageFile(image_id=image_id, path=text, bytes=status.st_size, mtime_ns=status.st_mtime_ns)


def _walk(root: Path, pattern: Sequence[str]) -> Iterator[str]:
    """Yield the image files below `root` that match `pattern`, as relative POSIX paths in string order."""
    stack = _children(root, "", pattern)
    while stack:
        path = stack.pop()
        if path.endswith("/"):
            stack += _children(root, path, pattern)
        elif _matches(tuple(path.split("/")), pattern):
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
    return entry.name if _has_image_extension(entry.name) else None


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


def _iter_list(source: ImageSource, limit: int | None) -> Iterator[ImageFile]:
    hashes = array("q")
    for image_id, path in islice(_iter_entries(source), limit):
        hashes.append(hash(image_id))
        yield _image_file(source.root, path, image_id=image_id)
    _refuse_duplicates(source, hashes, limit)


def _iter_entries(source: ImageSource) -> Iterator[tuple[str, str]]:
    """Yield (image_id, path) of each row of a list."""
    path = Path(source.location)
    column = source.image_column or IMAGE_COLUMNS[0]
    with_ids = column != "image_id" and "image_id" in tables.column_names(path)
    prefix = f"{source.root}/" if source.root != Path("/") else "/"
    for number, cells in tables.iter_cells(path, [column, "image_id"] if with_ids else [column]):
        texts = ["" if cell is None else str(cell) for cell in cells]
        if not all(texts) or any("\0" in text for text in texts):
            raise errors.InputError(f"{path}: row {number} has an empty {column!r} or image_id (or a NUL in it)")
        full = _listed_path(source.root, texts[0]).removeprefix(prefix)
        yield texts[1] if with_ids else names.to_text(full), full


def _listed_path(root: Path, entry: str) -> str:
    """Return the path of a list's entry: as it stands, or, when there is no such file, as the text of an odd name."""
    full = os.path.normpath(root / entry)
    if names.has_escape(entry) and not Path(full).exists():
        odd = os.path.normpath(root / names.to_path(entry))
        return odd if Path(odd).exists() else full
    return full


def _refuse_duplicates(source: ImageSource, hashes: "array[int]", limit: int | None) -> None:
    ordered = np.sort(np.frombuffer(hashes, dtype=np.int64)) if hashes else np.empty(0, dtype=np.int64)
    suspects = {int(value) for value in ordered[1:][ordered[1:] == ordered[:-1]]}
    seen: set[str] = set()
    for image_id, _path in islice(_iter_entries(source), limit if suspects else 0):
        if image_id in seen:
            raise errors.InputError(
                f"{source.describe()} names the image {image_id!r} twice; one image is one row: remove one, or give "
                "each row its own image_id column"
            )
        if hash(image_id) in suspects:
            seen.add(image_id)
