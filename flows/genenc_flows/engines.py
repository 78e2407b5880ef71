"""Engines that run the tasks of shards: threads of this process, or a Dask or Ray cluster.

A cluster's workers open the run by its place, so they must see it, and keep their encoder between shards.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

from prefect.task_runners import TaskRunner

from genenc_core import errors
from genenc_core.choices import Engine
from genenc_core.run import parameters

LOCAL_WORKERS = 2
"""Processes of a local cluster without CUDA devices."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """An engine: its kind, the address of a cluster, or the processes of a local one."""

    kind: Engine = "threads"
    address: str | None = None
    workers: int | None = None
    device: str = "auto"

    @classmethod
    def of(cls, given: parameters.ExtractParameters, changes: parameters.Changes | None = None) -> "Choice":
        """Return the engine that parameters name; `changes` override it."""
        changes = changes or parameters.Changes()
        kind = changes.engine or given.engine
        parameters.check_engine(kind, changes.engine_address, changes.engine_workers)
        return cls(
            kind=kind,
            address=changes.engine_address or given.engine_address,
            workers=changes.engine_workers or given.engine_workers,
            device=changes.device or given.device,
        )

    @property
    def devices(self) -> int:
        """CUDA devices of this machine that a local cluster uses."""
        import torch

        return 0 if self.device == "cpu" else torch.cuda.device_count()


@contextlib.contextmanager
def started(choice: Choice) -> Iterator[TaskRunner[Any] | None]:
    """Start an engine, or connect to its cluster; yield its task runner, None for threads of this process.

    Raises:
        InputError: its package is not installed, or its cluster cannot be reached.
    """
    if choice.kind == "threads":
        yield None
        return
    make = {"dask": _dask, "ray": _ray}[choice.kind]
    try:
        runner = make(choice)
    except ImportError as error:
        raise errors.InputError(
            f"--engine {choice.kind} is not installed: pip install 'genenc[{choice.kind}]' ({errors.reason(error)})"
        ) from error
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(runner)
        except (OSError, TimeoutError, ConnectionError) as error:
            raise errors.InputError(
                f"--engine-address {choice.address!r} cannot be reached: {errors.reason(error)}; leave it out for a "
                "local cluster"
            ) from error
        if choice.kind == "ray":
            from prefect_ray.context import remote_options

            stack.enter_context(remote_options(num_gpus=1) if choice.devices else remote_options(num_cpus=1))
        yield runner


def _dask(choice: Choice) -> TaskRunner[Any]:
    from prefect_dask.task_runners import DaskTaskRunner

    local: dict[str, Any] = {
        "threads_per_worker": 1,
        "host": "127.0.0.1",
        "dashboard_address": None,
        "silence_logs": logging.WARNING,
    }
    given: dict[str, Any]
    if choice.address is not None:
        given = {"address": choice.address}
    elif choice.devices:  # one process per device
        given = {"cluster_class": "dask_cuda.LocalCUDACluster", "cluster_kwargs": local}
    else:
        given = {"cluster_kwargs": {**local, "n_workers": choice.workers or LOCAL_WORKERS}}
    runner: TaskRunner[Any] = DaskTaskRunner(**given)
    return runner


def _ray(choice: Choice) -> TaskRunner[Any]:
    from prefect_ray import RayTaskRunner

    local: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "log_to_driver": False}
    processes = {"num_gpus": choice.devices} if choice.devices else {"num_cpus": choice.workers or LOCAL_WORKERS}
    given: dict[str, Any] = {"init_kwargs": {**local, **processes}}
    runner: TaskRunner[Any] = RayTaskRunner(**(given if choice.address is None else {"address": choice.address}))
    return runner
