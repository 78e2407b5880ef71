"""Streaming readers of CSV and Parquet tables, by column name and with row numbers for messages."""

import csv
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from genenc_core import errors

CSV_DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""Default delimiter by extension; one that is more frequent in the first line takes precedence."""
_DELIMITERS = (",", ";", "\t")
PARQUET_SUFFIXES = (".parquet", ".pq")
_COMPARE_ROWS = 16384


def is_table(path: Path) -> bool:
    """Return whether the extension is that of CSV, TSV or Parquet."""
    return path.suffix.lower() in (*CSV_DELIMITERS, *PARQUET_SUFFIXES)


def column_names(path: Path) -> list[str]:
    """Return the column names of a table.

    Raises:
        InputError: the file cannot be read as the format of its extension.
    """
    if path.suffix.lower() in PARQUET_SUFFIXES:
        with _open_parquet(path) as file:
            return list(file.schema_arrow.names)
    return [name.strip() for name in next(iter_csv(path), (0, []))[1]]


def find_columns(path: Path, wanted: Mapping[str, Sequence[str]], chosen: Mapping[str, str]) -> dict[str, str]:
    """Map each name in `wanted` to a column of a table: the one in `chosen`, else one of its synonyms.

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
                f"Choose one, for example with --points-columns {name}={matches[0]}"
            )
        if matches:
            mapping[name] = (exact or matches)[0]
    missing = [name for name in wanted if name not in mapping]
    if missing:
        raise errors.InputError(
            f"{path} has no column {', '.join(map(repr, missing))}; its columns are: {', '.join(columns) or 'none'}. "
            f"Choose them with --points-columns {','.join(f'{name}=COLUMN' for name in missing)}"
        )
    return mapping


def has_column(path: Path, words: Sequence[str]) -> bool:
    """Return whether a table has a column of one of these names, as `find_columns` compares them.

    Raises:
        InputError: as in `column_names`.
    """
    wanted = {_plain(word) for word in words}
    return any(_plain(name) in wanted for name in column_names(path))


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
    parts = [kind.field(at).name for at in range(kind.num_fields)] if pa.types.is_struct(kind) else []
    images = "bytes" in parts or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    what = f"the images themselves ({kind})" if images else f"{kind}, not text"
    cell = f"row[{column!r}]" + ("['bytes']" if "bytes" in parts else "")
    remedy = (
        f"Write them to files first (pathlib.Path(f'{{number:08}}.jpg').write_bytes({cell}) for each row), and pass "
        "that folder"
        if images
        else "Choose a column of paths"
    )
    raise errors.InputError(f"the column {column!r} of {path} holds {what}, not image paths. {remedy}")


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
    names = column_names(path)
    positions = [names.index(column) for column in _existing(path, columns, names)]
    if path.suffix.lower() in PARQUET_SUFFIXES:
        for numbers, block in _iter_parquet_blocks(path, columns, 65536):
            yield from zip(numbers, zip(*block, strict=True), strict=True)
        return
    kept = {position for position, column in zip(positions, columns, strict=True) if column in with_blanks}
    lines = iter_csv(path)
    next(lines, None)
    for number, cells in lines:
        if not any(cells):
            continue
        if max(positions) >= len(cells):
            raise errors.InputError(f"{path}: line {number} has {len(cells)} cells, its header has {len(names)}")
        refuse_more_cells(path, number, cells, len(names))
        yield number, tuple(_cell(cells[position], with_blanks=position in kept) for position in positions)


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
    for numbers, block in iter_blocks(path, [column, other], block_rows=_COMPARE_ROWS):
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
    if path.suffix.lower() in PARQUET_SUFFIXES:
        _existing(path, columns, column_names(path))
        left = sys.maxsize if limit is None else limit
        blocks = _iter_parquet_blocks(path, columns, block_rows)
        while left and (block := next(blocks, None)):
            numbers, cells = block
            yield numbers[:left], [values[:left] for values in cells]
            left -= min(left, len(numbers))
        return
    rows = islice(iter_cells(path, columns, with_blanks=with_blanks), limit)
    while lines := list(islice(rows, block_rows)):
        yield [number for number, _ in lines], list(zip(*(texts for _, texts in lines), strict=True))


def iter_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number from 1, cells) of a UTF-8 CSV or TSV file.

    Raises:
        InputError: the file cannot be read, is not UTF-8 text, or has a quote that does not close at the end of a cell.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline(_LONGEST_HEADER)
            file.seek(0)
            # Strict, since a stray quote would swallow the lines that follow.
            delimiter = _delimiter(path, first)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            number = columns = 0
            for cells in reader:
                columns = columns or len(cells)
                if reader.line_num - number > 1:
                    _refuse_rows_in_cell(path, number + 1, cells, delimiter, columns)
                yield reader.line_num, cells
                number = reader.line_num
    except UnicodeDecodeError as error:
        raise errors.InputError(
            f"cannot read {path} as UTF-8 CSV: {error}. Save it as UTF-8 (in a spreadsheet: 'CSV UTF-8')"
        ) from error
    except csv.Error as error:
        raise errors.InputError(
            f"cannot read {path} as CSV: after line {number}: {error}. Quote cells that contain a quote, and double "
            'that one: "5"" tip"'
        ) from error
    except OSError as error:
        raise errors.InputError(f"cannot read {path} as UTF-8 CSV: {error}") from error


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
