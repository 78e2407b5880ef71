"""This process's decode server: started once, asked to fork workers, and to tell how they ended."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from genenc_core import children
from genenc_core.images import decode_worker

STARTING_SECONDS = 120.0
ENDING_SECONDS = 5.0
_TRIES = 3
_PROGRAM = "import socket; from genenc_core.images import decode_worker; decode_worker.serve(socket.socket(fileno=0))"
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class ServerLost(OSError):
    """The decode server ended, or did not start."""


class Ending(NamedTuple):
    """How a worker ended."""

    code: int
    """Its exit code; a signal's number is negative."""

    @property
    def name(self) -> str:
        """The signal's name, or the exit code."""
        number = -self.code
        return signal.Signals(number).name if number in {*signal.Signals} else f"exit code {self.code}"


class DecodeServer:
    """A handle on the server; for all threads."""

    def __init__(self, control: socket.socket, process: int, child: "subprocess.Popen[bytes] | None" = None) -> None:
        self._control = control
        self._process = process
        self._child = child
        self._turn = threading.Lock()
        self._ended: dict[int, Ending] = {}
        self.lost = False

    @classmethod
    def forked(cls) -> "DecodeServer":
        """Fork this process, which has no other thread yet: what it imported need not be imported again."""
        ours, theirs = socket.socketpair()
        process = os.fork()
        if process == 0:
            try:
                os.setsid()  # a Ctrl-C is the parent's to answer
                ours.close()
                _let_go(keep=theirs.fileno())
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    signal.signal(number, signal.SIG_DFL)
                decode_worker.serve(theirs)
            finally:
                os._exit(1)
        theirs.close()
        return cls(ours, process)

    @classmethod
    def spawned(cls) -> "DecodeServer":
        """Start a new Python process; whatever threads this one has."""
        ours, theirs = socket.socketpair()
        with theirs:
            child = subprocess.Popen(
                children.command("-c", _PROGRAM),
                env=children.environment(**_ONE_THREAD),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        return cls(ours, child.pid, child)

    def fork(self, setup: dict[str, Any], descriptors: tuple[int, int, int]) -> int:
        """Start a worker and return its process number; `descriptors`: its socket, the slab, what it says.

        Raises:
            ServerLost: there is no server.
            OSError: no process could be started.
        """
        with self._turn:
            self._send({"fork": {**setup, "server": self._process}}, descriptors)
            end = time.monotonic() + STARTING_SECONDS
            while True:
                message = self._receive(end)
                if "forked" in message:
                    break
        if message["forked"] < 0:
            raise OSError(-message["forked"], f"no decode worker can be started: {os.strerror(-message['forked'])}")
        return int(message["forked"])

    def kill(self, worker: int) -> None:
        """Kill a worker, unless it ended.

        Raises:
            ServerLost: there is no server.
        """
        with self._turn:
            self._send({"kill": worker})

    def ending(self, worker: int) -> Ending | None:
        """Return how a worker ended; None while it has not, or waits inside the kernel.

        Raises:
            ServerLost: there is no server.
        """
        end = time.monotonic() + ENDING_SECONDS
        with self._turn:
            while worker not in self._ended and time.monotonic() < end:
                with contextlib.suppress(TimeoutError):
                    self._receive(end)
            return self._ended.pop(worker, None)

    def close(self) -> None:
        """Let the server end, and its workers with it."""
        self.lost = True
        self._control.close()
        if self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(ENDING_SECONDS)
        else:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._process, 0)

    def _send(self, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        try:
            decode_worker.send(self._control, message, descriptors)
        except OSError as error:
            raise self._gone() from error

    def _receive(self, end: float) -> dict[str, Any]:
        try:
            self._control.settimeout(max(end - time.monotonic(), 0.001))
            message, _ = decode_worker.receive(self._control)
        except TimeoutError:
            raise
        except OSError as error:
            raise self._gone() from error
        if "ended" in message:
            self._ended[message["ended"]] = Ending(message["code"])
        return message

    def _gone(self) -> ServerLost:
        self.lost = True
        code = None if self._child is None else self._child.poll()
        return ServerLost(f"the decode server ended{'' if code is None else f' (exit code {code})'}")


class _Current:
    """The server of this process, and the lock for its change."""

    def __init__(self) -> None:
        self.changing = threading.Lock()
        self.server: DecodeServer | None = None
        self.process = -1


_CURRENT = _Current()


def prepare() -> None:
    """Fork the server while this process has one thread; without this call it is spawned when it is first needed.

    What decoding takes must be imported by then. On platforms without a safe `fork` nothing is done.
    """
    if sys.platform != "linux" or threading.active_count() > 1:
        return
    with _CURRENT.changing:
        if _CURRENT.server is None:
            _CURRENT.server, _CURRENT.process = DecodeServer.forked(), os.getpid()


def running() -> DecodeServer:
    """Return this process's server, which lives as long as the process does; a new one when it was lost.

    Raises:
        OSError: it cannot be started.
    """
    with _CURRENT.changing:
        if _CURRENT.server is not None and _CURRENT.process != os.getpid():  # this process was forked itself
            _CURRENT.server = None
        if _CURRENT.server is not None and _CURRENT.server.lost:
            _CURRENT.server.close()
            _CURRENT.server = None
        if _CURRENT.server is None:
            _CURRENT.server, _CURRENT.process = DecodeServer.spawned(), os.getpid()
        return _CURRENT.server


def fork(setup: dict[str, Any], descriptors: tuple[int, int, int]) -> tuple[DecodeServer, int]:
    """Start a worker as `DecodeServer.fork` does, by a new server where the last one was lost."""
    for _ in range(_TRIES - 1):
        with contextlib.suppress(ServerLost):
            server = running()
            return server, server.fork(setup, descriptors)
    server = running()
    return server, server.fork(setup, descriptors)


def _let_go(keep: int) -> None:
    """Close what the parent has open, and have nothing as standard input and output."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(null, standard)
    for descriptor in [int(each.name) for each in Path("/proc/self/fd").iterdir()]:
        if descriptor > 2 and descriptor != keep:
            with contextlib.suppress(OSError):
                os.close(descriptor)
