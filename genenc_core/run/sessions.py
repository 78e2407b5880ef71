"""Sessions: one record per invocation on a run, when it ran, on what, with which options, and how it ended."""

import dataclasses
from pathlib import Path

from genenc_core.provenance import environment
from genenc_core.run import records

RUNS = "provenance/runs"
ENVIRONMENTS = "provenance/env"


def begin(root: Path, options: records.Options, *, command: str) -> None:
    """Record that a session starts: `provenance/runs/<session>.json` and the environment it names."""
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


def end(root: Path, session: str, *, state: str, status: records.RunStatus | None = None) -> None:
    """Complete a session's record: when and how it ended, and where the run stands."""
    record = records.read_json(_file(root, session))
    record |= {"state": state, "ended": records.now()}
    if status is not None:
        record["run"] = {key: value for key, value in dataclasses.asdict(status).items() if key != "root"}
    records.write_json(_file(root, session), record)


def _file(root: Path, session: str) -> Path:
    return root / RUNS / f"{session}.json"
