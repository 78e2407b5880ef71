"""Claims: one holder at a time, taken over from the dead alone, never in the way of the work."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from genenc_core.store import leases, store_keys
from genenc_core.store.backends import local


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def objects(tmp_path: Path) -> local.LocalObjects:
    return local.LocalObjects(tmp_path)


def claim_files(objects: local.LocalObjects) -> list[str]:
    return sorted(objects.names(store_keys.CLAIMS, "s"))


def elsewhere(objects: local.LocalObjects, worker: leases.Leases, *, beat: int = 1) -> None:
    """Let a worker's sign of life come from another machine, whose processes cannot be looked at."""
    key = f"{store_keys.CLAIMS}/{worker.owner}"
    told = json.loads(objects.read(key))
    objects.replace(key, json.dumps({**told, "machine": "another", "beat": beat}).encode())


def test_a_shard_has_one_holder_until_it_is_released(objects: local.LocalObjects) -> None:
    one, two = leases.Leases(objects), leases.Leases(objects)
    assert one.take(3)
    assert not two.take(3)
    assert not one.take(3)
    assert two.take(4)
    assert two.holder(3) == f"process {os.getpid()} on {os.uname().nodename}"
    one.release(3)
    assert two.holder(3) == ""
    assert two.take(3)
    one.close()
    two.close()
    assert list(objects.names(store_keys.CLAIMS)) == []


def test_of_many_takers_one_wins(objects: local.LocalObjects) -> None:
    workers = [leases.Leases(objects) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for shard in range(10):
            assert sum(pool.map(lambda worker, shard=shard: worker.take(shard), workers)) == 1
    for worker in workers:
        worker.close()
    assert list(objects.names(store_keys.CLAIMS)) == []


def test_of_many_takers_of_a_dead_workers_shard_one_wins(objects: local.LocalObjects) -> None:
    dead = leases.Leases(objects)
    assert dead.take(0)
    objects.remove(f"{store_keys.CLAIMS}/{dead.owner}")
    workers = [leases.Leases(objects) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda worker: worker.take(0), workers)) == 1
    assert claim_files(objects) == ["s0000000.0", "s0000000.1"]


def test_a_killed_process_of_this_machine_holds_nothing(objects: local.LocalObjects) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from genenc_core.store import leases as claims; "
        "from genenc_core.store.backends import local\n"
        "worker = claims.Leases(local.LocalObjects(Path(sys.argv[1])))\n"
        "assert worker.take(0) and worker.take(1); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(objects.root)], check=False).returncode == -9
    worker = leases.Leases(objects)
    assert claim_files(objects) == ["s0000000.0", "s0000001.0"]
    assert worker.take(0)
    worker.close()
    worker.sweep()
    assert not objects.path(store_keys.CLAIMS).exists()


def test_what_a_kill_while_claiming_leaves_is_swept(objects: local.LocalObjects) -> None:
    worker = leases.Leases(objects)
    assert worker.take(0)
    worker.close()
    objects.write_new(f"{store_keys.CLAIMS}/new-worker-{32 * 'a'}", b"worker-x")
    worker.sweep()
    assert not objects.path(store_keys.CLAIMS).exists()


def test_a_worker_elsewhere_is_dead_when_its_sign_stays_the_same_for_a_lease(objects: local.LocalObjects) -> None:
    clock = Clock()
    far, here = leases.Leases(objects, lease=1e6), leases.Leases(objects, lease=60, clock=clock)
    assert far.take(0)
    elsewhere(objects, far)
    assert not here.take(0)
    clock.now += 59
    assert not here.take(0)
    elsewhere(objects, far, beat=2)
    clock.now += 59
    assert not here.take(0)
    clock.now += 59
    assert not here.take(0)
    clock.now += 2
    assert here.take(0)
    assert not far.take(0)


def test_leases_of_several_dead_workers_expire_together(objects: local.LocalObjects) -> None:
    clock = Clock()
    for number in range(3):
        dead = leases.Leases(objects, clock=clock)
        dead._beat()
        objects.replace(f"{store_keys.CLAIMS}/s0000000.{number}", dead.owner.encode())
        elsewhere(objects, dead)
    later = leases.Leases(objects, clock=clock)
    assert not later.take(0)
    clock.now += leases.LEASE_SECONDS
    assert later.take(0)
    later.close()


def test_jumping_clock_frees_no_claim(objects: local.LocalObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases are counted on a clock that only goes forward."""
    far, here = leases.Leases(objects), leases.Leases(objects)
    assert far.take(0)
    elsewhere(objects, far)
    assert not here.take(0)
    for jump in (1e9, 0.0):
        monkeypatch.setattr("time.time", lambda jump=jump: jump)
        assert not here.take(0)


@pytest.mark.slow
def test_signs_of_life_are_given_by_themselves(objects: local.LocalObjects) -> None:
    worker = leases.Leases(objects, lease=0.08)
    assert worker.take(0)
    key = f"{store_keys.CLAIMS}/{worker.owner}"
    seen = {objects.read(key) for _ in range(400) if not worker._ended.wait(0.001)}
    assert len(seen) > 3
    worker.close()


@pytest.mark.parametrize("text", [b"", b"nobody", b"worker-/../../x", b"\xff\xfe", b"worker-gone"])
def test_a_claim_of_nobody_living_is_taken_over(objects: local.LocalObjects, text: bytes) -> None:
    objects.make_folder(store_keys.CLAIMS)
    objects.write_new(f"{store_keys.CLAIMS}/s0000000.0", text)
    objects.write_new(f"{store_keys.CLAIMS}/s0000000.x", b"")
    worker = leases.Leases(objects)
    assert worker.take(0)
    worker.close()


def test_a_folder_without_room_for_claims_is_worked_on_all_the_same(
    objects: local.LocalObjects, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local.LocalObjects, "replace", full)
    worker = leases.Leases(objects)
    assert worker.take(0)
    assert "without a claim" in caplog.text
    worker.close()


def test_a_sweep_leaves_living_workers_alone(objects: local.LocalObjects) -> None:
    one, two = leases.Leases(objects), leases.Leases(objects)
    assert one.take(0)
    two.sweep()
    assert claim_files(objects) == ["s0000000.0"]
    one.close()
    two.sweep()
    assert not objects.path(store_keys.CLAIMS).exists()
