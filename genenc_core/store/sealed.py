"""JSON documents that carry the sha256 of their own content, so that an edit shows."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from genenc_core import errors


class OtherVersion(errors.StoreError):
    """A whole document of a version that this genenc does not read: nothing is wrong with it."""


def dumps(schema: str, content: Mapping[str, Any]) -> bytes:
    """Return the document: schema, content, then `sha256` of both in canonical JSON.

    Raises:
        StoreError: the content is not JSON (NaN and Infinity are not).
    """
    body = {"schema": schema, **normal(schema, content)}
    return (json.dumps({**body, "sha256": _digest(_canonical(body))}, indent=1, ensure_ascii=False) + "\n").encode()


def compact(schema: str, content: Mapping[str, Any]) -> bytes:
    """Return the document on one line, for content of strings as keys and of JSON's own types, as `normal` returns."""
    text = _canonical({"schema": schema, **content})
    return f'{text[:-1]},"sha256":"{_digest(text)}"}}\n'.encode()


def normal(schema: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return content as it will be read back: lists for tuples, strings as keys.

    Raises:
        StoreError: the content is not JSON (NaN and Infinity are not).
    """
    try:
        found: dict[str, Any] = json.loads(json.dumps(content, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise errors.StoreError(f"a {schema} document must be JSON: {error}") from error
    return found


def loads(data: bytes, *, schema: str, subject: str, older: Sequence[str] = ()) -> dict[str, Any]:
    """Return the content of a document, checked; `older` schemas are read as well.

    Raises:
        OtherVersion: of another version of the schema.
        StoreError: not such a document, or edited.
    """
    try:
        body = json.loads(data)
        stated = body.pop("sha256")
        found = body.pop("schema")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        told = repr(error)[:200]
        raise errors.StoreError(f"{subject} is damaged: not a {schema} document ({told})") from error
    known = found in (schema, *older)
    other = f"{subject} is of schema {str(found)[:80]!r}, but this genenc reads {schema!r}"
    if not known and str(found).partition("/")[0] != schema.partition("/")[0]:
        raise errors.StoreError(other)
    try:
        actual = _digest(_canonical({"schema": found, **body}))
    except (ValueError, RecursionError) as error:
        raise errors.StoreError(f"{subject} is damaged: {error}") from error
    if actual != stated:
        raise errors.StoreError(
            f"{subject} was changed after it was written: its content has sha256 {actual}, but it states "
            f"{str(stated)[:80]}"
        )
    if not known:
        raise OtherVersion(f"{other}: use the version of genenc that wrote it")
    content: dict[str, Any] = body
    return content


def digest(content: Mapping[str, Any]) -> str:
    """Return the sha256 of an object in canonical JSON."""
    return _digest(_canonical(dict(content)))


def verbatim(data: bytes) -> bool:
    """Return whether a document is byte for byte as `dumps` or `compact` wrote it: `loads` compares values only."""
    body = json.loads(data)
    spread = json.dumps(body, indent=1, ensure_ascii=False) + "\n"
    stated = body.pop("sha256")
    return data in (spread.encode(errors="surrogatepass"), f'{_canonical(body)[:-1]},"sha256":"{stated}"}}\n'.encode())


def _canonical(body: Mapping[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
