"""The place where a run is to be made: checked first, claimed while it is planned, swept after kills."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from genenc_core import errors
from genenc_core.run.folder import MANIFEST, MODEL_FOLDER, MODEL_SPEC
from genenc_core.store import beneath, local, places, run_store
from genenc_core.store.objects import Objects, Root, is_remote, open_objects

CLAIM = ".claim"
OWN_NAMES = frozenset(
    (MANIFEST, MODEL_SPEC, MODEL_FOLDER, "README.md", places.GROUP, places.TRANSACTIONS, "provenance")
)
_OF_A_STORE = frozenset((places.GROUP, places.TRANSACTIONS))


def check(out: str) -> None:
    """Refuse a place that cannot be made or that holds something else.

    Raises:
        InputError: what is wrong with it.
    """
    if is_remote(out):
        _check_remote(open_objects(out))
    else:
        _check_local(Path(out))


@contextlib.contextmanager
def planning_folder(out: str) -> Iterator[Path]:
    """Give a local folder to plan in, on the run folder's own file system where that is local; gone at the end.

    In a local run folder the caller is the only one to plan; on S3 the first to publish decides.
    """
    if is_remote(out):
        with tempfile.TemporaryDirectory(prefix="genenc-plan-") as scratch:
            yield Path(scratch)
        return
    with _claimed(Path(out)):
        with writing(Path(out)):
            _sweep(Path(out))
            folder = tempfile.TemporaryDirectory(prefix=".plan-", dir=out, ignore_cleanup_errors=True)
        with folder as scratch:
            yield Path(scratch)


@contextlib.contextmanager
def writing(root: Path) -> Iterator[None]:
    """Raise an `OSError` of the block as an `InputError` that says which folder no run can be made in."""
    try:
        yield
    except errors.UnsafeFileError as error:
        raise errors.StoreError(error.sentence) from error
    except OSError as error:
        raise errors.InputError(
            f"cannot create a run in {str(root)!r}: {error.strerror or error} ({error.filename or 'no file named'}); "
            "choose another --out, or make this one a writable folder with free space"
        ) from error


def _check_remote(objects: Objects) -> None:
    try:
        names = set(objects.names(""))
        # A run is published with its store first: without one, a README.md or a folder `model` is somebody's own.
        own = OWN_NAMES if _OF_A_STORE & names else frozenset[str]()
        foreign = sorted(names - own)
    except OSError as error:
        raise errors.InputError(
            f"--out {objects.name!r} cannot be read: {error.strerror or error}; check the bucket, the credentials and "
            "the endpoint (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_REGION)"
        ) from error
    if foreign:
        raise errors.InputError(
            f"--out {objects.name!r} is not empty and not a run (it holds {foreign[0]!r}): give a prefix of its own"
        )


def _check_local(root: Path) -> None:
    """Refuse an output folder that cannot be made or that holds something else."""
    if root == Path():
        raise errors.InputError("--out is empty or the working directory itself: name a folder of its own")
    if root.is_symlink() and not root.exists():
        raise errors.InputError(f"--out {str(root)!r} is a link to nowhere: give a folder")
    if root.exists() and not root.is_dir():
        raise errors.InputError(f"--out {str(root)!r} is a file: give a folder")
    if root.is_dir() and not run_store.RunStore.exists(root):
        names = {item.name for item in root.iterdir()}
        # Only a killed creation leaves a claim; else a README.md or a folder `model` is somebody's own.
        own = OWN_NAMES if CLAIM in names or _OF_A_STORE & names else frozenset[str]()
        foreign = sorted(name for name in names - own if name[0] != ".")
        if foreign:
            raise errors.InputError(
                f"--out {str(root)!r} is not empty and not a run folder (it holds {foreign[0]!r}): give a new folder"
            )
    whole = root.resolve()
    for above in whole.parents:
        if whole.relative_to(above).parts[0] in OWN_NAMES and run_store.RunStore.exists(above):
            raise errors.InputError(f"--out {str(root)!r} lies within the run {str(above)!r}: give another")
    nearest = next(item for item in (root, *root.absolute().parents) if item.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise errors.InputError(f"--out {str(root)!r} cannot be written: {str(nearest)!r} is not a writable folder")


@contextlib.contextmanager
def _claimed(root: Path) -> Iterator[None]:
    """Make the folder and be the only one to plan in it; a folder made for nothing is taken back.

    The lock is the kernel's and ends with the process, so a kill leaves no claim.
    """
    existed = root.exists()
    claim = _locked(root)
    try:
        yield
    except BaseException:
        if not existed and not run_store.RunStore.exists(root):
            _take_back(root)
        raise
    finally:
        with contextlib.suppress(OSError):
            names = set(os.listdir(root))  # noqa: PTH208
            if _OF_A_STORE & names or not OWN_NAMES & names:  # else it says whose the files are
                (root / CLAIM).unlink()
        os.close(claim)


def _take_back(root: Path) -> None:
    """Delete what this program made in a folder, and the folder when nothing else came into it."""
    for name in (*OWN_NAMES, CLAIM):
        path = root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    with contextlib.suppress(OSError):
        root.rmdir()


def _locked(root: Path) -> int:
    """Return an open, locked descriptor of the folder's claim file."""
    while True:
        try:
            root.mkdir(parents=True, exist_ok=True)
            # Writable, because network file systems lock only what is.
            claim = beneath.opened(root, CLAIM, os.O_RDWR | os.O_CREAT)
            fcntl.flock(claim, fcntl.LOCK_EX)
        except errors.UnsafeFileError as error:
            raise errors.StoreError(error.sentence) from error
        except OSError as error:
            raise errors.InputError(f"--out {str(root)!r} cannot be written: {error.strerror or error}") from error
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(claim), (root / CLAIM).lstat()):
                return claim
        # The one before us is done and took the claim file away: make it anew.
        os.close(claim)


def sweep_killed(root: Root) -> None:
    """Remove from a run folder what planning left there that was killed, unless a living process plans in it."""
    if is_remote(root):
        return
    folder = Path(root)
    with contextlib.suppress(OSError):
        claim = os.open(folder / CLAIM, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(claim), (folder / CLAIM).stat()):
                _sweep(folder)
                (folder / CLAIM).unlink()
        finally:
            os.close(claim)


def _sweep(root: Path) -> None:
    """Remove what killed creations left; whoever holds the claim is the only one to plan here."""
    for stale in root.glob(".plan-*"):
        shutil.rmtree(stale, ignore_errors=True)
    # A living process whose file goes with them writes it anew.
    objects = local.LocalObjects(root)
    below = [f"provenance/{name}" for name in _names(objects, "provenance")]
    folders = [key for key in (MODEL_FOLDER, "provenance", *below) if objects.kind(key) != beneath.FILE]
    for folder in ("", *folders):
        for name in _names(objects, folder):
            if name.startswith(".") and name.endswith(".partial"):
                objects.remove(f"{folder}/{name}".lstrip("/"))


def _names(objects: local.LocalObjects, folder: str) -> list[str]:
    try:
        return objects.names(folder)
    except FileNotFoundError:
        return []
