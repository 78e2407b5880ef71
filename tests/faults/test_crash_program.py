"""The crash program's short form: kills break no promise, and each check finds a protocol broken on purpose."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import checks

PROGRAM = Path(__file__).with_name("crash.py")
FOUND = {
    "status-first": r"with status|is not its record's",
    "last-wins": r"changed or vanished|with status|is not its record's|nowhere|other bytes|verify",
    "torn-move": r"checksum|with status|zstd|Error",
    "early-clean": r"nowhere|neither in place nor staged",
    "no-record": r"without a record|is not its record's",
    "no-clean": r"left in staging",
}


def campaign(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """Run the program in a process of its own, because it forks; return its results by command."""
    written = tmp_path / "result.json"
    command = [sys.executable, str(PROGRAM), "--json", str(written), "--root", str(tmp_path / "runs"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert written.exists(), done.stderr
    result: dict[str, Any] = json.loads(written.read_text())
    return result


@pytest.mark.slow
def test_workers_killed_anywhere_beside_readers_break_no_promise(tmp_path: Path) -> None:
    (result,) = campaign(tmp_path, "--kills", "30", "--seed", "0").values()
    assert result["violations"] == []
    assert result["total"] >= 30
    assert result["live_checks"] >= 10
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of a campaign against every protocol that is broken on purpose."""
    results = campaign(tmp_path_factory.mktemp("broken"), "--kills", "400", "--seed", "1", "--broken", "all")
    return {command.rpartition(" ")[2]: result for command, result in results.items()}


@pytest.mark.slow
@pytest.mark.parametrize("how", checks.BROKEN)
def test_the_campaign_finds_a_protocol_that_is_broken_on_purpose(broken: dict[str, Any], how: str) -> None:
    violations = broken[how]["violations"]
    assert any(re.search(FOUND[how], violation) for violation in violations), violations
