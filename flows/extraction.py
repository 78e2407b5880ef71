"""The flows of an extraction: `extract_features` makes or continues a run, `rerun_shards` does chosen shards of one."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic import Field

from genenc_core import errors
from genenc_core.encoding import control
from genenc_core.run import driver, parameters, records, sessions, status, worker
from tasks import extraction, reporting

LANES = 2
LANE_RUNNER = cast("TaskRunner[PrefectFuture[Any]]", ThreadPoolTaskRunner(max_workers=LANES))
PROGRESS_SECONDS = 2.0


@flow(
    name="extract_features",
    flow_run_name="extract {given.images} with {given.model}",
    task_runner=LANE_RUNNER,
)
def extract_features(
    given: parameters.ExtractParameters,
    shards_per_task: int = Field(default=1, ge=1, description="Shards in one task run."),
) -> State[Any]:
    """Turn images into features: make the run folder or continue it, encode what is not committed, verify, report."""
    root = extraction.create_store(given)
    options = records.Options.of(given)
    return _work(root, "pending", options, shards_per_task, command="extract")


@flow(
    name="rerun_shards",
    flow_run_name="rerun {shards} shards of {run}",
    task_runner=LANE_RUNNER,
)
def rerun_shards(
    run: str = Field(description="A run folder."),
    shards: str = Field(default="failed", description="failed, pending, or numbers such as 0,3-7."),
    device: str = Field(default="auto", description="auto, cpu, or cuda:N."),
    batch_size: int | None = Field(default=None, ge=1, description="Images per call; none: the run's own."),
    max_failures: str | None = Field(default=None, description="12, 5% or 0.05; none: as the run was made."),
    shards_per_task: int = Field(default=1, ge=1, description="Shards in one task run."),
) -> State[Any]:
    """Encode failed, pending or named shards of a run; the run folder alone is enough."""
    options = worker.options_of(Path(run), device=device, batch_size=batch_size, max_failures=max_failures)
    return _work(run, shards, options, shards_per_task, command="resume")


def _work(root: str, which: str, options: records.Options, shards_per_task: int, *, command: str) -> State[Any]:
    """Encode shards of an existing run; end Failed naming the shards that were not done, Completed otherwise."""
    groups = extraction.plan_shards(root, which, shards_per_task)
    sessions.begin(Path(root), options, command=command)
    if not groups:
        found = extraction.write_provenance(root, options.session, "nothing to do")
        message = f"nothing to do: {found.committed} of {found.shards} shards are committed"
        return Completed(message=message, data=driver.Result(status=found, asked=0, failures=()))
    with worker.working(Path(root)):
        reports = _encode_all(root, groups, options)
    extraction.verify_run(root)
    reporting.publish_report(root, reports)
    asked = [shard for group in groups for shard in group.shards]
    stopped = control.current().stopping
    failures = () if stopped else worker.failures_among(Path(root), asked)
    state = "cancelled" if stopped else "failed" if failures else "completed"
    found = extraction.write_provenance(root, options.session, state)
    result = driver.Result(status=found, asked=len(asked), failures=failures)
    if stopped:
        return Cancelled(message=f"stopped on request with {found.pending} shards to do")
    if failures:
        # Prefect wants an exception in a failed state; the command line takes the result out of it.
        incomplete = driver.Incomplete(result)
        return Failed(message=str(incomplete), data=incomplete)
    message = f"{found.ok} of {found.rows} images stored, {found.unreadable} unreadable"
    return Completed(message=message, data=result)


def _encode_all(
    root: str, groups: Sequence[extraction.ShardGroup], options: records.Options
) -> list[records.ShardReport]:
    """Run every group, whatever becomes of the others; what failed is told by the run folder."""
    begun = status.run_status(Path(root))
    artifact = reporting.start_progress(root, begun.committed, begun.shards)
    futures = [extraction.encode_shards.submit(group, options) for group in groups]
    shown = time.monotonic()
    reports: list[records.ShardReport] = []
    for future in as_completed(futures):
        result = _outcome(future)
        if isinstance(result, list):
            reports += result
        elif not isinstance(result, errors.ShardError | errors.Stopped):
            raise result
        if time.monotonic() - shown >= PROGRESS_SECONDS:
            reporting.show_progress(artifact, root, begun.committed + len(reports), begun.shards)
            shown = time.monotonic()
    reporting.show_progress(artifact, root, begun.committed + len(reports), begun.shards)
    return reports


def _outcome(future: PrefectFuture[list[records.ShardReport]]) -> list[records.ShardReport] | BaseException:
    """Return a task run's result, or the exception that ended it."""
    return cast("list[records.ShardReport] | BaseException", future.result(raise_on_failure=False))
