"""Which commit genenc says it is: its own checkout's or its build's, never that of a repository around it."""

import json
import subprocess
from pathlib import Path

import pytest

from genenc_core.system import code_version

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GENENC = '[project]\nname = "genenc"\n'


def describe(folder: Path) -> dict[str, object]:
    return dict(code_version.describe.__wrapped__(folder / "genenc_core"))


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.invalid")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def repository(folder: Path, project: str | None = GENENC) -> str:
    """Commit a folder's files, with a package and a pyproject.toml; return the commit."""
    (folder / "genenc_core").mkdir(parents=True, exist_ok=True)
    (folder / "genenc_core" / "code.py").write_text("code = 1\n")
    if project is not None:
        (folder / "pyproject.toml").write_text(project)
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "all")
    return git(folder, "rev-parse", "HEAD")


def record(folder: Path, text: str) -> None:
    (folder / "genenc_core").mkdir(parents=True, exist_ok=True)
    (folder / "genenc_core" / "commit.json").write_text(text)


def test_a_checkout_is_asked_each_time(tmp_path: Path) -> None:
    commit = repository(tmp_path)
    assert describe(tmp_path) == {"git_commit": commit, "git_dirty": False}
    (tmp_path / "genenc_core" / "code.py").write_text("code = 2\n")
    assert describe(tmp_path) == {"git_commit": commit, "git_dirty": True}
    git(tmp_path, "commit", "-qam", "more")
    assert describe(tmp_path)["git_commit"] != commit


def test_a_linked_worktree_is_a_checkout(tmp_path: Path) -> None:
    commit = repository(tmp_path / "main")
    git(tmp_path / "main", "worktree", "add", "-q", str(tmp_path / "linked"))
    assert describe(tmp_path / "linked") == {"git_commit": commit, "git_dirty": False}


@pytest.mark.parametrize("project", [None, '[project]\nname = "theirs"\n', "no TOML ["])
def test_a_repository_of_another_project_is_not_shown(tmp_path: Path, project: str | None) -> None:
    """As `pip install --target .` leaves the package beside somebody's own code."""
    repository(tmp_path, project)
    assert describe(tmp_path) == {}


def test_a_repository_further_up_is_not_shown(tmp_path: Path) -> None:
    repository(tmp_path)
    inner = tmp_path / "vendor" / "genenc"
    (inner / "genenc_core").mkdir(parents=True)
    (inner / "pyproject.toml").write_text(GENENC)
    assert describe(inner) == {}
    (inner / ".git").mkdir()  # not a repository: git would look for one above
    assert describe(inner) == {}


def test_a_repository_named_by_the_environment_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a git hook of another project."""
    commit, theirs = repository(tmp_path / "ours"), repository(tmp_path / "theirs", None)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "theirs" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "theirs"))
    assert commit == describe(tmp_path / "ours")["git_commit"] != theirs


def test_without_git_only_the_version_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert describe(tmp_path) == {}


def test_a_wheel_says_what_its_build_recorded(tmp_path: Path) -> None:
    record(tmp_path, json.dumps({"git_commit": COMMIT, "git_dirty": True, "more": 1}))
    assert describe(tmp_path) == {"git_commit": COMMIT, "git_dirty": True}
    assert code_version.in_words(describe(tmp_path)) == " (0123456789ab, modified)"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"git_commit": "\\u001b[31m", "git_dirty": false}', f'{{"git_commit": "{COMMIT}"}}']
)
def test_a_damaged_record_is_no_record(tmp_path: Path, text: str) -> None:
    record(tmp_path, text)
    assert describe(tmp_path) == {}
    assert code_version.in_words({}) == ""
