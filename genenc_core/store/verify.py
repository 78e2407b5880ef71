"""Verification of a run folder: every file of the Zarr group against its commit record."""

import errno
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np

from genenc_core import errors, statuses
from genenc_core.store import commit_record, documents, layout, run_store, store_keys, transaction, zarr_bytes
from genenc_core.store.backends.objects import is_remote
from genenc_core.system import digests, memory

_UNPROMOTED: Final = "committed but not in place yet"
_MISSING: Final = "missing"
_AT_ONCE: Final = 256
"""Shards submitted to the pool at a time."""
_FEW: Final = 256
"""Up to this many shards, all records are read for their object sizes."""
_MAX_DIGITS: Final = len(str(layout.LARGEST_SHARDS))
_FILE_ERRNOS: Final = frozenset(
    (errno.EIO, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EFBIG, errno.EUCLEAN)
)
"""Errors that mean damage of the file itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One deviation from the record."""

    shard: int | None
    """None for a file that belongs to no shard."""
    rows: tuple[int, int] | None
    """[start, stop) of the shard."""
    key: str
    """The file, relative to `folder`, or the commit record's name."""
    what: str
    folder: str = store_keys.GROUP
    """Relative to the run folder; "" for the run folder itself."""

    @property
    def place(self) -> str:
        """Path of the file relative to the run folder."""
        among = store_keys.generation_of(self.key) is not None
        return f"{store_keys.COMMITS if among else self.folder}/{self.key}".lstrip("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """Result of `verify_store`."""

    shards_checked: int
    pending: tuple[int, ...]
    """Shards without a record: not an error, only unfinished."""
    unpromoted: tuple[int, ...]
    """Committed shards that a killed process left partly promoted; `RunStore.recover` finishes them."""
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether everything committed is intact."""
        return not self.problems


def _ignore(record: commit_record.CommitRecord) -> None:
    """Ignore a record."""


def verify_store(
    store: run_store.RunStore,
    *,
    content: bool = False,
    threads: int = 4,
    seen: Callable[[commit_record.CommitRecord], None] = _ignore,
) -> VerifyReport:
    """Check every object against its record and that there are no other files; read-only.

    Safe beside running workers.

    Args:
        store: the run.
        content: also decode every object and compare the digest of its values, which detects a changed codec.
        threads: number of shards read concurrently.
        seen: called with every intact commit record, from several threads.

    Raises:
        StoreError: the folder itself cannot be read.
    """
    with run_store.read_errors(store.name):
        return _verify(store, content=content, threads=threads, seen=seen)


def _verify(
    store: run_store.RunStore, *, content: bool, threads: int, seen: Callable[[commit_record.CommitRecord], None]
) -> VerifyReport:
    foreign = _without_record(store)
    done = store.committed()
    committed = sorted(done)
    problems = [
        *_store_file(store),
        *created_problems(store),
        *_foreign(store, foreign, done),
        *_foreign_records(store),
    ]
    unpromoted = set()
    zarr_bytes.start()
    check = functools.partial(_shard_problems, store, content=content, seen=seen)
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for first in range(0, len(committed), _AT_ONCE):
            some = committed[first : first + _AT_ONCE]
            for shard, found in zip(some, pool.map(check, some), strict=True):
                problems += [problem for problem in found if problem.what != _UNPROMOTED]
                if any(problem.what == _UNPROMOTED for problem in found):
                    unpromoted.add(shard)
    return VerifyReport(
        shards_checked=len(committed),
        pending=tuple(shard for shard in range(store.shard_count) if shard not in done),
        unpromoted=tuple(sorted(unpromoted)),
        problems=tuple(problems),
    )


def shard_problems(store: run_store.RunStore, shard: int, *, content: bool = False) -> list[Problem]:
    """Return the current problems of one shard: objects that differ from their record or have none."""
    if shard in store.committed():
        found = _shard_problems(store, shard, content=content)
        return [problem for problem in found if problem.what != _UNPROMOTED]
    present = [key for key in _keys(store.plan, shard) if store.objects.size(f"{store_keys.GROUP}/{key}") is not None]
    return list(_foreign(store, present, set()))


def listed_problems(store: run_store.RunStore) -> Iterator[Problem]:
    """Yield missing and truncated objects of committed shards, from the listings of the arrays' folders.

    Reads one listing per array, and only the shards that look wrong in it. The size of a compressed object is known
    only from its record, so in runs of many shards only missing and empty ones are detected.

    Raises:
        StoreError: a folder cannot be read.
    """
    with run_store.read_errors(store.name):
        committed = sorted(store.committed())
        expected = _expected_sizes(store, committed)
        suspects: set[int] = set()
        for array in store.plan.all_arrays:
            found = _listed(store, array)
            for shard in committed:
                size = found.get(layout.chunk_key(array, shard).partition("/")[2])
                if not size or size != expected(array, shard, size):
                    suspects.add(shard)
        for shard in sorted(suspects):
            yield from shard_problems(store, shard)


def _listed(store: run_store.RunStore, array: layout.ArrayPlan) -> dict[str, int]:
    try:
        return dict(store.objects.walk(f"{store_keys.GROUP}/{array.name}"))
    except FileNotFoundError:
        return {}


def _expected_sizes(
    store: run_store.RunStore, committed: list[int]
) -> Callable[[layout.ArrayPlan, int, int], int | None]:
    """Return a function that gives the size of a shard's object, or the listed size if the true one is unknown."""
    last = store.shard_count - 1
    some = committed if len(committed) <= _FEW else [committed[0], *({last} & {*committed})]
    sizes: dict[int, dict[str, int]] = {}
    for shard in some:
        try:
            record = store.record(shard)
        except errors.StoreError:  # reported when the shard itself is checked
            record = None
        items = () if record is None else zip(store.plan.all_arrays, record.objects, strict=True)
        sizes[shard] = {array.name: item.size for array, item in items}

    def expected(array: layout.ArrayPlan, shard: int, listed: int) -> int | None:
        if shard in sizes:
            return sizes[shard].get(array.name)
        # Without compression all full shards have objects of one size; the last shard's record was read.
        return listed if array.compress else sizes[committed[0]].get(array.name, listed)

    return expected


def _keys(plan: layout.StorePlan, shard: int) -> list[str]:
    return [layout.chunk_key(array, shard) for array in plan.all_arrays]


def _store_file(store: run_store.RunStore) -> Iterator[Problem]:
    """Yield a problem if `store.json` was rewritten in other bytes; its content was checked on opening."""
    if not documents.verbatim(store.objects.read(store_keys.STORE_FILE)):
        name = store_keys.STORE_FILE
        yield Problem(shard=None, rows=None, key=name, what="is not byte for byte what was written: changed", folder="")


def created_problems(store: run_store.RunStore) -> Iterator[Problem]:
    """Yield changes to metadata and coordinates since creation."""
    for key, recorded in store.created.items():
        what = difference_to_created(store, f"{store_keys.GROUP}/{key}", recorded)
        if what:
            yield Problem(shard=None, rows=None, key=key, what=f"{what} since the run was created")


def _without_record(store: run_store.RunStore) -> list[str]:
    """Return keys that belong to no committed shard; check again later, as a worker may commit meanwhile."""
    done, owner = store.committed(), _owners(store.plan)
    keys = (key for key, _ in store.objects.walk(store_keys.GROUP) if key not in store.created)
    return sorted(key for key in keys if owner(key) not in done)


def _owners(plan: layout.StorePlan) -> Callable[[str], int | None]:
    """Return a function that maps a key to its shard, or to None for a key of no shard."""
    arrays = {array.name: array for array in plan.all_arrays}

    def owner(key: str) -> int | None:
        name, _, place = key.partition("/")
        number = f"{place}.".split(".")[1]
        if name not in arrays or not number.isdecimal() or len(number) > _MAX_DIGITS:
            return None
        shard = int(number)
        return shard if shard < plan.shard_count and layout.chunk_key(arrays[name], shard) == key else None

    return owner


def _foreign(store: run_store.RunStore, keys: list[str], done: set[int]) -> Iterator[Problem]:
    owner = _owners(store.plan)
    for key in keys:
        shard = owner(key)
        if shard in done:
            continue
        if shard is None:
            yield Problem(shard=None, rows=None, key=key, what="foreign file: not written by the store")
        else:
            what = "foreign object: visible to readers, but no commit record exists for it"
            yield Problem(shard=shard, rows=store.shard_range(shard), key=key, what=what)


def _foreign_records(store: run_store.RunStore) -> Iterator[Problem]:
    for name in store.record_names()[1]:
        shard, _ = store_keys.generation_of(name) or (None, 0)
        what = "foreign file among the commit records"
        if shard is not None and shard >= store.shard_count:
            what += f"; the run has shards 0 to {store.shard_count - 1}"
        yield Problem(shard=None, rows=None, key=name, what=what, folder=store_keys.COMMITS)


def _shard_problems(
    store: run_store.RunStore,
    shard: int,
    *,
    content: bool,
    seen: Callable[[commit_record.CommitRecord], None] = _ignore,
) -> list[Problem]:
    generation, problems = _problems_now(store, shard, content=content, seen=seen)
    if problems and store.objects.size(store_keys.record(shard, generation + 1)) is not None:
        # Rows were healed between reading the record and the objects.
        generation, problems = _problems_now(store, shard, content=content, seen=seen)
    return problems


def _problems_now(
    store: run_store.RunStore, shard: int, *, content: bool, seen: Callable[[commit_record.CommitRecord], None]
) -> tuple[int, list[Problem]]:
    """Return the generation of a shard's record, and the problems of the record and its objects."""
    rows = store.shard_range(shard)
    name = store_keys.record(shard).rpartition("/")[2]
    try:
        found = transaction.history(store.objects, shard)
        record = found[-1] if found else None
        what = (
            "the record disappeared"
            if record is None
            else transaction.misplaced(record, store.plan, store.document, shard)
        )
        keys = [store_keys.record(shard, generation) for generation in range(len(found))]
        if not what and not all(documents.verbatim(store.objects.read(key)) for key in keys):
            what = "the record is not byte for byte what was written: changed"
    except documents.OtherVersion:  # not damage: repair would take down an intact shard
        raise
    except (errors.StoreError, OSError) as error:
        _raise_if_transient(store, error)
        record, what = None, str(error)
    if record is None or what:
        return 0, [Problem(shard=shard, rows=rows, key=name, what=what)]
    for whole in found:
        seen(whole)
    return record.generation, [
        Problem(shard=shard, rows=rows, key=item.key, what=what)
        for array, item in zip(store.plan.all_arrays, record.objects, strict=True)
        if (what := _object_problem(store, record, array, item, content=content))
    ]


def _object_problem(
    store: run_store.RunStore,
    record: commit_record.CommitRecord,
    array: layout.ArrayPlan,
    item: commit_record.ObjectRecord,
    *,
    content: bool,
) -> str:
    """Return the problem of one object, "" if it is intact."""
    place = f"{store_keys.GROUP}/{item.key}"
    what = difference(store, place, item.size, item.digest)
    if what:
        # A staged object will be promoted over whatever is in place; it must match the record.
        staged = difference(store, f"{store_keys.STAGING}/{item.staged}", item.size, item.digest)
        if not staged:
            return _UNPROMOTED
        # Check again: a worker may have promoted it in between.
        what = difference(store, place, item.size, item.digest)
        if what and staged != _MISSING:
            return f"{staged} in {store_keys.STAGING}/{item.staged}, where it is staged for promotion"
    if what or not (content or array.name == layout.STATUS):
        return f"{what} since it was committed" if what else ""
    about = f"{array.name}/{zarr_bytes.METADATA}"
    if difference_to_created(store, f"{store_keys.GROUP}/{about}", store.created[about]):
        return ""  # reported by created_problems; nothing can be decoded without it
    try:
        metadata = store.objects.read(f"{store_keys.GROUP}/{about}")
        data = store.objects.read(place, most=item.size)
        rows = layout.rows_of(store.plan, array, record.shard)
        block = zarr_bytes.decode(metadata, item.key.partition("/")[2], data, rows)
    except Exception as error:  # zarr and its codecs raise anything on damaged metadata; it is reported
        _raise_if_transient(store, error)
        return f"cannot be decoded: {error!r}"
    if zarr_bytes.content_digest(block, digests.algorithm(item.content_digest)) != item.content_digest:
        return "decodes to different values than were committed: the array's metadata or the codec changed"
    return _status_problem(block, record) if array.name == layout.STATUS else ""


def _raise_if_transient(store: run_store.RunStore, error: Exception) -> None:
    """Re-raise a transient fault, which repair must not mistake for damage."""
    if is_passing(store, error):
        raise error


def is_passing(store: run_store.RunStore, error: BaseException | None) -> bool:
    """Return whether a fault is transient, that is, no sign of damage to the file itself."""
    if error is not None and memory.is_lacking(error):
        return True
    return isinstance(error, OSError) and (is_remote(store.name) or error.errno not in _FILE_ERRNOS)


def _status_problem(status: np.ndarray, record: commit_record.CommitRecord) -> str:
    counts = {name: count for name, count in statuses.counts(statuses.ROWS, status).items() if count}
    stated = {meaning: count for meaning, count in record.status_counts.items() if count}
    return "" if counts == stated else f"status has {counts}, the record has {stated}"


def difference_to_created(store: run_store.RunStore, key: str, recorded: tuple[int, str]) -> str:
    """Return how a file differs from its size and sha256 recorded at creation; see `difference`."""
    size, digest = recorded
    return difference(store, key, size, f"{digests.CREATED.algorithm}:{digest}")


def difference(store: run_store.RunStore, key: str, size: int, digest: str) -> str:
    """Return how a file of the run folder differs from its record, "" if not; the file is read only if the size fits.

    Raises:
        OSError: a transient fault, not damage of the file.
    """
    algorithm, _, stated = digest.partition(":")
    try:
        actual_size, actual = store.objects.digest(key, algorithm, size=size)
    except FileNotFoundError:
        return _MISSING
    except OSError as error:
        _raise_if_transient(store, error)
        return f"cannot be read ({error.strerror or error})"
    if actual_size != size:
        return f"has {actual_size} bytes instead of {size}: changed"
    return "" if actual == stated else f"{algorithm} is {actual} instead of {stated}: changed"
