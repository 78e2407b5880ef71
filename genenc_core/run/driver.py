"""A whole run without Prefect: the same run folder and bytes as the flow, from one call."""

import dataclasses
from collections.abc import Sequence

from genenc_core import errors
from genenc_core.encoding import control
from genenc_core.run import parameters as run_parameters
from genenc_core.run import planning, records, sessions, status, worker
from genenc_core.run.folder import RunFolder
from genenc_core.store import claims
from genenc_core.store.objects import Root


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Where a run stands after a session: `asked` shards were to do, `failures` were not done.

    `stopped` when the end was asked for; then what was not done did not fail.
    """

    status: records.RunStatus
    asked: int
    failures: tuple[errors.ShardError, ...]
    stopped: bool = False


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
    return resume(root, "pending", records.Options.of(given), command="extract")


def resume(root: Root, shards: str, options: records.Options, *, command: str = "resume") -> Result:
    """Encode `failed`, `pending` or named shards of an existing run, and verify it; raises as `extract`."""
    wanted = plan(root, shards)
    with sessions.recorded(root, options, command=command), worker.working(root, options):
        if wanted:
            worker.WORKERS.get(root, options).prepare()
            worker.encode_all(root, wanted, options)
            status.require_intact(root)
        return finish(root, wanted, options)


def plan(root: Root, shards: str) -> list[int]:
    """Finish what was committed but not put in place; return the shards to do and tell whoever watches."""
    folder = RunFolder.open_for_work(root)
    wanted = status.select_shards(folder, shards)
    if not folder.store.pending():
        claims.Claims(folder.objects).sweep()
    control.current().on_plan(folder.rows_of(wanted), folder.store.plan.rows)
    return wanted


def finish(root: Root, asked: Sequence[int], options: records.Options) -> Result:
    """Read from the run folder what a session came to, and complete its record."""
    folder = RunFolder(root)
    found = status.run_status(root)
    missing = sorted(set(asked) - folder.store.committed())
    stopped = control.current().stopping and bool(missing)
    reasons = {} if stopped else {shard: folder.failure(shard, session=options.session) for shard in missing}
    failures = tuple(errors.ShardError(shard, reason) for shard, reason in reasons.items())
    state = "nothing to do" if not asked else "cancelled" if stopped else "failed" if failures else "completed"
    sessions.end(root, options.session, state=state, status=found)
    return Result(status=found, asked=len(asked), failures=failures, stopped=stopped)


def options_for(
    root: Root,
    *,
    device: str | None = None,
    batch_size: int | None = None,
    max_failures: str | None = None,
    trust: bool = False,
) -> records.Options:
    """Return the options to continue a run with: those given, else the ones it was made with; `trust` only if given."""
    made_with = records.Options.of(RunFolder(root).given)
    return dataclasses.replace(
        made_with,
        device=device or made_with.device,
        batch_size=batch_size or made_with.batch_size,
        max_failures=max_failures or made_with.max_failures,
        trust=trust,
    )
