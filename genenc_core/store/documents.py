"""JSON documents of the store: field validators and checksums."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from genenc_core import errors
from genenc_core.system import digests

_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(rf"({'|'.join(digests.ALGORITHMS)}):[0-9a-f]{{64}}")
_COMPONENT = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9_.\-]+")
LARGEST = 2**53


def relative(value: Any) -> str:
    """Validate a relative path as the store writes them, such as `features/c.0.0`.

    Raises:
        ValueError: anything else, such as a path that leaves the folder.
    """
    if not isinstance(value, str) or not all(_COMPONENT.fullmatch(part) for part in value.split("/")):
        raise ValueError(f"{str(value)[:200]!r} is not a valid object path in the store")
    return value


def below(value: Any) -> str:
    """Validate a relative path whose components may contain any characters.

    Raises:
        ValueError: anything else, such as a path that leaves the folder.
    """
    if not isinstance(value, str) or any(part in ("", ".", "..") or "\0" in part for part in value.split("/")):
        raise ValueError(f"{str(value)[:200]!r} is not a valid file path in the run folder")
    return value


def count(value: Any) -> int:
    """Validate an integer from 0 to 2**53.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST:
        raise ValueError(
            f"{str(value)[:80] if not isinstance(value, int) else 'a number'} is not an integer from 0 to 2**53"
        )
    return value


def word(value: Any) -> str:
    """Validate a string of at most 200 characters.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(value, str) or len(value) > 200:
        raise ValueError(f"{str(value)[:80]!r} is not a string of at most 200 characters")
    return value


def sha256(value: Any) -> str:
    """Validate a sha256 in hexadecimal.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(f"{str(value)[:80]!r} is not a sha256 in hexadecimal")
    return value


def named_digest(value: Any) -> str:
    """Validate a digest prefixed with its algorithm: `blake3:` or `sha256:` and 64 hexadecimal digits.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ValueError(f"{str(value)[:80]!r} is not a supported digest (blake3:... or sha256:...)")
    return value


def mapping(value: Any) -> Mapping[str, Any]:
    """Validate a mapping.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{str(value)[:80]!r} is not a JSON object")
    return value


class OtherVersion(errors.StoreError):
    """An undamaged document in a schema version that this version of genenc does not read."""


def dumps(schema: str, content: Mapping[str, Any]) -> bytes:
    """Serialise a document: schema, content, then the `sha256` of both in canonical JSON.

    Raises:
        StoreError: the content is not JSON (NaN and Infinity are not).
    """
    body = {"schema": schema, **normal(schema, content)}
    return (
        json.dumps({**body, "sha256": digests.DOCUMENT.hex_of_json(body)}, indent=1, ensure_ascii=False) + "\n"
    ).encode()


def compact(schema: str, content: Mapping[str, Any]) -> bytes:
    """Serialise a document on one line; `content` must be as `normal` returns it."""
    text = digests.canonical_json({"schema": schema, **content})
    return f'{text[:-1]},"sha256":"{digests.DOCUMENT.hex(text.encode())}"}}\n'.encode()


def normal(schema: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return content as it will be read back: tuples become lists, keys become strings.

    Raises:
        StoreError: the content is not JSON (NaN and Infinity are not).
    """
    try:
        normalised: dict[str, Any] = json.loads(json.dumps(content, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise errors.StoreError(f"a {schema} document must be JSON: {error}") from error
    return normalised


def loads(data: bytes, *, schema: str, subject: str, older: Sequence[str] = ()) -> dict[str, Any]:
    """Parse a document and check its digest; `older` schemas are accepted too.

    Raises:
        OtherVersion: the document has an unsupported schema version.
        StoreError: it is not a document of this schema, is damaged or was edited.
    """
    try:
        body = json.loads(data)
        stated = body.pop("sha256")
        stored = body.pop("schema")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        reason = repr(error)[:200]
        raise errors.StoreError(f"{subject} is damaged: not a {schema} document ({reason})") from error
    known = stored in (schema, *older)
    other = f"{subject} has schema {str(stored)[:80]!r}, but this version of genenc reads {schema!r}"
    if not known and str(stored).partition("/")[0] != schema.partition("/")[0]:
        raise errors.StoreError(other)
    try:
        actual = digests.DOCUMENT.hex_of_json({"schema": stored, **body})
    except (ValueError, RecursionError) as error:
        raise errors.StoreError(f"{subject} is damaged: {error}") from error
    if actual != stated:
        raise errors.StoreError(
            f"{subject} was changed after it was written: its content has sha256 {actual}, but it records "
            f"{str(stated)[:80]}"
        )
    if not known:
        raise OtherVersion(f"{other}: use the version of genenc that wrote it")
    content: dict[str, Any] = body
    return content


def digest(content: Mapping[str, Any]) -> str:
    """Return the digest of a mapping in canonical JSON."""
    return digests.DOCUMENT.hex_of_json(dict(content))


def verbatim(data: bytes) -> bool:
    """Return whether a document is byte for byte as `dumps` or `compact` wrote it; `loads` compares only values."""
    body = json.loads(data)
    stated = body.pop("sha256")
    if data == f'{digests.canonical_json(body)[:-1]},"sha256":"{stated}"}}\n'.encode():
        return True
    indented = json.dumps({**body, "sha256": stated}, indent=1, ensure_ascii=False) + "\n"
    return data == indented.encode(errors="surrogatepass")
