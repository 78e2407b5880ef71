"""The commit record: the document that makes a shard true."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from genenc_core import errors
from genenc_core.store import forms, sealed

SCHEMA: Final = "genenc.commit/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRecord:
    """One object (one file) of a committed shard."""

    key: str
    """Its place, relative to the Zarr group."""
    staged: str
    """Where the attempt wrote it, relative to the staging folder."""
    size: int
    """Bytes."""
    sha256: str
    """Of the bytes as stored."""
    content_sha256: str
    """Of the decoded rows, little-endian, C order: the same for any codec."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRecord:
    """What one shard holds, who made it, and how to check it."""

    schema: str
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
    """The caller's own JSON."""

    def to_json(self) -> bytes:
        """Return the sealed document.

        Raises:
            StoreError: the details are not JSON.
        """
        content = asdict(self)
        del content["schema"]
        return sealed.dumps(self.schema, content)

    @classmethod
    def from_json(cls, data: bytes, *, subject: str = "commit record") -> Self:
        """Return the record that `to_json` wrote.

        Raises:
            StoreError: damaged or edited.
        """
        content = sealed.loads(data, schema=SCHEMA, subject=subject)
        try:
            start, stop = map(forms.count, content.pop("rows"))
            objects = tuple(_object(item) for item in content.pop("objects"))
            record = cls(schema=SCHEMA, rows=(start, stop), objects=objects, **content)
            _check(record)
            return record
        except (KeyError, TypeError, ValueError) as error:
            raise errors.StoreError(f"{subject} is damaged: {str(error)[:300]}") from error


def _object(item: Mapping[str, Any]) -> ObjectRecord:
    found = ObjectRecord(**item)
    for path in (found.key, found.staged):
        forms.relative(path)
    for digest in (found.sha256, found.content_sha256):
        forms.sha256(digest)
    forms.count(found.size)
    return found


def _check(record: CommitRecord) -> None:
    """Raise `ValueError` when an entry is not of its type; a digest says only that nobody edited the document."""
    forms.count(record.shard)
    for text in (record.attempt, record.fingerprint):
        forms.word(text)
    if not record.objects:
        raise ValueError("it names no objects")
    for number in forms.mapping(record.status_counts).values():
        forms.count(number)
    forms.mapping(record.details)
