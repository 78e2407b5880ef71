"""Exports of features: Parquet, NumPy files, HDF5, a folder for the Hugging Face Hub.

All is written under a private name beside the target, made durable, and renamed at the end: what has the final name is
complete.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from genenc_core import errors, text
from genenc_core.encoding import cancellation
from genenc_core.features import array_files, parquet_files
from genenc_core.features.parameters import ExportFeaturesParameters
from genenc_core.features.tables import Features
from genenc_core.features.vectors import MEBIBYTE
from genenc_core.run import out_folder
from genenc_core.store.backends.objects import is_remote
from genenc_core.stored import rows as stored_rows
from genenc_core.system import files

Write = Callable[[Features, Path, int], None]
_WRITERS: Mapping[str, Write] = {
    "parquet": parquet_files.write,
    "hub": parquet_files.write_hub,
    "npy": array_files.write_npy,
    "hdf5": array_files.write_hdf5,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written."""

    place: str
    format: str
    files: tuple[str, ...]
    """Names below the place, sorted; of a single file its own."""
    bytes: int
    rows: int
    """Images that were exported."""
    without_features: dict[str, int]
    """Of these, rows whose values are not set, by state."""
    left_out: dict[str, int]
    """Rows that were not exported, by state."""

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON data."""
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """Return all of it as text."""
        found = [f"{self.place}: {text.plural(self.rows, 'image')}, {text.size(self.bytes)}: {', '.join(self.files)}"]
        for words, counts in (("without features", self.without_features), ("left out", self.left_out)):
            if counts:
                found.append(f"{words}: {', '.join(f'{count} {name}' for name, count in counts.items())}")
        return [each.replace("not_written", "not written") for each in found]


def export(given: ExportFeaturesParameters) -> Exported:
    """Write the features of a run or version to a new place.

    Raises:
        InputError: an invalid argument, a place that is in use, or a library is not installed.
        StoreError: the run or dataset is damaged.
    """
    check(given)
    stored = stored_rows.open_rows(given.source, given.version)
    features = Features(stored, given.products, only_ok=given.only_ok, license=given.license)
    if not len(features.rows):
        raise errors.InputError(f"{stored.title!r} has no rows to export")
    target = Path(os.path.abspath(given.out))  # noqa: PTH100 -- keeps links
    with placed(target) as partial:
        _WRITERS[given.format](features, partial, given.memory * MEBIBYTE)
        cancellation.current().raise_if_cancelled()
    names = sorted(files.walk(target)) if target.is_dir() else [(target.name, target.stat().st_size)]
    return Exported(
        place=str(given.out),
        format=given.format,
        files=tuple(name for name, _ in names),
        bytes=sum(size for _, size in names),
        rows=len(features.rows),
        without_features=features.kept,
        left_out=features.left_out,
    )


def check(given: ExportFeaturesParameters) -> None:
    """Refuse what cannot be written, before anything is read.

    Raises:
        InputError: the place is in use, remote or not writable, or a library is not installed.
    """
    check_place(given.out)
    if given.format == "hdf5":
        array_files.require_h5py()


def check_place(out: str) -> None:
    """Refuse a place that is in use, remote or not writable.

    Raises:
        InputError: it is.
    """
    if is_remote(out) or "://" in out:
        raise errors.InputError(f"--out {out!r} is not local: export to a local place, and upload that")
    target = Path(out)
    if target == Path() or os.path.lexists(target):
        raise errors.InputError(f"--out {out!r} exists: give a new name, or remove it first")
    out_folder.refuse_inside_run(target)
    nearest = next(item for item in target.absolute().parents if item.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise errors.InputError(f"--out {out!r} cannot be written: {str(nearest)!r} is not a writable folder")


@contextlib.contextmanager
def placed(target: Path) -> Iterator[Path]:
    """Yield a private path beside the target; what is there at the end gets the target's name."""
    partial = target.with_name(files.private_name(target.name))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if partial.is_dir():
            files.sync_tree(partial)
        else:
            files.sync(partial)
        _claim(partial, target)
        files.sync_folder(target.parent)
    except OSError as error:
        raise errors.InputError(
            f"--out {str(target)!r} cannot be written: {error.strerror or error}; give a place with free space"
        ) from error
    finally:
        if partial.is_dir():
            files.remove_tree(partial)
        else:
            partial.unlink(missing_ok=True)


def _claim(partial: Path, target: Path) -> None:
    try:
        if partial.is_dir():
            if os.path.lexists(target):
                raise FileExistsError
            partial.rename(target)
        else:
            files.link_exclusive(partial, target)
    except FileExistsError as error:
        raise errors.InputError(
            f"--out {str(target)!r} was made by another process meanwhile: give a new name"
        ) from error
