"""Sessions: one record per invocation on a run, when it ran, on what, with which options, and how it ended."""

import contextlib
import dataclasses
from collections.abc import Iterator

from genenc_core import errors, exits
from genenc_core.provenance import environment
from genenc_core.run import records, status
from genenc_core.store.objects import Root, open_objects

RUNS = "provenance/runs"
ENVIRONMENTS = "provenance/env"


@contextlib.contextmanager
def recorded(root: Root, options: records.Options, *, command: str) -> Iterator[None]:
    """Record that a session starts, and how it ended if an exception ends it; `end` tells any other ending."""
    _begin(root, options, command)

    def ended() -> str:
        with contextlib.suppress(errors.StoreError):
            end(root, options.session, state="failed", reason="the process was ended by code that it ran")
        return status.standing(root)

    try:
        with exits.guarded(state=ended):
            yield
    except BaseException as error:
        stopped = isinstance(error, errors.Stopped | KeyboardInterrupt) or not isinstance(error, Exception)
        with contextlib.suppress(errors.StoreError):
            end(root, options.session, state="cancelled" if stopped else "failed", reason=str(error))
        raise


def end(
    root: Root, session: str, *, state: str, status: records.RunStatus | None = None, reason: str | None = None
) -> None:
    """Complete a session's record: when and how it ended, and where the run stands."""
    objects = open_objects(root)
    record = records.read_json(objects, _key(session))
    record |= {"state": state, "ended": records.now()}
    if reason is not None:
        record["reason"] = reason
    if status is not None:
        record["run"] = {key: value for key, value in dataclasses.asdict(status).items() if key != "root"}
    records.write_json(objects, _key(session), record)


def _begin(root: Root, options: records.Options, command: str) -> None:
    """Write `provenance/runs/<session>.json` and the environment that it names."""
    found = environment.describe_environment()
    digest = environment.digest(found)
    objects = open_objects(root)
    records.create_json(objects, f"{ENVIRONMENTS}/{digest}.json", found)
    record = {
        "session": options.session,
        "command": command,
        "options": dataclasses.asdict(options),
        "environment_sha256": digest,
        "started": records.now(),
        "state": "running",
    }
    records.write_json(objects, _key(options.session), record)


def _key(session: str) -> str:
    return f"{RUNS}/{session}.json"
