"""Every way in which a test damages a committed run, with what `verify` must say of it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import zarr

from genenc_core.store import records, run_store

Damage = Callable[[run_store.RunStore], object]


def flip(path: Path, *, at: int = 3) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def rewrite_record(store: run_store.RunStore, **changes: object) -> None:
    """Change a record with a right seal, as only somebody who means to can."""
    record = store.record(1)
    fields = {name: getattr(record, name) for name in records.CommitRecord.__dataclass_fields__}
    path = store.places.record(1)
    path.write_bytes(records.CommitRecord(**{**fields, **changes}).to_json())


def rewrite_through_zarr(store: run_store.RunStore) -> None:
    zarr.open_array(store.zarr_path / "features", mode="r+")[8:16] = 0


def swap_data(store: run_store.RunStore) -> None:
    shutil.copy(store.zarr_path / "features/c.0.0", store.zarr_path / "features/c.1.0")


def folder_instead(store: run_store.RunStore) -> None:
    path = store.zarr_path / "status/c.1"
    path.unlink()
    path.mkdir()


CASES: dict[str, tuple[Damage, int | None, str, str]] = {
    "flipped bit": (lambda s: flip(s.zarr_path / "features/c.1.0"), 1, "features/c.1.0", "sha256 is"),
    "deleted object": (lambda s: (s.zarr_path / "probes/c.1.0.0").unlink(), 1, "probes/c.1.0.0", "missing"),
    "deleted status": (lambda s: (s.zarr_path / "status/c.1").unlink(), 1, "status/c.1", "missing"),
    "zero-length object": (
        lambda s: (s.zarr_path / "features/c.1.0").write_bytes(b""),
        1,
        "features/c.1.0",
        "has 0 bytes instead of",
    ),
    "truncated object": (
        lambda s: (s.zarr_path / "features/c.1.0").write_bytes((s.zarr_path / "features/c.1.0").read_bytes()[:-1]),
        1,
        "features/c.1.0",
        "bytes instead of",
    ),
    "rewritten through zarr": (rewrite_through_zarr, 1, "features/c.1.0", "changed since it was committed"),
    "another shard's object": (swap_data, 1, "features/c.1.0", "changed since it was committed"),
    "object is a folder": (
        folder_instead,
        1,
        "status/c.1",
        "cannot be read",
    ),
    "edited record": (
        lambda s: s.places.record(1).write_text(s.places.record(1).read_text().replace('"salt": 0', '"salt": 9')),
        1,
        "s0000001.json",
        "changed after it was written",
    ),
    "empty record": (lambda s: s.places.record(1).write_bytes(b""), 1, "s0000001.json", "damaged"),
    "record of another run": (
        lambda s: rewrite_record(s, fingerprint="f9"),
        1,
        "s0000001.json",
        "of another run: fingerprint f9",
    ),
    "record of another shard": (
        lambda s: s.places.record(1).write_bytes(s.places.record(0).read_bytes()),
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
        "status says {'ok': 7, 'unreadable': 1}, the record says {'ok': 8}",
    ),
    "changed metadata": (lambda s: flip(s.zarr_path / "features/zarr.json"), None, "features/zarr.json", "sha256 is"),
    "changed coordinate": (lambda s: flip(s.zarr_path / "image_id/c.0"), None, "image_id/c.0", "sha256 is"),
    "deleted coordinate": (lambda s: (s.zarr_path / "point_x/c.0.0").unlink(), None, "point_x/c.0.0", "missing"),
    "foreign file": (lambda s: (s.zarr_path / "notes.txt").write_text("x"), None, "notes.txt", "foreign file"),
    "foreign record": (
        lambda s: (s.places.commits / "s0000009.json").write_text("{}"),
        None,
        "s0000009.json",
        "foreign file among the commit records",
    ),
}
