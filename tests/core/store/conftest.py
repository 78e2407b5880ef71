"""The small run that all store tests use, on a local folder or on S3, and the programs that their processes run."""

import importlib.util
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import forked
from genenc_core.store import run_store
from genenc_core.store.backends.objects import Root

WORKER = Path(__file__).with_name("store_worker.py")


@pytest.fixture(scope="session")
def small() -> ModuleType:
    """The module `store_worker.py`: plan, coordinates, content, checks."""
    description = importlib.util.spec_from_file_location("store_worker", WORKER)
    assert description is not None
    assert description.loader is not None
    module = importlib.util.module_from_spec(description)
    description.loader.exec_module(module)
    return module


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """Where runs of the test lie: `local`, or what `s3_server.ON_BOTH` says."""
    return str(getattr(request, "param", "local"))


@pytest.fixture
def root(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    """A place for a run, where nothing is yet."""
    if backend == "local":
        return tmp_path / "run"
    server = request.getfixturevalue("s3")
    return f"s3://{server.bucket}/tests/{uuid.uuid4().hex[:12]}"


@pytest.fixture
def store(small: ModuleType, root: Root) -> run_store.RunStore:
    """A created run with nothing committed."""
    created: run_store.RunStore = small.create(root)
    return created


@pytest.fixture
def full(small: ModuleType, store: run_store.RunStore) -> run_store.RunStore:
    """A run with every shard committed."""
    for shard in range(small.SHARDS):
        small.commit(store, shard)
    return store


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start a program of `store_worker.py` in its own process."""

    def begin(program: str, root: Root, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", WORKER.stem, program, str(root), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(WORKER.parent)}
        return forked.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return begin


@pytest.fixture
def report(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., list[str]]:
    """Run a program of `store_worker.py` to its end and return the lines it found."""

    def run(program: str, root: Root, *arguments: str) -> list[str]:
        if isinstance(root, Path):
            root.mkdir(exist_ok=True)
        output, error = start(program, root, *arguments).communicate(timeout=300)
        assert output, error
        found: list[str] = json.loads(output)
        return found

    return run
