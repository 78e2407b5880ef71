"""Named points per image, read from a tidy table or a DeepLabCut CSV."""

import dataclasses
import math
import re
import unicodedata
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genenc_core import errors
from genenc_core.images import matching, tables
from genenc_core.images.point_scale import PIXELS, PointsScale
from genenc_core.images.sources import IMAGE_COLUMNS

TIDY_COLUMNS: Mapping[str, Sequence[str]] = {
    "image": ("image", *IMAGE_COLUMNS, "frame"),
    "point": ("point", "bodypart", "point_name", "keypoint", "landmark", "label", "name", "part", "node"),
    "x": ("x", "x_px", "x_pixel", "x_pixels", "point_x"),
    "y": ("y", "y_px", "y_pixel", "y_pixels", "point_y"),
}
"""The columns of a tidy table, and what else they are called."""
_OTHER_FORMATS: Mapping[str, str] = {
    ".h5": "is HDF5. Of DeepLabCut, the CSV beside it holds the same labels: give that, or write it with "
    "pandas.read_hdf(FILE).to_csv('CollectedData.csv'). Of SLEAP, export a CSV (analysis) and name its columns with "
    "--points-columns",
    ".slp": "is a SLEAP project. Write a table of image, point, x, y from it, for example with sleap-io: "
    "for frame in sleap_io.load_slp(FILE): ...",
    ".json": "is JSON (COCO, LabelMe and others). Write a table of image, point, x, y from it: in COCO, keypoints are "
    "x, y, visibility in turn; in LabelMe, a shape has a label and points",
    ".mat": "is MATLAB's. Write a table of image, point, x, y from it (in MATLAB: writetable)",
    ".xlsx": "is a spreadsheet. Save it as 'CSV UTF-8'",
    ".pkl": "is a Python pickle, which could run code. Write it as CSV: pandas.DataFrame.to_csv",
}
_SAME_FORMAT = {".hdf5": ".h5", ".hdf": ".h5", ".xls": ".xlsx", ".ods": ".xlsx", ".pickle": ".pkl", ".jsonl": ".json"}
LARGEST_TABLE = 2**26
"""images times names; 1 GiB of positions"""
_SHOWN = 8
_INDEX = r"|index|Unnamed: \d+|__index_level_\d+__"
DLC_HEADER = ("scorer", "individuals", "bodyparts", "coords")


class UnusedColumns(UserWarning):
    """Columns of a points file that nothing is taken from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PointTable:
    """Points in source-image pixels, origin at the top-left edge; NaN = missing.

    Where `scale` is relative they are fractions of the image's width and height.
    """

    names: tuple[str, ...]
    images: tuple[str, ...]
    """as `matching.normal` writes them"""
    xy: np.ndarray
    """float64 [len(images), len(names), 2]."""
    scale: PointsScale = PIXELS
    """What the file's coordinates were multiplied by."""


@dataclass(frozen=True, slots=True)
class _Point:
    row: int
    image: str
    name: str
    x: float
    y: float


def read_points(path: Path, *, columns: str | None = None, scale: str | None = None) -> PointTable:
    """Read points from a tidy CSV/Parquet (columns image, point, x, y; a warning names others) or a DeepLabCut CSV.

    Columns of a tidy table may have other names: those of `TIDY_COLUMNS`, or `columns`, `image=frame,x=column,...`.

    A DeepLabCut CSV begins with the rows scorer, [individuals,] bodyparts, coords; the image stands in one column or
    in three (labeled-data, folder, file); likelihood columns are not used, which a warning says; points of several
    animals are named `individual.bodypart`. Images and names keep the order of their first appearance, in composed
    characters (NFC), images as `matching.normal` writes them. An empty or NaN cell is missing.
    `scale`: `PointsScale.parse`.

    Raises:
        InputError: unreadable, a column missing, x or y that is no finite number, a point given twice, or no points.
    """
    if path.exists() and not path.is_file():
        raise errors.InputError(f"the points file {str(path)!r} is not a regular file; give a .csv, .tsv or .parquet")
    if not path.is_file():
        raise errors.InputError(f"the points file {str(path)!r} does not exist")
    chosen = _chosen_columns(columns)
    points_scale = PointsScale.parse(scale)
    if not tables.is_table(path):
        suffix = path.suffix.lower()
        other = _OTHER_FORMATS.get(
            _SAME_FORMAT.get(suffix, suffix), "is not a .csv, .tsv or .parquet; give one of those"
        )
        raise errors.InputError(f"the points file {str(path)!r} {other}")
    dlc = _is_dlc(path)
    if dlc and chosen:
        raise errors.InputError(
            f"--points-columns {columns!r} does not go with {str(path)!r}, a DeepLabCut CSV, whose columns are known: "
            "leave it out"
        )
    table = _table(path, _iter_dlc(path) if dlc else _iter_tidy(path, chosen))
    if not table.names or not table.images:
        raise errors.InputError(f"the points file {str(path)!r} holds no points")
    return dataclasses.replace(table, xy=points_scale.apply(table.xy), scale=points_scale)


def _is_dlc(path: Path) -> bool:
    return path.suffix.lower() in tables.CSV_DELIMITERS and tables.column_names(path)[:1] == ["scorer"]


def _chosen_columns(columns: str | None) -> dict[str, str]:
    """Read `image=frame,point=bodypart`; raises `InputError` for another form."""
    chosen: dict[str, str] = {}
    for item in columns.split(",") if columns else []:
        name, equals, column = map(str.strip, item.partition("="))
        if not equals or not column or name not in TIDY_COLUMNS or name in chosen:
            raise errors.InputError(
                f"--points-columns {columns!r} is not of the form NAME=COLUMN,... with each of the names "
                f"{', '.join(TIDY_COLUMNS)} at most once"
            )
        chosen[name] = column
    return chosen


def _iter_tidy(path: Path, chosen: Mapping[str, str]) -> Iterator[_Point]:
    columns = tables.find_columns(path, TIDY_COLUMNS, chosen)
    for text in ("image", "point"):
        tables.refuse_bytes(path, columns[text])
    _name_unused(path, columns.values())
    for number, (image, name, x, y) in tables.iter_cells(path, [columns[key] for key in TIDY_COLUMNS]):
        if image in (None, "") or name in (None, ""):
            raise errors.InputError(f"{path}: row {number} has an empty image or point")
        yield _Point(number, str(image), str(name), _number(path, number, "x", x), _number(path, number, "y", y))


def _name_unused(path: Path, used: Collection[str]) -> None:
    """Warn of columns that are not read: a likelihood, or what tells animals, videos or annotators apart."""
    # A data frame's index has no name, or pandas's own for that.
    unused = [name for name in tables.column_names(path) if name not in used and not re.fullmatch(_INDEX, name)]
    if unused:
        more = f" and {len(unused) - _SHOWN} more" if len(unused) > _SHOWN else ""
        _warn_of_unused(path, f"{', '.join(map(repr, unused[:_SHOWN]))}{more}")


def _warn_of_unused(path: Path, names: str) -> None:
    warnings.warn(
        f"{path.name}: columns that are not used: {names}. Every row is a point, however likely or visible; what tells "
        "animals or videos apart belongs in the name of the point or of the image",
        UnusedColumns,
        stacklevel=2,
    )


def _iter_dlc(path: Path) -> Iterator[_Point]:
    lines = tables.iter_csv(path)
    header = _dlc_header(path, lines)
    index_columns = next((i for i, cell in enumerate(header["coords"]) if i and cell), 1)
    _refuse_several_scorers(path, header, index_columns)
    columns = _dlc_columns(path, header, index_columns)
    if "likelihood" in header["coords"]:
        _warn_of_unused(path, "likelihood")
    for number, cells in lines:
        if not any(cells):
            continue
        parts = [cell.strip() for cell in cells[:index_columns]]
        if any(parts) and not all(parts):
            raise errors.InputError(
                f"{path}: line {number} names its image in {index_columns} cells, and some are empty: {parts}. Write "
                "the folders in every line"
            )
        image = "/".join(parts)
        if image.isdecimal():
            raise errors.InputError(
                f"{path}: line {number} is of frame {image} of a video: this is what DeepLabCut found in a video, and "
                "its rows name no images. Give the labels of its frames (labeled-data/VIDEO/CollectedData_*.csv), or a "
                "tidy table image,point,x,y"
            )
        if not image.strip("/"):
            raise errors.InputError(f"{path}: line {number} names no image")
        if len(cells) < len(header["coords"]):
            raise errors.InputError(
                f"{path}: line {number} has {len(cells)} cells, its header has {len(header['coords'])}: was it "
                "cut off? Missing labels are empty cells"
            )
        tables.refuse_more_cells(path, number, cells, len(header["coords"]))
        for name, (x, y) in columns.items():
            yield _Point(
                number, image, name, _number(path, number, "x", cells[x]), _number(path, number, "y", cells[y])
            )


def _dlc_header(path: Path, lines: Iterator[tuple[int, list[str]]]) -> dict[str, list[str]]:
    header: dict[str, list[str]] = {}
    for number, cells in lines:
        name = cells[0].strip() if cells else ""
        if name not in DLC_HEADER or name in header:
            raise errors.InputError(
                f"{path}: line {number} begins with {name!r}; a DeepLabCut CSV begins with the rows scorer, "
                "[individuals,] bodyparts, coords"
            )
        header[name] = [cell.strip() for cell in cells]
        if name == "coords":
            break
    if "coords" not in header or "bodyparts" not in header:
        raise errors.InputError(f"{path}: a DeepLabCut CSV needs the header rows bodyparts and coords")
    if len({len(cells) for cells in header.values()}) > 1:
        raise errors.InputError(f"{path}: the DeepLabCut header rows have different numbers of cells")
    return header


def _refuse_several_scorers(path: Path, header: dict[str, list[str]], index_columns: int) -> None:
    scorers = list(dict.fromkeys(filter(None, header.get("scorer", [])[index_columns:])))
    if len(scorers) > 1:
        raise errors.InputError(
            f"{path}: it holds the labels of {len(scorers)} scorers, {', '.join(map(repr, scorers[:3]))}: which "
            "of them is meant cannot be known; keep the columns of one"
        )


def _dlc_columns(path: Path, header: dict[str, list[str]], index_columns: int) -> dict[str, tuple[int, int]]:
    """Return the x and y column of each point."""
    found: dict[str, dict[str, int]] = {}
    individuals = header.get("individuals", [""] * len(header["coords"]))
    for column in range(index_columns, len(header["coords"])):
        coordinate = header["coords"][column]
        name = ".".join(filter(None, (individuals[column], header["bodyparts"][column])))
        if coordinate not in ("x", "y", "likelihood"):
            raise errors.InputError(
                f"{path}: column {column + 1} has the coords {coordinate!r}, not x, y or likelihood"
            )
        if coordinate in found.setdefault(name, {}):
            raise errors.InputError(f"{path}: the point {name!r} has two {coordinate} columns")
        found[name][coordinate] = column
    incomplete = [name for name, columns in found.items() if not {"x", "y"} <= columns.keys()]
    if incomplete:
        raise errors.InputError(f"{path}: the point {incomplete[0]!r} has no x or no y column")
    return {name: (columns["x"], columns["y"]) for name, columns in found.items()}


def _number(path: Path, row: int, column: str, cell: object) -> float:
    if cell is None or cell == "":
        return math.nan
    text = str(cell)
    try:
        # Python's own way to group digits is nobody's in a table.
        value = math.inf if "_" in text else float(text)
    except ValueError:
        value = math.inf
    if math.isinf(value) and re.fullmatch(r"-?\d+,\d+", text.strip()):
        raise errors.InputError(
            f"{path}: row {row}: {column} is {text[:80]!r}, with a decimal comma: write the numbers with a point"
        )
    if math.isinf(value):
        raise errors.InputError(
            f"{path}: row {row}: {column} is {text[:80]!r}, not a finite number; leave it empty if missing"
        )
    return value


def _table(path: Path, points: Iterable[_Point]) -> PointTable:
    images: dict[str, int] = {}
    names: dict[str, int] = {}
    placed: dict[tuple[int, int], tuple[float, float]] = {}
    given_in: dict[tuple[int, int], int] = {}
    for point in points:
        image, name = matching.normal(point.image), unicodedata.normalize("NFC", point.name)
        key = images.setdefault(image, len(images)), names.setdefault(name, len(names))
        if len(images) * len(names) > LARGEST_TABLE:
            raise errors.InputError(
                f"{path}: row {point.row}: {len(images)} images by {len(names)} names of points are more than "
                f"{LARGEST_TABLE:,} places. A name stands for one point in every image: do not number them through"
            )
        if math.isnan(point.x) != math.isnan(point.y):
            there, empty = ("y", "x") if math.isnan(point.x) else ("x", "y")
            raise errors.InputError(
                f"{path}: row {point.row} gives {there} of the point {point.name!r} of {point.image!r}, and no "
                f"{empty}; leave both empty if it is missing"
            )
        if key in placed:
            raise errors.InputError(
                f"{path}: row {point.row} gives the point {point.name!r} of {point.image!r} a second time, after row "
                f"{given_in[key]}; keep one"
            )
        given_in[key] = point.row
        placed[key] = point.x, point.y
    return PointTable(names=tuple(names), images=tuple(images), xy=_array(placed, len(images), len(names)))


def _array(placed: dict[tuple[int, int], tuple[float, float]], images: int, names: int) -> np.ndarray:
    xy = np.full((images, names, 2), np.nan)
    if placed:
        rows, columns = np.array(list(placed), dtype=np.intp).T
        xy[rows, columns] = np.array(list(placed.values()))
    return xy
