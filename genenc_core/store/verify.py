"""Re-reads a run folder against what it says about itself: every file of the group, every commit record."""

import errno
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np

from genenc_core import errors, memory
from genenc_core.store import digests, layout, places, records, run_store, sealed, transaction, zarr_arrays
from genenc_core.store.objects import is_remote

_UNPROMOTED: Final = "committed but not in place yet"
_MISSING: Final = "missing"
_AT_ONCE: Final = 256
"""Shards whose reports wait for their turn."""
_FEW: Final = 256
"""Shards whose records are read for the sizes of their objects."""
_LONGEST: Final = len(str(layout.LARGEST_SHARDS))
_OF_THE_FILE: Final = frozenset(
    (errno.EIO, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EFBIG, errno.EUCLEAN)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is not as recorded."""

    shard: int | None
    """None for a file that no shard owns."""
    rows: tuple[int, int] | None
    """[start, stop) of the shard."""
    key: str
    """The file, relative to `folder`, or the commit record's name."""
    what: str
    folder: str = places.GROUP
    """Relative to the run folder; "" for the run folder itself."""

    @property
    def place(self) -> str:
        """The file as a person looks for it, relative to the run folder."""
        among = places.generation_of(self.key) is not None
        return f"{places.COMMITS if among else self.folder}/{self.key}".lstrip("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What `verify_store` found."""

    shards_checked: int
    pending: tuple[int, ...]
    """Shards without a record: not an error, only not done."""
    unpromoted: tuple[int, ...]
    """Committed shards that a killed process left half in place; `RunStore.recover` finishes them."""
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether everything that is committed is as it was committed."""
        return not self.problems


def verify_store(store: run_store.RunStore, *, content: bool = False, threads: int = 4) -> VerifyReport:
    """Check every object against its record, and that there is nothing else; changes nothing.

    Safe beside running workers.

    Args:
        store: the run.
        content: also decode every object and compare the values' digest, which finds a codec that changed.
        threads: shards read at the same time.

    Raises:
        StoreError: the folder itself cannot be read.
    """
    with run_store.read_errors(store.name):
        return _verify(store, content=content, threads=threads)


def _verify(store: run_store.RunStore, *, content: bool, threads: int) -> VerifyReport:
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
    zarr_arrays.start()
    check = functools.partial(_shard_problems, store, content=content)
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
    """Return what is wrong with one shard now: objects that are not as recorded, or that no record stands for."""
    if shard in store.committed():
        found = _shard_problems(store, shard, content=content)
        return [problem for problem in found if problem.what != _UNPROMOTED]
    present = [key for key in _keys(store.plan, shard) if store.objects.size(f"{places.GROUP}/{key}") is not None]
    return list(_foreign(store, present, set()))


def listed_problems(store: run_store.RunStore) -> Iterator[Problem]:
    """Yield what the listings of the arrays' folders show of committed shards: objects that are missing or cut short.

    Reads one listing per array, and only the shards that look wrong in it. Where arrays are compressed, the size of
    every object stands in its record alone: it is compared in runs of few shards, in others an empty object is found.

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
        return dict(store.objects.walk(f"{places.GROUP}/{array.name}"))
    except FileNotFoundError:
        return {}


def _expected_sizes(
    store: run_store.RunStore, committed: list[int]
) -> Callable[[layout.ArrayPlan, int, int], int | None]:
    """Return what gives the size of a shard's object; the size that was found where it cannot be known."""
    last = store.shard_count - 1
    some = committed if len(committed) <= _FEW else [committed[0], *({last} & {*committed})]
    sizes: dict[int, dict[str, int]] = {}
    for shard in some:
        try:
            record = store.record(shard)
        except errors.StoreError:  # named when the shard itself is looked at
            record = None
        items = () if record is None else zip(store.plan.all_arrays, record.objects, strict=True)
        sizes[shard] = {array.name: item.size for array, item in items}

    def expected(array: layout.ArrayPlan, shard: int, found: int) -> int | None:
        if shard in sizes:
            return sizes[shard].get(array.name)
        # Without compression all whole shards have objects of one size; the last shard is among those read.
        return found if array.compress else sizes[committed[0]].get(array.name, found)

    return expected


def _keys(plan: layout.StorePlan, shard: int) -> list[str]:
    return [layout.chunk_key(array, shard) for array in plan.all_arrays]


def _store_file(store: run_store.RunStore) -> Iterator[Problem]:
    """Yield when `store.json` says the same in other bytes: what it says was checked when it was opened."""
    if not sealed.verbatim(store.objects.read(places.STORE_FILE)):
        name = places.STORE_FILE
        yield Problem(shard=None, rows=None, key=name, what="is not byte for byte what was written: changed", folder="")


def created_problems(store: run_store.RunStore) -> Iterator[Problem]:
    """Yield what happened to the metadata and coordinates."""
    for key, (size, sha256) in store.created.items():
        what = difference(store, f"{places.GROUP}/{key}", size, f"sha256:{sha256}")
        if what:
            yield Problem(shard=None, rows=None, key=key, what=f"{what} since the run was created")


def _without_record(store: run_store.RunStore) -> list[str]:
    """Return the keys of no shard that has a record now; a shard of which is one must have it when we look again."""
    done, owner = store.committed(), _owners(store.plan)
    keys = (key for key, _ in store.objects.walk(places.GROUP) if key not in store.created)
    return sorted(key for key in keys if owner(key) not in done)


def _owners(plan: layout.StorePlan) -> Callable[[str], int | None]:
    """Return what tells the shard that a key belongs to, None for a key that no shard has."""
    arrays = {array.name: array for array in plan.all_arrays}

    def owner(key: str) -> int | None:
        name, _, place = key.partition("/")
        number = f"{place}.".split(".")[1]
        if name not in arrays or not number.isdecimal() or len(number) > _LONGEST:
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
            yield Problem(shard=None, rows=None, key=key, what="foreign file: the store never wrote it")
        else:
            what = "foreign object: readers see it, but no commit record stands for it"
            yield Problem(shard=shard, rows=store.shard_range(shard), key=key, what=what)


def _foreign_records(store: run_store.RunStore) -> Iterator[Problem]:
    for name in store.record_names()[1]:
        shard, _ = places.generation_of(name) or (None, 0)
        what = "foreign file among the commit records"
        if shard is not None and shard >= store.shard_count:
            what += f"; the run has shards 0 to {store.shard_count - 1}"
        yield Problem(shard=None, rows=None, key=name, what=what, folder=places.COMMITS)


def _shard_problems(store: run_store.RunStore, shard: int, *, content: bool) -> list[Problem]:
    generation, problems = _problems_now(store, shard, content=content)
    if problems and store.objects.size(places.record(shard, generation + 1)) is not None:
        # Rows of it were healed between the looks at its record and at its objects.
        generation, problems = _problems_now(store, shard, content=content)
    return problems


def _problems_now(store: run_store.RunStore, shard: int, *, content: bool) -> tuple[int, list[Problem]]:
    """Return the generation of a shard's record, and what is wrong with it or its objects."""
    rows = store.shard_range(shard)
    name = places.record(shard).rpartition("/")[2]
    try:
        found = transaction.history(store.objects, shard)
        record = found[-1] if found else None
        what = (
            "the record vanished"
            if record is None
            else transaction.misplaced(record, store.plan, store.document, shard)
        )
        keys = [places.record(shard, generation) for generation in range(len(found))]
        if not what and not all(sealed.verbatim(store.objects.read(key)) for key in keys):
            what = "the record is not byte for byte what was written: changed"
    except sealed.OtherVersion:  # no damage: a repair would take down what is whole
        raise
    except (errors.StoreError, OSError) as error:
        _refuse_passing(store, error)
        record, what = None, str(error)
    if record is None or what:
        return 0, [Problem(shard=shard, rows=rows, key=name, what=what)]
    return record.generation, [
        Problem(shard=shard, rows=rows, key=item.key, what=what)
        for array, item in zip(store.plan.all_arrays, record.objects, strict=True)
        if (what := _object_problem(store, record, array, item, content=content))
    ]


def _object_problem(
    store: run_store.RunStore,
    record: records.CommitRecord,
    array: layout.ArrayPlan,
    item: records.ObjectRecord,
    *,
    content: bool,
) -> str:
    """Return what is wrong with one object, "" if nothing is."""
    place = f"{places.GROUP}/{item.key}"
    what = difference(store, place, item.size, item.digest)
    if what:
        # What is staged is still to be put in place, whatever lies there now; it must be what was committed.
        staged = difference(store, f"{places.STAGING}/{item.staged}", item.size, item.digest)
        if not staged:
            return _UNPROMOTED
        # Looked at again: a worker may have put it in place between the looks.
        what = difference(store, place, item.size, item.digest)
        if what and staged != _MISSING:
            return f"{staged} in {places.STAGING}/{item.staged}, where it waits to be put in place"
    if what or not (content or array.name == layout.STATUS):
        return f"{what} since it was committed" if what else ""
    about = f"{array.name}/{zarr_arrays.METADATA}"
    size, sha256 = store.created[about]
    if difference(store, f"{places.GROUP}/{about}", size, f"sha256:{sha256}"):
        return ""  # named by created_problems: without it nothing can be decoded
    try:
        metadata = store.objects.read(f"{places.GROUP}/{about}")
        data = store.objects.read(place, most=item.size)
        block = zarr_arrays.decode(metadata, item.key.partition("/")[2], data, record.rows)
    except Exception as error:  # zarr and its codecs raise anything at damaged metadata; the report says what
        _refuse_passing(store, error)
        return f"cannot be decoded: {error!r}"
    if zarr_arrays.content_digest(block, digests.algorithm(item.content_digest)) != item.content_digest:
        return "decodes to other values than were committed: the array's metadata or the codec changed"
    return _status_problem(block, record) if array.name == layout.STATUS else ""


def _refuse_passing(store: run_store.RunStore, error: Exception) -> None:
    """Raise a fault that says nothing of the file that was read: repair must not take it for damage."""
    if memory.is_lacking(error):
        raise error
    if isinstance(error, OSError) and (is_remote(store.name) or error.errno not in _OF_THE_FILE):
        raise error


def _status_problem(status: np.ndarray, record: records.CommitRecord) -> str:
    values = range(len(layout.STATUS_MEANINGS))
    counts = {layout.STATUS_MEANINGS[v]: int(np.count_nonzero(status == v)) for v in values}
    counts = {meaning: count for meaning, count in counts.items() if count}
    stated = {meaning: count for meaning, count in record.status_counts.items() if count}
    return "" if counts == stated else f"status says {counts}, the record says {stated}"


def difference(store: run_store.RunStore, key: str, size: int, digest: str) -> str:
    """Return how a file of the run folder differs from its record, "" if it does not; one of another size is not read.

    Raises:
        OSError: a fault that says nothing of the file.
    """
    algorithm, _, stated = digest.partition(":")
    try:
        found_size, found = store.objects.digest(key, algorithm, size=size)
    except FileNotFoundError:
        return _MISSING
    except OSError as error:
        _refuse_passing(store, error)
        return f"cannot be read ({error.strerror or error})"
    if found_size != size:
        return f"has {found_size} bytes instead of {size}: changed"
    return "" if found == stated else f"{algorithm} is {found} instead of {stated}: changed"
