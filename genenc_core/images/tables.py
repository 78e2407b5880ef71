"""Rows of a CSV or Parquet table, column by column name, streamed and with row numbers for messages."""

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
"""The delimiter of a file by its name; another one that its first line shows counts instead."""
_DELIMITERS = (",", ";", "\t")
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


def find_columns(path: Path, wanted: Mapping[str, Sequence[str]], chosen: Mapping[str, str]) -> dict[str, str]:
    """Return which column of a table is meant by each name in `wanted`: that in `chosen`, else one of its synonyms.

    Case, surrounding blanks and `_`, `-` or blanks between words do not count.

    Raises:
        InputError: a column that is not there, or of which several are.
    """
    columns = column_names(path)
    found: dict[str, str] = {}
    for name, synonyms in wanted.items():
        if name in chosen:
            found[name] = _existing(path, [chosen[name]], columns)[0]
            continue
        fits = [column for word in synonyms for column in columns if _plain(column) == _plain(word)]
        exact = [column for column in fits if column == name]
        _refuse_twice(path, fits, columns)
        if len(set(fits)) > 1 and not exact:
            raise errors.InputError(
                f"{path} has several columns that may be {name!r}: {', '.join(map(repr, dict.fromkeys(fits)))}. Name "
                f"the right one with --points-columns {name}={fits[0]}"
            )
        if fits:
            found[name] = (exact or fits)[0]
    missing = [name for name in wanted if name not in found]
    if missing:
        raise errors.InputError(
            f"{path} has no column {', '.join(map(repr, missing))}; its columns are: {', '.join(columns) or 'none'}. "
            f"Name them with --points-columns {','.join(f'{name}=COLUMN' for name in missing)}"
        )
    return found


def refuse_bytes(path: Path, column: str) -> None:
    """Check that a Parquet column can name files.

    Raises:
        InputError: it holds bytes, structures or lists, such as the images themselves.
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
    what = f"the images themselves ({kind})" if images else f"{kind}, no text"
    cell = f"row[{column!r}]" + ("['bytes']" if "bytes" in parts else "")
    remedy = (
        f"Write them to files first (pathlib.Path(f'{{number:08}}.jpg').write_bytes({cell}) for each row), and give "
        "their folder"
        if images
        else "Give a column of paths"
    )
    raise errors.InputError(f"the column {column!r} of {path} holds {what}, not the paths of images. {remedy}")


def iter_cells(
    path: Path, columns: Sequence[str], *, with_blanks: Collection[str] = ()
) -> Iterator[tuple[int, tuple[object, ...]]]:
    """Yield (row number, the cells of `columns`); blank CSV lines are skipped.

    The row number is the line in a CSV (the header is line 1) and the row, from 1, in a Parquet file. CSV cells are
    text without surrounding blanks, but for the columns `with_blanks` (where blanks alone are still empty); Parquet
    cells are Python values.

    Raises:
        InputError: the file cannot be read, a column is missing or there twice, or a CSV line has too few or too many
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
    """Check that a line of a CSV has no more cells than its header, but for empty ones at its end.

    Raises:
        InputError: it has.
    """
    if any(cell.strip() for cell in cells[columns:]):
        raise errors.InputError(
            f"{path}: line {number} has {len(cells)} cells, its header has {columns}: put cells that hold a delimiter "
            "in quotes, and write numbers with a decimal point"
        )


def iter_blocks(
    path: Path,
    columns: Sequence[str],
    *,
    block_rows: int,
    limit: int | None = None,
    with_blanks: Collection[str] = (),
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
    found = islice(iter_cells(path, columns, with_blanks=with_blanks), limit)
    while lines := list(islice(found, block_rows)):
        yield [number for number, _ in lines], list(zip(*(texts for _, texts in lines), strict=True))


def iter_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number from 1, cells) of a UTF-8 CSV or TSV file.

    Raises:
        InputError: the file cannot be read, is not UTF-8 text, or has a quote that does not end where a cell ends.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline(_LONGEST_HEADER)
            file.seek(0)
            # Strict: a lone quote would take in the lines that follow.
            delimiter = _delimiter(path, first)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            number = columns = 0
            for cells in reader:
                columns = columns or len(cells)
                if reader.line_num - number > 1:
                    _refuse_rows_in_a_cell(path, number + 1, cells, delimiter, columns)
                yield reader.line_num, cells
                number = reader.line_num
    except UnicodeDecodeError as error:
        raise errors.InputError(
            f"cannot read {path} as UTF-8 CSV: {error}. Save it as UTF-8 (in a spreadsheet: 'CSV UTF-8')"
        ) from error
    except csv.Error as error:
        raise errors.InputError(
            f"cannot read {path} as CSV: after line {number}: {error}. A cell that holds a quote is written in quotes, "
            'with the quote doubled: "5"" tip"'
        ) from error
    except OSError as error:
        raise errors.InputError(f"cannot read {path} as UTF-8 CSV: {error}") from error


def _refuse_rows_in_a_cell(path: Path, number: int, cells: Sequence[str], delimiter: str, columns: int) -> None:
    """Check that no lines of a cell in quotes look like rows of the table, which a stray quote takes in."""
    lines = [line for cell in cells for line in cell.splitlines()[1:]]
    if columns > 1 and any(line.count(delimiter) == columns - 1 for line in lines):
        raise errors.InputError(
            f"{path}: a cell that begins with a quote in line {number} takes in lines that look like rows of the "
            "table: remove or double the quote, or write the cell in one line"
        )


_LONGEST_HEADER = 2**20


def _delimiter(path: Path, first: str) -> str:
    """Return what separates the cells of a file's first line: the most frequent delimiter outside quotes."""
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
    _refuse_twice(path, columns, names)
    return columns


def _refuse_twice(path: Path, columns: Sequence[str], names: Sequence[str]) -> None:
    twice = [column for column in columns if names.count(column) > 1]
    if twice:
        raise errors.InputError(
            f"{path} has {names.count(twice[0])} columns {twice[0]!r}: rename or remove all but one"
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
