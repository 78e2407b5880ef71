"""Store of one run: creation, shard commits, inspection and recovery."""

import contextlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np

from genenc_core import errors, statuses
from genenc_core.store import commit_record, creation, documents, layout, store_keys, transaction, zarr_bytes
from genenc_core.store.backends import local
from genenc_core.store.backends.objects import Objects, Root, join, open_objects
from genenc_core.system import digests
from genenc_core.text import argument


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStore:
    """A created run folder; stateless, so any number of threads and processes may share it."""

    objects: Objects
    plan: layout.StorePlan
    created: Mapping[str, tuple[int, str]]
    """Every file of the Zarr group as created: key -> (bytes, sha256)."""
    files: Mapping[str, tuple[int, str]]
    """Files beside the group as created: key -> (bytes, sha256); not recorded by earlier versions."""
    document: str
    """Digest of the `store.json` that was opened."""
    observer: store_keys.Observer

    @classmethod
    def create(
        cls,
        root: Path,
        plan: layout.StorePlan,
        *,
        coordinates: Sequence[layout.CoordinatePlan],
        beside: Mapping[str, tuple[int, str]] = MappingProxyType({}),
        observer: store_keys.Observer = store_keys.silent,
    ) -> Self:
        """Create a local run folder, or open it if it already holds this run (same fingerprint).

        An existing folder keeps its own plan (`shard_rows`, attributes). The values of `coordinates` are consumed
        only when they are needed.

        Args:
            root: the folder.
            plan: its arrays and identity.
            coordinates: arrays written in full at creation.
            beside: files of the run already in the folder: key -> (bytes, sha256).
            observer: called at each protocol step.

        Raises:
            InputError: the folder cannot be written.
            StoreError: it holds another run; the message says which identity entries differ.
        """
        objects = local.LocalObjects(root)
        stored = creation.create(objects, plan, coordinates, beside)
        return cls._of(objects, stored, observer)

    @classmethod
    def open(cls, root: Root | Objects, *, observer: store_keys.Observer = store_keys.silent) -> Self:
        """Open a created run folder.

        Raises:
            StoreError: it is not a run folder, its creation is incomplete, or it is damaged.
        """
        objects = open_objects(root) if isinstance(root, Path | str) else root
        with read_errors(objects.name):
            stored = creation.read(objects)
            finished = objects.has_group(store_keys.GROUP)
        if stored is None:
            raise errors.StoreError(
                f"{objects.name!r} is not a run folder: it has no _txn/store.json; pass the folder given as --out"
            )
        if not finished:
            raise errors.StoreError(
                f"{objects.name!r} has no features.zarr: its creation was interrupted, or it was moved away; "
                "rerun the command that created the run"
            )
        return cls._of(objects, stored, observer)

    @classmethod
    def _of(cls, objects: Objects, stored: creation.StoreFile, observer: store_keys.Observer) -> Self:
        return cls(
            objects=objects,
            plan=stored.plan,
            created=stored.created,
            files=stored.files,
            document=stored.digest,
            observer=observer,
        )

    @classmethod
    def exists(cls, root: Root) -> bool:
        """Return whether the folder holds a completed store, of whatever run.

        Raises:
            StoreError: the folder cannot be read.
        """
        objects = open_objects(root)
        with read_errors(objects.name):
            return objects.size(store_keys.STORE_FILE) is not None and objects.has_group(store_keys.GROUP)

    @property
    def name(self) -> str:
        """Path or URL of the run folder, for messages."""
        return self.objects.name

    def zarr_store(self) -> Any:
        """Return a read-only Zarr store of the group, for `zarr.open_group` or `xarray.open_zarr`."""
        return self.objects.zarr_store(store_keys.GROUP)

    @property
    def shard_count(self) -> int:
        """Number of shards."""
        return self.plan.shard_count

    def shard_range(self, shard: int) -> tuple[int, int]:
        """Return the rows [start, stop) of a shard.

        Raises:
            StoreError: no such shard.
        """
        return self.plan.shard_range(shard)

    def committed(self) -> set[int]:
        """Return the shards that have a commit record; lists one folder, reads no record.

        Raises:
            StoreError: the folder cannot be read.
        """
        return self.record_names()[0]

    def record_names(self) -> tuple[set[int], list[str]]:
        """Return the shards that have a commit record, and all unexpected names in the records folder.

        Raises:
            StoreError: the folder cannot be read.
        """
        committed: set[int] = set()
        foreign: list[str] = []
        with read_errors(self.name):
            try:
                names = set(self.objects.names(store_keys.COMMITS))
            except FileNotFoundError as error:
                where = join(self.name, store_keys.COMMITS)
                raise errors.StoreError(
                    f"the commit records folder {where!r} does not exist: it was deleted or not copied, and only it "
                    f"records which features are stored. Restore it from a copy. Without one, create an empty folder "
                    f"there; then genenc verify {argument(self.name)} --repair sets the features aside, and genenc "
                    f"resume {argument(self.name)} encodes all images again"
                ) from error
        count = self.shard_count
        for name in names:
            shard, generation = store_keys.generation_of(name) or (count, 0)
            own = shard < count and name == store_keys.record_name(shard, generation)
            if own and not generation:
                committed.add(shard)
            # A later record follows the one before it.
            elif not own or store_keys.record_name(shard, generation - 1) not in names:
                foreign.append(name)
        return committed, sorted(foreign)

    def pending(self) -> list[int]:
        """Return the shards without a commit record, in order."""
        done = self.committed()
        return [shard for shard in range(self.shard_count) if shard not in done]

    def record(self, shard: int) -> commit_record.CommitRecord | None:
        """Return a shard's current commit record, or None if it is pending.

        Raises:
            StoreError: no such shard, or the record is damaged or unreadable.
        """
        self.shard_range(shard)
        with read_errors(self.name):
            return transaction.own_record(self.objects, self.plan, self.document, shard)

    def commit(
        self,
        shard: int,
        arrays: Mapping[str, np.ndarray],
        status: np.ndarray,
        *,
        details: Mapping[str, object],
        late: Callable[[], Mapping[str, object]] = dict,
    ) -> commit_record.CommitRecord:
        """Commit a whole shard permanently; if it is already committed, keep it and return its record.

        Args:
            shard: index of the shard.
            arrays: every planned array's rows of the shard, [rows_of_shard, ...], in the planned dtype.
            status: uint8 [rows_of_shard], 1 ok or 2 unreadable.
            details: JSON kept in the record.
            late: returns additional details; called once everything but the record is written.

        Returns:
            The record that holds: `record.attempt` and objects are another's when another was first.

        Raises:
            StoreError: something does not fit the plan (nothing was written), or the disk failed.
        """
        blocks = self._fitting(shard, self.shard_range(shard), arrays, status)
        details = documents.normal(commit_record.SCHEMA, details)
        with disk_errors(f"shard {shard:05d} of {self.name!r}"):
            record = transaction.own_record(self.objects, self.plan, self.document, shard)
            fresh = record is None
            if record is None:
                record = self._attempt(shard, blocks, details, late=late)
            else:
                self.objects.sync(store_keys.COMMITS)
            self._finish(record, check_staged=not fresh)
        return record

    def blocks(self, record: commit_record.CommitRecord) -> dict[str, np.ndarray]:
        """Promote a shard if needed and return its rows of every array by name, `status` included.

        Raises:
            StoreError: an object differs from the committed one, or the disk failed.
        """
        with disk_errors(f"shard {record.shard:05d} of {self.name!r}"):
            self._finish(record)
            blocks = {}
            for array, item in zip(self.plan.all_arrays, record.objects, strict=True):
                data = self.objects.read(f"{store_keys.GROUP}/{item.key}", most=item.size)
                if not _is_of(item, data):
                    raise errors.StoreError(
                        f"shard {record.shard:05d}: {item.key!r} differs from the committed object; genenc verify "
                        "--repair makes the shard pending"
                    )
                metadata = self.metadata(array.name)
                blocks[array.name] = zarr_bytes.decode(
                    metadata, item.key.partition("/")[2], data, layout.rows_of(self.plan, array, record.shard)
                )
        return blocks

    def values(
        self, shard: int, names: Container[str]
    ) -> tuple[list[commit_record.CommitRecord], dict[str, np.ndarray]] | None:
        """Return a shard's records, oldest first, and its rows of some arrays; None if it is pending. Writes nothing.

        A shard whose objects are staged, because a process was killed or is at work, is read where they are.

        Raises:
            StoreError: no such shard, or a record or object is damaged or unreadable.
        """
        with read_errors(self.name):
            while records := self.history(shard):
                blocks: dict[str, np.ndarray] = {}
                try:
                    for array, item in zip(self.plan.all_arrays, records[-1].objects, strict=True):
                        if array.name in names:
                            data, metadata = self._committed(records[-1], item), self.metadata(array.name)
                            key = item.key.partition("/")[2]
                            blocks[array.name] = zarr_bytes.decode_rows(
                                metadata, key, data, layout.rows_of(self.plan, array, records[-1].shard)
                            )
                except errors.StoreError:
                    # Another process may have healed the shard meanwhile, and then its objects are other ones.
                    if self._later(records[-1]) is None:
                        raise
                else:
                    return records, blocks
        return None

    def _committed(self, record: commit_record.CommitRecord, item: commit_record.ObjectRecord) -> bytes:
        """Return an object of a record, in place or staged."""
        in_place = f"{store_keys.GROUP}/{item.key}"
        for key in (in_place, f"{store_keys.STAGING}/{item.staged}", in_place):  # it may be promoted meanwhile
            with contextlib.suppress(FileNotFoundError, errors.UnsafeFileError):
                data = self.objects.read(key, most=item.size)
                if _is_of(item, data):
                    return data
        raise errors.StoreError(
            f"shard {record.shard:05d} of {self.name!r}: {item.key!r} is missing, or differs from the committed "
            f"object; genenc verify {argument(self.name)} says what is damaged"
        )

    def history(self, shard: int) -> list[commit_record.CommitRecord]:
        """Return all records of a shard, oldest first; [] if it is pending.

        Raises:
            StoreError: no such shard, or a record is damaged or unreadable.
        """
        self.shard_range(shard)
        with read_errors(self.name):
            return transaction.own_history(self.objects, self.plan, self.document, shard)

    def current(self, shard: int) -> tuple[commit_record.CommitRecord, dict[str, np.ndarray]] | None:
        """Return a shard's record and rows as `blocks`, also while another process heals it; None if it is pending.

        Raises:
            StoreError: as `record` and `blocks`.
        """
        record = self.record(shard)
        while record is not None:
            try:
                return record, self.blocks(record)
            except errors.StoreError:
                with read_errors(self.name):
                    later = self._later(record)
                if later is None:
                    raise
                record = later
        return None

    def heal(
        self,
        before: commit_record.CommitRecord,
        arrays: Mapping[str, np.ndarray],
        status: np.ndarray,
        *,
        details: Mapping[str, object],
    ) -> commit_record.CommitRecord:
        """Commit formerly unreadable rows of a committed shard as its next record; all other rows stay bit-identical.

        The first record after `before` wins. Readers see a healed row as unreadable until all of it is in place.

        Args:
            before: the current record, as `record` returns it.
            arrays: every planned array's rows of the shard, [rows_of_shard, ...]; rows that are not healed as
                `blocks` returns them.
            status: uint8 [rows_of_shard]: changed from 2 to 1 in the healed rows, at least one.
            details: JSON kept in the record.

        Returns:
            The record that holds: `record.attempt` and objects are another's when another was first.

        Raises:
            StoreError: another row differs, or something does not fit the plan (nothing was written), or the disk
                failed.
        """
        blocks = self._fitting(before.shard, before.rows, arrays, status)
        details = documents.normal(commit_record.SCHEMA, details)
        with disk_errors(f"shard {before.shard:05d} of {self.name!r}"):
            record = self._later(before)
            fresh = record is None
            if record is None:
                previous = transaction.record_digest(self.objects, before)
                try:
                    layout.refuse_other_changes(before.shard, self.plan, self.blocks(before), blocks)
                except errors.StoreError:
                    record = self._later(before)
                    if record is None:
                        raise
                else:
                    transaction.refuse_staged(self.objects, before)
                    record = self._attempt(before.shard, blocks, details, before.generation + 1, previous)
            self._finish(record, check_staged=not fresh)
        return record

    def _fitting(
        self, shard: int, rows: tuple[int, int], arrays: Mapping[str, np.ndarray], status: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return the shard's arrays including `status`; raise `StoreError` if they do not fit the plan."""
        problems = list(layout.problems(self.plan, arrays, status, rows=rows[1] - rows[0]))
        if problems:
            raise errors.StoreError(f"shard {shard:05d} does not fit the plan: " + "; ".join(problems))
        return {**arrays, layout.STATUS: status}

    def _later(self, before: commit_record.CommitRecord) -> commit_record.CommitRecord | None:
        """Return the record that superseded `before`; None if `before` is still current."""
        now = transaction.own_record(self.objects, self.plan, self.document, before.shard)
        return now if now is not None and now.generation > before.generation else None

    def recover(self) -> list[int]:
        """Complete the work of killed processes: promote committed shards, delete their staging and unused creations.

        Safe at any time, beside running workers and other recoveries.

        Returns:
            The shards that were committed but not promoted, in order.

        Raises:
            StoreError: committed objects are lost or a record is damaged; raised after all other shards are finished.
        """
        committed = self.committed()
        with disk_errors(f"recovery of {self.name!r}"):
            creation.sweep(self.objects)
            staged = set(filter(None, map(store_keys.generation_of, transaction.staged(self.objects))))
            staged_shards = {shard for shard, _ in staged}
            in_place = set(self.objects.names(f"{store_keys.GROUP}/{layout.STATUS}"))
            finished, lost, status = [], [], layout.status_plan(self.plan)
            for shard in sorted(committed):
                key = layout.chunk_key(status, shard)
                if key.rpartition("/")[2] in in_place and shard not in staged_shards:
                    continue
                try:
                    record = self.record(shard)
                    if record is not None:
                        self.objects.sync(store_keys.COMMITS)
                        self._finish(record)
                except errors.StoreError as error:
                    lost.append(str(error))
                    continue
                healing = record is not None and record.generation and (shard, record.generation) in staged
                if key.rpartition("/")[2] not in in_place or healing:
                    finished.append(shard)
        if lost:
            raise errors.StoreError("; ".join(lost))
        return finished

    def _attempt(
        self,
        shard: int,
        blocks: Mapping[str, np.ndarray],
        details: Mapping[str, object],
        generation: int = 0,
        previous: str = "",
        *,
        late: Callable[[], Mapping[str, object]] = dict,
    ) -> commit_record.CommitRecord:
        metadata = {array.name: self.metadata(array.name) for array in self.plan.all_arrays}
        counts = statuses.counts(statuses.written(statuses.ROWS), blocks[layout.STATUS])
        attempt = transaction.Attempt.new(
            self.objects,
            self.plan,
            self.document,
            shard,
            observe=self.observer,
            generation=generation,
            previous=previous,
        )
        try:
            record = attempt.stage(blocks, metadata, status_counts=counts, details=details, late=late)
            self._refuse_replaced()
        except BaseException as error:
            attempt.discard()
            own = isinstance(error, FileNotFoundError)
            winner = transaction.own_record(self.objects, self.plan, self.document, shard) if own else None
            if winner is None or winner.generation < generation:
                raise
            self.objects.sync(store_keys.COMMITS)
            return winner  # its cleanup removed our staging
        return attempt.commit(record)

    def _refuse_replaced(self) -> None:
        """Raise `StoreError` if the folder was removed or replaced by another run since it was opened."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if digests.STORE_FILE.named(self.objects.read(store_keys.STORE_FILE)) == self.document:
                return
        now = creation.read(self.objects)
        if now is None or (now.plan.fingerprint, now.created) != (self.plan.fingerprint, self.created):
            raise errors.StoreError(
                f"{self.name!r} is no longer the run that this process opened: it was removed, moved or recreated "
                "meanwhile, so writing stopped; rerun the command"
            )

    def _finish(self, record: commit_record.CommitRecord, *, check_staged: bool = True) -> None:
        """Promote a shard and clean its staging; its record must already be durable."""
        try:
            transaction.promote(self.objects, record, observe=self.observer, check_staged=check_staged)
        except errors.StoreError:
            now = transaction.own_record(self.objects, self.plan, self.document, record.shard)
            if now is None or now.generation == record.generation:
                raise
            record = now  # another process healed it meanwhile
            transaction.promote(self.objects, record, observe=self.observer)
        transaction.clean(self.objects, record, observe=self.observer)

    def metadata(self, name: str) -> bytes:
        """Return an array's `zarr.json`, which must be as created.

        Raises:
            StoreError: it changed.
        """
        key = f"{name}/{zarr_bytes.METADATA}"
        data = self.objects.read(f"{store_keys.GROUP}/{key}")
        if (len(data), digests.CREATED.hex(data)) != self.created.get(key):
            raise errors.StoreError(
                f"{key!r} of {self.name!r} changed since the run was created, so writing stopped; restore it from a "
                "copy or recreate the run with another --out"
            )
        return data


def _is_of(item: commit_record.ObjectRecord, data: bytes) -> bool:
    return digests.of([data], digests.algorithm(item.digest)) == item.digest


def disk_errors(what: str) -> AbstractContextManager[None]:
    """Convert an `OSError` of the block to a `StoreError` that names the operation and the remedy."""
    hidden = "readers see only final rows."
    return _store_errors(
        (what, f"{hidden} When S3 is reachable again, rerun the command or resume the run"),
        (what, f"{hidden} Make the folder writable with free space, then resume the run"),
    )


def read_errors(name: str) -> AbstractContextManager[None]:
    """Convert an `OSError` of the block to a `StoreError` that names the unreadable run and the remedy."""
    folder = f"the run folder {name!r} cannot be"
    return _store_errors(
        (f"{folder} reached", "rerun the command when S3 is reachable again"),
        (f"{folder} read", "fix its disk, mount or permissions, then rerun the command"),
    )


@contextlib.contextmanager
def _store_errors(network: tuple[str, str], disk: tuple[str, str]) -> Iterator[None]:
    """Convert an `OSError` of the block to a `StoreError`, given (failure, remedy) for each kind of fault."""
    try:
        yield
    except errors.UnsafeFileError as error:
        raise errors.StoreError(error.sentence) from error
    except OSError as error:
        what, remedy = network if isinstance(error, ConnectionError) else disk
        reason = f"{error.strerror or error} ({error.filename or 'no file named'})"
        raise errors.StoreError(f"{what}: {reason}; {remedy}") from error
