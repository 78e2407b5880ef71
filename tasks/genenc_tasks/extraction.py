"""Tasks of an extraction: make the run, group its shards, encode them, check and report."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from genenc_core.run import driver, parameters, planning, records, status, worker
from genenc_core.run.folder import RunFolder
from genenc_tasks.names import named
from genenc_tasks.stopping import cancellable

MOST_TASK_RUNS = 32


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardGroup:
    """The shards of one task run; `label` names them in run names."""

    root: str
    shards: tuple[int, ...]
    label: str


def is_passing_fault(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether a failure may pass by itself: trouble with files or the network, never with the images or the model."""
    return _may_pass(state.result(raise_on_failure=False))


def _may_pass(error: object) -> bool:
    seen: list[object] = []
    while isinstance(error, BaseException) and error not in seen:
        seen.append(error)
        error = error.__cause__
    return any(isinstance(item, OSError) for item in seen)


@task(task_run_name=named("create {given.out}"), cache_policy=NO_CACHE)
@cancellable
def create_store(given: parameters.ExtractParameters) -> str:
    """List the images, resolve the model and create the run folder, or find it made; return its path."""
    return str(planning.create_run(given))


@task(task_run_name=named("plan {which} shards of {root}"), cache_policy=NO_CACHE)
def plan_shards(root: str, which: str, shards_per_task: int | None) -> list[ShardGroup]:
    """Return the shards to do, grouped; from the commit records, never from Prefect's states."""
    wanted = driver.plan(root, which)
    return _groups(RunFolder(root), wanted, shards_per_task)


@task(task_run_name=named("prepare the encoder of {root}"), cache_policy=NO_CACHE)
@cancellable
def prepare_encoder(root: str, options: records.Options) -> None:
    """Load the model and find the batch size, so that what is wrong with them is said once."""
    worker.WORKERS.get(root, options).prepare()


@task(
    task_run_name=named("encode {group.label}"),
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[2, 10],
    retry_condition_fn=is_passing_fault,
)
@cancellable
def encode_shards(group: ShardGroup, options: records.Options) -> list[records.ShardReport]:
    """Load, encode, reduce and commit a group of shards; raise one failure after trying all: one that may pass first.

    A shard that another process is at is reported as held.
    """
    outcome = worker.encode_shards(group.root, group.shards, options, lanes=1)
    if outcome.failures:
        raise next(filter(_may_pass, outcome.failures), outcome.failures[0])
    return list(outcome.reports)


@task(task_run_name=named("wait for {held} that other processes are at"), cache_policy=NO_CACHE)
@cancellable
def wait_for_others(
    root: str, held: list[int], options: records.Options, shards_per_task: int | None
) -> list[ShardGroup]:
    """Return the shards that are left to do, grouped, once some are; none when the others have done them all."""
    return _groups(RunFolder(root), worker.WORKERS.get(root, options).wait_for(held), shards_per_task)


@task(task_run_name=named("verify {root}"), cache_policy=NO_CACHE)
def verify_run(root: str) -> int:
    """Check every committed object against its record; return the number of shards checked."""
    return status.require_intact(root)


@task(task_run_name=named("write provenance of {root}"), cache_policy=NO_CACHE)
def write_provenance(root: str, asked: list[int], options: records.Options) -> driver.Result:
    """Complete the session's record; return what it came to and where the run stands."""
    return driver.finish(root, asked, options)


def _groups(folder: RunFolder, wanted: Sequence[int], shards_per_task: int | None) -> list[ShardGroup]:
    """Return the shards in groups; None keeps the number of task runs, each of which costs CPU and memory, bounded."""
    size = shards_per_task or max(-(-len(wanted) // MOST_TASK_RUNS), 1)
    cut = [wanted[at : at + size] for at in range(0, len(wanted), size)]
    return [_group(folder, tuple(shards)) for shards in cut]


def _group(folder: RunFolder, shards: Sequence[int]) -> ShardGroup:
    first, last = shards[0], shards[-1]
    start, stop = folder.store.shard_range(first)[0], folder.store.shard_range(last)[1]
    numbers = f"{first:05d}" if first == last else f"{first:05d}-{last:05d} ({len(shards)} shards)"
    label = f"shard {numbers}, rows {start}-{stop - 1}"
    return ShardGroup(root=folder.root, shards=tuple(shards), label=label)
