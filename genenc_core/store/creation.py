"""Creation of a local run folder, safe against crashes and concurrent creators.

The group is built and fsynced under a private name. Linking `store.json` exclusively then decides which run the folder
belongs to, and renaming the group into place completes the creation. A store is complete once both exist.
"""

import contextlib
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from genenc_core import errors
from genenc_core.store import documents, layout, store_keys, zarr_bytes
from genenc_core.store.backends.local import LocalObjects
from genenc_core.store.backends.objects import Objects
from genenc_core.system import digests, files

SCHEMA: Final = "genenc.store/1"
_BUILDING: Final = "creating-"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFile:
    """Contents of `store.json`."""

    plan: layout.StorePlan
    created: Mapping[str, tuple[int, str]]
    """Every file of the group as created: key -> (bytes, sha256)."""
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """Files beside the group that existed before it: key -> (bytes, sha256); not recorded by earlier versions."""
    digest: str = ""
    """Digest of the document as read."""


def create(
    target: LocalObjects,
    plan: layout.StorePlan,
    coordinates: Iterable[layout.CoordinatePlan],
    beside: Mapping[str, tuple[int, str]],
) -> StoreFile:
    """Create the run folder, complete an interrupted creation, or open a finished one.

    Raises:
        InputError: the folder cannot be written.
        StoreError: it belongs to another run, or holds a group without a `store.json`.
    """
    plan = layout.plan_from_json(layout.plan_to_json(plan))  # normalised as every later reader will load it
    try:
        if not target.root.is_dir():
            files.make_folder(target.root)
        for folder in (store_keys.TRANSACTIONS, store_keys.COMMITS, store_keys.STAGING):
            target.make_folder(folder)
        stored = read(target)
        if stored is None or not target.has_group(store_keys.GROUP):
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
    """Remove an interrupted creation; only safe while no other process creates the run."""
    if target.has_group(store_keys.GROUP) or (target.kind(store_keys.COMMITS) and target.names(store_keys.COMMITS)):
        return
    target.remove(store_keys.STORE_FILE)
    if target.kind(store_keys.TRANSACTIONS):
        sweep(target)


def refuse_remains(target: Objects, identity: Mapping[str, object]) -> None:
    """Refuse a folder with remains of another run, before any of its files is replaced.

    Raises:
        StoreError: the folder holds remains of another run.
    """
    stored = read(target)
    if stored is not None and stored.plan.identity != identity:
        changes = layout.describe_identity(stored.plan.identity, identity)
        raise errors.OtherRunError(
            f"{target.name!r} holds another run whose {store_keys.GROUP} is missing ({changes}); restore it or choose "
            "another --out"
        )
    if stored is None:
        refuse_ownerless(target)


def refuse_ownerless(target: Objects) -> None:
    """Refuse a folder with features or commit records but no `store.json`.

    Raises:
        StoreError: the folder holds either without a `store.json`.
    """
    try:
        committed = target.names(store_keys.COMMITS)
    except FileNotFoundError:
        committed = []
    group = target.has_group(store_keys.GROUP) or target.size(store_keys.GROUP) is not None
    # Checked last: a concurrent creator writes store.json before anything else.
    if (group or committed) and target.size(store_keys.STORE_FILE) is None:
        raise errors.StoreError(
            f"{target.name!r} holds features or commit records, but {store_keys.STORE_FILE!r}, which identifies their "
            "run, does not exist; restore it, choose another --out, or move the folder away"
        )


def sweep(target: Objects) -> None:
    """Delete private files of killed creators; call only once the group exists and no creator needs them."""
    for left in target.names(store_keys.TRANSACTIONS, _BUILDING):
        target.remove_tree(f"{store_keys.TRANSACTIONS}/{left}")


def read(objects: Objects) -> StoreFile | None:
    """Return the contents of `store.json`, or None if it does not exist.

    Raises:
        StoreError: it is damaged.
    """
    try:
        data = objects.read(store_keys.STORE_FILE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    subject = f"store file {store_keys.STORE_FILE!r} of {objects.name!r}"
    content = documents.loads(data, schema=SCHEMA, subject=subject)
    try:
        created = _recorded(content["created"], documents.relative)
        beside = _recorded(content.get("files", {}), documents.below)
        plan = layout.plan_from_json(documents.mapping(content["plan"]))
        return StoreFile(plan=plan, created=created, files=beside, digest=digests.STORE_FILE.named(data))
    except (KeyError, TypeError, ValueError) as error:
        raise errors.StoreError(f"{subject} is damaged: {str(error)[:300]}") from error


def document(stored: StoreFile) -> bytes:
    """Serialise `store.json`."""
    content = {"plan": layout.plan_to_json(stored.plan), "created": stored.created}
    return documents.dumps(SCHEMA, {**content, "files": stored.files} if stored.files else content)


def _recorded(value: Any, path: Callable[[Any], str]) -> dict[str, tuple[int, str]]:
    items = documents.mapping(value).items()
    return {path(key): (documents.count(size), documents.sha256(digest)) for key, (size, digest) in items}


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
        plan = stored.plan  # the existing claim wins: use its shards and attributes
    building = target.path(f"{store_keys.TRANSACTIONS}/{_BUILDING}{uuid.uuid4().hex}")
    try:
        building.mkdir()
        _refuse_without_links(building)  # zarr needs hard links too, but its error does not say so
        group = building / store_keys.GROUP
        zarr_bytes.create_group(group, plan, coordinates)
        files.sync_tree(group)
        created = {key: files.digest(group / key) for key, _ in sorted(files.walk(group))}
        mine = StoreFile(plan=plan, created=created, files=beside)
        winner = _claim(target, building, mine)
        if same(winner, mine):
            _install(target, group)
        else:
            wait_for_group(target)
    except FileNotFoundError:
        # Another creator finished first and swept our folder.
        if not target.has_group(store_keys.GROUP):
            raise
    finally:
        files.remove_tree(building)
    return finished(target, plan)


def _refuse_without_links(folder: Path) -> None:
    files.write_new(folder / "probe", b"")
    files.link_exclusive(folder / "probe", folder / "probe.link")


def _claim(target: LocalObjects, building: Path, mine: StoreFile) -> StoreFile:
    """Claim the folder; return the winning `store.json`, `mine` or an earlier creator's."""
    via = f"{store_keys.TRANSACTIONS}/{building.name}/store.json"
    with contextlib.suppress(FileExistsError):
        target.create(store_keys.STORE_FILE, document(mine), via=via)
    target.sync(store_keys.TRANSACTIONS)
    winner = read(target)
    if winner is None:
        raise errors.StoreError(
            f"{store_keys.STORE_FILE!r} of {target.name!r} disappeared during creation; rerun the command"
        )
    return winner


def _install(target: LocalObjects, group: Path) -> None:
    try:
        group.rename(target.path(store_keys.GROUP))
    except OSError:
        if not target.has_group(store_keys.GROUP):  # only another creator's identical group may be there
            raise
    files.sync_folder(target.root)


def same(one: StoreFile, other: StoreFile) -> bool:
    """Return whether two creations produce the same files, so that either can complete the other."""
    return (one.created, one.files) == (other.created, other.files) and (
        layout.plan_to_json(one.plan) == layout.plan_to_json(other.plan)
    )


def wait_for_group(objects: Objects, *, seconds: float = 5.0) -> None:
    """Wait up to `seconds` for the winning creator to move the group into place."""
    deadline = time.monotonic() + seconds
    while not objects.has_group(store_keys.GROUP) and time.monotonic() < deadline:
        time.sleep(0.05)


def finished(objects: Objects, plan: layout.StorePlan) -> StoreFile:
    """Return the completed store.

    Raises:
        StoreError: it belongs to another run, or its creation is incomplete.
    """
    stored = read(objects)
    if stored is None:
        raise errors.StoreError(f"{objects.name!r} lost its store.json during creation; choose another --out")
    refuse_other(objects, stored.plan, plan)
    if not objects.has_group(store_keys.GROUP):
        raise errors.StoreError(
            f"another process started creating {objects.name!r} and did not finish, and this process would write "
            "different bytes; rerun the command. If the error persists, that process used another zarr version or "
            "other coordinates: delete the folder (it holds no features) and start over"
        )
    return stored


def refuse_other(objects: Objects, old: layout.StorePlan, new: layout.StorePlan) -> None:
    """Raise unless both plans describe the same run."""
    if old.fingerprint != new.fingerprint:
        changes = layout.describe_identity(old.identity, new.identity) or f"{old.fingerprint} -> {new.fingerprint}"
        raise errors.OtherRunError(
            f"{objects.name!r} holds another run ({changes}), and a run's identity never changes; choose another --out"
        )
    before, after = ([(a.name, a.shape, a.dtype) for a in plan.arrays] for plan in (old, new))
    if before != after:
        raise errors.StoreError(
            f"{objects.name!r} has the same fingerprint but different arrays ({before} -> {after}); "
            "choose another --out"
        )
