"""What killed commands leave is removed by the next command that may write, and by none that only reads."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from genenc_core.run import driver, status
from genenc_core.run.folder import RunFolder

Extract = Callable[..., driver.Result]


@pytest.fixture
def run(extract: Extract, tmp_path: Path) -> Path:
    """A finished run with what a kill behind the last commit and one while planning leave."""
    extract()
    root = tmp_path / "run"
    (root / ".claim").touch()
    (root / ".plan-x1").mkdir()
    (root / ".plan-x1" / "images.parquet").write_bytes(b"half")
    return root


def litter(root: Path) -> set[str]:
    return {path.name for path in root.glob(".*")}


@pytest.mark.slow
def test_the_next_resume_removes_it_and_what_only_reads_does_not(run: Path) -> None:
    before = litter(run)
    assert before == {".claim", ".plan-x1"}
    status.survey(RunFolder(run))
    status.verify_place(run, content=True)
    assert litter(run) == before
    driver.resume(RunFolder(run))
    assert litter(run) == set()


def test_what_a_living_process_plans_stays(run: Path) -> None:
    held = os.open(run / ".claim", os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    driver.resume(RunFolder(run))
    assert {".claim", ".plan-x1"} <= litter(run)
    os.close(held)
