"""What a run folder will hold, decided before data flows: arrays, coordinates, shards, and their JSON form."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np

from genenc_core import errors
from genenc_core.store import forms

STATUS: Final = "status"
NOT_WRITTEN: Final = 0
OK: Final = 1
UNREADABLE: Final = 2
LARGEST_SHARDS: Final = 2**24
STATUS_MEANINGS: Final = ("not_written", "ok", "unreadable")

_NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayPlan:
    """One array that the shards fill; axis 0 is the images.

    A Zarr shard is `shard_rows` rows of it with all other axes whole, so one commit writes one object.
    """

    name: str
    shape: tuple[int, ...]
    """Whole array, [images, ...]."""
    dtype: str
    """A numpy name: float16, float32, uint8, ..."""
    dims: tuple[str, ...]
    """One name per axis; the first is `image`."""
    chunk_rows: int
    """Rows of the smallest readable block; divides the plan's shard_rows."""
    fill: float | int
    """What a reader sees where nothing was committed."""
    attributes: Mapping[str, object]
    compress: bool
    """zstd level 1; without it only the checksum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatePlan:
    """One array that the creator writes whole, before any shard: ids, paths, point names and positions."""

    name: str
    dims: tuple[str, ...]
    """`image` first: as many rows as the plan; any other first name: as many as `values` hold."""
    values: Iterable[Any]
    """A numpy array, a list of str, or an iterable of such blocks along axis 0, consumed once."""
    kind: str
    """`string` or a numeric numpy name."""
    attributes: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePlan:
    """All of a run's arrays and what makes it this run.

    Raises:
        StoreError: a rule is broken; the message lists every one.
    """

    rows: int
    shard_rows: int
    arrays: tuple[ArrayPlan, ...]
    fingerprint: str
    identity: Mapping[str, Any]
    """What the fingerprint is made of, readable; nested mappings allowed."""
    attributes: Mapping[str, object]
    """Root attributes of the Zarr group."""

    def __post_init__(self) -> None:
        found = list(_plan_problems(self))
        if found:
            raise errors.StoreError("store plan: " + "; ".join(found))

    @property
    def shard_count(self) -> int:
        """Number of shards; the last may be short."""
        return -(-self.rows // self.shard_rows)

    @property
    def all_arrays(self) -> tuple[ArrayPlan, ...]:
        """The arrays in promotion order: the planned ones, then `status`."""
        return (*self.arrays, status_plan(self))

    def shard_range(self, shard: int) -> tuple[int, int]:
        """Return the rows [start, stop) of a shard.

        Raises:
            StoreError: no such shard.
        """
        if not 0 <= shard < self.shard_count:
            raise errors.StoreError(f"shard {shard} does not exist: this run has shards 0 to {self.shard_count - 1}")
        start = shard * self.shard_rows
        return start, min(start + self.shard_rows, self.rows)


def status_plan(plan: StorePlan) -> ArrayPlan:
    """Return the uint8 [image] array that says which rows are final; flags as in CF conventions 3.5."""
    return ArrayPlan(
        name=STATUS,
        shape=(plan.rows,),
        dtype="uint8",
        dims=("image",),
        chunk_rows=plan.shard_rows,
        fill=NOT_WRITTEN,
        attributes={
            "long_name": "state of the image's row",
            "flag_values": list(range(len(STATUS_MEANINGS))),
            "flag_meanings": " ".join(STATUS_MEANINGS),
        },
        compress=True,
    )


def chunk_key(array: ArrayPlan, shard: int) -> str:
    """Return the object of one shard, relative to the Zarr group: `name/c.12.0.0`."""
    return f"{array.name}/" + ".".join(["c", str(shard), *["0"] * (len(array.shape) - 1)])


def plan_to_json(plan: StorePlan) -> dict[str, Any]:
    """Return the plan as JSON values; a fill that JSON cannot hold becomes Zarr's word for it (`NaN`)."""
    value = asdict(plan)
    for array in value["arrays"]:
        array["fill"] = array["fill"] if math.isfinite(array["fill"]) else _FILL_WORDS[str(float(array["fill"]))]
    normal: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
    return normal


def plan_from_json(value: Mapping[str, Any]) -> StorePlan:
    """Return the plan that `plan_to_json` wrote.

    Raises:
        StoreError: a field is missing or has the wrong form.
    """
    try:
        arrays = tuple(
            ArrayPlan(
                **{
                    **array,
                    "shape": tuple(array["shape"]),
                    "dims": tuple(array["dims"]),
                    "fill": float(array["fill"]) if isinstance(array["fill"], str) else array["fill"],
                }
            )
            for array in value["arrays"]
        )
        _check_types(value, arrays)
        return StorePlan(**{**value, "arrays": arrays})
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        told = repr(error)[:300]
        raise errors.StoreError(f"the stored plan cannot be read ({told}); the run folder is damaged") from error


def _check_types(value: Mapping[str, Any], arrays: Sequence[ArrayPlan]) -> None:
    """Raise `ValueError` when a stored entry is not of its type."""
    for number in (value["rows"], value["shard_rows"]):
        forms.count(number)
    if value["rows"] > LARGEST_SHARDS * max(value["shard_rows"], 1):
        raise ValueError(f"more than {LARGEST_SHARDS} shards")
    forms.word(value["fingerprint"])
    for array in arrays:
        for size in (*array.shape, array.chunk_rows):
            forms.count(size)
        for text in (array.name, array.dtype, *array.dims):
            forms.word(text)
        forms.mapping(array.attributes)
        if not isinstance(array.compress, bool):
            raise ValueError(f"array {array.name!r}: compress is true or false")
    for entry in ("identity", "attributes"):
        forms.mapping(value[entry])


def describe_identity(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return how two identities differ, entry by entry: `model.name: 'a' -> 'b'; ...`."""
    before, after = _flat(old), _flat(new)
    return "; ".join(
        f"{key}: {before.get(key, 'none')!r} -> {after.get(key, 'none')!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    )


_FILL_WORDS: Final[Mapping[str, str]] = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            found |= _flat(inner, f"{prefix}{key}.")
        else:
            found[prefix + key] = list(inner) if isinstance(inner, tuple) else inner
    return found


def _plan_problems(plan: StorePlan) -> Iterable[str]:
    if plan.rows < 1:
        yield f"rows must be at least 1, got {plan.rows}"
    if plan.shard_rows < 1:
        yield f"shard_rows must be at least 1, got {plan.shard_rows}"
    if not plan.fingerprint:
        yield "the fingerprint must not be empty"
    names = [array.name for array in plan.arrays]
    yield from (f"array name {name!r} is used twice" for name in sorted(set(names)) if names.count(name) > 1)
    for array in plan.arrays:
        yield from (f"array {array.name!r}: {problem}" for problem in _array_problems(array, plan))
    yield from _json_problems("identity", plan.identity)
    yield from _json_problems("attributes", plan.attributes)


def _array_problems(array: ArrayPlan, plan: StorePlan) -> Iterable[str]:
    yield from name_problems(array.name)
    if not array.shape or array.shape[0] != plan.rows or any(size < 1 for size in array.shape):
        yield f"shape must be ({plan.rows}, ...) without zeros, got {array.shape}"
    yield from dims_problems(array.dims, rank=len(array.shape))
    if array.dims[:1] != ("image",):
        yield f"the first dim must be 'image', got {array.dims}"
    if array.chunk_rows < 1 or plan.shard_rows % max(array.chunk_rows, 1):
        yield f"chunk_rows must divide shard_rows {plan.shard_rows}, got {array.chunk_rows}"
    yield from _json_problems("attributes", array.attributes)
    try:
        dtype = np.dtype(array.dtype)
    except (TypeError, ValueError, SyntaxError):  # numpy parses what looks like a list of types
        yield f"unknown dtype {array.dtype!r}"
        return
    fill: object = array.fill  # may come from a caller that no type checker saw, e.g. a numpy scalar
    if not isinstance(fill, int | float):
        yield f"fill must be a Python number, got {fill!r}"
        return
    if dtype.kind not in "fiu" or dtype.name != array.dtype:
        yield f"dtype must be a numpy float or integer name such as 'float16', got {array.dtype!r}"
    elif dtype.kind in "iu" and (not math.isfinite(array.fill) or array.fill != dtype.type(array.fill)):
        yield f"fill {array.fill} is not a value of {array.dtype}"


def name_problems(name: str) -> Iterable[str]:
    """Yield why `name` cannot be a node of the Zarr group written by a plan."""
    if name == STATUS:
        yield "the store adds the array 'status' by itself"
    if not _NODE_NAME.fullmatch(name):
        yield f"name {name!r} must be letters, digits, '_' or '-'"


def dims_problems(dims: Sequence[str], *, rank: int) -> Iterable[str]:
    """Yield why `dims` cannot name the axes of an array of `rank` axes."""
    if len(dims) != rank or len(set(dims)) != len(dims):
        yield f"dims must be {rank} different names, got {tuple(dims)}"


def _json_problems(label: str, value: Mapping[str, object]) -> Iterable[str]:
    try:
        json.dumps(value, allow_nan=False, sort_keys=True).encode()
    except (TypeError, ValueError) as error:
        yield f"{label} must be JSON: {error}"
