"""Reading of points: which form each file has, and several files as one table."""

import dataclasses
import glob
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from genenc_core import errors, text
from genenc_core.images.containers import slp_videos
from genenc_core.images.labels import (
    deeplabcut,
    json_labels,
    other_tools,
    pandas_hdf5,
    point_table,
    sleap,
    tidy,
    yolo,
    yolo_files,
)
from genenc_core.images.labels.point_table import Label, PointTable, Unused
from genenc_core.images.labels.scale import NORMALIZED, PointsScale
from genenc_core.images.sources import tables

_FORMS: Final = (
    "a table (.csv, .tsv, .parquet), a .h5 of DeepLabCut or SLEAP, a .slp, a .json of COCO or LabelMe, or YOLO's .txt"
)


def read_points(
    place: str | Path, *, columns: str | None = None, scale: str | None = None, min_likelihood: float | None = None
) -> PointTable:
    """Read the points of a file, of a DeepLabCut project or a folder of LabelMe files, or of the files of a glob.

    Args:
        place: a table (`tidy`), DeepLabCut's CSV or HDF5 (`deeplabcut`), SLEAP's files (`sleap`), COCO or LabelMe
            (`json_labels`); YOLO's files (`yolo`), which are fractions; a folder; or a glob.
        columns: the columns of tidy tables, as `image=frame,x=column,...`.
        scale: parsed by `PointsScale.parse`.
        min_likelihood: labels below it are missing points.

    Raises:
        InputError: nothing there, unreadable, of no known form, a column missing, x or y not a finite number, a
            repeated point (in one file or two), or no points.
    """
    chosen = tidy.chosen_columns(columns)
    points_scale = PointsScale.parse(scale)
    if min_likelihood is not None and not 0 <= min_likelihood <= 1:
        raise errors.InputError(f"--min-likelihood {min_likelihood:g} is not between 0 and 1")
    unused = Unused(likelihoods_count=min_likelihood is not None)
    files = _files(str(place), unused)
    above = {path.parent for path in files}
    root = Path(os.path.commonpath(above)) if len(above) > 1 else None
    folders = {} if root is None else {str(path): path.parent.relative_to(root).as_posix() for path in files}
    if texts := _all_or_no_texts(files):
        top = Path(place) if Path(place).is_dir() else root or files[0].parent
        return _of_yolo(texts, top, scale=points_scale, columns=columns, min_likelihood=min_likelihood)
    labels = (_labels(path, chosen, columns, unused, several=len(files) > 1, root=root) for path in files)
    table = point_table.build(itertools.chain.from_iterable(labels), min_likelihood=min_likelihood, folders=folders)
    unused.warn()
    if not table.names or not table.images:
        raise errors.InputError(f"the points file {str(place)!r} contains no points")
    return dataclasses.replace(table, xy=points_scale.apply(table.xy), scale=points_scale)


def _of_yolo(
    files: Sequence[Path], top: Path, *, scale: PointsScale, columns: str | None, min_likelihood: float | None
) -> PointTable:
    """Return the keypoints of YOLO's files below a folder, which are fractions."""
    if columns is not None:
        raise errors.InputError(f"--points-columns {columns!r} cannot be used with YOLO's files: remove it")
    normalized = PointsScale.parse(NORMALIZED)
    if scale.text not in (None, normalized.text):
        raise errors.InputError(
            f"--points-scale {scale.text!r} cannot be used with YOLO's files, which are fractions: leave it out"
        )
    found = yolo.points(files, top)
    table = point_table.build(found, min_likelihood=min_likelihood)
    if not table.names:
        raise errors.InputError(f"{str(files[0])!r} and the other files of YOLO contain no points")
    return dataclasses.replace(table, scale=normalized, by_stem=True)


def _all_or_no_texts(files: Sequence[Path]) -> Sequence[Path]:
    """Return the files if they are YOLO's; raise `InputError` if some are and others beside them are not."""
    texts = [path for path in files if yolo_files.is_labels(path)]
    if not any(map(yolo_files.has_numbers, texts)):
        return []
    others = [path for path in files if path not in texts and path.name not in yolo_files.NAMES]
    if texts and others:
        raise errors.InputError(
            f"the points are YOLO's text files, such as {str(texts[0])!r}, and other files, such as "
            f"{str(others[0])!r}: the first name their images without an ending, so give them in a run of their own"
        )
    return texts


def _files(place: str, unused: Unused) -> list[Path]:
    path = Path(place)
    try:
        is_file = path.is_file()
    except (OSError, ValueError) as error:
        raise errors.InputError(f"cannot read the points file {place[:300]!r}: {errors.reason(error)}") from error
    if is_file:
        return [path]
    if path.is_dir():
        return _files_of_folder(path, unused)
    if path.exists():
        raise errors.InputError(f"the points file {place!r} is not a regular file; pass {_FORMS}")
    matched = sorted(glob.glob(place, recursive=True))  # noqa: PTH207 -- any root
    found = [Path(each) for each in matched if Path(each).is_file()]
    if not found:
        what = "glob matches no file" if glob.has_magic(place) else "file does not exist"
        raise errors.InputError(f"the points {what}: {place!r}")
    return found


def _files_of_folder(folder: Path, unused: Unused) -> list[Path]:
    """Return the label files of a folder: of a DeepLabCut project, else its JSON files (LabelMe writes one an image).

    Without either, YOLO's text files, also those in folders below, of training and validation. JSON files in folders
    below are not used, since they may be anything.

    Raises:
        InputError: neither is there.
    """
    if project := deeplabcut.project_files(folder):
        return project
    found = sorted(folder.glob("*.json"))
    if not found and (texts := _texts_below(folder)):
        return texts
    inside = [path.relative_to(folder) for path in sorted(folder.glob("*/**/*.json"))]
    below = [path for path in inside if not any(part.startswith(".") for part in path.parts)]
    everything = repr(f"{glob.escape(str(folder))}/**/*.json")
    if not found:
        others = (
            f"the quoted glob {everything} reads those in its folders" if below else "pass the file or a quoted glob"
        )
        raise errors.InputError(
            f"the points folder {str(folder)!r} is neither a DeepLabCut project (labeled-data/*/CollectedData_*.csv) "
            f"nor a folder of LabelMe's .json files or YOLO's .txt files; for others, {others}"
        )
    if below:
        what = f"{text.plural(len(below), '.json file')} in its folders, such as {below[0].as_posix()!r}"
        unused.add(folder.name, what, f"The quoted glob {everything} reads all")
    return found


def _texts_below(folder: Path) -> list[Path]:
    """Return YOLO's files in a folder and those below it."""
    found = [path for path in sorted(folder.rglob("*.txt")) if path.is_file() and yolo_files.is_labels(path)]
    return found if any(map(yolo_files.has_numbers, found)) else []


def _labels(
    path: Path, chosen: Mapping[str, str], columns: str | None, unused: Unused, *, several: bool, root: Path | None
) -> Iterator[Label]:
    """Return the labels of one file, of `several`, which lie below `root` if they are in several folders."""
    suffix = path.suffix.lower()
    if tables.is_table(path):
        if not deeplabcut.is_csv(path):
            return tidy.labels(path, chosen, unused=unused)
        _refuse_columns(path, columns, "a DeepLabCut CSV")
        return deeplabcut.csv_labels(path, unused=unused, folder=_folder_of_video(path, root))
    if suffix == slp_videos.SUFFIX:
        _refuse_columns(path, columns, "a SLEAP project")
        return sleap.slp_labels(path, unused=unused)
    if suffix in deeplabcut.HDF5_SUFFIXES:
        _refuse_columns(path, columns, "HDF5")
        entries = pandas_hdf5.entries(path)
        if sleap.is_analysis(entries):
            return sleap.analysis_labels(path, unused=unused)
        if other := other_tools.of_hdf5(entries):
            raise errors.InputError(f"the points file {str(path)!r} seems to hold {other}")
        return deeplabcut.hdf5_labels(path, unused=unused, folder=_folder_of_video(path, root))
    if suffix == ".json":
        _refuse_columns(path, columns, "JSON")
        folder = "" if root is None else path.parent.relative_to(root).as_posix()
        return json_labels.labels(path, unused=unused, folder=folder, one_of_several=several)
    try:
        reason = other_tools.by_name(path)
    except OSError as error:
        raise errors.InputError(f"cannot read the points file {str(path)!r}: {error.strerror}") from error
    raise errors.InputError(f"the points file {str(path)!r} {reason or f'is not {_FORMS}; pass one of those'}")


def _folder_of_video(path: Path, root: Path | None) -> str:
    """Return the folder of a file of predictions, below that of all such files and with the two that hold it."""
    around = path.parent if root is None else root
    below = () if root is None else path.parent.relative_to(root).parts
    return "/".join((*around.absolute().parts[1:][-2:], *below))


def _refuse_columns(path: Path, columns: str | None, what: str) -> None:
    if columns is not None:
        raise errors.InputError(
            f"--points-columns {columns!r} cannot be used with {str(path)!r}, {what} with fixed columns: remove it"
        )
