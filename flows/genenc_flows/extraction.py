"""The flows of an extraction: `extract_features` makes or continues a run, `rerun_shards` does chosen shards of one."""

import contextlib
import contextvars
import threading
from collections.abc import Iterator, Sequence
from typing import Any, cast
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture, as_completed
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic import Field

from genenc_core import errors, pace
from genenc_core.encoding import control
from genenc_core.run import driver, parameters, records, sessions, turns, worker
from genenc_core.run.folder import RunFolder
from genenc_flows import lost_server
from genenc_tasks import extraction, reporting

LANE_RUNNER = cast("TaskRunner[PrefectFuture[Any]]", ThreadPoolTaskRunner(max_workers=turns.LANES))
WATCH_SECONDS = 2.0
PER_TASK = f"Shards in one task run; none: one, or as many as keep the flow run at {extraction.MOST_TASK_RUNS} of them."

SHARDS = (
    "failed, pending, numbers such as 0,3-7, or unreadable: rows recorded as unreadable are tried again "
    "(unreadable:5,17-20 only these)."
)


@flow(
    name="extract_features",
    flow_run_name="extract {given.title}",
    task_runner=LANE_RUNNER,
)
def extract_features(
    given: parameters.ExtractParameters,
    shards_per_task: int | None = Field(default=None, ge=1, description=PER_TASK),
) -> State[Any]:
    """Turn images into features: make the run folder or continue it, encode what is not committed, verify, report."""
    try:
        root = extraction.create_store(given)
    except errors.Stopped as stopped:
        return lost_server.keep(Cancelled(message=str(stopped)))
    return lost_server.keep(_work(root, "pending", records.Options.of(given), shards_per_task, command="extract"))


@flow(
    name="rerun_shards",
    flow_run_name="rerun {shards!r} shards of {run!r}",
    task_runner=LANE_RUNNER,
)
def rerun_shards(
    run: str = Field(description="A run folder."),
    shards: str = Field(default="failed", description=SHARDS),
    device: str | None = Field(default=None, description="auto, cpu, or cuda:N; none: as the run was made."),
    batch_size: int | None = Field(default=None, ge=1, description="Images per call; none: the run's own."),
    max_failures: str | None = Field(default=None, description="12, 5% or 0.05; none: as the run was made."),
    trust: bool = Field(default=False, description="Import the code that the run folder names."),
    accept_changed: bool = Field(default=False, description="Store files that changed since the run was planned."),
    shards_per_task: int | None = Field(default=None, ge=1, description=PER_TASK),
) -> State[Any]:
    """Encode failed, pending or named shards of a run; the run folder alone is enough."""
    options = driver.options_for(
        run,
        device=device,
        batch_size=batch_size,
        max_failures=max_failures,
        trust=trust,
        accept_changed=accept_changed,
    )
    return lost_server.keep(_work(run, shards, options, shards_per_task, command="resume"))


def _work(root: str, which: str, options: records.Options, shards_per_task: int | None, *, command: str) -> State[Any]:
    """Encode shards of an existing run; end Failed naming the shards that were not done, Completed otherwise."""
    options = driver.retrying(options, which)
    groups = extraction.plan_shards(root, which, shards_per_task)
    asked = [shard for group in groups for shard in group.shards]
    reports: list[records.ShardReport] = []
    try:
        with (
            sessions.recorded(root, options, command=command),
            worker.working(root, options),
            control.ensure() as watch,
        ):
            if groups:
                extraction.prepare_encoder(root, options)
                reports = _encode_all(root, groups, options, watch, shards_per_task)
                extraction.verify_run(root)
            result = extraction.write_provenance(root, asked, options)
    except errors.Stopped as stopped:
        return Cancelled(message=str(stopped))
    if groups:
        with reporting.best_effort("the report could not be shown"):
            reporting.publish_report(root, reports)
    return _final_state(result)


def _final_state(result: driver.Result) -> State[Any]:
    found = result.status
    if result.stopped:
        return Cancelled(message=f"stopped on request with {found.pending} shards to do")
    if result.failures:
        # Prefect wants an exception in a failed state; the command line takes the result out of it.
        incomplete = driver.Incomplete(result)
        return Failed(message=str(incomplete), data=incomplete)
    if not result.asked:
        message = f"nothing to do: {found.committed} of {found.shards} shards are committed"
    else:
        message = f"{found.ok} of {found.rows} images stored, {found.unreadable} unreadable"
    return Completed(message=message, data=result)


def _encode_all(
    root: str,
    groups: list[extraction.ShardGroup],
    options: records.Options,
    watch: control.Control,
    per_task: int | None,
) -> list[records.ShardReport]:
    """Run every group, whatever becomes of the others; what failed is told by the run folder.

    Other processes may be at the same run: what they hold is waited for at the end, and done here if they fail to.
    """
    reports: list[records.ShardReport] = []
    with _watched(root, watch), contextlib.suppress(errors.Stopped):
        while groups:
            held = _encode_round(groups, options, watch, reports)
            watch.checkpoint()
            groups = extraction.wait_for_others(root, held, options, per_task) if held else []
    return reports


def _encode_round(
    groups: Sequence[extraction.ShardGroup],
    options: records.Options,
    watch: control.Control,
    reports: list[records.ShardReport],
) -> list[int]:
    """Run every group once; add the reports of what is done, return the shards that others are at."""
    futures = [extraction.encode_shards.submit(group, options) for group in groups]
    try:
        results = _collect(futures)
    except TerminationSignal:
        # A worker or scheduler ends us: the running shards stop within a batch, and the flow ends Cancelled.
        watch.stop()
        results = _collect(futures)
    held: list[int] = []
    for group, result in zip(groups, results, strict=True):
        if isinstance(result, errors.ShardError):
            # It says nothing of the group's others; those that are done or failed are quickly seen to be.
            held += [shard for shard in group.shards if shard != result.shard]
        elif isinstance(result, BaseException):
            if not isinstance(result, errors.Stopped):
                raise result
        else:
            reports += [report for report in result if not report.held]
            held += [report.shard for report in result if report.held]
    return held


def _collect(
    futures: list[PrefectFuture[list[records.ShardReport]]],
) -> list[list[records.ShardReport] | BaseException]:
    """Return what each task run came to, in the order of the futures, when all have ended."""
    for future in as_completed(futures):
        future.wait()
    return [
        cast("list[records.ShardReport] | BaseException", future.result(raise_on_failure=False)) for future in futures
    ]


@contextlib.contextmanager
def _watched(root: str, watch: control.Control) -> Iterator[None]:
    """Keep the progress artifact up to date, and stop the work when the flow run is cancelled in the UI."""
    store = RunFolder(root).store
    shards, begun = store.shard_count, len(store.committed())
    artifact = reporting.start_progress(root, begun, shards)
    speed = pace.Pace()
    ended = threading.Event()
    run_id = UUID(flow_run.id) if flow_run.id else None

    def look(client: SyncPrefectClient, shown: int) -> int:
        state = client.read_flow_run(run_id).state if run_id else None
        if state is not None and state.is_cancelling():
            watch.stop()
        found = len(store.committed())
        if found != shown:
            speed.add(found - shown)
            reporting.show_progress(artifact, root, found, shards, speed)
        return found

    def keep_looking() -> None:
        shown = begun
        while not ended.is_set():
            with reporting.best_effort("the server could not be asked"), get_client(sync_client=True) as client:
                while not ended.wait(WATCH_SECONDS):
                    shown = look(client, shown)
            ended.wait(WATCH_SECONDS)

    watcher = threading.Thread(target=contextvars.copy_context().run, args=(keep_looking,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join(timeout=WATCH_SECONDS)
        with reporting.best_effort("the progress cannot be shown"):
            reporting.show_progress(artifact, root, len(store.committed()), shards)
