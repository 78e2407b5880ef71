"""Objects are encoded without zarr: the bytes are zarr's own, and every Zarr reader takes them."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tensorstore
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from genenc_core import errors
from genenc_core.store import layout, run_store, store_keys, transaction, verify, zarr_bytes
from genenc_core.system import digests
from genenc_core.system.digests import Buffer
from s3_server import ON_BOTH

FILLS: dict[str, tuple[float | int, ...]] = {
    "float16": (float("nan"), 0.0, -1.5, float("inf")),
    "float32": (float("nan"), 2.25),
    "float64": (float("-inf"),),
    "uint8": (0, 7),
    "int8": (0,),
    "int32": (-1,),
    "int64": (2**53 + 1,),
}


def plan_of(rows: int, shard_rows: int, chunk_rows: int, **changes: Any) -> layout.StorePlan:
    array = {"name": "a", "dtype": "float32", "tail": (3,), "fill": float("nan"), "compress": False, **changes}
    tail = array.pop("tail")
    dims = ("image", *(f"d{axis}" for axis in range(len(tail))))
    made = layout.ArrayPlan(shape=(rows, *tail), dims=dims, chunk_rows=chunk_rows, attributes={}, **array)
    return layout.StorePlan(
        rows=rows, shard_rows=shard_rows, arrays=(made,), fingerprint="f", identity={}, attributes={}
    )


def metadata_of(folder: Path, plan: layout.StorePlan, name: str = "a") -> bytes:
    zarr_bytes.create_group(folder, plan, [])
    return (folder / name / "zarr.json").read_bytes()


def joined(parts: list[Buffer]) -> bytes:
    return b"".join(parts)


@st.composite
def plans(draw: st.DrawFn) -> layout.StorePlan:
    chunk_rows = draw(st.integers(1, 5))
    shard_rows = chunk_rows * draw(st.integers(1, 4))
    dtype = draw(st.sampled_from(sorted(FILLS)))
    tail = tuple(draw(st.lists(st.integers(1, 4), max_size=3)))
    return plan_of(
        draw(st.integers(1, 3 * shard_rows)),
        shard_rows,
        chunk_rows,
        dtype=dtype,
        fill=draw(st.sampled_from(FILLS[dtype])),
        tail=tail,
        chunk_tail=draw(st.sampled_from([(), tuple(draw(st.integers(1, size)) for size in tail)])),
        compress=draw(st.booleans()),
    )


@pytest.mark.slow
@given(plan=plans(), seed=st.integers(0, 2**16), name=st.sampled_from(["a", "status"]))
@settings(max_examples=60, deadline=None)
def test_every_object_is_what_zarr_makes_of_it(
    tmp_path_factory: pytest.TempPathFactory, plan: layout.StorePlan, seed: int, name: str
) -> None:
    """All types, fills, ranks, codecs; whole, short and divided shards, short chunks, a status that is not sharded."""
    metadata = metadata_of(tmp_path_factory.mktemp("group") / "g", plan, name)
    array = next(item for item in plan.all_arrays if item.name == name)
    draw = np.random.default_rng(seed)
    for shard in range(plan.shard_count):
        start, stop = plan.shard_range(shard)
        block = draw.integers(0, 3, (stop - start, *array.shape[1:])).astype(array.dtype)
        key = layout.chunk_key(array, shard).partition("/")[2]
        assert zarr_bytes.read_format(metadata, block) is not None
        found = joined(zarr_bytes.encode(metadata, key, start, block))
        other = bytes(zarr_bytes.encode_by_zarr(metadata, key, start, block))
        # zarr interleaves the chunks of a divided shard, whose order is free.
        assert len(found) == len(other) if array.chunk_tail else found == other
        np.testing.assert_array_equal(zarr_bytes.decode(metadata, key, found, (start, stop)), block)
        own = zarr_bytes.decode_rows(metadata, key, found, (start, stop))
        assert (own.dtype, own.shape, own.tobytes()) == (block.dtype, block.shape, block.tobytes())
        for at in range(0, len(found), 7):
            damaged = found[:at] + bytes([found[at] ^ 1]) + found[at + 1 :]
            with pytest.raises(errors.StoreError, match=r"checksum of a chunk is wrong|index of a shard is damaged"):
                zarr_bytes.decode_rows(metadata, key, damaged, (start, stop))


def index_first(told: Any) -> None:
    told["codecs"][0]["configuration"]["index_location"] = "start"


def no_checksum(told: Any) -> None:
    told["codecs"][0]["configuration"]["codecs"].pop()


def gzip(told: Any) -> None:
    told["codecs"][0]["configuration"]["codecs"].insert(1, {"name": "gzip", "configuration": {"level": 1}})


def big_endian(told: Any) -> None:
    told["codecs"][0]["configuration"]["codecs"][0]["configuration"]["endian"] = "big"


def unchecked_index(told: Any) -> None:
    told["codecs"][0]["configuration"]["index_codecs"].pop()


def odd_fill(told: Any) -> None:
    told["fill_value"] = "0x7fc00001"


@pytest.mark.parametrize("change", [index_first, no_checksum, gzip, big_endian, unchecked_index, odd_fill])
def test_what_another_program_chose_is_left_to_zarr(tmp_path: Path, change: Any) -> None:
    plan = plan_of(5, 4, 2)
    told = json.loads(metadata_of(tmp_path / "g", plan))
    change(told)
    metadata, block = json.dumps(told).encode(), np.ones((1, 3), np.float32)
    assert zarr_bytes.read_format(metadata, block) is None
    found = joined(zarr_bytes.encode(metadata, "c.1.0", 4, block))
    np.testing.assert_array_equal(zarr_bytes.decode(metadata, "c.1.0", found, (4, 5)), block)
    np.testing.assert_array_equal(zarr_bytes.decode_rows(metadata, "c.1.0", found, (4, 5)), block)


def test_parts_look_at_the_block_and_copy_nothing(tmp_path: Path) -> None:
    plan = plan_of(8, 8, 4)
    block = np.ones((8, 3), np.float32)
    parts = zarr_bytes.encode(metadata_of(tmp_path / "g", plan), "c.0.0", 0, block)
    looking = [np.frombuffer(part, np.uint8) for part in parts if isinstance(part, memoryview)]
    assert [np.shares_memory(part, block) for part in looking] == [True, True, False]  # two chunks, then the index


def test_a_large_shard_is_hashed_beside_its_writing(tmp_path: Path) -> None:
    """Above a size digests are made in threads; they are of the same bytes."""
    plan = plan_of(256, 256, 64, tail=(2048,))
    store = run_store.RunStore.create(tmp_path, plan, coordinates=[])
    block = np.random.default_rng(0).normal(size=(256, 2048)).astype(np.float32)
    assert block.nbytes > transaction._WORTH_THREADS
    record = store.commit(0, {"a": block}, np.ones(256, np.uint8), details={})
    assert record.objects[0].content_digest == digests.VALUES.named(block.tobytes())
    assert record.objects[0].digest == digests.OBJECT.named((tmp_path / store_keys.GROUP / "a" / "c.0.0").read_bytes())
    assert verify.verify_store(store, content=True).ok


@pytest.mark.slow
@ON_BOTH
def test_threads_stage_the_same_objects(
    small: ModuleType, store: run_store.RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = small.resume(tmp_path / "other")
    monkeypatch.setattr(transaction, "_WORTH_THREADS", 0)
    for shard in range(small.SHARDS):
        small.commit(store, shard)
    assert small.tree(store.name) == small.tree(other.objects.root)
    assert verify.verify_store(store, content=True).ok
    assert store.objects.names(store_keys.STAGING) == []


def test_numbers_of_the_other_byte_order_are_stored_by_value(tmp_path: Path) -> None:
    metadata = metadata_of(tmp_path / "g", plan_of(4, 4, 2))
    block = np.arange(12, dtype=np.float32).reshape(4, 3)
    assert joined(zarr_bytes.encode(metadata, "c.0.0", 0, block.astype(">f4"))) == joined(
        zarr_bytes.encode(metadata, "c.0.0", 0, block)
    )


def test_other_readers_take_the_objects(small: ModuleType, full: run_store.RunStore) -> None:
    group = full.objects.path(store_keys.GROUP)
    expected = np.concatenate([small.content(shard)[0]["features"] for shard in range(small.SHARDS)])
    np.testing.assert_array_equal(zarr.open_array(group / "features", mode="r")[:], expected)
    np.testing.assert_array_equal(xarray.open_zarr(group, consolidated=False)["features"].values, expected)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(group / "features")}}
    np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), expected)
