"""Image sources: a folder, a glob, a list (CSV, Parquet, JSON lines), or files with images inside."""

import glob
import math
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from genenc_core import errors, spec
from genenc_core.images.containers import kinds
from genenc_core.images.containers.frames import Frames
from genenc_core.images.decode import heif
from genenc_core.images.sources import addresses, tables

EXTENSIONS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "tif", "tiff", "bmp", "dib"),
    *("gif", "webp", "ppm", "pgm", "pbm", "pnm"),
)
"""File name extensions of the formats that are always supported."""
IMAGE_COLUMNS = (
    *("image", "path", "file", "filename", "image_path", "file_name", "filepath", "file_path", "img", "image_name"),
    *("img_path", "image_file", "img_name", "images"),
)
"""Names of a list's column of images, the likeliest first."""


def readable_extensions() -> tuple[str, ...]:
    """Return the supported file name extensions, including those of installed optional decoders."""
    return EXTENSIONS + heif.extensions()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """Location and kind of a set of images."""

    kind: Literal["folder", "glob", "list", "members"]
    """`members`: the images are inside files, as `containers` reads them."""
    root: Path
    """Absolute folder that relative paths are resolved against."""
    location: str
    """The folder, the absolute glob pattern, or the file."""
    image_column: str | None
    """Lists only: the column that names the images."""
    extensions: tuple[str, ...] = field(default_factory=readable_extensions)
    """Folders and globs only: extensions that count as images, or as containers of them."""
    files: tuple[str, ...] = ()
    """Containers that are named one by one, relative to `root`."""
    columns: bool = True
    """Whether further columns of a list, a table or a video are listed."""
    frames: str | None = None
    """Members only: which frames are images, as `Frames.parse` reads it."""
    channels: spec.Channels | None = None
    """Members only: channels other than RGB, which decide what the axes of an array are."""
    earlier_glob: bool = False
    """Whether `X/**` also matches files that match `X`, as in earlier versions, instead of as in Python's `glob`."""

    system_folders: bool = False
    """Whether folders of deleted files and thumbnails are entered, as in earlier versions."""

    def describe(self) -> str:
        """Return a short description for messages."""
        return repr(self.location) if self.kind == "members" else f"the {self.kind} {self.location!r}"


def open_source(images: str, *, image_column: str | None = None, frames: str | None = None) -> ImageSource:
    """Return the source that `images` names, after cheap checks only; nothing is listed yet.

    A glob supports `*`, `?`, `[...]` and `**` (any folders) and, like a folder, yields only files with an image
    extension; a single image file is a glob without wildcards. A list needs a column of image names: `image_column`, or
    the first match in `IMAGE_COLUMNS`, case-insensitive but preferring the exact case. A tar archive, a video or an
    array, a glob of such files, or several named as `shard-{0000..0123}.tar`, yields the images inside; with `frames`
    also the pages of TIFFs, and all such files of a folder.

    Raises:
        InputError: nothing there, an unreadable folder, an unsupported file, or a list without the column.
    """
    _check_utf8(images)
    if not images:
        raise errors.InputError(
            "the images argument is empty, perhaps an unset variable; use '.' for the current folder"
        )
    path = Path(images)
    inside = _members_source(images, image_column, frames)
    if inside is not None and (image_column is None or kinds.extension(images) == "parquet"):
        return replace(inside, image_column=image_column)
    if path.is_file() and tables.is_table(path):
        return _list_source(path, image_column)
    if image_column is not None:
        raise errors.InputError(
            f"an image column ({image_column!r}) needs a CSV, Parquet or JSON-lines list, and {images!r} is not one"
        )
    if path.is_dir():
        root = _readable_folder(path)
        return ImageSource(kind="folder", root=root, location=str(root), image_column=None)
    if path.is_file() and has_image_extension(path.name):
        return _glob_source(glob.escape(images))
    if path.exists():
        raise errors.InputError(
            f"{images!r} is not a folder, an image, or a .csv, .tsv, .parquet or .jsonl list of images"
        )
    if glob.has_magic(images):
        return _glob_source(images)
    raise errors.InputError(
        f"{images!r} does not exist; pass a folder, a quoted glob, or a list (CSV, Parquet, JSON lines)"
    )


def _members_source(images: str, column: str | None, frames: str | None) -> ImageSource | None:
    """Return the source of images inside files; None if `images` are files themselves."""
    Frames.parse(frames)
    if images.startswith("pipe:"):
        raise errors.InputError(
            f"{images[:200]!r} is a command, whose output cannot be read twice or from its middle, so that no row of "
            "it can be found again: give the address itself (s3://, gs://, https://), or download the archives"
        )
    if kinds.is_remote(images):
        return _remote_source(images, frames)
    known = kinds.ALWAYS if frames is None else kinds.ALWAYS | kinds.WITH_FRAMES
    path = Path(images)
    if path.is_file() and tables.image_cells(path, column, IMAGE_COLUMNS) is not None:
        return _files_source([images], images, frames)
    if (place := kinds.file_of(images)) is not None and (
        place != images.rstrip("/") or kinds.extension(place) in known
    ):
        return _files_source([images], images, frames)
    if frames is not None and path.is_dir():
        root = _readable_folder(path)
        extensions = tuple(sorted(kinds.WITH_FRAMES))
        return ImageSource(
            kind="members", root=root, location=str(root), image_column=None, extensions=extensions, frames=frames
        )
    if glob.has_magic(images) and not path.exists() and kinds.extension(images) in known | {"parquet"}:
        source = _glob_source(images)
        return replace(source, kind="members", extensions=(kinds.extension(images),), frames=frames)
    named = _expanded(images)
    if named and not path.exists():
        missing = [each for each in named if kinds.file_of(each) is None]
        if missing:
            raise errors.InputError(f"{images!r} names {len(named)} files, and {missing[0]!r} does not exist")
        return _files_source(named, images, frames)
    if path.is_dir() and kinds.is_zarr(path):
        raise errors.InputError(f"{images!r} is a Zarr folder: rename it to end in .zarr")
    if frames is not None:
        raise errors.InputError(
            f"--frames {frames} needs videos, TIFFs or arrays, or a folder of them, and {images!r} is not one"
        )
    return None


def _remote_source(images: str, frames: str | None) -> ImageSource:
    """Return the source of an address: objects below a prefix, archives, or one image of a web server."""
    addresses.refuse_credentials(images)
    if frames is not None:
        raise errors.InputError(f"--frames {frames} needs files on this machine, and {images!r} is an address")
    kind = kinds.remote_extension(images)
    if kind in ("gz", "tgz", "bz2", "xz", "zst") and ".t" in images.lower():
        raise errors.InputError(
            f"{images!r} is a compressed archive, of which no member can be read alone: write it again as .tar"
        )
    if images.lower().startswith("http") and kind != "tar" and not has_image_extension(f".{kind}"):
        raise errors.InputError(
            f"{images!r} is neither an image nor a .tar, and a web server has no list of its files: give a list (CSV, "
            "Parquet, JSON lines) with their addresses"
        )
    return _files_source(_expanded(images) or [images], images, frames)


def _files_source(named: Sequence[str], location: str, frames: str | None) -> ImageSource:
    """Return the source of named containers."""
    if kinds.is_remote(location):
        return ImageSource(
            kind="members", root=Path("/"), location=location, image_column=None, files=tuple(named), frames=frames
        )
    full = [Path(os.path.abspath(each)) for each in named]  # noqa: PTH100 -- links are kept as named
    above = Path(os.path.commonpath([kinds.place_of(str(each)) for each in full]))
    root = (above.parent if len(full) == 1 else above).resolve()
    files = tuple(f"{each.parent.resolve() / each.name}" for each in full)
    relative = tuple(str(Path(each).relative_to(root)) if Path(each).is_relative_to(root) else each for each in files)
    return ImageSource(
        kind="members", root=root, location=location, image_column=None, extensions=(), files=relative, frames=frames
    )


_RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")


def _expanded(images: str) -> list[str]:
    """Return the names that `{0000..0123}` stands for, as in a shell; none without such a range."""
    found = _RANGE.search(images)
    if found is None:
        return []
    first, last = map(int, found.groups())
    if last < first:
        raise errors.InputError(f"{images!r} names no files: {first} comes after {last}")
    count = math.prod(int(end) - int(begin) + 1 for begin, end in _RANGE.findall(images))
    if count > _MOST_NAMED:
        raise errors.InputError(f"{images!r} names {count} files: name at most {_MOST_NAMED}")
    names = (f"{images[: found.start()]}{n:0{len(found[1])}}{images[found.end() :]}" for n in range(first, last + 1))
    return [each for name in names for each in (_expanded(name) or [name])]


_MOST_NAMED = 1_000_000


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
    if image_column is None:  # prefer an exact match over one that differs in case
        matches = [each for name in candidates for each in sorted(columns, key=name.__ne__) if each.lower() == name]
    else:
        matches = [each for each in columns if each == image_column]
    if not matches:
        raise errors.InputError(
            f"the list {str(path)!r} has no image column: looked for {', '.join(candidates)}; its columns are: "
            f"{', '.join(columns) or 'none'}. Choose one with --image-column"
        )
    column, *others = dict.fromkeys(matches)
    tables.refuse_bytes(path, column)
    for other in others:
        _refuse_other_names(path, column, other)
    # Of a path and its tail the first one counts, unless only the other one leads to a file.
    if others and not _names_files(path, column):
        column = next((other for other in others if _names_files(path, other)), column)
    root = path.parent.resolve()  # where it is named, not where a link of that name leads
    return ImageSource(kind="list", root=root, location=str(root / path.name), image_column=column)


def _refuse_other_names(path: Path, column: str, other: str) -> None:
    """Raise `InputError` if another column names other images; a path and its tail count as the same image."""
    try:
        tables.refuse_bytes(path, other)
    except errors.InputError:
        return
    for number, *names in tables.iter_pairs(path, column, other):
        short, long = sorted((name.replace("\\", "/") for name in names), key=len)
        if has_image_extension(short) and has_image_extension(long) and not f"/{long}".endswith(f"/{short}"):
            raise errors.InputError(
                f"the list {str(path)!r} has several possible image columns: row {number} has {names[0]!r} as "
                f"{column!r} and {names[1]!r} as {other!r}. Choose one, for example with --image-column {column}"
            )


def _names_files(path: Path, column: str) -> bool:
    """Return whether the first image that a column of a list names is there."""
    _, first, _ = next(tables.iter_pairs(path, column, column), (0, "", ""))
    try:
        return bool(first) and path.parent.joinpath(first.replace("\\", "/")).is_file()
    except (OSError, ValueError):
        return False


def has_image_extension(name: str, extensions: Collection[str] | None = None) -> bool:
    """Return whether a file name has one of `extensions`; None means all supported ones."""
    return name.rpartition(".")[2].lower() in (readable_extensions() if extensions is None else extensions)


def _check_utf8(name: str) -> None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise errors.InputError(
            f"{name!r} is not valid UTF-8 and cannot be recorded: change into the folder and pass '.', or rename it "
            "(names below it may be arbitrary bytes)"
        ) from None
