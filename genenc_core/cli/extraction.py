"""`extract` and `resume`: run with progress, stop on Ctrl-C, say how it ended and how to go on."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genenc_core import errors
from genenc_core.cli import output
from genenc_core.encoding import control
from genenc_core.run import driver, parameters, planning, records, status, worker

if TYPE_CHECKING:
    from genenc_core.cli.app import Runner

LISTED = 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResumeOptions:
    """What `resume` may change of a run's options."""

    device: str = "auto"
    batch_size: int | None = None
    max_failures: str | None = None


def extract(values: dict[str, Any], runner: "Runner", *, as_json: bool) -> int:
    """Run an extraction; return the exit code."""
    given = parameters.ExtractParameters.model_validate(values)
    planning.check_parameters(given)
    return _watched(Path(given.out), lambda: runner.extract(given), as_json=as_json)


def resume(root: Path, shards: str, options: ResumeOptions, runner: "Runner", *, as_json: bool) -> int:
    """Continue a run; return the exit code."""
    chosen = worker.options_of(
        root, device=options.device, batch_size=options.batch_size, max_failures=options.max_failures
    )
    status.select_shards(worker.RunFolder(root), shards)
    return _watched(root, lambda: runner.resume(root, shards, chosen), as_json=as_json)


def _watched(root: Path, work: Any, *, as_json: bool) -> int:
    try:
        with output.ProgressLine() as progress:
            watch = control.Control(on_plan=progress.plan, on_rows=progress.rows)
            with output.stop_on_signal(watch.stop), control.use(watch):
                result: driver.Result = work()
    except (errors.Stopped, KeyboardInterrupt) as error:
        return _stopped(root, error)
    return _told(root, result, as_json=as_json)


def _told(root: Path, result: driver.Result, *, as_json: bool) -> int:
    for failure in result.failures:
        output.error_console().print(f"failed: {output.printable(str(failure))}", markup=False)
    if as_json:
        images = status.unreadable_images(root)
        output.say_json({**describe(result.status), "asked": result.asked, "unreadable_images": images})
    else:
        head = (
            []
            if result.asked
            else [f"nothing to do: {root} is complete"]
            if result.status.complete
            else ["nothing to do"]
        )
        images = status.unreadable_images(root, limit=LISTED)
        tail = [f"features: {root / 'features.zarr'}"] if result.status.complete else []
        output.say([*head, *status.summary_lines(result.status, images), *tail])
    return 1 if result.failures else result.status.exit_code


def describe(found: records.RunStatus) -> dict[str, Any]:
    """Return a run's status as JSON data."""
    return {**dataclasses.asdict(found), "pending": found.pending, "complete": found.complete}


def _stopped(root: Path, error: BaseException) -> int:
    words = "interrupted" if isinstance(error, KeyboardInterrupt) else "stopped"
    try:
        found = status.run_status(root)
    except errors.StoreError:
        output.error_console().print(f"{words} before the run folder was made: nothing is stored")
        return errors.Stopped.exit_code
    output.error_console().print(
        f"{words}: {found.committed} of {found.shards} shards are stored; go on with: genenc resume {root}",
        markup=False,
    )
    return errors.Stopped.exit_code
