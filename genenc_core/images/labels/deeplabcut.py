"""Labels of DeepLabCut: `CollectedData_*.csv` or `.h5` of a folder, whole projects, and predictions on videos.

Several animals are told apart by their name, and a point of no animal in particular (`single`) by that.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import yaml

from genenc_core import errors
from genenc_core.images.labels import pandas_hdf5
from genenc_core.images.labels.point_table import Label, Unused, number
from genenc_core.images.sources import tables

HEADER: Final = ("scorer", "individuals", "bodyparts", "coords")
FOLDER: Final = "labeled-data"
_PREDICTIONS: Final = "DLC_"
"""What follows the video's name in the names of files of predictions."""
_SPLIT: Final = "set"
"""Column of Lightning Pose: whether it trained on a frame."""
HDF5_SUFFIXES: Final = (".h5", ".hdf5", ".hdf")
_Point = tuple[str, str]
"""Individual and body part."""


def is_csv(path: Path) -> bool:
    """Return whether a CSV is DeepLabCut's."""
    return path.suffix.lower() in tables.CSV_DELIMITERS and tables.column_names(path)[:1] == ["scorer"]


def project_files(folder: Path) -> list[Path]:
    """Return the label files of a project, or of its folder `labeled-data`: one of each folder of frames, or [].

    An HDF5 file counts where there is no CSV beside it. Of several scorers the one in `config.yaml` counts.

    Raises:
        InputError: a folder has the labels of several scorers, and `config.yaml` does not say whose count.
    """
    frames = folder if folder.name == FOLDER else folder / FOLDER
    if not frames.is_dir():
        return []
    found = [_of_folder(each, scorer=_scorer(frames.parent)) for each in sorted(frames.iterdir()) if each.is_dir()]
    return [path for path in found if path is not None]


def _of_folder(folder: Path, *, scorer: str | None) -> Path | None:
    files = [path for suffix in (".csv", ".h5") for path in sorted(folder.glob(f"CollectedData_*{suffix}"))]
    by_scorer: dict[str, Path] = {}
    for path in files:
        by_scorer.setdefault(path.stem.removeprefix("CollectedData_"), path)
    if len(by_scorer) > 1 and scorer in by_scorer:
        return by_scorer[scorer]
    if len(by_scorer) > 1:
        raise errors.InputError(
            f"{str(folder)!r} has the labels of {len(by_scorer)} scorers, {', '.join(map(repr, by_scorer))}: name one "
            "as `scorer` in the project's config.yaml, or pass its files (a quoted glob)"
        )
    return next(iter(by_scorer.values()), None)


def _scorer(project: Path) -> str | None:
    try:
        read = yaml.safe_load((project / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return str(read["scorer"]) if isinstance(read, dict) and read.get("scorer") else None


def csv_labels(path: Path, *, unused: Unused, folder: str = "") -> Iterator[Label]:
    """Yield the labels of a CSV, which begins with the rows scorer, [individuals,] bodyparts, coords.

    The image is in one column, or in three (labeled-data, folder, file).

    Args:
        path: the file.
        unused: what is not used is added to it.
        folder: where the video of predictions probably is.

    Raises:
        InputError: not of this form, of several scorers, or predictions of a video that the file's name does not say.
    """
    lines = tables.iter_csv(path)
    header = _csv_header(path, lines)
    index_columns = next((i for i, cell in enumerate(header["coords"]) if i and cell), 1)
    columns = _columns(str(path), header, index_columns, unused=unused)
    lightning = _is_lightning(header)
    for line, cells in lines:
        if not any(cells):
            continue
        image, of_video = _image(
            path, f"line {line}", [cell.strip() for cell in cells[:index_columns]], folder, lightning=lightning
        )
        if len(cells) < len(header["coords"]):
            raise errors.InputError(
                f"{path}: line {line} has {len(cells)} cells, its header has {len(header['coords'])}: is the file "
                "truncated? Missing labels are empty cells"
            )
        tables.refuse_more_cells(path, line, cells, len(header["coords"]))
        yield from _labels(str(path), f"row {line}", image, cells, columns, of_video=of_video)


def hdf5_labels(path: Path, *, unused: Unused, folder: str = "") -> Iterator[Label]:
    """Yield the labels of an HDF5 file, in the order of its rows; `folder` as of `csv_labels`.

    Raises:
        InputError: as `pandas_hdf5.read` and `csv_labels`, or the file is another tool's.
    """
    frame = pandas_hdf5.read(path)
    if not {"bodyparts", "coords"} <= {*frame.levels}:
        raise errors.InputError(
            f"the points file {str(path)!r} is HDF5 with columns by {', '.join(frame.levels) or 'nothing'}, not "
            f"DeepLabCut's ({', '.join(HEADER)}). Write a table of image, point, x, y from it"
        )
    header = {name: [column[at] for column in frame.columns] for at, name in enumerate(frame.levels) if name in HEADER}
    columns = _columns(str(path), header, 0, unused=unused)
    for at, (index, values) in enumerate(zip(frame.rows, frame.values.tolist(), strict=True), start=1):
        image, of_video = _image(path, f"row {at}", index, folder, lightning=_is_lightning(header))
        yield from _labels(str(path), f"row {at}", image, values, columns, of_video=of_video)


def _csv_header(path: Path, lines: Iterator[tuple[int, list[str]]]) -> dict[str, list[str]]:
    header: dict[str, list[str]] = {}
    for line, cells in lines:
        name = cells[0].strip() if cells else ""
        if name not in HEADER or name in header:
            raise errors.InputError(
                f"{path}: line {line} begins with {name!r}; a DeepLabCut CSV begins with the rows scorer, "
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


def _columns(
    file: str, header: Mapping[str, Sequence[str]], first: int, *, unused: Unused
) -> dict[_Point, dict[str, int]]:
    """Return the columns of each point by `x`, `y` and `likelihood`, checked."""
    scorers = [each for each in dict.fromkeys(header.get("scorer", [])[first:]) if each not in ("", _SPLIT)]
    if len(scorers) > 1:
        raise errors.InputError(
            f"{file} holds the labels of {len(scorers)} scorers, {', '.join(map(repr, scorers[:3]))}, which is "
            "ambiguous: keep the columns of one"
        )
    by_point: dict[_Point, dict[str, int]] = {}
    individuals = header.get("individuals", [""] * len(header["coords"]))
    for column in range(first, len(header["coords"])):
        coordinate = header["coords"][column]
        shown = [cells[column] for cells in header.values() if cells[column]]
        if not shown or shown == [_SPLIT]:  # empty columns at the end of a spreadsheet
            continue
        point = individuals[column], header["bodyparts"][column]
        if coordinate not in ("x", "y", "likelihood"):
            raise errors.InputError(
                f"{file}: column {column + 1} has the coords {coordinate!r}, not x, y or likelihood"
            )
        if coordinate in by_point.setdefault(point, {}):
            raise errors.InputError(f"{file}: the point {_shown(point)!r} has two {coordinate} columns")
        by_point[point][coordinate] = column
    incomplete = [point for point, columns in by_point.items() if not {"x", "y"} <= columns.keys()]
    if incomplete:
        raise errors.InputError(f"{file}: the point {_shown(incomplete[0])!r} has no x or no y column")
    if "likelihood" in header["coords"]:
        unused.add_likelihood(Path(file).name, "the likelihood of each label")
    return by_point


def _shown(point: _Point) -> str:
    return ".".join(filter(None, point))


def _is_lightning(header: Mapping[str, Sequence[str]]) -> bool:
    """Return whether Lightning Pose made the file: it names predictions as the video, and itself as the scorer."""
    return any(cell.endswith("_tracker") for cell in header.get("scorer", ()))


def _image(path: Path, row: str, parts: Sequence[str], folder: str, *, lightning: bool) -> tuple[str, bool]:
    """Return the name of a row's image, and whether it is a video's frame, `FOLDER/VIDEO#FRAME`."""
    place = f"{path}: {row}"
    if any(parts) and not all(parts):
        raise errors.InputError(
            f"{place} names its image in {len(parts)} cells, some of which are empty: {list(parts)}. Write the folders "
            "in every line"
        )
    image = "/".join(parts)
    if image.isdecimal():
        video, mark, _ = path.name.partition(_PREDICTIONS)
        if lightning:
            video, mark = path.stem, "_"
        if not mark or not video:
            raise errors.InputError(
                f"{place} is for frame {image} of a video, but the file's name does not say of which: name it "
                f"VIDEO{_PREDICTIONS}....csv, as DeepLabCut does, where VIDEO is the video's name without its ending"
            )
        return "/".join(filter(None, (folder, f"{video}#{int(image)}"))), True
    if not image.strip("/"):
        raise errors.InputError(f"{place} names no image")
    return image, False


def _labels(
    file: str,
    row: str,
    image: str,
    cells: Sequence[object],
    columns: Mapping[_Point, Mapping[str, int]],
    *,
    of_video: bool,
) -> Iterator[Label]:
    place = f"{file}: {row}"
    for (individual, name), at in columns.items():
        likelihood = cells[at["likelihood"]] if "likelihood" in at else None
        yield Label(
            file=file,
            row=row,
            image=image,
            name=name,
            x=number(place, "x", cells[at["x"]]),
            y=number(place, "y", cells[at["y"]]),
            individual=individual,
            likelihood=number(place, "likelihood", likelihood),
            folders_are_hints=of_video,
        )
