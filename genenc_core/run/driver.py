"""A whole run without Prefect: the same run folder and bytes as the flow, from one call."""

import dataclasses
from collections.abc import Sequence

from genenc_core import errors
from genenc_core.encoding import control
from genenc_core.run import integrity, out_folder, planning, records, sessions, status, worker
from genenc_core.run import parameters as run_parameters
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
    """Encode `failed`, `pending` or named shards of an existing run, and verify it; raises as `extract`.

    `unreadable` tries again the rows that are recorded as unreadable, `unreadable:5,17-20` only these: those that can
    be read now are stored, and no other row changes.
    """
    options = retrying(options, shards)
    wanted = plan(root, shards)
    with sessions.recorded(root, options, command=command), worker.working(root, options):
        if wanted:
            worker.WORKERS.get(root, options).prepare()
            worker.encode_all(root, wanted, options)
            status.require_intact(root)
        return finish(root, wanted, options)


def retrying(options: records.Options, shards: str) -> records.Options:
    """Return the options for `shards`: whether and which unreadable rows are tried again."""
    kind, _, rows = shards.partition(":")
    return dataclasses.replace(options, retry=(rows or "all") if kind == "unreadable" else None)


def plan(root: Root, shards: str) -> list[int]:
    """Finish what was committed but not put in place; return the shards to do and tell whoever watches.

    Raises:
        StoreError: a file that the run was made with is damaged, a name in the folder is a link, a pipe or a device, or
            nothing is to do and committed objects are missing.
    """
    folder = RunFolder(root)
    integrity.require_inputs(folder)
    folder.store.recover()
    wanted = status.select_shards(folder, shards)
    sweep(folder)
    if not wanted:  # what is encoded is verified at its end
        status.require_listed(root)
    rows = folder.rows_of(wanted)
    if shards.startswith("unreadable"):
        rows = sum(status.unreadable_rows(folder, shards.partition(":")[2] or "all").values())
    control.current().on_plan(rows, folder.store.plan.rows)
    return wanted


def sweep(folder: RunFolder) -> None:
    """Remove what killed processes left in a run folder that nobody needs any more."""
    out_folder.sweep_killed(folder.root)
    if not folder.store.pending():
        claims.Claims(folder.objects).sweep()


def finish(root: Root, asked: Sequence[int], options: records.Options) -> Result:
    """Read from the run folder what a session came to, and complete its record."""
    folder = RunFolder(root)
    found = status.run_status(root)
    missing = _not_done(folder, asked, options)
    stopped = control.current().stopping and bool(missing)
    reasons = {} if stopped else {shard: folder.failure(shard, session=options.session) for shard in missing}
    failures = tuple(errors.ShardError(shard, reason) for shard, reason in reasons.items())
    state = "nothing to do" if not asked else "cancelled" if stopped else "failed" if failures else "completed"
    sessions.end(root, options.session, state=state, status=found)
    return Result(status=found, asked=len(asked), failures=failures, stopped=stopped)


def _not_done(folder: RunFolder, asked: Sequence[int], options: records.Options) -> list[int]:
    """Return the shards that were not committed; of those to be tried again, those that failed in this session."""
    if options.retry is None:
        return sorted(set(asked) - folder.store.committed())
    return [shard for shard in asked if folder.failed_in(shard, options.session)]


def options_for(
    root: Root,
    *,
    device: str | None = None,
    batch_size: int | None = None,
    max_failures: str | None = None,
    trust: bool = False,
    accept_changed: bool = False,
) -> records.Options:
    """Return the options to continue a run with: those given, else the ones it was made with.

    `trust` and `accept_changed` hold for one command only.
    """
    made_with = records.Options.of(RunFolder(root).given)
    return dataclasses.replace(
        made_with,
        device=device or made_with.device,
        batch_size=batch_size or made_with.batch_size,
        max_failures=max_failures or made_with.max_failures,
        trust=trust,
        accept_changed=accept_changed,
    )
