"""Which images, in which order: a folder, a glob, or a CSV/Parquet list."""

import glob
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from genenc_core import errors
from genenc_core.images import heif, tables

EXTENSIONS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "tif", "tiff", "bmp", "dib"),
    *("gif", "webp", "ppm", "pgm", "pbm", "pnm"),
)
"""Ends of the names of the images that are read wherever genenc runs."""
IMAGE_COLUMNS = (
    *("image", "path", "file", "filename", "image_path", "file_name", "filepath", "file_path", "img", "image_name"),
    *("img_path", "image_file", "img_name", "images"),
)
_COMPARED = 16384
"""Rows of a list that are compared at once."""


def readable_extensions() -> tuple[str, ...]:
    """Return the ends of names of the images that can be read here, with the decoders that are installed."""
    return EXTENSIONS + heif.extensions()


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
    extensions: tuple[str, ...] = field(default_factory=readable_extensions)
    """Folders and globs only: ends of the names of images."""

    def describe(self) -> str:
        """Return the source in words, for messages."""
        return f"the {self.kind} {self.location!r}"


def open_source(images: str, *, image_column: str | None = None) -> ImageSource:
    """Return the source that `images` names; cheap checks only, nothing is listed yet.

    A glob knows `*`, `?`, `[...]` and `**` (any folders) and, like a folder, yields only image files by extension; a
    single image file is a glob without wildcards. A list needs a column that names the image: `image_column`, or the
    first of `IMAGE_COLUMNS`, in upper or lower case.

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
    if path.is_file() and has_image_extension(path.name):
        return _glob_source(glob.escape(images))
    if path.exists():
        raise errors.InputError(
            f"{images!r} is neither a folder, an image, nor a .csv, .tsv or .parquet list of images"
        )
    if glob.has_magic(images):
        return _glob_source(images)
    raise errors.InputError(f"{images!r} does not exist; give a folder, a glob in quotes, or a CSV/Parquet list")


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
    lower = {name.lower(): name for name in reversed(columns)} if image_column is None else {}
    column = next((lower.get(name, name) for name in candidates if name in columns or name in lower), None)
    if column is None:
        raise errors.InputError(
            f"the list {str(path)!r} has no image column: looked for {', '.join(candidates)}; its columns are: "
            f"{', '.join(columns) or 'none'}. Name the right one with --image-column"
        )
    tables.refuse_bytes(path, column)
    if image_column is None:
        for other in dict.fromkeys(lower[name] for name in IMAGE_COLUMNS if name in lower):
            if other != column:
                _refuse_other_names(path, column, other)
    file = path.resolve()
    return ImageSource(kind="list", root=file.parent, location=str(file), image_column=column)


def _refuse_other_names(path: Path, column: str, other: str) -> None:
    """Raise `InputError` when another column names other images; the ends of the same paths are the same."""
    try:
        tables.refuse_bytes(path, other)
    except errors.InputError:
        return
    for numbers, block in tables.iter_blocks(path, [column, other], block_rows=_COMPARED):
        for number, *cells in zip(numbers, *block, strict=True):
            short, long = sorted((str(cell or "").strip().replace("\\", "/") for cell in cells), key=len)
            if has_image_extension(short) and has_image_extension(long) and not f"/{long}".endswith(f"/{short}"):
                raise errors.InputError(
                    f"the list {str(path)!r} has several columns that may be the image: row {number} has {cells[0]!r} "
                    f"as {column!r} and {cells[1]!r} as {other!r}. Name the right one with --image-column {column}"
                )


def has_image_extension(name: str, extensions: Collection[str] | None = None) -> bool:
    """Return whether a file's name ends as an image's does; None: of every kind that can be read here."""
    return name.rpartition(".")[2].lower() in (readable_extensions() if extensions is None else extensions)


def _check_utf8(name: str) -> None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise errors.InputError(
            f"{name!r} is not valid UTF-8, so it cannot be recorded as it was given: change into the folder and give "
            "'.', or rename it (names below it may be anything)"
        ) from None
