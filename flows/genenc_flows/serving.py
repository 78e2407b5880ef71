"""Prefect on a workstation: a server, the shipped deployments and a worker, as child processes of one command."""

import contextlib
import ctypes
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from genenc_core import errors
from genenc_core.cli import output
from genenc_core.system import proc, processes
from genenc_flows import local_server

LONGEST_START_SECONDS = 180.0
LOOK_SECONDS = 0.5
RUNS_END_SECONDS = 60.0
"""Within this time runs end between two batches; then they are killed, and lose the shards in progress."""
PROCESS_ENDS_SECONDS = 15.0
_PARENT_DEATH_SIGNAL, _SUBREAPER = 1, 36
"""prctl's PR_SET_PDEATHSIG and PR_SET_CHILD_SUBREAPER."""

SERVER_SETTINGS = {
    # By default, the recorder of task runs falls behind a flow of thousands, and drops some.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "500",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "500",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A child process, and the file of what it prints."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def refuse_end(self) -> None:
        """Raise if the process has ended.

        Raises:
            GenencError: it has; the message is its last line.
        """
        code = self.process.poll()
        if code is not None:
            said = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            words = said[-1].strip() if said else "no message"
            raise errors.GenencError(f"the {self.name} ended with {code} ({words}); see {str(self.log)!r}")


def serve(*, port: int, pool: str | None, limit: int) -> None:
    """Run a server, unless one is configured, and a worker for the shipped deployments, until a signal ends it.

    Everything that was started ends with this call, runs in progress first.

    Raises:
        InputError: the port is taken.
        GenencError: the configured server does not respond, or a child process ended.
    """
    own = f"http://127.0.0.1:{port}/api"
    url = local_server.configured_url()
    others = set(proc.children(proc.SELF))
    with _hanging_up(), _family(others) as children:
        # The address that this command prints may still be set where it is started again.
        if url is None or (url == own and not local_server.answers(own)):
            children.append(_start_server(own, port))
            url = own
        with local_server.connected(url) as server:
            if children:
                _wait_for(server, children[0])
            else:
                server.wait_until_ready("start it, or unset PREFECT_API_URL to start one here")
            from genenc_flows import deploying  # imports Prefect, which reads its settings once

            deploying.deploy(pool)
            pool = pool or deploying.pool_of_deployments()
            children.append(_start_worker(url, pool, limit, port))
            output.say(_words(url, pool, children))
            sys.stdout.flush()  # what follows takes long, and a pipe would keep it
            while True:
                for child in children:
                    child.refuse_end()
                _collect(set(proc.children(proc.SELF)) - others - {child.process.pid for child in children})
                time.sleep(LOOK_SECONDS)


@contextlib.contextmanager
def _hanging_up() -> Iterator[None]:
    """Let a terminal that is closed act like Ctrl-C, except under nohup."""
    before = signal.getsignal(signal.SIGHUP)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _collect(ended: set[int]) -> None:
    """Collect the exit codes of what runs left behind, which became children of this process."""
    for process in ended:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process, os.WNOHANG)


def _words(url: str, pool: str, children: list[Child]) -> list[str]:
    ui = url.removesuffix("/").removesuffix("/api")
    ended = "the server and the worker" if len(children) > 1 else "the worker; the server was there"
    logs = " and ".join(str(child.log) for child in children)
    return [
        f"Prefect: {ui}/deployments",
        f"  commands in other terminals: export PREFECT_API_URL={url}",
        f"  work pool {pool}, one worker; logs in {logs}",
        f"Ctrl-C ends {ended}; runs, deployments and schedules are kept in {_home()}",
    ]


def _home() -> Path:
    return Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser().absolute()


def _start_server(url: str, port: int) -> Child:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise errors.InputError(
            f"--port {port} cannot be used ({error.strerror or error}): give another one, or set PREFECT_API_URL to "
            "the server there"
        ) from error
    command = processes.command("-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
    settings = {**SERVER_SETTINGS, "PREFECT_SERVER_UI_API_URL": url}
    settings = {name: value for name, value in settings.items() if name not in os.environ}
    return _start("server", command, {**settings, "PREFECT_API_URL": url}, port)


def _wait_for(server: local_server.Server, child: Child) -> None:
    deadline = time.monotonic() + LONGEST_START_SECONDS
    while not server.answers():
        child.refuse_end()
        if time.monotonic() > deadline:
            raise errors.GenencError(
                f"the server did not respond within {LONGEST_START_SECONDS:.0f} s; see {child.log}"
            )
        time.sleep(LOOK_SECONDS)


def _start_worker(url: str, pool: str, limit: int, port: int) -> Child:
    # Started again after a kill, it has the name that it had: the pool does not fill with workers that are gone.
    name = f"genenc serve on {socket.gethostname()}"
    command = ["-m", "prefect", "worker", "start", "--pool", pool, "--limit", str(limit), "--name", name]
    return _start("worker", processes.command(*command), {"PREFECT_API_URL": url}, port)


def _start(name: str, command: list[str], settings: dict[str, str], port: int) -> Child:
    folder = _home()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"genenc-{name}-{port}.log"
    loopback = ",".join(filter(None, (os.environ.get("NO_PROXY", os.environ.get("no_proxy")), "127.0.0.1")))
    with log.open("wb") as said:
        process = subprocess.Popen(
            command,
            env=processes.environment(**settings, NO_PROXY=loopback, no_proxy=loopback),
            cwd="/",  # Prefect reads settings from the working directory
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,  # Ctrl-C is for this command, which ends the others in order
            preexec_fn=_end_with_parent,
        )
    return Child(name=name, process=process, log=log)


def _end_with_parent() -> None:
    """Let the kernel end this process when the command is killed."""
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)


@contextlib.contextmanager
def _family(others: set[int]) -> Iterator[list[Child]]:
    """Collect child processes; at the end of the block, end them and all that they have started.

    A process whose parent has ended becomes a child of this one, so that none is missed.
    """
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    children: list[Child] = []
    try:
        yield children
    finally:
        with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C
            _end(children)
        _kill_all(set(proc.children(proc.SELF)) - others)
        ctypes.CDLL(None).prctl(_SUBREAPER, 0, 0, 0, 0)


def _kill_all(left: set[int]) -> None:
    """Kill processes and all below them, which become children of this one, and collect their exit codes."""
    _signal([*left, *(each for process in left for each in proc.descendants(process))], signal.SIGKILL)
    for process in left:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process, 0)


def _end(children: list[Child]) -> None:
    """End runs first, then the worker, then the server, which is told the states of the runs."""
    for child in reversed(children):
        if child.name == "worker":
            _end_runs(child.process)
        _end_processes([child.process.pid], proc.descendants(child.process.pid), PROCESS_ENDS_SECONDS)


def _end_runs(worker: "subprocess.Popen[bytes]") -> None:
    """End the processes of runs; each ends its own children."""
    worker.send_signal(signal.SIGSTOP)  # it must not start the next run meanwhile
    runs = proc.children(worker.pid)
    if runs:
        output.tell("ending runs between two batches, complete shards are kept; repeat to abort immediately")
        _end_processes(runs, proc.descendants(worker.pid), RUNS_END_SECONDS)
    worker.send_signal(signal.SIGCONT)


def _end_processes(first: Iterable[int], below: Iterable[int], seconds: float) -> None:
    """Terminate processes; kill them, and those below them, if they have not ended in time."""
    first = list(first)
    every = {*first, *below}
    _signal(first, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while any(map(_runs, every)) and time.monotonic() < deadline:
        time.sleep(0.1)
    _signal(filter(_runs, every), signal.SIGKILL)


def _runs(process: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process, os.WNOHANG)
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _signal(wanted: Iterable[int], number: signal.Signals) -> None:
    for process in list(wanted):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)
