"""Named points per image, read from a tidy table or a DeepLabCut CSV, and their scale."""

import dataclasses
import math
import re
import unicodedata
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Self

import numpy as np

from genenc_core import errors
from genenc_core.images.sources import manifest_rows, point_matching, tables
from genenc_core.images.sources.image_source import IMAGE_COLUMNS

NORMALIZED, PERCENT = "normalized", "percent"
_FACTOR = re.compile(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9}|/[0-9]{1,9})?)\s*\Z")
_MAX_FACTOR = 10**6
TIDY_COLUMNS: Mapping[str, Sequence[str]] = {
    "image": ("image", *IMAGE_COLUMNS, "frame"),
    "point": ("point", "bodypart", "point_name", "keypoint", "landmark", "label", "name", "part", "node"),
    "x": ("x", "x_px", "x_pixel", "x_pixels", "point_x"),
    "y": ("y", "y_px", "y_pixel", "y_pixels", "point_y"),
}
"""Columns of a tidy table and their synonyms."""
_OTHER_FORMATS: Mapping[str, str] = {
    ".h5": "is HDF5. For DeepLabCut, pass the CSV next to it, which holds the same labels, or write one with "
    "pandas.read_hdf(FILE).to_csv('CollectedData.csv'). For SLEAP, export a CSV (analysis) and map its columns with "
    "--points-columns",
    ".slp": "is a SLEAP project. Write a table of image, point, x, y from it, for example with sleap-io: "
    "for frame in sleap_io.load_slp(FILE): ...",
    ".json": "is JSON (COCO, LabelMe and others). Write a table of image, point, x, y from it: COCO keypoints are "
    "triples of x, y, visibility; a LabelMe shape has a label and points",
    ".mat": "is a MATLAB file. Write a table of image, point, x, y from it (in MATLAB: writetable)",
    ".xlsx": "is a spreadsheet. Save it as 'CSV UTF-8'",
    ".pkl": "is a Python pickle, which could run code. Write it as CSV: pandas.DataFrame.to_csv",
}
_SAME_FORMAT = {".hdf5": ".h5", ".hdf": ".h5", ".xls": ".xlsx", ".ods": ".xlsx", ".pickle": ".pkl", ".jsonl": ".json"}
LARGEST_TABLE = 2**26
"""Images times point names: 1 GiB of positions."""
_SHOWN = 8
_INDEX = r"|index|Unnamed: \d+|__index_level_\d+__"
DLC_HEADER = ("scorer", "individuals", "bodyparts", "coords")


@dataclasses.dataclass(frozen=True, slots=True)
class PointsScale:
    """Scale from coordinates to pixels: times (x, y), and if `relative` also times the image's (width, height).

    Coordinates start at the top-left edge of the image, so no half-pixel offset is added.
    """

    x: Fraction = Fraction(1)
    y: Fraction = Fraction(1)
    relative: bool = False

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Parse `2`, `1/2`, `2,1.5` (x and y), `normalized` or `percent`; None means pixels.

        Raises:
            InputError: invalid syntax, or a factor outside 1/1,000,000 to 1,000,000.
        """
        if text is None:
            return cls()
        word = text.strip().lower()
        if word in (NORMALIZED, "normalised"):
            return cls(relative=True)
        if word == PERCENT:
            return cls(Fraction(1, 100), Fraction(1, 100), relative=True)
        factors = [_factor(part) for part in text.split(",")]
        x, y = factors[0], factors[-1]
        if len(factors) > 2 or x is None or y is None:
            raise errors.InputError(
                f"invalid --points-scale {text!r}: use a factor from 1/1,000,000 to 1,000,000 such as 2 or 1/2, two "
                f"for x and y (2,1.5), {NORMALIZED} (0 to 1 across the image) or {PERCENT} (0 to 100)"
            )
        return cls(x, y)

    @property
    def text(self) -> str | None:
        """The scale in canonical form; None for pixels."""
        if self.relative:
            return NORMALIZED if self.x == 1 else PERCENT
        if self.x == self.y:
            return None if self.x == 1 else str(self.x)
        return f"{self.x},{self.y}"

    def describe(self) -> str:
        """Return a phrase that completes "coordinates ..." in messages."""
        if self.relative:
            return f"in {'percent' if self.x != 1 else 'fractions'} of the image's width and height"
        if self.x == self.y:
            return f"multiplied by {self.x}"
        return f"multiplied by {self.x} (x) and {self.y} (y)"

    def apply(self, xy: np.ndarray) -> np.ndarray:
        """Scale coordinates, float64 `[..., 2]`, to pixels, or to fractions of the image's sides if `relative`."""
        above = np.array([self.x.numerator, self.y.numerator], dtype=np.float64)
        below = np.array([self.x.denominator, self.y.denominator], dtype=np.float64)
        return xy * above / below


PIXELS = PointsScale()
"""Coordinates that are pixels already."""


def _factor(text: str) -> Fraction | None:
    match = _FACTOR.match(text)
    if match is None or re.search("/0+$", match[1]):
        return None
    factor = Fraction(match[1])
    return factor if Fraction(1, _MAX_FACTOR) <= factor <= _MAX_FACTOR else None


class UnusedColumns(UserWarning):
    """A points file has columns that are ignored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PointTable:
    """Points in source-image pixels, origin at the top-left edge; NaN = missing.

    If `scale` is relative, they are fractions of the image's width and height.
    """

    names: tuple[str, ...]
    images: tuple[str, ...]
    """Normalised by `point_matching.normal`."""
    xy: np.ndarray
    """float64 `[len(images), len(names), 2]`."""
    scale: PointsScale = PIXELS
    """The scale that was applied to the file's coordinates."""

    def in_order_of(self, names: Sequence[str]) -> "PointTable":
        """Return the table with its points in this order; names that it lacks are missing points.

        A table with other points is returned as it is.
        """
        if not set(self.names) <= set(names):
            return self
        xy = np.full((len(self.images), len(names), 2), np.nan)
        xy[:, [names.index(name) for name in self.names]] = self.xy
        return replace(self, names=tuple(names), xy=xy)


@dataclass(frozen=True, slots=True)
class _Point:
    row: int
    image: str
    name: str
    x: float
    y: float


def read_points(path: Path, *, columns: str | None = None, scale: str | None = None) -> PointTable:
    """Read points from a tidy CSV/Parquet (columns image, point, x, y; others cause a warning) or a DeepLabCut CSV.

    Columns of a tidy table may have the synonyms in `TIDY_COLUMNS`, or be mapped by `columns`, as
    `image=frame,x=column,...`.

    A DeepLabCut CSV begins with the rows scorer, [individuals,] bodyparts, coords; the image is in one column or in
    three (labeled-data, folder, file); likelihood columns are ignored with a warning; points of several animals are
    named `individual.bodypart`. Images and names keep the order of first appearance and are normalised to composed
    characters (NFC), images also by `point_matching.normal`. An empty or NaN cell is missing. `scale` is parsed by
    `PointsScale.parse`.

    Raises:
        InputError: unreadable, a column missing, x or y not a finite number, a repeated point, or no points.
    """
    if path.exists() and not path.is_file():
        raise errors.InputError(f"the points file {str(path)!r} is not a regular file; pass a .csv, .tsv or .parquet")
    if not path.is_file():
        raise errors.InputError(f"the points file {str(path)!r} does not exist")
    chosen = _chosen_columns(columns)
    points_scale = PointsScale.parse(scale)
    if not tables.is_table(path):
        suffix = path.suffix.lower()
        reason = _OTHER_FORMATS.get(
            _SAME_FORMAT.get(suffix, suffix), "is not a .csv, .tsv or .parquet; pass one of those"
        )
        raise errors.InputError(f"the points file {str(path)!r} {reason}")
    dlc = _is_dlc(path)
    if dlc and chosen:
        raise errors.InputError(
            f"--points-columns {columns!r} cannot be used with {str(path)!r}, a DeepLabCut CSV with fixed columns: "
            "remove it"
        )
    table = _table(path, _iter_dlc(path) if dlc else _iter_tidy(path, chosen))
    if not table.names or not table.images:
        raise errors.InputError(f"the points file {str(path)!r} contains no points")
    return dataclasses.replace(table, xy=points_scale.apply(table.xy), scale=points_scale)


def _is_dlc(path: Path) -> bool:
    return path.suffix.lower() in tables.CSV_DELIMITERS and tables.column_names(path)[:1] == ["scorer"]


def _chosen_columns(columns: str | None) -> dict[str, str]:
    """Parse `image=frame,point=bodypart`; raise `InputError` for invalid syntax."""
    chosen: dict[str, str] = {}
    for item in columns.split(",") if columns else []:
        name, equals, column = map(str.strip, item.partition("="))
        if not equals or not column or name not in TIDY_COLUMNS or name in chosen:
            raise errors.InputError(
                f"invalid --points-columns {columns!r}: use NAME=COLUMN,... with each of the names "
                f"{', '.join(TIDY_COLUMNS)} at most once"
            )
        chosen[name] = column
    return chosen


def _iter_tidy(path: Path, chosen: Mapping[str, str]) -> Iterator[_Point]:
    columns = tables.find_columns(path, TIDY_COLUMNS, chosen)
    for text in ("image", "point"):
        tables.refuse_bytes(path, columns[text])
    _warn_of_unused_columns(path, columns.values())
    if "image" not in chosen:
        _refuse_row_numbers(path, columns["image"])
    for number, (image, name, x, y) in tables.iter_cells(path, [columns[key] for key in TIDY_COLUMNS]):
        if image in (None, "") or name in (None, ""):
            raise errors.InputError(f"{path}: row {number} has an empty image or point")
        yield _Point(number, str(image), str(name), _number(path, number, "x", x), _number(path, number, "y", y))


def _refuse_row_numbers(path: Path, column: str) -> None:
    """Raise `InputError` if images are numbers, such as row numbers of xarray, and another column has their names."""
    for other in (name for name in tables.column_names(path) if name in manifest_rows.TEXT_COLUMNS and name != column):
        for number, image, name in tables.iter_pairs(path, column, other):
            if image.isdecimal() and name and name != image:
                raise errors.InputError(
                    f"{path}: row {number} has the image {image!r} as {column!r} and {name!r} as {other!r}. A "
                    "number is taken as an image's id, never as its row: choose the column with --points-columns "
                    f"image={other} or image={column}"
                )


def _warn_of_unused_columns(path: Path, used: Collection[str]) -> None:
    """Warn of ignored columns, such as a likelihood, or one that distinguishes animals, videos or annotators."""
    # A data frame's index has no name, or pandas' default one.
    unused = [name for name in tables.column_names(path) if name not in used and not re.fullmatch(_INDEX, name)]
    if unused:
        more = f" and {len(unused) - _SHOWN} more" if len(unused) > _SHOWN else ""
        _warn_of_unused(path, f"{', '.join(map(repr, unused[:_SHOWN]))}{more}")


def _warn_of_unused(path: Path, names: str) -> None:
    warnings.warn(
        f"{path.name}: ignored columns: {names}. Every row is a point, whatever its likelihood or visibility; put what "
        "distinguishes animals or videos into the name of the point or image",
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
                f"{path}: line {number} names its image in {index_columns} cells, some of which are empty: {parts}. "
                "Write the folders in every line"
            )
        image = "/".join(parts)
        if image.isdecimal():
            raise errors.InputError(
                f"{path}: line {number} is for frame {image} of a video: these are DeepLabCut's predictions on a "
                "video, whose rows name no images. Pass the labels of its frames "
                "(labeled-data/VIDEO/CollectedData_*.csv), or a tidy table image,point,x,y"
            )
        if not image.strip("/"):
            raise errors.InputError(f"{path}: line {number} names no image")
        if len(cells) < len(header["coords"]):
            raise errors.InputError(
                f"{path}: line {number} has {len(cells)} cells, its header has {len(header['coords'])}: is the file "
                "truncated? Missing labels are empty cells"
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
            f"{path} holds the labels of {len(scorers)} scorers, {', '.join(map(repr, scorers[:3]))}, which is "
            "ambiguous: keep the columns of one"
        )


def _dlc_columns(path: Path, header: dict[str, list[str]], index_columns: int) -> dict[str, tuple[int, int]]:
    """Return the x and y column of each point."""
    by_point: dict[str, dict[str, int]] = {}
    individuals = header.get("individuals", [""] * len(header["coords"]))
    for column in range(index_columns, len(header["coords"])):
        coordinate = header["coords"][column]
        if not any(cells[column] for cells in header.values()):  # empty columns at the end of a spreadsheet
            continue
        name = ".".join(filter(None, (individuals[column], header["bodyparts"][column])))
        if coordinate not in ("x", "y", "likelihood"):
            raise errors.InputError(
                f"{path}: column {column + 1} has the coords {coordinate!r}, not x, y or likelihood"
            )
        if coordinate in by_point.setdefault(name, {}):
            raise errors.InputError(f"{path}: the point {name!r} has two {coordinate} columns")
        by_point[name][coordinate] = column
    incomplete = [name for name, columns in by_point.items() if not {"x", "y"} <= columns.keys()]
    if incomplete:
        raise errors.InputError(f"{path}: the point {incomplete[0]!r} has no x or no y column")
    return {name: (columns["x"], columns["y"]) for name, columns in by_point.items()}


def _number(path: Path, row: int, column: str, cell: object) -> float:
    if cell is None or cell == "":
        return math.nan
    text = str(cell)
    try:
        # Python accepts 1_000, which no table means as a number.
        value = math.inf if "_" in text else float(text)
    except ValueError:
        value = math.inf
    if math.isinf(value) and re.fullmatch(r"-?\d+,\d+", text.strip()):
        raise errors.InputError(
            f"{path}: row {row}: {column} is {text[:80]!r}, with a decimal comma: use a decimal point"
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
    first_rows: dict[tuple[int, int], int] = {}
    for point in points:
        image, name = point_matching.normal(point.image), unicodedata.normalize("NFC", point.name)
        key = images.setdefault(image, len(images)), names.setdefault(name, len(names))
        if len(images) * len(names) > LARGEST_TABLE:
            raise errors.InputError(
                f"{path}: row {point.row}: {len(images)} images times {len(names)} point names exceed "
                f"{LARGEST_TABLE:,} entries. Use the same point names in every image instead of unique ones"
            )
        if math.isnan(point.x) != math.isnan(point.y):
            there, empty = ("y", "x") if math.isnan(point.x) else ("x", "y")
            raise errors.InputError(
                f"{path}: row {point.row} has {there} but no {empty} for the point {point.name!r} of {point.image!r}; "
                "leave both empty if it is missing"
            )
        if key in placed:
            raise errors.InputError(
                f"{path}: row {point.row} repeats the point {point.name!r} of {point.image!r} from row "
                f"{first_rows[key]}; keep one"
            )
        first_rows[key] = point.row
        placed[key] = point.x, point.y
    return PointTable(names=tuple(names), images=tuple(images), xy=_array(placed, len(images), len(names)))


def _array(placed: dict[tuple[int, int], tuple[float, float]], images: int, names: int) -> np.ndarray:
    xy = np.full((images, names, 2), np.nan)
    if placed:
        rows, columns = np.array(list(placed), dtype=np.intp).T
        xy[rows, columns] = np.array(list(placed.values()))
    return xy
