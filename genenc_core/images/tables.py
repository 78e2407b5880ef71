"""Rows of a CSV or Parquet table, column by column name, streamed and with row numbers for messages."""

import csv
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from genenc_core import errors

CSV_DELIMITERS = {".csv": ",", ".tsv": "\t"}
PARQUET_SUFFIXES = (".parquet", ".pq")


def is_table(path: Path) -> bool:
    """Return whether the name says CSV, TSV or Parquet."""
    return path.suffix.lower() in (*CSV_DELIMITERS, *PARQUET_SUFFIXES)


def column_names(path: Path) -> list[str]:
    """Return the column names of a table.

    Raises:
        InputError: the file cannot be read as what its name says.
    """
    if path.suffix.lower() in PARQUET_SUFFIXES:
        with _open_parquet(path) as file:
            return list(file.schema_arrow.names)
    return [name.strip() for name in next(iter_csv(path), (0, []))[1]]


def iter_cells(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, tuple[object, ...]]]:
    """Yield (row number, the cells of `columns`); blank CSV lines are skipped.

    The row number is the line in a CSV (the header is line 1) and the row, from 1, in a Parquet file. CSV cells are
    text without surrounding blanks; Parquet cells are Python values.

    Raises:
        InputError: the file cannot be read, a column is missing, or a CSV line has too few cells.
    """
    names = column_names(path)
    positions = [names.index(column) for column in _existing(path, columns, names)]
    if path.suffix.lower() in PARQUET_SUFFIXES:
        for numbers, block in _iter_parquet_blocks(path, columns, 65536):
            yield from zip(numbers, zip(*block, strict=True), strict=True)
        return
    lines = iter_csv(path)
    next(lines, None)
    for number, cells in lines:
        if not any(cells):
            continue
        if max(positions) >= len(cells):
            raise errors.InputError(f"{path}: line {number} has {len(cells)} cells, its header has {len(names)}")
        yield number, tuple(cells[position].strip() for position in positions)


def iter_blocks(
    path: Path, columns: Sequence[str], *, block_rows: int, limit: int | None = None
) -> Iterator[tuple[Sequence[int], list[Sequence[object]]]]:
    """Yield (row numbers, the cells of each column) of at most `block_rows` rows, as `iter_cells` has them one by one.

    Of the whole table at most the first `limit` rows; what is behind them is not looked at.

    Raises:
        InputError: as `iter_cells`.
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
    found = islice(iter_cells(path, columns), limit)
    while lines := list(islice(found, block_rows)):
        yield [number for number, _ in lines], list(zip(*(texts for _, texts in lines), strict=True))


def iter_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number from 1, cells) of a UTF-8 CSV or TSV file.

    Raises:
        InputError: the file cannot be read, or is not UTF-8 text.
    """
    delimiter = CSV_DELIMITERS.get(path.suffix.lower(), ",")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=delimiter)
            for cells in reader:
                yield reader.line_num, cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise errors.InputError(f"cannot read {path} as UTF-8 CSV: {error}") from error


def _existing(path: Path, columns: Sequence[str], names: Sequence[str]) -> Sequence[str]:
    missing = [column for column in columns if column not in names]
    if missing:
        wanted = ", ".join(repr(column) for column in missing)
        raise errors.InputError(f"{path} has no column {wanted}; its columns are: {', '.join(names) or 'none'}")
    return columns


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
