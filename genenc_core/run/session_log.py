"""Session and environment records of a run, and placeholders for lost ones."""

import contextlib
import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from genenc_core import errors
from genenc_core.run import records, status
from genenc_core.run.bound import Bound
from genenc_core.run.folder import RunFolder
from genenc_core.store.backends import beneath
from genenc_core.store.backends.objects import Objects
from genenc_core.store.commit_record import CommitRecord
from genenc_core.system import digests, environment, exits

RUNS: Final = "provenance/runs"
ENVIRONMENTS: Final = "provenance/env"
LOST: Final = "lost"
"""Key that marks a record as a placeholder for a lost one."""
_NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,99}")
_WORDS: Final = "the record was missing or damaged when the run was repaired; what it said is not known"


def record_key(session: str) -> str:
    """Return the key of a session's record."""
    return f"{RUNS}/{session}.json"


def environment_key(digest: str) -> str:
    """Return the key of an environment's record."""
    return f"{ENVIRONMENTS}/{digest}.json"


def session_of(record: CommitRecord) -> str:
    """Return the session that made a commit record, "" if it names no valid one."""
    session = record.details.get("session")
    return session if isinstance(session, str) and _NAME.fullmatch(session) else ""


def names(objects: Objects) -> list[str]:
    """Return the sessions that have a record, in the order of the seconds in which they began."""
    found = (name.removesuffix(".json") for name in _names(objects, RUNS) if name.endswith(".json"))
    return sorted(name for name in found if _NAME.fullmatch(name))


def own_key(folder: str, record: Mapping[str, object]) -> str | None:
    """Return the key that a record in `folder` should have by its content; None if that is undetermined."""
    if folder == RUNS and "session" in record:
        return record_key(str(record["session"]))
    if folder != ENVIRONMENTS:
        return None
    if LOST in record:
        return environment_key(str(record.get("environment_sha256")))
    try:
        return environment_key(digests.ENVIRONMENT.hex_of_json(record))
    except (ValueError, RecursionError):  # not JSON that genenc writes
        return environment_key("")


def missing(objects: Objects, sessions: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield missing records as (key, problem); `sessions` are those named by commits.

    Sessions without commits, and environments that no record names, may be missing.
    """
    for folder in (RUNS, ENVIRONMENTS) if sessions else ():
        if objects.kind(folder) == beneath.FILE:
            yield folder, "is a file, not a folder of records"
    present = {f"{folder}/{name}" for folder in (RUNS, ENVIRONMENTS) for name in _names(objects, folder)}
    for place, by in named(objects, sessions):
        # A record that is replaced while its folder is listed may be left out of the list.
        if place not in present and objects.kind(place) is None:
            yield place, f"missing: {by}"


def named(objects: Objects, sessions: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield the records required by sessions with commits, as (key, reason)."""
    for session in sorted(sessions):
        yield record_key(session), "commit records name this session"
        with contextlib.suppress(errors.StoreError):  # damage is reported elsewhere
            stated = records.read_json(objects, record_key(session)).get("environment_sha256")
            if isinstance(stated, str) and _NAME.fullmatch(stated):
                yield environment_key(str(stated)), f"the record of session {session} names this environment"


def recreate(objects: Objects, place: str, *, stand_in: bool) -> bytes | None:
    """Return the content of a missing or damaged record, None if it cannot be recreated.

    It is recovered from a misnamed copy or from the current environment; otherwise, with `stand_in`, it is a
    placeholder that marks it as lost.
    """
    folder, _, name = place.rpartition("/")
    if folder not in (RUNS, ENVIRONMENTS):
        return None
    for other in _names(objects, folder):
        with contextlib.suppress(errors.StoreError):
            record = records.read_json(objects, f"{folder}/{other}")
            if own_key(folder, record) == place:
                return records.dumps(record)
    stem = name.removesuffix(".json")
    if folder == ENVIRONMENTS and digests.ENVIRONMENT.hex_of_json(here := environment.describe_environment()) == stem:
        return records.dumps(here)
    stated = {"session": stem, "state": LOST} if folder == RUNS else {"environment_sha256": stem}
    return records.dumps({**stated, LOST: _WORDS}) if stand_in else None


def is_lost(objects: Objects, place: str) -> bool:
    """Return whether the record at `place` is a placeholder for a lost one."""
    with contextlib.suppress(errors.StoreError):
        return place.startswith((f"{RUNS}/", f"{ENVIRONMENTS}/")) and LOST in records.read_json(objects, place)
    return False


def _names(objects: Objects, folder: str) -> list[str]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, errors.UnsafeFileError):
        return objects.names(folder)
    return []


@contextlib.contextmanager
def recorded(run: RunFolder, options: records.Options, *, command: str) -> Iterator[None]:
    """Record the start of a session, and its end if an exception ends it; otherwise call `end`."""
    _begin(run.objects, options, command)

    def ended() -> str:
        with contextlib.suppress(errors.StoreError):
            end(run.objects, options.session, state="failed", reason="the process was terminated by code that it ran")
        return status.progress_summary(run.root)

    try:
        with exits.guarded(state=ended):
            yield
    except BaseException as error:
        stopped = isinstance(error, errors.Stopped | KeyboardInterrupt) or not isinstance(error, Exception)
        with contextlib.suppress(errors.StoreError):
            end(run.objects, options.session, state="cancelled" if stopped else "failed", reason=str(error))
        raise


def end(
    objects: Objects,
    session: str,
    *,
    state: str,
    status: records.RunStatus | None = None,
    bound: Bound | None = None,
    reason: str | None = None,
) -> None:
    """Complete a session's record: end time, state, bottleneck and the run's status."""
    key = record_key(session)
    record = records.read_json(objects, key)
    record |= {"state": state, "ended": records.now()}
    if reason is not None:
        record["reason"] = reason
    if bound is not None:
        record["bound"] = dataclasses.asdict(bound)
    if status is not None:
        record["run"] = {key: value for key, value in dataclasses.asdict(status).items() if key != "root"}
    records.write_json(objects, key, record)


def _begin(objects: Objects, options: records.Options, command: str) -> None:
    """Write `provenance/runs/<session>.json` and its environment record."""
    found = environment.describe_environment()
    digest = digests.ENVIRONMENT.hex_of_json(found)
    records.create_json(objects, environment_key(digest), found)
    record = {
        "session": options.session,
        "command": command,
        "options": dataclasses.asdict(options),
        "environment_sha256": digest,
        "started": records.now(),
        "state": "running",
    }
    records.write_json(objects, record_key(options.session), record)
