"""Text of unknown origin made safe for where it goes: a terminal, Markdown, JSON; and credentials taken out of it."""

import difflib
import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HIDDEN = "***"
MOST_DIGITS = 18
SECRET_WORDS = (
    r"(?:[\w.-]{0,100}(?:token|secret|signature|credential|password|passwd|api[_-]?key|access[_-]?key)[\w.-]{0,100}"
    r"|(?:AWSAccessKey|X-Amz-[A-Za-z]{1,50})[\w.-]{0,100}|sig|se|sv|key|pwd|auth)"
)

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~])")
# `user:password@host` of an address; keys of S3 hold slashes, and pathlib makes one slash of two.
# Every repetition is bounded, since a search begins anew at each `:/`, and texts may be long and somebody else's.
_USER = re.compile(
    r"(?<=[A-Za-z0-9+.\-]{2})(:/{1,2})"
    r"(?:[^/\s:@'\"<>]{0,500}:(?!\d{1,9}(?:/|\Z))[^\s'\"<>]{0,500}|[^/\s'\"<>]{0,500})@"
)
_QUERY = re.compile(rf"([?&;]{SECRET_WORDS}=)[^&\s'\"<>;#]*", re.IGNORECASE)


def printable(text: str) -> str:
    """Return text on one line without characters that steer a terminal: each is shown as its escape.

    These are control characters, line breaks, marks that turn the direction of writing, and lone surrogates.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def encodable(text: str) -> str:
    """Return text that UTF-8 can write: a lone surrogate, as of an odd file name, becomes its escape."""
    return text.encode(errors="backslashreplace").decode()


def markdown(text: str) -> str:
    """Return text that Markdown and HTML show as it is: nothing in it is a link, an image, a tag or a new line."""
    shown = printable(text)
    shown = shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", shown)


def code_block(text: str, language: str = "") -> str:
    """Return a fenced Markdown block whose fence is longer than any run of backquotes in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    shown = "\n".join(printable(line) for line in text.rstrip("\n").split("\n"))
    return f"{fence}{language}\n{shown}\n{fence}"


def redacted(text: str) -> str:
    """Return text with the credentials of addresses hidden: `user:password@`, and values of signed queries."""
    if ":/" not in text and "=" not in text:
        return text
    return _QUERY.sub(rf"\1{HIDDEN}", _USER.sub(rf"\1{HIDDEN}@", text))


def plural(count: int, noun: str) -> str:
    """Return `1 shard`, `2 shards`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def argument(value: object) -> str:
    """Return a path or an address as one word of a shell command."""
    return shlex.quote(str(value))


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `did you mean 'pad'?` for a word that is spelled like one or several known ones, else nothing."""
    near = difflib.get_close_matches(word.lower(), known)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""


def whole_number(text: str) -> int | None:
    """Return the number that plain digits write, at most 18 of them; None for anything else.

    `int` takes digits of every script, and raises for thousands of them.
    """
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS else None


def holds_credentials(text: str) -> bool:
    """Tell whether `redacted` would hide something of an address."""
    return redacted(text) != text


def shortened(text: str, most: int) -> str:
    """Return text of at most `most` characters; what is left out of its middle is told by `...`."""
    if len(text) <= most:
        return text
    half = (most - 3) // 2
    return f"{text[:half]}...{text[-half:]}"


def title(text: str, most: int = 200) -> str:
    """Return text as a name to be shown: on one line, printable, without credentials, shortened."""
    return shortened(printable(redacted(text)), most)


def json_document(value: Any) -> str:
    """Return valid JSON that is also safe to print: NaN and infinities are null, unprintable characters escaped."""
    written = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    if written.replace("\n", "").isprintable():
        return written
    return "".join(char if char.isprintable() or char == "\n" else _escaped(char) for char in written)


def _escaped(char: str) -> str:
    # Astral characters are two escapes in JSON, which json.dumps knows; DEL is ASCII to it.
    return json.dumps(char)[1:-1] if ord(char) > 0x7F else f"\\u{ord(char):04x}"


def _plain(value: Any) -> Any:
    """Return only what JSON has."""
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
