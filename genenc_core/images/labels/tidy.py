"""Tables of labels: tidy (a row per point) or wide (a row per image, two columns per point)."""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from genenc_core import errors
from genenc_core.images.labels import other_tools
from genenc_core.images.labels.point_table import Label, Unused, number
from genenc_core.images.sources import manifest_rows, tables
from genenc_core.images.sources.image_source import IMAGE_COLUMNS

COLUMNS: Mapping[str, Sequence[str]] = {
    "image": ("image", *IMAGE_COLUMNS, "frame"),
    "point": ("point", "bodypart", "point_name", "keypoint", "landmark", "label", "name", "part", "node"),
    "x": ("x", "x_px", "x_pixel", "x_pixels", "point_x"),
    "y": ("y", "y_px", "y_pixel", "y_pixels", "point_y"),
}
"""Columns that a tidy table needs, and their synonyms."""
OPTIONAL: Mapping[str, Sequence[str]] = {
    "individual": ("individual", "instance", "animal", "track", "individuals"),
    "likelihood": ("likelihood", "confidence", "score"),
}
"""Columns that it may have."""
_SHOWN = 8
_INDEX = r"|index|Unnamed: \d+|__index_level_\d+__"
_WIDE = re.compile(r"(?:(?P<name>.+)[_. -](?P<axis>[xy]))|(?:(?P<axis_>[xy])[_. -](?P<name_>.+))\Z", re.IGNORECASE)
_SIZE = re.compile(r"(.+)[_. -](?:w|h|width|height)\Z", re.IGNORECASE)
_CORNER = re.compile(r"(.+[_. -])?(min|max)\Z", re.IGNORECASE)
_LIKELIHOOD = re.compile(r"(.+)[_. -](?:likelihood|confidence|score)\Z", re.IGNORECASE)


class _Pair(NamedTuple):
    """The columns of one point of a wide table."""

    name: str
    x: str
    y: str
    likelihood: str | None


def chosen_columns(columns: str | None) -> dict[str, str]:
    """Parse `image=frame,point=bodypart`.

    Raises:
        InputError: invalid syntax.
    """
    chosen: dict[str, str] = {}
    for item in columns.split(",") if columns else []:
        name, equals, column = map(str.strip, item.partition("="))
        if not equals or not column or name not in (*COLUMNS, *OPTIONAL) or name in chosen:
            raise errors.InputError(
                f"invalid --points-columns {columns!r}: use NAME=COLUMN,... with each of the names "
                f"{', '.join((*COLUMNS, *OPTIONAL))} at most once"
            )
        chosen[name] = column
    return chosen


def labels(path: Path, chosen: Mapping[str, str], *, unused: Unused) -> Iterator[Label]:
    """Yield the labels of a table.

    A wide table has a column of images and for each point the columns `NAME_x`, `NAME_y` (or `x_NAME`; `.`, `-` and a
    space separate too) and perhaps `NAME_likelihood`.

    Args:
        path: a CSV, TSV or Parquet file.
        chosen: the columns of a tidy table that have other names.
        unused: what is not used is added to it.

    Raises:
        InputError: unreadable, a column missing, a cell that is no finite number, or an empty name.
    """
    if not chosen and (other := other_tools.of_columns(tables.column_names(path))):
        raise errors.InputError(f"the points file {str(path)!r} seems to hold {other}")
    pairs = {} if chosen.keys() - {"image"} else _pairs(path, tables.column_names(path))
    if pairs and not tables.count_columns(path, [*COLUMNS["x"], *COLUMNS["y"]]):
        yield from _wide(path, pairs, chosen, unused=unused)
        return
    columns = tables.find_columns(path, COLUMNS, chosen)
    more = {name: words for name, words in OPTIONAL.items() if name in chosen or tables.count_columns(path, words) == 1}
    columns |= tables.find_columns(path, more, chosen)
    if "likelihood" in columns:
        unused.add_likelihood(path.name, f"the column {columns['likelihood']!r}")
    tables.refuse_bytes(path, columns["image"])
    for name in ("point", "individual"):
        tables.refuse_numbers(path, name, columns.get(name))
    _warn_of_others(path, {*columns.values()}, unused=unused)
    if "image" not in chosen:
        _refuse_row_numbers(path, columns["image"])
    for row, cells in tables.iter_cells(path, list(columns.values())):
        cell = dict(zip(columns, cells, strict=True))
        place = f"{path}: row {row}"
        yield Label(
            file=str(path),
            row=f"row {row}",
            image="" if cell["image"] is None else str(cell["image"]),
            name="" if cell["point"] is None else str(cell["point"]),
            x=number(place, "x", cell["x"]),
            y=number(place, "y", cell["y"]),
            individual="" if cell.get("individual") is None else str(cell["individual"]),
            likelihood=_likelihood(place, "likelihood", cell.get("likelihood"), unused=unused),
        )


def _likelihood(place: str, column: str, cell: object, *, unused: Unused) -> float:
    """Return a likelihood; what is no number is none, unless likelihoods count."""
    try:
        return number(place, column, cell)
    except errors.InputError:
        if unused.likelihoods_count:
            raise
        return math.nan


def _warn_of_others(path: Path, used: Collection[str], *, unused: Unused) -> None:
    """Warn of columns that are not used, such as a visibility, or one that tells videos or annotators apart."""
    # A data frame's index has no name, or pandas' default one.
    names = [name for name in tables.column_names(path) if not re.fullmatch(_INDEX, name)]
    others = [name for name in names if name not in used]
    if others:
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        unused.add(
            path.name,
            f"the columns {', '.join(map(repr, others[:_SHOWN]))}{more}",
            "Every row is a point, whatever they say; put what distinguishes videos into the name of the image",
        )


def _refuse_row_numbers(path: Path, column: str) -> None:
    """Raise `InputError` if images are numbers, such as row numbers of xarray, and another column has their names."""
    for other in (name for name in tables.column_names(path) if name in manifest_rows.TEXT_COLUMNS and name != column):
        for row, image, name in tables.iter_pairs(path, column, other):
            if image.isdecimal() and name and name != image:
                raise errors.InputError(
                    f"{path}: row {row} has the image {image!r} as {column!r} and {name!r} as {other!r}. A "
                    "number is taken as an image's id, never as its row: choose the column with --points-columns "
                    f"image={other} or image={column}"
                )


def _pairs(path: Path, names: Collection[str]) -> dict[str, _Pair]:
    """Return the points of a wide table, by name; what has a size too, or is named `min` and `max`, is a box.

    Raises:
        InputError: two columns have x, or y, of one point.
    """
    boxes = {match[1] for column in names if (match := _SIZE.fullmatch(column))}
    axes: dict[str, dict[str, str]] = {}
    for column in names:
        if match := _WIDE.fullmatch(column):
            name, axis = match["name"] or match["name_"], (match["axis"] or match["axis_"]).lower()
            if (other := axes.setdefault(name, {}).setdefault(axis, column)) != column:
                raise errors.InputError(
                    f"{path} has {axis} of the point {name!r} as {other!r} and {column!r}: keep one"
                )
        elif match := _LIKELIHOOD.fullmatch(column):
            axes.setdefault(match[1], {})["likelihood"] = column
    corners = {name: (match[1], match[2].lower()) for name in axes if (match := _CORNER.fullmatch(name))}
    boxes |= {name for name, (box, _) in corners.items() if {(box, "min"), (box, "max")} <= {*corners.values()}}
    return {
        name: _Pair(name, found["x"], found["y"], found.get("likelihood"))
        for name, found in axes.items()
        if {"x", "y"} <= found.keys() and name not in boxes
    }


def _wide(path: Path, pairs: Mapping[str, _Pair], chosen: Mapping[str, str], *, unused: Unused) -> Iterator[Label]:
    (image,) = tables.find_columns(path, {"image": COLUMNS["image"]}, chosen).values()
    tables.refuse_bytes(path, image)
    used = [image, *(column for pair in pairs.values() for column in pair[1:] if column)]
    others = [name for name in tables.column_names(path) if name not in used and not re.fullmatch(_INDEX, name)]
    if others:
        unused.add(path.name, f"the columns {', '.join(map(repr, others[:_SHOWN]))}", "They name no point")
    if any(pair.likelihood for pair in pairs.values()):
        unused.add_likelihood(path.name, "the likelihood of each label")
    _refuse_row_numbers(path, image)
    for row, cells in tables.iter_cells(path, used):
        cell = dict(zip(used, cells, strict=True))
        place = f"{path}: row {row}"
        for pair in pairs.values():
            yield Label(
                file=str(path),
                row=f"row {row}",
                image="" if cell[image] is None else str(cell[image]),
                name=pair.name,
                x=number(place, pair.x, cell[pair.x]),
                y=number(place, pair.y, cell[pair.y]),
                likelihood=_likelihood(place, pair.likelihood, cell[pair.likelihood], unused=unused)
                if pair.likelihood
                else math.nan,
            )
