"""The protocols in a few lines each, as the pages state them; each can be broken on purpose."""

import contextlib
import uuid
from collections.abc import Hashable
from typing import Any, Final, NamedTuple

from genenc_core import errors
from genenc_core.store import store_keys
from simulated_store import PROCESS, Contents, Ended, SimulatedObjects, Task
from store_promises import ARRAYS, Lens, Record


class Stated(NamedTuple):
    """A commit record."""

    shard: int
    generation: int
    attempt: str
    values: tuple[str, ...]


MARK: Final = "taken down"
LENS = Lens(
    lambda value: Record(value.attempt, value.values) if isinstance(value, Stated) else None, lambda value: value
)


def committed(shard: int, *, by: str = "z") -> dict[str, Any]:
    """The contents of a committed shard."""
    record = _stated(shard, 0, by)
    placed = {_place(shard, at): value for at, value in enumerate(record.values)}
    return {store_keys.record(shard): record, **placed}


def commit(shard: int, broken: str = "") -> Task:
    """Stage, commit, promote, clean."""

    def run(store: SimulatedObjects) -> Hashable:
        record = _current(store, shard) or _attempt(store, _stated(shard, 0, store.worker), broken)
        _finish(store, record, broken)
        return record.attempt

    return Task(f"commit {shard}", run)


def heal(shard: int, broken: str = "") -> Task:
    """The same for the next record of a committed shard, unless it has one."""

    def run(store: SimulatedObjects) -> Hashable:
        record = _current(store, shard)
        assert record is not None
        _finish(store, record, broken)
        if not record.generation:
            staged = store_keys.attempt(shard, record.attempt).rpartition("/")[2]
            if broken != "heal-over-staged" and store.names(store_keys.STAGING, staged):
                raise errors.StoreError("its staging could not be removed")
            record = _attempt(store, _stated(shard, 1, store.worker), broken)
            _finish(store, record, broken)
        return record.attempt

    return Task(f"heal {shard}", run)


def resume(*, mending: bool = False, healing: bool = False) -> Task:
    """Recover, then commit what is pending."""

    def run(store: SimulatedObjects) -> Hashable:
        if mending:
            store.remove(store_keys.REPAIR)
            repair().run(store)
        for shard in range(2):
            commit(shard).run(store)
        if healing:
            heal(0).run(store)
        return "done"

    return Task("resume", run)


def _attempt(store: SimulatedObjects, mine: Stated, broken: str) -> Stated:
    staged = [store_keys.attempt(mine.shard, mine.attempt, mine.generation) + f"/{at}" for at in range(len(ARRAYS))]
    key = store_keys.record(mine.shard, mine.generation)

    def stage() -> None:
        for name, value in zip(staged, mine.values, strict=True):
            store.replace(name, value)

    if broken != "record-first":
        stage()
    if broken == "promote-first":
        _promote(store, mine, broken)
    try:
        if broken in ("last-wins", "heal-last-wins"):
            store.replace(key, mine)
        else:
            store.create(key, mine, via=f"_txn/via-{mine.attempt}")
    except OSError:
        if broken == "conflict-is-loss":
            for name in staged:
                store.remove(name)
        found = _current(store, mine.shard)
        if found is None or found.generation < mine.generation:
            raise
        return found
    if broken == "record-first":
        stage()
    return mine


def _finish(store: SimulatedObjects, record: Stated, broken: str) -> None:
    if broken == "early-clean":
        _clean(store, record, broken)
    _promote(store, record, broken)
    _clean(store, record, broken)


def _promote(store: SimulatedObjects, record: Stated, broken: str) -> None:
    order = range(len(ARRAYS))
    for at in reversed(order) if broken == "status-first" else order:
        staged = store_keys.attempt(record.shard, record.attempt, record.generation) + f"/{at}"
        try:
            store.move(staged, _place(record.shard, at))
        except FileNotFoundError:
            if store.size(_place(record.shard, at)) is None:
                raise errors.StoreError("neither staged nor in place") from None


def _clean(store: SimulatedObjects, record: Stated, broken: str) -> None:
    for generation in range(record.generation + (2 if broken == "cleans-later" else 1)):
        prefix = store_keys.attempt(record.shard, generation=generation).rpartition("/")[2]
        for name in store.names(store_keys.STAGING, prefix):
            store.remove_tree(f"{store_keys.STAGING}/{name}")


def _current(store: SimulatedObjects, shard: int) -> Stated | None:
    found, generation = None, 0
    while True:
        try:
            read = store.read(store_keys.record(shard, generation))
        except FileNotFoundError:
            return found
        if read == MARK:
            raise errors.StoreError("the shard is being taken down")
        found, generation = read, generation + 1


def _stated(shard: int, generation: int, worker: str) -> Stated:
    attempt = f"{worker}{shard}"
    return Stated(shard, generation, attempt, tuple(f"{attempt}.{generation}.{array}" for array in ARRAYS))


def _place(shard: int, at: int) -> str:
    return LENS.arrays[at].format(shard)


def share(shard: int, broken: str = "") -> Task:
    """Claim a shard, work, release it. The heartbeat lasts until it is removed, or the process ends."""

    def run(store: SimulatedObjects) -> Hashable:
        owner, works = f"{store.worker}:{uuid.uuid4().hex}", f"{PROCESS}/{store.worker}/works:{shard}"
        store.replace(_heartbeat(owner), "")
        key = _take(store, shard, owner, broken)
        if key:
            store.replace(works, "")
            store.remove(works)
            store.remove(key)
        store.remove(_heartbeat(owner))
        return "done" if key else "left"

    return Task(f"share {shard}", run)


def _take(store: SimulatedObjects, shard: int, owner: str, broken: str) -> str:
    """Return the key of the claim, "" if another holds the shard."""
    claims = _claims(store, shard)
    if any(store.size(_heartbeat(holder)) is not None for holder in claims.values()):
        return ""
    number = max(claims, default=-1) + 1
    key = f"{store_keys.CLAIMS}/s{shard}.{number}"
    if broken == "takeover-replaces":
        store.replace(key, owner)
    else:
        try:
            store.create(key, owner, via=f"_txn/via-{store.worker}")
        except FileExistsError:
            return ""
    now = _claims(store, shard)
    if now.pop(number, "") != owner:
        return ""
    if not now.items() <= claims.items() and broken != "claims-once":
        store.remove(key)
        return ""
    return key


def _heartbeat(owner: str) -> str:
    return f"{PROCESS}/{owner[0]}/heartbeat:{owner}"


def _claims(store: SimulatedObjects, shard: int) -> dict[int, str]:
    found = {}
    for name in store.names(store_keys.CLAIMS, f"s{shard}."):
        try:
            found[int(name.partition(".")[2])] = store.read(f"{store_keys.CLAIMS}/{name}")
        except FileNotFoundError:
            continue
    return found


def create(run_name: str, broken: str = "") -> Task:
    """Name the owner, write the files, the last of them last; for the same run any process does it."""

    def run(store: SimulatedObjects) -> Hashable:
        if broken == "create-replaces":
            store.replace("owner", run_name)
        else:
            try:
                store.create("owner", run_name, via=f"_txn/via-{store.worker}")
            except FileExistsError:
                if store.read("owner") != run_name:
                    raise errors.OtherRunError("another run") from None
        for name in ("file", "last"):
            store.replace(name, run_name)
        return run_name

    return Task(f"create {run_name}", run)


def complete_creation() -> Task:
    """Continue the creation of whatever run it is."""

    def run(store: SimulatedObjects) -> Hashable:
        try:
            return create(store.read("owner")).run(store)
        except FileNotFoundError:
            return create("f1").run(store)

    return Task("create", run)


def files_are_the_owners(contents: Contents) -> str:
    """S6: every file is of the run that was named first; the last comes last."""
    owner = contents.get("owner")
    wrong = [name for name in ("file", "last") if contents.get(name, owner) != owner]
    if wrong:
        return f"S6: {wrong} are of another run than {owner}"
    return "S6: complete without its files" if "last" in contents and "file" not in contents else ""


def owner_stays(before: Contents, after: Contents) -> str:
    """S6: the owner never changes."""
    return "S6: the owner changed" if "owner" in before and before["owner"] != after.get("owner") else ""


def created_is_there(ended: Ended, contents: Contents) -> str:
    """S6: who created a run has it, whole."""
    fine = ended.error or {contents.get(name) for name in ("owner", "file", "last")} == {ended.value}
    return "" if fine else f"S6: {ended.task} returned, and has {dict(contents)}"


def repair(broken: str = "") -> Task:
    """Take down every shard that is damaged: status, data, record; a shard without record gets a mark first."""

    def run(store: SimulatedObjects) -> Hashable:
        suspects = [shard for shard in range(2) if _is_damaged(store, shard)]
        if not suspects and store.size(store_keys.REPAIR) is None:
            return ()
        with store.lock(store_keys.REPAIR, store.worker):
            return tuple([shard for shard in suspects if _take_down(store, shard, broken)])

    return Task("repair", run)


def _take_down(store: SimulatedObjects, shard: int, broken: str) -> bool:
    if broken == "no-mark":
        marked = store.size(store_keys.record(shard)) is None
    else:
        try:
            store.create(store_keys.record(shard), MARK, via=f"_txn/via-{store.worker}")
            marked = True
        except FileExistsError:
            marked = store.read(store_keys.record(shard)) == MARK
    if not marked and not _is_damaged(store, shard):
        return False
    keys = [_place(shard, at) for at in reversed(range(len(ARRAYS)))]
    if broken == "record-is-first":
        keys = [store_keys.record(shard), *keys]
    for key in (*keys, store_keys.record(shard)):
        if store.size(key) is not None:
            store.take_away(key, f"{store_keys.SET_ASIDE}/{store.worker}/{key}")
    return True


def _is_damaged(store: SimulatedObjects, shard: int) -> bool:
    """Return whether a shard has a damaged record, wrong objects that are not about to be replaced, or no record."""
    try:
        record = _current(store, shard)
    except errors.StoreError:
        return True
    for at in range(len(ARRAYS)):
        key = _place(shard, at)
        found = store.read(key) if store.size(key) is not None else None
        if record is None:
            if found is not None:
                return True
        elif found != record.values[at]:
            staged = store_keys.attempt(shard, record.attempt, record.generation) + f"/{at}"
            if store.size(staged) is None and (store.size(key) is None or store.read(key) != record.values[at]):
                return True
    return False


def add(part: str, *others: str, broken: str = "") -> Task:
    """Make a version with one more part; of several that make a version one wins, the others look again."""

    def run(store: SimulatedObjects) -> Hashable:
        made = 0
        for each in (part, *others):
            while True:
                newest = max((int(name) for name in store.names("versions")), default=0)
                parts = store.read(f"versions/{newest}") if newest else ()
                if each in parts:
                    break
                key, version = f"versions/{newest + 1}", (*parts, each)
                try:
                    if broken == "version-replaces":
                        store.replace(key, version)
                    else:
                        store.create(key, version, via=f"_txn/via-{store.worker}")
                except FileExistsError:
                    if store.read(key) != version:
                        continue
                made = newest + 1
                break
        return made

    return Task(f"add {part}", run)


def versions_follow(contents: Contents) -> str:
    """D2, D4: each version has the parts of the one before and one more."""
    found = [contents[f"versions/{number}"] for number in range(1, 9) if f"versions/{number}" in contents]
    wrong = [after for before, after in zip(((), *found), found, strict=False) if after[:-1] != before]
    return f"D4: {wrong} does not follow the version before" if wrong else ""


def versions_stay(before: Contents, after: Contents) -> str:
    """D1: a version never changes."""
    changed = [key for key in before if key.startswith("versions/") and before[key] != after.get(key)]
    return f"D1: {changed} changed" if changed else ""


def made_is_there(ended: Ended, contents: Contents) -> str:
    """D4: who made a version has its part in it."""
    fine = ended.error or not ended.value or contents[f"versions/{ended.value}"][-1] == ended.task.split()[1]
    return "" if fine else f"D4: version {ended.value} is not that of {ended.task}"


def all_added(contents: Contents) -> str:
    """D3, D4: the newest version has every part."""
    newest = max(key for key in contents if key.startswith("versions/"))
    return "" if {*contents[newest]} >= {"p1", "p2"} else f"D4: the newest version has {contents[newest]}"


def prune(broken: str = "") -> Task:
    """Mark version 1, read tags, then mark it for good and remove its part; or take the mark back."""

    def run(store: SimulatedObjects) -> Hashable:
        with store.lock("prune.lock", store.worker):
            mark = store.read("mark") if store.size("mark") is not None else ""
            tagged = bool(store.names("", "hold-")) or store.size("tag") is not None
            if mark != "pruned":
                if tagged:
                    return "kept"
                store.replace("mark", "about to be")
                held = bool(store.names("", "hold-"))
                if broken != "tags-read-once" and (held or store.size("tag") is not None):
                    store.remove("mark")
                    return "kept"
                store.replace("mark", "pruned")
            store.remove("part")
            return "pruned"

    return Task("prune", run)


def unlock_and_prune() -> Task:
    """Remove the lock of a killed prune, then prune."""

    def run(store: SimulatedObjects) -> Hashable:
        store.remove("prune.lock")
        return prune().run(store)

    return Task("prune", run)


def tag() -> Task:
    """Tag version 1, unless it is being pruned."""

    def run(store: SimulatedObjects) -> Hashable:
        hold = f"hold-{store.worker}"
        try:
            store.replace(hold, "1")
            if store.size("mark") is not None:
                return "refused"
            store.replace("tag", "1")
        finally:
            with contextlib.suppress(OSError):
                store.remove(hold)
        with contextlib.suppress(ConnectionError):
            store.replace("confirmed", "1")
        return "tagged"

    return Task("tag", run)


def tagged_stays(contents: Contents) -> str:
    """D7: what a tag keeps is there."""
    if "confirmed" in contents and ("part" not in contents or contents.get("mark") == "pruned"):
        return "D7: a tagged version was pruned"
    return ""


def nothing_half_pruned(contents: Contents) -> str:
    """D7: in the end a version is there or pruned, and the lock is not left."""
    half = ("part" in contents) == (contents.get("mark") == "pruned")
    return "D7: half pruned" if half or "prune.lock" in contents else ""
