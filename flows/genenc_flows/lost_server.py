"""Handling of Prefect servers that exit or stop responding during a flow: the work continues without them."""

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
"""Time without a response after which a server is considered lost; longer than a restart takes."""
GONE_SECONDS = 2.0
"""Request timeout for a lost server: a stopped process accepts connections but never responds."""
_OUTCOMES: ContextVar[list[object] | None] = ContextVar("outcomes", default=None)


def keep(outcome: T) -> T:
    """Return a flow's outcome, and keep it for the command in case the server is lost."""
    kept = _OUTCOMES.get()
    if kept is not None:
        kept.append(outcome)
    return outcome


@contextlib.contextmanager
def outcomes() -> Iterator[list[object]]:
    """Collect the outcomes kept by flows in this block."""
    kept: list[object] = []
    token = _OUTCOMES.set(kept)
    try:
        yield kept
    finally:
        _OUTCOMES.reset(token)


class Watch:
    """Detects a lost server and makes Prefect's requests fail fast, so that the work continues."""

    def __init__(self, server: "Server") -> None:
        from prefect.settings import (
            get_current_settings,  # reads the settings: only after `read_prefect_settings`
        )

        self.gone = False
        self._lock = threading.Lock()
        self._server = server
        # Modified in place: temporary settings apply to one thread only, and Prefect sends requests from many.
        settings = get_current_settings()
        self._client, self._api = settings.client, settings.api
        self._retries, self._timeout = self._client.max_retries, self._api.request_timeout
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._poll_loop, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_details: object) -> None:
        self._over.set()
        self._thread.join(timeout=POLL_SECONDS)

    def explains(self, error: Exception) -> bool:
        """Return whether an error that ended a flow is due to a lost server."""
        import httpx

        if not self.gone and self._server.has_ended():
            self._give_up("exited")
        elif not self.gone and isinstance(error, httpx.TransportError):
            self._give_up("does not respond")
        return self.gone

    def _poll_loop(self) -> None:
        answered = asked = time.monotonic()
        while not self._over.wait(POLL_SECONDS):
            if self._server.has_ended():
                self._give_up("exited")
                return
            if time.monotonic() - asked < ASK_SECONDS:
                continue
            if self._server.answers():
                answered = time.monotonic()
                self._reconnect()
            elif time.monotonic() - answered > SILENT_SECONDS:
                self._give_up("does not respond")
                self._server.end()
            asked = time.monotonic()

    def _give_up(self, how: str) -> None:
        with self._lock:
            if not self.gone:
                self.gone = True
                self._client.max_retries = 0
                self._api.request_timeout = min(self._timeout, GONE_SECONDS)
                logging.raiseExceptions = False  # Prefect would report every log record that it cannot send
                output.tell(f"the Prefect server {how}; continuing without it", label="warning:", style="yellow")

    def _reconnect(self) -> None:
        if self.gone:
            self.gone = False
            self._client.max_retries, self._api.request_timeout = self._retries, self._timeout
            logging.raiseExceptions = True
            output.tell("the Prefect server responds again")
