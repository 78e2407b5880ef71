"""The output folder of a new run: checks, a lock during planning, and cleanup after killed processes."""

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from genenc_core import errors
from genenc_core.run.folder import DOCUMENTS, MANIFEST, MODEL_FOLDER, MODEL_SPEC
from genenc_core.store import run_store, store_keys
from genenc_core.store.backends import beneath, local
from genenc_core.store.backends.objects import Objects, Root, is_remote, open_objects
from genenc_core.system import locks, scratch

CLAIM = ".claim"
OWN_NAMES = frozenset(
    (MANIFEST, MODEL_SPEC, MODEL_FOLDER, "README.md", store_keys.GROUP, store_keys.TRANSACTIONS, "provenance")
)
_STORE_NAMES = frozenset((store_keys.GROUP, store_keys.TRANSACTIONS))


def check(out: str) -> None:
    """Refuse an output folder that cannot be created or holds something else.

    Raises:
        InputError: it cannot be used.
    """
    if is_remote(out):
        _check_remote(open_objects(out))
    else:
        _check_local(Path(out))


@contextlib.contextmanager
def planning_folder(out: str) -> Iterator[Path]:
    """Yield a temporary local folder to plan in, on the run folder's file system if that is local.

    A local run folder is locked meanwhile; on S3 the first to publish wins.
    """
    if is_remote(out):
        with scratch.TemporaryFolder("plan") as folder:
            yield Path(folder)
        return
    with _claimed(Path(out)):
        with writing(Path(out)):
            _sweep(Path(out))
            made = tempfile.TemporaryDirectory(prefix=".plan-", dir=out, ignore_cleanup_errors=True)
        with made as folder:
            yield Path(folder)


@contextlib.contextmanager
def writing(root: Path) -> Iterator[None]:
    """Convert an `OSError` in the block to an `InputError` that names the run folder."""
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
        # A run is published store first: without a store, a README.md or a folder `model` belongs to the user.
        own = OWN_NAMES | DOCUMENTS if _STORE_NAMES & names else frozenset[str]()
        foreign = sorted(names - own)
    except OSError as error:
        raise errors.InputError(
            f"--out {objects.name!r} cannot be read: {error.strerror or error}; check the bucket, the credentials and "
            "the endpoint (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_REGION)"
        ) from error
    if foreign:
        raise errors.InputError(
            f"--out {objects.name!r} is not empty and not a run (it holds {foreign[0]!r}): give an unused prefix"
        )


def _check_local(root: Path) -> None:
    """Refuse an output folder that cannot be created or holds something else."""
    if root == Path():
        raise errors.InputError("--out is empty or the working directory itself: give a separate folder")
    if root.is_symlink() and not root.exists():
        raise errors.InputError(f"--out {str(root)!r} is a dangling link: give a folder")
    if root.exists() and not root.is_dir():
        raise errors.InputError(f"--out {str(root)!r} is a file: give a folder")
    if root.is_dir() and not run_store.RunStore.exists(root):
        names = {item.name for item in root.iterdir()}
        # Only a killed creation leaves a claim; otherwise a README.md or a folder `model` belongs to the user.
        own = OWN_NAMES if CLAIM in names or _STORE_NAMES & names else frozenset[str]()
        foreign = sorted(name for name in names - own if name[0] != ".")
        if foreign:
            raise errors.InputError(
                f"--out {str(root)!r} is not empty and not a run folder (it holds {foreign[0]!r}): give a new folder"
            )
    refuse_inside_run(root)
    nearest = next(item for item in (root, *root.absolute().parents) if item.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise errors.InputError(f"--out {str(root)!r} cannot be written: {str(nearest)!r} is not a writable folder")


def refuse_inside_run(root: Path) -> None:
    """Raise `InputError` if a folder is, or would be, one of a run's own or below one."""
    whole = root.resolve()
    for above in whole.parents:
        if whole.relative_to(above).parts[0] in OWN_NAMES and run_store.RunStore.exists(above):
            raise errors.InputError(f"--out {str(root)!r} is inside the run {str(above)!r}: give another folder")


@contextlib.contextmanager
def _claimed(root: Path) -> Iterator[None]:
    """Create the folder and lock it for planning; on failure remove a folder that was created here.

    The kernel releases the lock with the process, so a kill leaves no claim.
    """
    existed = root.exists()
    claim = _locked(root)
    try:
        yield
    except BaseException:
        if not existed and not run_store.RunStore.exists(root):
            _remove_created(root)
        raise
    finally:
        with contextlib.suppress(OSError):
            names = set(os.listdir(root))  # noqa: PTH208
            if _STORE_NAMES & names or not OWN_NAMES & names:  # otherwise the claim marks the files as genenc's
                (root / CLAIM).unlink()
        os.close(claim)


def _remove_created(root: Path) -> None:
    """Delete the files that genenc created in a folder, and the folder if it is empty then."""
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

    def opened() -> int:
        root.mkdir(parents=True, exist_ok=True)
        return beneath.opened(root, CLAIM, os.O_RDWR | os.O_CREAT)

    try:
        return locks.acquire(opened, (root / CLAIM).lstat)
    except errors.UnsafeFileError as error:
        raise errors.StoreError(error.sentence) from error
    except OSError as error:
        raise errors.InputError(f"--out {str(root)!r} cannot be written: {error.strerror or error}") from error


def sweep_killed(root: Root) -> None:
    """Remove leftovers of killed planning from a run folder, unless another process is planning in it."""
    if is_remote(root):
        return
    path = Path(root) / CLAIM
    opened = functools.partial(os.open, path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    with contextlib.suppress(OSError):
        claim = locks.acquire(opened, path.stat, wait=False)
        try:
            _sweep(path.parent)
            path.unlink()
        finally:
            os.close(claim)


def is_abandoned(root: Root) -> bool:
    """Return whether a run folder is what a killed creation left: without a store, and no process is creating it."""
    with _if_abandoned(root) as path:
        return path is not None


def remove_abandoned(root: Root) -> None:
    """Remove what a killed creation left of a run folder; one that is being created, or was, stays."""
    with _if_abandoned(root) as path:
        if path is not None:
            _sweep(path)
            _remove_created(path)


@contextlib.contextmanager
def _if_abandoned(root: Root) -> Iterator[Path | None]:
    """Hold the claim of an abandoned folder and yield its path, else None; on S3 nothing tells."""
    if is_remote(root):
        yield None
        return
    path = Path(root)
    opened = functools.partial(beneath.opened, path, CLAIM, os.O_RDWR)
    try:
        claim = locks.acquire(opened, (path / CLAIM).lstat, wait=False)
    except (OSError, errors.UnsafeFileError):
        yield None
        return
    try:
        yield None if run_store.RunStore.exists(path) else path
    finally:
        os.close(claim)


def _sweep(root: Path) -> None:
    """Remove leftovers of killed creations; the caller must hold the claim."""
    for stale in root.glob(".plan-*"):
        shutil.rmtree(stale, ignore_errors=True)
    # A live process whose partial file is removed rewrites it.
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
