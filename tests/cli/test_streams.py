"""Standard streams that are closed, full or left by their reader: a sentence, the exit code, never a traceback."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

COMMAND = f"{sys.executable} -c 'from genenc_core.cli import app; app.run()'"


def run(shell: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", shell.replace("GENENC", COMMAND)],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shell", "code", "words"),
    [
        ("GENENC schema >/dev/full", 1, "standard output cannot be written: No space left on device"),
        ("GENENC schema >&-", 0, ""),
        ("GENENC schema 2>&- >/dev/null", 0, ""),
        ("GENENC status nothing >&- 2>&- <&-", 2, ""),
        ("GENENC status nothing --json >/dev/full", 1, "No space left on device"),
        ("GENENC schema | head -c 1 >/dev/null", 0, ""),
        ("set -o pipefail; GENENC schema | true", 141, ""),
        ("set -o pipefail; PYTHONUNBUFFERED=1 GENENC status --help | true", 141, ""),
        ("GENENC status $'\\xff'", 2, "is not a run folder"),
        ("LC_ALL=C PYTHONUTF8=0 GENENC status $'\\xff\\xe4'", 2, "is not a run folder"),
        ("mkdir gone && cd gone && rmdir ../gone && GENENC status nothing", 2, "the working directory was deleted"),
        ("env -u HOME GENENC status nothing", 2, "is not a run folder"),
        ('setsid -w bash -c "GENENC schema" >/dev/null <&-', 0, ""),
    ],
)
def test_a_stream_or_a_place_that_is_missing_is_said_in_a_sentence(
    tmp_path: Path, shell: str, code: int, words: str
) -> None:
    done = run(shell, tmp_path)
    assert (done.returncode, words in done.stderr) == (code, True), done
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_temporary_folder_that_cannot_be_written_is_said_with_the_remedy(
    tmp_path: Path, genenc: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "absent")])
    monkeypatch.setattr("genenc_core.cli.state.status", lambda *_arguments, **_options: tempfile.mkdtemp())
    said = genenc("status", tmp_path)
    assert (said.code, said.out) == (1, "")
    assert "absent']: set TMPDIR to a folder that can be written\n" in said.err
