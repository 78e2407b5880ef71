"""Whether the files beside a run's features are those that were written: manifest, model, parameters, provenance."""

from collections.abc import Iterator

from genenc_core import errors
from genenc_core.run import records, tally
from genenc_core.run.folder import MANIFEST, MODEL_FOLDER, RunFolder
from genenc_core.store import beneath, places, run_store, verify
from genenc_core.store.objects import is_remote
from genenc_core.text import argument

README = "README.md"
_FOLDERS = (places.GROUP, places.TRANSACTIONS, MODEL_FOLDER, tally.PROVENANCE)


def problems(folder: RunFolder) -> list[verify.Problem]:
    """Return what is wrong beside the features; paths are relative to the run folder. Changes nothing.

    Files that the run was made with are compared with the digests in its `store.json`, mutable records with their own
    seals, the tally line by line. Runs of earlier versions record and seal less, so less is found in them.

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
            *_tally(folder),
        ]
    return list({problem.key: problem for problem in reversed(found)}.values())[::-1]


def require_inputs(folder: RunFolder) -> None:
    """Refuse to work on a run whose files are not those that it was made with, or that holds links.

    Raises:
        StoreError: the first such files are named; nothing was changed.
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
        f"{argument(folder.root)} lists everything, and --repair puts right what can be"
    )


def _specials(folder: RunFolder) -> Iterator[verify.Problem]:
    """Yield links, pipes and devices anywhere in the run but among what repairs set aside."""
    for top in _FOLDERS:
        if folder.objects.kind(top) is None:
            continue
        for name, what in folder.objects.specials(top):
            key = f"{top}/{name}"
            if not key.startswith(f"{places.SET_ASIDE}/"):
                yield _problem(key, f"{what}, which is not followed, opened or changed")


def recorded(store: run_store.RunStore) -> Iterator[verify.Problem]:
    """Yield what happened to the files that the run was made with, where `store.json` records them."""
    for key, (size, sha256) in store.files.items():
        what = verify.difference(store, key, size, f"sha256:{sha256}")
        if what:
            yield _problem(key, f"{what} since the run was created")


def _unrecorded_manifest(folder: RunFolder) -> Iterator[verify.Problem]:
    """Compare the manifest's rows with the run's identity, which earlier versions recorded in place of its bytes."""
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
    if folder.objects.kind(tally.PROVENANCE) is None:
        return
    # A folder that stands for a record counts, too, also an empty one: names are looked at, not files.
    tops = [f"{tally.PROVENANCE}/{name}" for name in folder.objects.names(tally.PROVENANCE)]
    folders = [key for key in tops if not key.endswith(".json") and folder.objects.kind(key) == beneath.FOLDER]
    if is_remote(folder.root):
        folders = [key for key in tops if "." not in key]
    for key in (*tops, *(f"{above}/{name}" for above in folders for name in folder.objects.names(above))):
        if key.endswith(".json") and key not in folder.store.files:
            what = records.problem(folder.objects, key, earlier=not folder.store.files)
            if what:
                yield _problem(key, what)


def _tally(folder: RunFolder) -> Iterator[verify.Problem]:
    if folder.objects.kind(tally.TALLY) is None:
        return
    try:
        damaged = tally.damaged_lines(folder.objects)
    except OSError as error:
        yield _problem(tally.TALLY, error.strerror or str(error))
        return
    if damaged:
        yield _problem(tally.TALLY, f"{damaged} of its lines are damaged; the commit records are read in their place")


def _problem(key: str, what: str) -> verify.Problem:
    return verify.Problem(shard=None, rows=None, key=key, what=what, folder="")
