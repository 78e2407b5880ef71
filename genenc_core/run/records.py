"""Records passed between the command line, tasks and run folders, and their serialisation."""

import contextlib
import dataclasses
import datetime
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

from genenc_core import errors
from genenc_core.models import trust
from genenc_core.run import bound, parameters
from genenc_core.run.bound import Bound, Work
from genenc_core.run.decisions import Decisions
from genenc_core.run.quantized import Loss
from genenc_core.store import documents
from genenc_core.store.backends import objects as objects_module
from genenc_core.store.backends.objects import Objects
from genenc_core.system import files
from genenc_core.text import argument, encodable

if TYPE_CHECKING:
    from genenc_core.run.folder import RunFolder

SEAL = "sha256"
"""Key of a record's digest over its other entries."""
LARGEST = 64 * 2**20
"""Maximum size of a record in bytes."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Execution options of a session; they do not change results, except for rounding with the batch size."""

    session: str
    device: str = "auto"
    batch_size: int | None = None
    max_failures: str | None = None
    decode_workers: int | None = None
    image_timeout: float = 60.0
    max_megapixels: float = 400.0
    trust: bool = False
    accept_changed: bool = False
    retry: str | None = None
    """Unreadable rows to retry: `all`, or a list like `5,17-20`; None for none."""

    @classmethod
    def of(cls, given: parameters.ExtractParameters) -> "Options":
        """Return the options among the parameters of an extraction, for a new session."""
        return cls(
            session=new_session(),
            device=given.device,
            batch_size=None if given.batch_size == "auto" else given.batch_size,
            max_failures=given.max_failures,
            decode_workers=given.decode_workers,
            image_timeout=given.image_timeout,
            max_megapixels=given.max_megapixels,
            accept_changed=given.accept_changed,
            # Naming code as the model implies trust in it.
            trust=given.trust or trust.dotted(given.model) is not None,
        )

    @classmethod
    def to_continue(cls, given: parameters.ExtractParameters, changes: parameters.Changes) -> "Options":
        """Return the options for a new session on an existing run with these parameters."""
        made_with = cls.of(given)
        return dataclasses.replace(
            made_with,
            device=changes.device or made_with.device,
            batch_size=changes.batch_size or made_with.batch_size,
            max_failures=changes.max_failures or made_with.max_failures,
            trust=changes.trust,
            accept_changed=changes.accept_changed,
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardReport:
    """Outcome of one attempt at a shard.

    `skipped` if it was already committed; `held` if another process is working on it and nothing was done. `healed`
    counts rows that were unreadable before and are stored now.
    """

    shard: int
    start: int
    stop: int
    unreadable: int
    skipped: bool = False
    held: bool = False
    healed: int = 0
    work: Work | None = None
    """Resource usage from the commit record; None if there is no record."""
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    spans: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    """Unix times at which each of `encoding.stages.NAMES` began and ended."""

    @property
    def rows(self) -> int:
        """Number of images."""
        return self.stop - self.start

    @property
    def images_per_second(self) -> float:
        """Images over the attempt's wall time; 0 for a skipped shard."""
        total = self.seconds.get("total", 0.0)
        return self.rows / total if total else 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """Progress of a run, counted from its commit records."""

    root: str
    rows: int
    shards: int
    committed: int
    failed: tuple[int, ...]
    ok: int
    unreadable: int
    points: Mapping[str, int] = dataclasses.field(default_factory=dict)
    changed: int = 0
    """Rows stored from files that changed after planning, with `accept_changed`."""
    further_frames: int = 0
    """Rows of files that hold further frames or pages, which are not stored."""
    damaged: tuple[int, ...] = ()
    """Shards with damaged commit records; not included in the other counts."""
    bound: Bound | None = None
    """Bottleneck so far; None if the records have no usage data, as in earlier versions."""
    quantized: Mapping[str, Loss] = dataclasses.field(default_factory=dict)
    """What is lost of the products that are stored as integers, by name."""
    regions: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """State of the regions, as `region_status` names it -> count; empty without regions."""
    decided: Decisions | None = None
    """How the values of a reproducible run were decided; None of others."""

    @property
    def pending(self) -> int:
        """Shards without a commit record."""
        return self.shards - self.committed - len(self.damaged)

    @property
    def complete(self) -> bool:
        """Whether every row is stored or recorded as unreadable."""
        return self.committed == self.shards

    @property
    def exit_code(self) -> int:
        """0 all rows stored, 3 some images unreadable, 1 shards missing or damaged."""
        if not self.complete:
            return 1
        return 3 if self.unreadable else 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Outcome of a session: `asked` shards were requested, `failures` were not done.

    `stopped` if a stop was requested; shards not done then are not failures. `bound` is the bottleneck of this
    session, if it did any work.
    """

    run: "RunFolder" = dataclasses.field(repr=False, compare=False)
    status: RunStatus
    asked: int
    failures: tuple[errors.ShardError, ...]
    stopped: bool = False
    bound: Bound | None = None


class Outcome(Protocol):
    """Outcome of work on shards."""

    @property
    def asked(self) -> int:
        """Number of shards requested."""

    @property
    def failures(self) -> tuple[errors.ShardError, ...]:
        """Shards that were not done."""


class Incomplete(errors.GenencError):
    """Some shards were not committed; see `result` for which and why."""

    def __init__(self, result: Outcome) -> None:
        self.result = result
        names = ", ".join(str(error.shard) for error in result.failures[:20])
        more = ", ..." if len(result.failures) > 20 else ""
        super().__init__(f"{len(result.failures)} of {result.asked} shards not done: {names}{more}")

    def __reduce__(self) -> tuple[type["Incomplete"], tuple[Outcome]]:
        """Keep the result across process boundaries."""
        return type(self), (self.result,)


def bound_of(reports: Iterable[ShardReport]) -> Bound | None:
    """Return the bottleneck of the reported work; None if there is none."""
    return bound.find((report.seconds, report.work) for report in reports if report.work)


def new_session() -> str:
    """Return a session id: UTC time, so that ids sort, and a random part."""
    return f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"


def now() -> str:
    """Return the current time as ISO 8601 in UTC, in milliseconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def write_json(objects: Objects, key: str, record: Mapping[str, object]) -> None:
    """Replace a JSON file of a run folder, as `write_text` does, with the sha256 of its content in it."""
    write_text(objects, key, dumps(record).decode())


def write_text(objects: Objects, key: str, text: str) -> None:
    """Replace a file of a run folder atomically, also across crashes.

    Raises:
        StoreError: it cannot be written.
    """
    with _store_errors("write", objects, key):
        objects.replace(key, text.encode(errors="backslashreplace"))


def create_json(objects: Objects, key: str, record: Mapping[str, object]) -> dict[str, object]:
    """Create a JSON file unless it exists; return its content, which is the first writer's record."""
    folder, _, name = key.rpartition("/")
    via = f"{folder}/{files.private_name(name)}".lstrip("/")
    with _store_errors("write", objects, key):
        if folder:
            objects.make_folder(folder)
        with contextlib.suppress(FileExistsError):
            objects.create(key, dumps(record), via=via)
    return read_json(objects, key)


def read_json(objects: Objects, key: str) -> dict[str, object]:
    """Read a JSON object from a file of the run folder and check its seal, if it has one.

    Raises:
        StoreError: missing, unreadable, damaged, or changed after it was written.
    """
    return _parsed(objects, key, _read(objects, key))


def _read(objects: Objects, key: str) -> bytes:
    try:
        return objects.read(key, most=LARGEST)
    except errors.UnsafeFileError as error:
        raise errors.StoreError(error.sentence) from error
    except OSError as error:
        raise _unreadable(objects, key, error) from error


def _unreadable(objects: Objects, key: str, error: Exception) -> errors.StoreError:
    where = objects_module.join(objects.name, key)
    return errors.StoreError(f"cannot read {where!r}: {error}; the run folder is damaged or incomplete")


def _parsed(objects: Objects, key: str, data: bytes) -> dict[str, object]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _unreadable(objects, key, error) from error
    where = objects_module.join(objects.name, key)
    if not isinstance(value, dict):
        raise errors.StoreError(
            f"{where!r} contains a {type(value).__name__}, not an object: the run folder is damaged"
        )
    stated = value.pop(SEAL, None)
    if stated is not None and stated != documents.digest(value):
        raise errors.StoreError(
            f"{where!r} was changed after it was written (its sha256 does not match its content): the run "
            f"folder is damaged; genenc verify {argument(objects.name)} lists all problems"
        )
    return value


def problem(objects: Objects, key: str, *, earlier: bool) -> str:
    """Describe the damage to a file written by `write_json` or `create_json`, "" if there is none.

    `earlier` accepts records without a seal, as in runs of earlier versions.
    """
    try:
        data = _read(objects, key)  # once: another process may replace the record at any time
        record = _parsed(objects, key, data)
    except errors.StoreError as error:
        return str(error)
    if data == dumps(record):
        return ""
    if SEAL not in json.loads(data):
        return "" if earlier else "has no sha256 of its content: changed, or written by an earlier version"
    return "differs from what was written"


def dumps(record: Mapping[str, object]) -> bytes:
    """Serialise a record, with the sha256 of its content."""
    content = {key: _encodable(value) for key, value in record.items() if key != SEAL}
    return (json.dumps({**content, SEAL: documents.digest(content)}, indent=2, ensure_ascii=False) + "\n").encode()


def _encodable(value: object) -> object:
    """Return JSON data with all strings encodable as UTF-8."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, Mapping):
        return {encodable(str(key)): _encodable(item) for key, item in value.items()}
    return [_encodable(item) for item in value] if isinstance(value, list | tuple) else value


@contextlib.contextmanager
def _store_errors(what: str, objects: Objects, key: str) -> Iterator[None]:
    try:
        yield
    except errors.UnsafeFileError as error:
        raise errors.StoreError(error.sentence) from error
    except OSError as error:
        where = objects_module.join(objects.name, key)
        raise errors.StoreError(f"cannot {what} {where!r}: {error.strerror or error}") from error
