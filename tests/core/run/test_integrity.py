"""One changed bit in any file of a run is found and named, and no image is encoded on top of what matters to it."""

import dataclasses
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from genenc_core import errors
from genenc_core.run import driver, integrity, planning, records, status, tally, worker
from genenc_core.run.folder import RunFolder
from genenc_core.run.parameters import ExtractParameters
from genenc_core.store import layout, places, sealed, verify
from genenc_core.store.records import CommitRecord

Extract = Callable[..., driver.Result]


@pytest.fixture
def run(extract: Extract, tmp_path: Path) -> Path:
    """A complete run of three shards with points, whose batch size was searched."""
    (tmp_path / "points.csv").write_text("image,point,x,y\nimg_000.png,a,3,4\nimg_005.png,a,5,6\n")
    extract(points=str(tmp_path / "points.csv"), batch_size="auto", weights=str(weights(tmp_path)))
    return tmp_path / "run"


def weights(folder: Path) -> Path:
    """A weights file, which the run keeps in `model/`."""
    import torch

    import tiny_models

    torch.manual_seed(3)
    torch.save(tiny_models.conv().state_dict(), folder / "weights.pt")
    return folder / "weights.pt"


@pytest.fixture
def begun(photos: Path, tmp_path: Path) -> Path:
    """A run with one of three shards committed."""
    root = tmp_path / "begun"
    given = ExtractParameters.model_validate(
        {
            "images": str(photos),
            "model": "tiny_models:conv",
            "weights": str(weights(tmp_path)),
            "image_size": "32",
            "out": str(root),
            "shard_rows": 4,
            "batch_size": "auto",
            "device": "cpu",
        }
    )
    planning.create_run(given)
    options = records.Options.of(given)
    with worker.working(root, options):
        worker.encode_shards(root, [0], options)
    return root


def files_of(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def flips(data: bytes, count: int = 7) -> Iterator[bytes]:
    """Yield the bytes with one bit changed: at both ends, in the middle, and at `count` other places."""
    draw = random.Random(len(data))
    for at in {0, len(data) // 2, len(data) - 1, *(draw.randrange(len(data)) for _ in range(count))}:
        yield bytes([*data[:at], data[at] ^ 1 << draw.randrange(8), *data[at + 1 :]])


def said(check: Callable[[], object]) -> str:
    """Return what a check says is wrong: the message of its refusal, or the places that it names."""
    try:
        found = check()
    except (errors.StoreError, errors.InputError) as error:
        return str(error)
    problems = getattr(found, "problems", ())
    return "; ".join(f"{problem.place}: {problem.what}" for problem in problems)


@pytest.mark.slow
def test_a_changed_bit_in_any_file_is_found_and_named(run: Path) -> None:
    assert status.verify_run(run, content=True).ok
    missed = []
    for name in files_of(run):
        path = run / name
        data = path.read_bytes()
        for changed in (*flips(data, 0), data[:-1], data + b"\0"):
            path.write_bytes(changed)
            if name not in said(lambda: status.verify_run(run, content=True)):
                missed.append((name, changed[:200]))
        path.write_bytes(data)
    assert missed == []
    assert status.verify_run(run, content=True).ok


def test_every_bit_of_the_small_records_counts(run: Path) -> None:
    folder = RunFolder(run)
    names = [name for name in files_of(run) if name.startswith("provenance/runs/")]
    assert names
    for name in names:
        data = (run / name).read_bytes()
        for bit in range(0, 8 * len(data), 31):
            (run / name).write_bytes(bytes([*data[: bit // 8], data[bit // 8] ^ 1 << bit % 8, *data[bit // 8 + 1 :]]))
            assert [problem.key for problem in integrity.problems(folder)] == [name], bit
        (run / name).write_bytes(data)


def test_no_image_is_encoded_with_a_changed_input(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.WORKERS, "get", lambda *_: pytest.fail("it went to work"))
    checked = 0
    for name in files_of(begun):
        if name.startswith(("provenance/", "_txn/commits/")) and name != "provenance/parameters.json":
            continue  # what was done, not what is to be done
        if name == integrity.README or name.startswith(("features.zarr/features/c", "features.zarr/status/c")):
            continue
        if name.startswith("features.zarr/") and "/c." in name and name.partition("/c.")[2].startswith("0"):
            array = name.split("/")[1]
            if f"{array}/c.0" not in " ".join(RunFolder(begun).store.created):
                continue  # an object of the committed shard
        data = (begun / name).read_bytes()
        for changed in flips(data, 3):
            (begun / name).write_bytes(changed)
            message = said(lambda: driver.resume(begun, "pending", driver.options_for(begun)))
            assert name in message, (name, changed[:300])
        (begun / name).write_bytes(data)
        checked += 1
    assert checked > 10
    monkeypatch.undo()
    assert driver.resume(begun, "pending", driver.options_for(begun)).status.complete


def test_a_manifest_of_an_earlier_run_is_compared_by_its_rows(begun: Path) -> None:
    """Earlier versions recorded no digest of its bytes; the digest in its own metadata says nothing of its rows."""
    forget_files(begun)
    assert integrity.problems(RunFolder(begun)) == []
    path = begun / "images.parquet"
    table = stored(path)
    paths = table.column("path").to_pylist()
    parquet.write_table(table.set_column(2, "path", pa.array([paths[1], paths[0], *paths[2:]])), path)
    (problem,) = integrity.problems(RunFolder(begun))
    assert (problem.key, "rows are not those" in problem.what) == ("images.parquet", True)
    with pytest.raises(errors.StoreError, match=r"nothing is encoded: images\.parquet"):
        driver.resume(begun, "pending", driver.options_for(begun))


def stored(path: Path) -> pa.Table:
    """A manifest with all of its metadata."""
    told = parquet.read_metadata(path).metadata
    return parquet.read_table(path).replace_schema_metadata({k: v for k, v in told.items() if k != b"ARROW:schema"})


def forget_files(root: Path) -> None:
    """Make a run one of an earlier version: without digests of what lies beside the group, and without seals.

    Its commit records repeat no digest of `store.json`.
    """
    path = root / places.STORE_FILE
    content = json.loads(path.read_bytes())
    stored = {key: content[key] for key in ("plan", "created")}
    path.write_bytes(sealed.dumps(content["schema"], stored))
    for committed in (root / places.COMMITS).iterdir():
        commit = CommitRecord.from_json(committed.read_bytes())
        committed.write_bytes(dataclasses.replace(commit, store="").to_json())
    for record in (root / "provenance").rglob("*.json"):
        told = json.loads(record.read_bytes())
        told.pop("sha256", None)
        record.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n")


def test_a_run_of_an_earlier_version_is_intact_and_continued(begun: Path) -> None:
    forget_files(begun)
    assert status.verify_run(begun, content=True).ok
    assert driver.resume(begun, "pending", driver.options_for(begun)).status.complete
    assert status.verify_run(begun, content=True).ok


@pytest.mark.parametrize("content", [False, True])
def test_metadata_that_is_gone_is_named_and_restored(run: Path, content: bool) -> None:
    for name in ("features.zarr/features/zarr.json", "features.zarr/status/zarr.json", "features.zarr/zarr.json"):
        data = (run / name).read_bytes()
        for spoil in (lambda path: path.unlink(), lambda path: path.write_bytes(b"{}"), folder_instead):
            spoil(run / name)
            found = status.verify_run(run, content=content).problems
            assert {problem.place for problem in found} <= {name, f"{name}/x"}
            assert found
            done = status.repair_run(run, content=content)
            assert (done.unrepaired, done.requeued) == ((), ())
            assert (run / name).read_bytes() == data
    assert status.verify_run(run, content=True).ok


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "x").write_bytes(b"x")


def sparse(path: Path) -> None:
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(60 * 10**9)


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [folder_instead, sparse, pipe])
def test_what_is_no_file_of_its_size_is_refused_before_it_is_read(run: Path, spoil: Callable[[Path], None]) -> None:
    """In words, at once, and put right where it can be."""
    kept, group = run.with_name("kept"), places.GROUP
    mended = {tally.TALLY, places.record(1), *(f"{group}/{key}" for key in ("zarr.json", "features/zarr.json"))}
    mended |= {f"{group}/{key}" for key in ("features/c.0.0", "status/c.1", "image_id/c.0")}
    shutil.copytree(run, kept)
    for name in files_of(kept):
        shutil.rmtree(run)
        shutil.copytree(kept, run)
        spoil(run / name)
        assert name in said(lambda: status.verify_run(run)), name
        if name in mended or name.startswith(("provenance/runs", "provenance/env")):
            done = status.repair_run(run, content=True)
            assert done.unrepaired == (), name
            driver.resume(run, "pending", driver.options_for(run))
            assert status.verify_run(run).ok, name


@pytest.mark.parametrize(
    "name", ["provenance/batch_size-cpu.json", "provenance/runs/0.json", "provenance/failed/s0.json"]
)
def test_an_empty_folder_in_place_of_a_record_is_named_and_set_aside(begun: Path, name: str) -> None:
    (begun / name).unlink(missing_ok=True)
    (begun / name).mkdir(parents=True)
    (problem,) = status.verify_run(begun).problems
    assert problem.place == name
    assert status.repair_run(begun).unrepaired == ()
    assert status.verify_run(begun).ok
    assert driver.resume(begun, "pending", driver.options_for(begun)).status.complete


def test_a_record_behind_the_last_shard_is_named_and_not_counted(run: Path) -> None:
    (run / places.record(9)).write_bytes((run / places.record(2)).read_bytes())
    found = status.survey(run)
    assert (found.status.committed, found.status.shards, found.foreign) == (3, 3, ("s0000009.json",))
    assert any("s0000009.json" in line for line in status.summary_lines(found))
    (problem,) = status.verify_run(run).problems
    assert (problem.place, problem.what) == (
        "_txn/commits/s0000009.json",
        "foreign file among the commit records; the run has shards 0 to 2",
    )
    assert status.repair_run(run).set_aside == ("commits/s0000009.json",)
    assert status.verify_run(run).ok


@pytest.mark.parametrize("record", [b"", b"{}", b"[]", b'{"size": "many"}', b'{"size": -1}', b'{"size": 1e9}', b"\xff"])
def test_a_damaged_batch_size_is_said_in_words(begun: Path, record: bytes) -> None:
    (begun / "provenance/batch_size-cpu.json").write_bytes(record)
    with pytest.raises(errors.StoreError, match=r"batch_size-cpu\.json"):
        driver.resume(begun, "pending", driver.options_for(begun))


@pytest.mark.parametrize("key", ["genenc.version", "genenc.root", "genenc.digest", "genenc.point_names"])
@pytest.mark.parametrize("value", [None, b"\xff", b"[1]", b""])
def test_a_manifest_with_damaged_metadata_is_said_in_words(begun: Path, key: str, value: bytes | None) -> None:
    path = begun / "images.parquet"
    table = stored(path)
    told = {**table.schema.metadata, key.encode(): value}
    parquet.write_table(table.replace_schema_metadata({k: v for k, v in told.items() if v is not None}), path)
    with pytest.raises(errors.StoreError, match=r"images\.parquet"):
        RunFolder(begun)


@pytest.mark.parametrize("column", ["row", "image_id", "path", "bytes", "mtime_ns"])
def test_a_manifest_without_a_column_is_said_in_words(begun: Path, column: str) -> None:
    path = begun / "images.parquet"
    table = stored(path)
    parquet.write_table(table.drop_columns([column]), path)
    with pytest.raises(errors.StoreError, match=f"the columns {column} are missing"):
        RunFolder(begun)


@pytest.mark.parametrize("few", [0, 256], ids=["many shards", "few shards"])
def test_a_complete_run_is_not_called_complete_when_objects_are_missing(
    run: Path, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "_FEW", few)
    options = driver.options_for(run)
    assert driver.resume(run, "pending", options).asked == 0
    store = RunFolder(run).store
    group = run / "features.zarr"
    # The second of three shards: the first and the last are those whose sizes are read.
    for array in store.plan.all_arrays:
        path = group / layout.chunk_key(array, 1)
        whole = path.read_bytes()
        for change in (b"", whole[:-1], None) if few or not array.compress else (b"", None):
            path.unlink() if change is None else path.write_bytes(change)
            for shards in ("pending", "failed", "0"):
                with pytest.raises(errors.StoreError, match=rf"shard 00001: .*{array.name}/.*--repair"):
                    driver.resume(run, shards, options)
            path.write_bytes(whole)
        assert driver.resume(run, "pending", options).asked == 0
    shutil.rmtree(group / store.plan.arrays[0].name)
    with pytest.raises(errors.StoreError, match=r"genenc verify .* --repair"):
        driver.resume(run, "pending", options)
