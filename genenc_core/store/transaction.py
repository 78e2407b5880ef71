"""The commit protocol of one shard: stage, commit, promote, clean; killed anywhere, anyone may go on.

Why it holds: a record is linked only after every object it names is durable, so a record means that the data exist;
`status` is promoted only after every other object is durable in its place, so a status means that the row is whole;
a key is only ever filled by renaming the file that the one record names, so its bytes never change.
"""

import contextlib
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from genenc_core import errors
from genenc_core.store import files, layout, records, zarr_arrays
from genenc_core.store.places import Observer, Places, shard_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try at one shard, in a folder of its own."""

    places: Places
    observe: Observer
    plan: layout.StorePlan
    shard: int
    name: str

    @classmethod
    def new(cls, places: Places, plan: layout.StorePlan, shard: int, *, observe: Observer) -> Self:
        """Return an attempt whose name no other has."""
        return cls(places=places, observe=observe, plan=plan, shard=shard, name=uuid.uuid4().hex)

    def stage(
        self,
        blocks: Mapping[str, np.ndarray],
        metadata: Mapping[str, bytes],
        *,
        status_counts: Mapping[str, int],
        details: Mapping[str, Any],
    ) -> records.CommitRecord:
        """Write every object and the record into the attempt's folder, durable; nothing of it counts yet.

        Args:
            blocks: the shard's rows of every array of the plan, `status` included.
            metadata: `zarr.json` of every array.
            status_counts: rows by state.
            details: the caller's JSON for the record.
        """
        self.observe("stage:before")
        folder = self.places.attempt(self.shard, self.name)
        folder.mkdir()
        objects = []
        for index, array in enumerate(self.plan.all_arrays):
            objects.append(self._stage_object(array, f"{folder.name}/{index}", blocks[array.name], metadata))
            self.observe("stage:object")
        record = records.CommitRecord(
            schema=records.SCHEMA,
            shard=self.shard,
            attempt=self.name,
            fingerprint=self.plan.fingerprint,
            rows=self.plan.shard_range(self.shard),
            status_counts=status_counts,
            objects=tuple(objects),
            details=details,
        )
        text = record.to_json()
        files.write_new(folder / "record.json", text)
        files.sync_folder(folder)
        files.sync_folder(self.places.staging)
        self.observe("stage:after")
        return records.CommitRecord.from_json(text)

    def commit(self, record: records.CommitRecord) -> records.CommitRecord:
        """Make `record` the shard's record unless it has one; return the one it has from now on, durable.

        Raises:
            OSError: there is no record, or it may not be durable yet; staging must stay either way.
        """
        self.observe("commit:before")
        staged = self.places.attempt(self.shard, self.name) / "record.json"
        try:
            files.link_exclusive(staged, self.places.record(self.shard))
            won = record
        except (OSError, errors.StoreError):
            # A lost answer looks like a conflict, and a failed call may have linked: only the record tells.
            found = read_record(self.places, self.shard)
            if found is None:
                raise
            won = found
        files.sync_folder(self.places.commits)
        self.observe("commit:after")
        return won

    def discard(self) -> None:
        """Delete the attempt's folder; only before `commit` was called."""
        files.remove_tree(self.places.attempt(self.shard, self.name))

    def _stage_object(
        self, array: layout.ArrayPlan, staged: str, block: np.ndarray, metadata: Mapping[str, bytes]
    ) -> records.ObjectRecord:
        key = layout.chunk_key(array, self.shard)
        start, _ = self.plan.shard_range(self.shard)
        data = zarr_arrays.encode(metadata[array.name], key.partition("/")[2], start, block)
        files.write_new(self.places.staging / staged, data)
        return records.ObjectRecord(
            key=key,
            staged=staged,
            size=len(data),
            sha256=files.sha256(data),
            content_sha256=zarr_arrays.content_sha256(block),
        )


def read_record(places: Places, shard: int) -> records.CommitRecord | None:
    """Return a shard's record, or None when it is not committed.

    Raises:
        StoreError: the record is damaged.
    """
    path = places.record(shard)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return records.CommitRecord.from_json(data, subject=f"commit record {str(path)!r}")


def promote(places: Places, record: records.CommitRecord, *, observe: Observer) -> None:
    """Move a committed shard's objects to their Zarr keys, `status` last; again, or by several at once, is harmless.

    The caller has made sure that the record is durable.

    Raises:
        StoreError: an object is neither staged nor in place.
    """
    *data, status = record.objects
    for item in data:
        _place(places, record, item)
        observe("promote:object")
    for folder in sorted({(places.zarr / item.key).parent for item in data}):
        files.sync_folder(folder)
    observe("promote:before-status")
    _place(places, record, status)
    files.sync_folder((places.zarr / status.key).parent)
    observe("promote:after")


def clean(places: Places, shard: int, *, observe: Observer) -> None:
    """Delete all staging of a promoted shard, also what killed or beaten attempts left.

    Never call it for a shard without a promoted record: a slow writer may still commit what it staged.
    """
    with os.scandir(places.staging) as entries:
        left = [entry.name for entry in entries if shard_of(entry.name) == shard]
    for name in left:
        files.remove_tree(places.staging / name)
    observe("clean:after")


def _place(places: Places, record: records.CommitRecord, item: records.ObjectRecord) -> None:
    staged, target = places.staging / item.staged, places.zarr / item.key
    with contextlib.suppress(FileNotFoundError):  # moved by whoever promoted before or beside us
        size = staged.stat().st_size
        if size != item.size:
            raise errors.StoreError(
                f"shard {record.shard:05d}: staged object {str(staged)!r} has {size} bytes, its record says "
                f"{item.size}; the file system lost committed data, make the run again with another --out"
            )
        staged.replace(target)
    if not target.exists():
        raise errors.StoreError(
            f"shard {record.shard:05d}: object {item.key!r} is committed but neither in place nor staged; somebody "
            "deleted it. genenc verify --repair makes the shard pending, so that it is encoded again"
        )
