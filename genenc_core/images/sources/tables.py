"""Streaming readers of CSV, Parquet and JSON lines, by column name and with row numbers for messages."""

import csv
import itertools
import re
import sys
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
from pyarrow import parquet

from genenc_core import errors
from genenc_core.images.sources import json_lines

CSV_DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""Default delimiter by extension; one that is more frequent in the first line takes precedence."""
_DELIMITERS = (",", ";", "\t")
PARQUET_SUFFIXES = (".parquet", ".pq")
_BLOCK_ROWS = 16384
_SHOWN = 5


def is_table(path: Path) -> bool:
    """Return whether the extension is that of CSV, TSV, Parquet or JSON lines."""
    return path.suffix.lower() in (*CSV_DELIMITERS, *PARQUET_SUFFIXES, *json_lines.SUFFIXES)


def column_names(path: Path) -> list[str]:
    """Return the column names of a table.

    Raises:
        InputError: the file cannot be read as the format of its extension.
    """
    if path.suffix.lower() in PARQUET_SUFFIXES:
        with _open_parquet(path) as file:
            return list(file.schema_arrow.names)
    if path.suffix.lower() in json_lines.SUFFIXES:
        return json_lines.column_names(path)
    return [name.strip() for name in next(iter_csv(path), (0, []))[1]]


def find_columns(
    path: Path, wanted: Mapping[str, Sequence[str]], chosen: Mapping[str, str], *, option: str = "--points-columns"
) -> dict[str, str]:
    """Map each name in `wanted` to a column of a table: the one in `chosen`, by `option`, else one of its synonyms.

    Case, surrounding whitespace and `_`, `-` or whitespace between words are ignored.

    Raises:
        InputError: a column is missing or ambiguous.
    """
    columns = column_names(path)
    mapping: dict[str, str] = {}
    for name, synonyms in wanted.items():
        if name in chosen:
            mapping[name] = _existing(path, [chosen[name]], columns)[0]
            continue
        matches = [column for word in synonyms for column in columns if _plain(column) == _plain(word)]
        # x and x_px in one table may have different units.
        exact = [column for column in matches if column == name and name not in ("x", "y")]
        _refuse_repeated(path, matches, columns)
        if len(set(matches)) > 1 and not exact:
            raise errors.InputError(
                f"{path} has several possible columns for {name!r}: {', '.join(map(repr, dict.fromkeys(matches)))}. "
                f"Choose one, for example with {option} {name}={matches[0]}"
            )
        if matches:
            mapping[name] = (exact or matches)[0]
    missing = [name for name in wanted if name not in mapping]
    if missing:
        raise errors.InputError(
            f"{path} has no column {', '.join(map(repr, missing))}; its columns are: {', '.join(columns) or 'none'}. "
            f"Choose them with {option} {','.join(f'{name}=COLUMN' for name in missing)}"
        )
    return mapping


def count_columns(path: Path, words: Sequence[str]) -> int:
    """Return how many columns of a table have one of these names, as `find_columns` compares them.

    Raises:
        InputError: as in `column_names`.
    """
    wanted = {_plain(word) for word in words}
    return sum(_plain(name) in wanted for name in column_names(path))


def image_cells(path: Path, column: str | None, usual: Sequence[str]) -> str | None:
    """Return the column of a Parquet file whose cells are images themselves; None if it is none, or names files.

    Args:
        path: any file.
        column: the chosen column; None for the first of `usual`, or else the only one that holds images.
        usual: names of columns of images, in lower case.

    Raises:
        InputError: it cannot be read.
    """
    if path.suffix.lower() not in PARQUET_SUFFIXES:
        return None
    with _open_parquet(path) as file:
        found, names = image_columns(file.schema_arrow), file.schema_arrow.names
    if column is None:
        usual_names = [name for word in usual for name in names if name.lower() == word]
        column = next(iter(usual_names), found[0] if len(found) == 1 else None)
    return column if column in found else None


def image_columns(schema: pa.Schema) -> list[str]:
    """Return the columns of a Parquet file that may hold image files: bytes, or structs with `bytes`."""
    return [field.name for field in schema if _holds_bytes(field.type)]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        names = [kind.field(at).name for at in range(kind.num_fields)]
        return "bytes" in names and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


class ColumnsLeftOut(UserWarning):
    """Columns of a list do not become coordinates."""


def further_columns(path: Path, but: Collection[str]) -> list[str]:
    """Return the other columns of a table that have a name of their own, and hold texts, numbers or times."""
    return [name for name, reason in _left_out(path, but).items() if name and not reason]


def warn_of_left_out(path: Path, kept: Collection[str]) -> None:
    """Warn of the columns of a table that are none of `kept`."""
    reasons = [f"{name!r} ({reason})" for name, reason in _left_out(path, kept).items() if reason]
    if reasons:
        shown = ", ".join(reasons[:_SHOWN]) + (", ..." if len(reasons) > _SHOWN else "")
        warnings.warn(f"{path}: columns that do not become coordinates: {shown}", ColumnsLeftOut, stacklevel=2)


def _left_out(path: Path, but: Collection[str]) -> dict[str, str]:
    """Return why each of the other columns cannot be a coordinate, "" where it can."""
    columns = _columns(path)
    names = [name for name, _ in columns]
    reasons = {name: "" if is_plain else "it holds no texts, numbers or times" for name, is_plain in columns}
    repeated = {name: "several have this name" for name in names if names.count(name) > 1}
    return {name: reason for name, reason in {**reasons, **repeated}.items() if name not in but}


def _columns(path: Path) -> list[tuple[str, bool]]:
    """Return the names of a table's columns, and whether they hold texts, numbers or times."""
    if path.suffix.lower() in json_lines.SUFFIXES:
        return list(json_lines.keys(path).items())
    if path.suffix.lower() in PARQUET_SUFFIXES:
        with _open_parquet(path) as file:
            return [(field.name, _is_plain(field.type)) for field in file.schema_arrow]
    return [(name, True) for name in column_names(path)]


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind) or str(kind) == "string_view"
    return bool(texts or pa.types.is_primitive(kind) or pa.types.is_decimal(kind))


def refuse_bytes(path: Path, column: str) -> None:
    """Check that a Parquet column can name files.

    Raises:
        InputError: it holds bytes, structs or lists, such as the images themselves.
    """
    if path.suffix.lower() not in PARQUET_SUFFIXES:
        return
    with _open_parquet(path) as file:
        kind = file.schema_arrow.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind):
        return
    if str(kind) == "string_view":
        return
    raise errors.InputError(f"the column {column!r} of {path} holds {kind}, not image paths. Choose a column of paths")


def refuse_numbers(path: Path, name: str, column: str | None) -> None:
    """Raise `InputError` if names are numbers that are not whole, or of another type, in a Parquet file."""
    try:
        if column is not None:
            refuse_bytes(path, column)
    except errors.InputError as error:
        raise errors.InputError(
            f"the column {column!r} of {path} holds neither text nor whole numbers, of which names of a {name} are: "
            "convert it to text"
        ) from error


def iter_cells(
    path: Path, columns: Sequence[str], *, with_blanks: Collection[str] = ()
) -> Iterator[tuple[int, tuple[object, ...]]]:
    """Yield (row number, the cells of `columns`); blank CSV lines are skipped.

    The row number is the line in a CSV (the header is line 1) and the row, from 1, in a Parquet file. CSV cells are
    stripped text, except in the columns `with_blanks` (where whitespace alone is still empty); Parquet cells are Python
    values.

    Raises:
        InputError: the file cannot be read, a column is missing or repeated, or a CSV line has too few or too many
            cells.
    """
    for numbers, block in _iter_blocks(path, columns, _BLOCK_ROWS, with_blanks):
        yield from zip(numbers, zip(*block, strict=True), strict=True)


def _iter_blocks(
    path: Path, columns: Sequence[str], block_rows: int, with_blanks: Collection[str]
) -> Iterator[tuple[Sequence[int], list[Sequence[object]]]]:
    names = column_names(path)
    positions = [names.index(column) for column in _existing(path, columns, names)]
    if path.suffix.lower() in PARQUET_SUFFIXES:
        yield from _iter_parquet_blocks(path, columns, block_rows)
        return
    if path.suffix.lower() in json_lines.SUFFIXES:
        yield from json_lines.iter_blocks(path, columns, block_rows)
        return
    kept = [column in with_blanks for column in columns]
    first = 1  # the header
    for numbers, lines in _iter_csv_blocks(path, block_rows):
        numbers, lines = numbers[first:], lines[first:]
        first = 0
        cells = _plain_cells(lines, len(names), positions, kept)
        if cells is not None:
            yield numbers, cells
            continue
        # An error comes after the rows before it, which may be all that are wanted.
        checked: list[tuple[int, tuple[str, ...]]] = []
        error: errors.InputError | None = None
        try:
            checked.extend(_checked_cells(path, zip(numbers, lines, strict=True), len(names), positions, kept))
        except errors.InputError as found:
            error = found
        if checked:
            yield [number for number, _ in checked], list(zip(*(texts for _, texts in checked), strict=True))
        if error is not None:
            raise error


def _plain_cells(
    lines: Sequence[list[str]], columns: int, positions: Sequence[int], kept: Sequence[bool]
) -> list[Sequence[object]] | None:
    """Return the cells of each column, if no line needs a look of its own."""
    if not lines or {*map(len, lines)} != {columns}:
        return None
    cells = [[line[at] for line in lines] for at in positions]
    stripped = [list(map(str.strip, each)) for each in cells]
    if any("" in each for each in stripped):
        return None
    return [each if as_is else bare for each, bare, as_is in zip(cells, stripped, kept, strict=True)]


def _checked_cells(
    path: Path,
    lines: Iterable[tuple[int, list[str]]],
    columns: int,
    positions: Sequence[int],
    kept: Sequence[bool],
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield the number and cells of each line that is not blank; raise `InputError` for one of the wrong length."""
    for number, cells in lines:
        if not any(cells):
            continue
        if max(positions) >= len(cells):
            raise errors.InputError(f"{path}: line {number} has {len(cells)} cells, its header has {columns}")
        refuse_more_cells(path, number, cells, columns)
        yield (
            number,
            tuple(_cell(cells[at], with_blanks=as_is) for at, as_is in zip(positions, kept, strict=True)),
        )


def _cell(text: str, *, with_blanks: bool) -> str:
    stripped = text.strip()
    return text if with_blanks and stripped else stripped


def refuse_more_cells(path: Path, number: int, cells: Sequence[str], columns: int) -> None:
    """Check that a CSV line has no more cells than the header, except empty ones at its end.

    Raises:
        InputError: it does.
    """
    if any(cell.strip() for cell in cells[columns:]):
        raise errors.InputError(
            f"{path}: line {number} has {len(cells)} cells, its header has {columns}: quote cells that contain a "
            "delimiter, and write numbers with a decimal point"
        )


def iter_pairs(path: Path, column: str, other: str) -> Iterator[tuple[int, str, str]]:
    """Yield the number of each row, and its cells in two columns as stripped text.

    Raises:
        InputError: as in `iter_cells`.
    """
    for numbers, block in iter_blocks(path, [column, other], block_rows=_BLOCK_ROWS):
        for number, *cells in zip(numbers, *block, strict=True):
            first, second = (str(cell or "").strip() for cell in cells)
            yield number, first, second


def iter_blocks(
    path: Path,
    columns: Sequence[str],
    *,
    block_rows: int,
    limit: int | None = None,
    with_blanks: Collection[str] = (),
) -> Iterator[tuple[Sequence[int], list[Sequence[object]]]]:
    """Yield (row numbers, the cells of each column) in blocks of at most `block_rows` rows; see `iter_cells`.

    At most the first `limit` rows of the table are read and checked.

    Raises:
        InputError: as in `iter_cells`.
    """
    left = sys.maxsize if limit is None else limit
    blocks = _iter_blocks(path, columns, block_rows, with_blanks)
    while left and (block := next(blocks, None)):
        numbers, cells = block
        yield numbers[:left], [values[:left] for values in cells]
        left -= min(left, len(numbers))


def iter_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number from 1, cells) of a UTF-8 CSV or TSV file.

    Raises:
        InputError: the file cannot be read, is not UTF-8 text, or has a quote that does not close at the end of a cell.
    """
    for numbers, lines in _iter_csv_blocks(path, _BLOCK_ROWS):
        yield from zip(numbers, lines, strict=True)


def _iter_csv_blocks(path: Path, block_rows: int) -> Iterator[tuple[Sequence[int], list[list[str]]]]:
    """Yield the line numbers and cells of rows, of about `block_rows` lines; raises as `iter_csv`, after the rows."""
    lines = None
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline(_LONGEST_HEADER)
            file.seek(0)
            lines = _CsvLines(path, file, _delimiter(path, first))
            yield from lines.blocks(block_rows)
    except UnicodeDecodeError as error:
        raise errors.InputError(
            f"cannot read {path} as UTF-8 CSV: {error}. Save it as UTF-8 (in a spreadsheet: 'CSV UTF-8')"
        ) from error
    except csv.Error as error:
        raise errors.InputError(
            f"cannot read {path} as CSV: after line {lines.number if lines else 0}: {error}. Quote cells that contain "
            'a quote, and double that one: "5"" tip"'
        ) from error
    except OSError as error:
        raise errors.InputError(f"cannot read {path} as UTF-8 CSV: {error}") from error


class _CsvLines:
    """An open CSV file, parsed many lines at once where each is a row."""

    def __init__(self, path: Path, file: TextIO, delimiter: str) -> None:
        self.number = 0
        """The line at which the last row ended."""
        self._path = path
        self._file = file
        self._delimiter = delimiter
        self._columns = 0

    def blocks(self, block_rows: int) -> Iterator[tuple[Sequence[int], list[list[str]]]]:
        """Yield line numbers and rows, and then raise what prevents more.

        Raises:
            UnicodeDecodeError: it is not UTF-8.
            csv.Error: it is not CSV.
            InputError: a cell seems to hold rows.
        """
        failure: Exception | None = None
        while failure is None:
            lines, failure = self._next_lines(block_rows)
            if not lines and failure is None:
                return
            rows = self._one_a_line(lines) if failure is None else []
            if rows:
                numbers: Sequence[int] = range(self.number + 1, self.number + 1 + len(rows))
                self._columns = self._columns or next(filter(None, map(len, rows)), 0)
                self.number += len(rows)
            else:
                numbers, rows, error = self._one_by_one(lines, self._file if failure is None else _raised(failure))
                failure = error or failure
            yield numbers, rows
        raise failure

    def _next_lines(self, count: int) -> tuple[list[str], Exception | None]:
        """Return the next lines, and what prevents more; a text file that is asked again would skip it."""
        lines: list[str] = []
        try:
            lines.extend(itertools.islice(self._file, count))
        except UnicodeDecodeError as error:
            return lines, error
        return lines, None

    def _parsed(self, lines: Iterable[str]) -> Any:
        # Strict, since a stray quote would swallow the lines that follow.
        return csv.reader(lines, delimiter=self._delimiter, strict=True)

    def _one_a_line(self, lines: list[str]) -> list[list[str]]:
        """Return the rows of the lines; none if one has several lines, or cannot be parsed."""
        try:
            rows = list(self._parsed(lines))
        except csv.Error:
            return []
        return rows if len(rows) == len(lines) else []

    def _one_by_one(self, lines: list[str], more: Iterable[str]) -> tuple[list[int], list[list[str]], Exception | None]:
        """Return the numbers and rows of the lines, the last with `more` if it needs them; and what prevents others."""
        numbers: list[int] = []
        rows: list[list[str]] = []
        before, reader = self.number, self._parsed(itertools.chain(lines, more))
        try:
            for cells in reader:
                self._columns = self._columns or len(cells)
                if before + reader.line_num - self.number > 1:
                    _refuse_rows_in_cell(self._path, self.number + 1, cells, self._delimiter, self._columns)
                self.number = before + reader.line_num
                numbers.append(self.number)
                rows.append(cells)
                if reader.line_num >= len(lines):
                    break
        except (UnicodeDecodeError, csv.Error, errors.InputError) as error:
            return numbers, rows, error
        return numbers, rows, None


def _raised(error: Exception) -> Iterator[str]:
    yield from ()
    raise error


def _refuse_rows_in_cell(path: Path, number: int, cells: Sequence[str], delimiter: str, columns: int) -> None:
    """Check that a quoted multi-line cell has not swallowed rows of the table, as a stray quote would cause."""
    lines = [line for cell in cells for line in cell.splitlines()[1:]]
    if columns > 1 and any(line.count(delimiter) == columns - 1 for line in lines):
        raise errors.InputError(
            f"{path}: a quoted cell that begins in line {number} contains lines that look like rows of the table: "
            "remove or double the quote, or write the cell in one line"
        )


_LONGEST_HEADER = 2**20


def _delimiter(path: Path, first: str) -> str:
    """Return the most frequent delimiter outside quotes in a file's first line."""
    usual = CSV_DELIMITERS.get(path.suffix.lower(), ",")
    outside = "".join(first.split('"')[::2])
    return max((usual, *_DELIMITERS), key=outside.count)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).lower()


def _existing(path: Path, columns: Sequence[str], names: Sequence[str]) -> Sequence[str]:
    missing = [column for column in columns if column not in names]
    if missing:
        wanted = ", ".join(repr(column) for column in missing)
        raise errors.InputError(f"{path} has no column {wanted}; its columns are: {', '.join(names) or 'none'}")
    _refuse_repeated(path, columns, names)
    return columns


def _refuse_repeated(path: Path, columns: Sequence[str], names: Sequence[str]) -> None:
    repeated = [column for column in columns if names.count(column) > 1]
    if repeated:
        raise errors.InputError(
            f"{path} has {names.count(repeated[0])} columns {repeated[0]!r}: rename or remove all but one"
        )


def _open_parquet(path: Path) -> parquet.ParquetFile:
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise errors.InputError(f"cannot read {path} as Parquet: {error}") from error


def _iter_parquet_blocks(
    path: Path, columns: Sequence[str], block_rows: int
) -> Iterator[tuple[Sequence[int], list[Sequence[object]]]]:
    first = 1
    with _open_parquet(path) as file:
        try:
            for batch in file.iter_batches(batch_size=block_rows, columns=list(columns)):
                yield range(first, first + batch.num_rows), [batch.column(column).to_pylist() for column in columns]
                first += batch.num_rows
        except (OSError, ValueError, pa.ArrowException) as error:
            raise errors.InputError(f"cannot read {path} as Parquet: {error}") from error
