"""Engines: a local Dask or Ray cluster of two processes stores the bytes of threads, also when one is killed."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import pictures
from genenc_core import errors
from genenc_core.cli.runners import PlainRunner
from genenc_core.run import driver
from genenc_core.run.parameters import ExtractParameters
from genenc_flows import engines, extraction

ENGINES = ("dask", "ray")


def given(tmp_path: Path, out: str, **changes: object) -> ExtractParameters:
    values = {
        "images": str(tmp_path / "photos"),
        "model": "tiny_models:conv",
        "weights": "random:0",
        "image_size": "32",
        "out": str(tmp_path / out),
        "shard_rows": 2,
        "batch_size": 2,
        "device": "cpu",
        "decode_workers": 1,
        "trust": True,
    }
    return ExtractParameters.model_validate({**values, **changes})


def stored(root: Path) -> dict[str, bytes]:
    store = root / "features.zarr"
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}


@pytest.fixture
def workers_see_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are processes of their own: they import `tiny_models` from where this process does."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))


@contextlib.contextmanager
def killed_after_the_first_shard(root: Path, killed: list[int]) -> Iterator[None]:
    """Kill the process that holds a shard, once one is committed."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            if not [*(root / "_txn" / "commits").glob("s*.json")]:
                continue
            for victim in workers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    killed.append(victim)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def workers() -> list[int]:
    """Return the processes below this one that run tasks: they have imported the model's module."""
    found, pending = [], [os.getpid()]
    while pending:
        process = pending.pop()
        for task in Path(f"/proc/{process}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                pending += map(int, task.read_text().split())
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{process}/cmdline").read_bytes()
            if b"ray::" in words or (b"multiprocessing.spawn" in words and b"spawn_main" in words):
                found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server", "workers_see_the_tests")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_cluster_stores_the_bytes_of_threads_also_when_a_worker_is_killed(tmp_path: Path, engine: str) -> None:
    pytest.importorskip(f"prefect_{engine}")
    pictures.write_folder(tmp_path / "photos", 24)
    driver.extract(given(tmp_path, "plain"))
    parameters, killed = given(tmp_path, engine, engine=engine), list[int]()
    with killed_after_the_first_shard(tmp_path / engine, killed):
        state = extraction.extract_features(parameters, shards_per_task=1, return_state=True)
    if not state.is_completed():  # a task whose worker was killed may fail: the same command goes on
        state = extraction.extract_features(parameters, shards_per_task=1, return_state=True)
    assert killed
    assert state.is_completed(), state.message
    assert stored(tmp_path / engine) == stored(tmp_path / "plain")


def test_an_engine_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prefect_dask", None)
    words = r"--engine dask is not installed: pip install 'genenc\[dask\]'"
    with pytest.raises(errors.InputError, match=words), engines.started(engines.Choice(kind="dask")):
        pass


def test_an_engine_needs_prefect(tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match="--engine ray works through Prefect: leave out --plain"):
        PlainRunner().extract(given(tmp_path, "run", engine="ray"))
