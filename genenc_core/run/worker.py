"""One process at work on one run folder: its encoder, loader and store, shared by all its shard threads."""

import collections
import contextlib
import contextvars
import dataclasses
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from genenc_core import errors, host
from genenc_core.encoding import control, engine, shards
from genenc_core.encoding.budget import FailureBudget
from genenc_core.images import decode_server, loader, stamps
from genenc_core.images.limits import Limits
from genenc_core.run import accuracy, engines, outputs_check, records, retries, tally, turns
from genenc_core.run.folder import RunFolder
from genenc_core.store import claims, layout, run_store
from genenc_core.store.objects import Root, is_remote

LOGGER = logging.getLogger(__name__)
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.05, 1.0


class Worker:
    """Encodes and commits shards of one run; `encode` may be called from several threads at once."""

    def __init__(self, root: Root, options: records.Options) -> None:
        self.folder = RunFolder(root)
        self.options = options
        self.budget = FailureBudget.parse(options.max_failures)
        self.claims = claims.Claims(self.folder.objects)
        self._noted: dict[int, str] = {}
        self._ready = threading.Lock()
        self._turns = turns.Turns()
        self._engine: engine.Engine | None = None
        self._watch: outputs_check.Watch | None = None
        self._loader: loader.ImageLoader | None = None

    def close(self) -> None:
        """End the decode workers and the encoding threads, and give up claims, and memory that is kept and free."""
        self.claims.close()
        if self._engine is not None:
            self._engine.close()
        if self._loader is not None:
            self._loader.close()
        if self._engine is not None:
            self._engine.device.release()
        with contextlib.suppress(errors.StoreError):  # what ended the work is told, not that the folder is gone
            if not self.folder.store.pending():
                self.claims.sweep()

    def prepare(self) -> None:
        """Load the encoder and find the batch size, so that what is wrong with them is said once, before any shard.

        Raises:
            InputError: no such device, a batch size out of bounds, a model or artifact that cannot be had.
            Stopped: the end was asked for.
        """
        self._prepared()

    def encode(self, shard: int) -> records.ShardReport:
        """Encode and commit one shard, unless it is committed already or another process is at it.

        Raises:
            ShardError: too many images failed, or the encoder or the store did; recorded in the run folder.
            Stopped: the end was asked for; the shard is left as it was.
        """
        start, stop = self.folder.store.shard_range(shard)
        done = None if self.options.retry else self._done(shard)
        if done is not None:
            return done
        control.current().checkpoint()
        if not self.claims.take(shard):
            self._noted.setdefault(shard, self.folder.failure_note(shard))
            return records.ShardReport(shard=shard, start=start, stop=stop, unreadable=0, held=True)
        try:
            done = None if self.options.retry else self._done(shard)
            return done or self._encode_claimed(shard, start, stop)
        finally:
            self.claims.release(shard)

    def wait_for(self, held: Sequence[int]) -> list[int]:
        """Return the shards that can be worked on again; wait while other processes are at all of them.

        Those that they committed or failed at are left out.

        Raises:
            Stopped: the end was asked for.
            StoreError: the run folder cannot be read any more.
        """
        patience = FIRST_WAIT_SECONDS
        while held:
            control.current().checkpoint()
            committed = self.folder.store.committed()
            held = [shard for shard in held if shard not in committed]
            with run_store.read_errors(self.folder.root):
                busy = [shard for shard in held if self.claims.holder(shard)]
            # A shard that another process just failed at would fail here, too.
            free = [s for s in held if s not in busy and self._noted.get(s) == self.folder.failure_note(s)]
            if free:
                return sorted(free + busy)
            held = busy
            if held:
                time.sleep(patience)
                patience = min(2 * patience, LONGEST_WAIT_SECONDS)
        return []

    def _done(self, shard: int) -> records.ShardReport | None:
        """Return the report of a shard that is committed."""
        known = self.folder.store.record(shard)
        if known is None:
            return None
        start, stop = known.rows
        unreadable = known.status_counts["unreadable"]
        if known.details.get("session") != self.options.session:
            control.current().on_rows(stop - start - unreadable, unreadable)
        return records.ShardReport(shard=shard, start=start, stop=stop, unreadable=unreadable, skipped=True)

    def _encode_claimed(self, shard: int, start: int, stop: int) -> records.ShardReport:
        try:
            return self._retry(shard) if self.options.retry else self._encode(shard, start, stop)
        except errors.Stopped:
            raise
        except errors.ShardError as error:
            self.folder.note_failure(shard, error.reason, self.options.session)
            raise
        except Exception as error:  # whatever a user's model or a file system raises, the other shards go on
            reason = _reason(error)
            self.folder.note_failure(shard, reason, self.options.session)
            raise errors.ShardError(shard, reason) from error

    def _encode(self, shard: int, start: int, stop: int) -> records.ShardReport:
        runner, images = self._prepared()
        with self._turns.turn() as turn:
            began, started = time.perf_counter(), records.now()
            rows = self.folder.manifest.read(start, stop)
            given = shards.ShardInput(
                shard=shard,
                rows=range(start, stop),
                image_ids=rows.image_ids,
                points=rows.points,
                relative=self.folder.points_scale.relative,
                point_states=self.folder.point_states,
            )
            shard_encoder = shards.ShardEncoder(
                given,
                runner,
                self.folder.preprocessing,
                self.budget,
                accept_changed=self.options.accept_changed,
                others_answer=lambda: images.others_answer(start, stop),
                doubtful=self._doubtful(dict(enumerate(rows.paths, start))),
            )
            with contextlib.closing(images.iter_batches(start, stop, on_asked=turn.end)) as stream:
                done = shard_encoder.run(stream, on_loaded=turn.moved)
        self._watched()
        encoded = time.perf_counter()
        device = str(runner.encoder.device)
        details = {"session": self.options.session, "started": started, "device": device, **done.details}
        record = self.folder.store.commit(shard, done.arrays, done.status, details=details)
        tally.note(self.folder.objects, [record])
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

    def _retry(self, shard: int) -> records.ShardReport:
        """Try a committed shard's unreadable rows again; what can be read now is stored by a new record."""
        began, started = time.perf_counter(), records.now()
        before = self.folder.store.record(shard)
        if before is None:
            raise errors.ShardError(shard, "it is not committed: resume the run first")
        (start, stop), blocks = before.rows, self.folder.store.blocks(before)
        wanted = retries.rows(blocks, before, self.options.retry or "all")
        left = before.status_counts["unreadable"]
        if not wanted:
            return records.ShardReport(shard=shard, start=start, stop=stop, unreadable=left, skipped=True)
        runner, images = self._prepared()
        with self._turns.turn() as turn:
            rows = self.folder.manifest.read(start, stop)
            at = [row - start for row in wanted]
            given = shards.ShardInput(
                shard=shard,
                rows=wanted,
                image_ids=[rows.image_ids[each] for each in at],
                points=rows.points[at],
                relative=self.folder.points_scale.relative,
                point_states=self.folder.point_states,
            )
            # All of them may fail once more: they are recorded as it is.
            shard_encoder = shards.ShardEncoder(
                given,
                runner,
                self.folder.preprocessing,
                FailureBudget.parse("100%"),
                accept_changed=self.options.accept_changed,
                lost_volume=False,
                doubtful=self._doubtful(dict(enumerate(rows.paths, start))),
            )
            tried = images.iter_batches(start, stop, only=frozenset(wanted), on_asked=turn.end)
            with contextlib.closing(tried) as stream:
                done = shard_encoder.run(stream, on_loaded=turn.moved)
        self._watched()
        healed = int((done.status == layout.OK).sum())
        if healed:
            session = {"session": self.options.session, "started": started, "device": str(runner.encoder.device)}
            after, status, details = retries.merged(before, blocks, wanted, done)
            record = self.folder.store.heal(before, after, status, details={**details, **session})
            tally.note(self.folder.objects, [record])
            left = record.status_counts["unreadable"]
        self.folder.forget_failure(shard)
        LOGGER.info("shard %05d: %d of %d unreadable images stored", shard, healed, len(wanted))
        seconds = {"total": time.perf_counter() - began}
        return records.ShardReport(shard=shard, start=start, stop=stop, unreadable=left, healed=healed, seconds=seconds)

    def _doubtful(self, paths: Mapping[int, str]) -> Callable[[np.ndarray, np.ndarray], Mapping[int, str]]:
        return lambda rows, found: stamps.doubtful(rows, found, self.folder.manifest, paths)

    def _watched(self) -> None:
        if self._watch is not None:
            self._watch.look()

    def _prepared(self) -> tuple[engine.Engine, loader.ImageLoader]:
        with self._ready:
            if self._engine is None or self._loader is None:
                modules = frozenset(sys.modules)
                decode_server.running()  # it starts while the model is built
                self._engine = engines.make_engine(self.folder, self.options)
                self._loader = loader.ImageLoader(
                    self.folder.manifest,
                    self.folder.preprocessing,
                    workers=self.options.decode_workers or host.cores(),
                    batch=self._engine.sizer.size,
                    in_flight=self._engine.in_flight,
                    limits=Limits(
                        seconds=self.options.image_timeout,
                        megapixels=self.options.max_megapixels,
                        accept_changed=self.options.accept_changed,
                    ),
                    prepare_memory=self._engine.device.page_lock,
                )
                accuracy.measure(self.folder, self.options, self._engine, self._loader)
                self._watch = outputs_check.Watch(self.folder, self._engine, self.options, modules=modules)
            return self._engine, self._loader


class WorkerCache:
    """The workers of this process: one per run folder and session, however many tasks ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._workers: dict[tuple[str, records.Options], Worker] = {}

    def get(self, root: Root, options: records.Options) -> Worker:
        """Return the worker of a run for these options, made at the first call."""
        key = (_key(root), options)
        with self._lock:
            if key not in self._workers:
                self._workers[key] = Worker(root, options)
            return self._workers[key]

    def release(self, root: Root, options: records.Options) -> None:
        """Close the session's worker, if there is one."""
        with self._lock:
            worker = self._workers.pop((_key(root), options), None)
        if worker is not None:
            worker.close()


WORKERS = WorkerCache()


@contextlib.contextmanager
def working(root: Root, options: records.Options) -> Iterator[None]:
    """Close the session's worker at the end, whatever happens."""
    try:
        yield
    finally:
        WORKERS.release(root, options)


def encode_all(root: Root, wanted: Sequence[int], options: records.Options) -> None:
    """Encode and commit shards, sharing them with every other process that is at this run.

    What failed is told by the run folder.

    Raises:
        Stopped: the end was asked for; shards done by then are committed.
    """
    while wanted:
        wanted = WORKERS.get(root, options).wait_for(encode_shards(root, wanted, options).held)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a set of shards came to: reports of those done or held by others, errors of those that failed."""

    reports: tuple[records.ShardReport, ...]
    failures: tuple[errors.ShardError, ...]

    @property
    def held(self) -> list[int]:
        """The shards that other processes are at."""
        return [report.shard for report in self.reports if report.held]


def encode_shards(root: Root, wanted: Sequence[int], options: records.Options, *, lanes: int = turns.LANES) -> Outcome:
    """Encode and commit shards, `lanes` at a time: one is read and written while another is encoded.

    A failed shard does not stop the others. Those that other processes are at are named, not waited for.

    Raises:
        Stopped: the end was asked for; shards done by then are committed.
    """
    worker = WORKERS.get(root, options)
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
                reports.append(worker.encode(shard))
            except errors.ShardError as error:
                failures.append(error)

    pool = ThreadPoolExecutor(max_workers=lanes, thread_name_prefix="genenc-shard")
    patient = True
    try:
        for done in as_completed([pool.submit(contextvars.copy_context().run, lane) for _ in range(lanes)]):
            done.result()
    except KeyboardInterrupt:
        patient = False  # who asks to end at once does not wait for an encoder that hangs
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
    return str(error) if isinstance(error, errors.GenencError | OSError) else f"{type(error).__name__}: {error}"
