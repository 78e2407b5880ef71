"""Stored arrays of a version's parts as a Zarr store: their metadata comes from the version's document."""

import asyncio
import functools
import json
from typing import Any

import zarr
from zarr.abc.store import ByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import MemoryStore, WrapperStore

from genenc_core import errors
from genenc_core.dataset import documents, part_arrays
from genenc_core.dataset.documents import Part, Version
from genenc_core.store import run_store, store_keys, zarr_bytes
from genenc_core.store.backends.objects import Objects, join, open_objects
from genenc_core.system import digests
from genenc_core.text import argument

_ARRAYS = 1024
"""Opened arrays that are kept."""


class PartStore:
    """The arrays of a version's parts; threads and processes may share it.

    A part is checked when it is first touched: its `_txn/store.json` must be the one that the version recorded.
    """

    def __init__(self, objects: Objects, version: Version) -> None:
        self.objects = objects
        self.version = version
        self._checked: set[int] = set()
        self._array = functools.lru_cache(_ARRAYS)(self._opened)

    def __reduce__(self) -> tuple[Any, ...]:
        """Forget what was opened and checked when pickled."""
        return _reopened, (self.objects.name, self.version)

    def of(self, index: int) -> Part:
        """Return the entry of a part."""
        return self.version.parts[index]

    def check(self, index: int) -> None:
        """Check once that a part is the one of the version.

        Raises:
            StoreError: it is missing, another one, or behind a symbolic link.
        """
        if index in self._checked:
            return
        part = self.version.parts[index]
        with run_store.read_errors(self._where(part)):
            try:
                data = self.objects.read(f"{documents.PARTS}/{part.name}/{store_keys.STORE_FILE}")
            except FileNotFoundError as error:
                raise errors.StoreError(f"the part {self._where(part)!r} is missing: restore it from a copy") from error
        if digests.STORE_FILE.named(data) != part.store:
            raise errors.StoreError(
                f"the part {self._where(part)!r} is not the one that version {self.version.version} was made with (its "
                f"{store_keys.STORE_FILE} differs): restore it from a copy"
            )
        self._checked.add(index)

    def empty(self, template: int, name: str) -> Any:
        """Return an array of a template as `zarr.Array` without rows.

        Raises:
            StoreError: the template is damaged.
        """
        return self._opened(f"{template}/{name}")

    def read(self, index: int, name: str, selection: tuple[Any, ...]) -> Any:
        """Return an orthogonal selection of an array of a part that was checked.

        Raises:
            StoreError: an object is missing, damaged or unreadable.
        """
        array = self._array(f"{self.version.parts[index].name}/{name}")
        try:
            return array.oindex[selection]
        except (errors.GenencError, IndexError):
            raise
        except Exception as error:  # of zarr and its codecs
            where = self._where(self.version.parts[index])
            raise errors.StoreError(
                f"{name!r} of the part {where!r} is damaged ({errors.reason(error)}); genenc verify {argument(where)} "
                "--content lists the damage"
            ) from error

    def _opened(self, path: str) -> Any:
        try:
            return zarr.open_array(_Parts(self), path=path, mode="r", zarr_format=3)
        except Exception as error:  # of zarr and its codecs
            raise errors.StoreError(
                f"{join(self.objects.name, self.version.key)!r} is damaged: array {path!r}: {errors.reason(error)}"
            ) from error

    def _where(self, part: Part) -> str:
        return join(self.objects.name, f"{documents.PARTS}/{part.name}")

    @functools.cached_property
    def _parts(self) -> dict[str, Part]:
        return {part.name: part for part in self.version.parts}

    def metadata(self, key: str) -> bytes:
        """Return the `zarr.json` of an array of a part, or of a template."""
        of, name = key.split("/")[:2]
        part = self._parts.get(of)
        template = self.version.templates[part.template if part else int(of)][name]
        rows, chunks = (0, (1, 1)) if part is None else (part.rows, part.chunks[name])
        if part is not None and part_arrays.is_per_region(template):
            rows = part.region_places or 0
        return json.dumps(part_arrays.join(template, rows, chunks)).encode()

    def data(self, key: str, asked: ByteRequest | None) -> bytes:
        """Return bytes of an object `PART/ARRAY/c.0.0`."""
        part, _, below = key.partition("/")
        place = f"{documents.PARTS}/{part}/{store_keys.GROUP}/{below}"
        with run_store.read_errors(self._where(self._parts[part])):
            try:
                if isinstance(asked, RangeByteRequest):
                    return self.objects.read_range(place, asked.start, asked.end - asked.start)
                if isinstance(asked, SuffixByteRequest):
                    return self.objects.read_range(place, -asked.suffix, asked.suffix)
                data = self.objects.read(place, most=None)
                return data if asked is None else data[asked.offset :]
            except FileNotFoundError as error:  # rows of a version are stored: Zarr would read it as unwritten ones
                raise errors.StoreError(
                    f"{join(self.objects.name, place)!r} is missing: restore it from a copy"
                ) from error


def _reopened(root: str, version: Version) -> PartStore:
    return PartStore(open_objects(root), version)


class _Parts(WrapperStore[Store]):
    """What zarr reads: keys `PART/ARRAY/zarr.json`, `TEMPLATE/ARRAY/zarr.json` and `PART/ARRAY/c.0.0`."""

    def __init__(self, parts: PartStore) -> None:
        super().__init__(MemoryStore(read_only=True))
        self._of = parts

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return an object or a part of it."""
        if key.endswith(f"/{zarr_bytes.METADATA}"):
            return prototype.buffer.from_bytes(self._of.metadata(key))
        return prototype.buffer.from_bytes(await asyncio.to_thread(self._of.data, key, byte_range))
