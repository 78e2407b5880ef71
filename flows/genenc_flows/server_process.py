"""Temporary Prefect server process: `python -m genenc_flows.server_process FD`, with an inherited socket."""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from genenc_core.system import locks
from genenc_flows import local_server

if TYPE_CHECKING:
    from alembic.config import Config
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

END_SECONDS = 5.0
"""Time limit for the shutdown after the parent has exited."""
RETRY_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.4)
PATIENCE_SECONDS = 5.0
"""Slower requests are not retried: the client may have given up and sent another."""


def serve(descriptor: int) -> None:
    """Run the server until it is terminated or the parent closes standard input."""

    def end_with_parent() -> None:
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)
        # A hanging start ignores signals, and would keep other servers from starting.
        time.sleep(END_SECONDS)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    local_server.read_prefect_settings()
    import uvicorn
    from prefect.server.api.server import create_app

    keep_working_directory_off_path()
    lock = lock_startup()
    app = with_start_callback(RetryWhenBusy(create_app(ephemeral=True)), lock.close)
    # Without background services (schedules, late runs, worker health), which constantly use CPU.
    uvicorn.run(app, fd=descriptor, log_level="error", lifespan="on")


class RetryWhenBusy:
    """ASGI middleware that retries requests refused because the server's database is busy.

    Prefect responds 503 when two requests write to SQLite at once, which a flow's tasks often do, and its client
    then waits for two seconds or more.
    """

    def __init__(self, app: "ASGIApp") -> None:
        self._app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Handle one ASGI request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        messages: list[Message] = []
        begun = time.monotonic()
        for wait in RETRY_SECONDS:
            if time.monotonic() - begun > PATIENCE_SECONDS:
                break
            if await self._try({**scope}, _replayed(messages, receive), send):
                return
            await asyncio.sleep(wait)
        await self._app(scope, _replayed(messages, receive), send)

    async def _try(self, scope: "Scope", receive: "Receive", send: "Send") -> bool:
        """Forward the response unless it is a 503; return whether it was forwarded."""
        busy = False

        async def unless_busy(message: "Message") -> None:
            nonlocal busy
            busy = busy or message.get("status") == HTTPStatus.SERVICE_UNAVAILABLE
            if not busy:
                await send(message)

        try:
            await self._app(scope, receive, unless_busy)
        except Exception:  # the error behind a 503 is raised as well, for logging
            if not busy:
                raise
        return not busy


def _replayed(messages: "list[Message]", receive: "Receive") -> "Receive":
    """Return a `receive` that replays a request's messages, then receives and records new ones."""
    position = 0

    async def replayed() -> "Message":
        nonlocal position
        if position == len(messages):
            messages.append(await receive())
        position += 1
        return messages[position - 1]

    return replayed


def with_start_callback(app: "ASGIApp", started: Callable[[], None]) -> "ASGIApp":
    """Return an app that calls `started` when the app's startup has completed or failed."""

    async def wrapped(scope: "Scope", receive: "Receive", send: "Send") -> None:
        async def observe(message: "Message") -> None:
            if message["type"].startswith("lifespan.startup."):
                started()
            await send(message)

        await app(scope, receive, observe if scope["type"] == "lifespan" else send)

    return wrapped


def lock_startup() -> TextIO:
    """Wait until no other server of this PREFECT_HOME is starting; close the returned file to let the next one start.

    Startup migrates and fills the database there: two concurrent startups fail on a new one.
    """
    from prefect.settings import PREFECT_HOME

    home = Path(PREFECT_HOME.value())
    home.mkdir(parents=True, exist_ok=True)
    path = home / "genenc-server-start.lock"
    return os.fdopen(locks.acquire(lambda: os.open(path, os.O_RDWR | os.O_CREAT, 0o666), path.stat), "w")


def keep_working_directory_off_path() -> None:
    """Undo `prepend_sys_path = .` of Prefect's migrations, which would import modules from the working directory."""
    from prefect.server.database import alembic_commands

    prefect_config = alembic_commands.alembic_config

    def without_path() -> "Config":
        config = prefect_config()
        config.set_main_option("prepend_sys_path", "")
        return config

    alembic_commands.alembic_config = without_path


if __name__ == "__main__":
    serve(int(sys.argv[1]))
