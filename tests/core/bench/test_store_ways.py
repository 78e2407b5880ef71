"""The ways of the suites `store` and `scale` do all of their work each time, and leave no shard behind."""

from pathlib import Path

import pytest

import scale_ways
import store_ways
from genenc_core.store import run_store, store_keys, verify

SHARD = {"rows": 32, "shape": [6], "dtype": "float16", "shards": 2}


def test_a_commit_writes_the_bytes_of_the_other_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, bytes] = {}
    real = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.suffix != ".json":
            kept[path.relative_to(tmp_path).as_posix()] = path.read_bytes()
        real(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    with store_ways.commit(**SHARD, chunk_rows=32, out=str(tmp_path / "run")) as once:
        assert once() == 2.0
    with store_ways.zarr(**SHARD, out=str(tmp_path / "zarr")) as once:
        assert once() == 2.0
    with store_ways.plain(**SHARD, sync=True, out=str(tmp_path / "plain")) as once:
        assert once() == 2.0
    assert kept["run/features.zarr/features/c.1.0"] == kept["zarr/c/0/0"]
    assert kept["zarr/c/0/0"].startswith(kept["plain/features"])
    assert len([name for name in kept if name.startswith("run/features.zarr")]) == 2 * 6
    store = run_store.RunStore.open(tmp_path / "run")
    assert store.committed() == {0, 1}
    assert {problem.what for problem in verify.verify_store(store).problems} == {"missing since it was committed"}


def test_tensorstore_takes_the_same_shard(tmp_path: Path) -> None:
    with store_ways.tensorstore(**SHARD, out=str(tmp_path / "ts")) as once:
        assert [once(), once()] == [2.0, 2.0]


def test_planning_makes_a_store_of_every_row_each_time(tmp_path: Path) -> None:
    with scale_ways.planning(250, str(tmp_path / "plan")) as once:
        assert [once(), once()] == [250.0, 250.0]
    store = run_store.RunStore.open(tmp_path / "plan" / "run1")
    assert (store.plan.rows, store.committed()) == (250, set())


def test_a_surveyed_run_has_a_record_of_every_shard(tmp_path: Path) -> None:
    with scale_ways.surveying(5, str(tmp_path / "status")) as once:
        assert [once(), once()] == [5.0, 5.0]
    names = sorted(path.name for path in (tmp_path / "status" / "run" / store_keys.COMMITS).iterdir())
    assert names == [f"s{shard:07d}.json" for shard in range(5)]
