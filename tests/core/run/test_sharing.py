"""Several processes on one run folder share its shards without a coordinator, and go on for one that is killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import forked
import genenc_core
import pictures
from genenc_core import errors
from genenc_core.run import driver, records, status, worker
from genenc_core.run.folder import RunFolder
from genenc_core.store import leases, store_keys

PROGRAM = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
from genenc_core.images.load import decode_server
from genenc_core.run import driver
from genenc_core.run.folder import RunFolder
decode_server.prepare()
driver.resume(RunFolder(sys.argv[1]))
"""

Starter = Callable[[Path], "subprocess.Popen[str]"]


@pytest.fixture
def resume() -> Iterator[Starter]:
    """Start `resume` in a process of its own that logs every shard that it encodes."""
    support = (str(Path(genenc_core.__file__).parents[1]), str(Path(pictures.__file__).parent))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(support), "OMP_NUM_THREADS": "1"}
    started: list[subprocess.Popen[str]] = []

    def start(root: Path) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", PROGRAM, str(root)]
        started.append(forked.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def unfinished(extract: Callable[..., driver.Result], tmp_path: Path) -> Path:
    """A run of 11 shards of one image, with an encoder that takes its time, of which nothing is encoded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver.Session, "encode_all", lambda *_: [])
        extract(model="tiny_models:slow", shard_rows=1, batch_size=1)
    return tmp_path / "run"


def encoded(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"^shard (\d+): \d+ images", text, flags=re.MULTILINE)]


@pytest.mark.slow
def test_three_processes_share_the_work_and_do_nothing_twice(
    extract: Callable[..., driver.Result], unfinished: Path, resume: Starter, tmp_path: Path
) -> None:
    processes = [resume(unfinished) for _ in range(3)]
    done = [encoded(process.communicate(timeout=300)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(shard for shards in done for shard in shards) == list(range(11))
    assert status.verify_place(unfinished, content=True).ok
    assert not (unfinished / store_keys.CLAIMS).exists()
    extract(model="tiny_models:slow", shard_rows=1, batch_size=1, out=str(tmp_path / "alone"))
    group = Path(store_keys.GROUP)
    files = sorted(path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone" / group).rglob("c.*"))
    assert all((unfinished / name).read_bytes() == (tmp_path / "alone" / name).read_bytes() for name in files)


@pytest.mark.slow
def test_the_work_of_a_killed_process_is_taken_over(unfinished: Path, resume: Starter) -> None:
    victim = resume(unfinished)
    folder = unfinished / store_keys.CLAIMS
    while not (folder.exists() and list(folder.glob("s*"))):
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    left = list(folder.glob("s*"))
    survivor = resume(unfinished)
    survivor.communicate(timeout=300)
    assert left
    assert survivor.returncode == 0
    assert status.run_status(RunFolder(unfinished)).complete
    assert [path.name for path in folder.glob("*")] == []


@pytest.fixture
def other(unfinished: Path) -> Iterator[leases.Leases]:
    """Another worker, in this process, that holds shard 4."""
    found = leases.Leases(RunFolder(unfinished).objects)
    assert found.take(4)
    yield found
    found.close()


def worked(root: Path) -> worker.Worker:
    """A worker that found every shard but 4 free, and did them."""
    run = RunFolder(root)
    options = records.Options.of(run.given)
    mine = worker.WORKERS.get(run, options)
    outcome = worker.encode_shards(run, range(11), options)
    assert outcome.held == [4]
    assert len(outcome.reports) == 11
    return mine


@pytest.mark.slow
def test_a_shard_that_is_given_up_is_done_here(unfinished: Path, other: leases.Leases) -> None:
    mine = worked(unfinished)
    other.release(4)
    assert mine.wait_for([4]) == [4]
    assert not mine.encode(4).held
    mine.close()


@pytest.mark.slow
def test_elsewhere_failed_shard_left(unfinished: Path, other: leases.Leases, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = worked(unfinished)
    RunFolder(unfinished).note_failure(4, "the disk is on fire", "another session")
    other.release(4)
    assert mine.wait_for([4]) == []
    mine.close()
    (unfinished / "provenance/runs").mkdir(exist_ok=True)
    records.write_json(mine.folder.objects, f"provenance/runs/{mine.options.session}.json", {})
    result = driver.finish(RunFolder(unfinished), range(11), mine.options)
    assert [str(failure) for failure in result.failures] == [
        str(errors.ShardError(4, "in another session: the disk is on fire"))
    ]


@pytest.mark.slow
def test_shard_done_elsewhere_is_left(unfinished: Path, other: leases.Leases, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = worked(unfinished)
    waits = []

    def commit_meanwhile(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            second = worker.Worker(mine.folder, records.Options.of(mine.folder.given))
            second.claims = other
            other._held.clear()
            monkeypatch.setattr(second.claims, "take", lambda _: True)
            second.encode(4)

    monkeypatch.setattr(worker.time, "sleep", commit_meanwhile)
    assert mine.wait_for([4]) == []
    assert waits[:2] == [worker.FIRST_WAIT_SECONDS, 2 * worker.FIRST_WAIT_SECONDS]
    assert status.run_status(RunFolder(unfinished)).complete
    mine.close()


@pytest.mark.slow
def test_the_sign_of_life_names_no_more_than_a_process(unfinished: Path, other: leases.Leases) -> None:
    told = json.loads((unfinished / store_keys.CLAIMS / other.owner).read_text())
    assert set(told) == {"host", "pid", "machine", "began", "beat"}
