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
    document: str
    """Digest of the run's `store.json`."""
    shard: int
    name: str
    generation: int = 0
    previous: str = ""

    @classmethod
    def new(
        cls,
        objects: Objects,
        plan: layout.StorePlan,
        document: str,
        shard: int,
        *,
        observe: places.Observer,
        generation: int = 0,
        previous: str = "",
    ) -> Self:
        """Return an attempt whose name no other has: at a shard's first record, or at one after the `previous`."""
        name = uuid.uuid4().hex
        return cls(
            objects=objects,
            observe=observe,
            plan=plan,
            document=document,
            shard=shard,
            name=name,
            generation=generation,
            previous=previous,
        )

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
            generation=self.generation,
            previous=self.previous,
            store=self.document,
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
            key = places.record(self.shard, self.generation)
            self.objects.create(key, record.to_json(), via=f"{self._folder}/record.json")
            won = record
        except (OSError, errors.StoreError):
            # A lost answer looks like a conflict, and a failed call may have created: only the record tells.
            found = own_record(self.objects, self.plan, self.document, self.shard)
            if found is None or found.generation < self.generation:
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
        return places.attempt(self.shard, self.name, self.generation)

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


def read_record(objects: Objects, shard: int, generation: int = 0) -> records.CommitRecord | None:
    """Return one record of a shard, or None when there is none.

    Raises:
        OtherVersion: the record is of another version of genenc.
        StoreError: the record is damaged.
    """
    key = places.record(shard, generation)
    try:
        data = objects.read(key)
    except FileNotFoundError:
        return None
    try:
        record = records.CommitRecord.from_json(data, subject=f"commit record {key!r} of {objects.name!r}")
    except sealed.OtherVersion:
        raise
    except errors.StoreError as error:
        raise errors.StoreError(f"{error}; {_REMEDY}") from error
    if record.generation != generation:
        raise errors.StoreError(f"{key!r} of {objects.name!r} is record {record.generation} of its shard; {_REMEDY}")
    return record


def history(objects: Objects, shard: int) -> list[records.CommitRecord]:
    """Return the records of a shard, the first to the one that holds; each names the digest of the one before it.

    Raises:
        OtherVersion: a record is of another version of genenc.
        StoreError: a record is damaged, or does not follow the one before it.
    """
    found: list[records.CommitRecord] = []
    while (record := read_record(objects, shard, len(found))) is not None:
        if found:
            what = _not_following(objects, found[-1], record)
            if what:
                raise errors.StoreError(f"{places.record(shard, len(found))!r} of {objects.name!r} {what}; {_REMEDY}")
        found.append(record)
    return found


def record_digest(objects: Objects, record: records.CommitRecord) -> str:
    """Return the digest of a record's file."""
    return digests.of([objects.read(places.record(record.shard, record.generation))])


def _not_following(objects: Objects, before: records.CommitRecord, after: records.CommitRecord) -> str:
    """Return why a record cannot come after another, "" if it can: rows only ever go from unreadable to stored."""
    if after.previous != record_digest(objects, before):
        return "follows another record than the one before it"
    ok = [record.status_counts.get("ok", 0) for record in (before, after)]
    same = (before.shard, before.rows, before.fingerprint) == (after.shard, after.rows, after.fingerprint)
    return "" if same and ok[0] < ok[1] else "heals nothing of the record before it"


def own_record(objects: Objects, plan: layout.StorePlan, document: str, shard: int) -> records.CommitRecord | None:
    """Return the record of a shard that holds, but not one that was made for another run or another shard.

    Raises:
        StoreError: the record is damaged, or not this shard's.
    """
    found = history(objects, shard)
    record = found[-1] if found else None
    what = "" if record is None else misplaced(record, plan, document, shard)
    if what:
        raise errors.StoreError(f"{what} ({places.record(shard)!r} of {objects.name!r}); {_REMEDY}")
    return record


def misplaced(record: records.CommitRecord, plan: layout.StorePlan, document: str, shard: int) -> str:
    """Return why a record is not one of this shard of this run, "" if it is."""
    if record.fingerprint != plan.fingerprint:
        return f"the record is of another run: fingerprint {record.fingerprint}, not {plan.fingerprint}"
    if record.store not in ("", document):
        return "the record is of another run, which was made by the same command"
    if (record.shard, record.rows) != (shard, plan.shard_range(shard)):
        return f"the record is of shard {record.shard}, rows {record.rows}"
    if [item.key for item in record.objects] != [layout.chunk_key(array, shard) for array in plan.all_arrays]:
        return f"the record names other objects than the plan: {[item.key for item in record.objects]}"
    return ""


def promote(objects: Objects, record: records.CommitRecord, *, observe: places.Observer, look: bool = True) -> None:
    """Move a committed shard's objects to their Zarr keys, `status` last; again, or by several at once, is harmless.

    The caller has made sure that the record is durable. `look`: compare what is staged with the record first, where it
    was not staged just now.

    Raises:
        StoreError: an object is neither staged nor in place, or what is staged is not what was committed.
    """
    *data, status = record.objects
    for item in record.objects if look else ():
        _refuse_changed(objects, record, item)
    for item in data:
        _place(objects, record, item)
        observe("promote:object")
    objects.sync(*sorted({_folder_of(item) for item in data}))
    observe("promote:before-status")
    _place(objects, record, status)
    objects.sync(_folder_of(status))
    observe("promote:after")


def clean(objects: Objects, record: records.CommitRecord, *, observe: places.Observer) -> None:
    """Delete all staging of a promoted record and those before it, also what killed or beaten attempts left.

    Never that of a record that is still to come: a slow writer may still commit what it staged.
    """
    for generation in range(record.generation + 1):
        for name in staged(objects, places.attempt(record.shard, generation=generation).rpartition("/")[2]):
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


def _refuse_changed(objects: Objects, record: records.CommitRecord, item: records.ObjectRecord) -> None:
    staged, (algorithm, _, stated) = f"{places.STAGING}/{item.staged}", item.digest.partition(":")
    with contextlib.suppress(FileNotFoundError):
        if objects.digest(staged, algorithm, size=item.size) != (item.size, stated):
            raise errors.StoreError(
                f"shard {record.shard:05d}: {item.key!r} is committed, but {staged!r}, which waits to be put in place, "
                f"is not what was committed: it changed. {_REMEDY}"
            )


def _place(objects: Objects, record: records.CommitRecord, item: records.ObjectRecord) -> None:
    target = f"{places.GROUP}/{item.key}"
    with contextlib.suppress(FileNotFoundError):  # moved by whoever promoted before or beside us
        objects.move(f"{places.STAGING}/{item.staged}", target, size=item.size)
        return
    missing = objects.size(target) is None
    if record.generation and not missing:  # what lies there may still be that of the record before
        algorithm, _, stated = item.digest.partition(":")
        missing = objects.digest(target, algorithm, size=item.size) != (item.size, stated)
    if missing:
        raise errors.StoreError(
            f"shard {record.shard:05d}: object {item.key!r} is committed but neither in place nor staged; it "
            f"was deleted. {_REMEDY}"
        )
