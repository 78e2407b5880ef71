"""Extraction flows: `extract_features` creates or continues a run, `rerun_shards` encodes selected shards."""

import contextlib
import contextvars
import threading
from collections.abc import Iterator
from typing import Annotated, Any, cast
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture, as_completed
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic import Field, WithJsonSchema

from genenc_core import choices, errors, text
from genenc_core.encoding import cancellation
from genenc_core.run import driver, load_order, options, parameters, records
from genenc_core.run.folder import RunFolder
from genenc_core.system import progress_rate, signals
from genenc_flows import engines, lost_server, run_logs
from genenc_tasks import extraction, reporting

LANE_RUNNER = cast("TaskRunner[PrefectFuture[Any]]", ThreadPoolTaskRunner(max_workers=load_order.LANES))
WATCH_SECONDS = 2.0
PER_TASK = f"Shards per task run; 0: as few as keep the flow run within {extraction.MOST_TASK_RUNS} task runs."

CHANGES = parameters.fields_of_changes()
# Shown in the form as a value, not as a choice between a value and none. The form sends a field's default, which it
# refuses if it is null: "" and 0 stand for what is not given.
Text = Annotated[str | None, WithJsonSchema({"type": "string"})]
Number = Annotated[int | None, WithJsonSchema({"type": "integer", "minimum": 0})]
AS_MADE = "as the run was made"
SHARDS = (
    "failed, pending, numbers such as 0,3-7, or unreadable: rows recorded as unreadable are retried "
    "(unreadable:5,17-20 only these)."
)


@flow(
    name="extract_features",
    flow_run_name="extract {given.title}",
    task_runner=LANE_RUNNER,
)
def extract_features(
    given: parameters.ExtractParameters,
    shards_per_task: Number = Field(default=0, ge=0, description=PER_TASK),
) -> State[Any]:
    """Extract features from images: create or continue a run, encode uncommitted shards, verify and report."""
    run_logs.prepare()
    try:
        run = extraction.create_store(given)
    except errors.Stopped as stopped:
        return lost_server.keep(Cancelled(message=str(stopped)))
    session = FlowSession(
        run,
        records.Options.of(given),
        command="extract",
        shards_per_task=shards_per_task,
        engine=engines.Choice.of(given),
    )
    return lost_server.keep(session.state("pending"))


def _rerun_name() -> str:
    given = flow_run.parameters
    return text.title(f"rerun {given.get('shards', 'failed')} shards of {text.place(str(given['run']))}")


@flow(
    name="rerun_shards",
    flow_run_name=_rerun_name,
    task_runner=LANE_RUNNER,
)
def rerun_shards(
    run: str = Field(description="A run folder."),
    shards: str = Field(default="failed", description=SHARDS),
    device: Text = options.again(CHANGES["device"], AS_MADE, default=""),
    batch_size: Number = options.again(CHANGES["batch_size"], AS_MADE, default=0),
    max_failures: Text = options.again(CHANGES["max_failures"], AS_MADE, default=""),
    trust: bool = options.again(CHANGES["trust"], "no", default=False),
    accept_changed: bool = options.again(CHANGES["accept_changed"], "no", default=False),
    engine: Text = options.again(CHANGES["engine"], AS_MADE, default=""),
    engine_address: Text = options.again(CHANGES["engine_address"], AS_MADE, default=""),
    engine_workers: Number = options.again(CHANGES["engine_workers"], AS_MADE, default=0),
    shards_per_task: Number = Field(default=0, ge=0, description=PER_TASK),
) -> State[Any]:
    """Encode failed, pending or selected shards of a run; needs only the run folder."""
    run_logs.prepare()
    changes = parameters.Changes(
        device=device or None,
        batch_size=batch_size or None,
        max_failures=max_failures or None,
        trust=trust,
        accept_changed=accept_changed,
        engine=cast("choices.Engine | None", engine or None),
        engine_address=engine_address or None,
        engine_workers=engine_workers or None,
    )
    opened = RunFolder(run)
    how = records.Options.to_continue(opened.given, changes)
    session = FlowSession(
        opened,
        how,
        command="resume",
        shards_per_task=shards_per_task,
        engine=engines.Choice.of(opened.given, changes),
    )
    return lost_server.keep(session.state(shards))


class FlowSession(driver.Session):
    """Session that runs its steps as Prefect tasks."""

    def __init__(
        self,
        run: RunFolder,
        options: records.Options,
        *,
        command: str,
        shards_per_task: int | None = None,
        engine: engines.Choice = engines.Choice(),
    ) -> None:
        super().__init__(run, options, command=command)
        self.shards_per_task = shards_per_task or None
        self.engine = engine
        self.runner: TaskRunner[Any] | None = None
        """Of the engine, while shards are encoded; None for the flow's own."""

    def state(self, shards: str) -> State[Any]:
        """Encode shards; return Completed, Cancelled, or Failed with the shards that were not done."""
        try:
            result = self.work(shards)
        except errors.Stopped as stopped:
            return Cancelled(message=str(stopped))
        if result.asked:
            with reporting.best_effort("the report could not be shown"):
                reporting.publish_report(self.run, self.reports, self.options.session)
        return _final_state(result)

    def plan(self, shards: str) -> list[int]:
        """Run the task `plan_shards`."""
        return extraction.plan_shards(self.run, shards)

    def prepare(self) -> None:
        """Run the task `prepare_encoder`."""
        extraction.prepare_encoder(self.run, self.options)

    def encode_all(self, wanted: list[int]) -> None:
        """Encode shards as `Session.encode_all` does, with a progress bar, until the flow run is cancelled in the UI.

        `finish` reports a stop.
        """
        with (
            engines.started(self.engine) as self.runner,
            _watched(self.run, cancellation.current()),
            signals.handled_at_once(),
            contextlib.suppress(errors.Stopped),
        ):
            super().encode_all(wanted)

    def encode(self, shards: list[int]) -> tuple[list[records.ShardReport], list[int]]:
        """Run a task `encode_shards` for every group of shards; groups are independent of each other."""
        groups = extraction.grouped(self.run, shards, self.shards_per_task)
        futures = [self._submit(group) for group in groups]
        try:
            results = _collect(futures)
        except TerminationSignal:
            # Terminated by a worker or scheduler: running shards stop within a batch and the flow ends Cancelled.
            cancellation.current().stop()
            results = _collect(futures)
        done: list[records.ShardReport] = []
        held: list[int] = []
        for group, result in zip(groups, results, strict=True):
            if isinstance(result, errors.ShardError):
                # The status of the group's other shards is unknown; those done or failed are detected quickly.
                held += [shard for shard in group.shards if shard != result.shard]
            elif isinstance(result, BaseException):
                if not isinstance(result, errors.Stopped):
                    raise result
            else:
                done += [report for report in result if not report.held]
                held += [report.shard for report in result if report.held]
        return done, held

    def _submit(self, group: extraction.ShardGroup) -> PrefectFuture[list[records.ShardReport]]:
        if self.runner is None:
            return extraction.encode_shards.submit(group, self.options)
        given = {"group": group, "options": self.options}
        return cast("PrefectFuture[list[records.ShardReport]]", self.runner.submit(extraction.encode_shards, given))

    def wait_for(self, held: list[int]) -> list[int]:
        """Run the task `wait_for_others`."""
        return extraction.wait_for_others(self.run, held, self.options)

    def verify(self) -> None:
        """Run the task `verify_run`."""
        extraction.verify_run(self.run)

    def finish(self, asked: list[int]) -> records.Result:
        """Run the task `write_provenance`."""
        return extraction.write_provenance(self.run, asked, self.options, self.reports)


def _final_state(result: records.Result) -> State[Any]:
    found = result.status
    if result.stopped:
        return Cancelled(message=f"stopped on request with {found.pending} shards to do")
    if result.failures:
        # A failed state needs an exception; the command line extracts the result from it.
        incomplete = records.Incomplete(result)
        return Failed(message=str(incomplete), data=incomplete)
    if not result.asked:
        message = f"nothing to do: {found.committed} of {found.shards} shards are committed"
    else:
        message = f"{found.ok} of {found.rows} images stored, {found.unreadable} unreadable"
    return Completed(message=message, data=result, name=completed_name(found.unreadable))


def completed_name(unreadable: int) -> str:
    """Return the name of the state Completed, which tells in lists of runs that some images could not be read."""
    return "Completed with unreadable images" if unreadable else "Completed"


def _collect(
    futures: list[PrefectFuture[list[records.ShardReport]]],
) -> list[list[records.ShardReport] | BaseException]:
    """Wait for all task runs; return their results or errors in the order of the futures."""
    for future in as_completed(futures):
        future.wait()
    return [
        cast("list[records.ShardReport] | BaseException", future.result(raise_on_failure=False)) for future in futures
    ]


@contextlib.contextmanager
def _watched(run: RunFolder, watch: cancellation.Control) -> Iterator[None]:
    """Update the progress artifact, and stop the work when the flow run is cancelled in the UI."""
    root, store = run.root, run.store
    shards, begun = store.shard_count, len(store.committed())
    artifact = reporting.start_progress(run, begun, shards)
    speed = progress_rate.Pace()
    ended = threading.Event()
    run_id = UUID(flow_run.id) if flow_run.id else None

    def poll(client: SyncPrefectClient, shown: int) -> int:
        state = client.read_flow_run(run_id).state if run_id else None
        if state is not None and state.is_cancelling():
            watch.stop()
        found = len(store.committed())
        if found != shown:
            speed.add(found - shown)
            reporting.show_progress(artifact, root, found, shards, speed)
        return found

    def poll_loop() -> None:
        shown = begun
        while not ended.is_set():
            with reporting.best_effort("the server could not be polled"), get_client(sync_client=True) as client:
                while not ended.wait(WATCH_SECONDS):
                    shown = poll(client, shown)
            ended.wait(WATCH_SECONDS)

    watcher = threading.Thread(target=contextvars.copy_context().run, args=(poll_loop,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join(timeout=WATCH_SECONDS)
        with reporting.best_effort("the progress cannot be shown"):
            reporting.show_progress(artifact, root, len(store.committed()), shards)
