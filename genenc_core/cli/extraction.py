"""`extract` and `resume`: run with progress, stop on Ctrl-C, say how it ended and how to go on."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from genenc_core import errors, exits
from genenc_core.cli import output
from genenc_core.encoding import control
from genenc_core.encoding.budget import FailureBudget
from genenc_core.images import decode_server
from genenc_core.run import driver, parameters, planning, status
from genenc_core.run.folder import RunFolder
from genenc_core.store.objects import Root, join
from genenc_core.store.places import GROUP

if TYPE_CHECKING:
    from genenc_core.cli.runners import Runner


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResumeOptions:
    """What `resume` may change of a run's options; None is the run's own."""

    device: str | None = None
    batch_size: int | None = None
    max_failures: str | None = None
    trust: bool = False
    accept_changed: bool = False


def extract(values: dict[str, Any], runner: "Runner", *, as_json: bool) -> int:
    """Run an extraction; return the exit code."""
    decode_server.prepare()
    given = parameters.ExtractParameters.model_validate(values)
    planning.check_parameters(given)
    return _watch(given.out, lambda: runner.extract(given), as_json=as_json)


def resume(root: str, shards: str, changes: ResumeOptions, runner: "Runner", *, as_json: bool) -> int:
    """Continue a run; return the exit code."""
    decode_server.prepare()
    options = driver.options_for(
        root,
        device=changes.device,
        batch_size=changes.batch_size,
        max_failures=changes.max_failures,
        trust=changes.trust,
        accept_changed=changes.accept_changed,
    )
    FailureBudget.parse(options.max_failures)
    status.select_shards(RunFolder(root), shards)
    return _watch(root, lambda: runner.resume(root, shards, options), as_json=as_json)


def _watch(root: Root, work: Callable[[], driver.Result], *, as_json: bool) -> int:
    """Do the work with progress and a way to stop it; tell how it ended."""
    try:
        with output.ProgressLine() as progress:
            watch = control.Control(on_plan=progress.plan, on_rows=progress.rows, on_phase=progress.phase)
            with (
                output.stop_on_signal(watch.stop),
                control.use(watch),
                exits.guarded(state=lambda: status.standing(root)),
            ):
                result = work()
    except (errors.Stopped, KeyboardInterrupt) as error:
        return _tell_stop(root, error, as_json=as_json)
    return _tell_result(root, result, as_json=as_json)


def _tell_result(root: Root, result: driver.Result, *, as_json: bool) -> int:
    for failure in result.failures:
        output.tell(f"failed: {failure}")
    found = status.survey(root, most=None if as_json else status.NAMED, committed_rows=False)
    if as_json:
        failures = [{"shard": item.shard, "reason": item.reason} for item in result.failures]
        more = {"asked": result.asked, "failures": failures, "unreadable_images": found.unreadable}
        output.say_json({**status.describe(found.status), **more})
    else:
        if not result.asked:
            output.say([f"nothing to do: {root} is complete" if found.status.complete else "nothing to do"])
        output.say(status.summary_lines(found))
        if found.status.complete:
            output.say([f"features: {join(root, GROUP)}"])
    return 1 if result.failures else found.status.exit_code


def _tell_stop(root: Root, error: BaseException, *, as_json: bool) -> int:
    text = f"{'interrupted' if isinstance(error, KeyboardInterrupt) else 'stopped'}: {status.standing(root)}"
    output.tell(text)
    if as_json:
        try:
            output.say_json({**status.describe(status.run_status(root)), "stopped": True})
        except (errors.StoreError, errors.InputError):
            output.say_json({"error": text, "exit_code": errors.Stopped.exit_code})
    return errors.Stopped.exit_code
