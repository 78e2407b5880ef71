"""Completion as the shells ask for it: each runs the script that `genenc completion` prints."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BASH = """
eval "$(genenc completion bash)"
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_genenc_completion genenc
printf '%s\\n' "${COMPREPLY[@]}"
"""
ZSH = """
compdef() { :; }
_arguments() { print -r -- "$@" }
_files() { print files }
eval "$(genenc completion zsh)"
words=("$@"); CURRENT=$#
_genenc_completion
"""
FISH = """
genenc completion fish | source
complete -C (string join ' ' -- $argv)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment whose PATH has `genenc` of this checkout."""
    folder = tmp_path_factory.mktemp("bin")
    command = folder / "genenc"
    command.write_text(f"#!{sys.executable} -P\nfrom genenc_flows import entry\nentry.main()\n")
    command.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder)}


def completed(shell: str, words: str, environment: dict[str, str], folder: Path) -> str:
    """Return what a shell offers for the last word."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    *start, last = words.split(" ")
    call = {"bash": ["bash", "--norc", "-c", BASH, "-"], "zsh": ["zsh", "-f", "-c", ZSH, "-"], "fish": ["fish", "-c"]}
    command = [*call[shell], *(() if shell != "fish" else (FISH,)), *start, last]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr
    return done.stdout


CASES: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [
    ("genenc ", ("extract", "resume", "completion"), ("--fit",)),
    ("genenc ver", ("verify",), ("extract",)),
    ("genenc extract --tile", ("--tile-overlap", "--tile-trim", "--tile-blend"), ("--fit",)),
    ("genenc extract photos --fit ", ("stretch", "crop", "pad"), ("--fit",)),
    ("genenc extract --fit pad --fit ", ("stretch", "crop", "pad"), ("Error",)),
    ("genenc extract --precision b", ("bfloat16",), ("float32",)),
    ("genenc resume run --shards f", ("failed",), ("pending",)),
    ("genenc extract --device c", ("cpu", "cuda"), ("auto",)),
    ("genenc models --source t", ("timm", "torchvision"), ("json",)),
    ("genenc completion ", ("bash", "zsh", "fish"), ("extract",)),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shell", "words", "offered", "not_offered"),
    [*(("bash", *case) for case in CASES), *((shell, *case) for shell in ("zsh", "fish") for case in CASES[1:4])],
)
def test_a_shell_completes(
    shell: str,
    words: str,
    offered: tuple[str, ...],
    not_offered: tuple[str, ...],
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    said = completed(shell, words, environment, tmp_path)
    for word in offered:
        assert word in said
    for word in not_offered:
        assert word not in said


def test_an_unknown_shell_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        ["genenc", "completion", "bsh"], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Did you mean 'bash'" in done.stderr
