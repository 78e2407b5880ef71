"""What must hold of a store's contents at every instant, of every step, and at the end; S1, S2, ... as in the page.

Contents of the model and of the real store have the same keys; a `Lens` says what is in a value.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Final

from genenc_core.store import store_keys
from simulated_store import Contents, Ended

ARRAYS: Final = ("features", "status")
"""In the order of promotion."""
SHARDS: Final = 2
Check = Callable[[Contents], str]
StepCheck = Callable[[Contents, Contents], str]


@dataclass(frozen=True)
class Record:
    """What a commit record says."""

    attempt: str
    objects: tuple[Hashable, ...]
    """What the objects must be, in the order of `ARRAYS`."""


@dataclass(frozen=True)
class Lens:
    """How to look into values."""

    record: Callable[[Hashable], Record | None]
    """Return what a record says; None for what is none."""
    identity: Callable[[Hashable], Hashable]
    """Return what a record says of an object with this value."""
    arrays: tuple[str, ...] = tuple(f"{store_keys.GROUP}/{name}/c.{{}}" for name in ARRAYS)
    """Keys of a shard's objects."""


@dataclass(frozen=True)
class Shard:
    """A shard as it lies in a store."""

    number: int
    records: tuple[Record, ...]
    placed: tuple[Hashable, ...]
    """What is in the place of each array; None where nothing is."""

    @property
    def is_whole(self) -> bool:
        """Whether all that the current record says is in place."""
        return bool(self.records) and self.placed == self.records[-1].objects


def shards(contents: Contents, lens: Lens) -> Iterator[Shard]:
    """Yield the shards."""
    for number in range(SHARDS):
        records: list[Record] = []
        while (key := store_keys.record(number, len(records))) in contents:
            record = lens.record(contents[key])
            if record is None:
                break
            records.append(record)
        keys = (key.format(number) for key in lens.arrays)
        placed = tuple(lens.identity(contents[key]) if key in contents else None for key in keys)
        yield Shard(number, tuple(records), placed)


def final_values_only(lens: Lens) -> Check:
    """S1: what is in place is whole, and of a record."""

    def check(contents: Contents) -> str:
        for shard in shards(contents, lens):
            for at, value in enumerate(shard.placed):
                if value is not None and value not in [record.objects[at] for record in shard.records]:
                    return f"S1: shard {shard.number}: {ARRAYS[at]} is of no record: {value}"
        return ""

    return check


def status_implies_data(lens: Lens) -> Check:
    """S2 and S11: where a status is in place, all data of its record, or of a later one, are."""

    def check(contents: Contents) -> str:
        for shard in shards(contents, lens):
            *data, status = shard.placed
            for since, record in enumerate(shard.records):
                if status == record.objects[-1]:
                    wanted = [later.objects for later in shard.records[since:]]
                    if any(value not in [each[at] for each in wanted] for at, value in enumerate(data)):
                        return f"S2: shard {shard.number} has its status without its data: {shard.placed}"
        return ""

    return check


def nothing_changes(lens: Lens) -> StepCheck:
    """S3: a record and what is in place stay, but for what a later record says."""

    def check(before: Contents, after: Contents) -> str:
        for old, new in zip(shards(before, lens), shards(after, lens), strict=True):
            if new.records[: len(old.records)] != old.records:
                return f"S3: shard {old.number}: its record changed"
            for at, value in enumerate(old.placed):
                stated = [record.objects[at] for record in old.records]
                if value in stated and new.placed[at] not in [
                    record.objects[at] for record in new.records[stated.index(value) :]
                ]:
                    return f"S3: shard {old.number}: {ARRAYS[at]} changed from {value} to {new.placed[at]}"
        return ""

    return check


def whole_shards_stay(lens: Lens) -> StepCheck:
    """S9: a shard that is intact stays so beside repairs."""

    def check(before: Contents, after: Contents) -> str:
        for old, new in zip(shards(before, lens), shards(after, lens), strict=True):
            if old.is_whole and not new.is_whole:
                return f"S9: shard {old.number} was intact, and is not any more"
        return ""

    return check


def status_implies_objects(lens: Lens) -> Check:
    """S9: where a status is in place, so are the other objects, whatever they hold."""

    def check(contents: Contents) -> str:
        for shard in shards(contents, lens):
            if shard.placed[-1] is not None and None in shard.placed:
                return f"S9: shard {shard.number} has a status, and objects are missing: {shard.placed}"
        return ""

    return check


def nothing_is_deleted(lens: Lens) -> StepCheck:
    """S9: what was in place, or a record, is somewhere afterwards."""
    folders = (f"{store_keys.GROUP}/", f"{store_keys.COMMITS}/")

    def check(before: Contents, after: Contents) -> str:
        for key in before:
            gone = key.startswith(folders) and before[key] != after.get(key)
            mark = key.startswith(folders[1]) and lens.record(before[key]) is None
            if gone and not mark and before[key] not in after.values():
                return f"S9: {key} is nowhere any more"
        return ""

    return check


def committed_is_stored(lens: Lens) -> Callable[[Ended, Contents], str]:
    """S3: what a commit returned, or what healed it since, is in place."""

    def check(ended: Ended, contents: Contents) -> str:
        name, _, number = ended.task.partition(" ")
        if ended.error or name not in ("commit", "heal"):
            return ""
        shard = list(shards(contents, lens))[int(number)]
        attempts = [record.attempt for record in shard.records]
        since = shard.records[attempts.index(ended.value) :] if ended.value in attempts else ()
        if all(value in [record.objects[at] for record in since] for at, value in enumerate(shard.placed)):
            return ""
        return f"S3: {ended.task} returned {ended.value}, but the shard is {shard}"

    return check


def all_is_done(lens: Lens, *, litter: bool = False) -> Check:
    """S4: every shard is whole; nothing is left in staging, but by requests that the server delayed."""

    def check(contents: Contents) -> str:
        for shard in shards(contents, lens):
            if not shard.is_whole:
                return f"S4: {shard} is not whole"
        left = [key for key in contents if key.startswith(f"{store_keys.STAGING}/") and key != f"{store_keys.STAGING}/"]
        return f"S4: left in staging: {left}" if left and not litter else ""

    return check
