"""Sessions: one record per invocation on a run, when it ran, on what, with which options, and how it ended."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from genenc_core import errors
from genenc_core.provenance import environment
from genenc_core.run import records

RUNS = "provenance/runs"
ENVIRONMENTS = "provenance/env"


@contextlib.contextmanager
def recorded(root: Path, options: records.Options, *, command: str) -> Iterator[None]:
    """Record that a session starts, and how it ended if an exception ends it; `end` tells any other ending."""
    _begin(root, options, command)
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, errors.Stopped | KeyboardInterrupt) or not isinstance(error, Exception)
        with contextlib.suppress(errors.StoreError):
            end(root, options.session, state="cancelled" if stopped else "failed", reason=str(error))
        raise


def end(
    root: Path, session: str, *, state: str, status: records.RunStatus | None = None, reason: str | None = None
) -> None:
    """Complete a session's record: when and how it ended, and where the run stands."""
    record = records.read_json(_file(root, session))
    record |= {"state": state, "ended": records.now()}
    if reason is not None:
        record["reason"] = reason
    if status is not None:
        record["run"] = {key: value for key, value in dataclasses.asdict(status).items() if key != "root"}
    records.write_json(_file(root, session), record)


def _begin(root: Path, options: records.Options, command: str) -> None:
    """Write `provenance/runs/<session>.json` and the environment that it names."""
    found = environment.describe_environment()
    digest = environment.digest(found)
    records.create_json(root / ENVIRONMENTS / f"{digest}.json", found)
    record = {
        "session": options.session,
        "command": command,
        "options": dataclasses.asdict(options),
        "environment_sha256": digest,
        "started": records.now(),
        "state": "running",
    }
    records.write_json(_file(root, options.session), record)


def _file(root: Path, session: str) -> Path:
    return root / RUNS / f"{session}.json"
