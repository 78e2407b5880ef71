"""Kinds of files with images inside, by their name."""

import importlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line needs no torch
    from genenc_core import spec
    from genenc_core.images.containers.container import Container

_KINDS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "tar": (("tar",), "Tar"),
    "video": (("mp4", "avi", "mov", "mkv", "webm", "m4v", "mpg", "mpeg", "wmv", "mts"), "Video"),
    "npy": (("npy",), "Npy"),
    "hdf5": (("h5", "hdf5"), "Hdf5"),
    "slp": (("slp",), "SlpPackage"),
    "zarr_arrays": (("zarr",), "ZarrArray"),
    "tiff_stack": (("tif", "tiff"), "TiffStack"),
    "parquet_images": (("parquet",), "ParquetImages"),
}
"""Module -> extensions in lower case, and the class."""
_BY_EXTENSION = {extension: module for module, (extensions, _) in _KINDS.items() for extension in extensions}
ALWAYS = frozenset(_BY_EXTENSION) - {"tif", "tiff", "parquet"}
"""Extensions of files that are containers and nothing else."""
WITH_FRAMES = frozenset(_BY_EXTENSION) - {"tar", "parquet", "slp"}
"""Extensions of files whose members are numbered frames."""
ZARR_METADATA = ("zarr.json", ".zarray", ".zgroup")
"""Files that make a folder a Zarr array or group."""
_NAMED = ("hdf5", "zarr_arrays")
"""Kinds with several arrays, one of which a path may name: `a.h5/frames`."""


def extension(path: str) -> str:
    """Return a name's extension in lower case, without the dot."""
    return os.path.splitext(path.rstrip("/"))[1][1:].lower()  # noqa: PTH122 -- of millions


def file_of(path: str) -> str | None:
    """Return the file or Zarr folder that a path names, or names an array in; None if it is none."""
    if not path:
        return None
    parts = Path(path)
    for place in (parts, *parts.parents):
        kind = _BY_EXTENSION.get(extension(place.name))
        if kind is None or (place != parts and kind not in _NAMED):
            continue
        if is_zarr(place) if kind == "zarr_arrays" else place.is_file():
            return str(place)
    return None


def is_zarr(folder: Path) -> bool:
    """Return whether a folder is a Zarr array or group."""
    return any((folder / name).is_file() for name in ZARR_METADATA)


def place_of(path: str) -> str:
    """Return the file or folder that `open_container` opens for this path, by its name alone."""
    if is_remote(path):
        return path
    parts = Path(path)
    named = (each for each in parts.parents if _BY_EXTENSION.get(extension(each.name)) in _NAMED)
    return path if extension(path) in _BY_EXTENSION else str(next(named, parts))


def environment() -> dict[str, str]:
    """Return the variables that name the server and hold the credentials of addresses, for decode workers."""
    return {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "GOOGLE_"))}


def is_remote(path: str) -> bool:
    """Return whether a path is an address."""
    return path[:8].lower().startswith(("s3://", "gs://", "http://", "https://"))


def remote_extension(address: str) -> str:
    """Return the extension of the file that an address names, in lower case, without what follows a `?`."""
    return extension(address.partition("?")[0] if address[:4].lower() == "http" else address)


def without_pattern(path: str) -> str:
    """Return an address up to its first folder or name with `*`, `?` or `[`; other paths as they are."""
    if not is_remote(path) or path[:4].lower() == "http":
        return path
    parts = path.split("/")
    first = next((at for at, part in enumerate(parts) if at > 2 and re.search(r"[*?\[]", part)), len(parts))
    return "/".join(parts[:first]).rstrip("/")


def open_container(path: str, channels: "spec.Channels | None" = None) -> "Container":
    """Open the container that a path names, or names an array in.

    With `channels`, arrays and TIFFs give samples instead of RGB, and their axes are those of such channels.

    Raises:
        ImageUnreadable: it is damaged, or not of the kind that its name says; the reason.
        OSError: it cannot be read.
    """
    if is_remote(path):
        from genenc_core.images.containers import remote, remote_tar

        return (remote_tar.RemoteTar if remote_extension(path) == "tar" else remote.Remote).open(path)
    place = file_of(path)
    if place is None and Path(path).is_dir():
        raise IsADirectoryError(21, "it is a folder", path)
    if place is None:
        raise FileNotFoundError(2, "No such file or directory", path)
    module = _BY_EXTENSION[extension(place)]
    kind: type[Container] = getattr(
        importlib.import_module(f"genenc_core.images.containers.{module}"), _KINDS[module][1]
    )
    return kind.open(path) if channels is None or not kind.has_channels else kind.open(path, channels)
