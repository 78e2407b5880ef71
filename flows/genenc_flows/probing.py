"""Probing flow: `probe_features` makes a probe set of the maps that a run or dataset stores."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Cancelled
from pydantic import Field

from genenc_core import errors
from genenc_core.probing import probe
from genenc_core.probing.parameters import ProbeParameters
from genenc_flows import lost_server, run_logs
from genenc_flows.extraction import LANE_RUNNER, PER_TASK, FlowSession, Number
from genenc_tasks import probing


@flow(name="probe_features", flow_run_name="probe {given.title}", task_runner=LANE_RUNNER)
def probe_features(
    given: ProbeParameters,
    shards_per_task: Number = Field(default=0, ge=0, description=PER_TASK),
) -> State[Any]:
    """Store vectors at new points, or poolings, of stored maps: create or continue a probe set, verify and report."""
    run_logs.prepare()
    try:
        run = probing.create_probe_set(given)
    except errors.Stopped as stopped:
        return lost_server.keep(Cancelled(message=str(stopped)))
    session = FlowSession(run, probe.options(run), command=probe.COMMAND, shards_per_task=shards_per_task)
    return lost_server.keep(session.state("pending"))
