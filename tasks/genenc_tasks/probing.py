"""Probing task: create a probe set; its shards are encoded by the tasks of an extraction."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from genenc_core.probing import planning
from genenc_core.probing.parameters import ProbeParameters
from genenc_core.run.folder import RunFolder
from genenc_tasks.names import named
from genenc_tasks.stopping import cancellable


@task(task_run_name=named("create {given.run_title}"), cache_policy=NO_CACHE)
@cancellable
def create_probe_set(given: ProbeParameters) -> RunFolder:
    """Match the points with the images of the source and create the probe set, or open an existing one."""
    return planning.create(given)
