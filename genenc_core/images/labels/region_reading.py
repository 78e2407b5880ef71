"""Reading of regions: which form each file has, and several files as one table."""

import glob
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from genenc_core import errors
from genenc_core.images.labels import mask_files, region_json, region_table, region_tables, yolo, yolo_files
from genenc_core.images.labels.point_table import Unused
from genenc_core.images.labels.region_table import Region, RegionTable
from genenc_core.images.labels.scale import NORMALIZED, PointsScale
from genenc_core.images.sources import tables

OPTION: Final = "--regions-scale"
_FORMS: Final = (
    "a table of boxes (.csv, .tsv, .parquet), a .json of COCO or LabelMe, mask images (.png, .tif) or YOLO's .txt "
    "named as the images"
)


def read_regions(
    places: Sequence[str | Path],
    *,
    columns: str | None = None,
    scale: str | None = None,
    min_score: float | None = None,
) -> RegionTable:
    """Read the regions of files, of folders of masks or LabelMe files, or of the files of globs.

    Args:
        places: tables (`region_tables`), COCO or LabelMe (`region_json`), mask images (`mask_files`), YOLO's files
            (`yolo`), which are fractions; folders; globs.
        columns: the columns of tables, as `image=frame,x_min=left,...`.
        scale: parsed by `PointsScale.parse`.
        min_score: regions of a lower score are left out.

    Raises:
        InputError: nothing there, unreadable, of no known form, a column missing, a number that is none, a repeated
            region, masks together with other files, or no regions.
    """
    chosen = region_tables.chosen_columns(columns)
    regions_scale = PointsScale.parse(scale, option=OPTION)
    if min_score is not None and not 0 <= min_score <= 1:
        raise errors.InputError(f"--min-score {min_score:g} is not between 0 and 1")
    unused = Unused(likelihoods_count=True)
    given = {str(place): _files(str(place)) for place in places}
    files = list(dict.fromkeys(itertools.chain.from_iterable(given.values())))
    if any(map(yolo_files.is_labels, files)):
        files = [path for path in files if path.name not in yolo_files.NAMES]
    masks = _all_or_none(files, [path for path in files if path.suffix.lower() in mask_files.SUFFIXES], "mask images")
    texts = _all_or_none(files, [path for path in files if yolo_files.is_labels(path)], "YOLO's text files")
    if texts and regions_scale.text not in (None, NORMALIZED):
        raise errors.InputError(
            f"{OPTION} {scale!r} cannot be used with YOLO's files, which are fractions: leave it out"
        )
    regions_scale = PointsScale.parse(NORMALIZED) if texts else regions_scale
    top = _top(given)
    root = top if any(path.parent != top for path in files) else None
    folders = {} if root is None else {str(path): path.parent.relative_to(root).as_posix() for path in files}
    found: Iterator[Region]
    if masks or texts:
        found = mask_files.regions(files, top) if masks else yolo.regions(files, top)
    else:
        found = itertools.chain.from_iterable(_regions(path, chosen, columns, unused, root=root) for path in files)
    table = region_table.build(
        found,
        scale=regions_scale,
        min_score=min_score,
        by_stem=bool(masks or texts),
        folders={} if masks or texts else folders,
    )
    unused.warn()
    if not len(table) and not table.uncertain:
        raise errors.InputError(f"{', '.join(map(repr, map(str, places)))} holds no regions")
    return table


def _top(given: Mapping[str, Sequence[Path]]) -> Path:
    """Return the folder that what is given has in common: names of folders below it count."""
    folders = {
        folder
        for place, files in given.items()
        for folder in ([Path(place)] if Path(place).is_dir() else [path.parent for path in files])
    }
    return Path(os.path.commonpath(folders)) if len(folders) > 1 else folders.pop()


def _all_or_none(files: Sequence[Path], some: Sequence[Path], what: str) -> Sequence[Path]:
    """Return files that name their images without an ending; raise `InputError` if there are others beside them."""
    if some and len(some) < len(files):
        other = next(path for path in files if path not in some)
        raise errors.InputError(
            f"the regions are {what}, such as {str(some[0])!r}, and other files, such as {str(other)!r}: {what} name "
            "their images without an ending, so give them in a run of their own"
        )
    return some


def _files(place: str) -> list[Path]:
    path = Path(place)
    try:
        if path.is_file():
            return [path]
        if path.is_dir():
            return _files_of_folder(path)
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise errors.InputError(f"cannot read the regions file {place[:300]!r}: {errors.reason(error)}") from error
    if exists:
        raise errors.InputError(f"the regions file {place!r} is not a regular file; pass {_FORMS}")
    matched = sorted(glob.glob(place, recursive=True))  # noqa: PTH207 -- any root
    found = [Path(each) for each in matched if Path(each).is_file()]
    if not found:
        what = "glob matches no file" if glob.has_magic(place) else "file does not exist"
        raise errors.InputError(f"the regions {what}: {place!r}")
    return found


def _files_of_folder(folder: Path) -> list[Path]:
    """Return the mask images, YOLO's files, or JSON files of LabelMe, of a folder and those below it.

    Raises:
        InputError: it has none, or several kinds.
    """
    below = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    kinds = {
        "mask images": [path for path in below if path.suffix.lower() in mask_files.SUFFIXES],
        ".json files": [path for path in below if path.suffix.lower() == ".json"],
        ".txt files": [path for path in below if yolo_files.is_labels(path)],
    }
    there = [kind for kind, found in kinds.items() if found]
    if len(there) == 1:
        return kinds[there[0]]
    holds = " and ".join(there) or "neither mask images (.png, .tif) nor .json files of LabelMe nor .txt files of YOLO"
    pattern = repr(f"{glob.escape(str(folder))}/*.json")
    raise errors.InputError(
        f"the regions folder {str(folder)!r} holds {holds}: pass the files, or a quoted glob such as {pattern}"
    )


def _regions(
    path: Path, chosen: Mapping[str, str], columns: str | None, unused: Unused, *, root: Path | None
) -> Iterator[Region]:
    suffix = path.suffix.lower()
    if tables.is_table(path):
        return region_tables.regions(path, chosen, unused=unused)
    if suffix != ".json":
        raise errors.InputError(f"the regions file {str(path)!r} is not {_FORMS}; pass one of those")
    if columns is not None:
        raise errors.InputError(
            f"--regions-columns {columns!r} cannot be used with {str(path)!r}, JSON with fixed names: remove it"
        )
    folder = "" if root is None else path.parent.relative_to(root).as_posix()
    return region_json.regions(path, unused=unused, folder=folder)
