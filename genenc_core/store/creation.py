"""Creating a local run folder once, whichever process is first and wherever it is killed.

The group is built and made durable under a private name; then `store.json` is linked exclusively, which decides which
run this folder is; then the group is renamed into place, which finishes the creation. Both files mean a complete store.
"""

import contextlib
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from genenc_core import errors
from genenc_core.store import digests, files, forms, layout, places, sealed, zarr_arrays
from genenc_core.store.local import LocalObjects
from genenc_core.store.objects import Objects

SCHEMA: Final = "genenc.store/1"
_BUILDING: Final = "creating-"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFile:
    """What `store.json` says."""

    plan: layout.StorePlan
    created: Mapping[str, tuple[int, str]]
    """Every file of the group as created: key -> (bytes, sha256)."""
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """Files beside the group that were there before it: key -> (bytes, sha256); earlier versions recorded none."""
    digest: str = ""
    """Of the document that was read."""


def create(
    target: LocalObjects,
    plan: layout.StorePlan,
    coordinates: Iterable[layout.CoordinatePlan],
    beside: Mapping[str, tuple[int, str]],
) -> StoreFile:
    """Create the run folder, or finish a creation that was killed, or find it done.

    Raises:
        InputError: the folder cannot be written.
        StoreError: it belongs to another run, or holds a group that no run owns.
    """
    plan = layout.plan_from_json(layout.plan_to_json(plan))  # as every later reader will have it
    try:
        if not target.root.is_dir():
            files.make_folder(target.root)
        for folder in (places.TRANSACTIONS, places.COMMITS, places.STAGING):
            target.make_folder(folder)
        stored = read(target)
        if stored is None or not target.has_group(places.GROUP):
            stored = _build(target, plan, stored, coordinates, beside)
        refuse_other(target, stored.plan, plan)
        sweep(target)
    except errors.UnsafeFileError as error:
        raise errors.StoreError(error.sentence) from error
    except OSError as error:
        raise errors.InputError(
            f"cannot create a run in {target.name!r}: {error.strerror or error}; "
            "choose another --out, or make this one a writable folder with free space"
        ) from error
    return stored


def discard_unfinished(target: LocalObjects) -> None:
    """Forget a creation that was killed before its store stood; only for a caller that no other creates beside."""
    if target.has_group(places.GROUP) or (target.kind(places.COMMITS) and target.names(places.COMMITS)):
        return
    target.remove(places.STORE_FILE)
    if target.kind(places.TRANSACTIONS):
        sweep(target)


def refuse_remains(target: Objects, identity: Mapping[str, object]) -> None:
    """Refuse a folder with a part of another run, before a file of it is replaced.

    Raises:
        StoreError: what is there, and what to do.
    """
    stored = read(target)
    if stored is not None and stored.plan.identity != identity:
        changes = layout.describe_identity(stored.plan.identity, identity)
        raise errors.OtherRunError(
            f"{target.name!r} holds another run, whose {places.GROUP} is not there ({changes}); put that back, or "
            "choose another --out"
        )
    if stored is None:
        refuse_ownerless(target)


def refuse_ownerless(target: Objects) -> None:
    """Refuse a folder with features or records that no `store.json` owns.

    Raises:
        StoreError: what is there, and what to do.
    """
    try:
        committed = target.names(places.COMMITS)
    except FileNotFoundError:
        committed = []
    group = target.has_group(places.GROUP) or target.size(places.GROUP) is not None
    # Looked for last: what a creator beside us has just made was owned before it was there.
    if (group or committed) and target.size(places.STORE_FILE) is None:
        raise errors.StoreError(
            f"{target.name!r} holds features or commit records, but {places.STORE_FILE!r}, which says which run they "
            "belong to, does not exist; put it back, choose another --out, or move the folder away"
        )


def sweep(target: Objects) -> None:
    """Delete what killed creators built in private; only where the group stands, which nobody builds any more."""
    for left in target.names(places.TRANSACTIONS, _BUILDING):
        target.remove_tree(f"{places.TRANSACTIONS}/{left}")


def read(objects: Objects) -> StoreFile | None:
    """Return the content of `store.json`, or None when there is none.

    Raises:
        StoreError: it is damaged.
    """
    try:
        data = objects.read(places.STORE_FILE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    subject = f"store file {places.STORE_FILE!r} of {objects.name!r}"
    content = sealed.loads(data, schema=SCHEMA, subject=subject)
    try:
        created = _recorded(content["created"], forms.relative)
        beside = _recorded(content.get("files", {}), forms.below)
        plan = layout.plan_from_json(forms.mapping(content["plan"]))
        return StoreFile(plan=plan, created=created, files=beside, digest=digests.of([data]))
    except (KeyError, TypeError, ValueError) as error:
        raise errors.StoreError(f"{subject} is damaged: {str(error)[:300]}") from error


def document(stored: StoreFile) -> bytes:
    """Return the bytes of `store.json`."""
    content = {"plan": layout.plan_to_json(stored.plan), "created": stored.created}
    return sealed.dumps(SCHEMA, {**content, "files": stored.files} if stored.files else content)


def _recorded(value: Any, path: Callable[[Any], str]) -> dict[str, tuple[int, str]]:
    items = forms.mapping(value).items()
    return {path(key): (forms.count(size), forms.sha256(found)) for key, (size, found) in items}


def _build(
    target: LocalObjects,
    plan: layout.StorePlan,
    stored: StoreFile | None,
    coordinates: Iterable[layout.CoordinatePlan],
    beside: Mapping[str, tuple[int, str]],
) -> StoreFile:
    if stored is None:
        refuse_ownerless(target)
    else:
        refuse_other(target, stored.plan, plan)
        plan = stored.plan  # the claim stands: its shards and attributes count, not ours
    building = target.path(f"{places.TRANSACTIONS}/{_BUILDING}{uuid.uuid4().hex}")
    try:
        building.mkdir()
        _refuse_without_links(building)  # zarr needs them too, and its message would not say so
        group = building / places.GROUP
        zarr_arrays.create_group(group, plan, coordinates)
        files.sync_tree(group)
        created = {key: files.digest(group / key) for key, _ in sorted(files.walk(group))}
        mine = StoreFile(plan=plan, created=created, files=beside)
        winner = _claim(target, building, mine)
        if same(winner, mine):
            _install(target, group)
        else:
            wait_for_group(target)
    except FileNotFoundError:
        # Whoever finished first has removed our folder under us.
        if not target.has_group(places.GROUP):
            raise
    finally:
        files.remove_tree(building)
    return finished(target, plan)


def _refuse_without_links(folder: Path) -> None:
    files.write_new(folder / "probe", b"")
    files.link_exclusive(folder / "probe", folder / "probe.link")


def _claim(target: LocalObjects, building: Path, mine: StoreFile) -> StoreFile:
    """Return what the folder is from now on: `mine`, or what an earlier creator made it."""
    via = f"{places.TRANSACTIONS}/{building.name}/store.json"
    with contextlib.suppress(FileExistsError):
        target.create(places.STORE_FILE, document(mine), via=via)
    target.sync(places.TRANSACTIONS)
    winner = read(target)
    if winner is None:
        raise errors.StoreError(
            f"{places.STORE_FILE!r} of {target.name!r} vanished while it was created; run the command again"
        )
    return winner


def _install(target: LocalObjects, group: Path) -> None:
    try:
        group.rename(target.path(places.GROUP))
    except OSError:
        if not target.has_group(places.GROUP):  # only another creator's group, equal to ours, may stand there
            raise
    files.sync_folder(target.root)


def same(one: StoreFile, other: StoreFile) -> bool:
    """Return whether two creations make the same files, so that one may finish the other."""
    return (one.created, one.files) == (other.created, other.files) and (
        layout.plan_to_json(one.plan) == layout.plan_to_json(other.plan)
    )


def wait_for_group(objects: Objects, *, seconds: float = 5.0) -> None:
    """Give the creator that won the time between its first and its last step."""
    deadline = time.monotonic() + seconds
    while not objects.has_group(places.GROUP) and time.monotonic() < deadline:
        time.sleep(0.05)


def finished(objects: Objects, plan: layout.StorePlan) -> StoreFile:
    """Return the store that stands.

    Raises:
        StoreError: it is another run, or its creation was not finished.
    """
    stored = read(objects)
    if stored is None:
        raise errors.StoreError(f"{objects.name!r} lost its store.json while it was created; choose another --out")
    refuse_other(objects, stored.plan, plan)
    if not objects.has_group(places.GROUP):
        raise errors.StoreError(
            f"another process began to create {objects.name!r} and did not finish, and this one makes other bytes "
            "of it; run the command again. If this stays, that process had another zarr version or other coordinates: "
            "remove the folder (no features were stored in it) and start over"
        )
    return stored


def refuse_other(objects: Objects, old: layout.StorePlan, new: layout.StorePlan) -> None:
    """Raise unless both plans are the same run."""
    if old.fingerprint != new.fingerprint:
        changes = layout.describe_identity(old.identity, new.identity) or f"{old.fingerprint} -> {new.fingerprint}"
        raise errors.OtherRunError(
            f"{objects.name!r} holds another run, and a run never changes what it means ({changes}); "
            "choose another --out"
        )
    before, after = ([(a.name, a.shape, a.dtype) for a in plan.arrays] for plan in (old, new))
    if before != after:
        raise errors.StoreError(
            f"{objects.name!r} has the same fingerprint but other arrays ({before} -> {after}); choose another --out"
        )
