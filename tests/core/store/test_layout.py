"""A plan is checked before anything is written, and survives its JSON form."""

import dataclasses
import itertools
import math
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genenc_core import errors, statuses
from genenc_core.store import layout


def array(**changes: object) -> layout.ArrayPlan:
    fields = {
        "name": "x",
        "shape": (20, 3),
        "dtype": "float16",
        "dims": ("image", "feature"),
        "chunk_rows": 4,
        "fill": float("nan"),
        "attributes": {},
        "compress": True,
    }
    return layout.ArrayPlan(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk_rows": 3}, "chunk_rows must divide shard_rows 8"),
        ({"chunk_rows": 0}, "chunk_rows must divide"),
        ({"shape": (19, 3)}, r"shape must be \(20, \.\.\.\)"),
        ({"shape": (20, 0)}, "without zeros"),
        ({"dims": ("image",)}, "dims must be 2 unique names"),
        ({"dims": ("image", "image")}, "dims must be 2 unique names"),
        ({"dims": ("row", "feature")}, "first dim must be 'image'"),
        ({"dtype": "float17"}, "unknown dtype"),
        ({"dtype": "complex64"}, "dtype must be a NumPy float or integer"),
        ({"dtype": ">f2"}, "dtype must be a NumPy float or integer"),
        ({"dtype": "uint8", "fill": float("nan")}, "fill nan is not a value of uint8"),
        ({"fill": "NaN"}, "fill must be a Python number"),
        ({"name": "status"}, "the name 'status' is reserved"),
        ({"name": "a/b"}, "must be letters"),
        ({"name": "__x"}, "must be letters"),
        ({"attributes": {"a": float("nan")}}, "attributes must be JSON"),
        ({"attributes": {"a": object()}}, "attributes must be JSON"),
    ],
)
def test_a_broken_array_plan_is_refused(small: ModuleType, changes: dict[str, object], message: str) -> None:
    with pytest.raises(errors.StoreError, match=message):
        small.plan(arrays=(array(**changes),))


def test_every_problem_of_a_plan_is_listed_at_once(small: ModuleType) -> None:
    with pytest.raises(errors.StoreError) as caught:
        small.plan(shard_rows=0, fingerprint="", arrays=(array(), array()))
    for part in ("shard_rows must be at least 1, got 0", "fingerprint must not be empty", "'x' is used twice"):
        assert part in str(caught.value)


@pytest.mark.parametrize("fill", [float("nan"), float("inf"), float("-inf"), 0.5, 0])
def test_json_keeps_the_plan(small: ModuleType, fill: float) -> None:
    plan = small.plan(arrays=(array(fill=fill, attributes={"coordinates": "image_id"}),))
    again = layout.plan_from_json(layout.plan_to_json(plan))
    assert repr(again) == repr(plan)
    assert math.isnan(again.arrays[0].fill) == math.isnan(fill)


def test_a_plan_with_a_missing_field_is_damage(small: ModuleType) -> None:
    value = layout.plan_to_json(small.plan())
    del value["arrays"][0]["dtype"]
    with pytest.raises(errors.StoreError, match="damaged"):
        layout.plan_from_json(value)


@given(rows=st.integers(1, 10_000), shard_rows=st.integers(1, 500))
def test_shards_cover_every_row_once_in_order(rows: int, shard_rows: int) -> None:
    plan = layout.StorePlan(rows=rows, shard_rows=shard_rows, arrays=(), fingerprint="f", identity={}, attributes={})
    ranges = [plan.shard_range(shard) for shard in range(plan.shard_count)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == rows
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ranges))
    assert all(0 < stop - start <= shard_rows for start, stop in ranges)
    with pytest.raises(errors.StoreError, match="does not exist"):
        plan.shard_range(plan.shard_count)


def test_a_negative_shard_does_not_count_from_the_end(small: ModuleType) -> None:
    with pytest.raises(errors.StoreError, match="shard -1 does not exist: this run has shards 0 to 2"):
        small.plan().shard_range(-1)


def test_identities_are_compared_entry_by_entry() -> None:
    old = {"model": {"name": "resnet18", "size": (224, 224)}, "images": "d1"}
    new = {"model": {"name": "resnet50", "size": [224, 224]}, "points": "p1", "images": "d1"}
    assert layout.describe_identity(old, new) == "model.name: 'resnet18' -> 'resnet50'; points: 'none' -> 'p1'"


def test_status_flags_are_numbered_as_the_constants(small: ModuleType) -> None:
    attributes = layout.status_plan(small.plan()).attributes
    meanings = str(attributes["flag_meanings"]).split()
    assert [meanings[v] for v in (statuses.NOT_WRITTEN, statuses.OK, statuses.UNREADABLE)] == [
        *("not_written", "ok", "unreadable")
    ]
    assert attributes["flag_values"] == [0, 1, 2]


def test_plans_are_immutable(small: ModuleType) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        small.plan().rows = 3
