"""The store of one run: create it, commit whole shards, find out what is there, finish what was killed."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np

from genenc_core import errors
from genenc_core.store import (
    creation,
    digests,
    files,
    fitting,
    layout,
    local,
    places,
    records,
    sealed,
    transaction,
    zarr_arrays,
)
from genenc_core.store.objects import Objects, Root, join, open_objects
from genenc_core.text import argument


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStore:
    """A created run folder; holds no state of its own, so any number of threads and processes may share it."""

    objects: Objects
    plan: layout.StorePlan
    created: Mapping[str, tuple[int, str]]
    """Every file of the Zarr group as created: key -> (bytes, sha256)."""
    files: Mapping[str, tuple[int, str]]
    """Files beside the group as they were then: key -> (bytes, sha256); earlier versions recorded none."""
    document: str
    """Digest of the `store.json` that was opened."""
    observer: places.Observer

    @classmethod
    def create(
        cls,
        root: Path,
        plan: layout.StorePlan,
        *,
        coordinates: Sequence[layout.CoordinatePlan],
        beside: Mapping[str, tuple[int, str]] = MappingProxyType({}),
        observer: places.Observer = places.silent,
    ) -> Self:
        """Create a local run folder, or open it when it already holds this run (same fingerprint).

        An existing folder keeps its own plan (`shard_rows`, attributes). The values of `coordinates` are consumed
        only when they are needed.

        Args:
            root: the folder.
            plan: what it will hold.
            coordinates: what is written at once.
            beside: files of the run that are in the folder already: key -> (bytes, sha256).
            observer: called at the points of the protocol.

        Raises:
            InputError: the folder cannot be written.
            StoreError: it holds another run; the message says which identity entries differ.
        """
        objects = local.LocalObjects(root)
        stored = creation.create(objects, plan, coordinates, beside)
        return cls._of(objects, stored, observer)

    @classmethod
    def open(cls, root: Root | Objects, *, observer: places.Observer = places.silent) -> Self:
        """Open a created run folder.

        Raises:
            StoreError: not a run folder, creation not finished, or damaged.
        """
        objects = open_objects(root) if isinstance(root, Path | str) else root
        with read_errors(objects.name):
            stored = creation.read(objects)
            finished = objects.has_group(places.GROUP)
        if stored is None:
            raise errors.StoreError(
                f"{objects.name!r} is not a run folder: it has no _txn/store.json; name the folder given as --out"
            )
        if not finished:
            raise errors.StoreError(
                f"{objects.name!r} has no features.zarr: its creation was interrupted, or it was moved away; "
                "give the command that made this run again"
            )
        return cls._of(objects, stored, observer)

    @classmethod
    def _of(cls, objects: Objects, stored: creation.StoreFile, observer: places.Observer) -> Self:
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
        """Whether a finished store stands in the folder; says nothing of whose it is.

        Raises:
            StoreError: the folder cannot be read.
        """
        objects = open_objects(root)
        with read_errors(objects.name):
            return objects.size(places.STORE_FILE) is not None and objects.has_group(places.GROUP)

    @property
    def name(self) -> str:
        """The run folder as a person names it."""
        return self.objects.name

    def zarr_store(self) -> Any:
        """Return a read-only Zarr store of the group, for `zarr.open_group` or `xarray.open_zarr`."""
        return self.objects.zarr_store(places.GROUP)

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
        """Return the shards that have a commit record; reads one folder, no record.

        Raises:
            StoreError: the folder cannot be read.
        """
        return self.record_names()[0]

    def record_names(self) -> tuple[set[int], list[str]]:
        """Return the shards that have a commit record, and the other names in the folder of the records.

        Raises:
            StoreError: the folder cannot be read.
        """
        committed: set[int] = set()
        foreign: list[str] = []
        with read_errors(self.name):
            try:
                names = set(self.objects.names(places.COMMITS))
            except FileNotFoundError as error:
                where = join(self.name, places.COMMITS)
                raise errors.StoreError(
                    f"the folder of the commit records, {where!r}, does not exist: it was deleted or not copied, and "
                    f"nothing else says which features are stored. Put it back from a copy. Without one, make an empty "
                    f"folder there; then genenc verify {argument(self.name)} --repair sets the features aside, and "
                    f"genenc resume {argument(self.name)} encodes all images again"
                ) from error
        count = self.shard_count
        for name in names:
            shard, generation = places.generation_of(name) or (count, 0)
            own = shard < count and name == places.record_name(shard, generation)
            if own and not generation:
                committed.add(shard)
            # A later record follows the one before it.
            elif not own or places.record_name(shard, generation - 1) not in names:
                foreign.append(name)
        return committed, sorted(foreign)

    def pending(self) -> list[int]:
        """Return the shards without a commit record, in order."""
        done = self.committed()
        return [shard for shard in range(self.shard_count) if shard not in done]

    def record(self, shard: int) -> records.CommitRecord | None:
        """Return a shard's commit record, None when it is pending.

        Raises:
            StoreError: no such shard, or the record is damaged or cannot be read.
        """
        self.shard_range(shard)
        with read_errors(self.name):
            return transaction.own_record(self.objects, self.plan, self.document, shard)

    def commit(
        self, shard: int, arrays: Mapping[str, np.ndarray], status: np.ndarray, *, details: Mapping[str, object]
    ) -> records.CommitRecord:
        """Store a whole shard, once and for ever; if it is stored already, leave it and return its record.

        Args:
            shard: which one.
            arrays: every planned array's rows of the shard, [rows_of_shard, ...], in the planned dtype.
            status: uint8 [rows_of_shard], 1 ok or 2 unreadable.
            details: JSON kept in the record.

        Returns:
            The record that holds: `record.attempt` and objects are another's when another was first.

        Raises:
            StoreError: something does not fit the plan (nothing was written), or the disk failed.
        """
        blocks = self._fitting(shard, self.shard_range(shard), arrays, status)
        details = sealed.normal(records.SCHEMA, details)
        with disk_errors(f"shard {shard:05d} of {self.name!r}"):
            record = transaction.own_record(self.objects, self.plan, self.document, shard)
            fresh = record is None
            if record is None:
                record = self._attempt(shard, blocks, details)
            else:
                self.objects.sync(places.COMMITS)
            self._finish(record, look=not fresh)
        return record

    def blocks(self, record: records.CommitRecord) -> dict[str, np.ndarray]:
        """Return what a shard holds by its record: every array's rows by name, `status` included; put in place first.

        Raises:
            StoreError: an object is not the one that was committed, or the disk failed.
        """
        with disk_errors(f"shard {record.shard:05d} of {self.name!r}"):
            self._finish(record)
            found = {}
            for array, item in zip(self.plan.all_arrays, record.objects, strict=True):
                data = self.objects.read(f"{places.GROUP}/{item.key}", most=item.size)
                if digests.of([data], digests.algorithm(item.digest)) != item.digest:
                    raise errors.StoreError(
                        f"shard {record.shard:05d}: {item.key!r} is not the object that was committed; genenc verify "
                        "--repair makes the shard pending"
                    )
                metadata = self._metadata(array.name)
                found[array.name] = zarr_arrays.decode(metadata, item.key.partition("/")[2], data, record.rows)
        return found

    def heal(
        self,
        before: records.CommitRecord,
        arrays: Mapping[str, np.ndarray],
        status: np.ndarray,
        *,
        details: Mapping[str, object],
    ) -> records.CommitRecord:
        """Store rows of a committed shard that were unreadable, as its next record; no other row changes a bit.

        The first record after `before` wins. Readers see a healed row as unreadable until all of it is in place.

        Args:
            before: the record that holds, as `record` returns it.
            arrays: every planned array's rows of the shard, [rows_of_shard, ...], those not healed as `blocks` gives
                them.
            status: uint8 [rows_of_shard]: 2 became 1 for the rows that are healed, at least one.
            details: JSON kept in the record.

        Returns:
            The record that holds: `record.attempt` and objects are another's when another was first.

        Raises:
            StoreError: another row differs, or something does not fit the plan (nothing was written), or the disk
                failed.
        """
        blocks = self._fitting(before.shard, before.rows, arrays, status)
        details = sealed.normal(records.SCHEMA, details)
        with disk_errors(f"shard {before.shard:05d} of {self.name!r}"):
            record = self._later(before)
            fresh = record is None
            if record is None:
                previous = transaction.record_digest(self.objects, before)
                try:
                    fitting.refuse_other_changes(before.shard, self.blocks(before), blocks)
                except errors.StoreError:
                    record = self._later(before)
                    if record is None:
                        raise
                else:
                    record = self._attempt(before.shard, blocks, details, before.generation + 1, previous)
            self._finish(record, look=not fresh)
        return record

    def _fitting(
        self, shard: int, rows: tuple[int, int], arrays: Mapping[str, np.ndarray], status: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return what a shard is to hold, `status` included; raises `StoreError` for what does not fit the plan."""
        found = list(fitting.problems(self.plan, arrays, status, rows=rows[1] - rows[0]))
        if found:
            raise errors.StoreError(f"shard {shard:05d} does not fit the plan: " + "; ".join(found))
        return {**arrays, layout.STATUS: status}

    def _later(self, before: records.CommitRecord) -> records.CommitRecord | None:
        """Return the record that holds in place of `before`; None while it is that one."""
        now = transaction.own_record(self.objects, self.plan, self.document, before.shard)
        return now if now is not None and now.generation > before.generation else None

    def recover(self) -> list[int]:
        """Finish what killed processes left: put committed shards in place, delete their staging and unused creations.

        Safe at any time, beside running workers and other recoveries.

        Returns:
            The shards that were committed but not in place, in order.

        Raises:
            StoreError: committed objects are lost or a record is damaged; every other shard is finished first.
        """
        committed = self.committed()
        with disk_errors(f"recovery of {self.name!r}"):
            creation.sweep(self.objects)
            staged = set(filter(None, map(places.generation_of, transaction.staged(self.objects))))
            at_work = {shard for shard, _ in staged}
            in_place = set(self.objects.names(f"{places.GROUP}/{layout.STATUS}"))
            finished, lost, status = [], [], layout.status_plan(self.plan)
            for shard in sorted(committed):
                key = layout.chunk_key(status, shard)
                if key.rpartition("/")[2] in in_place and shard not in at_work:
                    continue
                try:
                    record = self.record(shard)
                    if record is not None:
                        self.objects.sync(places.COMMITS)
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
    ) -> records.CommitRecord:
        metadata = {array.name: self._metadata(array.name) for array in self.plan.all_arrays}
        status = blocks[layout.STATUS]
        counts = {
            layout.STATUS_MEANINGS[value]: int(np.count_nonzero(status == value))
            for value in (layout.OK, layout.UNREADABLE)
        }
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
            record = attempt.stage(blocks, metadata, status_counts=counts, details=details)
            self._refuse_replaced()
        except BaseException as error:
            attempt.discard()
            own = isinstance(error, FileNotFoundError)
            winner = transaction.own_record(self.objects, self.plan, self.document, shard) if own else None
            if winner is None or winner.generation < generation:
                raise
            self.objects.sync(places.COMMITS)
            return winner  # it removed our staging when it cleaned its own
        return attempt.commit(record)

    def _refuse_replaced(self) -> None:
        """Raise `StoreError` when the folder was removed and another run made in its place since it was opened."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if digests.of([self.objects.read(places.STORE_FILE)]) == self.document:
                return
        now = creation.read(self.objects)
        if now is None or (now.plan.fingerprint, now.created) != (self.plan.fingerprint, self.created):
            raise errors.StoreError(
                f"{self.name!r} is no longer the run that this process works on: it was removed, moved or recreated "
                "meanwhile, so nothing more is written to it; rerun the command"
            )

    def _finish(self, record: records.CommitRecord, *, look: bool = True) -> None:
        """Put a shard in place; its record's folder was fsynced, as nothing may be visible before it is durable."""
        try:
            transaction.promote(self.objects, record, observe=self.observer, look=look)
        except errors.StoreError:
            now = transaction.own_record(self.objects, self.plan, self.document, record.shard)
            if now is None or now.generation == record.generation:
                raise
            record = now  # healed meanwhile by another process
            transaction.promote(self.objects, record, observe=self.observer)
        transaction.clean(self.objects, record, observe=self.observer)

    def _metadata(self, name: str) -> bytes:
        key = f"{name}/{zarr_arrays.METADATA}"
        data = self.objects.read(f"{places.GROUP}/{key}")
        if (len(data), files.sha256(data)) != self.created.get(key):
            raise errors.StoreError(
                f"{key!r} of {self.name!r} changed since the run was created, so nothing more is written to "
                "it; restore it from a copy or make the run again with another --out"
            )
        return data


@contextlib.contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Raise an `OSError` of the block as a `StoreError` that says what was done and how to go on."""
    try:
        yield
    except errors.UnsafeFileError as error:
        raise errors.StoreError(error.sentence) from error
    except ConnectionError as error:
        raise errors.StoreError(
            f"{what}: {error.strerror or error} ({error.filename or 'no file named'}); readers see no part of it that "
            "is not final. When S3 can be reached again, rerun the command or resume the run"
        ) from error
    except OSError as error:
        raise errors.StoreError(
            f"{what}: {error.strerror or error} ({error.filename or 'no file named'}); readers see no part of it that "
            "is not final. Make the folder writable with free space, then resume the run"
        ) from error


@contextlib.contextmanager
def read_errors(name: str) -> Iterator[None]:
    """Raise an `OSError` of the block as a `StoreError` that says which run cannot be read, and how to go on."""
    try:
        yield
    except errors.UnsafeFileError as error:
        raise errors.StoreError(error.sentence) from error
    except ConnectionError as error:
        raise errors.StoreError(
            f"the run folder {name!r} cannot be reached: {error.strerror or error} "
            f"({error.filename or 'no file named'}); rerun the command when S3 can be reached again"
        ) from error
    except OSError as error:
        raise errors.StoreError(
            f"the run folder {name!r} cannot be read: {error.strerror or error} ({error.filename or 'no file named'}); "
            "fix its disk, mount or permissions, then rerun the command"
        ) from error
