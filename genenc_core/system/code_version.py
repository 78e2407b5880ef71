"""Commit of genenc's own code: from git in a checkout, from the build's record in a wheel."""

import functools
import json
import os
import re
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
RECORD = "commit.json"
"""File in `genenc_core` of wheels and sdists, written by `build_commands`."""


@functools.cache
def describe(package: Path = PACKAGE) -> Mapping[str, object]:
    """Return `git_commit` and `git_dirty` of the code in a `genenc_core` folder; empty if unknown."""
    return _of_checkout(package.parent) or _recorded(package / RECORD)


def in_words(found: Mapping[str, object]) -> str:
    """Format the result of `describe` as a version suffix: ` (d4c34fa7e791, modified)`, or "" if unknown."""
    if not found:
        return ""
    return f" ({str(found['git_commit'])[:12]}{', modified' if found['git_dirty'] else ''})"


def _of_checkout(folder: Path) -> Mapping[str, object]:
    """Ask git if `folder` is genenc's project and the root of a repository; an enclosing repository is not ours."""
    if not (folder / ".git").exists() or not _is_ours(folder / "pyproject.toml"):
        return {}
    commit = _git(folder, "rev-parse", "HEAD")
    return {"git_commit": commit, "git_dirty": bool(_git(folder, "status", "--porcelain"))} if commit else {}


def _is_ours(project: Path) -> bool:
    try:
        document = tomllib.loads(project.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(document.get("project", {}).get("name") == "genenc")


def _git(folder: Path, *arguments: str) -> str:
    """Return the output of a git command for the repository at `folder`; "" if it fails."""
    # Git hooks set variables that point to another repository; without a ceiling git searches parent folders.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    own = {"GIT_CEILING_DIRECTORIES": str(folder.parent), "GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=kept | own)
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _recorded(record: Path) -> Mapping[str, object]:
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        whole = re.fullmatch("[0-9a-f]{40,64}", found["git_commit"]) and isinstance(found["git_dirty"], bool)
    except (OSError, ValueError, TypeError, LookupError):
        return {}
    return {name: found[name] for name in ("git_commit", "git_dirty")} if whole else {}
