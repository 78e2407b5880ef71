"""The forms of what a document of the store may hold: nobody's document names a file outside of the run folder."""

import re
from collections.abc import Mapping
from typing import Any

_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"(sha256|blake3):[0-9a-f]{64}")
_COMPONENT = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9_.\-]+")
LARGEST = 2**53


def relative(value: Any) -> str:
    """Return a path below a folder, as the store writes them: `features/c.0.0`.

    Raises:
        ValueError: anything else, such as a path that leaves the folder.
    """
    if not isinstance(value, str) or not all(_COMPONENT.fullmatch(part) for part in value.split("/")):
        raise ValueError(f"{str(value)[:200]!r} is not the path of an object of the store")
    return value


def below(value: Any) -> str:
    """Return a path below a folder whose components may have any characters.

    Raises:
        ValueError: anything else, such as a path that leaves the folder.
    """
    if not isinstance(value, str) or any(part in ("", ".", "..") or "\0" in part for part in value.split("/")):
        raise ValueError(f"{str(value)[:200]!r} is not the path of a file of the run folder")
    return value


def count(value: Any) -> int:
    """Return a whole number from 0 to 2**53.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST:
        raise ValueError(f"{str(value)[:80] if not isinstance(value, int) else 'a number'} is not a count")
    return value


def word(value: Any) -> str:
    """Return a text of at most 200 characters.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(value, str) or len(value) > 200:
        raise ValueError(f"{str(value)[:80]!r} is not a short text")
    return value


def sha256(value: Any) -> str:
    """Return a sha256 in hexadecimal.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(f"{str(value)[:80]!r} is not a sha256")
    return value


def digest(value: Any) -> str:
    """Return a digest with the name of its algorithm: `blake3:` or `sha256:` and 64 hexadecimal digits.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ValueError(f"{str(value)[:80]!r} is not a digest that this genenc knows (blake3:... or sha256:...)")
    return value


def mapping(value: Any) -> Mapping[str, Any]:
    """Return names and values.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{str(value)[:80]!r} is not an object")
    return value
