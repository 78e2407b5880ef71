"""A whole run without Prefect: the same run folder and bytes as the flow, from one call."""

import dataclasses
from pathlib import Path

from genenc_core import errors
from genenc_core.run import parameters as run_parameters
from genenc_core.run import planning, records, sessions, status, worker


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Where a run stands after a session, and what failed in it; `asked` is how many shards were to do."""

    status: records.RunStatus
    asked: int
    failures: tuple[errors.ShardError, ...]


class Incomplete(errors.GenencError):
    """Some shards were not committed; `result` says which and why."""

    def __init__(self, result: Result) -> None:
        self.result = result
        names = ", ".join(str(error.shard) for error in result.failures[:20])
        more = ", ..." if len(result.failures) > 20 else ""
        super().__init__(f"{len(result.failures)} of {result.asked} shards not done: {names}{more}")

    def __reduce__(self) -> tuple[type["Incomplete"], tuple[Result]]:
        """Keep the result across process boundaries."""
        return type(self), (self.result,)


def extract(given: run_parameters.ExtractParameters) -> Result:
    """Make the run folder or continue it, encode what is not committed, and verify it.

    Raises:
        InputError: something given cannot be used.
        StoreError: the folder holds another run, or is damaged.
        Stopped: the end was asked for; whole shards are kept.
    """
    root = planning.create_run(given)
    options = records.Options.of(given)
    return resume(root, "pending", options, command="extract")


def resume(root: Path, shards: str, options: records.Options, *, command: str = "resume") -> Result:
    """Encode `failed`, `pending` or named shards of an existing run, and verify it; raises as `extract`."""
    folder = worker.RunFolder.open_for_work(root)
    wanted = status.select_shards(folder, shards)
    folder.announce(wanted)
    sessions.begin(root, options, command=command)
    if not wanted:
        sessions.end(root, options.session, state="nothing to do", status=status.run_status(root))
        return Result(status=status.run_status(root), asked=0, failures=())
    try:
        with worker.working(root):
            outcome = worker.encode_shards(root, wanted, options)
    except errors.Stopped:
        sessions.end(root, options.session, state="cancelled", status=status.run_status(root))
        raise
    status.require_intact(root)
    found = status.run_status(root)
    sessions.end(root, options.session, state="failed" if outcome.failures else "completed", status=found)
    return Result(status=found, asked=len(wanted), failures=outcome.failures)
