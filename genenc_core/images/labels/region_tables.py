"""Tables of boxes: one row per region, by a corner and sizes, by two corners, or by the centre and sizes."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from genenc_core import errors
from genenc_core.images.labels import tidy
from genenc_core.images.labels.point_table import Unused, number
from genenc_core.images.labels.region_table import Region
from genenc_core.images.sources import tables

OPTION: Final = "--regions-columns"
IMAGE: Final[Mapping[str, Sequence[str]]] = {"image": tidy.COLUMNS["image"]}
CORNERS: Final[Mapping[str, Sequence[str]]] = {
    "x_min": ("x_min", "xmin", "x1", "left", "min_x", "bbox_x1"),
    "y_min": ("y_min", "ymin", "y1", "top", "min_y", "bbox_y1"),
    "x_max": ("x_max", "xmax", "x2", "right", "max_x", "bbox_x2"),
    "y_max": ("y_max", "ymax", "y2", "bottom", "max_y", "bbox_y2"),
}
SIZES: Final[Mapping[str, Sequence[str]]] = {
    "width": ("width", "w", "box_width", "bbox_width", "bbox_w"),
    "height": ("height", "h", "box_height", "bbox_height", "bbox_h"),
}
CORNER: Final[Mapping[str, Sequence[str]]] = {
    "x": ("x", "left", "x_min", "xmin", "bbox_x", "box_x", "bbox_left"),
    "y": ("y", "top", "y_min", "ymin", "bbox_y", "box_y", "bbox_top"),
}
CENTRE: Final[Mapping[str, Sequence[str]]] = {
    "x_center": ("x_center", "x_centre", "center_x", "centre_x", "cx", "xc"),
    "y_center": ("y_center", "y_centre", "center_y", "centre_y", "cy", "yc"),
}
OPTIONAL: Final[Mapping[str, Sequence[str]]] = {
    "region": ("region", "region_id", "box_id", "bbox_id", "annotation_id", "object_id", "id", "box"),
    "category": ("category", "class", "class_name", "label", "category_name", "species"),
    "individual": tidy.OPTIONAL["individual"],
    "score": ("score", "confidence", "likelihood", "probability"),
}
_FORMS: Final = (CORNERS, {**CORNER, **SIZES}, {**CENTRE, **SIZES})
_NAMES: Final = tuple(dict.fromkeys(name for form in (IMAGE, *_FORMS, OPTIONAL) for name in form))


def chosen_columns(columns: str | None) -> dict[str, str]:
    """Parse `image=frame,x_min=left,...`.

    Raises:
        InputError: invalid syntax.
    """
    chosen: dict[str, str] = {}
    for item in columns.split(",") if columns else []:
        name, equals, column = map(str.strip, item.partition("="))
        if not equals or not column or name not in _NAMES or name in chosen:
            raise errors.InputError(
                f"invalid {OPTION} {columns!r}: use NAME=COLUMN,... with each of the names {', '.join(_NAMES)} at most "
                "once"
            )
        chosen[name] = column
    return chosen


def regions(path: Path, chosen: Mapping[str, str], *, unused: Unused) -> Iterator[Region]:
    """Yield the boxes of a table.

    Args:
        path: a CSV, TSV or Parquet file.
        chosen: the columns that have other names.
        unused: what is not used is added to it.

    Raises:
        InputError: unreadable, a column missing, or a cell that is no finite number.
    """
    form = _form(path, chosen)
    columns = tables.find_columns(path, {**IMAGE, **form}, chosen, option=OPTION)
    free = {name: words for name, words in OPTIONAL.items() if name in chosen or tables.count_columns(path, words) == 1}
    columns |= tables.find_columns(path, free, chosen, option=OPTION)
    tables.refuse_bytes(path, columns["image"])
    for name in ("region", "category", "individual"):
        tables.refuse_numbers(path, name, columns.get(name))
    others = [name for name in tables.column_names(path) if name not in columns.values()]
    others = [name for name in others if not re.fullmatch(r"|index|Unnamed: \d+|__index_level_\d+__", name)]
    if others:
        shown = ", ".join(map(repr, others[:8])) + (f" and {len(others) - 8} more" if len(others) > 8 else "")
        unused.add(path.name, f"the columns {shown}", f"{OPTION} names columns of other names")
    for row, cells in tables.iter_cells(path, list(columns.values())):
        cell = dict(zip(columns, cells, strict=True))
        place = f"{path}: row {row}"
        numbers = {name: number(place, name, cell[name]) for name in form}
        if all(map(math.isnan, numbers.values())):
            continue  # an image without a region
        yield Region(
            file=str(path),
            row=f"row {row}",
            image=_text(cell, "image"),
            name=_text(cell, "region"),
            box=_box(numbers),
            category=_text(cell, "category"),
            individual=_text(cell, "individual"),
            score=number(place, "score", cell.get("score")),
        )


def _form(path: Path, chosen: Mapping[str, str]) -> Mapping[str, Sequence[str]]:
    """Return the columns of the form that a table has.

    Raises:
        InputError: it has none, or two.
    """

    def has(form: Mapping[str, Sequence[str]]) -> bool:
        return all(name in chosen or tables.count_columns(path, words) for name, words in form.items())

    found = [form for form in _FORMS if has(form)]
    # x_min, y_min, x_max, y_max say all; width and height beside them may be those of the image.
    if CORNERS in found:
        found = [CORNERS] if not has(CENTRE) else found
    if len(found) == 1:
        return found[0]
    columns = ", ".join(tables.column_names(path)) or "none"
    if found:
        raise errors.InputError(
            f"{path} has boxes by corners and by centres; its columns are: {columns}. Choose four with {OPTION}, such "
            "as x_min=COLUMN,y_min=COLUMN,x_max=COLUMN,y_max=COLUMN in a table without the others"
        )
    raise errors.InputError(
        f"{path} has no boxes: a table of regions has image and x, y, width, height, or x_min, y_min, x_max, y_max, or "
        f"x_center, y_center, width, height; its columns are: {columns}. Choose them with {OPTION} "
        "x_min=COLUMN,y_min=COLUMN,..."
    )


def _box(numbers: Mapping[str, float]) -> tuple[float, float, float, float]:
    if "x_max" in numbers:
        return numbers["x_min"], numbers["y_min"], numbers["x_max"], numbers["y_max"]
    width, height = numbers["width"], numbers["height"]
    if "x_center" in numbers:
        left, top = numbers["x_center"] - width / 2, numbers["y_center"] - height / 2
    else:
        left, top = numbers["x"], numbers["y"]
    return left, top, left + width, top + height


def _text(cell: Mapping[str, object], name: str) -> str:
    return "" if cell.get(name) is None else str(cell[name])
