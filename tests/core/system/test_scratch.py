"""Temporary folders end with their processes, however these end."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from genenc_core.system import scratch

PROGRAM = """
import sys, time
from genenc_core.system import scratch
made = scratch.TemporaryFolder("test")
print(made.name, flush=True)
time.sleep(60)
"""


def old(folder: Path) -> Path:
    os.utime(folder, (1, 1))
    return folder


def test_the_folder_of_a_killed_process_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "genenc-other").mkdir()
    (tmp_path / "genenc-test-link").symlink_to(tmp_path / "genenc-other")
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        held = old(Path(process.stdout.readline().strip()))
        with scratch.TemporaryFolder("test") as own:
            assert held.is_dir()  # its process lives
            assert Path(own).is_dir()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert held.is_dir()
    with scratch.TemporaryFolder("test") as own:
        assert not held.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["genenc-other", "genenc-test-link"]


def test_a_folder_that_was_just_made_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between making and locking it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = tmp_path / "genenc-test-x"
    made.mkdir()
    (made / ".lock").write_text(socket.gethostname())
    scratch.remove_abandoned()
    assert made.is_dir()
    other = tmp_path / "genenc-test-y"
    other.mkdir()
    (other / ".lock").write_text("another.machine")
    old(made)
    old(other)
    scratch.remove_abandoned()
    assert not made.exists()
    assert other.is_dir()
