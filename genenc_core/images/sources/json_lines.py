"""Streaming reader of JSON lines: one object per line, whose keys are the columns."""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from genenc_core import errors

SUFFIXES = (".jsonl", ".ndjson")


_LOOKED_AT = 10_000
"""Objects whose keys are the columns."""


def column_names(path: Path) -> list[str]:
    """Return the keys of the first objects; raises as `keys`."""
    return [*keys(path)]


def keys(path: Path) -> dict[str, bool]:
    """Return the keys of the first objects, and whether their first values are texts, numbers, true or false.

    A key that is null in all of them counts as such.

    Raises:
        InputError: the file cannot be read, or a line is not an object.
    """
    found: dict[str, object] = {}
    for _, each in itertools.islice(_objects(path), _LOOKED_AT):
        found.update({key: value for key, value in each.items() if found.get(key) is None})
    return {key: not isinstance(value, list | dict) for key, value in found.items()}


def iter_blocks(
    path: Path, columns: Sequence[str], block_rows: int
) -> Iterator[tuple[Sequence[int], list[Sequence[object]]]]:
    """Yield (line numbers, the values of each column) in blocks; a key that an object lacks is None.

    Raises:
        InputError: as in `column_names`, a value is a list or an object, or a key is none of the first objects'.
    """
    objects, known = _objects(path), keys(path).keys()
    while rows := list(itertools.islice(objects, block_rows)):
        for number, each in rows:
            if not each.keys() <= known:
                raise errors.InputError(
                    f"{path}: line {number} has the key {min(each.keys() - known)!r}, which none of the first "
                    f"{_LOOKED_AT:,} lines has: write it in the first line too, with null as its value"
                )
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
