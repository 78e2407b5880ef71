"""Servers that end or stop answering in the middle of a flow: the work goes on, and Prefect waits for nothing."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from genenc_core.cli import output

if TYPE_CHECKING:
    from genenc_flows.local_server import Server

T = TypeVar("T")
POLL_SECONDS = 0.5
ASK_SECONDS = 10.0
SILENT_SECONDS = 60.0
"""A server that has not answered for so long is taken for gone; a restart is shorter."""
GONE_SECONDS = 2.0
"""How long a request waits for a server that is taken for gone: a stopped one takes requests and never answers."""
_OUTCOMES: ContextVar[list[object] | None] = ContextVar("outcomes", default=None)


def keep(outcome: T) -> T:
    """Return what a flow came to, and keep it for the command: the server that is to have it may be gone."""
    kept = _OUTCOMES.get()
    if kept is not None:
        kept.append(outcome)
    return outcome


@contextlib.contextmanager
def outcomes() -> Iterator[list[object]]:
    """Collect what the flows of this block keep."""
    kept: list[object] = []
    token = _OUTCOMES.set(kept)
    try:
        yield kept
    finally:
        _OUTCOMES.reset(token)


class Watch:
    """Notices that the server is gone and makes Prefect's requests fail without retries, so that the work goes on."""

    def __init__(self, server: "Server") -> None:
        from prefect.settings import (
            get_current_settings,  # the first import reads them: not before `read_prefect_settings`
        )

        self.gone = False
        self._lock = threading.Lock()
        self._server = server
        # Changed in place: temporary settings hold in one thread only, and Prefect sends requests from many.
        settings = get_current_settings()
        self._client, self._api = settings.client, settings.api
        self._retries, self._timeout = self._client.max_retries, self._api.request_timeout
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_details: object) -> None:
        self._over.set()
        self._thread.join(timeout=POLL_SECONDS)

    def explains(self, error: Exception) -> bool:
        """Whether an error that ended a flow comes of a server that is gone."""
        import httpx

        if not self.gone and self._server.has_ended():
            self._give_up("ended")
        elif not self.gone and isinstance(error, httpx.TransportError):
            self._give_up("does not answer")
        return self.gone

    def _keep_looking(self) -> None:
        answered = asked = time.monotonic()
        while not self._over.wait(POLL_SECONDS):
            if self._server.has_ended():
                self._give_up("ended")
                return
            if time.monotonic() - asked < ASK_SECONDS:
                continue
            if self._server.answers():
                answered = time.monotonic()
                self._take_back()
            elif time.monotonic() - answered > SILENT_SECONDS:
                self._give_up("does not answer")
                self._server.end()
            asked = time.monotonic()

    def _give_up(self, how: str) -> None:
        with self._lock:
            if not self.gone:
                self.gone = True
                self._client.max_retries = 0
                self._api.request_timeout = min(self._timeout, GONE_SECONDS)
                logging.raiseExceptions = False  # Prefect would write about every log that it cannot send
                output.tell(
                    f"the Prefect server {how}; the command goes on without it", label="warning:", style="yellow"
                )

    def _take_back(self) -> None:
        if self.gone:
            self.gone = False
            self._client.max_retries, self._api.request_timeout = self._retries, self._timeout
            logging.raiseExceptions = True
            output.tell("the Prefect server answers again")
