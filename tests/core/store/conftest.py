"""The small run that all store tests use, and the programs that their processes run."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from genenc_core.store import run_store

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
def store(small: ModuleType, tmp_path: Path) -> run_store.RunStore:
    """A created run with nothing committed."""
    created: run_store.RunStore = small.create(tmp_path / "run")
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

    def begin(program: str, root: Path, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(WORKER), program, str(root), *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return begin


@pytest.fixture
def report(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., list[str]]:
    """Run a program of `store_worker.py` to its end and return the lines it found."""

    def run(program: str, root: Path, *arguments: str) -> list[str]:
        root.mkdir(exist_ok=True)
        output, error = start(program, root, *arguments).communicate(timeout=120)
        assert output, error
        found: list[str] = json.loads(output)
        return found

    return run
