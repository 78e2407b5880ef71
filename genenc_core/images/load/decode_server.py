"""Handle on the decode server of this process, which forks decode workers and reports their exits."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any, NamedTuple

from genenc_core.images.load import decode_worker
from genenc_core.system import proc, processes

START_SECONDS = 120.0
EXIT_SECONDS = 5.0
_TRIES = 3
_PROGRAM = (
    "import socket; from genenc_core.images.load import decode_worker; decode_worker.serve(socket.socket(fileno=0))"
)
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class ServerLost(OSError):
    """The decode server exited, or did not start."""


class WorkerExit(NamedTuple):
    """Exit status of a worker."""

    code: int
    """Its exit code; a signal number is negative."""

    @property
    def name(self) -> str:
        """The signal's name, or the exit code."""
        number = -self.code
        return signal.Signals(number).name if number in {*signal.Signals} else f"exit code {self.code}"


class DecodeServer:
    """Handle on the server process; thread-safe."""

    def __init__(self, control: socket.socket, process: int, child: "subprocess.Popen[bytes] | None" = None) -> None:
        self._control = control
        self._process = process
        self._child = child
        self._lock = threading.Lock()
        self._exits: dict[int, WorkerExit] = {}
        self.lost = False

    @classmethod
    def forked(cls) -> "DecodeServer":
        """Fork this still single-threaded process, so that its imports need not be repeated."""
        ours, theirs = socket.socketpair()
        process = os.fork()
        if process == 0:
            try:
                os.setsid()  # the parent handles Ctrl-C
                ours.close()
                _close_inherited(keep=theirs.fileno())
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    signal.signal(number, signal.SIG_DFL)
                decode_worker.serve(theirs)
            finally:
                os._exit(1)
        theirs.close()
        return cls(ours, process)

    @classmethod
    def spawned(cls) -> "DecodeServer":
        """Start a new Python process, which is safe whatever threads this one has."""
        ours, theirs = socket.socketpair()
        with theirs:
            child = subprocess.Popen(
                processes.command("-c", _PROGRAM),
                env=processes.environment(**_ONE_THREAD),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        return cls(ours, child.pid, child)

    def fork(self, setup: dict[str, Any], descriptors: tuple[int, int, int]) -> int:
        """Start a worker and return its process id; `descriptors` are its socket, the slab and its stderr.

        Raises:
            ServerLost: there is no server.
            OSError: no process could be started.
        """
        with self._lock:
            self._send({"fork": {**setup, "server": self._process}}, descriptors)
            end = time.monotonic() + START_SECONDS
            while True:
                message = self._receive(end)
                if "forked" in message:
                    break
        if message["forked"] < 0:
            raise OSError(-message["forked"], f"cannot start a decode worker: {os.strerror(-message['forked'])}")
        return int(message["forked"])

    def kill(self, worker: int) -> None:
        """Kill a worker, unless it already exited.

        Raises:
            ServerLost: there is no server.
        """
        with self._lock:
            self._send({"kill": worker})

    def wait_exit(self, worker: int) -> WorkerExit | None:
        """Return how a worker exited; None if it has not yet, for example while blocked in the kernel.

        Raises:
            ServerLost: there is no server.
        """
        end = time.monotonic() + EXIT_SECONDS
        with self._lock:
            while worker not in self._exits and time.monotonic() < end:
                with contextlib.suppress(TimeoutError):
                    self._receive(end)
            return self._exits.pop(worker, None)

    def close(self) -> None:
        """Make the server exit with its workers; kill it if it does not, for example because it is suspended."""
        self.lost = True
        self._control.close()
        if self._child is not None:
            try:
                self._child.wait(EXIT_SECONDS)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
            return
        with contextlib.suppress(ChildProcessError):
            end = time.monotonic() + EXIT_SECONDS
            while not os.waitpid(self._process, os.WNOHANG)[0]:
                if time.monotonic() > end:
                    os.kill(self._process, signal.SIGKILL)  # still this process's child, so the id cannot be reused
                time.sleep(0.01)

    def _send(self, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        try:
            decode_worker.send(self._control, message, descriptors)
        except OSError as error:
            raise self._lost() from error

    def _receive(self, end: float) -> dict[str, Any]:
        try:
            self._control.settimeout(max(end - time.monotonic(), 0.001))
            message, _ = decode_worker.receive(self._control)
        except TimeoutError:
            raise
        except OSError as error:
            raise self._lost() from error
        if "ended" in message:
            self._exits[message["ended"]] = WorkerExit(message["code"])
        return message

    def _lost(self) -> ServerLost:
        self.lost = True
        code = None if self._child is None else self._child.poll()
        return ServerLost(f"the decode server exited{'' if code is None else f' (exit code {code})'}")


class _Current:
    """The server of this process, and the lock to replace it."""

    def __init__(self) -> None:
        self.changing = threading.Lock()
        self.server: DecodeServer | None = None
        self.process = -1


_CURRENT = _Current()


def prepare() -> bool:
    """Fork the server while this process has one thread, and return whether it was; otherwise it is spawned on demand.

    All imports for decoding must be done before. Does nothing on platforms without a safe `fork`.
    """
    if sys.platform != "linux" or threading.active_count() > 1:
        return False
    with _CURRENT.changing:
        if _CURRENT.server is not None:
            return False
        _CURRENT.server, _CURRENT.process = DecodeServer.forked(), os.getpid()
        return True


def running() -> DecodeServer:
    """Return this process's server, which lives as long as the process; a new one is started if it was lost.

    Raises:
        OSError: it cannot be started.
    """
    with _CURRENT.changing:
        if _CURRENT.server is not None and _CURRENT.process != os.getpid():  # inherited by a fork
            _CURRENT.server = None
        if _CURRENT.server is not None and _CURRENT.server.lost:
            _CURRENT.server.close()
            _CURRENT.server = None
        if _CURRENT.server is None:
            _CURRENT.server, _CURRENT.process = DecodeServer.spawned(), os.getpid()
        return _CURRENT.server


def fork(setup: dict[str, Any], descriptors: tuple[int, int, int]) -> tuple[DecodeServer, int]:
    """Start a worker with `DecodeServer.fork`, on a new server if the last one was lost."""
    for _ in range(_TRIES - 1):
        with contextlib.suppress(ServerLost):
            server = running()
            return server, server.fork(setup, descriptors)
    server = running()
    return server, server.fork(setup, descriptors)


def _close_inherited(keep: int) -> None:
    """Close the parent's open files, and redirect standard input and output to the null device."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(null, standard)
    for descriptor in proc.descriptors():
        if descriptor > 2 and descriptor != keep:
            with contextlib.suppress(OSError):
                os.close(descriptor)
