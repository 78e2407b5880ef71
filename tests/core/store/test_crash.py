"""Killed anywhere, raced by anyone: readers see fill or final values, and a resumed run has the same bytes."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from genenc_core.store import run_store, store_keys
from genenc_core.store.backends.objects import Root
from s3_server import ON_BOTH, ON_S3

POINTS = (
    "stage:before",
    "stage:object",
    "stage:after",
    "commit:before",
    "commit:after",
    "promote:object",
    "promote:before-status",
    "promote:after",
    "clean:after",
)


@pytest.fixture(scope="module")
def uninterrupted(small: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of a run that nobody killed."""
    root = tmp_path_factory.mktemp("whole") / "run"
    small.resume(root)
    tree: dict[str, bytes] = small.tree(root)
    return tree


@ON_BOTH
def test_the_points_are_passed_in_this_order(small: ModuleType, root: Root) -> None:
    passed: list[str] = []
    store = small.create(root, observer=passed.append)
    assert passed == []
    small.commit(store, 0)
    objects = len(store.plan.all_arrays)
    assert passed == [
        "stage:before",
        *["stage:object"] * objects,
        "stage:after",
        "commit:before",
        "commit:after",
        *["promote:object"] * (objects - 1),
        "promote:before-status",
        "promote:after",
        "clean:after",
    ]


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_a_named_point_then_resume_gives_the_same_bytes(
    small: ModuleType,
    start: Callable[..., subprocess.Popen[str]],
    root: Root,
    uninterrupted: dict[str, bytes],
    point: str,
) -> None:
    nth = 6 if point in ("stage:object", "promote:object") else 2  # in the middle of the second shard
    process = start("resume", root, "--point", point, "--nth", str(nth))
    _, error = process.communicate(timeout=300)
    assert process.returncode == -9, error
    small.check_readable(root)
    store = run_store.RunStore.open(root)
    assert store.committed() == ({0} if POINTS.index(point) < POINTS.index("commit:after") else {0, 1})
    assert store.recover() == ([1] if point in ("commit:after", "promote:object", "promote:before-status") else [])
    assert store.recover() == []
    small.check_readable(root)
    assert small.resume(root).pending() == []
    small.check_finished(root, uninterrupted)


@pytest.mark.slow
def test_kill_at_any_call_of_a_commit_is_made_good(report: Callable[..., list[str]], tmp_path: Path) -> None:
    *violations, count = report("exhaust", tmp_path / "scratch")
    assert violations == []
    assert int(count.split()[1]) >= 8


@pytest.mark.slow
@ON_BOTH
def test_processes_that_race_for_every_shard_leave_one_winner_each(
    small: ModuleType, start: Callable[..., subprocess.Popen[str]], root: Root, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    racers = [start("race", root, "--go", str(go), "--salt", str(salt)) for salt in (1, 2, 3)]
    go.touch()
    ends = [(racer.communicate(timeout=300)[1], racer.returncode) for racer in racers]
    assert ends == [("", 0)] * 3
    small.check_readable(root)
    small.check_finished(root, small.tree(root))
    store = run_store.RunStore.open(root)
    assert {store.record(shard).details["salt"] for shard in range(small.SHARDS)} <= {1, 2, 3}  # type: ignore[union-attr]


@pytest.mark.slow
@ON_BOTH
def test_a_beaten_attempt_finishes_the_winner_and_leaves_nothing(small: ModuleType, root: Root) -> None:
    """Another process commits the shard just before our link, and dies there."""
    other = small.create(root)
    mine = small.create(root, observer=lambda point: point == "commit:before" and small.commit(other, 1, salt=7))
    arrays, status = small.content(1, salt=8)
    record = mine.commit(1, arrays, status, details={"salt": 8})
    assert record.details == {"salt": 7}
    small.check_readable(root)
    assert small.litter(mine) == []


@pytest.mark.slow
@ON_BOTH
def test_an_attempt_whose_staging_the_winner_cleaned_returns_the_winner(small: ModuleType, root: Root) -> None:
    other = small.create(root)
    mine = small.create(root, observer=lambda point: point == "stage:object" and small.commit(other, 1, salt=7))
    arrays, status = small.content(1, salt=8)
    assert mine.commit(1, arrays, status, details={"salt": 8}).details == {"salt": 7}
    small.check_readable(root)
    assert small.litter(mine) == []


@ON_BOTH
def test_recover_keeps_the_staging_of_uncommitted_shards(small: ModuleType, store: run_store.RunStore) -> None:
    """A slow writer may still commit what it staged."""
    small.commit(store, 0)
    slow, left = store_keys.attempt(1, "slow"), store_keys.attempt(0, "killed")
    for folder in (slow, left):
        store.objects.make_folder(folder)
        store.objects.write_new(f"{folder}/0", b"x")
    assert store.recover() == []
    assert store.objects.size(f"{slow}/0") == 1
    assert store.objects.size(f"{left}/0") is None


@pytest.mark.slow
@ON_S3
def test_a_run_on_s3_killed_at_one_named_point_after_the_other_gives_the_same_bytes(
    small: ModuleType, start: Callable[..., subprocess.Popen[str]], root: Root, uninterrupted: dict[str, bytes]
) -> None:
    """From the first commit on it is a recovery that is killed; `store_worker.py exhaust` kills at every request."""
    store = small.create(root)
    for point in POINTS:
        process = start("resume", root, "--point", point, "--nth", "1")
        _, error = process.communicate(timeout=300)
        assert process.returncode == -9, (point, error)
        small.check_readable(root)
        assert store.committed() == (set() if POINTS.index(point) < POINTS.index("commit:after") else {0}), point
    small.resume(root)
    small.check_finished(root, uninterrupted)


@pytest.mark.slow
@ON_S3
def test_a_create_without_its_condition_is_seen(small: ModuleType, root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a server that ignores `If-None-Match`: the record is replaced, and readers see two winners' rows."""
    other = small.create(root)
    mine = small.create(root, observer=lambda point: point == "commit:before" and small.commit(other, 1, salt=7))
    monkeypatch.setattr(type(mine.objects), "create", lambda self, key, data, **_: self.replace(key, data))
    arrays, status = small.content(1, salt=8)
    mine.commit(1, arrays, status, details={"salt": 8})
    with pytest.raises(AssertionError, match="shard=1"):
        small.check_readable(root)
