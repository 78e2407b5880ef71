"""The small records that travel between the command line, tasks and a run folder, and how they become files."""

import contextlib
import dataclasses
import datetime
import json
import uuid
from collections.abc import Iterator, Mapping

from genenc_core import errors
from genenc_core.models import trust
from genenc_core.run import parameters
from genenc_core.store import objects as objects_module
from genenc_core.store import sealed
from genenc_core.store.objects import Objects
from genenc_core.text import argument, encodable

SEAL = "sha256"
"""Where a record carries the digest of the rest of it."""
LARGEST = 64 * 2**20
"""Bytes of one of the small records."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to work on a run, free of what it means: nothing here changes a number beyond the batch size's rounding."""

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
    """Which rows recorded as unreadable are tried again: `all`, or a list like `5,17-20`; None: none."""

    @classmethod
    def of(cls, given: parameters.ExtractParameters) -> "Options":
        """Return the options among a run's parameters, for a new session."""
        return cls(
            session=new_session(),
            device=given.device,
            batch_size=None if given.batch_size == "auto" else given.batch_size,
            max_failures=given.max_failures,
            decode_workers=given.decode_workers,
            image_timeout=given.image_timeout,
            max_megapixels=given.max_megapixels,
            accept_changed=given.accept_changed,
            # What is named as the model itself is the user's own word for that code.
            trust=given.trust or trust.dotted(given.model) is not None,
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardReport:
    """What became of one shard in one attempt.

    `skipped` when it had been committed before; `held` when another process is at it, and nothing was done. `healed`
    are rows that were unreadable before, and are stored now.
    """

    shard: int
    start: int
    stop: int
    unreadable: int
    skipped: bool = False
    held: bool = False
    healed: int = 0
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)

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
    """Where a run stands, counted from its commit records."""

    root: str
    rows: int
    shards: int
    committed: int
    failed: tuple[int, ...]
    ok: int
    unreadable: int
    points: Mapping[str, int] = dataclasses.field(default_factory=dict)
    changed: int = 0
    """Rows stored from files that changed since they were planned, because that was accepted."""

    @property
    def pending(self) -> int:
        """Shards without a commit record."""
        return self.shards - self.committed

    @property
    def complete(self) -> bool:
        """Whether every row is stored or recorded as unreadable."""
        return self.pending == 0

    @property
    def exit_code(self) -> int:
        """0 all rows stored, 3 some images unreadable, 1 shards missing."""
        if not self.complete:
            return 1
        return 3 if self.unreadable else 0


def new_session() -> str:
    """Return an id for one invocation on a run: UTC time, so that ids sort, and a random part."""
    return f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the millisecond."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def write_json(objects: Objects, key: str, record: Mapping[str, object]) -> None:
    """Replace a JSON file of a run folder, as `write_text` does; it carries the sha256 of its own content."""
    write_text(objects, key, _text(record))


def write_text(objects: Objects, key: str, text: str) -> None:
    """Replace a file of a run folder: whole old content or whole new content after any crash.

    Raises:
        StoreError: it cannot be written.
    """
    with _faults("write", objects, key):
        objects.replace(key, text.encode(errors="backslashreplace"))


def create_json(objects: Objects, key: str, record: Mapping[str, object]) -> dict[str, object]:
    """Create a JSON file unless it exists; return what it then holds, the first writer's record."""
    folder, _, name = key.rpartition("/")
    via = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.partial"
    with _faults("write", objects, key):
        objects.make_folder(folder)
        with contextlib.suppress(FileExistsError):
            objects.create(key, _text(record).encode(), via=via)
    return read_json(objects, key)


def read_json(objects: Objects, key: str) -> dict[str, object]:
    """Return a JSON object from a file of the run folder, without its seal; earlier versions gave it none.

    Raises:
        StoreError: missing, unreadable, damaged, or changed after it was written.
    """
    where = objects_module.join(objects.name, key)
    try:
        value = json.loads(objects.read(key, most=LARGEST))
    except errors.UnsafeFileError as error:
        raise errors.StoreError(error.sentence) from error
    except (OSError, ValueError, RecursionError) as error:
        raise errors.StoreError(f"cannot read {where!r}: {error}; the run folder is damaged or incomplete") from error
    if not isinstance(value, dict):
        raise errors.StoreError(f"{where!r} holds {type(value).__name__}, not an object: the run folder is damaged")
    stated = value.pop(SEAL, None)
    if stated is not None and stated != sealed.digest(value):
        raise errors.StoreError(
            f"{where!r} was changed after it was written (its sha256 does not match its content): the run "
            f"folder is damaged; genenc verify {argument(objects.name)} lists everything"
        )
    return value


def problem(objects: Objects, key: str, *, earlier: bool) -> str:
    """Return what is wrong with a JSON file that `write_json` or `create_json` wrote, "" if nothing is.

    `earlier`: one without a seal is none of damage, as in runs that earlier versions made.
    """
    try:
        record = read_json(objects, key)
        data = objects.read(key, most=LARGEST)
    except (OSError, errors.StoreError) as error:
        return str(error)
    if data == _text(record).encode():
        return ""
    if SEAL not in json.loads(data):
        return "" if earlier else "carries no sha256 of its content: changed, or written by an earlier version"
    return "is not byte for byte what was written: changed"


def _text(record: Mapping[str, object]) -> str:
    content = {key: _encodable(value) for key, value in record.items() if key != SEAL}
    return json.dumps({**content, SEAL: sealed.digest(content)}, indent=2, ensure_ascii=False) + "\n"


def _encodable(value: object) -> object:
    """Return JSON data whose texts UTF-8 can write."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, Mapping):
        return {encodable(str(key)): _encodable(item) for key, item in value.items()}
    return [_encodable(item) for item in value] if isinstance(value, list | tuple) else value


@contextlib.contextmanager
def _faults(what: str, objects: Objects, key: str) -> Iterator[None]:
    try:
        yield
    except errors.UnsafeFileError as error:
        raise errors.StoreError(error.sentence) from error
    except OSError as error:
        where = objects_module.join(objects.name, key)
        raise errors.StoreError(f"cannot {what} {where!r}: {error.strerror or error}") from error
