"""Code that ends the process behind genenc's back: never exit code 0, always a message."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import forked
import pictures
from genenc_core.run import status
from genenc_core.run.folder import RunFolder
from genenc_core.system import exits


def ended(program: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a Python program to its end."""
    code = "import ctypes, os, sys, threading\nfrom genenc_core.system import exits\n" + textwrap.dedent(program)
    command = [sys.executable, "-c", code]
    return forked.run(command, capture_output=True, text=True, cwd=folder, check=False)


CALLS = {
    "os._exit(0)": "os._exit(0)",
    "os._exit(3)": "os._exit(3)",  # the exit code of a run with unreadable images
    "on a thread": "thread = threading.Thread(target=os._exit, args=(0,)); thread.start(); thread.join()",
    "in an inner block": "with exits.guarded(): os._exit(0)",
    "C": "import torch\n    with exits.guarded(): ctypes.CDLL(None).exit(0)",
    "C, holding the interpreter": "import torch\n    with exits.guarded(): ctypes.PyDLL(None).exit(0)",
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_an_exit_inside_a_block_fails_with_a_message(call: str, tmp_path: Path) -> None:
    done = ended(f'with exits.guarded(state=lambda: "2 of 5 are stored"):\n    {call}', tmp_path)
    assert done.returncode == 1, done
    assert done.stderr.startswith("error: the process was terminated from within by ")
    assert done.stderr.endswith("2 of 5 are stored\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("call", ["os._exit(7)", "ctypes.CDLL(None)._exit(7)", "sys.exit(7)"])
def test_an_exit_after_a_block_is_as_ever(call: str, tmp_path: Path) -> None:
    done = ended(f"with exits.guarded(), exits.guarded(): pass\n{call}", tmp_path)
    assert (done.returncode, done.stderr) == (7, "")


@pytest.mark.slow
def test_a_forked_process_ends_as_it_likes(tmp_path: Path) -> None:
    done = ended(
        """
        with exits.guarded():
            child = os.fork()
            if not child:
                os._exit(5)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
        """,
        tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_state_that_cannot_be_asked_keeps_no_process_alive(tmp_path: Path) -> None:
    done = ended(
        """
        exits._STATE_TIMEOUT = 0.1
        lock = threading.Lock()
        with exits.guarded(state=lambda: lock.acquire() and "never"), lock:
            os._exit(0)
        """,
        tmp_path,
    )
    assert done.returncode == 1
    assert done.stderr.endswith("return or raise instead.\n")


def test_the_function_of_python_is_back_when_the_last_block_ends() -> None:
    before = os._exit
    with exits.guarded():
        with exits.guarded():
            assert os._exit is not before
        assert os._exit is not before
    assert os._exit is before


WHERE = {"factory": "def model(): os._exit(0)", "encoding": "def model(): return Ends(lambda: os._exit(0))"}


@pytest.mark.parametrize("where", WHERE)
def test_a_command_that_a_model_ends_fails_and_says_how_to_go_on(where: str, tmp_path: Path) -> None:
    photos = pictures.write_folder(tmp_path / "photos", 12)
    (tmp_path / "ends.py").write_text(
        textwrap.dedent("""
        import os
        from torch import nn

        class Ends(nn.Module):
            def __init__(self, end):
                super().__init__()
                self.net, self.end, self.calls = nn.Conv2d(3, 4, 8, stride=8), end, 0
            def forward(self, images):
                self.calls += 1
                if self.calls > 16:
                    self.end()
                return self.net(images)
        """)
        + WHERE[where]
        + "\n"
    )
    command = [sys.executable, "-m", "genenc_flows.entry", "extract", str(photos), "--plain", "--model", "ends:model"]
    command += ["--image-size", "32", "--shard-rows", "3", "--batch-size", "1", "--decode-workers", "1", "--out", "run"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = forked.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done
    assert "os._exit(0) in" in done.stderr
    assert "ends.py, line" in done.stderr
    if where == "factory":
        assert "Nothing is stored" in done.stderr
    else:
        found = status.run_status(RunFolder(tmp_path / "run"))
        assert found.committed < found.shards
        assert f"{found.committed} of {found.shards} shards are stored; continue with: genenc resume run" in done.stderr
