"""Creating a run folder once, whichever process is first and wherever it is killed.

The group is built and made durable under a private name; then `store.json` is linked exclusively, which decides which
run this folder is; then the group is renamed into place, which finishes the creation. Both files mean a complete store.
"""

import contextlib
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from genenc_core import errors
from genenc_core.store import files, forms, layout, sealed, zarr_arrays
from genenc_core.store.places import Places

SCHEMA: Final = "genenc.store/1"
_BUILDING: Final = "creating-"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFile:
    """What `store.json` says."""

    plan: layout.StorePlan
    created: Mapping[str, tuple[int, str]]
    """Every file of the group as created: key -> (bytes, sha256)."""


def create(places: Places, plan: layout.StorePlan, coordinates: Iterable[layout.CoordinatePlan]) -> StoreFile:
    """Create the run folder, or finish a creation that was killed, or find it done.

    Raises:
        InputError: the folder cannot be written.
        StoreError: it belongs to another run, or holds a group that no run owns.
    """
    plan = layout.plan_from_json(layout.plan_to_json(plan))  # as every later reader will have it
    try:
        if not places.root.is_dir():
            files.make_folder(places.root)
        for folder in (places.transactions, places.commits, places.staging):
            files.make_folder(folder)
        stored = read(places)
        if stored is None or not places.zarr.is_dir():
            stored = _build(places, plan, stored, coordinates)
        _refuse_other(places, stored.plan, plan)
        for left in places.transactions.glob(f"{_BUILDING}*"):
            files.remove_tree(left)
    except OSError as error:
        raise errors.InputError(
            f"cannot create a run in {str(places.root)!r}: {error.strerror or error}; "
            "choose another --out, or make this one a writable folder with free space"
        ) from error
    return stored


def read(places: Places) -> StoreFile | None:
    """Return the content of `store.json`, or None when there is none.

    Raises:
        StoreError: it is damaged.
    """
    try:
        data = places.store_file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    content = sealed.loads(data, schema=SCHEMA, subject=f"store file {str(places.store_file)!r}")
    try:
        created = {
            forms.relative(key): (forms.count(size), forms.sha256(found))
            for key, (size, found) in forms.mapping(content["created"]).items()
        }
        return StoreFile(plan=layout.plan_from_json(forms.mapping(content["plan"])), created=created)
    except (KeyError, TypeError, ValueError) as error:
        raise errors.StoreError(f"store file {str(places.store_file)!r} is damaged: {str(error)[:300]}") from error


def _build(
    places: Places, plan: layout.StorePlan, stored: StoreFile | None, coordinates: Iterable[layout.CoordinatePlan]
) -> StoreFile:
    if stored is None and places.zarr.exists():
        raise errors.StoreError(
            f"{str(places.zarr)!r} exists, but {str(places.store_file)!r}, which says which run it belongs to, does "
            "not; choose another --out, or move it away"
        )
    if stored is not None:
        _refuse_other(places, stored.plan, plan)
        plan = stored.plan  # the claim stands: its shards and attributes count, not ours
    building = places.transactions / f"{_BUILDING}{uuid.uuid4().hex}"
    try:
        building.mkdir()
        _refuse_without_links(building)  # zarr needs them too, and its message would not say so
        group = building / places.zarr.name
        zarr_arrays.create_group(group, plan, coordinates)
        files.sync_tree(group)
        created = {key: files.digest(group / key) for key, _ in sorted(files.walk(group))}
        winner = _claim(places, building, StoreFile(plan=plan, created=created))
        if winner.created == created and layout.plan_to_json(winner.plan) == layout.plan_to_json(plan):
            _install(places, group)
        else:
            _wait_for(places.zarr)
    except FileNotFoundError:
        # Whoever finished first has removed our folder under us.
        if not places.zarr.is_dir():
            raise
    finally:
        files.remove_tree(building)
    return _finished(places, plan)


def _refuse_without_links(folder: Path) -> None:
    files.write_new(folder / "probe", b"")
    files.link_exclusive(folder / "probe", folder / "probe.link")


def _claim(places: Places, building: Path, mine: StoreFile) -> StoreFile:
    """Return what the folder is from now on: `mine`, or what an earlier creator made it."""
    document: dict[str, Any] = {"plan": layout.plan_to_json(mine.plan), "created": mine.created}
    files.write_new(building / "store.json", sealed.dumps(SCHEMA, document))
    with contextlib.suppress(FileExistsError):
        files.link_exclusive(building / "store.json", places.store_file)
    files.sync_folder(places.transactions)
    winner = read(places)
    if winner is None:
        raise errors.StoreError(f"{str(places.store_file)!r} vanished while it was created; run the command again")
    return winner


def _install(places: Places, group: Path) -> None:
    try:
        group.rename(places.zarr)
    except OSError:
        if not places.zarr.is_dir():  # only another creator's group, equal to ours, may stand there
            raise
    files.sync_folder(places.root)


def _wait_for(path: Path, *, seconds: float = 5.0) -> None:
    """Give the creator that won the time between its two last steps."""
    deadline = time.monotonic() + seconds
    while not path.is_dir() and time.monotonic() < deadline:
        time.sleep(0.05)


def _finished(places: Places, plan: layout.StorePlan) -> StoreFile:
    stored = read(places)
    if stored is None:
        raise errors.StoreError(f"{str(places.root)!r} lost its store.json while it was created; choose another --out")
    _refuse_other(places, stored.plan, plan)
    if not places.zarr.is_dir():
        raise errors.StoreError(
            f"another process began to create {str(places.root)!r} and did not finish, and this one makes other bytes "
            "of it; run the command again. If this stays, that process had another zarr version or other coordinates: "
            "remove the folder (no features were stored in it) and start over"
        )
    return stored


def _refuse_other(places: Places, old: layout.StorePlan, new: layout.StorePlan) -> None:
    """Raise unless both plans are the same run."""
    if old.fingerprint != new.fingerprint:
        changes = layout.describe_identity(old.identity, new.identity) or f"{old.fingerprint} -> {new.fingerprint}"
        raise errors.StoreError(
            f"{str(places.root)!r} holds another run, and a run never changes what it means ({changes}); "
            "choose another --out"
        )
    before, after = ([(a.name, a.shape, a.dtype) for a in plan.arrays] for plan in (old, new))
    if before != after:
        raise errors.StoreError(
            f"{str(places.root)!r} has the same fingerprint but other arrays ({before} -> {after}); "
            "choose another --out"
        )
