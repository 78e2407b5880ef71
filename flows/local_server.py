"""A Prefect API server of this command's own, on loopback, that ends with it; run as `python -m flows.local_server`."""

import asyncio
import contextlib
import fcntl
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from genenc_core import errors

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

QUIET: Mapping[str, str] = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_LEVEL": "INFO",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "genenc_core",
    "PREFECT_CLI_COLORS": "false",
}
OWN_START_SECONDS = 180.0
OTHERS_ANSWER_SECONDS = 15.0
AGAIN_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.4)
PATIENCE_SECONDS = 5.0
"""A request that took longer is not tried again: its client may have given up, and sent another."""


def quiet_environment() -> None:
    """Set what Prefect reads from the environment to quiet and private, where the user has not set it."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


class Server:
    """The API server that flows of this process talk to: the user's, or a child process."""

    def __init__(self, url: str, process: "subprocess.Popen[bytes] | None", said: Path | None) -> None:
        self.url = url
        self._process = process
        self._said = said

    def wait_until_ready(self) -> None:
        """Return when the server answers.

        Raises:
            GenencError: it ended, or does not answer in time; says how to do without.
        """
        limit = OTHERS_ANSWER_SECONDS if self._process is None else OWN_START_SECONDS
        deadline = time.monotonic() + limit
        while not _answers(self.url):
            if self._process is not None and self._process.poll() is not None:
                raise errors.GenencError(f"the Prefect server did not start ({self._last_words()}): {_WITHOUT}")
            if time.monotonic() > deadline:
                other = "unset PREFECT_API_URL for a server of genenc's own, or " if self._process is None else ""
                raise errors.GenencError(
                    f"no Prefect server answered at {self.url} within {limit:.0f} s: {other}{_WITHOUT}"
                )
            time.sleep(0.1)

    def _last_words(self) -> str:
        text = self._said.read_text(errors="replace") if self._said is not None else ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        telling = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
        return (telling or lines or ["it said nothing"])[-1]


_WITHOUT = "go without Prefect with --plain"


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """Point this process at the server that the user configured, else at a child process that ends with it.

    The start of a child takes seconds and goes on beside the caller's work: call `wait_until_ready` before a flow.
    """
    url = configured_url()
    if url is not None:
        with _environment(PREFECT_API_URL=url):
            yield Server(url, None, None)
        return
    with socket.create_server(("127.0.0.1", 0)) as listening, tempfile.TemporaryDirectory() as folder:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
        said = Path(folder) / "server.log"
        loopback = ",".join(filter(None, (os.environ.get("NO_PROXY", os.environ.get("no_proxy")), "127.0.0.1")))
        # Other users of the machine reach loopback too; the word is in no file and no argument.
        word = f"genenc:{secrets.token_urlsafe(24)}"
        locked = {"PREFECT_SERVER_API_AUTH_STRING": word, "PREFECT_API_AUTH_STRING": word}
        with _environment(PREFECT_API_URL=url, NO_PROXY=loopback, no_proxy=loopback, **locked):
            process = _started(listening, said)
            try:
                yield Server(url, process, said)
            finally:
                _ended(process)


def configured_url() -> str | None:
    """Return the server that the environment or the active Prefect profile names; None for neither.

    The profile is read as a file, because importing Prefect would fix its settings before a server is started.
    """
    if os.environ.get("PREFECT_API_URL"):
        return os.environ["PREFECT_API_URL"]
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    path = Path(os.environ.get("PREFECT_PROFILES_PATH", home / "profiles.toml")).expanduser()
    try:
        stored = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return None
    name = os.environ.get("PREFECT_PROFILE", stored.get("active", ""))
    found = stored.get("profiles", {}).get(name, {}).get("PREFECT_API_URL")
    return str(found) if found else None


def _answers(url: str) -> bool:
    """Whether a server is there; any answer counts, a demand for a key too. Loopback is asked without a proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({})) if "127.0.0.1" in url else None
    ask = urllib.request.urlopen if opener is None else opener.open
    try:
        with ask(url.rstrip("/") + "/health", timeout=5):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _started(listening: socket.socket, said: Path) -> "subprocess.Popen[bytes]":
    """Start the child on a socket that is ours already, so that no other process can take its port."""
    environment = {**os.environ, "PREFECT_UI_ENABLED": "0", "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false"}
    with said.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "flows.local_server", str(listening.fileno())],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=[listening.fileno()],
            # A Ctrl-C meant for the command must not end the server before the last states are told.
            start_new_session=True,
        )


def _ended(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _serve(descriptor: int) -> None:
    """Run the server until it is told to end, or until the parent's end of standard input closes."""

    def end_with_parent() -> None:
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_parent, daemon=True).start()
    import uvicorn
    from prefect.server.api.server import create_app

    _migrate()
    # Without the services of a server that stays (schedules, late runs, workers' health), which cost CPU all the time.
    uvicorn.run(Patient(create_app(ephemeral=True)), fd=descriptor, log_level="error", lifespan="on")


class Patient:
    """Tries again what the server's database was too busy for, before it tells.

    Prefect answers 503 when two requests write to SQLite at once, which a flow's tasks do all the time, and its client
    then waits two seconds and more.
    """

    def __init__(self, app: "ASGIApp") -> None:
        self._app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer one request, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        messages: list[Message] = []
        begun = time.monotonic()
        for wait in AGAIN_SECONDS:
            if time.monotonic() - begun > PATIENCE_SECONDS:
                break
            if await self._answered({**scope}, _repeated(messages, receive), send):
                return
            await asyncio.sleep(wait)
        await self._app(scope, _repeated(messages, receive), send)

    async def _answered(self, scope: "Scope", receive: "Receive", send: "Send") -> bool:
        """Let the server answer, unless it is a 503; return whether it did."""
        busy = False

        async def unless_busy(message: "Message") -> None:
            nonlocal busy
            busy = busy or message.get("status") == HTTPStatus.SERVICE_UNAVAILABLE
            if not busy:
                await send(message)

        try:
            await self._app(scope, receive, unless_busy)
        except Exception:  # what the answer was for is raised as well, to be logged
            if not busy:
                raise
        return not busy


def _repeated(messages: "list[Message]", receive: "Receive") -> "Receive":
    """Return what gives a request's messages again, and then those that still come, which it adds to them."""
    given = 0

    async def repeated() -> "Message":
        nonlocal given
        if given == len(messages):
            messages.append(await receive())
        given += 1
        return messages[given - 1]

    return repeated


def _migrate() -> None:
    """Bring Prefect's database up to date, one process at a time: two at once fail on a fresh one."""
    from prefect.server.database.dependencies import provide_database_interface
    from prefect.settings import PREFECT_HOME

    home = PREFECT_HOME.value()
    home.mkdir(parents=True, exist_ok=True)
    with (home / "genenc-migration.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        asyncio.run(provide_database_interface().create_db())


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
