"""Parquet tables with the images in their cells, such as those of Hugging Face datasets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from genenc_core import spec
from genenc_core.images.containers.container import Container, Content, Member, file_mark, index_of, one_line
from genenc_core.images.containers.frames import Frames
from genenc_core.images.decode import decode
from genenc_core.images.decode.decoded import ImageUnreadable
from genenc_core.images.sources import image_source, tables

_TOGETHER = 64


class ParquetImages(Container):
    """A column of image files: bytes, or structs of `bytes` and `path`.

    Rows that follow each other are read once, a few at a time; a row before them begins its row group again.
    """

    frames = False

    def __init__(self, path: str, file: parquet.ParquetFile) -> None:
        self._path = path
        self._file = file
        self._mark = file_mark(path)
        sizes = [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])
        self._begun = (-1, "")
        """Row group and column that are being read."""
        self._first = 0
        """Row of the first of the cells that were read last."""
        self._cells: Any = []
        self._rest: Iterator[Any] = iter(())
        self._column = ""
        self.columns: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: str, channels: spec.Channels | None = None) -> "ParquetImages":  # noqa: ARG003
        """Open it; raises as `Container.open`."""
        file_mark(path)
        try:
            return cls(path, parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False))
        except (ValueError, pa.ArrowException) as error:
            raise ImageUnreadable(f"damaged Parquet: {one_line(error)}") from error

    def choose(self, column: str | None) -> None:
        """Choose the column of images that `members` yields; None: by its usual names, or the only one."""
        found = tables.image_columns(self._file.schema_arrow)
        chosen = tables.image_cells(Path(self._path), column, image_source.IMAGE_COLUMNS)
        if chosen is None:
            what = f"it has several columns of images ({', '.join(found)})" if found else "it has no column of images"
            if column is not None:
                what = f"its column {column!r} holds no images, or is missing ({', '.join(found) or 'none'} does)"
            raise ImageUnreadable(f"{what}: choose one with --image-column")
        self._column = chosen
        self.columns = tuple(tables.further_columns(Path(self._path), [chosen]))

    def members(self, frames: Frames) -> Iterator[Member]:  # noqa: ARG002 -- has none
        """Yield the rows, named by number and, where it is stored, by path."""
        tables.warn_of_left_out(Path(self._path), [self._column, *self.columns])
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
                    yield Member(f"#{row}" + (f"/{name}" if name else ""), f"{row}:{self._column}", tuple(values))
                    row += 1
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ImageUnreadable(f"damaged Parquet: {one_line(error)}") from error

    def read(self, at: str, *, most_pixels: int = decode.MAX_PIXELS) -> Content:  # noqa: ARG002 -- they are decoded later
        """Return an image's bytes; raises as `Container.read`."""
        number, _, column = at.partition(":")
        row = index_of(number, int(self._starts[-1]))
        try:
            cell = self._cell(row, column)
        except (OSError, ValueError, StopIteration, pa.ArrowException) as error:
            raise ImageUnreadable(f"damaged Parquet: {one_line(error)}") from error
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes | None):
            raise ImageUnreadable(f"its column {column!r} holds no images")
        if not data:
            raise ImageUnreadable("its cell is empty")
        return Content(data, file_mark(self._path))

    def _cell(self, row: int, column: str) -> Any:
        """Return a cell, reading on from the one before where it can."""
        group = int(np.searchsorted(self._starts[1:], row, side="right"))
        if (group, column) != self._begun or row < self._first:
            self._begun, self._first, self._cells = (group, column), int(self._starts[group]), []
            self._rest = self._file.iter_batches(_TOGETHER, row_groups=[group], columns=[column], use_threads=False)
        while row >= self._first + len(self._cells):
            self._first += len(self._cells)
            self._cells = next(self._rest).column(0)
        return self._cells[row - self._first].as_py()

    def close(self) -> None:
        """Close it."""
        self._file.close()


def _texts(values: list[object]) -> list[str]:
    return ["" if value is None else str(value) for value in values]


def _has_paths(schema: pa.Schema, column: str) -> bool:
    kind = schema.field(column).type
    return pa.types.is_struct(kind) and any(kind.field(at).name == "path" for at in range(kind.num_fields))
