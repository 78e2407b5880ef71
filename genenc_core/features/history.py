"""What happened to a run, by its records: sessions, what each of them stored, and what they ran on."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from genenc_core import errors
from genenc_core.features import execution
from genenc_core.run import records, session_log
from genenc_core.run.folder import RunFolder
from genenc_core.run.records import RunStatus


@dataclasses.dataclass(slots=True, kw_only=True)
class Stored:
    """What a session stored; a shard that was healed counts for each of the sessions that did."""

    shards: int = 0
    rows: int = 0
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Rows by state."""
    devices: set[str] = dataclasses.field(default_factory=set)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One invocation on a run."""

    name: str
    record: Mapping[str, Any]
    """Its record; {} where that is missing, damaged or a placeholder."""
    environment: Mapping[str, Any]
    """What it ran on; {} as above."""
    stored: Stored

    @property
    def command(self) -> str:
        """The command, such as `extract`."""
        return str(self.record.get("command") or "encode")

    @property
    def state(self) -> str:
        """`completed`, `failed`, `cancelled`, `running`, or "" where it is not known."""
        return str(self.record.get("state") or "")

    @property
    def environment_sha256(self) -> str:
        """Digest of the environment's record; "" where it is not known."""
        return str(self.record.get("environment_sha256") or "") if self.environment else ""

    def time(self, name: str) -> str | None:
        """Return when it `started` or `ended`, as ISO 8601; None where that is not known."""
        found = self.record.get(name)
        return found if isinstance(found, str) and found else None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The sessions of a run, in order, and what is stored of it now."""

    run: RunFolder
    sessions: tuple[Session, ...]
    committed: int
    """Shards that are stored."""
    counts: Mapping[str, int]
    """Their rows by state: `ok`, `unreadable`."""
    array_bytes: int | None
    """Bytes of their objects; None: not counted."""

    @property
    def complete(self) -> bool:
        """Whether all shards are stored."""
        return self.committed == self.run.store.shard_count

    @property
    def last(self) -> str | None:
        """When the last session ended, or started; None where no record says it."""
        return _last(session.record for session in self.sessions)


def of(run: RunFolder) -> History:
    """Read what happened to a run; every commit record is read once.

    Raises:
        StoreError: a commit record is damaged.
    """
    by_session: dict[str, Stored] = collections.defaultdict(Stored)
    counts: collections.Counter[str] = collections.Counter()
    committed = array_bytes = 0
    for shard in sorted(run.store.committed()):
        history = run.store.history(shard)
        for record in history:
            stored = by_session[session_log.session_of(record)]
            stored.shards += 1
            stored.rows += record.rows[1] - record.rows[0]
            stored.counts.update(record.status_counts)
            stored.devices.update(filter(None, [execution.device(record)]))
        if history:
            committed += 1
            counts.update(history[-1].status_counts)
            array_bytes += sum(item.size for item in history[-1].objects)
    names = sorted({*session_log.names(run.objects), *filter(None, by_session)})
    sessions = [_session(run, name, by_session.get(name, Stored())) for name in names]
    sessions.sort(key=_began)
    return History(run=run, sessions=tuple(sessions), committed=committed, counts=dict(counts), array_bytes=array_bytes)


def _began(session: Session) -> tuple[str, str]:
    """Return what sessions are sorted by: names tell seconds, records milliseconds."""
    second = session.name.partition("-")[0]
    return second, session.time("started") or ""


def of_session(run: RunFolder, name: str, stored: Stored, found: RunStatus) -> History:
    """Return what happened in one session, without reading commit records: the caller knows what was stored."""
    counts = {"ok": found.ok, "unreadable": found.unreadable}
    sessions = (_session(run, name, stored),)
    return History(run=run, sessions=sessions, committed=found.committed, counts=counts, array_bytes=None)


def last_of(run: RunFolder) -> str | None:
    """Return when the last session of a run ended, or started; None where no record says it."""
    return _last(_read(run, session_log.record_key(name)) for name in session_log.names(run.objects))


def _last(found: Iterable[Mapping[str, Any]]) -> str | None:
    times = [record.get(name) for record in found for name in ("started", "ended")]
    return max((each for each in times if isinstance(each, str) and each), default=None)


def _session(run: RunFolder, name: str, stored: Stored) -> Session:
    record = _read(run, session_log.record_key(name))
    digest = str(record.get("environment_sha256"))
    environment = _read(run, session_log.environment_key(digest)) if re.fullmatch("[0-9a-f]{64}", digest) else {}
    return Session(name=name, record=record, environment=environment, stored=stored)


def _read(run: RunFolder, key: str) -> dict[str, Any]:
    try:
        found = records.read_json(run.objects, key)
    except errors.StoreError:  # what is not known is left out
        return {}
    return {} if session_log.LOST in found else found
