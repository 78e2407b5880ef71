"""Puts right what `verify` found: damaged shards are taken down to be made again, metadata is written anew.

Nothing is deleted: what was wrong is moved to `_txn/set-aside/<repair>/`, under its own name. A shard is taken down in
the reverse order of its promotion, so S1 and S2 hold at any instant: its `status` first (from then on its rows count as
not written), then its data, its record last. Killed anywhere, the next repair goes on, because a record without its
objects is damage itself. A shard without a record is pending, and `resume` encodes it again.

Nobody else changes a shard meanwhile: `_txn/repair.json` keeps other repairs away, and a record keeps workers from
committing; a shard that has none gets a mark in its place first.
"""

import contextlib
import dataclasses
import hashlib
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
from genenc_core.store import beneath, files, layout, places, run_store, sealed, verify, zarr_arrays
from genenc_core.store.objects import join

_ORIGINALS: Final = ("images.parquet", "model_spec.json", "provenance/parameters.json")
"""Beside the group, in runs whose `store.json` does not record them."""
_MARK: Final = "genenc.taken-down"
_MAKING_MARK: Final = "taken-down-"
"""Schema of what stands in for a record that is not there, while its shard is taken down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """What `repair_store` did."""

    requeued: tuple[int, ...]
    """Shards without a record from now on; the next `resume` encodes them."""
    restored: tuple[str, ...]
    """Files written anew: metadata and coordinates, relative to the Zarr group, and those beside it."""
    set_aside: tuple[str, ...]
    """What was moved away, relative to `folder`."""
    folder: str
    """Where to, in the run folder; does not exist when nothing was moved."""
    unrepaired: tuple[verify.Problem, ...]
    """What could not be put right, with the reason in `what`."""


def repair_store(
    store: run_store.RunStore,
    *,
    coordinates: Sequence[layout.CoordinatePlan],
    content: bool = False,
    beside: Callable[[], Sequence[verify.Problem]] = tuple,
    remake: Callable[[str], bytes | None] = lambda _key: None,
) -> Repaired:
    """Verify the run and put right what is wrong; what is intact is not touched.

    Safe beside readers and workers, and again after a kill; a second repair at the same time is refused.

    Args:
        store: the run.
        coordinates: those that the run was created with, to write damaged ones anew.
        content: verify by decoding, too.
        beside: what is wrong beside the store now. Files that the run was made with are left, the others set aside.
        remake: gives what a file that the run was made with should hold, None where it cannot; it is written where it
            has the digest that is recorded.

    Raises:
        StoreError: the disk failed, or another repair is at work.
    """
    aside = _Aside(store, f"{places.SET_ASIDE}/{uuid.uuid4().hex[:12]}")
    restored: list[str] = []
    unrepaired: list[verify.Problem] = []
    problems, others = verify.verify_store(store, content=content).problems, beside()
    if not problems and not others:
        _forget_killed(store)
        return Repaired(requeued=(), restored=(), set_aside=(), folder=aside.folder, unrepaired=())
    with run_store.disk_errors(f"repair of {store.name!r}"), _alone(store, aside):
        for problem in (*problems, *others):
            if is_original(store, problem):
                data = remake(problem.key)
                if data is not None and store.files.get(problem.key) == (len(data), hashlib.sha256(data).hexdigest()):
                    aside.move("", problem.key)
                    store.objects.replace(problem.key, data)
                    restored.append(problem.key)
                    continue
                what = f"{problem.what}; it says what the run is, and cannot be recreated: restore it from a copy"
                unrepaired.append(dataclasses.replace(problem, what=what))
            elif problem.shard is None and not _is_created(store, problem):
                # First, for a file or a link may stand where a folder was.
                aside.move(problem.folder, problem.key)
        damaged = [problem for problem in problems if _is_created(store, problem)]
        if damaged:
            anew, left = _restore(store, damaged, coordinates, aside)
            restored += anew
            unrepaired += left
            # Objects are decoded with the array's metadata: what is wrong with them shows only now.
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
def _alone(store: run_store.RunStore, aside: "_Aside") -> Iterator[None]:
    """Keep other repairs away: one that is late would take down what was committed after the first."""
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    who = f"{aside.folder}, process {os.getpid()} on {socket.gethostname()}, since {since}"
    with contextlib.ExitStack() as held:
        if store.objects.kind(places.REPAIR) not in (None, beneath.FILE):
            aside.move("", places.REPAIR)  # nobody can hold what is no file
        try:
            held.enter_context(store.objects.alone(places.REPAIR, f"{who}\n".encode()))
        except FileExistsError as error:
            raise errors.StoreError(_said(store)) from error
        _sweep(store)
        yield


def _forget_killed(store: run_store.RunStore) -> None:
    """Remove what a repair left that was killed when all was done; on S3 nobody can tell whether it lives."""
    left = store.objects.names(places.TRANSACTIONS, _MAKING_MARK)
    if left or store.objects.size(places.REPAIR) is not None:
        with contextlib.suppress(OSError), store.objects.alone(places.REPAIR, b""):
            _sweep(store)


def _sweep(store: run_store.RunStore) -> None:
    """Remove what killed repairs left of their marks; only for the one repair that runs."""
    for name in store.objects.names(places.TRANSACTIONS, _MAKING_MARK):
        store.objects.remove(f"{places.TRANSACTIONS}/{name}")


def _said(store: run_store.RunStore) -> str:
    where = join(store.name, places.REPAIR)
    try:
        holder = store.objects.read(places.REPAIR).decode(errors="replace").strip()[:200]
    except FileNotFoundError:
        holder = "it has just ended"
    return (
        f"another repair of {store.name!r} is running ({holder}): wait for it, then rerun the command. If that "
        f"process is gone, it was killed: delete {where!r} first"
    )


def _is_created(store: run_store.RunStore, problem: verify.Problem) -> bool:
    return problem.folder == places.GROUP and problem.key in store.created


def is_original(store: run_store.RunStore, problem: verify.Problem) -> bool:
    """Return whether a file beside the group is one of those that say what the run is."""
    return not problem.folder and problem.key in (*store.files, *_ORIGINALS, places.STORE_FILE)


class _Aside:
    """Moves files away, durably, and remembers which."""

    def __init__(self, store: run_store.RunStore, folder: str) -> None:
        self.store = store
        self.folder = folder
        self.moved: list[str] = []

    def move(self, home: str, key: str) -> None:
        """Move `home/key` to the same place below `folder/<name of home>`; nothing if it is not there."""
        objects, source = self.store.objects, f"{home}/{key}".lstrip("/")
        if objects.size(source) is None:
            return
        name = f"{home.rpartition('/')[2]}/{key}".lstrip("/")
        target = f"{self.folder}/{name}"
        while objects.size(target) is not None:  # a file of a folder went before the folder itself
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
    """Make a shard pending: its status goes first, its record last. False when a worker has just committed it."""
    # Looked at again, now that nobody can commit it.
    if not _marked(store, shard, aside) and not verify.shard_problems(store, shard, content=content):
        return False
    for array in reversed(store.plan.all_arrays):
        aside.move(places.GROUP, layout.chunk_key(array, shard))
    # The first last, for it is what keeps workers from committing.
    for generation in range(_generations(store, shard), -1, -1):
        aside.move(*places.record(shard, generation).rsplit("/", 1))
    return True


def _generations(store: run_store.RunStore, shard: int) -> int:
    """Return the highest generation that a record of a shard has; what is wrong with the records does not count."""
    prefix = places.record(shard).rpartition("/")[2].removesuffix("json")
    named = (places.generation_of(name) for name in store.objects.names(places.COMMITS, prefix))
    return max((found[1] for found in named if found is not None), default=0)


def _marked(store: run_store.RunStore, shard: int, aside: _Aside) -> bool:
    """Put a mark where a shard's record is missing, so that no worker commits it; return whether there was none."""
    record, mark = places.record(shard), sealed.dumps(_MARK, {"repair": aside.folder})
    via = f"{places.TRANSACTIONS}/{_MAKING_MARK}{uuid.uuid4().hex}"
    try:
        store.objects.create(record, mark, via=via)
    except FileExistsError:
        like = (store.objects.kind(record), store.objects.size(record)) == (beneath.FILE, len(mark))
        return like and store.objects.read(record) == mark  # ours, when the first answer was lost
    finally:
        store.objects.remove(via)
        store.objects.sync(places.COMMITS)
    return True


def _restore(
    store: run_store.RunStore,
    damaged: Sequence[verify.Problem],
    coordinates: Sequence[layout.CoordinatePlan],
    aside: _Aside,
) -> tuple[list[str], list[verify.Problem]]:
    """Write the created files of `damaged` again, where the same bytes come out as at the creation."""
    restored: list[str] = []
    unrepaired: list[verify.Problem] = []
    with tempfile.TemporaryDirectory(prefix="genenc-repair-") as building:
        group = Path(building) / places.GROUP
        zarr_arrays.create_group(group, store.plan, coordinates)
        for problem in damaged:
            fresh = group / problem.key
            if not fresh.is_file() or files.digest(fresh) != store.created[problem.key]:
                what = (
                    f"{problem.what}; it cannot be recreated, because this version of zarr or genenc writes other "
                    "bytes than the one that created the run: restore it from a copy"
                )
                found = verify.Problem(shard=None, rows=None, key=problem.key, what=what)
                unrepaired.append(found)
                continue
            aside.move(places.GROUP, problem.key)
            store.objects.make_folder(_folder(f"{places.GROUP}/{problem.key}"))
            store.objects.replace(f"{places.GROUP}/{problem.key}", fresh.read_bytes())
            restored.append(problem.key)
    return restored, unrepaired
