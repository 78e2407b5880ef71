"""Chunks that divide the channels: some of them are read without the rest, and nothing else changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.abc.store import Store
from zarr.storage import LocalStore, WrapperStore

from genenc_core import api, errors, testing
from genenc_core.run import driver
from genenc_core.run.folder import RunFolder
from genenc_core.store import store_keys

Extract = Callable[..., driver.Result]
CHANNELS = 6
"""Of the tiny model's map."""


class Counting(WrapperStore[Store]):
    """A store that counts the bytes that are read of objects, metadata left out."""

    def __init__(self, path: Path) -> None:
        super().__init__(LocalStore(path, read_only=True))
        self.read = 0

    async def get(self, key: str, *given: Any, **more: Any) -> Any:
        """Read an object, or a range of it."""
        found = await super().get(key, *given, **more)
        if found is not None and not key.endswith("zarr.json"):
            self.read += len(found)
        return found


def cost(path: Path, name: str, *selection: Any) -> int:
    """Return the bytes that a plain Zarr reader reads for a selection."""
    counting = Counting(path / store_keys.GROUP)
    array: Any = zarr.open_group(counting, mode="r")[name]
    np.asarray(array[selection])
    return counting.read


@pytest.fixture
def both(extract: Extract, tmp_path: Path) -> tuple[Path, Path]:
    """A run with whole chunks, and one with chunks of four channels."""
    asked = ("features=global_avg_pool", "small=global_max_pool@int8", "maps=none")
    extract(products=asked, out=str(tmp_path / "whole"))
    extract(products=asked, chunk_channels=4, out=str(tmp_path / "divided"))
    return tmp_path / "whole", tmp_path / "divided"


@pytest.mark.slow
def test_the_same_values_in_other_chunks(both: tuple[Path, Path]) -> None:
    whole, divided = map(api.Run.open, both)
    testing.assert_runs_equal(whole, divided)
    assert whole.identity == divided.identity
    assert divided.verify(content=True).ok
    group: Any = zarr.open_group(both[1] / store_keys.GROUP, mode="r")
    assert group["features"].shape == (11, CHANNELS)
    assert (group["features"].chunks, group["features"].shards) == ((4, 4), (4, 8))
    assert (group["maps"].chunks[:2], group["maps"].shards[:2]) == ((4, 4), (4, 8))
    assert group["small"].chunks == (4, 4)
    assert group["small_scale"].chunks == (4,)
    plans = {array.name: array for array in divided.folder.store.plan.arrays}
    assert plans["features"].chunk_tail == (4,)
    assert all(array.chunk_tail == () for array in whole.folder.store.plan.arrays)


@pytest.mark.slow
def test_some_channels_are_read_without_the_rest(both: tuple[Path, Path]) -> None:
    whole, divided = both
    for name in ("features", "maps", "small"):
        every = cost(whole, name, slice(None), slice(None))
        some = slice(0, 4)
        few = cost(divided, name, slice(None), some)
        group: Any = zarr.open_group(divided / store_keys.GROUP, mode="r")
        array = group[name]
        chunk = int(np.prod(array.chunks)) * array.dtype.itemsize + 4
        shards = -(-11 // 4)
        index = 2 * 16 + 4
        assert few == shards * (chunk + index)
        if name == "maps":
            assert few < every * 0.75
        assert cost(whole, name, slice(None), some) == every


@pytest.mark.slow
def test_it_is_fixed_and_continued(extract: Extract, both: tuple[Path, Path]) -> None:
    asked: dict[str, Any] = {
        "products": ("features=global_avg_pool", "small=global_max_pool@int8", "maps=none"),
        "out": str(both[1]),
    }
    assert extract(**asked, chunk_channels=4).asked == 0
    assert extract(**asked).asked == 0
    with pytest.raises(errors.OtherRunError, match="chunks of 4 channels, but --chunk-channels is 2: the chunks are"):
        extract(**asked, chunk_channels=2)
    with pytest.raises(errors.OtherRunError, match="chunks of all channels, but --chunk-channels is 2"):
        extract(**{**asked, "out": str(both[0])}, chunk_channels=2)
    object_ = both[1] / store_keys.GROUP / "maps" / "c.1.0.0.0"
    data = bytearray(object_.read_bytes())
    data[-60] ^= 1
    object_.write_bytes(data)
    run = api.Run.open(both[1])
    assert not run.verify().ok
    assert run.repair().requeued == (1,)
    run.encode()
    testing.assert_runs_equal(api.Run.open(both[0]), run)


@pytest.mark.parametrize("channels", [CHANNELS, 700])
def test_what_divides_nothing_is_refused(extract: Extract, tmp_path: Path, channels: int) -> None:
    with pytest.raises(errors.InputError, match=rf"--chunk-channels {channels} divides nothing: .*\(features 6\)"):
        extract(chunk_channels=channels)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_chunks_hold_more_rows_of_fewer_channels(extract: Extract, tmp_path: Path) -> None:
    extract(products=("maps=none",), chunk_channels=1, shard_rows=11)
    plan = RunFolder(tmp_path / "run").store.plan
    assert next(array for array in plan.arrays if array.name == "maps").chunk_shape[:2] == (11, 1)
