"""Escaping of untrusted text for terminals, Markdown and JSON, and redaction of credentials."""

import difflib
import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HIDDEN = "***"
MAX_DIGITS = 18
SECRET_WORDS = (
    r"(?:[\w.-]{0,100}(?:token|secret|signature|credential|password|passwd|api[_-]?key|access[_-]?key)[\w.-]{0,100}"
    r"|(?:AWSAccessKey|X-Amz-[A-Za-z]{1,50})[\w.-]{0,100}|sig|se|sv|key|pwd|auth)"
)

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~])")
# `user:password@host` in a URL; S3 keys contain slashes, and pathlib collapses `//` to `/`.
# Repetitions are bounded because the search restarts at each `:/` and the text may be long and untrusted.
_USER = re.compile(
    r"(?<=[A-Za-z0-9+.\-]{2})(:/{1,2})"
    r"(?:[^/\s:@'\"<>]{0,500}:(?!\d{1,9}(?:/|\Z))[^\s'\"<>]{0,500}|[^/\s'\"<>]{0,500})@"
)
_QUERY = re.compile(rf"([?&;]{SECRET_WORDS}=)[^&\s'\"<>;#]*", re.IGNORECASE)


def printable(text: str) -> str:
    """Escape all unprintable characters, which leaves one line that is safe for a terminal.

    These are control characters, line breaks, bidirectional marks and lone surrogates.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def encodable(text: str) -> str:
    """Escape what UTF-8 cannot encode: lone surrogates, as in undecodable file names."""
    return text.encode(errors="backslashreplace").decode()


def markdown(text: str) -> str:
    """Escape text so that Markdown and HTML show it literally, without links, images, tags or line breaks."""
    shown = printable(text)
    shown = shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", shown)


def code_block(text: str, language: str = "") -> str:
    """Return a fenced Markdown block whose fence is longer than any run of backticks in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    shown = "\n".join(printable(line) for line in text.rstrip("\n").split("\n"))
    return f"{fence}{language}\n{shown}\n{fence}"


def redacted(text: str) -> str:
    """Redact credentials in URLs: `user:password@` and secret query parameters."""
    if ":/" not in text and "=" not in text:
        return text
    return _QUERY.sub(rf"\1{HIDDEN}", _USER.sub(rf"\1{HIDDEN}@", text))


def plural(count: int, noun: str) -> str:
    """Return `1 shard`, `2 shards`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def size(count: float) -> str:
    """Return a number of bytes in words, such as `1.2 MB`."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def argument(value: object) -> str:
    """Quote a path or URL for a shell command."""
    return shlex.quote(str(value))


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `did you mean 'pad'?` with the known words spelled like `word`; empty if there are none."""
    near = difflib.get_close_matches(word.lower(), known)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""


def whole_number(text: str) -> int | None:
    """Parse a non-negative integer of at most 18 ASCII digits; None for anything else.

    `int` accepts digits of every script, and raises for thousands of them.
    """
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else None


def holds_credentials(text: str) -> bool:
    """Return whether `redacted` would change the text."""
    return redacted(text) != text


def shortened(text: str, max_length: int) -> str:
    """Shorten text to at most `max_length` characters, with `...` in place of its middle."""
    if len(text) <= max_length:
        return text
    half = (max_length - 3) // 2
    return f"{text[:half]}...{text[-half:]}"


def place(path: str) -> str:
    """Return the last component of a path or address as a short name; of a dataset's part also the dataset's."""
    found = [part for part in path.split("/") if part]
    return "/".join((found[-3], found[-1])) if found[-2:-1] == ["parts"] and len(found) > 2 else (found or [path])[-1]


def title(text: str, max_length: int = 200) -> str:
    """Return text as a display name: on one line, printable, redacted and shortened."""
    return shortened(printable(redacted(text)), max_length)


def json_document(value: Any) -> str:
    """Serialize to JSON that is safe to print: NaN and infinities become null, unprintable characters are escaped."""
    document = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    if document.replace("\n", "").isprintable():
        return document
    return "".join(char if char.isprintable() or char == "\n" else _escaped(char) for char in document)


def _escaped(char: str) -> str:
    # json.dumps writes astral characters as two escapes, but leaves DEL alone because it is ASCII.
    return json.dumps(char)[1:-1] if ord(char) > 0x7F else f"\\u{ord(char):04x}"


def _plain(value: Any) -> Any:
    """Convert a value to JSON types."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value) if isinstance(value, Path) else _plain_other(value)


def _plain_other(value: Any) -> Any:
    number = getattr(value, "item", None)
    return _plain(number()) if callable(number) else str(value)
