"""The command's own Prefect server: what its database was too busy for is tried again before a client hears of it."""

import asyncio
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_HOME, temporary_settings

from genenc_flows import server_process

PARTS = [{"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.request", "body": b"b"}]


class Busy:
    """An ASGI app that refuses the first requests, and raises after it as Starlette does; then it echoes the body."""

    def __init__(self, refusals: int, status: int = 503) -> None:
        self.refusals, self.status, self.asked = refusals, status, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        scope["path"] += "/changed"
        status = 200 if self.asked > self.refusals else self.status
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body + scope["path"].encode()})
        if status != 200:
            raise ConnectionError("database is locked")


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_process, "RETRY_SECONDS", (0.0, 0.0, 0.0))


def answered(app: Any, kind: str = "http", *, patient: bool = True) -> tuple[list[Any], Exception | None]:
    """Return what an app sends for one request, and what it raises."""
    sent: list[Any] = []
    parts = iter(PARTS)

    async def receive() -> Any:
        return next(parts)

    async def send(message: Any) -> None:
        sent.append(message)

    try:
        asyncio.run(
            (server_process.RetryWhenBusy(app) if patient else app)({"type": kind, "path": "/api"}, receive, send)
        )
    except ConnectionError as error:
        return sent, error
    return sent, None


def test_a_refused_request_is_repeated_whole_and_only_the_answer_is_sent() -> None:
    app = Busy(2)
    (start, body), raised = answered(app)
    assert (app.asked, start["status"], body["body"], raised) == (3, 200, b"ab/api/changed", None)


@pytest.mark.parametrize(("status", "asked"), [(503, 4), (500, 1)])
def test_what_stays_refused_and_other_faults_are_told(status: int, asked: int) -> None:
    app = Busy(100, status)
    (start, _body), raised = answered(app)
    assert (app.asked, start["status"]) == (asked, status)
    assert raised is not None


def test_a_request_that_took_long_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client may have given up, and sent another."""
    monkeypatch.setattr(server_process, "PATIENCE_SECONDS", -1.0)
    app = Busy(1)
    (start, body), _raised = answered(app)
    assert (app.asked, start["status"], body["body"]) == (1, 503, b"ab/api/changed")


def test_a_body_that_nobody_asks_for_is_not_read() -> None:
    """What is refused by its headers must cost no memory."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": []})

    async def receive() -> Any:
        raise AssertionError

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(server_process.RetryWhenBusy(app)({"type": "http", "path": "/api"}, receive, send))
    assert [message["status"] for message in sent] == [401]


def test_what_is_no_request_passes_untouched() -> None:
    seen = []

    async def app(scope: Any, receive: Any, _send: Any) -> None:
        seen.append((scope, await receive()))

    answered(app, "websocket")
    assert seen == [({"type": "websocket", "path": "/api"}, PARTS[0])]


@pytest.mark.parametrize("end", ["complete", "failed"])
def test_the_next_server_may_start_when_the_start_of_this_one_is_over(end: str) -> None:
    """Two that fill a fresh database at once fail."""
    order: list[str] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        order.append("database filled")
        await send({"type": f"lifespan.startup.{end}"})
        order.append("serving")
        await send({"type": "lifespan.shutdown.complete"})

    sent, _ = answered(server_process.with_start_callback(app, lambda: order.append("next")), "lifespan", patient=False)
    assert order == ["database filled", "next", "serving"]
    assert [message["type"] for message in sent] == [f"lifespan.startup.{end}", "lifespan.shutdown.complete"]


def test_one_server_starts_at_a_time_on_a_database(tmp_path: Path) -> None:
    with temporary_settings({PREFECT_HOME: tmp_path / "new"}):
        first = server_process.lock_startup()
        with (tmp_path / "new" / "genenc-server-start.lock").open() as other:
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            first.close()
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


HANGING = """
import asyncio, socket
import prefect.server.api.server as api
from genenc_flows import server_process

async def app(scope, receive, send):
    print("starting", flush=True)
    await asyncio.sleep(600)

api.create_app = lambda **_: app
server_process.END_SECONDS = 0.1
with socket.create_server(("127.0.0.1", 0)) as listening:
    server_process.serve(listening.fileno())
"""


@pytest.mark.slow
def test_a_server_whose_start_hangs_ends_with_its_command(tmp_path: Path) -> None:
    """It would keep every other from starting."""
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", HANGING], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"starting\n"
        process.stdin.close()
        try:
            assert process.wait(300) == 1
        finally:
            process.kill()
