"""A Prefect server of its own with worker and deployments, as a person starts them; its processes may be killed."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings

import pictures
from genenc_core.system import proc

CAMPAIGN = pytest.mark.skipif(
    not os.environ.get("GENENC_TESTS_CAMPAIGNS"), reason="minutes of waiting or of work: set GENENC_TESTS_CAMPAIGNS=1"
)
PATIENCE_SECONDS = 300.0


def wait_for(what: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Any:
    """Return what a function returns, once that is true."""
    deadline = time.monotonic() + seconds
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.2)


class Site:
    """Processes with a PREFECT_HOME and a port of their own, started in an empty folder."""

    def __init__(self, folder: Path, filled_home: Path) -> None:
        self.home, self.folder = folder / "prefect", folder / "empty"
        shutil.copytree(filled_home, self.home)
        self.folder.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as found:
            self.port = found.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.started: dict[str, subprocess.Popen[str]] = {}

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a person who has set nothing but the home."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        path = os.pathsep.join([str(Path(pictures.__file__).parent), *filter(None, sys.path)])
        private = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
        return {**kept, **private, "PREFECT_HOME": str(self.home), "PYTHONPATH": path, **more}

    def start(self, name: str, *command: str, **more: str) -> "subprocess.Popen[str]":
        """Start a Python module; what it prints goes to a file."""
        with self.log(name).open("a") as said:
            self.started[name] = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=self.folder,
                env=self.environment(**more),
                stdout=said,
                stderr=said,
                text=True,
            )
        return self.started[name]

    def log(self, name: str) -> Path:
        """Return the file of what a process prints."""
        return self.home / f"test-{name}.log"

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a Python module against the server, to its end."""
        environment = self.environment(PREFECT_API_URL=self.url)
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (done.stdout, done.stderr)
        return done

    def start_server(self) -> None:
        """Start a server, and wait until it responds."""
        settings = {"PREFECT_SERVER_UI_API_URL": self.url}
        self.start("server", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port), **settings)
        wait_for(self.answers)

    def start_worker(self, limit: int = 1) -> "subprocess.Popen[str]":
        """Start a worker of the pool, which asks often."""
        command = ("prefect", "worker", "start", "--pool", "genenc", "--limit", str(limit), "--name", "lab")
        return self.start("worker", *command, PREFECT_API_URL=self.url, PREFECT_WORKER_QUERY_SECONDS="2")

    def answers(self) -> bool:
        """Return whether the server responds."""
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{self.url}/health", timeout=2):
                return True
        except OSError:
            return False

    def end(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal to a process, and wait for its end."""
        self.started[name].send_signal(number)
        self.started.pop(name).wait(300)

    def engine(self) -> int:
        """Return the process of the run that the worker has started."""
        return int(wait_for(lambda: proc.children(self.started["worker"].pid))[0])

    @contextlib.contextmanager
    def client(self) -> Iterator[SyncPrefectClient]:
        """Yield a client of the server; calls of Prefect in the block go to it, too."""
        with temporary_settings({PREFECT_API_URL: self.url}), get_client(sync_client=True) as found:
            yield found

    def begin(self, deployment: str, **parameters: Any) -> UUID:
        """Create a run of a deployment, as the UI does."""
        with self.client() as client:
            found = client.read_deployment_by_name(deployment)
            return client.create_flow_run_from_deployment(found.id, parameters=parameters).id

    def flow_run(self, run: UUID) -> FlowRun:
        """Return a run as the server has it."""
        with self.client() as client:
            return client.read_flow_run(run)

    def final_state(self, run: UUID, seconds: float = PATIENCE_SECONDS) -> "State[Any]":
        """Wait for the end of a run; return its state."""

        def ended() -> "State[Any] | None":
            state = self.flow_run(run).state
            return state if state is not None and state.is_final() else None

        found: State[Any] = wait_for(ended, seconds)
        return found

    def close(self) -> None:
        """Kill all that is left."""
        below = [each for process in self.started.values() for each in proc.descendants(process.pid)]
        for each in [*below, *(process.pid for process in self.started.values())]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        for process in self.started.values():
            process.wait()


def clear(client: SyncPrefectClient) -> None:
    """Remove deployments, automations and the work pool from a server."""
    for deployment in client.read_deployments():
        client.request("DELETE", "/deployments/{id}", path_params={"id": deployment.id})
    for automation in client.read_automations():
        client.delete_automation(automation.id)
    with contextlib.suppress(ObjectNotFound):
        client.delete_work_pool("genenc")


def ended(processes: Sequence[int]) -> bool:
    """Return whether processes have ended."""

    def runs(process: int) -> bool:
        try:
            return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    return not any(map(runs, processes))
