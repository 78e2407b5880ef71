"""Worker of a probe set: reads stored outputs where the worker of a run loads images and calls an encoder."""

import dataclasses
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from genenc_core import errors, spec, statuses, stored_arrays
from genenc_core.encoding import (
    cancellation,
    encoder_threads,
    map_probing,
    products,
    quantization,
    shard_encoding,
    stages,
)
from genenc_core.encoding.shard_encoding import EncodedShard, Failure, FailureBudget, ShardInput
from genenc_core.run import load_order, probe_source, records, status_cache, tiles
from genenc_core.run.folder import MODEL_SPEC, RunFolder
from genenc_core.run.probe_source import Piece, Source, Stored
from genenc_core.run.worker import Worker
from genenc_core.store import commit_record

_UNREADABLE = "unreadable in the source"


class ProbeWorker(Worker):
    """Makes the shards of one probe set; `encode` is thread-safe."""

    def __init__(self, run: RunFolder, options: records.Options) -> None:
        super().__init__(run, options)
        self._source: Source | None = None
        self._products: tuple[products.Product, ...] = ()
        self._threads: encoder_threads.CallThreads | None = None

    def close(self) -> None:
        """Stop the threads; release claims."""
        if self._threads is not None:
            self._threads.close()
        super().close()

    def prepare(self) -> None:
        """Open the source.

        Raises:
            StoreError: it is missing, damaged or another run.
        """
        self._opened()

    def _opened(self) -> tuple[Source, encoder_threads.CallThreads]:
        with self._ready:
            if self._source is None or self._threads is None:
                found = spec.RuntimeModelSpec.from_json(self.folder.objects.read(MODEL_SPEC).decode())
                _, self._products = tiles.recorded_products(self.folder, found)
                source = Source.of(self.folder)
                for index in range(len(source.record.parts)):
                    source.part(index)
                # One core each: sums of a single core are the same on every machine.
                self._threads = encoder_threads.CallThreads(torch.device("cpu"), max(load_order.LANES, 2))
                self._source = source
            return self._source, self._threads

    def _begin(self) -> None:
        self._opened()

    @property
    def _device(self) -> str:
        return "cpu"

    def _commit(self, shard: int, done: EncodedShard, details: Mapping[str, object]) -> commit_record.CommitRecord:
        record = self.folder.store.commit(shard, done.arrays, done.status, details=details)
        status_cache.note(self.folder.objects, [record])
        self.folder.forget_failure(shard)
        return record

    def _run(
        self,
        turn: load_order.Turn,
        shard: int,
        start: int,
        stop: int,
        budget: FailureBudget,
        through: stages.Stages,
        *,
        only: Sequence[int] | None = None,
    ) -> tuple[EncodedShard, Mapping[str, float]]:
        source, threads = self._opened()
        given = self._input(shard, start, self.folder.manifest.read(start, stop), only)
        if only is not None:
            self._refuse_changed(source, shard)
        probing = _ShardProbing(given, source, self._products, self.folder.preprocessing, budget, start=start)

        def read() -> Generator[tuple[Piece, Stored], None, None]:
            yield from probing.read(source.pieces(start, stop), moved=turn.moved)
            turn.end()

        def take(stored: Iterator[tuple[Piece, Stored]]) -> Generator[int, None, None]:
            for piece, values in stored:
                threads.submit(probing.take, piece, values).result()
                yield len(piece.rows)

        with through.stream(stages.LOAD, read()) as stored, through.stream(stages.ENCODE, take(stored)) as taken:
            return through.call(stages.REDUCE, lambda: probing.finished(taken)), probing.seconds

    def _refuse_changed(self, source: Source, shard: int) -> None:
        """Raise unless the values that a committed shard was made from are those that the source still has."""
        said = source.changed(self.folder.store.record(shard))
        if said:
            raise errors.ShardError(
                shard, f"{said} since it was probed, so its rows cannot be completed: probe it again to another --out"
            )


class _ShardProbing:
    """Makes one shard; single use."""

    def __init__(
        self,
        given: ShardInput,
        source: Source,
        wanted: Sequence[products.Product],
        preprocessing: spec.Preprocessing,
        budget: FailureBudget,
        *,
        start: int,
    ) -> None:
        self.input = given
        self.source = source
        self.products = wanted
        self.preprocessing = preprocessing
        self.allowed = budget.allows(len(given))
        self.start = start
        self.rows = np.asarray(given.rows)
        self.arrays = shard_encoding.empty_arrays(len(given), wanted, given.points.shape[1], given.regions)
        self.of_regions = {array.name for product in wanted if product.needs_regions for array in product.arrays}
        self.sample = quantization.Sample(wanted, len(given), 0 if given.regions is None else len(given.regions))
        self.status = np.zeros(len(given), np.uint8)
        self.digests = [""] * len(given)
        self.failures: list[Failure] = []
        self.origins: list[Mapping[str, Any]] = []
        self.seconds = {"load_wait": 0.0, "reduce": 0.0}
        self.control = cancellation.current()

    def read(
        self, pieces: Iterable[Piece], *, moved: Callable[[], None]
    ) -> Generator[tuple[Piece, Stored], None, None]:
        """Read the source piece by piece, calling `moved` after each."""
        for piece in pieces:
            self.control.raise_if_cancelled()
            began = time.perf_counter()
            stored = self.source.read(piece)
            self.seconds["load_wait"] += time.perf_counter() - began
            moved()
            yield piece, stored

    def take(self, piece: Piece, stored: Stored) -> None:
        """Make the rows of a piece.

        Raises:
            ShardError: more rows than allowed without finite values.
            InputError: a value overflows its stored type.
        """
        began = time.perf_counter()
        self.origins.append(stored.origin)
        wanted = np.arange(piece.at.start, piece.at.stop) + self.start
        kept = np.isin(wanted, self.rows)
        inside, at = np.flatnonzero(kept), np.searchsorted(self.rows, wanted[kept])
        for name, values in (
            ("image_height", stored.heights),
            ("image_width", stored.widths),
            ("image_orientation", stored.orientations),
            ("image_affine", stored.affines),
        ):
            self.arrays[name][at] = values[inside]
        for here, there in zip(inside.tolist(), at.tolist(), strict=True):
            self.digests[there] = stored.input_sha256[here] if stored.input_sha256 else ""
            if stored.status[here] != statuses.OK:
                self._fail(there, stored.reasons.get(here, _UNREADABLE))
        ok = stored.status[inside] == statuses.OK
        self._reduce(stored, inside[ok], at[ok])
        self.seconds["reduce"] += time.perf_counter() - began

    def _reduce(self, stored: Stored, inside: np.ndarray, at: np.ndarray) -> None:
        """Store the products of rows `inside` a piece at the positions `at` of the shard."""
        sizes = np.stack([stored.heights, stored.widths], axis=1)
        row_bytes = sum(slot.row_bytes for slot in stored.slots.values())
        for some in map_probing.batches(len(inside), row_bytes):
            self.control.raise_if_cancelled()
            here, there = inside[some], at[some]
            affines, size = stored.affines[here], sizes[here]
            points, state = self.input.on_model(there, affines, size, self.preprocessing)
            regions = self.sample.with_regions(self.input.regions_on_model(there, affines, size, self.preprocessing))
            batch = map_probing.StoredOutputs(
                slots={name: slot.values(_span(here)) for name, slot in stored.slots.items()},
                points=torch.from_numpy(points),
                valid=torch.from_numpy(state == statuses.POINT_OK),
                view=shard_encoding.views(affines, size, self.preprocessing),
                input_size=(self.preprocessing.height, self.preprocessing.width),
                sampled=self.sample.among(there),
                regions=regions,
            )
            arrays, finite, exact = map_probing.reduce(batch, self.products)
            self.sample.keep(there, exact, regions)
            if regions is not None:
                shard_encoding.store_regions(self.arrays, arrays, regions, self.products)
                wrong = self.rows[there[~finite]].tolist()
                assert self.input.regions is not None
                shard_encoding.drop_regions(self.arrays, wrong, self.input.regions, self.products)
                arrays = {name: arrays[name] for name in arrays if name not in self.of_regions}
            if finite.all():
                self._store(there, arrays, state)
            else:
                self._store(there[finite], {name: values[finite] for name, values in arrays.items()}, state[finite])
            for row in there[~finite].tolist():
                self._fail(row, shard_encoding.NOT_FINITE)
            self._refuse_failures(int((~finite).sum()))

    def _store(self, at: np.ndarray, arrays: Mapping[str, np.ndarray], state: np.ndarray) -> None:
        where = _span(at)
        for name, values in arrays.items():
            self.arrays[name][where] = values
        if stored_arrays.POINT_STATUS in self.arrays:
            self.arrays[stored_arrays.POINT_STATUS][where] = state
        self.status[where] = statuses.OK
        self.control.on_rows(len(at), 0)

    def _fail(self, at: int, reason: str) -> None:
        self.status[at] = statuses.UNREADABLE
        self.failures.append(Failure(row=int(self.rows[at]), image_id=self.input.image_ids[at], reason=reason))
        self.control.on_rows(0, 1)

    def _refuse_failures(self, count: int) -> None:
        if count > self.allowed:
            raise errors.ShardError(
                self.input.shard,
                f"the products of {count} of {len(self.input)} images have NaN or infinite values, so nothing is "
                "stored: store them as float32, or leave out the modules that make them",
            )

    def finished(self, taken: Iterator[int]) -> EncodedShard:
        """Return the shard, once all its pieces are taken; `taken` counts their rows."""
        assert sum(taken) >= len(self.input)
        assert self.status.all()
        failures = sorted(self.failures, key=lambda failure: failure.row)
        points = self.arrays.get(stored_arrays.POINT_STATUS, np.zeros(0, np.uint8))
        details: dict[str, object] = {
            "unreadable": [dataclasses.asdict(failure) for failure in failures],
            "changed_since_planned": [],
            "points": statuses.counts(statuses.written(statuses.POINTS), points),
            **shard_encoding.region_counts(self.arrays),
            "input_sha256": self.digests,
            "batch_sizes": {},
            "seconds": {name: round(value, 4) for name, value in self.seconds.items()},
            probe_source.DETAILS: self.origins,
            **self.sample.details(self.arrays, self.status),
        }
        return EncodedShard(arrays=self.arrays, status=self.status, details=details)


def _span(at: np.ndarray) -> slice | np.ndarray:
    """Return ascending positions as a slice if they are consecutive, which needs no copy."""
    if len(at) and at[-1] - at[0] + 1 == len(at):
        return slice(int(at[0]), int(at[-1]) + 1)
    return at
