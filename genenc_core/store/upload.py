"""Upload of a new local run to S3, safe against crashes and concurrent uploads.

`store.json` is created first, conditionally, which decides which run owns the prefix. Everything else then follows in
any order, from any process whose run is byte-identical. The Zarr group's own metadata comes last and completes it.
"""

import contextlib
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from genenc_core import errors
from genenc_core.store import creation, layout, store_keys, zarr_bytes
from genenc_core.store.backends.local import LocalObjects
from genenc_core.store.backends.objects import Objects, join

_THREADS: Final = 8
_LAST: Final = f"{store_keys.GROUP}/{zarr_bytes.METADATA}"


def publish(made: LocalObjects, target: Objects, *more: Callable[[], None]) -> None:
    """Upload a local run without commits to an empty prefix, or complete an interrupted upload.

    Args:
        made: the run; its `store.json` describes all of its files.
        target: the prefix.
        more: calls that write files of the run which are not in `made`, if the prefix is this run's.

    Raises:
        InputError: the prefix is not writable, or an object is too large.
        StoreError: the prefix holds another run, or one whose creation another version started.
    """
    mine = creation.read(made)
    assert mine is not None
    _refuse_large(made, target, mine.plan)
    try:
        creation.refuse_ownerless(target)
        stored = _claim(target, mine)
        creation.refuse_other(target, stored.plan, mine.plan)
        if not creation.same(stored, mine):
            creation.wait_for_group(target)
            creation.finished(target, mine.plan)
            return
        keys = sorted(key for key, _ in made.walk("") if key not in (store_keys.STORE_FILE, _LAST))
        with ThreadPoolExecutor(max_workers=_THREADS) as pool:
            list(pool.map(lambda key: target.replace(key, made.read(key, most=None)), keys))
        for write in more:
            write()
        target.replace(_LAST, made.read(_LAST))
    except OSError as error:
        raise errors.InputError(
            f"cannot create a run in {target.name!r}: {error.strerror or error} ({error.filename}); check that "
            "the bucket exists and is writable"
        ) from error


def _refuse_large(made: LocalObjects, target: Objects, plan: layout.StorePlan) -> None:
    for array in plan.all_arrays:
        row = math.prod(array.shape[1:]) * np.dtype(array.dtype).itemsize
        rows = min(layout.object_rows(plan, array), array.shape[0])
        if row * rows > target.largest:
            raise errors.InputError(
                f"array {array.name!r} has {row} bytes per row and {rows} rows per shard, but a commit is one S3 "
                f"request of at most {target.largest} bytes: set --shard-rows to "
                f"{max(plan.shard_rows * target.largest // (row * rows), 1)} or less"
            )
    for key, size in made.walk(""):
        if size > target.largest:
            raise errors.InputError(
                f"{key!r} has {size} bytes, but S3 accepts at most {target.largest} per request: use a local --out"
            )


def _claim(target: Objects, mine: creation.StoreFile) -> creation.StoreFile:
    """Claim the prefix; return the winning `store.json`, `mine` or an earlier creator's."""
    failed: OSError | None = None
    with contextlib.suppress(FileExistsError):
        try:
            target.create(store_keys.STORE_FILE, creation.document(mine), via="")
        except FileExistsError:
            raise
        except OSError as error:  # the reply may have been lost: read the document back
            failed = error
    winner = creation.read(target)
    if winner is None:
        raise failed or errors.StoreError(
            f"{join(target.name, store_keys.STORE_FILE)!r} disappeared during creation; rerun the command"
        )
    return winner
