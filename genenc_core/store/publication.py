"""Putting a run that was made in a local folder onto S3, whichever process is first and wherever it is killed.

`store.json` is created first, conditionally, which decides which run the prefix is. Then everything else is written, in
any order and by anyone whose run is equal byte for byte. The Zarr group's own metadata comes last, which finishes it.
"""

import contextlib
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from genenc_core import errors
from genenc_core.store import creation, layout, places, zarr_arrays
from genenc_core.store.local import LocalObjects
from genenc_core.store.objects import Objects, join

_THREADS: Final = 8
_LAST: Final = f"{places.GROUP}/{zarr_arrays.METADATA}"


def publish(made: LocalObjects, target: Objects) -> None:
    """Write a whole local run, in which nothing is committed, to an empty prefix; or finish a killed publication of it.

    Raises:
        InputError: the place cannot be written, or not in objects of this size.
        StoreError: it is another run, or one whose creation another version began.
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
        keys = sorted(key for key, _ in made.walk("") if key not in (places.STORE_FILE, _LAST))
        with ThreadPoolExecutor(max_workers=_THREADS) as pool:
            list(pool.map(lambda key: target.replace(key, made.read(key, most=None)), keys))
        target.replace(_LAST, made.read(_LAST))
    except OSError as error:
        raise errors.InputError(
            f"cannot create a run in {target.name!r}: {error.strerror or error} ({error.filename}); check that the "
            "bucket exists and may be written"
        ) from error


def _refuse_large(made: LocalObjects, target: Objects, plan: layout.StorePlan) -> None:
    for array in plan.all_arrays:
        row = math.prod(array.shape[1:]) * np.dtype(array.dtype).itemsize
        rows = min(plan.shard_rows, plan.rows)
        if row * rows > target.largest:
            raise errors.InputError(
                f"array {array.name!r} has {row} bytes in each of the {rows} rows of a shard, and S3 takes "
                f"{target.largest} bytes in one request, which is all that a commit can use: give --shard-rows "
                f"{target.largest // row} or less"
            )
    for key, size in made.walk(""):
        if size > target.largest:
            raise errors.InputError(
                f"{key!r} has {size} bytes, and S3 takes {target.largest} in one request: use a local --out"
            )


def _claim(target: Objects, mine: creation.StoreFile) -> creation.StoreFile:
    """Return what the prefix is from now on: `mine`, or what an earlier creator made it."""
    failed: OSError | None = None
    with contextlib.suppress(FileExistsError):
        try:
            target.create(places.STORE_FILE, creation.document(mine), via="")
        except FileExistsError:
            raise
        except OSError as error:  # its answer may have been lost: only the document tells
            failed = error
    found = creation.read(target)
    if found is None:
        raise failed or errors.StoreError(
            f"{join(target.name, places.STORE_FILE)!r} vanished while it was created; run the command again"
        )
    return found
