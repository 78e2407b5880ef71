"""Flows on stored features: `rerun_from` makes a run again from its record, `export_features` writes other formats."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed
from pydantic import Field

from genenc_core import errors, text
from genenc_core.features import export, rerun
from genenc_core.features.parameters import ExportFeaturesParameters, RerunParameters
from genenc_flows import lost_server, run_logs
from genenc_flows.extraction import LANE_RUNNER, PER_TASK, FlowSession, Number
from genenc_tasks import features


@flow(name="rerun_from", flow_run_name="rerun {given.title}", task_runner=LANE_RUNNER)
def rerun_from(
    given: RerunParameters,
    shards_per_task: Number = Field(default=0, ge=0, description=PER_TASK),
) -> State[Any]:
    """Make a run again from its record alone, or continue to; verify it and compare its values with the first one's."""
    run_logs.prepare()
    try:
        source, run = features.create_again(given)
    except errors.Stopped as stopped:
        return lost_server.keep(Cancelled(message=str(stopped)))
    again = rerun.Again(source, run, given)
    for options, shards in again.sessions():
        session = FlowSession(run, options, command=rerun.COMMAND, shards_per_task=shards_per_task)
        state = session.state(shards)
        if not state.is_completed():
            return lost_server.keep(state)
    done = features.compare_again(source, run, state.result())
    if done.identical:
        return lost_server.keep(Completed(message=done.lines()[0], data=done))
    differing = text.plural(len(done.differing), "array")
    return lost_server.keep(Completed(message=f"{differing} differ from {source.root}", data=done, name="Differs"))


@flow(name="export_features", flow_run_name="export {given.title}")
def export_features(given: ExportFeaturesParameters) -> State[Any]:
    """Write the features of a run or version as Parquet, NumPy files, HDF5, or a folder for the Hugging Face Hub."""
    run_logs.prepare()
    try:
        done: export.Exported = features.export_features(given)
    except errors.Stopped as stopped:
        return lost_server.keep(Cancelled(message=str(stopped)))
    return lost_server.keep(Completed(message=done.lines()[0], data=done))
