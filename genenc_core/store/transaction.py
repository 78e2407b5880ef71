"""The commit protocol of one shard: stage, commit, promote, clean; killed anywhere, anyone may go on.

Why it holds: a record is linked only after every object it names is durable, so a record means that the data exist;
`status` is promoted only after every other object is durable in its place, so a status means that the row is whole;
a key is only ever filled by renaming the file that the one record names, so its bytes never change.
"""

import contextlib
import functools
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np

from genenc_core import errors
from genenc_core.store import digests, layout, places, records, sealed, shard_bytes, zarr_arrays
from genenc_core.store.objects import Objects

_WORTH_THREADS: Final = 2**20
_THREADS: Final = 4
_Call = Callable[..., Callable[[], Any]]
_REMEDY: Final = "genenc verify --repair makes the shard pending, so that it is encoded again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try at one shard, in a folder of its own."""

    objects: Objects
    observe: places.Observer
    plan: layout.StorePlan
    shard: int
    name: str

    @classmethod
    def new(cls, objects: Objects, plan: layout.StorePlan, shard: int, *, observe: places.Observer) -> Self:
        """Return an attempt whose name no other has."""
        return cls(objects=objects, observe=observe, plan=plan, shard=shard, name=uuid.uuid4().hex)

    def stage(
        self,
        blocks: Mapping[str, np.ndarray],
        metadata: Mapping[str, bytes],
        *,
        status_counts: Mapping[str, int],
        details: Mapping[str, Any],
    ) -> records.CommitRecord:
        """Write every object into the attempt's folder, durable, and return the record; nothing of it counts yet.

        Args:
            blocks: the shard's rows of every array of the plan, `status` included.
            metadata: `zarr.json` of every array.
            status_counts: rows by state.
            details: the caller's JSON for the record.
        """
        self.observe("stage:before")
        self.objects.make_folder(self._folder)
        objects = []
        with _calls(sum(block.nbytes for block in blocks.values())) as call:
            staging = [
                self._stage_object(array, f"{self._folder}/{index}", blocks[array.name], metadata, call)
                for index, array in enumerate(self.plan.all_arrays)
            ]
            for ended in staging:
                objects.append(ended())
                self.observe("stage:object")
        record = records.CommitRecord(
            shard=self.shard,
            attempt=self.name,
            fingerprint=self.plan.fingerprint,
            rows=self.plan.shard_range(self.shard),
            status_counts=status_counts,
            objects=tuple(objects),
            details=details,
        )
        self.objects.sync(self._folder)
        self.observe("stage:after")
        return record

    def commit(self, record: records.CommitRecord) -> records.CommitRecord:
        """Make `record` the shard's record unless it has one; return the one it has from now on, durable.

        Raises:
            OSError: there is no record, or it may not be durable yet; staging must stay either way.
        """
        self.observe("commit:before")
        try:
            self.objects.create(places.record(self.shard), record.to_json(), via=f"{self._folder}/record.json")
            won = record
        except (OSError, errors.StoreError):
            # A lost answer looks like a conflict, and a failed call may have created: only the record tells.
            found = own_record(self.objects, self.plan, self.shard)
            if found is None:
                raise
            won = found
        self.objects.sync(places.COMMITS)
        self.observe("commit:after")
        return won

    def discard(self) -> None:
        """Delete the attempt's folder; only before `commit` was called."""
        self.objects.remove_tree(self._folder)

    @property
    def _folder(self) -> str:
        return places.attempt(self.shard, self.name)

    def _stage_object(
        self, array: layout.ArrayPlan, staged: str, block: np.ndarray, metadata: Mapping[str, bytes], call: _Call
    ) -> Callable[[], records.ObjectRecord]:
        """Have an object written and hashed; return what waits for the end of it."""
        key = layout.chunk_key(array, self.shard)
        start, _ = self.plan.shard_range(self.shard)
        block = shard_bytes.values(block)
        parts = zarr_arrays.encode(metadata[array.name], key.partition("/")[2], start, block)
        written = call(self.objects.write_new, staged, *parts)
        hashing = call if block.nbytes >= _WORTH_THREADS else functools.partial
        digest, content = hashing(digests.of, parts), hashing(zarr_arrays.content_digest, block)

        def ended() -> records.ObjectRecord:
            written()
            return records.ObjectRecord(
                key=key,
                staged=staged.removeprefix(f"{places.STAGING}/"),
                size=sum(map(len, parts)),
                digest=digest(),
                content_digest=content(),
            )

        return ended


@contextlib.contextmanager
def _calls(size: int) -> Iterator[_Call]:
    """Give a way to call functions whose results are asked for later: in threads where `size` bytes are worth them."""
    if size < _WORTH_THREADS:
        yield functools.partial
        return
    # Waiting for the disk takes no core, and fsyncs at the same time cost little more than one.
    with ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="genenc-stage") as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result


def read_record(objects: Objects, shard: int) -> records.CommitRecord | None:
    """Return a shard's record, or None when it is not committed.

    Raises:
        OtherVersion: the record is of another version of genenc.
        StoreError: the record is damaged.
    """
    key = places.record(shard)
    try:
        data = objects.read(key)
    except FileNotFoundError:
        return None
    try:
        return records.CommitRecord.from_json(data, subject=f"commit record {key!r} of {objects.name!r}")
    except sealed.OtherVersion:
        raise
    except errors.StoreError as error:
        raise errors.StoreError(f"{error}; {_REMEDY}") from error


def own_record(objects: Objects, plan: layout.StorePlan, shard: int) -> records.CommitRecord | None:
    """Return a shard's record as `read_record`, but not one that was made for another run or another shard.

    Raises:
        StoreError: the record is damaged, or not this shard's.
    """
    record = read_record(objects, shard)
    what = "" if record is None else misplaced(record, plan, shard)
    if what:
        raise errors.StoreError(f"{what} ({places.record(shard)!r} of {objects.name!r}); {_REMEDY}")
    return record


def misplaced(record: records.CommitRecord, plan: layout.StorePlan, shard: int) -> str:
    """Return why a record is not one of this shard of this run, "" if it is."""
    if record.fingerprint != plan.fingerprint:
        return f"the record is of another run: fingerprint {record.fingerprint}, not {plan.fingerprint}"
    if (record.shard, record.rows) != (shard, plan.shard_range(shard)):
        return f"the record is of shard {record.shard}, rows {record.rows}"
    if [item.key for item in record.objects] != [layout.chunk_key(array, shard) for array in plan.all_arrays]:
        return f"the record names other objects than the plan: {[item.key for item in record.objects]}"
    return ""


def promote(objects: Objects, record: records.CommitRecord, *, observe: places.Observer) -> None:
    """Move a committed shard's objects to their Zarr keys, `status` last; again, or by several at once, is harmless.

    The caller has made sure that the record is durable.

    Raises:
        StoreError: an object is neither staged nor in place.
    """
    *data, status = record.objects
    for item in data:
        _place(objects, record, item)
        observe("promote:object")
    objects.sync(*sorted({_folder_of(item) for item in data}))
    observe("promote:before-status")
    _place(objects, record, status)
    objects.sync(_folder_of(status))
    observe("promote:after")


def clean(objects: Objects, shard: int, *, observe: places.Observer) -> None:
    """Delete all staging of a promoted shard, also what killed or beaten attempts left.

    Never call it for a shard without a promoted record: a slow writer may still commit what it staged.
    """
    for name in staged(objects, places.attempt(shard).rpartition("/")[2]):
        objects.remove_tree(f"{places.STAGING}/{name}")
    observe("clean:after")


def staged(objects: Objects, prefix: str = "") -> list[str]:
    """Return the names of the attempts' folders that begin with `prefix`."""
    try:
        return objects.names(places.STAGING, prefix)
    except FileNotFoundError:  # a copy of a run may lack what was empty
        return []


def _folder_of(item: records.ObjectRecord) -> str:
    return f"{places.GROUP}/{item.key}".rpartition("/")[0]


def _place(objects: Objects, record: records.CommitRecord, item: records.ObjectRecord) -> None:
    target = f"{places.GROUP}/{item.key}"
    with contextlib.suppress(FileNotFoundError):  # moved by whoever promoted before or beside us
        objects.move(f"{places.STAGING}/{item.staged}", target, size=item.size)
        return
    if objects.size(target) is None:
        raise errors.StoreError(
            f"shard {record.shard:05d}: object {item.key!r} is committed but neither in place nor staged; somebody "
            f"deleted it. {_REMEDY}"
        )
