"""Extraction tasks: create the run, group its shards, encode them, verify and report."""

import contextlib
import dataclasses
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from genenc_core.encoding.stages import IN_ONE_THREAD, Stages
from genenc_core.run import driver, parameters, planning, records, status, worker
from genenc_core.run.folder import RunFolder
from genenc_tasks import stages, stopping
from genenc_tasks.names import named
from genenc_tasks.stopping import cancellable

MOST_TASK_RUNS = 32


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardGroup:
    """The shards of one task run; `label` is used in the run name."""

    run: RunFolder
    shards: tuple[int, ...]
    label: str
    process: str
    """Where the flow runs."""


def is_transient_failure(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Return whether a failure may be transient: errors of files or the network, not of images or the model."""
    return _is_transient(state.result(raise_on_failure=False))


def _is_transient(error: object) -> bool:
    seen: list[object] = []
    while isinstance(error, BaseException) and error not in seen:
        seen.append(error)
        error = error.__cause__
    return any(isinstance(item, OSError) for item in seen)


@task(task_run_name=named("create {given.run_title}"), cache_policy=NO_CACHE)
@cancellable
def create_store(given: parameters.ExtractParameters) -> RunFolder:
    """List the images, resolve the model and create the run folder, or open an existing one."""
    return planning.create_run(given)


@task(task_run_name=named("plan {which} shards of {run.title}"), cache_policy=NO_CACHE)
def plan_shards(run: RunFolder, which: str) -> list[int]:
    """Return the shards to do, from commit records rather than Prefect states."""
    return driver.plan(run, which)


@task(task_run_name=named("prepare the encoder of {run.title}"), cache_policy=NO_CACHE)
@cancellable
def prepare_encoder(run: RunFolder, options: records.Options) -> None:
    """Load the model and find the batch size, so that their errors are reported once."""
    worker.WORKERS.get(run, options).prepare()


@task(
    task_run_name=named("{group.label}"),
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[2, 10],
    retry_jitter_factor=0.5,
    retry_condition_fn=is_transient_failure,
)
@cancellable
def encode_shards(group: ShardGroup, options: records.Options) -> list[records.ShardReport]:
    """Load, encode, reduce and commit a group of shards; after trying all, raise a failure, transient ones first.

    Shards held by other processes are reported as such. In the flow's process the stages are tasks of their own.
    """
    with _stages(group) as through:
        outcome = worker.encode_shards(group.run, group.shards, options, lanes=1, through=through)
    if outcome.failures:
        raise next(filter(_is_transient, outcome.failures), outcome.failures[0])
    return list(outcome.reports)


@contextlib.contextmanager
def _stages(group: ShardGroup) -> Iterator[Stages]:
    if group.process == _here():
        with stages.as_tasks(group.label) as through:
            yield through
    else:
        with stopping.with_flow_run():
            yield IN_ONE_THREAD


@task(task_run_name=named("wait for {held} that other processes are at"), cache_policy=NO_CACHE)
@cancellable
def wait_for_others(run: RunFolder, held: list[int], options: records.Options) -> list[int]:
    """Wait until held shards are free; return those still to be done, none if other processes did them all."""
    return worker.WORKERS.get(run, options).wait_for(held)


@task(task_run_name=named("verify {run.title}"), cache_policy=NO_CACHE)
def verify_run(run: RunFolder) -> int:
    """Check every committed object against its record; return the number of shards checked."""
    return status.require_intact(run)


@task(task_run_name=named("write provenance of {run.title}"), cache_policy=NO_CACHE)
def write_provenance(
    run: RunFolder, asked: list[int], options: records.Options, reports: Sequence[records.ShardReport] = ()
) -> records.Result:
    """Complete the session's record and return its result; `reports` are the session's."""
    return driver.finish(run, asked, options, reports)


def grouped(run: RunFolder, wanted: Sequence[int], shards_per_task: int | None) -> list[ShardGroup]:
    """Group shards by task run; with None, limit the number of task runs, each of which costs CPU and memory."""
    size = shards_per_task or max(-(-len(wanted) // MOST_TASK_RUNS), 1)
    cut = [wanted[at : at + size] for at in range(0, len(wanted), size)]
    return [_group(run, tuple(shards)) for shards in cut]


def _group(run: RunFolder, shards: Sequence[int]) -> ShardGroup:
    first, last = shards[0], shards[-1]
    start, stop = run.store.shard_range(first)[0], run.store.shard_range(last)[1]
    numbers = f"{first:05d}" if first == last else f"{first:05d}-{last:05d} ({len(shards)} shards)"
    label = f"shard {numbers}, rows {start}-{stop - 1}"
    return ShardGroup(run=run, shards=tuple(shards), label=label, process=_here())


def _here() -> str:
    """Return the name of this process among those of all machines."""
    return f"{socket.gethostname()} {os.getpid()}"
