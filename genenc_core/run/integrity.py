"""Integrity checks of the files beside a run's features: manifest, model, parameters and provenance."""

import contextlib
from collections.abc import Collection, Iterator

from genenc_core import errors
from genenc_core.run import records, session_log, status_cache
from genenc_core.run.folder import FAILED, MANIFEST, MODEL_FOLDER, RunFolder, batch_size_key, failure_key
from genenc_core.store import run_store, store_keys, verify
from genenc_core.store.backends import beneath
from genenc_core.store.backends.objects import is_remote
from genenc_core.text import argument

README = "README.md"
_FOLDERS = (store_keys.GROUP, store_keys.TRANSACTIONS, MODEL_FOLDER, status_cache.PROVENANCE)


def problems(folder: RunFolder, sessions: Collection[str]) -> list[verify.Problem]:
    """Return the problems in files beside the features, with paths relative to the run folder. Read-only.

    Files that the run was made with are checked against the digests in `store.json`, mutable records against their own
    seals and names, the tally line by line. Runs of earlier versions have fewer digests, so less is detected.

    Args:
        folder: the run.
        sessions: those named by commit records; their records and environments must exist.

    Raises:
        StoreError: a folder cannot be read.
    """
    with run_store.read_errors(folder.root):
        found = [
            *_specials(folder),
            *recorded(folder.store),
            *_unrecorded_manifest(folder),
            *_foreign_model_files(folder),
            *_records(folder),
            *(_problem(key, what) for key, what in session_log.missing(folder.objects, sessions)),
            *_tally(folder),
        ]
    return list({problem.key: problem for problem in reversed(found)}.values())[::-1]


def require_inputs(folder: RunFolder) -> None:
    """Refuse a run whose input files have changed, or that contains links.

    Raises:
        StoreError: names the first such files; nothing was changed.
    """
    with run_store.read_errors(folder.root):
        found = [*_specials(folder), *recorded(folder.store), *_unrecorded_manifest(folder)]
        found += verify.created_problems(folder.store)
    wrong = [problem for problem in found if problem.key != README]
    if not wrong:
        return
    named = "; ".join(f"{item.place}: {item.what}" for item in wrong[:5])
    raise errors.StoreError(
        f"files in {folder.root!r} are not those this run was made with, so nothing is encoded: {named}; genenc verify "
        f"{argument(folder.root)} lists all problems, --repair fixes what it can"
    )


def _specials(folder: RunFolder) -> Iterator[verify.Problem]:
    """Yield links, pipes and devices in the run, except among quarantined files."""
    for top in _FOLDERS:
        if folder.objects.kind(top) is None:
            continue
        for name, what in folder.objects.specials(top):
            key = f"{top}/{name}"
            if not key.startswith(f"{store_keys.SET_ASIDE}/"):
                yield _problem(key, f"{what}, which is not followed, opened or changed")


def recorded(store: run_store.RunStore) -> Iterator[verify.Problem]:
    """Yield changes to the files recorded in `store.json`."""
    for key, made in store.files.items():
        what = verify.difference_to_created(store, key, made)
        if what:
            yield _problem(key, f"{what} since the run was created")


def _unrecorded_manifest(folder: RunFolder) -> Iterator[verify.Problem]:
    """Compare the manifest's rows with the run's identity, for earlier versions, which did not record its digest."""
    if MANIFEST in folder.store.files:
        return
    try:
        same = folder.manifest.content_digest() == folder.identity["images"]["digest"]
    except errors.StoreError as error:
        yield _problem(MANIFEST, str(error))
        return
    if not same:
        yield _problem(MANIFEST, "its rows are not those that the run was made with (their digest differs): changed")


def _foreign_model_files(folder: RunFolder) -> Iterator[verify.Problem]:
    if not folder.store.files or folder.objects.kind(MODEL_FOLDER) is None:
        return
    for name, _ in folder.objects.walk(MODEL_FOLDER):
        if f"{MODEL_FOLDER}/{name}" not in folder.store.files and not name.endswith(".partial"):
            yield _problem(f"{MODEL_FOLDER}/{name}", "foreign file: the run was not made with it")


def _records(folder: RunFolder) -> Iterator[verify.Problem]:
    if folder.objects.kind(status_cache.PROVENANCE) is None:
        return
    # Match by name, not by file: a folder in place of a record is a problem too, even an empty one.
    tops = [f"{status_cache.PROVENANCE}/{name}" for name in folder.objects.names(status_cache.PROVENANCE)]
    folders = [key for key in tops if not key.endswith(".json") and folder.objects.kind(key) == beneath.FOLDER]
    if is_remote(folder.root):
        folders = [key for key in tops if "." not in key]
    for key in (*tops, *(f"{above}/{name}" for above in folders for name in folder.objects.names(above))):
        if key.endswith(".json") and key not in folder.store.files:
            what = records.problem(folder.objects, key, earlier=not folder.store.files) or _misplaced(folder, key)
            if what and folder.objects.kind(key) is not None:  # workers remove outdated failure records
                yield _problem(key, what)


def _misplaced(folder: RunFolder, key: str) -> str:
    """Return a description of an intact record stored under the wrong name, "" if the name is right."""
    home, record = key.rpartition("/")[0], {}
    with contextlib.suppress(errors.StoreError):  # removed meanwhile
        record = records.read_json(folder.objects, key)
    own = session_log.own_key(home, record)
    shard, device = record.get("shard"), record.get("device")
    if home == FAILED and type(shard) is int:
        own = failure_key(shard)
    if key.startswith(batch_size_key("").removesuffix(".json")) and isinstance(device, str):
        own = batch_size_key(device)
    return "" if own in (None, key) else f"holds the record that belongs in {own}"


def _tally(folder: RunFolder) -> Iterator[verify.Problem]:
    if folder.objects.kind(status_cache.TALLY) is None:
        return
    try:
        damaged = status_cache.damaged_lines(folder.objects)
    except OSError as error:
        yield _problem(status_cache.TALLY, error.strerror or str(error))
        return
    if damaged:
        yield _problem(status_cache.TALLY, f"{damaged} of its lines are damaged; the commit records are read instead")


def _problem(key: str, what: str) -> verify.Problem:
    return verify.Problem(shard=None, rows=None, key=key, what=what, folder="")
