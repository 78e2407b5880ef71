"""Worker of a process on a run folder: encoder, loader and store, shared by its shard threads."""

import collections
import contextlib
import contextvars
import dataclasses
import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from genenc_core import errors, statuses
from genenc_core.encoding import cancellation, engine, region_batches, shard_encoding, stages
from genenc_core.encoding.shard_encoding import FailureBudget
from genenc_core.images.decode import gpu_decode
from genenc_core.images.decode.limits import Limits
from genenc_core.images.load import decode_server, loader
from genenc_core.images.sources import file_stamps, manifest
from genenc_core.run import (
    accuracy,
    bound,
    engine_setup,
    gpu_pixels,
    load_order,
    margins,
    outputs_check,
    records,
    retries,
    status_cache,
)
from genenc_core.run.bound import Work
from genenc_core.run.folder import RunFolder
from genenc_core.store import commit_record, leases, run_store
from genenc_core.store.backends.objects import Root, is_remote
from genenc_core.system import limits, memory

LOGGER = logging.getLogger(__name__)
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.05, 1.0


class Worker:
    """Encodes and commits shards of one run; `encode` is thread-safe."""

    def __init__(self, run: RunFolder, options: records.Options) -> None:
        self.folder = run
        self.options = options
        self.budget = FailureBudget.parse(options.max_failures)
        self.claims = leases.Leases(self.folder.objects)
        self._noted: dict[int, str] = {}
        self._ready = threading.Lock()
        self._turns = load_order.LoadOrder()
        self._meter = bound.Meter(cancellation.current().began)
        self._engine: engine.Engine | None = None
        self._watch: outputs_check.Watch | None = None
        self._loader: loader.ImageLoader | None = None

    def close(self) -> None:
        """Stop decode workers and encoding threads; release claims and cached memory."""
        self.claims.close()
        if self._engine is not None:
            self._engine.close()
        if self._loader is not None:
            self._loader.close()
        if self._engine is not None:
            self._engine.device.release()
        with contextlib.suppress(errors.StoreError):  # do not mask the error that ended the work
            if not self.folder.store.pending():
                self.claims.sweep()

    def prepare(self) -> None:
        """Load the encoder and find the batch size, so that their errors are reported once, before any shard.

        Raises:
            InputError: no such device, a batch size out of bounds, or a model or artifact that cannot be loaded.
            Stopped: a stop was requested.
        """
        self._prepared()

    def encode(self, shard: int, *, through: stages.Stages = stages.IN_ONE_THREAD) -> records.ShardReport:
        """Encode and commit one shard, unless it is already committed or claimed by another process.

        Raises:
            ShardError: too many images, the encoder or the store failed; recorded in the run folder.
            Stopped: a stop was requested; the shard is left unchanged.
        """
        start, stop = self.folder.store.shard_range(shard)
        done = None if self.options.retry else self._done(shard)
        if done is not None:
            return done
        cancellation.current().raise_if_cancelled()
        if not self.claims.take(shard):
            self._noted.setdefault(shard, self.folder.failure_note(shard))
            return records.ShardReport(shard=shard, start=start, stop=stop, unreadable=0, held=True)
        try:
            done = None if self.options.retry else self._done(shard)
            return done or self._encode_claimed(shard, start, stop, through)
        finally:
            self.claims.release(shard)

    def wait_for(self, held: Sequence[int]) -> list[int]:
        """Wait until a held shard is free again; return the shards that are still to be done.

        Shards that other processes committed or failed at are omitted.

        Raises:
            Stopped: a stop was requested.
            StoreError: the run folder can no longer be read.
        """
        patience = FIRST_WAIT_SECONDS
        while held:
            began = time.perf_counter()
            cancellation.current().raise_if_cancelled()
            committed = self.folder.store.committed()
            held = [shard for shard in held if shard not in committed]
            with run_store.read_errors(self.folder.root):
                busy = [shard for shard in held if self.claims.holder(shard)]
            # A shard that just failed in another process would fail here too.
            free = [s for s in held if s not in busy and self._noted.get(s) == self.folder.failure_note(s)]
            if free:
                return sorted(free + busy)
            held = busy
            if held:
                time.sleep(patience)
                patience = min(2 * patience, LONGEST_WAIT_SECONDS)
            self._meter.skip(time.perf_counter() - began)
        return []

    def _done(self, shard: int) -> records.ShardReport | None:
        """Return the report of a committed shard, None if it is not committed."""
        known = self.folder.store.record(shard)
        if known is None:
            return None
        start, stop = known.rows
        unreadable = known.status_counts["unreadable"]
        if known.details.get("session") != self.options.session:
            cancellation.current().on_rows(stop - start - unreadable, unreadable)
        return records.ShardReport(shard=shard, start=start, stop=stop, unreadable=unreadable, skipped=True)

    def _encode_claimed(self, shard: int, start: int, stop: int, through: stages.Stages) -> records.ShardReport:
        try:
            if self.options.retry:
                return self._retry(shard, through)
            return self._encode(shard, start, stop, through)
        except errors.Stopped:
            raise
        except errors.ShardError as error:
            self.folder.note_failure(shard, error.reason, self.options.session, error.images)
            raise
        except Exception as error:  # user models and file systems may raise anything; the other shards go on
            reason = _reason(error)
            self.folder.note_failure(shard, reason, self.options.session)
            raise errors.ShardError(shard, reason) from error

    def _encode(self, shard: int, start: int, stop: int, through: stages.Stages) -> records.ShardReport:
        self._begin()
        timed = stages.Timed(through)
        with self._turns.turn() as turn:
            began, started = time.perf_counter(), records.now()
            done, measured = self._run(turn, shard, start, stop, self.budget, timed)
        self._check_outputs()
        encoded = time.perf_counter()
        details = {"session": self.options.session, "started": started, "device": self._device, **done.details}
        record = timed.call(stages.STORE, lambda: self._commit(shard, done, details))
        ended = time.perf_counter()
        seconds = {**measured, "commit": ended - encoded, "total": ended - began}
        unreadable = record.status_counts["unreadable"]
        own = record.details.get("session") == self.options.session
        report = records.ShardReport(
            shard=shard,
            start=start,
            stop=stop,
            unreadable=unreadable,
            work=Work.of(record.details) if own else None,
            seconds=seconds,
            spans=timed.spans,
        )
        timings = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
        LOGGER.info(
            "shard %05d: %d images, %d unreadable, %.1f images/s (%s)",
            *(shard, report.rows, unreadable, report.images_per_second, timings),
        )
        return report

    def _begin(self) -> None:
        """Prepare, and start the measurement of what limits the run."""
        runner, images = self._prepared()
        on_host = runner.encoder.device.type == "cpu"
        self._meter.begin(workers=images.workers, side_by_side=runner.side_by_side, on_host=on_host)

    def _commit(
        self, shard: int, done: shard_encoding.EncodedShard, details: Mapping[str, object]
    ) -> commit_record.CommitRecord:
        with self._meter.storing() as work:
            record = self.folder.store.commit(
                shard, done.arrays, done.status, details=details, late=lambda: {"work": work()._asdict()}
            )
            status_cache.note(self.folder.objects, [record])
        self.folder.forget_failure(shard)
        return record

    def _retry(self, shard: int, through: stages.Stages) -> records.ShardReport:
        """Retry a committed shard's unreadable rows; rows that can be read now are stored with a new record."""
        began, started = time.perf_counter(), records.now()
        current = self.folder.store.current(shard)
        if current is None:
            raise errors.ShardError(shard, "it is not committed: resume the run first")
        before, blocks = current
        start, stop = before.rows
        wanted = retries.rows(blocks, before, self.options.retry or "all")
        left = before.status_counts["unreadable"]
        if not wanted:
            return records.ShardReport(shard=shard, start=start, stop=stop, unreadable=left, skipped=True)
        self.prepare()
        with self._turns.turn() as turn:
            # All of them may fail again: they are already recorded as unreadable.
            done, _ = self._run(turn, shard, start, stop, FailureBudget.parse("100%"), through, only=wanted)
        self._check_outputs()
        healed = int((done.status == statuses.OK).sum())
        if healed:
            session = {"session": self.options.session, "started": started, "device": self._device}
            after, status, details = retries.merged(
                before, blocks, wanted, done, of_regions=self.folder.store.plan.region_arrays
            )
            details = {**details, **session}
            record = through.call(stages.STORE, lambda: self.folder.store.heal(before, after, status, details=details))
            status_cache.note(self.folder.objects, [record])
            left = record.status_counts["unreadable"]
        self.folder.forget_failure(shard)
        LOGGER.info("shard %05d: %d of %d unreadable images stored", shard, healed, len(wanted))
        seconds = {"total": time.perf_counter() - began}
        return records.ShardReport(shard=shard, start=start, stop=stop, unreadable=left, healed=healed, seconds=seconds)

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
    ) -> tuple[shard_encoding.EncodedShard, Mapping[str, float]]:
        """Encode a shard, or `only` some of its rows; return the result and the seconds per stage."""
        runner, images = self._prepared()
        rows = self.folder.manifest.read(start, stop)
        paths = dict(enumerate(rows.paths, start))
        given = self._input(shard, start, rows, only)
        shard_encoder = shard_encoding.ShardEncoder(
            given,
            runner,
            self.folder.preprocessing,
            budget,
            accept_changed=self.options.accept_changed,
            check_volume=only is None,
            other_files_readable=lambda: images.other_files_readable(start, stop),
            doubtful=lambda rows, found: file_stamps.doubtful(rows, found, self.folder.manifest, paths),
        )
        chosen = None if only is None else frozenset(only)
        batches = images.iter_batches(start, stop, only=chosen, on_submitted=turn.end)
        return shard_encoder.run(batches, on_loaded=turn.moved, through=through), shard_encoder.seconds

    def _input(
        self, shard: int, start: int, rows: manifest.Rows, only: Sequence[int] | None
    ) -> shard_encoding.ShardInput:
        """Return the rows of a shard, which begins at `start`, or `only` some of them."""
        at = None if only is None else [row - start for row in only]
        return shard_encoding.ShardInput(
            shard=shard,
            rows=range(start, start + len(rows)) if only is None else only,
            image_ids=rows.image_ids if at is None else [rows.image_ids[each] for each in at],
            points=rows.points if at is None else rows.points[at],
            relative=self.folder.points_scale.relative,
            point_states=self.folder.point_states,
            regions=self._regions(start, start + len(rows)),
        )

    def _regions(self, start: int, stop: int) -> region_batches.ShardRegions | None:
        found = self.folder.regions
        if found is None:
            return None
        return region_batches.ShardRegions(
            found=found.of_rows(start, stop), places=self.folder.store.plan.region_places
        )

    @property
    def _device(self) -> str:
        """The device that the shards are made on."""
        return str(self._prepared()[0].encoder.device)

    def _check_outputs(self) -> None:
        if self._watch is not None:
            self._watch.check()

    def _prepared(self) -> tuple[engine.Engine, loader.ImageLoader]:
        with self._ready:
            if self._engine is None or self._loader is None:
                modules = frozenset(sys.modules)
                decode_server.running()  # starts in the background while the model is built
                self._engine = engine_setup.make_engine(self.folder, self.options)
                device = str(self._engine.encoder.device)
                gpu_pixels.require(self.folder, device)
                self._loader = loader.ImageLoader(
                    self.folder.manifest,
                    self.folder.preprocessing,
                    workers=self.options.decode_workers or self._usual_workers(),
                    batch=self._engine.sizer.size,
                    in_flight=self._engine.in_flight,
                    limits=Limits(
                        seconds=self.options.image_timeout,
                        megapixels=self.options.max_megapixels,
                        accept_changed=self.options.accept_changed,
                    ),
                    device=device,
                    prepare_memory=self._engine.device.page_lock,
                )
                accuracy.measure(self.folder, self.options, self._engine, self._loader)
                margins.measure(self._engine, self._loader, self.folder.store.plan.rows)
                self._watch = outputs_check.Watch(self.folder, self._engine, self.options, modules=modules)
            return self._engine, self._loader

    def _usual_workers(self) -> int:
        # Each worker that decodes on a GPU has its own context there.
        most = gpu_decode.USUAL_WORKERS if self.folder.preprocessing.decode == "gpu" else limits.cores()
        return min(limits.cores(), most)


class WorkerCache:
    """Workers of this process, one per run folder and session, shared by tasks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._workers: dict[tuple[str, records.Options], Worker] = {}

    def get(self, run: RunFolder, options: records.Options) -> Worker:
        """Return the worker of a run for these options, creating it on the first call."""
        key = (_key(run.root), options)
        with self._lock:
            if key not in self._workers:
                self._workers[key] = _made(run, options)
            return self._workers[key]

    def release(self, run: RunFolder, options: records.Options) -> None:
        """Close the session's worker, if any."""
        with self._lock:
            worker = self._workers.pop((_key(run.root), options), None)
        if worker is not None:
            worker.close()


def _made(run: RunFolder, options: records.Options) -> Worker:
    if not run.is_probe_set:
        return Worker(run, options)
    from genenc_core.run import probe_worker  # it builds on this module

    return probe_worker.ProbeWorker(run, options)


WORKERS = WorkerCache()


@contextlib.contextmanager
def working(run: RunFolder, options: records.Options) -> Iterator[None]:
    """Close the session's worker when the block ends."""
    try:
        yield
    finally:
        WORKERS.release(run, options)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Outcome of a set of shards: reports of those done or held by others, errors of those that failed."""

    reports: tuple[records.ShardReport, ...]
    failures: tuple[errors.ShardError, ...]

    @property
    def done(self) -> list[records.ShardReport]:
        """Reports of the shards done by this process or already committed."""
        return [report for report in self.reports if not report.held]

    @property
    def held(self) -> list[int]:
        """The shards held by other processes."""
        return [report.shard for report in self.reports if report.held]


def encode_shards(
    run: RunFolder,
    wanted: Sequence[int],
    options: records.Options,
    *,
    lanes: int = load_order.LANES,
    through: stages.Stages = stages.IN_ONE_THREAD,
) -> Outcome:
    """Encode and commit shards, `lanes` at a time: one is read and written while another is encoded.

    A failed shard does not stop the others. Shards held by other processes are reported, not waited for.

    Raises:
        Stopped: a stop was requested; shards done by then are committed.
    """
    worker = WORKERS.get(run, options)
    reports: list[records.ShardReport] = []
    failures: list[errors.ShardError] = []
    todo = collections.deque(wanted)

    def lane() -> None:
        while True:
            try:
                shard = todo.popleft()
            except IndexError:
                return
            try:
                reports.append(worker.encode(shard, through=through))
            except errors.ShardError as error:
                failures.append(error)

    pool = ThreadPoolExecutor(max_workers=lanes, thread_name_prefix="genenc-shard")
    patient = True
    try:
        for done in as_completed([pool.submit(contextvars.copy_context().run, lane) for _ in range(lanes)]):
            done.result()
    except KeyboardInterrupt:
        patient = False  # on an immediate abort, do not wait for an encoder that hangs
        raise
    finally:
        todo.clear()
        pool.shutdown(wait=patient, cancel_futures=True)
    return Outcome(
        reports=tuple(sorted(reports, key=lambda report: report.shard)),
        failures=tuple(sorted(failures, key=lambda error: error.shard)),
    )


def _key(root: Root) -> str:
    return str(root) if is_remote(root) else str(Path(root).resolve())


def _reason(error: Exception) -> str:
    cause = None if isinstance(error, errors.EncoderError) else memory.lacking_cause(error)
    if cause is not None:
        return memory.describe(cause)
    return str(error) if isinstance(error, errors.GenencError | OSError) else f"{type(error).__name__}: {error}"
