"""A web server on loopback that serves files from memory, counts requests, and fails as it is told."""

import base64
import contextlib
import email.utils
import hashlib
import http.server
import threading
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

TIME = 1_700_000_000


@dataclass(kw_only=True)
class Site:
    """What the server has and does."""

    files: dict[str, bytes] = field(default_factory=dict)
    """By path, with a leading slash, percent-decoded."""
    url: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    """Requests by method."""
    sent: int = 0
    """Bytes of bodies."""
    faults: dict[str, list[int | str]] = field(default_factory=dict)
    """Path -> what its next requests get: a status, `cut` (half a body), `drop` (no answer), or a place to go to."""
    user: str | None = None
    """`user:password` that every request needs."""
    signed: bool = False
    """Whether every request needs `sig=good`."""
    heads: bool = True
    ranges: bool = True
    sizes: bool = True
    """Whether the answer to HEAD states a size."""
    times: dict[str, int] = field(default_factory=dict)
    seen: list[tuple[str, str]] = field(default_factory=list)
    """Method and target."""


@contextlib.contextmanager
def serving(**given: object) -> Iterator[Site]:
    """Serve until the end of the block."""
    site = Site(**given)  # type: ignore[arg-type]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(site))
    server.daemon_threads = True
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(site: Site) -> type[http.server.BaseHTTPRequestHandler]:
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            parts = urllib.parse.urlsplit(self.path)
            path, query = urllib.parse.unquote(parts.path), urllib.parse.parse_qs(parts.query)
            with lock:
                site.asked[self.command] += 1
                site.seen.append((self.command, self.path))
                fault = site.faults[path].pop(0) if site.faults.get(path) else None
            if fault == "drop":
                self.close_connection = True
                return
            if isinstance(fault, str) and fault != "cut":
                self._send(302, b"", {"Location": fault}, body=body)
                return
            wanted = f"Basic {base64.b64encode(site.user.encode()).decode()}" if site.user else None
            if isinstance(fault, int):
                self._send(fault, b"no", {}, body=body)
            elif wanted and self.headers.get("Authorization") != wanted:
                self._send(401, b"who?", {}, body=body)
            elif site.signed and query.get("sig") != ["good"]:
                self._send(403, b"no signature", {}, body=body)
            elif not site.heads and not body:
                self._send(405, b"", {}, body=body)
            elif "list-type" in query:
                self._send(200, _listed(site, path, query.get("prefix", [""])[0]), {}, body=body)
            elif path not in site.files:
                self._send(404, b"<Error><Code>NoSuchKey</Code></Error>", {}, body=body)
            else:
                self._send_file(path, body=body, cut=fault == "cut")

        def _send_file(self, path: str, *, body: bool, cut: bool) -> None:
            data = site.files[path]
            time = site.times.get(path, TIME)
            headers = {"ETag": f'"{_digest(data)}"', "Last-Modified": email.utils.formatdate(time, usegmt=True)}
            if not body and not site.sizes:
                self._send(200, b"", headers, body=False, length=False)
                return
            asked = self.headers.get("Range")
            if asked and site.ranges:
                first, last = (int(each) for each in asked.removeprefix("bytes=").split("-"))
                headers["Content-Range"] = f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"
                self._send(206, data[first : last + 1], headers, body=body, cut=cut)
            else:
                self._send(200, data, headers, body=body, cut=cut)

        def _send(
            self,
            status: int,
            data: bytes,
            headers: dict[str, str],
            *,
            body: bool,
            cut: bool = False,
            length: bool = True,
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if length:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                shown = data[: len(data) // 2] if cut else data
                with lock:
                    site.sent += len(shown)
                with contextlib.suppress(OSError):
                    self.wfile.write(shown)
                self.close_connection = self.close_connection or cut

    return Handler


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _listed(site: Site, bucket: str, prefix: str) -> bytes:
    """Return the objects of a bucket, as Google Cloud Storage lists them."""
    bucket = bucket.rstrip("/")
    items = ""
    for path, data in sorted(site.files.items()):
        key = path.removeprefix(f"{bucket}/")
        if path.startswith(f"{bucket}/") and key.startswith(prefix):
            items += (
                f"<Contents><Key>{escape(key)}</Key><LastModified>2023-11-14T22:13:20.000Z</LastModified>"
                f"<ETag>&quot;{_digest(data)}&quot;</ETag><Size>{len(data)}</Size></Contents>"
            )
    return f"<?xml version='1.0'?><ListBucketResult>{items}<IsTruncated>false</IsTruncated></ListBucketResult>".encode()
