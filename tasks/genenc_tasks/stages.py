"""The stages of a group of shards as task runs of their own, in threads of the flow's process.

They hand each other batches, each when the next asks for one; decode workers and the device work ahead of them.
"""

import contextlib
import contextvars
import threading
from collections.abc import Iterator
from typing import Any

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.states import Cancelled, Completed, Failed
from prefect.transactions import BaseTransaction

from genenc_core.encoding.stages import ENCODE, IN_ONE_THREAD, LOAD, REDUCE, STORE, InThreads, Stages, StageThread
from genenc_tasks.names import named
from genenc_tasks.reporting import best_effort


@task(task_run_name=named("load {group}"), cache_policy=NO_CACHE)
def load_images(thread: StageThread, group: str) -> State[None]:  # noqa: ARG001 (named by its group)
    """Take decoded images from the decode workers, batch by batch."""
    return _worked(thread, "batch", "batches")


@task(task_run_name=named("encode {group}"), cache_policy=NO_CACHE)
def encode_batches(thread: StageThread, group: str) -> State[None]:  # noqa: ARG001
    """Encode batches, several in flight, and reduce them to products on the same device; isolate images that fail."""
    return _worked(thread, "batch", "batches")


@task(task_run_name=named("reduce {group}"), cache_policy=NO_CACHE)
def reduce_batches(thread: StageThread, group: str) -> State[None]:  # noqa: ARG001
    """Collect the products of batches in each shard's arrays, and check the shard."""
    return _worked(thread, "shard", "shards")


@task(task_run_name=named("store {group}"), cache_policy=NO_CACHE)
def store_shards(thread: StageThread, group: str) -> State[None]:  # noqa: ARG001
    """Write, verify and commit shards."""
    return _worked(thread, "shard", "shards")


TASKS: dict[str, Task[[StageThread, str], State[None]]] = {
    LOAD: load_images,
    ENCODE: encode_batches,
    REDUCE: reduce_batches,
    STORE: store_shards,
}


@contextlib.contextmanager
def as_tasks(group: str) -> Iterator[Stages]:
    """Run the stages of a group of shards as tasks until the block ends; outside of a task run, in its thread."""
    if TaskRunContext.get() is None:
        yield IN_ONE_THREAD
        return
    through = InThreads()
    threads: list[threading.Thread] = []
    try:
        threads += (_started(thread, group) for thread in through.threads.values())
        yield through
    finally:
        through.end()
        for thread in threads:
            thread.join()


def _started(thread: StageThread, group: str) -> threading.Thread:
    def work() -> None:
        try:
            with best_effort(f"the stage {thread.stage!r} cannot be shown"):
                TASKS[thread.stage](thread, group, return_state=True)
        finally:
            thread.work()  # if Prefect did not run the task

    context = contextvars.copy_context()
    # Otherwise a failed group would show its stages as rolled back.
    context.run(BaseTransaction.__var__.set, None)  # type: ignore[arg-type]
    started = threading.Thread(target=context.run, args=(work,), name=f"genenc-{thread.stage}", daemon=True)
    started.start()
    return started


def _worked(thread: StageThread, one: str, many: str) -> State[Any]:
    thread.work()
    if thread.failure:
        state = Cancelled if thread.stopped else Failed
        return state(message=thread.failure)
    return Completed(message=f"{thread.done} {one if thread.done == 1 else many}")
