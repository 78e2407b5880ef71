"""Files created once per test session for all pytest-xdist workers."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ceph


def shared(config: pytest.Config, name: str) -> Path:
    """Return a folder shared by the pytest-xdist workers of one session."""
    base = Path(config._tmp_path_factory.getbasetemp())  # type: ignore[attr-defined]
    return (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / name


def made_once(config: pytest.Config, name: str, make: Callable[[Path], Any]) -> Any:
    """Return the result of `make(folder)`, computed by the first worker; the others wait for it."""
    place = shared(config, name)
    place.mkdir(parents=True, exist_ok=True)
    made = place / "made.pickle"
    with ceph.locked(place / "lock"):
        if not made.exists():
            data = pickle.dumps(make(place / "files"))
            made.write_bytes(data)
        return pickle.loads(made.read_bytes())
