"""The `extract`, `resume` and `probe` commands: progress, Ctrl-C, and the summary at the end."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from genenc_core import errors
from genenc_core.cli import output
from genenc_core.encoding import cancellation
from genenc_core.encoding.shard_encoding import FailureBudget
from genenc_core.images.load import decode_server
from genenc_core.probing import planning as probe_planning
from genenc_core.probing.parameters import ProbeParameters
from genenc_core.run import parameters, planning, records, status
from genenc_core.run.folder import RunFolder
from genenc_core.store.backends.objects import Root, join
from genenc_core.store.store_keys import GROUP
from genenc_core.system import exits

if TYPE_CHECKING:
    from genenc_core.cli.runners import Runner

Outcome = TypeVar("Outcome")


def extract(values: dict[str, Any], runner: "Runner", *, as_json: bool) -> int:
    """Run an extraction; return the exit code."""
    decode_server.prepare()
    given = parameters.ExtractParameters.model_validate(values)
    planning.check_parameters(given)
    return _watch(given.out, lambda: runner.extract(given), as_json=as_json)


def resume(root: str, shards: str, changes: parameters.Changes, runner: "Runner", *, as_json: bool) -> int:
    """Continue a run; return the exit code."""
    decode_server.prepare()
    run = RunFolder(root)
    FailureBudget.parse(changes.max_failures or run.given.max_failures)
    status.select_shards(run, shards)
    return _watch(root, lambda: runner.resume(run, shards, changes), as_json=as_json)


def probe(values: dict[str, Any], runner: "Runner", *, as_json: bool) -> int:
    """Make a probe set; return the exit code."""
    given = ProbeParameters.model_validate(values)
    probe_planning.check(given)
    return _watch(given.out, lambda: runner.probe(given), as_json=as_json)


def _watch(root: Root, work: Callable[[], records.Result], *, as_json: bool) -> int:
    return watch(
        work,
        lambda result: _report_result(result, as_json=as_json),
        state=lambda: status.progress_summary(root),
        counted=lambda: status.describe(status.run_status(RunFolder(root))),
        as_json=as_json,
    )


def watch(
    work: Callable[[], Outcome],
    report: Callable[[Outcome], int],
    *,
    state: Callable[[], str],
    counted: Callable[[], dict[str, Any]] = dict,
    as_json: bool,
) -> int:
    """Do work with progress and signal handling; report how it ended and return the exit code.

    `state` describes what a stopped command leaves and how to continue; `counted` is the same as JSON data.
    """
    try:
        with output.ProgressLine() as progress:
            control = cancellation.Control(on_plan=progress.plan, on_rows=progress.rows, on_phase=progress.phase)
            with output.stop_on_signal(control.stop), cancellation.use(control), exits.guarded(state=state):
                outcome = work()
    except (errors.Stopped, KeyboardInterrupt) as error:
        words = f"{'interrupted' if isinstance(error, KeyboardInterrupt) else 'stopped'}: {state()}"
        output.tell(words)
        if as_json:
            try:
                output.say_json({**counted(), "stopped": True})
            except (errors.StoreError, errors.InputError):
                output.say_json({"error": words, "exit_code": errors.Stopped.exit_code})
        return errors.Stopped.exit_code
    return report(outcome)


def _report_result(result: records.Result, *, as_json: bool) -> int:
    for failure in result.failures:
        output.tell(f"failed: {failure}")
    found = status.survey(result.run, most=None if as_json else status.NAMED, committed_rows=False)
    if as_json:
        failures = [{"shard": item.shard, "reason": item.reason} for item in result.failures]
        more = {"asked": result.asked, "failures": failures, "unreadable_images": found.unreadable}
        limit = {} if result.bound is None else {"bound": dataclasses.asdict(result.bound)}
        output.say_json({**status.describe(found.status), **more, **limit})
    else:
        if not result.asked:
            output.say([f"nothing to do: {result.run} is complete" if found.status.complete else "nothing to do"])
        output.say(status.summary_lines(found, result.bound))
        if found.status.complete:
            output.say([f"features: {join(result.run.root, GROUP)}"])
    return 1 if result.failures else found.status.exit_code
