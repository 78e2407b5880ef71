"""Loader rows as individual records, and decode workers that inherit a test's patches."""

import contextlib
import dataclasses
import os
import types
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import pytest
import torch

from genenc_core.images.decode import geometry
from genenc_core.images.load import decode_pool, decode_server, decode_worker, loader
from genenc_core.images.sources.file_stamps import NO_STAMP


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row from a loader."""

    row: int
    sha256: str
    pixels: torch.Tensor | None = None
    height: int = -1
    width: int = -1
    affine: geometry.Affine | None = None
    orientation: int = 0
    failure: str | None = None
    cause: str | None = None
    changed: str | None = None


def batch_of(rows: Sequence[int], pixels: torch.Tensor, *, unreadable: Sequence[int] = ()) -> loader.LoadedBatch:
    """Return a batch as from a loader, with uint8 images `[n, 3, H, W]` that fill the model's input."""
    records = np.zeros(len(rows), decode_worker.RECORD)
    records["height"], records["width"] = pixels.shape[2:]
    records["orientation"], records["affine"] = 1, (1, 1, 0, 0)
    seen = np.array(sorted([*rows, *unreadable]))
    taken = loader._BlockResult(
        rows=np.array(rows, dtype=np.int64),
        records=records,
        pixels=pixels,
        seen=seen,
        sha256=np.zeros(len(seen), "S64"),
        stamps=np.full(len(seen), NO_STAMP),
        unreadable=[loader.Unreadable(row=row, reason="broken", cause="image") for row in unreadable],
        changes={},
        seconds=decode_worker.Seconds(),
        memory=loader._SharedMemory(lambda: None),
    )
    return loader.LoadedBatch([taken], [taken.memory])


def rows_of(batch: loader.LoadedBatch, digests: dict[int, str], changes: dict[int, str]) -> list[Row]:
    """Return a batch's rows with copied pixels; information on later rows is added to `digests` and `changes`."""
    digests.update(zip(batch.seen.tolist(), batch.sha256.astype(str).tolist(), strict=True))
    changes |= batch.changes
    images = [pixels.clone() for part in batch.parts for pixels in part]
    found = [
        Row(
            row=row,
            sha256=digests.get(row, ""),
            pixels=images[at],
            height=int(batch.heights[at]),
            width=int(batch.widths[at]),
            affine=geometry.Affine(
                **dict(zip(("scale_x", "scale_y", "offset_x", "offset_y"), batch.affines[at].tolist(), strict=True))
            ),
            orientation=int(batch.orientations[at]),
            changed=changes.get(row),
        )
        for at, row in enumerate(batch.rows.tolist())
    ]
    found += [
        Row(row=each.row, sha256=digests.get(each.row, ""), failure=each.reason, cause=each.cause)
        for each in batch.unreadable
    ]
    return sorted(found, key=lambda each: each.row)


def iter_rows(
    images: loader.ImageLoader, start: int, stop: int, *, only: Collection[int] | None = None
) -> Iterator[Row]:
    """Yield rows one by one, releasing each batch immediately."""
    digests: dict[int, str] = {}
    changes: dict[int, str] = {}
    with contextlib.closing(images.iter_batches(start, stop, only=only)) as batches:
        for batch in batches:
            found = rows_of(batch, digests, changes)
            batch.release()
            yield from found


@contextlib.contextmanager
def forked_server() -> Iterator[None]:
    """Fork the decode server from this process, patched functions included."""
    current = decode_server._CURRENT
    before = current.server, current.process
    current.server, current.process = decode_server.DecodeServer.forked(), os.getpid()
    try:
        yield
    finally:
        current.server.close()
        current.server, current.process = before


@pytest.fixture
def fork_workers() -> Iterator[Callable[[], None]]:
    """Yield a function that starts a new decode server, as `forked_server` does."""
    with contextlib.ExitStack() as forked:
        yield lambda: forked.enter_context(forked_server())


def own_time(patch: pytest.MonkeyPatch, passes: Callable[[decode_pool.DecodePool], bool]) -> None:
    """Give pools of decode workers a clock that goes on only while `passes`: no row is late on a busy machine."""
    step, now = decode_pool.DecodePool._step, [0.0]

    def timed(pool: decode_pool.DecodePool, ready: Sequence[tuple[int, int]]) -> None:
        if passes(pool):
            now[0] += 2 * decode_pool._TICK
        step(pool, ready)

    patch.setattr(decode_pool, "_TICK", 0.02)
    patch.setattr(decode_pool, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    patch.setattr(decode_pool.DecodePool, "_step", timed)
