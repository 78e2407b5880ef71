"""Layout of a run folder: arrays, coordinates and shards, their JSON form, and validation of shards."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np

from genenc_core import errors, statuses, stored_arrays
from genenc_core.store import documents

STATUS: Final = stored_arrays.STATUS
REGION: Final = stored_arrays.REGION
LARGEST_SHARDS: Final = 2**24

_NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayPlan:
    """One array filled shard by shard; axis 0 is the images, or the regions of the images.

    A Zarr shard spans `shard_rows` images, or the `region_places` of a shard, and every other axis in full, so each
    commit writes one object. Its chunks span the other axes in full, too, unless `chunk_tail` divides them.
    """

    name: str
    shape: tuple[int, ...]
    """Shape of the whole array, [images or places of regions, ...]."""
    dtype: str
    """NumPy name: float16, float32, uint8, ..."""
    dims: tuple[str, ...]
    """One name per axis; the first is `image` or `region`."""
    chunk_rows: int
    """Rows of the smallest readable block; divides those of a shard."""
    fill: float | int
    """Value of uncommitted rows."""
    attributes: Mapping[str, object]
    compress: bool
    """zstd level 1 plus checksum if true, checksum only if false."""
    chunk_tail: tuple[int, ...] = ()
    """Lengths of the smallest readable block along the other axes; () for each in full."""

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of the smallest readable block."""
        return (self.chunk_rows, *(self.chunk_tail or self.shape[1:]))

    @property
    def object_tail(self) -> tuple[int, ...]:
        """Lengths of a shard along the other axes: those of the array, up to a multiple of the chunk's."""
        chunks = zip(self.shape[1:], self.chunk_tail or self.shape[1:], strict=True)
        return tuple(-(-size // chunk) * chunk for size, chunk in chunks)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatePlan:
    """One array written in full at creation, before any shard: ids, paths, point names and positions."""

    name: str
    dims: tuple[str, ...]
    """If the first is `image`, the length is the plan's `rows`; otherwise that of `values`."""
    values: Iterable[Any]
    """A numpy array, a list of str, or an iterable of such blocks along axis 0, consumed once."""
    kind: str
    """`string` or a numeric NumPy name."""
    attributes: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePlan:
    """All arrays of a run, and its identity.

    Raises:
        StoreError: the plan is invalid; the message lists every problem.
    """

    rows: int
    shard_rows: int
    arrays: tuple[ArrayPlan, ...]
    fingerprint: str
    identity: Mapping[str, Any]
    """Readable form of what the fingerprint covers; nested mappings allowed."""
    attributes: Mapping[str, object]
    """Root attributes of the Zarr group."""
    region_places: int = 0
    """Places that a shard has on the axis `region`; 0 in a run without regions."""

    def __post_init__(self) -> None:
        problems = list(_plan_problems(self))
        if problems:
            raise errors.StoreError("invalid store plan: " + "; ".join(problems))

    @property
    def shard_count(self) -> int:
        """Number of shards; the last may be short."""
        return -(-self.rows // self.shard_rows)

    @property
    def all_arrays(self) -> tuple[ArrayPlan, ...]:
        """The arrays in promotion order: the planned ones, then `status`."""
        return (*self.arrays, status_plan(self))

    @property
    def region_arrays(self) -> frozenset[str]:
        """Names of the arrays `[region, ...]`."""
        return frozenset(array.name for array in self.arrays if array.dims[0] == REGION)

    def shard_range(self, shard: int) -> tuple[int, int]:
        """Return the rows [start, stop) of a shard.

        Raises:
            StoreError: no such shard.
        """
        if not 0 <= shard < self.shard_count:
            raise errors.StoreError(f"shard {shard} does not exist: this run has shards 0 to {self.shard_count - 1}")
        start = shard * self.shard_rows
        return start, min(start + self.shard_rows, self.rows)


def object_rows(plan: StorePlan, array: ArrayPlan) -> int:
    """Return the rows that a shard has of an array: images, or places of regions."""
    return plan.region_places if array.dims[0] == REGION else plan.shard_rows


def rows_of(plan: StorePlan, array: ArrayPlan, shard: int) -> tuple[int, int]:
    """Return the rows [start, stop) of an array that a shard has; raises as `StorePlan.shard_range`."""
    start, stop = plan.shard_range(shard)
    if array.dims[0] == REGION:
        return shard * plan.region_places, (shard + 1) * plan.region_places
    return start, stop


def status_plan(plan: StorePlan) -> ArrayPlan:
    """Return the plan of the uint8 [image] array that marks the final rows."""
    return array_plan(stored_arrays.get(STATUS), {"image": plan.rows}, chunk_rows=plan.shard_rows)


def array_plan(array: stored_arrays.StoredArray, lengths: Mapping[str, int], *, chunk_rows: int) -> ArrayPlan:
    """Return the plan of an array that every run stores; `lengths` gives the run's own axes."""
    assert array.fill is not None
    return ArrayPlan(
        name=array.name,
        shape=tuple({**stored_arrays.LENGTHS, **lengths}[dim] for dim in array.dims),
        dtype=array.dtype,
        dims=array.dims,
        chunk_rows=chunk_rows,
        fill=array.fill,
        attributes=array.attributes,
        compress=True,
    )


def chunk_key(array: ArrayPlan, shard: int) -> str:
    """Return the object key of one shard, relative to the Zarr group: `name/c.12.0.0`."""
    return f"{array.name}/" + ".".join(["c", str(shard), *["0"] * (len(array.shape) - 1)])


def plan_to_json(plan: StorePlan) -> dict[str, Any]:
    """Return the plan as JSON values; non-finite fills become Zarr's names for them (`NaN`)."""
    value = asdict(plan)
    for array in value["arrays"]:
        array["fill"] = array["fill"] if math.isfinite(array["fill"]) else _FILL_NAMES[str(float(array["fill"]))]
        if not array["chunk_tail"]:  # as in runs of earlier versions
            del array["chunk_tail"]
    if not plan.region_places:  # as plans were before there were regions
        del value["region_places"]
    normal: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
    return normal


def plan_from_json(value: Mapping[str, Any]) -> StorePlan:
    """Parse a plan written by `plan_to_json`.

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
                    "chunk_tail": tuple(array.get("chunk_tail", ())),
                    "fill": float(array["fill"]) if isinstance(array["fill"], str) else array["fill"],
                }
            )
            for array in value["arrays"]
        )
        _check_types(value, arrays)
        return StorePlan(**{**value, "arrays": arrays})
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        reason = repr(error)[:300]
        raise errors.StoreError(f"the stored plan cannot be read ({reason}); the run folder is damaged") from error


def _check_types(value: Mapping[str, Any], arrays: Sequence[ArrayPlan]) -> None:
    """Raise `ValueError` for a stored entry of the wrong type."""
    for number in (value["rows"], value["shard_rows"], value.get("region_places", 0)):
        documents.count(number)
    if value["rows"] > LARGEST_SHARDS * max(value["shard_rows"], 1):
        raise ValueError(f"more than {LARGEST_SHARDS} shards")
    documents.word(value["fingerprint"])
    for array in arrays:
        for size in (*array.shape, array.chunk_rows, *array.chunk_tail):
            documents.count(size)
        for text in (array.name, array.dtype, *array.dims):
            documents.word(text)
        documents.mapping(array.attributes)
        if not isinstance(array.compress, bool):
            raise ValueError(f"array {array.name!r}: compress must be true or false")
    for entry in ("identity", "attributes"):
        documents.mapping(value[entry])


def describe_identity(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Describe how two identities differ, entry by entry: `model.name: 'a' -> 'b'; ...`."""
    before, after = _flat(old), _flat(new)
    return "; ".join(
        f"{key}: {before.get(key, 'none')!r} -> {after.get(key, 'none')!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    )


_FILL_NAMES: Final[Mapping[str, str]] = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= _flat(inner, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(inner) if isinstance(inner, tuple) else inner
    return flat


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
    of_regions = array.dims[:1] == (REGION,) and plan.region_places > 0
    rows = plan.shard_count * plan.region_places if of_regions and plan.shard_rows > 0 else plan.rows
    if not array.shape or array.shape[0] != rows or any(size < 1 for size in array.shape):
        yield f"shape must be ({rows}, ...) without zeros, got {array.shape}"
    yield from dims_problems(array.dims, rank=len(array.shape))
    if array.dims[:1] != ("image",) and not of_regions:
        yield f"the first dim must be 'image', got {array.dims}"
    whole, name = (plan.region_places, "region_places") if of_regions else (plan.shard_rows, "shard_rows")
    if array.chunk_rows < 1 or whole % max(array.chunk_rows, 1):
        yield f"chunk_rows must divide {name} {whole}, got {array.chunk_rows}"
    if array.chunk_tail and (len(array.chunk_tail) != len(array.shape) - 1 or min(array.chunk_tail) < 1):
        yield f"chunk_tail must have a length of at least 1 for each axis but the first, got {array.chunk_tail}"
    yield from _json_problems("attributes", array.attributes)
    try:
        dtype = np.dtype(array.dtype)
    except (TypeError, ValueError, SyntaxError):  # numpy parses what looks like a list of types
        yield f"unknown dtype {array.dtype!r}"
        return
    fill: object = array.fill  # untyped callers may pass e.g. a NumPy scalar
    if not isinstance(fill, int | float):
        yield f"fill must be a Python number, got {fill!r}"
        return
    if dtype.kind not in "fiu" or dtype.name != array.dtype:
        yield f"dtype must be a NumPy float or integer name such as 'float16', got {array.dtype!r}"
    elif dtype.kind in "iu" and (not math.isfinite(array.fill) or array.fill != dtype.type(array.fill)):
        yield f"fill {array.fill} is not a value of {array.dtype}"


def name_problems(name: str) -> Iterable[str]:
    """Yield why `name` is not a valid node name in a plan's Zarr group."""
    if name == STATUS:
        yield "the name 'status' is reserved: the store adds that array itself"
    if not _NODE_NAME.fullmatch(name):
        yield f"name {name!r} must be letters, digits, '_' or '-'"


def dims_problems(dims: Sequence[str], *, rank: int) -> Iterable[str]:
    """Yield why `dims` is invalid for an array with `rank` axes."""
    if len(dims) != rank or len(set(dims)) != len(dims):
        yield f"dims must be {rank} unique names, got {tuple(dims)}"


def _json_problems(label: str, value: Mapping[str, object]) -> Iterable[str]:
    try:
        json.dumps(value, allow_nan=False, sort_keys=True).encode()
    except (TypeError, ValueError) as error:
        yield f"{label} must be JSON: {error}"


def problems(plan: StorePlan, blocks: Mapping[str, np.ndarray], status: np.ndarray, *, rows: int) -> Iterator[str]:
    """Yield why a shard's arrays and its status do not fit the plan."""
    planned = {array.name: array for array in plan.arrays}
    yield from (f"array {name!r} is missing" for name in planned if name not in blocks)
    yield from (f"array {name!r} is not planned" for name in blocks if name not in planned)
    for name in sorted(planned.keys() & blocks.keys()):
        own = plan.region_places if planned[name].dims[0] == REGION else rows
        yield from _block_problems(name, blocks[name], (own, *planned[name].shape[1:]), planned[name].dtype)
    wrong = list(_block_problems(STATUS, status, (rows,), "uint8"))
    yield from wrong
    allowed = statuses.written(statuses.ROWS)
    if not wrong and not np.isin(status, [each.value for each in allowed]).all():
        yield f"status must be {' or '.join(f'{each.value} ({each.name})' for each in allowed)} in every row"


def _block_problems(name: str, block: object, shape: tuple[int, ...], dtype: str) -> Iterator[str]:
    if not isinstance(block, np.ndarray):
        yield f"{name!r} must be a numpy array, got {type(block).__name__}"
        return
    if block.shape != shape:
        yield f"{name!r} must have shape {shape}, got {block.shape}"
    if block.dtype != np.dtype(dtype):
        yield f"{name!r} must be {dtype}, got {block.dtype}"


def refuse_other_changes(
    shard: int, plan: StorePlan, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]
) -> None:
    """Check that healing changed only rows that went from unreadable to ok, and regions of unreadable images.

    Raises:
        StoreError: another row differs, or no row was healed.
    """
    healed = (before[STATUS] == statuses.UNREADABLE) & (after[STATUS] == statuses.OK)
    if not healed.any():
        raise errors.StoreError(f"shard {shard:05d}: no row was healed")
    state = before.get(stored_arrays.REGION_STATUS, np.zeros(0, np.uint8))
    for name, block in before.items():
        same = state != statuses.REGION_UNREADABLE if name in plan.region_arrays else ~healed
        kept, now = (np.ascontiguousarray(item[same]) for item in (block, after[name]))
        if kept.tobytes() != now.tobytes():
            raise errors.StoreError(f"shard {shard:05d}: {name!r} differs in rows that were not healed")
