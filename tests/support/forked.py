"""Python processes forked from one that has already imported torch, which would take each four seconds.

`Popen` and `run` take what those of `subprocess` take, where the command is this Python with `-m MODULE`, `-c CODE` or
`-P FILE`.
Such a process is a child of this one like any other: it has streams, environment, folder and main module of its own,
may be killed, and ends as an interpreter does. Only what it would do while it imports is not seen.
"""

import atexit
import ctypes
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DEVNULL = subprocess.DEVNULL
_SUBREAPER = 36  # prctl's PR_SET_CHILD_SUBREAPER
_FORKING = """
import gc, json, os, socket, sys, tempfile
import numpy, torch, torchvision, zarr, pandas, pyarrow.parquet
from genenc_core.cli import app, extraction
from genenc_core.dataset import compact, prune, update, verify
from genenc_core.images.decode import decode
from genenc_core.images.load import decode_worker, loader
from genenc_core.run import driver, engine_setup as engines, model_export, worker
gc.freeze()
own = [folder for folder in sys.path if folder]
asking = socket.socket(fileno=int(sys.argv[1]))
asking.send(b"%d" % len(os.listdir("/proc/self/task")))
while True:
    data, streams, _, _ = socket.recv_fds(asking, 1 << 20, 3)
    if not data:
        os._exit(0)
    asked = json.loads(data)
    between = os.fork()
    if not between:
        forked = os.fork()
        if not forked:
            break
        asking.send(b"%d" % forked)
        os._exit(0)
    for stream in streams:
        os.close(stream)
    os.waitpid(between, 0)
    asking.send(b"orphaned")
asking.close()
for number, stream in enumerate(streams):
    os.dup2(stream, number)
    os.close(stream)
sys.stdin = sys.__stdin__ = open(0, closefd=False)
sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)
sys.stderr = sys.__stderr__ = open(2, "w", 1, errors="backslashreplace", closefd=False)
tempfile.tempdir = None  # torch has asked for it
os.chdir(asked["cwd"])
os.environ.clear()
os.environ.update(asked["env"])
if asked["session"]:
    os.setsid()
if asked["umask"] >= 0:
    os.umask(asked["umask"])
how, what, *sys.argv[1:] = asked["arguments"]
first = [] if os.environ.get("PYTHONSAFEPATH") else ["" if how == "-c" else asked["cwd"]]
sys.path[:] = [*first, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *own]
for name in "data streams between forked asking number stream first own gc socket tempfile".split():
    globals().pop(name, None)
if how == "-c":
    sys.argv[0] = "-c"
    exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
elif how == "-P":
    import runpy
    runpy.run_path(what, run_name="__main__")
else:
    import runpy
    runpy.run_module(what, run_name="__main__", alter_sys=True)
"""
_STARTED: list[socket.socket] = []


def _connection() -> socket.socket:
    """Return the connection to the forking process, started on first use."""
    if not _STARTED:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-c", _FORKING, str(theirs.fileno())]
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
        alone = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        alone["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
        process = subprocess.Popen(command, env={**kept, **alone}, pass_fds=[theirs.fileno()], cwd="/")
        theirs.close()
        atexit.register(process.wait)
        atexit.register(ours.close)  # first: then it ends
        threads = ours.recv(100)
        assert threads == b"1", f"the process that forks has {threads.decode()} threads"
        _STARTED.append(ours)
    return _STARTED[0]


class Popen(subprocess.Popen[Any]):
    """`subprocess.Popen` for a forked Python."""

    def _execute_child(self, args: Sequence[str], *rest: Any) -> None:
        _executable, _before, _close, _pass, cwd, env, _startup, _flags, _shell, *pipes = rest[:15]
        program, *arguments = map(str, args)
        environment = dict(os.environ if env is None else env)
        if arguments[0] == "-P":
            environment.setdefault("PYTHONSAFEPATH", "1")
            if arguments[1] in ("-m", "-c"):
                del arguments[0]
        assert program == sys.executable
        assert arguments[0] in ("-m", "-c", "-P"), args
        asked = {
            "arguments": arguments,
            "env": environment,
            "cwd": str(Path(cwd or os.curdir).absolute()),
            "umask": rest[19],
            "session": rest[20],
        }
        asking, libc = _connection(), ctypes.CDLL(None)
        streams = [pipe if pipe != -1 else number for number, pipe in enumerate((pipes[0], pipes[3], pipes[5]))]
        libc.prctl(_SUBREAPER, 1, 0, 0, 0)
        try:
            socket.send_fds(asking, [json.dumps(asked).encode()], streams)
            self.pid = int(asking.recv(100))
            assert asking.recv(100) == b"orphaned"
        finally:
            libc.prctl(_SUBREAPER, 0, 0, 0, 0)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def run(
    command: Sequence[str], *, check: bool, capture_output: bool, **more: Any
) -> "subprocess.CompletedProcess[Any]":
    """Run a forked Python like `subprocess.run`."""
    timeout, said = more.pop("timeout", None), more.pop("input", None)
    if said is not None:
        more["stdin"] = subprocess.PIPE
    if capture_output:
        more |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, **more) as process:
        try:
            out, err = process.communicate(said, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(command, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done
