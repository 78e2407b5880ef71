"""The scenes that are searched: of the model and of the real code, local and on S3; and protocols broken on purpose."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Final
from unittest import mock

import model
import real_dataset
import real_store
import store_promises as promises
from enumerator import Scene
from genenc_core.dataset import prune
from genenc_core.store import commit_record, repair, store_keys, transaction, verify
from genenc_core.store.backends.objects import Objects
from simulated_store import LOCAL, S3, SimulatedObjects, Task

MODEL: Final = "model"
REAL: Final = "real code"
KINDS: Final = (LOCAL, S3)


def commit(system: str, kind: str, *, workers: int, shards: int, broken: str = "", **more: Any) -> Scene:
    """Every worker wants every shard, the second one after a recovery."""
    code = _code(system)
    tasks = [[_task(code.commit, shard, broken) for shard in range(shards)] for _ in range(workers)]
    if system == REAL:
        tasks[1].insert(0, real_store.recover())
    return _of_store(system, kind, "commit", contents=_empty(system, kind), workers=tasks, **more)


def heal(system: str, kind: str, *, workers: int, unfinished: bool = False, broken: str = "", **more: Any) -> Scene:
    """Shard 0 is committed and healed by all; or not in place yet, and put there by the last of them."""
    code = _code(system)
    tasks = [[_task(code.heal, 0, broken)] for _ in range(workers)]
    contents = _committed(system, kind)
    if unfinished:
        contents, tasks[-1] = _taken_back(contents, code.LENS, kind), [code.commit(0)]
    more = {"finisher": code.resume(healing=True), **more}
    name = "heal, unfinished" if unfinished else "heal"
    return _of_store(system, kind, name, contents=contents, workers=tasks, **more)


def repairs(system: str, kind: str, how: str, *, workers: int, broken: str = "", **more: Any) -> Scene:
    """Shard 0 is damaged (`flipped`) or without its record (`unrecorded`); some repair it, the last commits it."""
    code = _code(system)
    contents, feature = _committed(system, kind), promises.Lens(None, None).arrays[0].format(0)  # type: ignore[arg-type]
    record = store_keys.record(0)
    if how == "unrecorded":
        del contents[record]
    else:
        contents[feature] = "other" if system == MODEL else contents[feature][:-1] + b"?"
    mend = model.repair(broken) if system == MODEL else real_store.mend()
    steps = [promises.whole_shards_stay(code.LENS)]
    if how == "flipped":
        steps.append(promises.nothing_is_deleted(code.LENS))
    return dataclasses.replace(
        _of_store(system, kind, f"repair, {how}", contents=contents, workers=()),
        workers=[*[[mend]] * (workers - 1), [code.commit(0)]],
        finisher=code.resume(mending=True),
        always=[promises.status_implies_objects(code.LENS)],
        steps=steps,
        returned=(),
        may_fail=True,
        **more,
    )


def claim(system: str, kind: str, *, workers: int, broken: str = "", **more: Any) -> Scene:
    """All claim one shard; the first does so again, in a process of its own."""
    share = _task(_code(system).share, 0, broken)
    return Scene(
        name=f"claim, {system}, {kind}",
        kind=kind,
        contents={f"{store_keys.CLAIMS}/": b""} if kind == LOCAL else {},
        static=_static(system),
        raises=_raises(system),
        workers=[[share, share], *[[share]] * (workers - 1)],
        finisher=share,
        always=[real_store.one_holder],
        **more,
    )


def create(system: str, kind: str, *, runs: str, broken: str = "", **more: Any) -> Scene:
    """Processes create runs at one place: 1 and 2 differ."""
    code = _code(system)
    make = real_store.publish if system == REAL else model.create
    tasks = [[_task(make, f"f{run}", broken if system == MODEL else "")] for run in runs]
    return Scene(
        name=f"create {runs}, {system}, {kind}",
        kind=kind,
        contents={},
        raises=_raises(system),
        workers=tasks,
        finisher=real_store.publish("f1", "f2") if system == REAL else model.complete_creation(),
        always=[real_store.group_is_its_owners if system == REAL else model.files_are_the_owners],
        steps=[code.owner_stays],
        returned=[code.created_is_there],
        may_fail=len({*runs}) > 1,
        **more,
    )


def version(system: str, kind: str, *, workers: int, broken: str = "", **more: Any) -> Scene:
    """Each adds a part to a dataset."""
    numbers = range(1, workers + 1)
    if system == MODEL:
        tasks = [[model.add(f"p{number}", broken=broken)] for number in numbers]
        finisher, end = model.add("p1", "p2"), model.all_added
        always, steps, returned = model.versions_follow, model.versions_stay, model.made_is_there
    else:
        tasks = [[real_dataset.add(number)] for number in numbers]
        finisher, end = real_dataset.add(*numbers), real_dataset.all_added(*numbers)
        always, steps = real_dataset.chain_is_intact, real_dataset.versions_stay
        returned = real_dataset.made_is_there
    return Scene(
        name=f"version, {system}, {kind}",
        kind=kind,
        contents={"versions/": b""} if kind == LOCAL else {},
        raises=_raises(system),
        workers=tasks,
        finisher=finisher,
        always=[always],
        steps=[steps],
        returned=[returned],
        end=[end],
        **more,
    )


def pruning(system: str, kind: str, *, workers: int, broken: str = "", **more: Any) -> Scene:
    """One prunes version 1 while others tag it."""
    if system == MODEL:
        contents: dict[str, Any] = {"part": "1"}
        tasks, finisher = [[model.prune(broken)], *[[model.tag()]] * (workers - 1)], model.unlock_and_prune()
        always, end, steps = model.tagged_stays, model.nothing_half_pruned, []
    else:
        contents = dict(real_dataset.two_versions())
        tasks, finisher = (
            [[real_dataset.pruned()], *[[real_dataset.tag(1)]] * (workers - 1)],
            real_dataset.pruned(unlock=True),
        )
        always, end, steps = real_dataset.tagged_stays, real_dataset.nothing_half_pruned, [real_dataset.versions_stay]
    return Scene(
        name=f"prune, {system}, {kind}",
        kind=kind,
        contents=contents if kind == LOCAL else {key: contents[key] for key in contents if not key.endswith("/")},
        raises=_raises(system),
        workers=tasks,
        finisher=finisher,
        always=[always],
        steps=steps,
        end=[end],
        may_fail=True,
        **more,
    )


def _of_store(system: str, kind: str, name: str, **more: Any) -> Scene:
    lens, late = _code(system).LENS, bool(more.get("delays"))
    given: dict[str, Any] = {
        "static": _static(system),
        "raises": _raises(system),
        "finisher": _code(system).resume(),
        "always": [promises.final_values_only(lens), promises.status_implies_data(lens)],
        "steps": [promises.nothing_changes(lens)],
        "returned": [promises.committed_is_stored(lens)],
        "end": [promises.all_is_done(lens, litter=late), *([real_store.verified(kind)] if system == REAL else [])],
    }
    return Scene(name=f"{name}, {system}, {kind}", kind=kind, **{**given, **more})


def _code(system: str) -> Any:
    return model if system == MODEL else real_store


def _task(make: Callable[..., Task], argument: Any, broken: str) -> Task:
    """Return a task, broken if it is the model's; the real code is patched."""
    return make(argument, broken) if make.__module__ == model.__name__ else make(argument)


def _raises(system: str) -> tuple[type[BaseException], ...]:
    return (OSError,) if system == MODEL else ()


def _static(system: str) -> Any:
    return real_store.created() if system == REAL else {}


def _empty(system: str, kind: str) -> dict[str, Any]:
    return dict(real_store.FOLDERS) if system == REAL and kind == LOCAL else {}


def _committed(system: str, kind: str) -> dict[str, Any]:
    if system == MODEL:
        return {**model.committed(0), **model.committed(1)}
    return real_store.after(_empty(system, kind), real_store.commit(0), real_store.commit(1), kind=kind)


def _taken_back(contents: dict[str, Any], lens: promises.Lens, kind: str) -> dict[str, Any]:
    """Return the contents before the objects of shard 0 were put in place."""
    record = lens.record(contents[store_keys.record(0)])
    assert record is not None
    staging = store_keys.attempt(0, record.attempt)
    keys = {key.format(0): f"{staging}/{at}" for at, key in enumerate(lens.arrays)}
    folder = {f"{staging}/": b""} if kind == LOCAL else {}
    return {**{keys.get(key, key): value for key, value in contents.items()}, **folder}


BROKEN: Final[dict[str, tuple[str, Callable[..., Scene], dict[str, Any]]]] = {
    "create-replaces": ("create", create, {"runs": "12"}),
    "last-wins": ("commit", commit, {"workers": 2, "shards": 1}),
    "record-first": ("commit", commit, {"workers": 2, "shards": 1}),
    "conflict-is-loss": ("commit", commit, {"workers": 2, "shards": 1, "lost": 1}),
    "promote-first": ("promote", commit, {"workers": 2, "shards": 1}),
    "status-first": ("promote", commit, {"workers": 2, "shards": 1}),
    "early-clean": ("promote", commit, {"workers": 2, "shards": 1}),
    "cleans-later": ("heal", heal, {"workers": 2}),
    "heal-last-wins": ("heal", heal, {"workers": 2}),
    "heal-over-staged": ("heal", heal, {"workers": 2, "unfinished": True, "lost": 2, "kills": 0}),
    "takeover-replaces": ("claim", claim, {"workers": 3}),
    "claims-once": ("claim", claim, {"workers": 2}),
    "no-mark": ("repair", repairs, {"workers": 2, "how": "unrecorded"}),
    "record-is-first": ("repair", repairs, {"workers": 2, "how": "flipped"}),
    "version-replaces": ("version", version, {"workers": 2}),
    "tags-read-once": ("prune", pruning, {"workers": 2}),
}
"""What is broken -> its protocol, and the scene that must find it."""


@contextlib.contextmanager
def break_real_code(how: str) -> Iterator[None]:
    """Break a protocol of the real code on purpose."""
    real_commit, real_stage, real_promote = transaction.Attempt.commit, transaction.Attempt.stage, transaction.promote
    patches: dict[str, Callable[[], Any]] = {
        "create-replaces": lambda: _replacing(store_keys.STORE_FILE),
        "last-wins": lambda: _replacing(store_keys.record(0)),
        "heal-last-wins": lambda: _replacing(store_keys.record(0, 1)),
        "takeover-replaces": lambda: _replacing(f"{store_keys.CLAIMS}/s"),
        "version-replaces": lambda: _replacing("versions/v"),
        "conflict-is-loss": lambda: mock.patch.object(
            transaction.Attempt, "commit", lambda self, record: _giving_up(self, record, real_commit)
        ),
        "record-first": lambda: mock.patch.object(
            transaction.Attempt, "stage", lambda self, *blocks, **more: _late_objects(self, real_stage, *blocks, **more)
        ),
        "promote-first": lambda: mock.patch.object(
            transaction.Attempt,
            "commit",
            lambda self, record: (real_promote(self.objects, record, observe=self.observe), real_commit(self, record))[
                1
            ],
        ),
        "status-first": lambda: mock.patch.object(transaction, "promote", _status_first(real_promote)),
        "early-clean": lambda: mock.patch.object(
            transaction,
            "promote",
            lambda at, record, *, observe, **more: (
                transaction.clean(at, record, observe=observe),
                real_promote(at, record, observe=observe, **more),
            ),
        ),
        "cleans-later": lambda: mock.patch.object(transaction, "clean", _clean_all),
        "heal-over-staged": lambda: mock.patch.object(transaction, "refuse_staged", lambda *_: None),
        "claims-once": lambda: mock.patch.object(real_store._Leases, "_claims", _seen_once(real_store._Leases._claims)),
        "no-mark": lambda: mock.patch.object(
            repair,
            "_put_placeholder",
            lambda store, shard, _aside: store.objects.size(store_keys.record(shard)) is None,
        ),
        "record-is-first": lambda: mock.patch.object(repair, "_take_down", _record_is_first(repair._take_down)),
        "tags-read-once": lambda: mock.patch.object(prune, "_tagged", _once(prune._tagged)),
    }
    with patches[how]():
        yield


def _replacing(start: str) -> Any:
    """Let names that begin so be replaced where they should be created."""
    real = SimulatedObjects.create

    def create(self: SimulatedObjects, key: str, data: Any, *, via: str) -> None:
        if key.startswith(start):
            self.replace(key, data)
        else:
            real(self, key, data, via=via)

    return mock.patch.object(SimulatedObjects, "create", create)


def _giving_up(attempt: transaction.Attempt, record: Any, real: Callable[..., Any]) -> commit_record.CommitRecord:
    """Take a conflict for a loss, without reading the record back first."""
    try:
        return _created(attempt, record)
    except FileExistsError:
        attempt.discard()
        found = transaction.own_record(attempt.objects, attempt.plan, attempt.document, attempt.shard)
        assert found is not None
        return found


def _created(attempt: transaction.Attempt, record: commit_record.CommitRecord) -> commit_record.CommitRecord:
    key = store_keys.record(attempt.shard, attempt.generation)
    folder = store_keys.attempt(attempt.shard, attempt.name, attempt.generation)
    attempt.objects.create(key, record.to_json(), via=f"{folder}/record.json")
    return record


def _late_objects(attempt: transaction.Attempt, real: Callable[..., Any], *blocks: Any, **more: Any) -> Any:
    """Commit the record before its objects are written."""
    waiting: list[tuple[str, tuple[Any, ...]]] = []

    class Waiting:
        def __getattr__(self, name: str) -> Any:
            return getattr(attempt.objects, name)

        def write_new(self, key: str, *parts: Any) -> None:
            waiting.append((key, parts))

    record = real(dataclasses.replace(attempt, objects=Waiting()), *blocks, **more)
    with contextlib.suppress(FileExistsError):
        _created(attempt, record)
    for key, parts in waiting:
        attempt.objects.write_new(key, *parts)
    return record


def _status_first(real: Callable[..., None]) -> Callable[..., None]:
    def promote(at: Objects, record: Any, **more: Any) -> None:
        *data, status = record.objects
        real(at, dataclasses.replace(record, objects=(status, *data)), **more)

    return promote


def _clean_all(at: Objects, record: Any, *, observe: Callable[[str], None]) -> None:
    """Remove what later attempts staged, too."""
    prefix = store_keys.attempt(record.shard).rpartition("/")[2].rstrip("-")
    for name in transaction.staged(at, prefix):
        at.remove_tree(f"{store_keys.STAGING}/{name}")


def _once(real: Callable[..., Any]) -> Callable[..., Any]:
    """Return what a function of a dataset's folder returned the first time."""

    def once(folder: Any) -> Any:
        if "tagged" not in folder.__dict__:
            folder.__dict__["tagged"] = real(folder)
        return folder.__dict__["tagged"]

    return once


def _seen_once(real: Callable[..., dict[int, str]]) -> Callable[..., dict[int, str]]:
    """Let a worker not see who claimed a shard since it looked, but for its own claim."""

    def claims(self: Any, shard: int) -> dict[int, str]:
        found = real(self, shard)
        if shard not in self._seen:
            self._seen[shard] = found
            return found
        own = {number: owner for number, owner in found.items() if owner == self.owner}
        return {**self._seen[shard], **own}

    return claims


def _record_is_first(real: Callable[..., bool]) -> Callable[..., bool]:
    def take_down(store: Any, shard: int, aside: Any, *, content: bool) -> bool:
        if verify.shard_problems(store, shard):
            aside.move(*store_keys.record(shard).rsplit("/", 1))
        return real(store, shard, aside, content=content)

    return take_down


def small() -> list[Scene]:
    """The scenes that the tests search: two workers."""
    found: list[Scene] = []
    for system in (MODEL, REAL):
        for kind in KINDS:
            lost = 1 if kind == S3 else 0
            found += [
                commit(system, kind, workers=2, shards=2),
                heal(system, kind, workers=2),
                *(repairs(system, kind, how, workers=2) for how in ("flipped", "unrecorded")),
                claim(system, kind, workers=2),
                version(system, kind, workers=2, lost=lost),
                pruning(system, kind, workers=2, lost=lost),
            ]
            if system == MODEL or kind == S3:  # a local run is created by other calls than those of the store
                found += [create(system, kind, runs=runs, lost=lost) for runs in ("11", "12")]
        found.append(commit(system, S3, workers=2, shards=1, lost=1))
    found.append(heal(MODEL, S3, workers=2, unfinished=True, lost=1))
    return found


def full() -> list[Scene]:
    """Three workers but for healings; lost answers and delayed requests.

    Three commit one shard, with a kill: shards share no key, so more of them are as many scenes of one each.
    """
    found: list[Scene] = []
    for kind in KINDS:
        lost = 1 if kind == S3 else 0
        found += [
            heal(MODEL, kind, workers=2, unfinished=True, lost=lost),
            *(pruning(system, kind, workers=3) for system in (MODEL, REAL)),
            claim(MODEL, kind, workers=3),
            claim(REAL, kind, workers=3),
            create(MODEL, kind, runs="112", lost=lost),
        ]
        for system in (MODEL, REAL):
            found += [repairs(system, kind, how, workers=3) for how in ("flipped", "unrecorded")]
            found.append(commit(system, kind, workers=3, shards=1, kills=1))
            found.append(version(system, kind, workers=3))
    for system in (MODEL, REAL):
        found += [
            commit(system, S3, workers=2, shards=2, lost=1),
            commit(system, S3, workers=2, shards=1, lost=1, delays=True),
            commit(system, S3, workers=2, shards=1, lost=2),
            heal(system, S3, workers=2, lost=1),
            *(repairs(system, S3, how, workers=2, lost=1) for how in ("flipped", "unrecorded")),
        ]
    found.append(create(REAL, S3, runs="112", lost=1))
    return found
