"""The commit record: the document that makes a shard true."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Self

from genenc_core import errors
from genenc_core.store import forms, sealed

SCHEMA: Final = "genenc.commit/2"
OLDER: Final = ("genenc.commit/1",)
"""Digests of these are sha256 without a name."""


_OLD_NAMES: Final = {"digest": "sha256", "content_digest": "content_sha256"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRecord:
    """One object (one file) of a committed shard."""

    key: str
    """Its place, relative to the Zarr group."""
    staged: str
    """Where the attempt wrote it, relative to the staging folder."""
    size: int
    """Bytes."""
    digest: str
    """Of the bytes as stored, with its algorithm: `blake3:...`."""
    content_digest: str
    """Of the decoded rows, little-endian, C order: the same for any codec."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRecord:
    """What one shard holds, who made it, and how to check it."""

    shard: int
    attempt: str
    fingerprint: str
    rows: tuple[int, int]
    """[start, stop)."""
    status_counts: Mapping[str, int]
    """Rows by state: `ok`, `unreadable`."""
    objects: tuple[ObjectRecord, ...]
    """Data first, `status` last: the order of promotion."""
    details: Mapping[str, Any]
    """The caller's own JSON, as `sealed.normal` returns it."""
    generation: int = 0
    """0 for a shard's first record; a later one stands for the same rows, of which some unreadable ones were healed."""
    previous: str = ""
    """Digest of the record before it, as stored; empty for the first."""
    store: str = ""
    """Digest of the run's `store.json`, which no other run has; empty in records of earlier versions."""

    def to_json(self) -> bytes:
        """Return the sealed document, on one line."""
        content = {**_shallow(self), "objects": [_shallow(item) for item in self.objects]}
        if not self.generation:  # as versions wrote it that knew of no later ones
            del content["generation"], content["previous"]
        if not self.store:
            del content["store"]
        return sealed.compact(SCHEMA, content)

    @classmethod
    def from_json(cls, data: bytes, *, subject: str = "commit record") -> Self:
        """Return the record that `to_json` wrote.

        Raises:
            StoreError: damaged or edited.
        """
        content = sealed.loads(data, schema=SCHEMA, subject=subject, older=OLDER)
        try:
            start, stop = map(forms.count, content.pop("rows"))
            objects = tuple(_object(item) for item in content.pop("objects"))
            record = cls(rows=(start, stop), objects=objects, **content)
            _check(record)
            return record
        except (KeyError, TypeError, ValueError) as error:
            raise errors.StoreError(f"{subject} is damaged: {str(error)[:300]}") from error


def _shallow(record: Any) -> dict[str, Any]:
    """Return a record's fields; `asdict` would copy every value of the details."""
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _object(item: Mapping[str, Any]) -> ObjectRecord:
    if "sha256" in item:
        digests = {name: f"sha256:{item[old]}" for name, old in _OLD_NAMES.items()}
        item = {**{key: item[key] for key in item if key not in _OLD_NAMES.values()}, **digests}
    found = ObjectRecord(**item)
    for path in (found.key, found.staged):
        forms.relative(path)
    for digest in (found.digest, found.content_digest):
        forms.digest(digest)
    forms.count(found.size)
    return found


def _check(record: CommitRecord) -> None:
    """Raise `ValueError` when an entry is not of its type; a digest says only that nobody edited the document."""
    forms.count(record.shard)
    forms.count(record.generation)
    if record.generation:
        forms.digest(record.previous)
    if record.store:
        forms.digest(record.store)
    for text in (record.attempt, record.fingerprint):
        forms.word(text)
    if not record.objects:
        raise ValueError("it names no objects")
    for number in forms.mapping(record.status_counts).values():
        forms.count(number)
    forms.mapping(record.details)
