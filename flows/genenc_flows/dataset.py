"""Dataset flow: `update_dataset` encodes what is new or changed, and makes a version."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed
from pydantic import Field

from genenc_core import errors
from genenc_core.dataset import summary, update
from genenc_core.dataset.parameters import UpdateParameters
from genenc_core.run import driver, records
from genenc_core.run.folder import RunFolder
from genenc_flows import engines, lost_server, run_logs
from genenc_flows.extraction import LANE_RUNNER, PER_TASK, FlowSession, Number, completed_name
from genenc_tasks import dataset, reporting


@flow(name="update_dataset", flow_run_name="update {given.title}", task_runner=LANE_RUNNER)
def update_dataset(
    given: UpdateParameters,
    shards_per_task: Number = Field(default=0, ge=0, description=PER_TASK),
) -> State[Any]:
    """Create or update a dataset: encode new and changed images as a part, make a version, report."""
    run_logs.prepare()
    work = FlowUpdate(given.as_given(), shards_per_task)
    try:
        done = work.run()
    except errors.Stopped as stopped:
        return lost_server.keep(Cancelled(message=str(stopped)))
    return lost_server.keep(_final_state(work, done))


class FlowUpdate(update.Update):
    """Update that runs its steps as Prefect tasks."""

    def __init__(self, given: UpdateParameters, shards_per_task: int | None = None) -> None:
        super().__init__(given)
        self.shards_per_task = shards_per_task
        self._session: FlowSession | None = None

    def prepare(self) -> None:
        """Run the task `compare_images`."""
        dataset.compare_images(self)

    def next_part(self) -> RunFolder | None:
        """Run the task `plan_part`."""
        return dataset.plan_part(self)

    def session(self, run: RunFolder, options: records.Options) -> driver.Session:
        """Return the session whose steps are tasks."""
        self._session = FlowSession(
            run,
            options,
            command=driver.UPDATE,
            shards_per_task=self.shards_per_task,
            engine=engines.Choice.of(self.extract),
        )
        return self._session

    def encode(self, run: RunFolder) -> None:
        """Encode the part as tasks, and report its shards and unreadable images."""
        super().encode(run)
        with reporting.best_effort("the report could not be shown"):
            made = self._session
            reporting.publish_report(run, made.reports if made else (), made.options.session if made else "")

    def make_version(self, run: RunFolder | None) -> None:
        """Run the task `make_version`."""
        dataset.make_version(self, run)


def _final_state(work: FlowUpdate, done: update.Updated) -> State[Any]:
    with reporting.best_effort("the report could not be shown"):
        dataset.report_dataset(work, done)
    if done.failures:
        incomplete = records.Incomplete(done)
        return Failed(message=str(incomplete), data=incomplete)
    unreadable = done.version.counts["unreadable"] if done.made and done.version else 0
    return Completed(message=summary.lines(done)[-1], data=done, name=completed_name(unreadable))
