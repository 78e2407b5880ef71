"""Loopback proxy for an S3 server that counts requests by kind, drops or fakes responses, or kills a process."""

import contextlib
import email.message
import http.client
import http.server
import socketserver
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from unittest import mock

from genenc_core.system import s3

SOON = {"init_backoff": timedelta(milliseconds=10), "max_backoff": timedelta(milliseconds=50), "base": 2}
"""Retry delay of this process behind a proxy."""
KINDS = ("PUT record", "PUT staged", "PUT other", "COPY", "GET record", "GET other", "HEAD", "LIST", "DELETE")
FAULTS = ("drop", "cut", "503 after", "503 before", "500 before", "late", "409", "412")
"""`drop`, `503 after`: processed, response lost; `late`: response after the timeout; `cut`: half the response."""


@dataclass(kw_only=True)
class Rule:
    """Fault to apply to the next requests of a kind."""

    kind: str
    fault: str
    times: int = 1
    part: str = ""
    """Substring of the path, or of a deletion's body."""
    used: int = 0


@dataclass(kw_only=True)
class Plan:
    """Rules of the proxy and the requests that it received."""

    upstream: str
    late_seconds: float = 1.5
    rules: list[Rule] = field(default_factory=list)
    seen: list[tuple[str, str, int]] = field(default_factory=list)
    """(kind, path, bytes of the body)."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, kind: str, fault: str, *, times: int = 1, part: str = "") -> Rule:
        """Add a rule."""
        assert kind in KINDS, kind
        assert fault in FAULTS, fault
        self.rules.append(Rule(kind=kind, fault=fault, times=times, part=part))
        return self.rules[-1]

    def count(self) -> Counter[str]:
        """Return requests by kind."""
        return Counter(kind for kind, _, _ in self.seen)

    def take(self, kind: str, path: str, body: bytes) -> str:
        """Record a request; return the fault to apply."""
        with self.lock:
            self.seen.append((kind, path, len(body)))
            for rule in self.rules:
                if rule.kind == kind and rule.used < rule.times and (rule.part in path or rule.part.encode() in body):
                    rule.used += 1
                    return rule.fault
        return ""


def kind_of(method: str, path: str, headers: email.message.Message) -> str:
    """Return what a request is for."""
    parts = urllib.parse.urlsplit(path)
    record = "/_txn/commits/" in parts.path
    if method == "GET" and "list-type=" in parts.query:
        return "LIST"
    if method == "DELETE" or (method == "POST" and "delete" in parts.query):
        return "DELETE"
    if method == "PUT" and headers.get("x-amz-copy-source"):
        return "COPY"
    if method == "PUT":
        staged = "/_txn/staging/" in parts.path
        return "PUT record" if record else "PUT staged" if staged else "PUT other"
    if method == "HEAD":
        return "HEAD"
    return "GET record" if record else "GET other"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # the body would wait 40 ms for the acknowledgement of the head
    plan: Plan

    def log_message(self, *_: object) -> None:
        """Suppress the access log."""

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = kind_of(self.command, self.path, self.headers)
        fault = self.plan.take(kind, self.path, body)
        if fault.endswith("before") or fault in ("409", "412"):
            self._answer(int(fault[:3]), [], _xml({"409": "ConditionalRequestConflict"}.get(fault, "Invented")))
            return
        status, headers, data = self._forward(body)
        if fault == "late":
            time.sleep(self.plan.late_seconds)
        if fault == "drop":
            self.close_connection = True
        elif fault == "503 after":
            self._answer(503, [], _xml("SlowDown"))
        else:
            self._answer(status, headers, data, cut=fault == "cut")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _any

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.plan.upstream, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = {name.lower(): value for name, value in headers}.get("content-length")
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(data)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            if self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Ignore errors: killed or timed-out clients close their connections."""


@contextlib.contextmanager
def proxy(endpoint: str) -> Iterator[tuple[str, Plan]]:
    """Run a proxy in front of `endpoint`; yield its own endpoint and its plan."""
    plan = Plan(upstream=endpoint.removeprefix("http://"))
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"plan": plan}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        with mock.patch.dict(s3.RETRY, backoff=SOON):
            yield f"http://127.0.0.1:{server.server_address[1]}", plan
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _xml(code: str) -> bytes:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>invented</Message></Error>'.encode()
