"""Encoding of one shard: decoded images to arrays with a status per row, isolating images that fail."""

import dataclasses
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from genenc_core import errors, spec, statuses, stored_arrays, text
from genenc_core.encoding import cancellation, engine, products, quantization, reproducible, stages
from genenc_core.encoding.engine import Reduced
from genenc_core.encoding.region_batches import RegionBatch, ShardRegions
from genenc_core.images.decode import geometry, load_image
from genenc_core.images.load import loader
from genenc_core.images.sources.file_stamps import NO_STAMP
from genenc_core.stored_arrays import POINT_STATUS, REGION_STATUS
from genenc_core.system import memory

SECONDS = ("load_wait", "decode_workers", "read", "decode", "copy", "encode", "reduce")
"""Measured times of a shard: this process's wait for images; the decode workers' CPU, reading and decoding time; the
device's copying in the busier direction, the encoder, and the products."""
NOT_FINITE = "the encoder returned NaN or infinite values for this image"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FailureBudget:
    """How many images of a shard may fail before the shard does: a count, or a share of its rows.

    The default is 5 %, but at least 10 images, so that a few broken files do not fail a small shard.
    """

    limit: int | Fraction = Fraction(5, 100)
    at_least: int = 10

    @classmethod
    def parse(cls, text: str | None) -> "FailureBudget":
        """Parse `12`, `5%` or `0.05`, each taken exactly; None means the default.

        Raises:
            InputError: invalid syntax, or out of range.
        """
        if text is None:
            return cls()
        try:
            if text.strip().endswith("%"):
                limit: int | Fraction = Fraction(text.strip()[:-1]) / 100
            else:
                limit = Fraction(text) if "." in text else int(text)
        except (ValueError, ZeroDivisionError) as error:
            raise errors.InputError(f"invalid max failures {text!r}: use a count (12) or a share (5%, 0.05)") from error
        if limit < 0 or (isinstance(limit, Fraction) and limit > 1):
            raise errors.InputError(
                f"max failures {text!r} is out of range: use a count >= 0, or a share of 0 to 100 %"
            )
        return cls(limit=limit, at_least=0)

    def allows(self, rows: int) -> int:
        """Return how many of `rows` images may fail."""
        return max(self.at_least, self.limit if isinstance(self.limit, int) else int(self.limit * rows))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Images `start` to `stop` of a batch: their result, or the failure of a single image."""

    start: int
    stop: int
    reduced: Reduced | None = None
    failure: str | None = None


def encode_pieces(
    runner: engine.Engine, batch: engine.Batch, whole: engine.Ticket, *, may_fail: int
) -> Iterator[Piece]:
    """Wait for a batch, submitted as `whole`; if the encoder raises, halve it to isolate the images that fail.

    Yields:
        The pieces of the batch, in order.

    Raises:
        InputError: a value overflows its stored type, which no image is at fault for.
        EncoderError: the encoder broke its contract (number, shape or type of outputs); raised at once, since all
            images have the same size and none can cause it.
        Stopped: a stop was requested.
        OSError: raised at once, since it is not specific to an image either.
        Exception: any exception of the encoder once more than `may_fail` single images failed, which points to the
            encoder, or once a single image runs out of memory.
    """
    waiting = [(0, len(batch))]
    failed = 0
    while waiting:
        start, stop = waiting.pop()
        try:
            reduced = (whole if stop - start == len(batch) else runner.submit(batch.part(start, stop))).result()
        except (errors.InputError, errors.EncoderError, errors.Stopped, OSError):
            raise
        except Exception as error:  # a model may raise anything
            if failed >= may_fail or (stop - start == 1 and memory.is_lacking(error)):
                raise
            if stop - start == 1:
                failed += 1
                yield Piece(start=start, stop=stop, failure=_describe(error))
                continue
        else:
            yield Piece(start=start, stop=stop, reduced=reduced)
            continue
        # Outside the handler, so that the exception no longer keeps the failed batch in memory.
        middle = (start + stop) // 2
        waiting += [(middle, stop), (start, middle)]


def _describe(error: Exception) -> str:
    text = " ".join(str(error).split())
    reason = text if isinstance(error, errors.GenencError) else f"{type(error).__name__}: {text}"
    return f"the encoder failed for this image: {reason}"[:300]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An image without features: its row, its id in the manifest and the reason."""

    row: int
    image_id: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EncodedShard:
    """Content of a shard's commit: arrays `[rows, ...]` by name, `status` uint8 `[rows]`, and the record's details."""

    arrays: dict[str, np.ndarray]
    status: np.ndarray
    details: dict[str, object]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardInput:
    """Rows of one shard: their numbers, image ids, and points float64 `[rows, K, 2]` in source pixels.

    `relative`: points are fractions of their image's width and height instead. `point_states`: the values that are
    defined for the run's `point_status`.
    """

    shard: int
    rows: Sequence[int]
    """Ascending; usually all rows of the shard."""
    image_ids: Sequence[str]
    points: np.ndarray
    relative: bool = False
    point_states: frozenset[int] = frozenset(each.value for each in statuses.POINTS)
    regions: ShardRegions | None = None
    """Those of the whole shard; None in a run without regions."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def on_model(
        self, at: np.ndarray, affines: np.ndarray, sizes: np.ndarray, preprocessing: spec.Preprocessing
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the points of some rows in model pixels, float64 `[n, K, 2]`, and their status, uint8 `[n, K]`.

        Args:
            at: positions of the rows among those of the shard, `[n]`.
            affines: their maps from source to model pixels, float64 `[n, 4]`.
            sizes: (height, width) of their images, `[n, 2]`.
            preprocessing: defines the model's size.
        """
        xy = self.points[at]
        if not xy.shape[1]:
            return xy, np.zeros((len(at), 0), np.uint8)
        if self.relative:
            xy = xy * sizes[:, None, ::-1]
        points, status = geometry.map_points(xy, affines, sizes, preprocessing)
        if statuses.POINT_OUTSIDE_IMAGE not in self.point_states:
            status[status == statuses.POINT_OUTSIDE_IMAGE] = statuses.POINT_OUTSIDE
        return points, status

    def regions_on_model(
        self, at: np.ndarray, affines: np.ndarray, sizes: np.ndarray, preprocessing: spec.Preprocessing
    ) -> RegionBatch | None:
        """Return the regions of some rows on the model; None without regions. Arguments as for `on_model`."""
        if self.regions is None:
            return None
        return self.regions.on_model(np.asarray(self.rows)[at], affines, sizes, preprocessing)


def views(affines: np.ndarray, sizes: np.ndarray, preprocessing: spec.Preprocessing) -> torch.Tensor | None:
    """Return the part of the model's input that each image covers, float64 `[n, 4]`; None if all cover it whole.

    Arguments as for `ShardInput.on_model`.
    """
    if not geometry.leaves_bars(preprocessing):
        return None
    return torch.from_numpy(geometry.views(affines, sizes, preprocessing))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """A batch in the engine: its images, their positions in the arrays, and its ticket."""

    loaded: loader.LoadedBatch
    at: np.ndarray
    point_status: np.ndarray
    batch: engine.Batch
    ticket: engine.Ticket

    def drop(self) -> None:
        """Cancel the batch, unless it was begun, and release its memory."""
        self.ticket.cancel()
        self.loaded.release()


def empty_arrays(
    rows: int, wanted: Sequence[products.Product], point_count: int, regions: ShardRegions | None = None
) -> dict[str, np.ndarray]:
    """Return a shard's arrays with the values of rows without an image."""
    arrays: dict[str, np.ndarray] = {
        array.name: np.full((rows, *array.shape), array.empty, dtype=array.dtype)
        for product in wanted
        if not product.needs_regions
        for array in product.arrays
    }
    lengths = {"image": rows, "point": point_count, **stored_arrays.LENGTHS}
    for array in stored_arrays.written_by("encoder", with_points=point_count > 0):
        empty = array.fill if array.unreadable is None else array.unreadable
        arrays[array.name] = np.full([lengths[dim] for dim in array.dims], empty, dtype=array.dtype)
    return arrays | ({} if regions is None else _empty_of_regions(wanted, regions))


def _empty_of_regions(wanted: Sequence[products.Product], regions: ShardRegions) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {
        array.name: np.full((regions.places, *array.shape[1:]), array.empty, dtype=array.dtype)
        for array in _arrays_of_regions(wanted)
    }
    return {**arrays, REGION_STATUS: regions.empty_status()}


def _arrays_of_regions(wanted: Sequence[products.Product]) -> Iterator[products.ProductArray]:
    return (array for product in wanted if product.needs_regions for array in product.arrays)


def store_regions(
    arrays: Mapping[str, np.ndarray],
    made: Mapping[str, np.ndarray],
    regions: RegionBatch,
    wanted: Sequence[products.Product],
) -> None:
    """Put what was made of the regions of a batch at their places of a shard."""
    for array in _arrays_of_regions(wanted):
        arrays[array.name][regions.at] = made[array.name]
    arrays[REGION_STATUS][regions.at] = regions.status


def drop_regions(
    arrays: Mapping[str, np.ndarray], rows: Sequence[int], regions: ShardRegions, wanted: Sequence[products.Product]
) -> None:
    """Put the values of an image without features at the regions of some rows."""
    for span in map(regions.of_row, rows):
        for array in _arrays_of_regions(wanted):
            arrays[array.name][span] = array.empty
        arrays[REGION_STATUS][span] = statuses.REGION_UNREADABLE


class ShardEncoder:
    """Encodes one shard's decoded images to its arrays; single use."""

    def __init__(
        self,
        rows: ShardInput,
        runner: engine.Engine,
        preprocessing: spec.Preprocessing,
        budget: FailureBudget,
        *,
        accept_changed: bool = False,
        check_volume: bool = True,
        other_files_readable: Callable[[], bool] = lambda: True,
        doubtful: Callable[[np.ndarray, np.ndarray], Mapping[int, str]] = lambda _rows, _stamps: {},
    ) -> None:
        """Prepare for one shard.

        `accept_changed`: accept files as they are now. `check_volume`: fail if most files are unreadable or not the
        planned ones. `other_files_readable`: returns whether files of other shards can be read. `doubtful`: returns
        the rows whose files may have been replaced, with the reason, from the stamps of all files of the shard.
        """
        self.accept_changed = accept_changed
        self.check_volume = check_volume and not accept_changed
        self.doubtful = doubtful
        self.other_files_readable = other_files_readable
        self.input = rows
        self.runner = runner
        self.preprocessing = preprocessing
        self.budget = budget
        self.allowed = budget.allows(len(rows))
        self.encoder_failures = 0
        self.causes: Counter[str] = Counter()
        self.arrays = empty_arrays(len(rows), runner.products, rows.points.shape[1], rows.regions)
        self.sample = quantization.Sample(runner.products, len(rows), 0 if rows.regions is None else len(rows.regions))
        self.status = np.zeros(len(rows), dtype=np.uint8)
        self.rows = np.asarray(rows.rows)
        self.stamped = np.full(len(rows), NO_STAMP)
        self.digests = np.zeros(len(rows), dtype="S64")
        self.failures: list[Failure] = []
        self.changes: list[dict[str, object]] = []
        self.with_further_frames: list[int] = []
        self.sizes: Counter[int] = Counter()
        self.decided = reproducible.Decided()
        self.seconds = dict.fromkeys(SECONDS, 0.0)
        self.copied_in = self.copied_out = 0.0
        self.control = cancellation.current()

    def run(
        self,
        batches: Generator[loader.LoadedBatch, None, None],
        *,
        on_loaded: Callable[[], None] = lambda: None,
        through: stages.Stages = stages.IN_ONE_THREAD,
    ) -> EncodedShard:
        """Encode every image with at most `Engine.in_flight` batches in flight, calling `on_loaded` for each.

        Raises:
            ShardError: more failures than the budget allows, or rows missing from the loader.
            InputError: a value overflows its stored type.
            Stopped: a stop was requested between two batches.
            Exception: any exception of `batches`, or of the encoder for more images than the budget allows.
        """
        with (
            through.stream(stages.LOAD, batches) as loaded,
            through.stream(stages.ENCODE, self._encode_all(loaded, on_loaded)) as encoded,
        ):
            return through.call(stages.REDUCE, lambda: self._collect_all(encoded))

    def _encode_all(
        self, batches: Iterator[loader.LoadedBatch], on_loaded: Callable[[], None]
    ) -> Generator[tuple[_Sent, Piece], None, None]:
        """Encode all batches; yield their pieces in order, which is also when a batch's memory is released."""
        sent: deque[_Sent] = deque()
        try:
            for each in self._send_all(batches, on_loaded):
                sent.append(each)
                while len(sent) >= self.runner.in_flight:
                    yield from self._pieces(sent)
            while sent:
                yield from self._pieces(sent)
        finally:
            for each in sent:
                each.drop()

    def _pieces(self, sent: deque[_Sent]) -> Iterator[tuple[_Sent, Piece]]:
        """Yield the pieces of the oldest batch, then release it."""
        self.control.raise_if_cancelled()
        oldest = sent[0]
        may_fail = self.allowed - len(self.failures)
        for piece in encode_pieces(self.runner, oldest.batch, oldest.ticket, may_fail=may_fail):
            yield oldest, piece
        sent.popleft().drop()

    def _send_all(
        self, batches: Iterator[loader.LoadedBatch], on_loaded: Callable[[], None]
    ) -> Generator[_Sent, None, None]:
        """Submit all batches to the engine, except those without a readable image."""
        while (loaded := self._next(batches)) is not None:
            on_loaded()
            try:
                at = self._take(loaded)
                sent = self._send(loaded, at) if len(loaded) else None
            except BaseException:
                loaded.release()
                raise
            if sent is None:
                loaded.release()
            else:
                yield sent

    def _next(self, batches: Iterator[loader.LoadedBatch]) -> loader.LoadedBatch | None:
        began = time.perf_counter()
        loaded = next(batches, None)
        if loaded is not None:
            self.seconds["load_wait"] += time.perf_counter() - began
        return loaded

    def _collect_all(self, encoded: Iterator[tuple[_Sent, Piece]]) -> EncodedShard:
        """Collect the results of all batches, and check the shard as a whole."""
        for sent, piece in encoded:
            self._collect(sent, piece)
        if not self.status.all():
            raise errors.ShardError(self.input.shard, f"{int((self.status == 0).sum())} rows were not loaded")
        self._drop_doubtful()
        self._check_volume()
        self._check_encoder()
        return EncodedShard(arrays=self.arrays, status=self.status, details=self._details())

    def _take(self, loaded: loader.LoadedBatch) -> np.ndarray:
        """Record the loader's information about images; return the positions of their rows in the arrays."""
        at = np.searchsorted(self.rows, loaded.rows)
        self.digests[np.searchsorted(self.rows, loaded.seen)] = loaded.sha256
        self.stamped[np.searchsorted(self.rows, loaded.seen)] = loaded.stamps
        self.changes += [
            {"row": row, "image_id": self._image_id(row), "change": change} for row, change in loaded.changes.items()
        ]
        self.with_further_frames += loaded.rows[loaded.have_more].tolist()
        self.seconds["decode_workers"] += loaded.seconds.cpu
        self.seconds["read"] += loaded.seconds.reading
        self.seconds["decode"] += loaded.seconds.decoding
        self.arrays["image_height"][at] = loaded.heights
        self.arrays["image_width"][at] = loaded.widths
        self.arrays["image_orientation"][at] = loaded.orientations
        self.arrays["image_affine"][at] = loaded.affines
        for failed in loaded.unreadable:
            self.causes[failed.cause] += 1
            self._fail(failed.row, failed.reason)
        return at

    @property
    def _unreadable(self) -> list[dict[str, Any]]:
        return [dataclasses.asdict(item) for item in sorted(self.failures, key=lambda item: item.row)]

    def _image_id(self, row: int) -> str:
        return self.input.image_ids[int(np.searchsorted(self.rows, row))]

    def _fail(self, row: int, reason: str) -> None:
        self.status[np.searchsorted(self.rows, row)] = statuses.UNREADABLE
        self.failures.append(Failure(row=row, image_id=self._image_id(row), reason=text.encodable(reason)))
        self.control.on_rows(0, 1)
        if len(self.failures) > self.allowed:
            first = "; ".join(f"{item.image_id}: {item.reason}" for item in self.failures[:3])
            raise errors.ShardError(
                self.input.shard,
                f"more than {self.allowed} of {len(self.input)} images failed ({first}); nothing is stored: fix the "
                "files, or allow more with --max-failures",
                self._unreadable,
            )

    def _drop_doubtful(self) -> None:
        """Drop rows whose files may have been replaced; if changed files are accepted, record them as changed."""
        changed = {item["row"] for item in self.changes}
        known = self.stamped != NO_STAMP
        for row, reason in self.doubtful(self.rows[known], self.stamped[known]).items():
            at = int(np.searchsorted(self.rows, row))
            if self.status[at] != statuses.OK or row in changed:
                continue
            if self.accept_changed:
                self.changes.append({"row": row, "image_id": self.input.image_ids[at], "change": reason})
                continue
            for name, empty in empty_arrays(1, self.runner.products, self.input.points.shape[1]).items():
                self.arrays[name][at] = empty[0]
            if self.input.regions is not None:
                drop_regions(self.arrays, [row], self.input.regions, self.runner.products)
            self.causes["changed"] += 1
            self.control.on_rows(-1, 0)
            self._fail(row, f"{reason}; {load_image.REMEDY}")

    def _check_volume(self) -> None:
        """Raise if most files are unreadable or not the planned ones, as if their volume were missing or replaced.

        A single image may be missing; if it is the whole shard, `other_files_readable` decides.
        """
        if not self.check_volume:
            return
        count, rows = self.causes["file"] + self.causes["changed"], len(self.input)
        if count * 2 <= rows or (count == 1 and self.other_files_readable()):
            return
        first = "; ".join(f"{item.image_id}: {item.reason}" for item in self.failures[:3])
        what = "are not the planned ones" if self.causes["changed"] else "cannot be read"
        raise errors.ShardError(
            self.input.shard,
            f"{count} of its {rows} files {what} ({first}), which suggests a problem with their volume, so nothing is "
            "stored: mount the volume or restore the files (rsync -t and cp -p keep their times), or accept them as "
            "they are with --accept-changed; then resume the run",
            self._unreadable,
        )

    def _check_encoder(self) -> None:
        """Raise if the encoder failed for every image, which the default failure budget is not meant for."""
        if not self.budget.at_least or not self.encoder_failures or (self.status == statuses.OK).any():
            return
        if self.encoder_failures > 1 or not self._encodes_noise():
            raise errors.ShardError(
                self.input.shard,
                f"the encoder failed for every image of the shard ({self.encoder_failures}: "
                f"{self.failures[-1].reason}), so nothing is stored: fix the model or the device, or allow it with "
                "--max-failures 100%",
            )

    def _check_witness(self, failure: str) -> None:
        """Raise if the encoder now also fails for an image that it encoded before, so it is not the image's fault."""
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
            self.input.shard,
            f"the encoder now fails for an image that it encoded before ({failure}), so nothing is stored: fix the "
            "model or the device, then resume the run",
        )

    def _encodes_noise(self) -> bool:
        height, width = self.runner.encoder.input_size
        count, channels = self.input.points.shape[1], engine.channels_of(self.runner.encoder)
        pixels = torch.randint(
            0, 256, (1, channels, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
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

    def _send(self, loaded: loader.LoadedBatch, at: np.ndarray) -> _Sent:
        """Submit one batch to the engine."""
        self.control.raise_if_cancelled()
        sizes = np.stack([loaded.heights, loaded.widths], axis=1)
        points, point_status = self._points(loaded, sizes, at)
        view = views(loaded.affines, sizes, self.preprocessing)
        batch = engine.Batch(
            pixels=loaded.parts[0] if len(loaded.parts) == 1 else self.runner.device.join(loaded.parts),
            points=torch.from_numpy(points),
            valid=torch.from_numpy(point_status == statuses.POINT_OK),
            view=view,
            sampled=self.sample.among(at),
            regions=self.sample.with_regions(
                self.input.regions_on_model(at, loaded.affines, sizes, self.preprocessing)
            ),
        )
        ticket = self.runner.submit(batch)
        return _Sent(loaded=loaded, at=at, point_status=point_status, batch=batch, ticket=ticket)

    def _collect(self, sent: _Sent, piece: Piece) -> None:
        """Keep the result of a piece of a batch, or record the failure of its image."""
        if piece.reduced is None or not piece.reduced.finite.all():
            self._check_witness(piece.failure or NOT_FINITE)
        if piece.reduced is None:
            self.encoder_failures += 1
            self._fail(int(sent.loaded.rows[piece.start]), piece.failure or "the encoder failed for this image")
            return
        part = slice(piece.start, piece.stop)
        regions = None if sent.batch.regions is None else sent.batch.regions.part(piece.start, piece.stop)
        if regions is not None:
            store_regions(self.arrays, piece.reduced.arrays, regions, self.runner.products)
        self.sample.keep(sent.at[part], piece.reduced.exact, regions)
        self._store(sent.at[part], sent.point_status[part], piece.reduced)
        if self.runner.witness is None and piece.reduced.finite.any():
            self.runner.witness = sent.batch.copy_of(piece.start + int(piece.reduced.finite.argmax()))

    def _store(self, at: np.ndarray, point_status: np.ndarray, reduced: Reduced) -> None:
        for product in self.runner.products:
            if not product.needs_regions:
                for array in product.arrays:
                    self.arrays[array.name][at] = reduced.arrays[array.name]
        if POINT_STATUS in self.arrays:
            self.arrays[POINT_STATUS][at] = point_status
        self.status[at] = statuses.OK
        self.sizes.update(reduced.sizes)
        self.decided += reduced.decided or reproducible.Decided()
        self.copied_in += reduced.copy_in_seconds
        self.copied_out += reduced.copy_out_seconds
        self.seconds["copy"] = max(self.copied_in, self.copied_out)
        self.seconds["encode"] += reduced.encode_seconds
        self.seconds["reduce"] += reduced.reduce_seconds
        self._drop_not_finite(at[~reduced.finite])
        self.control.on_rows(int(reduced.finite.sum()), 0)

    def _points(self, loaded: loader.LoadedBatch, sizes: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the points of a batch in model pixels, `[B, K, 2]`, and their status `[B, K]`."""
        return self.input.on_model(at, loaded.affines, sizes, self.preprocessing)

    def _drop_not_finite(self, at: np.ndarray) -> None:
        for product in self.runner.products:
            if not product.needs_regions:
                for array in product.arrays:
                    self.arrays[array.name][at] = array.empty
        if self.input.regions is not None:
            drop_regions(self.arrays, self.rows[at].tolist(), self.input.regions, self.runner.products)
        if POINT_STATUS in self.arrays:
            self.arrays[POINT_STATUS][at] = statuses.POINT_UNREADABLE
        self.encoder_failures += len(at)
        for row in self.rows[at].tolist():
            self._fail(row, NOT_FINITE)

    def _details(self) -> dict[str, object]:
        failures = sorted(self.failures, key=lambda failure: failure.row)
        points = self.arrays.get(POINT_STATUS, np.zeros(0, dtype=np.uint8))
        return {
            "unreadable": [dataclasses.asdict(failure) for failure in failures],
            "changed_since_planned": self.changes,
            "points": statuses.counts(statuses.written(statuses.POINTS), points),
            **region_counts(self.arrays),
            **({"further_frames": self.with_further_frames} if self.with_further_frames else {}),
            "input_sha256": self.digests.astype(str).tolist(),
            "batch_sizes": {str(size): count for size, count in sorted(self.sizes.items())},
            "seconds": {name: round(value, 4) for name, value in self.seconds.items()},
            **self.sample.details(self.arrays, self.status),
            **({} if self.runner.reproducible is None else {"reproducible": dataclasses.asdict(self.decided)}),
        }


def region_counts(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, int]]:
    """Return the entry `regions` of a commit's details: how many have each status; {} without regions."""
    if REGION_STATUS not in arrays:
        return {}
    counts = statuses.counts(statuses.written(statuses.REGIONS), arrays[REGION_STATUS])
    return {"regions": {name: count for name, count in counts.items() if name != "no_region"}}
