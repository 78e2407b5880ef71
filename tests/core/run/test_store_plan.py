"""How arrays are stored: dense values as they are, small and sparse ones compressed; a run keeps its codecs."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from genenc_core.run import driver, store_plan
from genenc_core.run.folder import RunFolder
from genenc_core.store import layout, store_keys


def codecs(root: Path, name: str) -> tuple[list[str], int]:
    """Return an array's codecs below its shards, and the rows of its chunks."""
    (sharding,) = json.loads((root / store_keys.GROUP / name / "zarr.json").read_text())["codecs"]
    asked = sharding["configuration"]
    return [codec["name"] for codec in asked["codecs"]], asked["chunk_shape"][0]


def test_dense_values_are_not_compressed(extract: Callable[..., driver.Result], photos: Path, tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text("image,point,x,y\nimg_000.png,nose,5,6\n")
    extract(points=str(tmp_path / "points.csv"), maps=True)
    root = tmp_path / "run"
    for name in ("features", "maps"):
        assert codecs(root, name)[0] == ["bytes", "crc32c"]
    for name in ("probes", "image_height", "image_affine", "point_status"):
        assert codecs(root, name)[0] == ["bytes", "zstd", "crc32c"]
    assert codecs(root, "image_affine")[1] == 4, "small arrays have one chunk a shard"


@pytest.mark.slow
def test_a_run_that_compresses_vectors_goes_on_so(
    extract: Callable[..., driver.Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As earlier versions made them: resumed by this one, every byte is as if it had never stopped."""
    real = store_plan.make_plan

    def earlier(*given: object, **options: object) -> layout.StorePlan:
        plan = real(*given, **options)  # type: ignore[arg-type]
        arrays = tuple(dataclasses.replace(array, compress=True) for array in plan.arrays)
        return dataclasses.replace(plan, arrays=arrays)

    with monkeypatch.context() as patch:
        patch.setattr(store_plan, "make_plan", earlier)
        extract()
    store = RunFolder(tmp_path / "run").store
    group = store.objects.path(store_keys.GROUP)
    whole = {path: path.read_bytes() for path in sorted(group.rglob("*")) if path.is_file()}
    for array in store.plan.all_arrays:
        (group / layout.chunk_key(array, 1)).unlink()
    store.objects.path(store_keys.record(1)).unlink()
    assert extract().asked == 1
    assert codecs(tmp_path / "run", "features")[0] == ["bytes", "zstd", "crc32c"]
    assert {path: path.read_bytes() for path in sorted(group.rglob("*")) if path.is_file()} == whole
