"""All damages that tests do to a committed run, local or on S3, with the expected reports of `verify`."""

import hashlib
from collections.abc import Callable

import numpy as np
import zarr

from genenc_core.store import commit_record, run_store, store_keys, zarr_bytes
from genenc_core.store.backends import local

Damage = Callable[[run_store.RunStore], object]


def read(store: run_store.RunStore, key: str) -> bytes:
    return store.objects.read(f"{store_keys.GROUP}/{key}")


def write(store: run_store.RunStore, key: str, data: bytes) -> None:
    store.objects.replace(f"{store_keys.GROUP}/{key}", data)


def remove(store: run_store.RunStore, key: str) -> None:
    store.objects.remove(f"{store_keys.GROUP}/{key}")


def flip(store: run_store.RunStore, key: str, *, at: int = 3) -> None:
    data = bytearray(read(store, key))
    data[at] ^= 1
    write(store, key, bytes(data))


def edit_record(store: run_store.RunStore) -> None:
    text = store.objects.read(store_keys.record(1))
    store.objects.replace(store_keys.record(1), text.replace(b'"salt":0', b'"salt":9'))


def rewrite_record(store: run_store.RunStore, **changes: object) -> None:
    """Change a record and recompute its checksum, as only deliberate tampering would."""
    record = store.record(1)
    fields = {name: getattr(record, name) for name in commit_record.CommitRecord.__dataclass_fields__}
    store.objects.replace(store_keys.record(1), commit_record.CommitRecord(**{**fields, **changes}).to_json())


def rewrite_array(store: run_store.RunStore, shard: int, *, value: float = 0) -> None:
    """Overwrite a shard's rows of `features` as a program would that opens the run with zarr."""
    start, stop = store.shard_range(shard)
    block = np.array(zarr.open_array(store.zarr_store(), path="features", mode="r")[start:stop])
    block[...] = value
    metadata, key = read(store, "features/zarr.json"), f"c.{shard}.0"
    write(store, f"features/{key}", bytes(zarr_bytes.encode_by_zarr(metadata, key, start, block)))


def decoded(store: run_store.RunStore, name: str, key: str, rows: tuple[int, int]) -> np.ndarray:
    return zarr_bytes.decode(read(store, f"{name}/zarr.json"), key.partition("/")[2], read(store, key), rows)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def folder_instead(store: run_store.RunStore) -> None:
    assert isinstance(store.objects, local.LocalObjects)
    path = store.objects.path(f"{store_keys.GROUP}/status/c.1")
    path.unlink()
    path.mkdir()


CASES: dict[str, tuple[Damage, int | None, str, str]] = {
    "flipped bit": (lambda s: flip(s, "features/c.1.0"), 1, "features/c.1.0", "blake3 is"),
    "deleted object": (lambda s: remove(s, "probes/c.1.0.0"), 1, "probes/c.1.0.0", "missing"),
    "deleted status": (lambda s: remove(s, "status/c.1"), 1, "status/c.1", "missing"),
    "zero-length object": (lambda s: write(s, "features/c.1.0", b""), 1, "features/c.1.0", "has 0 bytes instead of"),
    "truncated object": (
        lambda s: write(s, "features/c.1.0", read(s, "features/c.1.0")[:-1]),
        1,
        "features/c.1.0",
        "bytes instead of",
    ),
    "rewritten through zarr": (lambda s: rewrite_array(s, 1), 1, "features/c.1.0", "changed since it was committed"),
    "another shard's object": (
        lambda s: write(s, "features/c.1.0", read(s, "features/c.0.0")),
        1,
        "features/c.1.0",
        "changed since it was committed",
    ),
    "object is a folder": (folder_instead, 1, "status/c.1", "cannot be read"),
    "edited record": (edit_record, 1, "s0000001.json", "changed after it was written"),
    "empty record": (lambda s: s.objects.replace(store_keys.record(1), b""), 1, "s0000001.json", "damaged"),
    "record of another run": (
        lambda s: rewrite_record(s, fingerprint="f9"),
        1,
        "s0000001.json",
        "of another run: fingerprint f9",
    ),
    "record of another shard": (
        lambda s: s.objects.replace(store_keys.record(1), s.objects.read(store_keys.record(0))),
        1,
        "s0000001.json",
        "the record is of shard 0",
    ),
    "record without an object": (
        lambda s: rewrite_record(s, objects=s.record(1).objects[1:]),  # type: ignore[union-attr]
        1,
        "s0000001.json",
        "names other objects",
    ),
    "record with other counts": (
        lambda s: rewrite_record(s, status_counts={"ok": 8, "unreadable": 0}),
        1,
        "status/c.1",
        "status has {'ok': 7, 'unreadable': 1}, the record has {'ok': 8}",
    ),
    "changed metadata": (lambda s: flip(s, "features/zarr.json"), None, "features/zarr.json", "sha256 is"),
    "changed coordinate": (lambda s: flip(s, "image_id/c.0"), None, "image_id/c.0", "sha256 is"),
    "deleted coordinate": (lambda s: remove(s, "point_x/c.0.0"), None, "point_x/c.0.0", "missing"),
    "foreign file": (lambda s: write(s, "notes.txt", b"x"), None, "notes.txt", "foreign file"),
    "foreign record": (
        lambda s: s.objects.replace(store_keys.record(9), b"{}"),
        None,
        "s0000009.json",
        "foreign file among the commit records",
    ),
}
