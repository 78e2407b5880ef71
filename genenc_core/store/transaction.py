"""Commit protocol of one shard: stage, commit, promote, clean. After a crash at any point any process can continue.

Invariants: a record is linked only after every object it names is durable, so a record implies that the data exist;
`status` is promoted only after every other object is durable in place, so a status implies a complete row; a key is
only filled by renaming the file that its one record names, so its bytes never change.
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
from genenc_core.store import commit_record, documents, layout, store_keys, zarr_bytes
from genenc_core.store.backends.objects import Objects
from genenc_core.system import digests

_WORTH_THREADS: Final = 2**20
_THREADS: Final = 4
_Call = Callable[..., Callable[[], Any]]
_REMEDY: Final = "genenc verify --repair makes the shard pending, so that it is encoded again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt to commit a shard, staged in its own folder."""

    objects: Objects
    observe: store_keys.Observer
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
        observe: store_keys.Observer,
        generation: int = 0,
        previous: str = "",
    ) -> Self:
        """Return an attempt with a unique name, for a shard's first record or the one after `previous`."""
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
        late: Callable[[], Mapping[str, Any]] = dict,
    ) -> commit_record.CommitRecord:
        """Write every object durably to the attempt's folder and return the record, which is not committed yet.

        Args:
            blocks: the shard's rows of every array of the plan, `status` included.
            metadata: `zarr.json` of every array.
            status_counts: rows by state.
            details: the caller's JSON for the record.
            late: returns additional details; called once every object is written.
        """
        self.observe("stage:before")
        self.objects.make_folder(self._folder)
        objects = []
        with _calls(sum(block.nbytes for block in blocks.values())) as call:
            staging = [
                self._stage_object(array, f"{self._folder}/{index}", blocks[array.name], metadata, call)
                for index, array in enumerate(self.plan.all_arrays)
            ]
            for wait in staging:
                objects.append(wait())
                self.observe("stage:object")
        record = commit_record.CommitRecord(
            shard=self.shard,
            attempt=self.name,
            fingerprint=self.plan.fingerprint,
            rows=self.plan.shard_range(self.shard),
            status_counts=status_counts,
            objects=tuple(objects),
            details={**details, **late()},
            generation=self.generation,
            previous=self.previous,
            store=self.document,
        )
        self.objects.sync(self._folder)
        self.observe("stage:after")
        return record

    def commit(self, record: commit_record.CommitRecord) -> commit_record.CommitRecord:
        """Commit `record` unless the shard already has one; return the durable record that won.

        Raises:
            OSError: there is no record, or it may not be durable yet; in both cases staging must stay.
        """
        self.observe("commit:before")
        try:
            key = store_keys.record(self.shard, self.generation)
            self.objects.create(key, record.to_json(), via=f"{self._folder}/record.json")
            won = record
        except (OSError, errors.StoreError):
            # A lost reply looks like a conflict, and a failed call may have succeeded: read the record back.
            found = own_record(self.objects, self.plan, self.document, self.shard)
            if found is None or found.generation < self.generation:
                raise
            won = found
        self.objects.sync(store_keys.COMMITS)
        self.observe("commit:after")
        return won

    def discard(self) -> None:
        """Delete the attempt's folder; only valid before `commit`."""
        self.objects.remove_tree(self._folder)

    @property
    def _folder(self) -> str:
        return store_keys.attempt(self.shard, self.name, self.generation)

    def _stage_object(
        self, array: layout.ArrayPlan, staged: str, block: np.ndarray, metadata: Mapping[str, bytes], call: _Call
    ) -> Callable[[], commit_record.ObjectRecord]:
        """Start writing and hashing an object; return a function that waits for both."""
        key = layout.chunk_key(array, self.shard)
        start, _ = layout.rows_of(self.plan, array, self.shard)
        block = zarr_bytes.chunk_values(block)
        parts = zarr_bytes.encode(metadata[array.name], key.partition("/")[2], start, block)
        written = call(self.objects.write_new, staged, *parts)
        hashing = call if block.nbytes >= _WORTH_THREADS else functools.partial
        digest, content = (
            hashing(digests.of, parts, digests.OBJECT.algorithm),
            hashing(zarr_bytes.content_digest, block),
        )

        def wait() -> commit_record.ObjectRecord:
            written()
            return commit_record.ObjectRecord(
                key=key,
                staged=staged.removeprefix(f"{store_keys.STAGING}/"),
                size=sum(map(len, parts)),
                digest=digest(),
                content_digest=content(),
            )

        return wait


@contextlib.contextmanager
def _calls(size: int) -> Iterator[_Call]:
    """Provide a function for deferred calls, which uses threads if `size` bytes are worth them."""
    if size < _WORTH_THREADS:
        yield functools.partial
        return
    # Waiting for the disk uses no core, and concurrent fsyncs cost little more than one.
    with ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="genenc-stage") as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result


def read_record(objects: Objects, shard: int, generation: int = 0) -> commit_record.CommitRecord | None:
    """Return one record of a shard, or None if it does not exist.

    Raises:
        OtherVersion: the record is of another version of genenc.
        StoreError: the record is damaged.
    """
    key = store_keys.record(shard, generation)
    try:
        data = objects.read(key)
    except FileNotFoundError:
        return None
    try:
        record = commit_record.CommitRecord.from_json(data, subject=f"commit record {key!r} of {objects.name!r}")
    except documents.OtherVersion:
        raise
    except errors.StoreError as error:
        raise errors.StoreError(f"{error}; {_REMEDY}") from error
    if record.generation != generation:
        raise errors.StoreError(f"{key!r} of {objects.name!r} has generation {record.generation}; {_REMEDY}")
    return record


def history(objects: Objects, shard: int) -> list[commit_record.CommitRecord]:
    """Return all records of a shard, oldest first; each names the digest of the preceding one.

    Raises:
        OtherVersion: a record is of another version of genenc.
        StoreError: a record is damaged, or does not follow the preceding one.
    """
    records: list[commit_record.CommitRecord] = []
    while (record := read_record(objects, shard, len(records))) is not None:
        if records:
            problem = _succession_problem(objects, records[-1], record)
            if problem:
                raise errors.StoreError(
                    f"{store_keys.record(shard, len(records))!r} of {objects.name!r} {problem}; {_REMEDY}"
                )
        records.append(record)
    return records


def record_digest(objects: Objects, record: commit_record.CommitRecord) -> str:
    """Return the digest of a record's file."""
    return digests.RECORD.named(objects.read(store_keys.record(record.shard, record.generation)))


def _succession_problem(objects: Objects, before: commit_record.CommitRecord, after: commit_record.CommitRecord) -> str:
    """Return why `after` is not a valid successor of `before`, "" if it is: rows only go from unreadable to ok."""
    if after.previous != record_digest(objects, before):
        return "names another predecessor than the record before it"
    ok = [record.status_counts.get("ok", 0) for record in (before, after)]
    same = (before.shard, before.rows, before.fingerprint) == (after.shard, after.rows, after.fingerprint)
    return "" if same and ok[0] < ok[1] else "heals no row of the record before it"


def own_record(
    objects: Objects, plan: layout.StorePlan, document: str, shard: int
) -> commit_record.CommitRecord | None:
    """Return the current record of a shard, or None; reject a record of another run or shard.

    Raises:
        StoreError: the record is damaged, or belongs to another run or shard.
    """
    records = own_history(objects, plan, document, shard)
    return records[-1] if records else None


def own_history(
    objects: Objects, plan: layout.StorePlan, document: str, shard: int
) -> list[commit_record.CommitRecord]:
    """Return all records of a shard, oldest first; raises as `own_record`."""
    records = history(objects, shard)
    problem = misplaced(records[-1], plan, document, shard) if records else ""
    if problem:
        raise errors.StoreError(f"{problem} ({store_keys.record(shard)!r} of {objects.name!r}); {_REMEDY}")
    return records


def misplaced(record: commit_record.CommitRecord, plan: layout.StorePlan, document: str, shard: int) -> str:
    """Return why a record does not belong to this shard of this run, "" if it does."""
    if record.fingerprint != plan.fingerprint:
        return f"the record is of another run: fingerprint {record.fingerprint}, not {plan.fingerprint}"
    if record.store not in ("", document):
        return "the record is of another run created by the same command"
    if (record.shard, record.rows) != (shard, plan.shard_range(shard)):
        return f"the record is of shard {record.shard}, rows {record.rows}"
    if [item.key for item in record.objects] != [layout.chunk_key(array, shard) for array in plan.all_arrays]:
        return f"the record names other objects than the plan: {[item.key for item in record.objects]}"
    return ""


def promote(
    objects: Objects, record: commit_record.CommitRecord, *, observe: store_keys.Observer, check_staged: bool = True
) -> None:
    """Move a committed shard's objects to their Zarr keys, `status` last; idempotent and safe to run concurrently.

    The record must be durable. Set `check_staged` unless the objects were staged just now: it compares them with the
    record first.

    Raises:
        StoreError: an object is neither staged nor in place, or a staged object differs from the record.
    """
    *data, status = record.objects
    for item in record.objects if check_staged else ():
        _refuse_changed(objects, record, item)
    for item in data:
        _place(objects, record, item)
        observe("promote:object")
    objects.sync(*sorted({_folder_of(item) for item in data}))
    observe("promote:before-status")
    _place(objects, record, status)
    objects.sync(_folder_of(status))
    observe("promote:after")


def clean(objects: Objects, record: commit_record.CommitRecord, *, observe: store_keys.Observer) -> None:
    """Delete all staging of a promoted record and its predecessors, including that of killed or losing attempts.

    Staging of later generations stays: a slow writer may still commit it.
    """
    for generation in range(record.generation + 1):
        for name in staged(objects, store_keys.attempt(record.shard, generation=generation).rpartition("/")[2]):
            objects.remove_tree(f"{store_keys.STAGING}/{name}")
    observe("clean:after")


def staged(objects: Objects, prefix: str = "") -> list[str]:
    """Return the names of the staging folders that start with `prefix`."""
    try:
        return objects.names(store_keys.STAGING, prefix)
    except FileNotFoundError:  # a copy of a run may lack empty folders
        return []


def refuse_staged(objects: Objects, record: commit_record.CommitRecord) -> None:
    """Refuse a promoted record whose staging is still there: another process could put it in place once more, later.

    Raises:
        StoreError: cleaning failed.
    """
    folder = store_keys.attempt(record.shard, record.attempt, record.generation)
    if staged(objects, folder.rpartition("/")[2]):
        raise errors.StoreError(
            f"shard {record.shard:05d} cannot be healed: {folder!r} of {objects.name!r} could not be removed; make it "
            "removable or wait for the network, then rerun the command"
        )


def _folder_of(item: commit_record.ObjectRecord) -> str:
    return f"{store_keys.GROUP}/{item.key}".rpartition("/")[0]


def _refuse_changed(objects: Objects, record: commit_record.CommitRecord, item: commit_record.ObjectRecord) -> None:
    staged, (algorithm, _, stated) = f"{store_keys.STAGING}/{item.staged}", item.digest.partition(":")
    with contextlib.suppress(FileNotFoundError):
        if objects.digest(staged, algorithm, size=item.size) != (item.size, stated):
            raise errors.StoreError(
                f"shard {record.shard:05d}: {item.key!r} is committed, but its staged copy {staged!r} has changed "
                f"since. {_REMEDY}"
            )


def _place(objects: Objects, record: commit_record.CommitRecord, item: commit_record.ObjectRecord) -> None:
    target = f"{store_keys.GROUP}/{item.key}"
    with contextlib.suppress(FileNotFoundError):  # another process promoted it
        objects.move(f"{store_keys.STAGING}/{item.staged}", target, size=item.size)
        return
    missing = objects.size(target) is None
    if record.generation and not missing:  # the object there may still be the previous record's
        algorithm, _, stated = item.digest.partition(":")
        missing = objects.digest(target, algorithm, size=item.size) != (item.size, stated)
    if missing:
        raise errors.StoreError(
            f"shard {record.shard:05d}: object {item.key!r} is committed but neither in place nor staged; it "
            f"was deleted. {_REMEDY}"
        )
