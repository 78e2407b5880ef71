"""The command line in this process, without Prefect, on drawn images."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

import command_line
import pictures


@dataclasses.dataclass(frozen=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str


@pytest.fixture
def genenc() -> Callable[..., Said]:
    """Return a call of the command line; an exception that is not an exit fails the test."""

    def call(*arguments: object) -> Said:
        done = command_line.call([str(item) for item in arguments])
        return Said(done.exit_code, done.stdout, done.stderr)

    return call


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of 6 PNG images."""
    return pictures.write_folder(tmp_path / "photos", 6)


@pytest.fixture
def tiny() -> list[str]:
    """Return options for a model of a few weights."""
    return ["--model", "tiny_models:conv", "--weights", "random:0", "--image-size", "32", "--device", "cpu"]
