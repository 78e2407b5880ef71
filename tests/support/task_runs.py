"""Task runs and artifacts of a flow run as the server shows them."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import TaskRun

LONGEST_SECONDS = 300.0
KINDS = (
    *("progress", "shards", "failed-images", "failed-thumbnails", "report", "dataset", "model-spec"),
    *("lineage-images", "lineage-model", "lineage-features", "openlineage"),
)


def of(flow_run_id: Any, until: Callable[[Sequence[TaskRun]], bool] = bool) -> list[TaskRun]:
    """Return the task runs of an ended flow run, once `until` holds or five minutes have passed.

    They reach the server as events, which it records some time after the flow has ended.
    """
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    ends, before = time.monotonic() + LONGEST_SECONDS, -1
    with get_client(sync_client=True) as client:
        while True:
            found = client.read_task_runs(flow_run_filter=wanted)
            ended = all(item.state is not None and item.state.is_final() for item in found)
            if (until(found) and ended and len(found) == before) or time.monotonic() > ends:
                return list(found)
            before = len(found)
            time.sleep(0.2)


def artifacts(client: SyncPrefectClient, flow_run_id: Any) -> dict[str, Any]:
    """Return the artifacts of a flow run by their kind, with which their keys begin."""
    wanted = {"artifacts": {"flow_run_id": {"any_": [str(flow_run_id)]}}}
    found = client.request("POST", "/artifacts/filter", json=wanted).json()
    return {kind: item for item in found for kind in KINDS if (item["key"] or "").startswith(kind)}


def with_names(*names: str) -> Callable[[Sequence[TaskRun]], bool]:
    """Return whether task runs have all of these names."""
    return lambda runs: {run.name for run in runs} >= set(names)
