"""The short form of the campaign against datasets: kills break no promise.

That it finds protocols broken on purpose takes minutes: `python tests/faults/dataset_crash.py --broken all`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("dataset_crash.py")


def campaign(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """Run the program in a process of its own, because it forks; return its results."""
    written = tmp_path / "result.json"
    command = [sys.executable, str(PROGRAM), "--json", str(written), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert written.exists(), done.stderr
    result: dict[str, Any] = json.loads(written.read_text())
    assert done.returncode == (1 if any(each["violations"] for each in result.values()) else 0)
    return result


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("GENENC_TESTS_CAMPAIGNS"), reason="a campaign of a minute or more: set GENENC_TESTS_CAMPAIGNS=1"
)
def test_commands_killed_anywhere_beside_readers_break_no_promise(tmp_path: Path) -> None:
    (result,) = campaign(tmp_path, "--kills", "20", "--seed", "2").values()
    assert result["violations"] == []
    assert result["total"] >= 20
    assert result["reads beside commands"] >= 1
