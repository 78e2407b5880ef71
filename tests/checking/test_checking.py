"""Two workers on a simulated store: every state they can reach keeps the promises; a broken protocol is found."""

import contextlib
import re
from collections.abc import Iterator

import pytest

import real_store
import scenes
from enumerator import Scene, Search, explore

FOUND = {
    "create-replaces": r"S6: (the owner|store\.json) changed",
    "last-wins": r"S3: shard 0: its record changed",
    "record-first": r"neither (staged nor in place|in place nor staged)",
    "conflict-is-loss": r"neither (staged nor in place|in place nor staged)",
    "promote-first": r"S1: shard 0: features is of no record",
    "status-first": r"S2: shard 0 has its status without its data",
    "early-clean": r"neither (staged nor in place|in place nor staged)",
    "cleans-later": r"S4: Shard\(number=0|neither in place nor staged|missing \(_txn/staging",
    "heal-last-wins": r"S3: shard 0: its record changed",
    "heal-over-staged": r"S3: shard 0: features changed from \S*",
    "takeover-replaces": r"claims: .*'process/a/works:0', 'process/b/works:0'",
    "claims-once": r"claims: .*'process/a/works:0', 'process/b/works:0'",
    "no-mark": r"S9: shard 0 was intact, and is not any more",
    "record-is-first": r"S9: features.zarr/features/c\.0 is nowhere",
    "version-replaces": r"D1: .* changed",
    "tags-read-once": r"D7: a tagged version (was pruned|counts as pruned)",
}


@pytest.fixture(autouse=True)
def steady() -> Iterator[None]:
    with real_store.steady():
        yield


SMALL = {f"{scene.name}, {scene.lost} lost": scene for scene in scenes.small()}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_reachable_state_keeps_the_promises(name: str) -> None:
    found = explore(SMALL[name])
    assert found.violation == "", "\n".join(found.schedule)
    assert found.ends > 1
    tasks = {task.name for worker in SMALL[name].workers for task in worker}
    well = {end.partition(":")[0] for end in found.outcomes if "Error" not in end}
    assert well == tasks  # each is reached, and ends without an error


@pytest.mark.parametrize("kind", scenes.KINDS)
@pytest.mark.parametrize("system", [scenes.MODEL, scenes.REAL])
def test_shards_share_no_key(system: str, kind: str) -> None:
    """So schedules of several shards are as many schedules of one each."""
    search = Search(scenes.commit(system, kind, workers=2, shards=2))
    search.explore(most=2_000)
    keys = search.keys()
    assert min(len(keys["commit 0"]), len(keys["commit 1"])) > 5
    assert not keys["commit 0"] & keys["commit 1"]


def broken_scenes() -> Iterator[tuple[str, str, str]]:
    for how, (protocol, _, asked) in scenes.BROKEN.items():
        for system in (scenes.MODEL, scenes.REAL):
            for kind in scenes.KINDS:
                needs_s3 = "lost" in asked or (system, protocol) == (scenes.REAL, "create")
                if kind == scenes.S3 or not needs_s3:
                    yield how, system, kind


@pytest.mark.parametrize(("how", "system", "kind"), list(broken_scenes()))
def test_a_protocol_broken_on_purpose_is_found(how: str, system: str, kind: str) -> None:
    _, make, asked = scenes.BROKEN[how]
    breaking = scenes.break_real_code(how) if system == scenes.REAL else contextlib.nullcontext()
    with breaking:
        found = explore(make(system, kind, broken=how, **asked), most=100_000)
    assert re.search(FOUND[how], found.violation), found.violation
    assert found.schedule


def test_a_violation_is_found_by_its_shortest_schedule() -> None:
    scene: Scene = scenes.commit(scenes.MODEL, scenes.S3, workers=2, shards=1, broken="status-first")
    found = explore(scene)
    assert found.schedule == [
        "a: read _txn/commits/s0000000.json -> missing",
        "a: put _txn/staging/s0000000-a0/0 a0.0.features  -> ok",
        "a: put _txn/staging/s0000000-a0/1 a0.0.status  -> ok",
        "a: create _txn/commits/s0000000.json -> ok",
        "a: copy _txn/staging/s0000000-a0/1 features.zarr/status/c.0 -> ok",
    ]
