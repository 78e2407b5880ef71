"""Sessions on a run: plan shards, encode them, verify the run and record the outcome.

`Session` calls the steps directly; the flow's subclass runs them as Prefect tasks.
"""

import dataclasses
from collections.abc import Sequence

from genenc_core import errors
from genenc_core.encoding import cancellation
from genenc_core.run import (
    integrity,
    out_folder,
    parameters,
    planning,
    probe_source,
    records,
    session_log,
    status,
    worker,
)
from genenc_core.run.folder import RunFolder
from genenc_core.run.records import Incomplete, Result
from genenc_core.store import leases

UPDATE = "update"
"""Command of the sessions of a dataset's update."""


class Session:
    """One session on a run; subclasses may override how the steps are executed."""

    def __init__(self, run: RunFolder, options: records.Options, *, command: str) -> None:
        self.run = run
        self.options = options
        self.command = command
        self.reports: list[records.ShardReport] = []
        """Of the shards done so far."""

    def work(self, shards: str) -> Result:
        """Encode `failed`, `pending` or named shards, and verify the run.

        `unreadable` retries the rows recorded as unreadable, `unreadable:5,17-20` only these: rows that can be read
        now are stored, and no other row changes.

        Raises:
            InputError: an invalid argument.
            StoreError: the folder is damaged.
            Stopped: a stop was requested; complete shards are kept.
        """
        self.options = retrying(self.options, shards)
        if self.command != UPDATE and self.run.dataset is not None:
            raise errors.InputError(status.part_refusal(self.run))
        wanted = self.plan(shards)
        with (
            session_log.recorded(self.run, self.options, command=self.command),
            worker.working(self.run, self.options),
            cancellation.ensure(),
        ):
            if wanted:
                self.prepare()
                self.encode_all(wanted)
                self.verify()
            return self.finish(wanted)

    def encode_all(self, wanted: list[int]) -> None:
        """Encode and commit shards, sharing them with other processes working on this run.

        `reports` gets those of the shards done; failures are recorded in the run folder.

        Raises:
            Stopped: a stop was requested; shards done by then are committed.
        """
        while wanted:
            done, held = self.encode(wanted)
            self.reports += done
            wanted = self.wait_for(held) if held else []

    def plan(self, shards: str) -> list[int]:
        """Return the shards to do; raises as `plan`."""
        return plan(self.run, shards)

    def prepare(self) -> None:
        """Load the encoder; raises as `Worker.prepare`."""
        worker.WORKERS.get(self.run, self.options).prepare()

    def encode(self, shards: list[int]) -> tuple[list[records.ShardReport], list[int]]:
        """Encode and commit shards once; return the reports of those done, and the shards held by other processes."""
        outcome = worker.encode_shards(self.run, shards, self.options)
        return outcome.done, outcome.held

    def wait_for(self, held: list[int]) -> list[int]:
        """Wait for other processes; return the shards that are free again; raises as `Worker.wait_for`."""
        return worker.WORKERS.get(self.run, self.options).wait_for(held)

    def verify(self) -> None:
        """Verify the committed shards; raises as `status.require_intact`."""
        status.require_intact(self.run)

    def finish(self, asked: list[int]) -> Result:
        """Complete the session's record and return its result."""
        return finish(self.run, asked, self.options, self.reports)


def extract(given: parameters.ExtractParameters) -> Result:
    """Create or continue a run, encode uncommitted shards and verify it; raises as `Session.work`."""
    with cancellation.ensure():
        run = planning.create_run(given)
        return Session(run, records.Options.of(given), command="extract").work("pending")


def resume(run: RunFolder, shards: str = "pending", changes: parameters.Changes | None = None) -> Result:
    """Encode shards of an existing run and verify it; arguments and errors as for `Session.work`."""
    options = records.Options.to_continue(run.given, changes or parameters.Changes())
    return Session(run, options, command="resume").work(shards)


def complete(result: Result) -> Result:
    """Return the result if every shard was done.

    Raises:
        Stopped: a stop was requested.
        Incomplete: some shards were not committed.
    """
    if result.stopped:
        raise errors.Stopped(f"stopped with {result.status.pending} shards to do")
    if result.failures:
        raise Incomplete(result)
    return result


def retrying(options: records.Options, shards: str) -> records.Options:
    """Return the options with `retry` set as `shards` asks: which unreadable rows to retry, if any."""
    kind, _, rows = shards.partition(":")
    return dataclasses.replace(options, retry=(rows or "all") if kind == "unreadable" else None)


def plan(run: RunFolder, shards: str) -> list[int]:
    """Recover interrupted commits; return the shards to do and report the number of rows to the progress display.

    Raises:
        StoreError: a file that the run was made with is damaged, the folder contains a link, a pipe or a device, or
            nothing is to do and committed objects are missing.
    """
    integrity.require_inputs(run)
    run.store.recover()
    wanted = status.select_shards(run, shards)
    if run.is_probe_set:
        wanted = probe_source.ready(run, wanted)
    sweep(run)
    if not wanted:  # otherwise the run is verified after encoding
        status.require_listed(run)
    rows = run.rows_of(wanted)
    if shards.startswith("unreadable"):
        rows = sum(status.unreadable_rows(run, shards.partition(":")[2] or "all").values())
    cancellation.current().on_plan(rows, run.store.plan.rows)
    return wanted


def sweep(run: RunFolder) -> None:
    """Remove stale files that killed processes left in a run folder."""
    out_folder.sweep_killed(run.root)
    if not run.store.pending():
        leases.Leases(run.objects).sweep()


def finish(
    run: RunFolder, asked: Sequence[int], options: records.Options, reports: Sequence[records.ShardReport] = ()
) -> Result:
    """Read a session's result from the run folder and complete its record; `reports` are this session's."""
    found = status.run_status(run)
    missing = _not_done(run, asked, options)
    stopped = cancellation.current().stopping and bool(missing)
    reasons = {} if stopped else {shard: run.failure(shard, session=options.session) for shard in missing}
    failures = tuple(errors.ShardError(shard, reason) for shard, reason in reasons.items())
    state = "nothing to do" if not asked else "cancelled" if stopped else "failed" if failures else "completed"
    limit = records.bound_of(reports)
    session_log.end(run.objects, options.session, state=state, status=found, bound=limit)
    return Result(run=run, status=found, asked=len(asked), failures=failures, stopped=stopped, bound=limit)


def _not_done(run: RunFolder, asked: Sequence[int], options: records.Options) -> list[int]:
    """Return the shards that were not committed; for retries, those that failed in this session."""
    if options.retry is None:
        return sorted(set(asked) - run.store.committed())
    return [shard for shard in asked if run.failed_in(shard, options.session)]
