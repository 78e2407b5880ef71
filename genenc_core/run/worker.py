"""One process at work on one run folder: its encoder, loader and store, shared by all its shard threads."""

import contextlib
import contextvars
import dataclasses
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import cast

from genenc_core import errors, spec
from genenc_core.encoding import batching, control, engine, products, shards
from genenc_core.export import backends
from genenc_core.images import loader, manifest
from genenc_core.run import encoders, planning, records
from genenc_core.run import parameters as run_parameters
from genenc_core.store import run_store

LOGGER = logging.getLogger(__name__)
BATCH_SIZE = "provenance/batch_size.json"
FAILED = "provenance/failed"
LANES = 2


class RunFolder:
    """A run folder as it stands on disk; opening it loads no model."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = run_store.RunStore.open(root)
        self.manifest = manifest.Manifest.open(root / planning.MANIFEST)
        self.identity = self.store.plan.identity
        if self.manifest.digest != self.identity["images"]["digest"]:
            raise errors.StoreError(
                f"{str(root / planning.MANIFEST)!r} is not the manifest this run was made with (its digest differs): "
                "put the original back"
            )
        stored = records.read_json(root / planning.PARAMETERS)
        self.backend = cast(backends.BackendKind, stored.get("backend"))
        self.given = run_parameters.ExtractParameters.model_validate(stored)

    @property
    def model_spec(self) -> spec.RuntimeModelSpec:
        """The run's model spec, its paths made absolute."""
        return encoders.read_run_spec(self.root / planning.MODEL_SPEC)

    @property
    def preprocessing(self) -> spec.Preprocessing:
        """The run's preprocessing, the user's `fit` included."""
        return spec.Preprocessing.model_validate_json(json.dumps(self.identity["preprocessing"]))

    @classmethod
    def open_for_work(cls, root: Path) -> "RunFolder":
        """Open a run folder and finish what an earlier process committed but did not put in place."""
        folder = cls(root)
        folder.store.recover()
        return folder

    def announce(self, wanted: Sequence[int]) -> None:
        """Tell whoever watches how many rows are to do."""
        ranges = (self.store.shard_range(shard) for shard in wanted)
        control.current().on_plan(sum(stop - start for start, stop in ranges), self.store.plan.rows)

    def failed(self) -> list[int]:
        """Return the uncommitted shards whose last attempt failed."""
        found = (self.root / FAILED).glob("s*.json")
        return sorted({int(path.stem[1:]) for path in found} - self.store.committed())

    def failure(self, shard: int) -> str:
        """Return the reason of a shard's last failed attempt, or that there was none."""
        path = self._failure_file(shard)
        return str(records.read_json(path).get("reason", "")) if path.exists() else "it was not reached"

    def note_failure(self, shard: int, reason: str, session: str) -> None:
        """Record why an attempt at a shard failed."""
        record = {"shard": shard, "reason": reason, "session": session, "time": records.now()}
        records.write_json(self._failure_file(shard), record)

    def forget_failure(self, shard: int) -> None:
        """Remove a shard's failure record: it is committed."""
        with contextlib.suppress(FileNotFoundError):
            self._failure_file(shard).unlink()

    def _failure_file(self, shard: int) -> Path:
        return self.root / FAILED / f"s{shard:07d}.json"


class Worker:
    """Encodes and commits shards of one run; `encode` may be called from several threads at once."""

    def __init__(self, root: Path, options: records.Options) -> None:
        self.folder = RunFolder(root)
        self.options = options
        self.budget = shards.FailureBudget.parse(options.max_failures)
        self._ready = threading.Lock()
        self._engine: engine.Engine | None = None
        self._loader: loader.ImageLoader | None = None

    def close(self) -> None:
        """End the decoding threads."""
        if self._loader is not None:
            self._loader.close()

    def encode(self, shard: int) -> records.ShardReport:
        """Encode and commit one shard, unless it is committed already.

        Raises:
            ShardError: too many images failed, or the encoder or the store did; recorded in the run folder.
            Stopped: the end was asked for; the shard is left as it was.
        """
        store = self.folder.store
        start, stop = store.shard_range(shard)
        known = store.record(shard)
        if known is not None:
            unreadable = known.status_counts["unreadable"]
            return records.ShardReport(shard=shard, start=start, stop=stop, unreadable=unreadable, skipped=True)
        control.current().checkpoint()
        try:
            return self._encode(shard, start, stop)
        except errors.Stopped:
            raise
        except errors.ShardError as error:
            self.folder.note_failure(shard, error.reason, self.options.session)
            raise
        except (errors.GenencError, RuntimeError, OSError, MemoryError) as error:
            self.folder.note_failure(shard, str(error), self.options.session)
            raise errors.ShardError(shard, str(error)) from error

    def _encode(self, shard: int, start: int, stop: int) -> records.ShardReport:
        began = time.perf_counter()
        started = records.now()
        runner, images = self._prepare()
        rows = self.folder.manifest.read(start, stop)
        given = shards.ShardInput(shard=shard, start=start, image_ids=rows.image_ids, points=rows.points)
        shard_encoder = shards.ShardEncoder(given, runner, self.folder.preprocessing, self.budget)
        with contextlib.closing(images.iter_rows(start, stop)) as stream:
            done = shard_encoder.run(stream)
        encoded = time.perf_counter()
        details = {
            "session": self.options.session,
            "started": started,
            "device": str(runner.encoder.device),
            **done.details,
        }
        record = self.folder.store.commit(shard, done.arrays, done.status, details=details)
        self.folder.forget_failure(shard)
        ended = time.perf_counter()
        seconds = {name: shard_encoder.seconds[name] for name in ("load_wait", "encode", "reduce")}
        seconds |= {"commit": ended - encoded, "total": ended - began}
        unreadable = record.status_counts["unreadable"]
        report = records.ShardReport(shard=shard, start=start, stop=stop, unreadable=unreadable, seconds=seconds)
        timings = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
        LOGGER.info(
            "shard %05d: %d images, %d unreadable, %.1f images/s (%s)",
            *(shard, report.rows, unreadable, report.images_per_second, timings),
        )
        return report

    def prepare(self) -> None:
        """Load the encoder and find the batch size now, rather than at the first shard."""
        self._prepare()

    def _prepare(self) -> tuple[engine.Engine, loader.ImageLoader]:
        with self._ready:
            if self._engine is None or self._loader is None:
                self._engine = self._make_engine()
                threads = self.options.decode_threads or os.cpu_count() or 1
                window = max(2 * self._engine.sizer.size, 4 * threads)
                preprocessing = self.folder.preprocessing
                self._loader = loader.ImageLoader(self.folder.manifest, preprocessing, threads=threads, window=window)
            return self._engine, self._loader

    def _make_engine(self) -> engine.Engine:
        folder = self.folder
        found = folder.model_spec
        device = encoders.resolve_device(self.options.device)
        model = encoders.ResolvedModel(spec=found, backend=folder.backend)
        encoder = encoders.CACHE.load(model, device=device, trust=self.options.trust or folder.given.trust)
        names = folder.manifest.point_names
        parsed = [products.parse_product(text) for text in folder.identity["products"]]
        wanted = products.build_products(parsed, found.outputs, point_count=len(names))
        bounds = batching.Bounds.of(found.resolved_batch_mode())
        runner = engine.Engine(encoder, wanted, batching.BatchSizer(bounds, bounds.clamp(batching.FIRST_SIZE)))
        size = self.options.batch_size or self._found_size(runner, bounds, device, len(names))
        bounds.refuse_outside(size)
        runner.sizer.size = size
        LOGGER.info("%s on %s (%s), %d images a batch", found.model_id, device, folder.backend, size)
        return runner

    def _found_size(self, runner: engine.Engine, bounds: batching.Bounds, device: str, point_count: int) -> int:
        """Return the run's batch size on this kind of device: found once, then the same for every shard and resume."""
        path = self.folder.root / BATCH_SIZE.replace(".json", f"-{device.partition(':')[0]}.json")
        if path.exists():
            return bounds.clamp(int(str(records.read_json(path)["size"])))
        store = self.folder.store
        size = batching.find_size(
            lambda count: runner.trial(count, point_count), bounds, image_budget=store.plan.rows // 10
        )
        size = min(size, store.plan.shard_rows) if bounds.min <= store.plan.shard_rows else size
        return int(str(records.create_json(path, {"size": size, "device": device, "found": records.now()})["size"]))


class WorkerCache:
    """The workers of this process: one per run folder and session, however many tasks ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._workers: dict[tuple[Path, records.Options], Worker] = {}

    def get(self, root: Path, options: records.Options) -> Worker:
        """Return the worker of a run for these options, made at the first call."""
        key = (root.resolve(), options)
        with self._lock:
            if key not in self._workers:
                self._workers[key] = Worker(root, options)
            return self._workers[key]

    def release(self, root: Path) -> None:
        """Close the run's workers."""
        with self._lock:
            for key in [key for key in self._workers if key[0] == root.resolve()]:
                self._workers.pop(key).close()


WORKERS = WorkerCache()


@contextlib.contextmanager
def working(root: Path) -> Iterator[None]:
    """Close the run's workers at the end, whatever happens."""
    try:
        yield
    finally:
        WORKERS.release(root)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a set of shards came to: reports of those done, errors of those that were not."""

    reports: tuple[records.ShardReport, ...]
    failures: tuple[errors.ShardError, ...]


def encode_shards(root: Path, wanted: Sequence[int], options: records.Options, *, lanes: int = LANES) -> Outcome:
    """Encode and commit shards, `lanes` at a time: one is read and written while another is encoded.

    A failed shard does not stop the others.

    Raises:
        Stopped: the end was asked for; shards done by then are committed.
    """
    worker = WORKERS.get(root, options)
    reports: list[records.ShardReport] = []
    failures: list[errors.ShardError] = []
    with ThreadPoolExecutor(max_workers=lanes, thread_name_prefix="genenc-shard") as pool:
        running = [pool.submit(contextvars.copy_context().run, worker.encode, shard) for shard in wanted]
        try:
            for future in as_completed(running):
                try:
                    reports.append(future.result())
                except errors.ShardError as error:
                    failures.append(error)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return Outcome(
        reports=tuple(sorted(reports, key=lambda report: report.shard)),
        failures=tuple(sorted(failures, key=lambda error: error.shard)),
    )


def failures_among(root: Path, wanted: Sequence[int]) -> tuple[errors.ShardError, ...]:
    """Return an error for each of these shards that is not committed, with the reason recorded for it."""
    folder = RunFolder(root)
    missing = sorted(set(wanted) - folder.store.committed())
    return tuple(errors.ShardError(shard, folder.failure(shard)) for shard in missing)


def options_of(
    root: Path, *, device: str = "auto", batch_size: int | None = None, max_failures: str | None = None
) -> records.Options:
    """Return the options to continue a run with: those given, else the ones it was made with."""
    options = records.Options.of(RunFolder(root).given)
    return dataclasses.replace(
        options,
        device=device,
        batch_size=batch_size or options.batch_size,
        max_failures=max_failures or options.max_failures,
    )
