"""What a probe set was made from: the runs whose stored outputs it reads, and which of their rows are its own.

`provenance/source.json` says it for good; `provenance/source_place.json` says where the source is now. Nothing is
written in the source.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final

import numpy as np
import pydantic

from genenc_core import errors, float_values
from genenc_core.run import records
from genenc_core.run.folder import MODEL_SPEC, RunFolder
from genenc_core.spec import RuntimeModelSpec
from genenc_core.store import layout
from genenc_core.store.backends.objects import Objects, join, to_root
from genenc_core.store.commit_record import CommitRecord
from genenc_core.system import digests
from genenc_core.text import argument, plural

SOURCE: Final = "provenance/source.json"
PLACE: Final = "provenance/source_place.json"
SCHEMA: Final = "genenc.probe-source/1"
DETAILS: Final = "source"
"""Key of a commit record's details with the objects that its shard was made from."""
_SIZES: Final = ("image_height", "image_width", "image_orientation", "image_affine")
_EXACT: Final = ("int8", "uint8", "float16", "float32")
"""Types of stored outputs, the least exact first."""
_Count = Annotated[int, pydantic.Field(ge=0, le=2**40)]
_STRICT = pydantic.ConfigDict(strict=True, frozen=True)


class Part(pydantic.BaseModel):
    """One run that is read."""

    model_config = _STRICT

    name: str = pydantic.Field(pattern="^(p[0-9]{6,9})?$")
    """Its folder below `parts` of the source; "" if it is the source itself."""
    store: str
    """Digest of its `_txn/store.json`."""
    fingerprint: str


class SourceRecord(pydantic.BaseModel):
    """`provenance/source.json`."""

    model_config = _STRICT

    schema_: str = pydantic.Field(default=SCHEMA, alias="schema", pattern=f"^{SCHEMA}$")
    version: pydantic.PositiveInt | None
    """Version of a dataset; None for a run."""
    parts: list[Part]
    rows: list[tuple[_Count, _Count, Annotated[_Count, pydantic.Field(ge=1)]]]
    """For the rows of the probe set in order: index of the part, first row in it, number of rows."""
    slots: dict[str, str]
    """Output slot -> the array with its values as they are."""

    @property
    def digest(self) -> str:
        """Digest of all of it, part of what a probe set means."""
        return digests.IDENTITY.hex_of_json(self.as_json())

    def as_json(self) -> dict[str, Any]:
        """Return the record as JSON data."""
        return self.model_dump(mode="json", by_alias=True)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Rows of a probe set that lie in one shard of one run of the source."""

    part: int
    shard: int
    at: slice
    """Their positions in the probe set's shard."""
    rows: range
    """Their rows in the run."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredSlot:
    """An output of some rows as it is stored; integers become values as rows are taken, a batch at a time."""

    stored: np.ndarray
    dims: Sequence[str]
    beside: Mapping[str, np.ndarray]
    """What integers are scaled by, by suffix; {} for values."""
    beside_dims: Sequence[str]

    @classmethod
    def of(
        cls, array: layout.ArrayPlan, arrays: Mapping[str, layout.ArrayPlan], blocks: Mapping[str, np.ndarray]
    ) -> "StoredSlot":
        """Return an array of some rows, with those beside it."""
        names = float_values.beside(array.attributes)
        return cls(
            stored=blocks[array.name],
            dims=array.dims,
            beside={suffix: blocks[name] for suffix, name in names.items()},
            beside_dims=arrays[names["scale"]].dims if names else (),
        )

    @property
    def row_bytes(self) -> int:
        """Bytes of the values of a row."""
        size = 4 if self.beside else self.stored.itemsize
        return size * int(np.prod(self.stored.shape[1:]))

    def values(self, rows: slice | np.ndarray) -> np.ndarray:
        """Return the values of some rows, float16 or float32."""
        if not self.beside:
            return self.stored[rows]
        beside = {suffix: array[rows] for suffix, array in self.beside.items()}
        return float_values.decoded(self.stored[rows], self.dims, beside, self.beside_dims)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What the source stores of the rows of a piece; all arrays `[rows, ...]`.

    `status` is that of the source; where it is not 1, the values mean nothing.
    """

    slots: Mapping[str, StoredSlot]
    status: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    orientations: np.ndarray
    affines: np.ndarray
    reasons: Mapping[int, str]
    """Position -> why the row is unreadable."""
    input_sha256: Sequence[str]
    """Digests of the input files; [] if the source has none."""
    origin: Mapping[str, Any]
    """Entry of `DETAILS`: part, shard, the digest of its record, and of the objects read and their values."""


class Source:
    """The source of a probe set, opened; its runs are opened when they are first read, and compared with the record.

    Raises:
        StoreError: the record is damaged, or the source is not where it was.
    """

    def __init__(self, record: SourceRecord, place: str) -> None:
        self.record = record
        self.place = place
        self._parts: dict[int, RunFolder] = {}
        self._committed: dict[int, set[int]] = {}
        runs = np.array(record.rows, np.int64).reshape(-1, 3)
        self._starts = np.cumsum([0, *runs[:, 2]])
        self._runs = runs

    @classmethod
    def of(cls, probes: RunFolder) -> "Source":
        """Return the source of a probe set; raises as the class."""
        record = read(probes.objects)
        if sum(count for _, _, count in record.rows) != probes.manifest.rows:
            raise errors.StoreError(
                f"{join(probes.root, SOURCE)!r} is damaged: it has another number of rows; restore it from a copy"
            )
        return cls(record, place(probes.objects))

    def part(self, index: int) -> RunFolder:
        """Open a run of the source.

        Raises:
            StoreError: it is missing, or not the one that was probed.
        """
        if index not in self._parts:
            known = self.record.parts[index]
            where = join(self.place, f"parts/{known.name}") if known.name else self.place
            try:
                run = RunFolder(to_root(where))
            except errors.InputError as error:
                raise errors.StoreError(
                    f"the source of the probes is not there ({error}): restore it, or give its new place to genenc "
                    "probe with the same options and --out"
                ) from error
            if (run.store.document, run.store.plan.fingerprint) != (known.store, known.fingerprint):
                raise errors.OtherRunError(
                    f"{where!r} is another run than the one that was probed ({_difference(known, run)}): put that one "
                    "back there, give its place to genenc probe with the same options and --out, or probe this one to "
                    "another --out"
                )
            missing = {*self.record.slots.values()} - {array.name for array in run.store.plan.arrays}
            if missing:
                raise errors.StoreError(f"{where!r} has no array {min(missing)!r}: the record of the source is damaged")
            self._parts[index] = run
        return self._parts[index]

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Yield the pieces of rows [start, stop) of the probe set, in order."""
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        at = start
        while at < stop:
            part, row, _ = self._runs[first].tolist()
            row += at - int(self._starts[first])
            size = self.part(part).store.plan.shard_rows
            count = min(stop - at, int(self._starts[first + 1]) - at, size - row % size)
            here = slice(at - start, at - start + count)
            yield Piece(part=part, shard=row // size, at=here, rows=range(row, row + count))
            at += count
            first += at == self._starts[first + 1]

    def is_committed(self, start: int, stop: int) -> bool:
        """Return whether all of these rows of the probe set are committed in the source, as of the first call."""
        for piece in self.pieces(start, stop):
            if piece.part not in self._committed:
                self._committed[piece.part] = self.part(piece.part).store.committed()
            if piece.shard not in self._committed[piece.part]:
                return False
        return True

    def read(self, piece: Piece) -> Stored:
        """Read what the source stores of a piece; every object is compared with its commit record.

        Raises:
            StoreError: it is not committed, missing or damaged.
        """
        run = self.part(piece.part)
        arrays = {array.name: array for array in run.store.plan.arrays}
        found = run.store.values(piece.shard, {*self._arrays(run), *_SIZES, layout.STATUS})
        if found is None:
            raise errors.StoreError(
                f"shard {piece.shard} of {run.root!r} is not committed: genenc resume {argument(run.root)} encodes it"
            )
        records_read, blocks = found
        record = records_read[-1]
        at = slice(piece.rows.start - record.rows[0], piece.rows.stop - record.rows[0])
        blocks = {name: block[at] for name, block in blocks.items()}
        unreadable = [item for item in record.details.get("unreadable", ()) if item["row"] in piece.rows]
        height, width, orientation, affine = (blocks[name] for name in _SIZES)
        return Stored(
            slots={slot: StoredSlot.of(arrays[name], arrays, blocks) for slot, name in self.record.slots.items()},
            status=blocks[layout.STATUS],
            heights=height,
            widths=width,
            orientations=orientation,
            affines=affine,
            reasons={item["row"] - piece.rows.start: str(item["reason"]) for item in unreadable},
            input_sha256=[*map(str, record.details.get("input_sha256", ()))][at],
            origin=self._origin(piece, record),
        )

    def _arrays(self, run: RunFolder) -> list[str]:
        """Return the arrays that the slots are read from, with those that scale integers, sorted."""
        attributes = {array.name: array.attributes for array in run.store.plan.arrays}
        slots = set(self.record.slots.values())
        return sorted(slots.union(*(float_values.beside(attributes[slot]).values() for slot in slots)))

    def _origin(self, piece: Piece, record: CommitRecord) -> dict[str, Any]:
        arrays = {item.key.partition("/")[0]: item for item in record.objects}
        names = self._arrays(self.part(piece.part))
        return {
            "part": self.record.parts[piece.part].name,
            "shard": record.shard,
            "attempt": record.attempt,
            "generation": record.generation,
            "objects": {name: arrays[name].digest for name in names},
            "values": {name: arrays[name].content_digest for name in names},
        }

    def changed(self, record: CommitRecord | None) -> str:
        """Return how the values that a shard of the probe set was made from have changed since, "" if they have not.

        Rows that were healed are no change.

        Raises:
            StoreError: the source is missing, damaged or another run, or the record does not say what was read.
        """
        try:
            return "" if record is None else self._changed(record.details[DETAILS])
        except (KeyError, TypeError, AttributeError) as error:
            raise errors.StoreError(f"a commit record does not say what was read ({errors.reason(error)})") from error

    def _changed(self, origins: Sequence[Mapping[str, Any]]) -> str:
        index = {part.name: number for number, part in enumerate(self.record.parts)}
        for origin in origins:
            if origin["part"] not in index:
                return f"the source has no part {origin['part']!r}"
            run = self.part(index[origin["part"]])
            history = run.store.history(origin["shard"])
            if any((each.attempt, each.generation) == (origin["attempt"], origin["generation"]) for each in history):
                continue
            objects = history[0].objects if history else ()
            now = {item.key.partition("/")[0]: item.content_digest for item in objects}
            if any(now.get(name) != digest for name, digest in origin["values"].items()):
                state = "encoded again, with other values" if history else "no longer committed"
                return f"shard {origin['shard']} of {run.root!r} was {state}"
        return ""


def stored_slots(run: RunFolder) -> dict[str, str]:
    """Return the output slots that a run stores as they are -> the array; the most exact is preferred."""
    # Imported late: torch, which reading does not need.
    from genenc_core.run import tiles

    found = RuntimeModelSpec.from_json(run.objects.read(MODEL_SPEC).decode())
    _, built = tiles.recorded_products(run, found)
    whole = [product for product in built if product.pipeline.is_identity]
    slots = {product.slot: product.name for product in sorted(whole, key=lambda each: _EXACT.index(each.dtype))}
    return {slot.name: slots[slot.name] for slot in found.outputs if slot.name in slots}


def read(objects: Objects) -> SourceRecord:
    """Return the record of a probe set's source.

    Raises:
        StoreError: missing or damaged.
    """
    try:
        found = SourceRecord.model_validate_json(digests.canonical_json(records.read_json(objects, SOURCE)))
    except pydantic.ValidationError as error:
        raise errors.StoreError(
            f"{join(objects.name, SOURCE)!r} is damaged: {errors.reason(error)}; restore it from a copy"
        ) from error
    if any(part >= len(found.parts) for part, _, _ in found.rows):
        raise errors.StoreError(f"{join(objects.name, SOURCE)!r} is damaged: it has rows of no part")
    return found


def place(objects: Objects) -> str:
    """Return where the source of a probe set is.

    Raises:
        StoreError: the record is missing or damaged.
    """
    found = records.read_json(objects, PLACE).get("place")
    if not isinstance(found, str) or not found:
        raise errors.StoreError(f"{join(objects.name, PLACE)!r} is damaged: it names no place")
    return found


def note_place(objects: Objects, now: str) -> None:
    """Record where the source is, unless that is recorded already.

    Raises:
        StoreError: it cannot be written.
    """
    if objects.size(PLACE) is None or place(objects) != now:
        records.write_json(objects, PLACE, {"place": now})


def _difference(known: Part, run: RunFolder) -> str:
    if known.fingerprint != run.store.plan.fingerprint:
        return f"fingerprint {known.fingerprint[:12]} -> {run.store.plan.fingerprint[:12]}"
    return "the same command created it again"


def ready(probes: RunFolder, shards: Sequence[int]) -> list[int]:
    """Return those of the shards whose rows are all committed in the source.

    Raises:
        StoreError: the source is missing, damaged or another run.
    """
    source = Source.of(probes)
    return [shard for shard in shards if source.is_committed(*probes.store.shard_range(shard))]


def notes(probes: RunFolder) -> list[str]:
    """Return what has become of the source of a probe set, as lines of text; [] if nothing did.

    Reads no commit record of runs that have a tally.
    """
    try:
        source = Source.of(probes)
        if source.record.version is not None:
            for index in range(len(source.record.parts)):
                source.part(index)
            return []
        return [*_waiting(probes, source), *_healed(probes, source)]
    except (errors.StoreError, errors.InputError) as error:
        return [f"source: {error}"]


def _waiting(probes: RunFolder, source: Source) -> Iterator[str]:
    pending = probes.store.pending()
    missing = [shard for shard in pending if not source.is_committed(*probes.store.shard_range(shard))]
    if missing:
        run = source.part(0)
        yield (
            f"source: {plural(len(missing), 'shard')} not committed there yet: genenc resume {argument(run.root)}, "
            f"then genenc resume {argument(probes.root)}"
        )


def _healed(probes: RunFolder, source: Source) -> Iterator[str]:
    from genenc_core.run import status  # it builds on this module

    run = source.part(0)
    known, now = status.unreadable_by_shard(probes), status.unreadable_by_shard(run)
    each = run.store.plan.shard_rows // probes.store.plan.shard_rows
    rows = 0
    for shard, count in now.items():
        own = range(shard * each, min((shard + 1) * each, probes.store.shard_count))
        if all(of in known for of in own):
            rows += max(sum(known[of] for of in own) - count, 0)
    if rows:
        yield (
            f"source: {plural(rows, 'row')} healed there since: genenc resume {argument(probes.root)} --shards "
            "unreadable takes them over"
        )


def changes(probes: RunFolder) -> Iterator[str]:
    """Yield how the source differs from what the committed shards of a probe set were made from; reads all records.

    Rows that were healed are no difference; what `notes` says is not said again.
    """
    try:
        source = Source.of(probes)
        for shard in sorted(probes.store.committed()):
            record = probes.store.record(shard)
            if said := source.changed(record):
                yield said
    except (errors.StoreError, errors.InputError):  # said by `notes`, or of the probes themselves by `verify`
        return
