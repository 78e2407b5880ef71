"""The rows that a process had in work outlive it; those of a living process and settled ones are nobody's."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from genenc_core.images import inflight

CHILD = """
import os, sys
from pathlib import Path
from genenc_core.images import inflight

journal = inflight.Journal(Path(sys.argv[1]), 4)
journal.begin(0, [11])
journal.begin(1, [5])
journal.begin(2, [7])
journal.end(1)
sys.stdout.write("noted\\n")
sys.stdout.flush()
sys.stdin.read()
"""


def test_rows_of_a_killed_process_are_suspects_until_settled(tmp_path: Path) -> None:
    """While it lives they are its own; a second reader finds the same; settled rows take the file with them."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "notes")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"noted\n"
        mine, other = (inflight.Journal(tmp_path / "notes", 2) for _ in range(2))
        assert mine.suspects() == set()
        child.send_signal(signal.SIGKILL)
    assert mine.suspects() == {7, 11}
    assert other.suspects() == {7, 11}
    mine.settle(8, 20)
    assert mine.suspects() == {7}
    assert inflight.Journal(tmp_path / "notes", 2).suspects() == {7, 11}, "as long as one row is open, all are kept"
    mine.settle(0, 8)
    mine.close()
    other.close()
    assert inflight.Journal(tmp_path / "new", 1).suspects() == set()


def test_nothing_is_left_after_a_clean_end(tmp_path: Path) -> None:
    journal = inflight.Journal(tmp_path / "notes", 2)
    journal.begin(1, [3])
    journal.end(1)
    assert list((tmp_path / "notes").iterdir())
    journal.close()
    journal.begin(0, [1])
    assert not (tmp_path / "notes").exists()


def test_a_row_that_was_settled_while_its_thread_hangs_is_no_suspect(tmp_path: Path) -> None:
    """Its own process keeps the file, because it cannot end the thread; the next one finds only what is open."""
    journal = inflight.Journal(tmp_path, 3)
    journal.begin(0, [4])
    journal.begin(2, [9])
    journal.settle(0, 8)
    (file,) = tmp_path.glob("*.rows")
    assert inflight._left_behind(file) is None, "it is locked by a living process"
    (tmp_path / "copy.rows").write_bytes(file.read_bytes())
    assert inflight.Journal(tmp_path, 1).suspects() == {9}
    journal.close(hung=True)
    assert file.exists()
    journal.settle(8, 10)
    journal.close(hung=True)
    assert not file.exists()
    journal.end(2)
    journal.close()


def test_rows_noted_while_others_are_settled_stay_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread begins with its next rows just when those before them, in the same place, were found to be stored."""
    journal, read = inflight.Journal(tmp_path, 1), inflight._rows
    begins = threading.Thread(target=journal.begin, args=(0, [100, 101]))

    def found(descriptor: int) -> list[int]:
        rows = read(descriptor)
        if not begins.ident:
            begins.start()
            begins.join(0.2)
        return rows

    journal.begin(0, [0, 1, 2])
    monkeypatch.setattr(inflight, "_rows", found)
    journal.settle(0, 8)
    begins.join(10)
    (file,) = tmp_path.glob("*.rows")
    (tmp_path / "copy.rows").write_bytes(file.read_bytes())
    assert inflight.Journal(tmp_path, 1).suspects() == {100, 101}
    journal.close()


def test_no_folder_and_a_folder_that_cannot_be(tmp_path: Path) -> None:
    """Notes are a help, not a condition."""
    (tmp_path / "file").write_text("")
    for folder in (None, tmp_path / "file" / "notes"):
        journal = inflight.Journal(folder, 2)
        journal.begin(0, [1])
        journal.end(0)
        journal.settle(0, 5)
        assert journal.suspects() == set()
        journal.close()


def test_a_damaged_file_says_what_it_can(tmp_path: Path) -> None:
    (tmp_path / "1-a.rows").write_bytes((3).to_bytes(8, "little") + b"\x01")
    (tmp_path / "2-b.rows").write_bytes(b"")
    assert inflight.Journal(tmp_path, 1).suspects() == {3}
    assert not (tmp_path / "2-b.rows").exists()
