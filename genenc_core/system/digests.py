"""Digests that genenc computes: their subjects, algorithms and where they are recorded."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

Buffer = bytes | bytearray | memoryview
"""Bytes to write or hash; a memoryview must be flat and of bytes."""

SHA256: Final = "sha256"
BLAKE3: Final = "blake3"
"""2 to 5 times as fast as sha256, for which many processors lack instructions."""
ALGORITHMS: Final = (SHA256, BLAKE3)


def new(algorithm: str) -> Any:
    """Return a hash object (`update`, `hexdigest`) for an algorithm.

    Raises:
        ValueError: the algorithm is unknown to this version.
    """
    if algorithm == SHA256:
        return hashlib.sha256()
    if algorithm != BLAKE3:
        raise ValueError(
            f"unknown digest algorithm {algorithm[:80]!r}: this version of genenc supports {', '.join(ALGORITHMS)}"
        )
    import blake3  # not needed by decode workers and commands that write no features

    return blake3.blake3()


def of(parts: Iterable[Buffer], algorithm: str) -> str:
    """Return the digest of concatenated buffers, prefixed with its algorithm: `blake3:6437b3ac...`."""
    hasher = new(algorithm)
    for part in parts:
        hasher.update(part)
    return f"{algorithm}:{hasher.hexdigest()}"


def of_file(file: BinaryIO, algorithm: str) -> tuple[int, str]:
    """Return a file's size in bytes and its digest in hexadecimal, in constant memory."""
    hasher = new(algorithm)
    while part := file.read(2**18):
        hasher.update(part)
    return file.tell(), hasher.hexdigest()


def algorithm(digest: str) -> str:
    """Return the algorithm of a prefixed digest."""
    return digest.partition(":")[0]


def canonical_json(value: object, *, ascii_only: bool = True) -> str:
    """Serialise a value to canonical JSON: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=ascii_only)


@dataclass(frozen=True, slots=True)
class Digest:
    """One kind of digest."""

    of: str
    algorithm: str
    recorded: str
    """Where it is stored and compared."""
    ascii_only: bool = True
    """Whether canonical JSON escapes non-ASCII characters."""

    def new(self) -> Any:
        """Return a hash object (`update`, `hexdigest`)."""
        return new(self.algorithm)

    def hex(self, *parts: Buffer) -> str:
        """Return the digest of concatenated buffers in hexadecimal."""
        hasher = self.new()
        for part in parts:
            hasher.update(part)
        return str(hasher.hexdigest())

    def named(self, *parts: Buffer) -> str:
        """Return the digest of concatenated buffers, prefixed with its algorithm."""
        return f"{self.algorithm}:{self.hex(*parts)}"

    def hex_of_file(self, path: Path) -> str:
        """Return the digest of a file's bytes in hexadecimal."""
        with path.open("rb") as file:
            return of_file(file, self.algorithm)[1]

    def hex_of_json(self, value: object) -> str:
        """Return the digest of a value in canonical JSON."""
        return self.hex(canonical_json(value, ascii_only=self.ascii_only).encode())


OBJECT: Final = Digest("an object's bytes", BLAKE3, "commit record: `objects[].digest`")
VALUES: Final = Digest(
    "an object's rows, decoded, little-endian, C order", BLAKE3, "commit record: `objects[].content_digest`"
)
RECORD: Final = Digest("the commit record before this one", BLAKE3, "commit record: `previous`")
STORE_FILE: Final = Digest("`_txn/store.json`", BLAKE3, "commit record: `store`")
CREATED: Final = Digest("a file made at creation", SHA256, "`_txn/store.json`: `created`, `files`")
IMAGE_FILE: Final = Digest("an image's file", SHA256, "commit record: `details.input_sha256`")
DOCUMENT: Final = Digest("a document's other entries, in canonical JSON", SHA256, "its entry `sha256`")
IDENTITY: Final = Digest(
    "the run's identity, in canonical JSON", SHA256, "`_txn/store.json`, commit record: `fingerprint`", False
)
ROWS: Final = Digest("the manifest's rows, by column", SHA256, "`images.parquet`; identity: `images.digest`")
ENVIRONMENT: Final = Digest(
    "an environment's record, in canonical JSON", SHA256, "its name in `provenance/env`, sessions' records", False
)
MODEL_SPEC: Final = Digest("the run's spec file", SHA256, "root attribute `genenc.model_spec_sha256`")
WEIGHTS: Final = Digest(
    "the encoder's tensors: names, types, shapes, bytes", SHA256, "spec: `weights_sha256`; identity"
)
ARTIFACT: Final = Digest("an exported file", SHA256, "spec: `artifact.sha256`; identity: `artifact`")
CODE: Final = Digest("a source file, or a file that code declares", SHA256, "spec: `code`, `files`; identity")
SPEC_PART: Final = Digest("a part of a spec, in canonical JSON", SHA256, "spec: `written_sha256`")
PIXELS: Final = Digest("what a device decodes drawn JPEGs to", SHA256, "`provenance/gpu_pixels.json`")
CACHE: Final = Digest("a run folder's name", SHA256, "the name of its folder in the user's cache")
VERSION: Final = Digest("a dataset's version document", BLAKE3, "the next version's `previous`")
ROW_CHANGES: Final = Digest("a version's table of row changes", BLAKE3, "the version's `changes.digest`")
PART_VALUES: Final = Digest("the digests of a part's values, by shard and array", BLAKE3, "version: `parts[].values`")

TABLE: Final = (
    *(OBJECT, VALUES, RECORD, STORE_FILE, CREATED, IMAGE_FILE, DOCUMENT, IDENTITY, ROWS, ENVIRONMENT, MODEL_SPEC),
    *(WEIGHTS, ARTIFACT, CODE, SPEC_PART, PIXELS, CACHE, VERSION, ROW_CHANGES, PART_VALUES),
)
"""All digests. The store's readers use the algorithm named in a record, since earlier versions used others."""
