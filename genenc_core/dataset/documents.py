"""The documents of a dataset: what its parts have in common, and its versions.

They are validated on reading because folders are untrusted.
"""

import dataclasses
import json
import re
import uuid
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import pydantic

from genenc_core import errors
from genenc_core.dataset import part_arrays
from genenc_core.run import folder, records
from genenc_core.store.backends.objects import Objects, join
from genenc_core.system import digests

DATASET: Final = folder.DATASET
SETTINGS: Final = "update.json"
"""Parameters of the last update, for what the next one is not given; replaced atomically, and may be missing."""
PARTS: Final = "parts"
VERSIONS: Final = "versions"
TAGS: Final = "tags"
PIXELS: Final = "pixels"
FIRST_COMPACTED: Final = 500_000_000
"""Parts of this number and above were made by compaction: no update continues them, or takes them for its own."""
DATASET_SCHEMA: Final = "genenc.dataset/1"
VERSION_SCHEMA: Final = "genenc.version/1"
COUNTS: Final = (
    *("rows", "unreadable", "new", "changed", "withdrawn", "renamed", "touched", "not_encoded"),
    *("points_changed", "retried"),
)
"""Counts of a version: its rows and the unreadable ones of them, and what it changed."""
Kind = TypeVar("Kind", bound=pydantic.BaseModel)
MOST_ROWS: Final = 2**33
"""Rows that a version may store: one bit of each is kept in memory as a byte."""
_STRICT = pydantic.ConfigDict(strict=True, frozen=True)
_PART = re.compile(r"p(\d{6,9})")
_VERSION = re.compile(r"v(\d{6,9})\.json")
_CHANGES = re.compile(r"v([0-9]{6,9})-[0-9a-f]{8,64}\.parquet")
_HOLD = re.compile(r"\.v([0-9]{6,9})\.[0-9a-z]+\.hold")
_TAG = re.compile(r"(?!v[0-9]{1,9}$)[A-Za-z][A-Za-z0-9._-]{0,99}")


class Meaning(pydantic.BaseModel):
    """`dataset.json`: what all parts have in common."""

    model_config = _STRICT

    schema_: str = pydantic.Field(alias="schema", pattern="^genenc.dataset/1$")
    identity: dict[str, Any]
    """The identity of its runs without their images."""
    points: list[str]
    """Names of the points, in the order of the arrays."""
    individuals: list[str] = []
    """The individual of each point, "" for none; [] if the labels name none.

    Not set in datasets with points whose labels were read without their individuals.
    """
    regions: str | None = None
    """The scale of the regions' coordinates, as `PointsScale.text`, or `PIXELS`; None: its images have no regions."""


class Part(pydantic.BaseModel):
    """One part of a version: a run that is not changed any more."""

    model_config = _STRICT

    name: str = pydantic.Field(pattern="^p[0-9]{6,9}$")
    rows: int = pydantic.Field(ge=1, le=MOST_ROWS)
    store: str
    """Digest of its `_txn/store.json`."""
    values: str
    """Digest of what its rows decode to."""
    template: pydantic.NonNegativeInt
    """Index into the version's templates."""
    chunks: dict[str, tuple[pydantic.NonNegativeInt, pydantic.NonNegativeInt]]
    """As `part_arrays.Chunks`."""
    regions: int | None = pydantic.Field(default=None, ge=0, le=MOST_ROWS)
    """Regions of its images; None in datasets without."""
    region_places: int | None = pydantic.Field(default=None, ge=0, le=MOST_ROWS)
    """Length of its axis `region`, some of whose places are no region."""

    @property
    def number(self) -> int:
        """Its number."""
        return int(self.name[1:])


class ChangesFile(pydantic.BaseModel):
    """The file with the rows of parts that a version does not have, or has under another name."""

    model_config = _STRICT

    file: str = pydantic.Field(pattern=f"^{_CHANGES.pattern}$")
    rows: pydantic.PositiveInt
    digest: str


class Version(pydantic.BaseModel):
    """`versions/v000001.json`: parts in order, and which of their rows are current."""

    model_config = _STRICT

    schema_: str = pydantic.Field(default=VERSION_SCHEMA, alias="schema", pattern="^genenc.version/1$")
    version: pydantic.PositiveInt
    previous: str
    """Digest of the document of the version before; "" for the first."""
    parts: list[Part]
    templates: list[dict[str, dict[str, Any]]]
    last_part: pydantic.PositiveInt
    """Highest number of a part that this or an earlier version has, or passed over."""
    changes: ChangesFile | None
    counts: dict[str, pydantic.NonNegativeInt]
    made: dict[str, Any]
    """When, by which command, session and version of genenc; how files were compared; the images."""

    @property
    def key(self) -> str:
        """Key of its document."""
        return version_key(self.version)

    @property
    def stored_rows(self) -> int:
        """Rows of all its parts, current or not."""
        return sum(part.rows for part in self.parts)


@dataclasses.dataclass(frozen=True, slots=True)
class Written:
    """A version with the digest of its document."""

    version: Version
    digest: str


def part_name(number: int) -> str:
    """Return the name of a part."""
    return f"p{number:06d}"


def part_number(name: str) -> int | None:
    """Return the number of a part by its name; None for other names."""
    found = _PART.fullmatch(name)
    return int(found[1]) if found and name == part_name(int(found[1])) and int(found[1]) else None


def is_compacted(number: int) -> bool:
    """Return whether a part was made by compaction, by its number."""
    return number >= FIRST_COMPACTED


def version_key(number: int) -> str:
    """Return the key of a version's document."""
    return f"{VERSIONS}/v{number:06d}.json"


def version_number(name: str) -> int | None:
    """Return the number of a version by its file name; None for other names."""
    found = _VERSION.fullmatch(name)
    return int(found[1]) if found and f"{VERSIONS}/{name}" == version_key(int(found[1])) and int(found[1]) else None


def changes_number(name: str) -> int | None:
    """Return the number of the version that a file of row changes was written for; None for other names."""
    found = _CHANGES.fullmatch(name)
    return int(found[1]) if found else None


def pruned_key(number: int) -> str:
    """Return the key of the mark of a version that is pruned, or about to be."""
    return f"{VERSIONS}/v{number:06d}.pruned.json"


def pruned_number(name: str) -> int | None:
    """Return the number of the version that a mark is of, by its file name; None for other names."""
    return version_number(name.replace(".pruned.json", ".json")) if name.endswith(".pruned.json") else None


def tag_key(name: str) -> str:
    """Return the key of a tag.

    Raises:
        InputError: not a valid name.
    """
    if not _TAG.fullmatch(name):
        raise errors.InputError(
            f"{name!r} cannot be a tag: give a letter, then letters, digits, '.', '_' and '-', at most 100, and not v "
            "with a number, which is a version"
        )
    return f"{TAGS}/{name}.json"


def read_tag(objects: Objects, name: str) -> tuple[int, str] | None:
    """Return the version that a tag names, and when that was set as ISO 8601 ("" if not recorded); None for no tag.

    Raises:
        InputError: not a valid name.
        StoreError: it is damaged or cannot be read.
    """
    key = tag_key(name)
    try:
        content = records.read_json(objects, key)
    except errors.StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    number = content.get("version")
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise errors.StoreError(
            f"{join(objects.name, key)!r} is damaged: it names no version; set the tag again, or remove it"
        )
    return number, str(content.get("time", ""))


def hold_key(number: int) -> str:
    """Return a new key for a hold: a file that keeps a version from being pruned while a tag of it is being set."""
    return f"{TAGS}/.v{number:06d}.{uuid.uuid4().hex}.hold"


def held_number(name: str) -> int | None:
    """Return the number of the version that a hold is of, by its file name; None for other names."""
    match = _HOLD.fullmatch(name)
    return int(match[1]) if match else None


def meaning_to_json(
    identity: Mapping[str, Any], points: list[str], individuals: list[str], regions: str | None = None
) -> dict[str, Any]:
    """Return the content of `dataset.json`."""
    more = {**({"individuals": individuals} if points else {}), **({} if regions is None else {"regions": regions})}
    return {"schema": DATASET_SCHEMA, "identity": dict(identity), "points": points, **more}


def read_meaning(objects: Objects) -> Meaning:
    """Read `dataset.json`.

    Raises:
        StoreError: missing or damaged.
    """
    return _validated(Meaning, records.read_json(objects, DATASET), join(objects.name, DATASET))


def version_to_bytes(version: Version) -> bytes:
    """Serialise a version with its seal."""
    found = version.model_dump(mode="json", by_alias=True)
    if all(part.regions is None for part in version.parts):  # as documents were before there were regions
        for part in found["parts"]:
            del part["regions"], part["region_places"]
    return records.dumps(found)


def read_version(objects: Objects, number: int) -> Written:
    """Read a version's document.

    Raises:
        StoreError: missing or damaged.
    """
    key = version_key(number)
    document = records.read_json(objects, key)
    found = _validated(Version, document, join(objects.name, key))
    if found.version != number:
        raise errors.StoreError(f"{join(objects.name, key)!r} is of version {found.version}: the dataset is damaged")
    where = repr(join(objects.name, key))
    if found.stored_rows > MOST_ROWS:
        raise errors.StoreError(f"{where} is damaged: it has {found.stored_rows} rows, more than {MOST_ROWS}")
    for template in found.templates:
        part_arrays.refuse_invalid(template, subject=where)
    for part in found.parts:
        if part.template >= len(found.templates) or found.templates[part.template].keys() != part.chunks.keys():
            raise errors.StoreError(f"{where} is damaged: the arrays of {part.name!r} are not described")
    return Written(found, digests.VERSION.named(records.dumps(document)))


def _validated(kind: type[Kind], document: Mapping[str, Any], where: str) -> Kind:
    try:
        return kind.model_validate_json(json.dumps(document))  # through JSON, so that lists are accepted as tuples
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise errors.StoreError(
            f"{where!r} is not valid ({place}: {str(first['msg'])[:200]}): the dataset is damaged, or made by a later "
            "version of genenc"
        ) from error
