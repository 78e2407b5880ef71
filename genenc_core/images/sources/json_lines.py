"""Streaming reader of JSON lines: one object per line, whose keys are the columns."""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from genenc_core import errors

SUFFIXES = (".jsonl", ".ndjson")


def column_names(path: Path) -> list[str]:
    """Return the keys of the first object.

    Raises:
        InputError: the file cannot be read, or the line is not an object.
    """
    return [*next(_objects(path), (1, {}))[1]]


def plain_columns(path: Path) -> list[str]:
    """Return the keys of the first object whose values are texts, numbers, true, false or null; raises as above."""
    return [key for key, value in next(_objects(path), (1, {}))[1].items() if not isinstance(value, list | dict)]


def iter_blocks(
    path: Path, columns: Sequence[str], block_rows: int
) -> Iterator[tuple[Sequence[int], list[Sequence[object]]]]:
    """Yield (line numbers, the values of each column) in blocks; a key that an object lacks is None.

    Raises:
        InputError: as in `column_names`, or a value is a list or an object.
    """
    objects = _objects(path)
    while rows := list(itertools.islice(objects, block_rows)):
        cells: list[Sequence[object]] = [[each.get(column) for _, each in rows] for column in columns]
        for column, values in zip(columns, cells, strict=True):
            nested = next((at for at, value in enumerate(values) if isinstance(value, list | dict)), None)
            if nested is not None:
                raise errors.InputError(
                    f"{path}: line {rows[nested][0]} has {json.dumps(values[nested])[:80]} as {column!r}: write a text "
                    "or a number"
                )
        yield [number for number, _ in rows], cells


def _objects(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield line number and object of each line that is not blank."""
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise errors.InputError(
                        f"{path}: line {number} is not an object: write one as {{...}} in each line"
                    )
                yield number, value
    except (ValueError, RecursionError) as error:
        raise errors.InputError(f"cannot read {path} as JSON lines: line {number or 1}: {error}") from error
    except OSError as error:
        raise errors.InputError(f"cannot read {path}: {error.strerror or error}") from error
