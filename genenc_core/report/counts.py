"""What ran, from commit records and the records of sessions: counts, rates, times, origin."""

import dataclasses
import datetime
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from genenc_core import errors, spec
from genenc_core.run import precision, records, session_log, status
from genenc_core.run.bound import Bound, Work
from genenc_core.run.folder import MODEL_SPEC, RunFolder
from genenc_core.store.backends import beneath
from genenc_core.stored.rows import Stored
from genenc_core.system import progress_rate
from genenc_core.text import plural

MOST_SHARDS: Final = 400
"""Shards whose records are read for their times."""
MOST_UNREADABLE: Final = 200
MOST_SESSIONS: Final = 50


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A row without features."""

    row: int
    image: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardTimes:
    """When a shard was begun, and what it took; in seconds."""

    name: str
    began: float
    """Unix time; NaN if not recorded."""
    seconds: Mapping[str, float]
    """By stage, as in `plots.STAGES`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One invocation that worked on the run."""

    part: str
    name: str
    command: str
    state: str
    began: float
    ended: float
    """Unix times; NaN if not recorded."""
    environment: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What ran; counts of a version are those of its current rows."""

    rows: int
    ok: int
    unreadable: int
    pending_shards: int
    shards: int
    points: Mapping[str, int]
    bound: Bound | None
    """Of a run: what limited it."""
    rate: float | None
    """Images a second of all work, by the records; None if there are no times."""
    lines: Sequence[str]
    """As `genenc status` says it."""
    failures: Sequence[Unreadable]
    """The first unreadable rows."""
    times: Sequence[ShardTimes]
    sessions: Sequence[Session]


def count(source: Stored) -> Counts:
    """Read the records of a run, or of the parts of a version.

    Raises:
        StoreError: a record cannot be read.
    """
    found = [status.survey(part.run, most=MOST_UNREADABLE) for part in source.parts]
    first, lines = found[0], []
    points: Counter[str] = Counter()
    for each in found:
        points.update(each.status.points)
    if source.current is None:
        ok, unreadable = first.status.ok, first.status.unreadable
        # Unreadable images have a section of their own.
        lines = status.summary_lines(first, first.status.bound, most=0)
    else:
        ok, unreadable = len(source.ok), len(source) - len(source.ok)
    return Counts(
        rows=len(source),
        ok=ok,
        unreadable=unreadable,
        pending_shards=sum(each.status.pending for each in found),
        shards=sum(each.status.shards for each in found),
        points=dict(points),
        bound=first.status.bound if source.version is None else None,
        rate=_rate(found),
        lines=[line for line in lines if not line.startswith(("  to retry", "  ... and"))],
        failures=_failures(source, found),
        times=_times(source),
        sessions=[session for part in source.parts for session in _sessions(part.name, part.run)][-MOST_SESSIONS:],
    )


def _rate(found: Sequence[status.Survey]) -> float | None:
    """Return images a second of the processes' time with images, from the records' work."""
    bounds = [(each.status.ok + each.status.unreadable, each.status.bound) for each in found]
    seconds = sum(bound.seconds for _, bound in bounds if bound)
    images = sum(count for count, bound in bounds if bound)
    return images / seconds if seconds > 0 and images else None


def _failures(source: Stored, found: Sequence[status.Survey]) -> list[Unreadable]:
    """Return the first unreadable rows, and images for which shards failed."""
    listed: list[Unreadable] = []
    for part, survey in zip(source.parts, found, strict=True):
        for item in (*survey.unreadable, *survey.failed_images):
            at = int(np.searchsorted(part.rows, int(item["row"])))
            if at < len(part.rows) and part.rows[at] == int(item["row"]):
                row = int(part.positions[at])
                listed.append(Unreadable(row=row, image=str(item["image_id"]), reason=str(item["reason"])))
    return listed[:MOST_UNREADABLE]


def _times(source: Stored) -> list[ShardTimes]:
    """Return the times of shards, evenly chosen if there are many."""
    every = [(part, shard) for part in source.parts for shard in sorted(part.run.store.committed())]
    chosen = np.unique(np.linspace(0, len(every) - 1, min(len(every), MOST_SHARDS)).round().astype(int))
    made = []
    for part, shard in (every[at] for at in chosen.tolist()):
        try:
            record = part.run.store.record(shard)
        except errors.StoreError:
            continue
        if record is None:
            continue
        spent: Mapping[str, Any] = record.details.get("seconds") or {}
        work = Work.of(record.details)
        seconds = {
            "reading": _number(spent.get("read")),
            "decoding": _number(spent.get("decode")),
            "waiting for images": _number(spent.get("load_wait")),
            "encoding": _number(spent.get("encode")),
            "reducing": _number(spent.get("reduce")),
            "storing": _number(work.store if work else 0.0),
        }
        name = f"{part.name}/{shard}" if part.name else str(shard)
        made.append(ShardTimes(name=name, began=_unix(record.details.get("started")), seconds=seconds))
    return made


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and np.isfinite(value) and value > 0 else 0.0


def _unix(stated: object) -> float:
    try:
        return datetime.datetime.fromisoformat(str(stated)).timestamp()
    except ValueError:
        return float("nan")


def _sessions(part: str, run: RunFolder) -> list[Session]:
    found = []
    try:
        is_folder = run.objects.kind(session_log.RUNS) != beneath.FILE
        names = sorted(run.objects.names(session_log.RUNS)) if is_folder else []
    except OSError:
        return []
    for name in names[-MOST_SESSIONS:]:
        try:
            record: Any = records.read_json(run.objects, f"{session_log.RUNS}/{name}")
            key = session_log.environment_key(str(record.get("environment_sha256")))
            around = records.read_json(run.objects, key) if run.objects.kind(key) == beneath.FILE else {}
        except errors.StoreError:
            continue
        found.append(
            Session(
                part=part,
                name=str(record.get("session", "")),
                command=str(record.get("command", "")),
                state=str(record.get("state", "")),
                began=_unix(record.get("started")),
                ended=_unix(record.get("ended")),
                environment=around,
            )
        )
    return found


def meaning(source: Stored) -> list[tuple[str, str]]:
    """Return what the run means, as names and values."""
    run = source.model_run
    stated = spec.RuntimeModelSpec.from_json(run.objects.read(MODEL_SPEC).decode()).genenc
    weights = "of the artifact" if stated is None or stated.source is None else str(stated.source.weights)
    if weights.startswith("random"):
        weights += ": not trained, the features mean nothing"
    computed = precision.describe(run)
    made = [
        ("model", f"{run.identity['model']} ({run.backend})"),
        ("weights", weights),
        ("preprocessing", run.preprocessing.describe()),
        *([] if computed is None else [("precision", computed)]),
        *([] if run.tiles is None else [("tiles", run.tiles.describe())]),
        ("points", ", ".join(source.points) or "none"),
    ]
    if source.version is not None:
        made.append(("version", f"{source.version}, in {plural(len(source.parts), 'part')}"))
    return made


def origin(source: Stored) -> list[tuple[str, str]]:
    """Return where the values come from, as names and values."""
    run, identity = source.model_run, source.model_run.identity
    made_of: Any = run.store.plan.attributes.get("genenc") or {}
    made = [
        ("folder", source.place),
        ("images", str(run.given.images)),
        ("image list digest", str(identity["images"]["digest"])),
        ("weights sha256", str(identity["weights"])),
        ("model spec sha256", str(made_of.get("model_spec_sha256", ""))),
        ("fingerprint", run.store.plan.fingerprint),
    ]
    if source.version is not None:
        how = source.made()
        made.insert(1, ("made", f"{how.get('version_time', '')} by {how.get('version_command', '')}"))
    return made


def described(environment: Mapping[str, Any]) -> str:
    """Return an environment in a few words."""
    code, machine, torch = (environment.get(name) or {} for name in ("code", "machine", "torch"))
    commit = str(code.get("git_commit") or "")[:10]
    devices = torch.get("devices") or []
    known = f" ({commit}{', changed' if code.get('git_dirty') else ''})" if commit else ""
    words = [
        f"genenc {environment.get('genenc', '')}{known}",
        f"torch {torch.get('version', '')}",
        f"Python {environment.get('python', '')}",
        ", ".join(map(str, devices)) or f"{machine.get('cpu', '')}, {machine.get('logical_cores', '')} cores",
    ]
    return ", ".join(words) if environment else "not recorded"


def parameters(source: Stored) -> str:
    """Return the parameters that the run was made with, as JSON."""
    given = source.model_run.given.model_dump(mode="json", exclude_defaults=True)
    return json.dumps(given, indent=2, ensure_ascii=False)


def duration(began: float, ended: float) -> str:
    """Return how long a session took, in words."""
    return progress_rate.duration(ended - began) if np.isfinite(ended - began) else "not recorded"


def moment(unix: float) -> str:
    """Return a time in words, in UTC."""
    if not np.isfinite(unix):
        return "not recorded"
    return f"{datetime.datetime.fromtimestamp(unix, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"
