"""Requests to web servers: connections that are kept, retries, few redirects, and no credentials in messages."""

import http.client
import netrc
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Final, NamedTuple

from genenc_core import text

AGAIN: Final = frozenset((408, 425, 429, 500, 502, 503, 504))
"""Answers after which the same request may succeed."""
_REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))
_MOST_REDIRECTS: Final = 5
_CONNECT: Final = 10.0
_READ: Final = 30.0
"""Seconds without any byte."""
_PART: Final = 2**20
_HIDDEN: Final = (
    "policy",
    "expires",
    "googleaccessid",
    "key-pair-id",
    "x-goog-",
    "x-amz-",
    "x-oss-",
    "sp",
    "st",
    "spr",
)
"""Query parameters of signed addresses beside those that `text.redacted` knows; they change with each signature."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a request is repeated."""

    tries: int = 7
    first_wait: float = 0.2
    longest_wait: float = 8.0


class Answer(NamedTuple):
    """What a server answered."""

    status: int
    headers: Message
    body: bytes


class TooLarge(Exception):
    """A body has more bytes than were asked for."""


class WebError(OSError):
    """No answer, or one that is an error."""

    def __init__(self, url: str, reason: str, status: int = 0) -> None:
        super().__init__(f"{reason} ({without_credentials(url)[0]})")
        self.reason = reason
        self.status = status


def is_address(entry: str) -> bool:
    """Return whether a text is the address of something on the web."""
    return entry[:8].lower().startswith(("http://", "https://"))


def without_credentials(url: str) -> tuple[str, bool]:
    """Return an address without user, password and what signs it, and whether it had any of these."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return text.redacted(url), False
    kept = [each for each in parts.query.split("&") if each and not _is_secret(each)]
    host = parts.netloc.rpartition("@")[2]
    clean = urllib.parse.urlunsplit((parts.scheme.lower(), host, parts.path, "&".join(kept), ""))
    had = host != parts.netloc or len(kept) < len([each for each in parts.query.split("&") if each])
    return clean, had


def secret_names(url: str) -> list[str]:
    """Return the names of an address's parameters that `without_credentials` leaves out."""
    return [each.partition("=")[0] for each in urllib.parse.urlsplit(url).query.split("&") if each and _is_secret(each)]


def _is_secret(parameter: str) -> bool:
    name = parameter.partition("=")[0].lower()
    return text.redacted(f"?{name}=x") != f"?{name}=x" or any(
        name == word or (word.endswith("-") and name.startswith(word)) for word in _HIDDEN
    )


class Web:
    """A client; its threads keep a connection to each server that they asked."""

    def __init__(self, patience: Patience | None = None) -> None:
        self._patience = patience or Patience()
        self._own = threading.local()
        self._context = ssl.create_default_context()

    def request(self, method: str, url: str, *, headers: Mapping[str, str] | None = None, most: int = 2**31) -> Answer:
        """Return the answer of a server, of which redirects are followed.

        Args:
            method: GET or HEAD.
            url: the address, perhaps with user and password.
            headers: further headers.
            most: bytes that the body may have.

        Raises:
            WebError: no answer after all tries, an answer of 400 or above, or too many redirects.
            TooLarge: the body is larger than `most`.
        """
        start = urllib.parse.urlsplit(url).hostname
        for _ in range(_MOST_REDIRECTS + 1):
            # A password is for the server that it was given for.
            trusted = urllib.parse.urlsplit(url).hostname == start
            answer = self._with_patience(
                method, url, {**(headers or {}), **(_authorization(url) if trusted else {})}, most
            )
            if answer.status not in _REDIRECTS:
                if answer.status >= 400:
                    raise WebError(url, _meaning(answer.status), answer.status)
                return answer
            following = urllib.parse.urljoin(url, answer.headers.get("Location", ""))
            if not is_address(following):
                raise WebError(url, "it leads to an address that is not of the web")
            if url.lower().startswith("https") and not following.lower().startswith("https"):
                raise WebError(url, "it leads from https to http, which is not followed")
            url = following
        raise WebError(url, f"it leads to more than {_MOST_REDIRECTS} other addresses, one after the other")

    def _with_patience(self, method: str, url: str, headers: Mapping[str, str], most: int) -> Answer:
        wait = self._patience.first_wait
        for left in range(self._patience.tries)[::-1]:
            asked = 0.0
            try:
                answer = self._once(method, url, headers, most)
                if answer.status not in AGAIN or not left:
                    return answer
                after = answer.headers.get("Retry-After", "")
                asked = float(after) if after.isdecimal() and len(after) < 4 else 0.0
            except (OSError, http.client.HTTPException) as error:
                self._forget(url)
                if not left or isinstance(error, ssl.SSLCertVerificationError):
                    raise WebError(url, _described(error)) from error
            time.sleep(min(max(wait, asked), 4 * self._patience.longest_wait))
            wait = min(4 * wait, self._patience.longest_wait)
        raise AssertionError("no try")

    def _once(self, method: str, url: str, headers: Mapping[str, str], most: int) -> Answer:
        connection, target = self._connection(url)
        connection.request(
            method, target, headers={"User-Agent": "genenc", "Accept": "*/*", "Accept-Encoding": "identity", **headers}
        )
        answer = connection.getresponse()
        wanted = answer.status < 300 and method != "HEAD"
        if wanted and "Range" in headers and answer.status != 206:
            self._forget(url)  # and leave the body, which is the whole file
            raise TooLarge
        body = bytearray()
        while part := answer.read(_PART):
            body += part
            if len(body) > (most if wanted else _PART):
                self._forget(url)
                if wanted:
                    raise TooLarge
                break
        if answer.length and wanted:
            raise http.client.IncompleteRead(bytes(body), answer.length)
        if answer.will_close:
            self._forget(url)
        return Answer(answer.status, answer.headers, bytes(body))

    def _connection(self, url: str) -> tuple[http.client.HTTPConnection, str]:
        """Return a connection, and what to ask it for."""
        parts = urllib.parse.urlsplit(url)
        if not parts.hostname:
            raise WebError(url, "the address names no server")
        path = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        target = path + (f"?{urllib.parse.quote(parts.query, safe='/%:@!$&()*+,;=~-._?')}" if parts.query else "")
        proxy = _proxy(parts.scheme.lower(), parts.hostname)
        known = self._known()
        key = _server(url)
        if key not in known:
            known[key] = self._opened(parts, proxy)
        plain = proxy and parts.scheme.lower() == "http"
        return known[key], f"http://{parts.netloc.rpartition('@')[2]}{target}" if plain else target

    def _opened(self, parts: urllib.parse.SplitResult, proxy: str) -> http.client.HTTPConnection:
        host, port = str(parts.hostname), parts.port
        via = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}") if proxy else None
        there, door = (str(via.hostname), via.port) if via else (host, port)
        if parts.scheme.lower() == "https":
            opened: http.client.HTTPConnection = http.client.HTTPSConnection(
                there, door, timeout=_CONNECT, context=self._context
            )
            if via:
                opened.set_tunnel(host, port or 443)
        else:
            opened = http.client.HTTPConnection(there, door, timeout=_CONNECT)
        opened.connect()
        opened.sock.settimeout(_READ)
        return opened

    def _known(self) -> dict[str, http.client.HTTPConnection]:
        if not hasattr(self._own, "connections"):
            self._own.connections = {}
        known: dict[str, http.client.HTTPConnection] = self._own.connections
        return known

    def _forget(self, url: str) -> None:
        connection = self._known().pop(_server(url), None)
        if connection is not None:
            connection.close()


def _server(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme.lower()}://{parts.netloc.rpartition('@')[2].lower()}"


def _proxy(scheme: str, host: str) -> str:
    return "" if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(scheme, "")


def _authorization(url: str) -> dict[str, str]:
    """Return the header for user and password, of the address or of `~/.netrc`."""
    import base64

    parts = urllib.parse.urlsplit(url)
    if parts.username is not None:
        pair = urllib.parse.unquote(parts.username), urllib.parse.unquote(parts.password or "")
    else:
        try:
            found = netrc.netrc().authenticators(parts.hostname or "")
        except (OSError, netrc.NetrcParseError):
            found = None
        if found is None or not found[0]:
            return {}
        pair = found[0], found[2] or ""
    return {"Authorization": f"Basic {base64.b64encode(':'.join(pair).encode()).decode()}"}


def _meaning(status: int) -> str:
    known = {401: "it needs a user and a password: ~/.netrc can hold them", 403: "access is forbidden, or has expired"}
    gone = {404: "there is no such file", 410: "the file is gone"}
    said = http.client.responses.get(status, "")
    return f"{(known | gone).get(status, 'the server cannot answer')}: {status} {said}".rstrip()


def _described(error: Exception) -> str:
    if isinstance(error, WebError):
        return error.reason
    if isinstance(error, socket.gaierror):
        return "there is no server of this name, or no network"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not valid: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "the server does not answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "the server refuses connections"
    return f"the connection broke off: {type(error).__name__}"
