"""The process of a command's own Prefect server: `python -m genenc_flows.server_process SOCKET`, a descriptor."""

import asyncio
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from genenc_flows import local_server

if TYPE_CHECKING:
    from alembic.config import Config
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

END_SECONDS = 5.0
"""How long a server without its command may take to end."""
AGAIN_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.4)
PATIENCE_SECONDS = 5.0
"""A request that took longer is not tried again: its client may have given up, and sent another."""


def serve(descriptor: int) -> None:
    """Run the server until it is told to end, or until the parent's end of standard input closes."""

    def end_with_parent() -> None:
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)
        # A start that hangs hears of no signal, and would keep all others from starting.
        time.sleep(END_SECONDS)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    local_server.read_prefect_settings()
    import uvicorn
    from prefect.server.api.server import create_app

    keep_working_directory_off_path()
    lock = begin()
    app = telling_of_start(Patient(create_app(ephemeral=True)), lock.close)
    # Without the services of a server that stays (schedules, late runs, workers' health), which cost CPU all the time.
    uvicorn.run(app, fd=descriptor, log_level="error", lifespan="on")


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


def telling_of_start(app: "ASGIApp", started: Callable[[], None]) -> "ASGIApp":
    """Return an app that calls `started` when the app says that its start is over, well or not."""

    async def telling(scope: "Scope", receive: "Receive", send: "Send") -> None:
        async def told(message: "Message") -> None:
            if message["type"].startswith("lifespan.startup."):
                started()
            await send(message)

        await app(scope, receive, told if scope["type"] == "lifespan" else send)

    return telling


def begin() -> TextIO:
    """Wait until no other server of this PREFECT_HOME starts; closing what is returned lets the next one start.

    A server's start brings the database there up to date and fills it: two at once fail on a fresh one.
    """
    from prefect.settings import PREFECT_HOME

    home = Path(PREFECT_HOME.value())
    home.mkdir(parents=True, exist_ok=True)
    lock = (home / "genenc-server-start.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def keep_working_directory_off_path() -> None:
    """Undo `prepend_sys_path = .` of Prefect's migrations: modules would come from whatever folder the user is in."""
    from prefect.server.database import alembic_commands

    prefects = alembic_commands.alembic_config

    def without_path() -> "Config":
        config = prefects()
        config.set_main_option("prepend_sys_path", "")
        return config

    alembic_commands.alembic_config = without_path


if __name__ == "__main__":
    serve(int(sys.argv[1]))
