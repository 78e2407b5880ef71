"""Commit records: one JSON document per committed shard."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Self

from genenc_core import errors
from genenc_core.store import documents
from genenc_core.system import digests

SCHEMA: Final = "genenc.commit/2"
OLDER_SCHEMAS: Final = ("genenc.commit/1",)
"""Earlier schemas, whose digests are plain sha256 hex without an algorithm prefix."""


_OLD_FIELDS: Final = {"digest": "sha256", "content_digest": "content_sha256"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRecord:
    """One object (one file) of a committed shard."""

    key: str
    """Path relative to the Zarr group."""
    staged: str
    """Path where the attempt staged it, relative to the staging folder."""
    size: int
    """Bytes."""
    digest: str
    """Digest of the stored bytes, prefixed with its algorithm: `blake3:...`."""
    content_digest: str
    """Digest of the decoded rows (little-endian, C order), independent of the codec."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRecord:
    """Contents, origin and digests of one committed shard."""

    shard: int
    attempt: str
    fingerprint: str
    rows: tuple[int, int]
    """[start, stop)."""
    status_counts: Mapping[str, int]
    """Rows by state: `ok`, `unreadable`."""
    objects: tuple[ObjectRecord, ...]
    """In promotion order: data first, `status` last."""
    details: Mapping[str, Any]
    """The caller's own JSON, normalised by `documents.normal`."""
    generation: int = 0
    """0 for a shard's first record; later ones cover the same rows after unreadable ones were healed."""
    previous: str = ""
    """Digest of the preceding record as stored; empty for the first."""
    store: str = ""
    """Digest of the run's `store.json`, unique to the run; empty in records of earlier versions."""

    def to_json(self) -> bytes:
        """Serialise to a single-line document with a checksum."""
        content = {**_shallow(self), "objects": [_shallow(item) for item in self.objects]}
        if not self.generation:  # same bytes as versions without generations wrote
            del content["generation"], content["previous"]
        if not self.store:
            del content["store"]
        return documents.compact(SCHEMA, content)

    @classmethod
    def from_json(cls, data: bytes, *, subject: str = "commit record") -> Self:
        """Parse a record written by `to_json`.

        Raises:
            StoreError: the record is damaged or was edited.
        """
        content = documents.loads(data, schema=SCHEMA, subject=subject, older=OLDER_SCHEMAS)
        try:
            start, stop = map(documents.count, content.pop("rows"))
            objects = tuple(_object(item) for item in content.pop("objects"))
            record = cls(rows=(start, stop), objects=objects, **content)
            _check(record)
            return record
        except (KeyError, TypeError, ValueError) as error:
            raise errors.StoreError(f"{subject} is damaged: {str(error)[:300]}") from error


def _shallow(record: Any) -> dict[str, Any]:
    """Return a record's fields without the deep copy that `asdict` makes."""
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _object(item: Mapping[str, Any]) -> ObjectRecord:
    if "sha256" in item:
        with_algorithm = {name: f"{digests.SHA256}:{item[old]}" for name, old in _OLD_FIELDS.items()}
        item = {**{key: item[key] for key in item if key not in _OLD_FIELDS.values()}, **with_algorithm}
    record = ObjectRecord(**item)
    for path in (record.key, record.staged):
        documents.relative(path)
    for digest in (record.digest, record.content_digest):
        documents.named_digest(digest)
    documents.count(record.size)
    return record


def _check(record: CommitRecord) -> None:
    """Raise `ValueError` for an entry of the wrong type; the checksum only rules out edits."""
    documents.count(record.shard)
    documents.count(record.generation)
    if record.generation:
        documents.named_digest(record.previous)
    if record.store:
        documents.named_digest(record.store)
    for text in (record.attempt, record.fingerprint):
        documents.word(text)
    if not record.objects:
        raise ValueError("it lists no objects")
    for number in documents.mapping(record.status_counts).values():
        documents.count(number)
    documents.mapping(record.details)
