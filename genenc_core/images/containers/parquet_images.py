"""Parquet tables with the images in their cells, such as those of Hugging Face datasets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from genenc_core.images.containers.container import Container, Content, Mark, Member, file_mark, index_of, one_line
from genenc_core.images.containers.frames import Frames
from genenc_core.images.decode import decode
from genenc_core.images.decode.decoded import ImageUnreadable
from genenc_core.images.sources import tables


class ParquetImages(Container):
    """A column of image files: bytes, or structs of `bytes` and `path`; the only one, or the one that the path names.

    A row group is read at once, and kept for the rows that follow.
    """

    frames = False

    def __init__(self, path: Path, file: parquet.ParquetFile, column: str) -> None:
        self._path = path
        self._file = file
        self._mark = file_mark(str(path))
        self._column = column or self._only_column()
        if self._column not in file.schema_arrow.names:
            raise ImageUnreadable(f"it has no column {self._column!r}: it has {', '.join(file.schema_arrow.names)}")
        self.columns = tuple(tables.further_columns(path, [self._column]))
        sizes = [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])
        self._group = -1
        self._cells: Any = None

    @classmethod
    def open(cls, path: str) -> "ParquetImages":
        """Open it; raises as `Container.open`."""
        at = next((each for each in (Path(path), *Path(path).parents) if each.is_file()), Path(path))
        file_mark(str(at))
        try:
            file = parquet.ParquetFile(at)
        except (ValueError, pa.ArrowException) as error:
            raise ImageUnreadable(f"damaged Parquet: {one_line(error)}") from error
        return cls(at, file, Path(path).relative_to(at).as_posix().removeprefix("."))

    def _only_column(self) -> str:
        found = tables.image_columns(self._file.schema_arrow)
        if len(found) != 1:
            what = f"several columns of images ({', '.join(found)})" if found else "no column of images"
            raise ImageUnreadable(f"it has {what}: name one, as {self._path.name}/COLUMN")
        return found[0]

    def members(self, frames: Frames) -> Iterator[Member]:  # noqa: ARG002 -- has none
        """Yield the rows, named by number and, where it is stored, by path."""
        named = _has_paths(self._file.schema_arrow, self._column)
        row = 0
        try:
            for batch in self._file.iter_batches(
                columns=[f"{self._column}.path" if named else self._column, *self.columns]
            ):
                own = batch.column(self._column)
                names = own.field("path").to_pylist() if named else [None] * batch.num_rows
                cells = [_texts(batch.column(column).to_pylist()) for column in self.columns]
                for name, *values in zip(names, *cells, strict=True):
                    yield Member(f"#{row}" + (f"/{name}" if name else ""), str(row), tuple(values))
                    row += 1
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ImageUnreadable(f"damaged Parquet: {one_line(error)}") from error

    def left_out(self) -> Iterator[str]:
        """Yield nothing."""
        yield from ()

    def mark(self, at: str) -> Mark:  # noqa: ARG002
        """Return the file's mark."""
        return self._mark

    def read(self, at: str, *, most_pixels: int = decode.MAX_PIXELS) -> Content:  # noqa: ARG002 -- they are decoded later
        """Return an image's bytes; raises as `Container.read`."""
        row = index_of(at, int(self._starts[-1]))
        group = int(np.searchsorted(self._starts[1:], row, side="right"))
        if group != self._group:
            try:
                table = self._file.read_row_group(group, columns=[self._column], use_threads=False)
            except (OSError, ValueError, pa.ArrowException) as error:
                raise ImageUnreadable(f"damaged Parquet: {one_line(error)}") from error
            self._group, self._cells = group, table.column(0)
        cell = self._cells[row - int(self._starts[group])].as_py()
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not data:
            raise ImageUnreadable("its cell is empty")
        return Content(data, file_mark(str(self._path)))

    def close(self) -> None:
        """Close it."""
        self._file.close()


def _texts(values: list[object]) -> list[str]:
    return ["" if value is None else str(value) for value in values]


def _has_paths(schema: pa.Schema, column: str) -> bool:
    kind = schema.field(column).type
    return pa.types.is_struct(kind) and any(kind.field(at).name == "path" for at in range(kind.num_fields))
