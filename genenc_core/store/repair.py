"""Repair of the problems that `verify` reports: damaged shards are requeued, metadata is rewritten.

Nothing is deleted: damaged files are moved to `_txn/set-aside/<repair>/`, under their own names. A shard is taken down
in reverse promotion order, so S1 and S2 hold at every instant: first `status` (its rows then count as not written),
then data, the record last. If a repair is killed, the next one continues, because a record without its objects is
damage itself. A shard without a record is pending, and `resume` encodes it again.

Nothing else changes a shard meanwhile: `_txn/repair.json` locks out other repairs, and a record keeps workers from
committing; a shard without a record first gets a placeholder.
"""

import contextlib
import dataclasses
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from genenc_core import errors
from genenc_core.store import commit_record, documents, layout, run_store, store_keys, verify, zarr_bytes
from genenc_core.store.backends import beneath
from genenc_core.store.backends.objects import join
from genenc_core.system import digests, files

_ORIGINALS: Final = ("images.parquet", "model_spec.json", "provenance/parameters.json")
"""Original files beside the group in runs whose `store.json` does not record them."""
_PLACEHOLDER: Final = "genenc.taken-down"
"""Schema of the document in place of a missing record while its shard is taken down."""
_PLACEHOLDER_PREFIX: Final = "taken-down-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """Result of `repair_store`."""

    requeued: tuple[int, ...]
    """Shards that are pending again; the next `resume` encodes them."""
    restored: tuple[str, ...]
    """Rewritten files: metadata and coordinates, relative to the Zarr group, and files beside it."""
    set_aside: tuple[str, ...]
    """Files that were moved away, relative to `folder`."""
    folder: str
    """Their destination in the run folder; does not exist if nothing was moved."""
    lost: tuple[str, ...] = ()
    """Files beside the group that were replaced by a note that their content is lost."""
    unrepaired: tuple[verify.Problem, ...]
    """Problems that could not be fixed, with the reason in `what`."""


def repair_store(
    store: run_store.RunStore,
    *,
    coordinates: Sequence[layout.CoordinatePlan],
    content: bool = False,
    beside: Callable[[], Sequence[verify.Problem]] = tuple,
    remake: Callable[[str], bytes | None] = lambda _key: None,
    seen: Callable[[commit_record.CommitRecord], None] = lambda _record: None,
) -> Repaired:
    """Verify the run and repair what is damaged; intact files are not touched.

    Safe to run beside readers and workers, and to rerun after a kill; concurrent repairs are refused.

    Args:
        store: the run.
        coordinates: those that the run was created with, to rewrite damaged ones.
        content: also verify decoded values.
        beside: returns the current problems beside the store. Files that the run was made with stay, others are set
            aside.
        remake: returns the content of a file beside the store, or None if unknown; called before anything is moved.
            A file that the run was made with is only rewritten if the content has the recorded digest.
        seen: called with every intact commit record, before `beside`.

    Raises:
        StoreError: the disk failed, or another repair is running.
    """
    aside = _Aside(store, f"{store_keys.SET_ASIDE}/{uuid.uuid4().hex[:12]}")
    restored: list[str] = []
    unrepaired: list[verify.Problem] = []
    problems, others = verify.verify_store(store, content=content, seen=seen).problems, beside()
    if not problems and not others:
        _clean_up_killed(store)
        return Repaired(requeued=(), restored=(), set_aside=(), folder=aside.folder, unrepaired=())
    with run_store.disk_errors(f"repair of {store.name!r}"), _locked(store, aside):
        made = {problem.key: remake(problem.key) for problem in others}
        for problem in (*problems, *others):
            if is_original(store, problem):
                data = made.get(problem.key)
                if data is not None and store.files.get(problem.key) == (len(data), digests.CREATED.hex(data)):
                    aside.move("", problem.key)
                    store.objects.replace(problem.key, data)
                    restored.append(problem.key)
                    continue
                what = f"{problem.what}; it defines the run and cannot be recreated: restore it from a copy"
                unrepaired.append(dataclasses.replace(problem, what=what))
            elif problem.shard is None and not _is_created(store, problem):
                # First, because a file or link may be in the place of a folder.
                aside.move(problem.folder, problem.key)
                data = None if problem.folder else made.get(problem.key)
                if data is not None:
                    store.objects.make_folder(_folder(problem.key))
                    store.objects.replace(problem.key, data)
                    restored.append(problem.key)
        damaged = [problem for problem in problems if _is_created(store, problem)]
        if damaged:
            rewritten, failed = _restore(store, damaged, coordinates, aside)
            restored += rewritten
            unrepaired += failed
            # Objects are decoded with the array's metadata, so their own damage shows only now.
            problems = verify.verify_store(store, content=content).problems
        suspects = sorted({problem.shard for problem in problems if problem.shard is not None})
        shards = [shard for shard in suspects if _take_down(store, shard, aside, content=content)]
    return Repaired(
        requeued=tuple(shards),
        restored=tuple(restored),
        set_aside=tuple(aside.moved),
        folder=aside.folder,
        unrepaired=tuple(unrepaired),
    )


@contextlib.contextmanager
def _locked(store: run_store.RunStore, aside: "_Aside") -> Iterator[None]:
    """Lock out other repairs: a late one would take down shards committed after the first."""
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    owner = f"{aside.folder}, process {os.getpid()} on {socket.gethostname()}, since {since}"
    with contextlib.ExitStack() as held:
        if store.objects.kind(store_keys.REPAIR) not in (None, beneath.FILE):
            aside.move("", store_keys.REPAIR)  # only a regular file can be a lock
        try:
            held.enter_context(store.objects.lock(store_keys.REPAIR, f"{owner}\n".encode()))
        except FileExistsError as error:
            raise errors.StoreError(_already_running(store)) from error
        _sweep(store)
        yield


def _clean_up_killed(store: run_store.RunStore) -> None:
    """Remove the lock and placeholders of a repair that was killed; on S3 its death cannot be detected."""
    left = store.objects.names(store_keys.TRANSACTIONS, _PLACEHOLDER_PREFIX)
    if left or store.objects.size(store_keys.REPAIR) is not None:
        with contextlib.suppress(OSError), store.objects.lock(store_keys.REPAIR, b""):
            _sweep(store)


def _sweep(store: run_store.RunStore) -> None:
    """Remove temporary placeholder files of killed repairs; call only while holding the repair lock."""
    for name in store.objects.names(store_keys.TRANSACTIONS, _PLACEHOLDER_PREFIX):
        store.objects.remove(f"{store_keys.TRANSACTIONS}/{name}")


def _already_running(store: run_store.RunStore) -> str:
    where = join(store.name, store_keys.REPAIR)
    try:
        holder = store.objects.read(store_keys.REPAIR).decode(errors="replace").strip()[:200]
    except FileNotFoundError:
        holder = "it has just ended"
    return (
        f"another repair of {store.name!r} is running ({holder}): wait for it, then rerun the command. If that "
        f"process is gone, it was killed: delete {where!r} first"
    )


def _is_created(store: run_store.RunStore, problem: verify.Problem) -> bool:
    return problem.folder == store_keys.GROUP and problem.key in store.created


def is_original(store: run_store.RunStore, problem: verify.Problem) -> bool:
    """Return whether a file beside the group is one of those that define the run."""
    return not problem.folder and problem.key in (*store.files, *_ORIGINALS, store_keys.STORE_FILE)


class _Aside:
    """Moves files aside durably and records which."""

    def __init__(self, store: run_store.RunStore, folder: str) -> None:
        self.store = store
        self.folder = folder
        self.moved: list[str] = []

    def move(self, home: str, key: str) -> None:
        """Move `home/key` to the same path below `folder/<name of home>`, if it exists."""
        objects, source = self.store.objects, f"{home}/{key}".lstrip("/")
        if objects.size(source) is None:
            return
        name = f"{home.rpartition('/')[2]}/{key}".lstrip("/")
        target = f"{self.folder}/{name}"
        while objects.size(target) is not None:  # a file of the folder was moved before the folder itself
            target += "+"
        objects.make_folder(_folder(target))
        with contextlib.suppress(FileNotFoundError):  # another repair was faster
            objects.take_away(source, target)
            objects.sync(_folder(target), _folder(source))
            self.moved.append(name)
        self.store.observer("repair:moved")


def _folder(key: str) -> str:
    return key.rpartition("/")[0]


def _take_down(store: run_store.RunStore, shard: int, aside: _Aside, *, content: bool) -> bool:
    """Make a shard pending, `status` first, record last; return False if a worker has just committed it."""
    # Checked again now that no worker can commit it.
    if not _put_placeholder(store, shard, aside) and not verify.shard_problems(store, shard, content=content):
        return False
    for array in reversed(store.plan.all_arrays):
        aside.move(store_keys.GROUP, layout.chunk_key(array, shard))
    # The first record last: it keeps workers from committing.
    for generation in range(_generations(store, shard), -1, -1):
        aside.move(*store_keys.record(shard, generation).rsplit("/", 1))
    return True


def _generations(store: run_store.RunStore, shard: int) -> int:
    """Return the highest generation among a shard's records, by their names alone."""
    prefix = store_keys.record(shard).rpartition("/")[2].removesuffix("json")
    records = (store_keys.generation_of(name) for name in store.objects.names(store_keys.COMMITS, prefix))
    return max((record[1] for record in records if record is not None), default=0)


def _put_placeholder(store: run_store.RunStore, shard: int, aside: _Aside) -> bool:
    """Put a placeholder where a shard has no record, so that no worker commits it; return whether it had none."""
    record, placeholder = store_keys.record(shard), documents.dumps(_PLACEHOLDER, {"repair": aside.folder})
    via = f"{store_keys.TRANSACTIONS}/{_PLACEHOLDER_PREFIX}{uuid.uuid4().hex}"
    try:
        store.objects.create(record, placeholder, via=via)
    except FileExistsError:
        like = (store.objects.kind(record), store.objects.size(record)) == (beneath.FILE, len(placeholder))
        return like and store.objects.read(record) == placeholder  # ours if the first reply was lost
    finally:
        store.objects.remove(via)
        store.objects.sync(store_keys.COMMITS)
    return True


def _restore(
    store: run_store.RunStore,
    damaged: Sequence[verify.Problem],
    coordinates: Sequence[layout.CoordinatePlan],
    aside: _Aside,
) -> tuple[list[str], list[verify.Problem]]:
    """Rewrite damaged created files that can be reproduced byte for byte; return those and the remaining problems."""
    restored: list[str] = []
    unrepaired: list[verify.Problem] = []
    with tempfile.TemporaryDirectory(prefix="genenc-repair-") as building:
        group = Path(building) / store_keys.GROUP
        zarr_bytes.create_group(group, store.plan, coordinates)
        for problem in damaged:
            fresh = group / problem.key
            if not fresh.is_file() or files.digest(fresh) != store.created[problem.key]:
                what = (
                    f"{problem.what}; it cannot be recreated, because this version of zarr or genenc writes different "
                    "bytes than the one that created the run: restore it from a copy"
                )
                unrepaired.append(verify.Problem(shard=None, rows=None, key=problem.key, what=what))
                continue
            aside.move(store_keys.GROUP, problem.key)
            store.objects.make_folder(_folder(f"{store_keys.GROUP}/{problem.key}"))
            store.objects.replace(f"{store_keys.GROUP}/{problem.key}", fresh.read_bytes())
            restored.append(problem.key)
    return restored, unrepaired
