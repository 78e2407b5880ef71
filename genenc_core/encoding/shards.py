"""One shard: decoded images in row order to whole arrays, a status per row, and a record of what happened."""

import dataclasses
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch

from genenc_core import errors, spec, text
from genenc_core.encoding import control, engine, isolation, products
from genenc_core.encoding.budget import FailureBudget
from genenc_core.encoding.reduced import Reduced
from genenc_core.images import geometry, loader, reading
from genenc_core.images.point_states import (
    POINT_OK,
    POINT_OUTSIDE,
    POINT_OUTSIDE_IMAGE,
    POINT_STATES,
    POINT_UNREADABLE,
)
from genenc_core.images.stamps import NO_STAMP
from genenc_core.store import layout

_NOT_FINITE = "the encoder returned NaN or infinite values for this image"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An image that has no features: its row, its id in the manifest and why."""

    row: int
    image_id: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EncodedShard:
    """What a shard's commit stores: arrays `[rows, ...]` by name, `status` uint8 `[rows]`, and the record's details."""

    arrays: dict[str, np.ndarray]
    status: np.ndarray
    details: dict[str, object]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardInput:
    """Rows of one shard: their numbers, image ids, and points float64 `[rows, K, 2]` in source pixels.

    `relative`: points are fractions of their image's width and height instead. `point_states`: the numbers that the
    run's `point_status` has a meaning for.
    """

    shard: int
    rows: Sequence[int]
    """Ascending; usually all of the shard's."""
    image_ids: Sequence[str]
    points: np.ndarray
    relative: bool = False
    point_states: frozenset[int] = frozenset(POINT_STATES)

    def __len__(self) -> int:
        return len(self.image_ids)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """A batch on its way through the engine: its images, where they go in the arrays, and its ticket."""

    loaded: loader.LoadedBatch
    at: np.ndarray
    point_status: np.ndarray
    batch: engine.Batch
    ticket: engine.Ticket


def empty_arrays(rows: int, wanted: Sequence[products.Product], point_count: int) -> dict[str, np.ndarray]:
    """Return a shard's arrays as they are before any image: NaN, -1 and 0."""
    arrays: dict[str, np.ndarray] = {
        product.name: np.full((rows, *product.signature.shape), np.nan, dtype=product.dtype) for product in wanted
    }
    arrays["image_height"] = np.full(rows, -1, dtype=np.int32)
    arrays["image_width"] = np.full(rows, -1, dtype=np.int32)
    arrays["image_orientation"] = np.zeros(rows, dtype=np.uint8)
    arrays["image_affine"] = np.full((rows, 4), np.nan, dtype=np.float64)
    if point_count:
        arrays["point_status"] = np.full((rows, point_count), POINT_UNREADABLE, dtype=np.uint8)
    return arrays


class ShardEncoder:
    """Turns one shard's decoded images into its arrays; used once."""

    def __init__(
        self,
        given: ShardInput,
        runner: engine.Engine,
        preprocessing: spec.Preprocessing,
        budget: FailureBudget,
        *,
        accept_changed: bool = False,
        lost_volume: bool = True,
        others_answer: Callable[[], bool] = lambda: True,
        doubtful: Callable[[np.ndarray, np.ndarray], Mapping[int, str]] = lambda _rows, _stamps: {},
    ) -> None:
        """Prepare for one shard.

        `accept_changed`: files count as they are now. `lost_volume`: fail when most files cannot be read or are others.
        `others_answer`: whether files of other shards can be read. `doubtful`: the rows that may be of other files, and
        why, from what all files of the shard were found to be.
        """
        self.accept_changed = accept_changed
        self.lost_volume = lost_volume and not accept_changed
        self.doubtful = doubtful
        self.others_answer = others_answer
        self.given = given
        self.runner = runner
        self.preprocessing = preprocessing
        self.budget = budget
        self.allowed = budget.allows(len(given))
        self.encoder_failures = 0
        self.causes: Counter[str] = Counter()
        self.arrays = empty_arrays(len(given), runner.products, given.points.shape[1])
        self.status = np.zeros(len(given), dtype=np.uint8)
        self.rows = np.asarray(given.rows)
        self.stamped = np.full(len(given), NO_STAMP)
        self.digests = np.zeros(len(given), dtype="S64")
        self.failures: list[Failure] = []
        self.changes: list[dict[str, object]] = []
        self.sent: deque[_Sent] = deque()
        self.sizes: Counter[int] = Counter()
        self.seconds = dict.fromkeys(("load_wait", "decode_workers", "encode", "reduce"), 0.0)
        self.control = control.current()

    def run(
        self, batches: Iterable[loader.LoadedBatch], *, on_loaded: Callable[[], None] = lambda: None
    ) -> EncodedShard:
        """Encode every image, with at most `Engine.in_flight` batches on their way; `on_loaded` is called for each.

        Raises:
            ShardError: more failures than the budget allows, or rows that the loader did not deliver.
            InputError: a value that does not fit its stored type.
            Stopped: the end was asked for between two batches.
            Exception: whatever the encoder raises for more images than the budget allows, and `batches` while read.
        """
        try:
            self._send_all(batches, on_loaded)
            while self.sent:
                self.control.checkpoint()
                self._collect()
        finally:
            for item in self.sent:
                item.ticket.cancel()
                item.loaded.release()
        if not self.status.all():
            raise errors.ShardError(self.given.shard, f"{int((self.status == 0).sum())} rows were not loaded")
        self._doubt()
        self._refuse_a_lost_volume()
        self._refuse_a_broken_encoder()
        return EncodedShard(arrays=self.arrays, status=self.status, details=self._details())

    def _send_all(self, batches: Iterable[loader.LoadedBatch], on_loaded: Callable[[], None]) -> None:
        asked = time.perf_counter()
        for loaded in batches:
            self.seconds["load_wait"] += time.perf_counter() - asked
            on_loaded()
            try:
                at = self._take(loaded)
                if len(loaded):
                    self._send(loaded, at)
                else:
                    loaded.release()
            except BaseException:
                loaded.release()
                raise
            asked = time.perf_counter()

    def _take(self, loaded: loader.LoadedBatch) -> np.ndarray:
        """Note what is known of images before they are encoded; return where their rows stand in the arrays."""
        at = np.searchsorted(self.rows, loaded.rows)
        self.digests[np.searchsorted(self.rows, loaded.seen)] = loaded.sha256
        self.stamped[np.searchsorted(self.rows, loaded.seen)] = loaded.stamps
        self.changes += [
            {"row": row, "image_id": self._image_id(row), "change": change} for row, change in loaded.changes.items()
        ]
        self.seconds["decode_workers"] += loaded.seconds
        self.arrays["image_height"][at] = loaded.heights
        self.arrays["image_width"][at] = loaded.widths
        self.arrays["image_orientation"][at] = loaded.orientations
        self.arrays["image_affine"][at] = loaded.affines
        for failed in loaded.unreadable:
            self.causes[failed.cause] += 1
            self._fail(failed.row, failed.reason)
        return at

    def _image_id(self, row: int) -> str:
        return self.given.image_ids[int(np.searchsorted(self.rows, row))]

    def _fail(self, row: int, reason: str) -> None:
        self.status[np.searchsorted(self.rows, row)] = layout.UNREADABLE
        self.failures.append(Failure(row=row, image_id=self._image_id(row), reason=text.encodable(reason)))
        self.control.on_rows(0, 1)
        if len(self.failures) > self.allowed:
            first = "; ".join(f"{item.image_id}: {item.reason}" for item in self.failures[:3])
            raise errors.ShardError(
                self.given.shard,
                f"more than {self.allowed} of {len(self.given)} images failed ({first}); nothing of it is stored: "
                "fix the files, or allow more with --max-failures",
            )

    def _doubt(self) -> None:
        """Drop rows that may be of other files than planned; where changed files are accepted, note them as such."""
        changed = {item["row"] for item in self.changes}
        known = self.stamped != NO_STAMP
        for row, reason in self.doubtful(self.rows[known], self.stamped[known]).items():
            at = int(np.searchsorted(self.rows, row))
            if self.status[at] != layout.OK or row in changed:
                continue
            if self.accept_changed:
                self.changes.append({"row": row, "image_id": self.given.image_ids[at], "change": reason})
                continue
            for name, empty in empty_arrays(1, self.runner.products, self.given.points.shape[1]).items():
                self.arrays[name][at] = empty[0]
            self.causes["changed"] += 1
            self.control.on_rows(-1, 0)
            self._fail(row, f"{reason}; {reading.REMEDY}")

    def _refuse_a_lost_volume(self) -> None:
        """Raise when most files cannot be read, or are not those that were planned: so looks another volume, or none.

        One image alone may be gone; where it is all of its shard, `others_answer` tells.
        """
        if not self.lost_volume:
            return
        count, rows = self.causes["file"] + self.causes["changed"], len(self.given)
        if count * 2 <= rows or (count == 1 and self.others_answer()):
            return
        first = "; ".join(f"{item.image_id}: {item.reason}" for item in self.failures[:3])
        what = "are not the files that were planned" if self.causes["changed"] else "cannot be read"
        raise errors.ShardError(
            self.given.shard,
            f"{count} of its {rows} files {what} ({first}), which points to a fault of their volume, so "
            "nothing of it is stored: mount the volume or put the files back (rsync -t and cp -p keep their times), or "
            "take them as they are now with --accept-changed; then resume the run",
        )

    def _refuse_a_broken_encoder(self) -> None:
        """Raise when the encoder failed for every image: the default allowance is for broken images, not for that."""
        if not self.budget.at_least or not self.encoder_failures or (self.status == layout.OK).any():
            return
        if self.encoder_failures > 1 or not self._encodes_noise():
            raise errors.ShardError(
                self.given.shard,
                f"the encoder failed for every image of the shard ({self.encoder_failures}: "
                f"{self.failures[-1].reason}), so "
                "nothing is stored: fix the model or the device, or allow it with --max-failures 100%",
            )

    def _refuse_a_turned_encoder(self, failure: str) -> None:
        """Raise when the encoder now fails for an image, too, that it encoded well before: no image's fault."""
        if self.runner.witness is None:
            return
        try:
            if self.runner.encode(self.runner.witness).finite.all():
                return
        except (errors.Stopped, errors.EncoderError):
            raise
        except Exception as error:  # a model may raise anything
            failure = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise errors.ShardError(
            self.given.shard,
            f"the encoder fails now for an image that it encoded before ({failure}), so nothing of the shard is "
            "stored: fix the model or the device, then resume the run",
        )

    def _encodes_noise(self) -> bool:
        height, width = self.runner.encoder.input_size
        count = self.given.points.shape[1]
        pixels = torch.randint(
            0, 256, (1, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        noise = engine.Batch(
            pixels=self.runner.device.join([pixels]),
            points=torch.zeros(1, count, 2, dtype=torch.float64),
            valid=torch.zeros(1, count, dtype=torch.bool),
        )
        try:
            return bool(self.runner.encode(noise).finite.all())
        except errors.Stopped:
            raise
        except Exception:  # a model may raise anything
            return False

    def _send(self, loaded: loader.LoadedBatch, at: np.ndarray) -> None:
        """Give the engine one batch; take back what is done, and wait where too many are on their way."""
        self.control.checkpoint()
        sizes = np.stack([loaded.heights, loaded.widths], axis=1)
        points, point_status = self._points(loaded, sizes, at)
        view = None
        if geometry.leaves_bars(self.preprocessing):
            view = torch.from_numpy(geometry.views(loaded.affines, sizes, self.preprocessing))
        batch = engine.Batch(
            pixels=loaded.parts[0] if len(loaded.parts) == 1 else self.runner.device.join(loaded.parts),
            points=torch.from_numpy(points),
            valid=torch.from_numpy(point_status == POINT_OK),
            view=view,
        )
        ticket = self.runner.submit(batch)
        self.sent.append(_Sent(loaded=loaded, at=at, point_status=point_status, batch=batch, ticket=ticket))
        while len(self.sent) >= self.runner.in_flight:
            self._collect()

    def _collect(self) -> None:
        """Keep what the engine made of the batch that was sent first."""
        sent = self.sent[0]
        may_fail = self.allowed - len(self.failures)
        for piece in isolation.encode_pieces(self.runner, sent.batch, sent.ticket, may_fail=may_fail):
            part = slice(piece.start, piece.stop)
            if piece.reduced is None or not piece.reduced.finite.all():
                self._refuse_a_turned_encoder(piece.failure or _NOT_FINITE)
            if piece.reduced is None:
                self.encoder_failures += 1
                self._fail(int(sent.loaded.rows[piece.start]), piece.failure or "the encoder failed for this image")
                continue
            self._keep(sent.at[part], sent.point_status[part], piece.reduced)
            if self.runner.witness is None and piece.reduced.finite.any():
                self.runner.witness = sent.batch.copy_of(piece.start + int(piece.reduced.finite.argmax()))
        self.sent.popleft().loaded.release()

    def _keep(self, at: np.ndarray, point_status: np.ndarray, reduced: Reduced) -> None:
        for name, value in reduced.arrays.items():
            self.arrays[name][at] = value
        if "point_status" in self.arrays:
            self.arrays["point_status"][at] = point_status
        self.status[at] = layout.OK
        self.sizes.update(reduced.sizes)
        self.seconds["encode"] += reduced.encode_seconds
        self.seconds["reduce"] += reduced.reduce_seconds
        self._drop_not_finite(at[~reduced.finite])
        self.control.on_rows(int(reduced.finite.sum()), 0)

    def _points(self, loaded: loader.LoadedBatch, sizes: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return model pixels `[B, K, 2]` and point status `[B, K]` of a batch."""
        xy = self.given.points[at]
        if self.given.relative:
            xy = xy * sizes[:, None, ::-1]
        points, status = geometry.map_points(xy, loaded.affines, sizes, self.preprocessing)
        if POINT_OUTSIDE_IMAGE not in self.given.point_states:
            status[status == POINT_OUTSIDE_IMAGE] = POINT_OUTSIDE
        return points, status

    def _drop_not_finite(self, at: np.ndarray) -> None:
        for name in [product.name for product in self.runner.products]:
            self.arrays[name][at] = np.nan
        if "point_status" in self.arrays:
            self.arrays["point_status"][at] = POINT_UNREADABLE
        self.encoder_failures += len(at)
        for row in self.rows[at].tolist():
            self._fail(row, _NOT_FINITE)

    def _point_counts(self) -> dict[str, int]:
        states = self.arrays.get("point_status", np.zeros(0, dtype=np.uint8))
        return {name: int((states == state).sum()) for state, name in POINT_STATES.items()}

    def _details(self) -> dict[str, object]:
        failures = sorted(self.failures, key=lambda failure: failure.row)
        return {
            "unreadable": [dataclasses.asdict(failure) for failure in failures],
            "changed_since_planned": self.changes,
            "points": self._point_counts(),
            "input_sha256": self.digests.astype(str).tolist(),
            "batch_sizes": {str(size): count for size, count in sorted(self.sizes.items())},
            "seconds": {name: round(value, 4) for name, value in self.seconds.items()},
        }
