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

import pictures
from genenc_core import errors
from genenc_core.run import driver, integrity, planning, records, session_log, status, status_cache, worker
from genenc_core.run import folder as run_folder
from genenc_core.run.folder import RunFolder
from genenc_core.run.parameters import ExtractParameters
from genenc_core.store import documents, layout, store_keys, transaction, verify
from genenc_core.store.backends import local
from genenc_core.store.commit_record import CommitRecord
from genenc_core.system import digests, environment

GIVEN = {"model": "tiny_models:conv", "image_size": "32", "shard_rows": 4, "batch_size": "auto", "device": "cpu"}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images and of a weights file, which a run keeps in `model/`."""
    import torch

    import tiny_models

    folder = tmp_path_factory.mktemp("scene")
    pictures.write_folder(folder / "photos", 11, sizes=((80, 60), (50, 70)))
    torch.manual_seed(3)
    torch.save(tiny_models.conv().state_dict(), folder / "weights.pt")
    return folder


def given(scene: Path, out: Path, **more: object) -> ExtractParameters:
    files = {"images": str(scene / "photos"), "weights": str(scene / "weights.pt"), "out": str(out)}
    return ExtractParameters.model_validate({**GIVEN, **files, **more})


@pytest.fixture(scope="module")
def complete(scene: Path) -> Path:
    (scene / "points.csv").write_text("image,point,x,y\nimg_000.png,a,3,4\nimg_005.png,a,5,6\n")
    driver.extract(given(scene, scene / "run", points=str(scene / "points.csv")))
    return scene / "run"


@pytest.fixture
def run(complete: Path, tmp_path: Path) -> Path:
    """A complete run of three shards with points, whose batch size was searched."""
    return shutil.copytree(complete, tmp_path / "run")


@pytest.fixture(scope="module")
def incomplete(scene: Path) -> Path:
    root = scene / "begun"
    wanted = given(scene, root)
    run = planning.create_run(wanted)
    options = records.Options.of(wanted)
    with session_log.recorded(run, options, command="extract"), worker.working(run, options):
        worker.encode_shards(run, [0], options)
    return root


@pytest.fixture
def begun(incomplete: Path, tmp_path: Path) -> Path:
    """A run with one of three shards committed."""
    return shutil.copytree(incomplete, tmp_path / "begun")


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
    assert status.verify_place(run, content=True).ok
    missed = []
    for number, name in enumerate(files_of(run)):
        path = run / name
        data = path.read_bytes()
        of_array = name.startswith(f"{store_keys.GROUP}/") and path.name.startswith("c")
        # An object of the second or third shard is one of the first's kind, and read in the same way.
        again = of_array and path.name.partition(".")[2].startswith(("1", "2"))
        other_size = data[:-1] if number % 2 else data + b"\0"
        for changed in (next(flips(data, 0)),) if again else (*list(flips(data, 0))[1:], other_size):
            path.write_bytes(changed)
            if name not in said(lambda content=of_array: status.verify_place(run, content=content)):
                missed.append((name, changed[:200]))
        path.write_bytes(data)
    assert missed == []
    assert status.verify_place(run, content=True).ok


@pytest.mark.slow
def test_every_bit_of_the_small_records_counts(run: Path) -> None:
    folder = RunFolder(run)
    names = [name for name in files_of(run) if name.startswith("provenance/runs/")]
    assert names
    for name in names:
        data = (run / name).read_bytes()
        for bit in range(0, 8 * len(data), 31):
            (run / name).write_bytes(bytes([*data[: bit // 8], data[bit // 8] ^ 1 << bit % 8, *data[bit // 8 + 1 :]]))
            assert [problem.key for problem in integrity.problems(folder, ())] == [name], bit
        (run / name).write_bytes(data)


@pytest.mark.slow
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
        for changed in flips(data, 0):
            (begun / name).write_bytes(changed)
            message = said(lambda: driver.resume(RunFolder(begun), "pending"))
            assert name in message, (name, changed[:300])
        (begun / name).write_bytes(data)
        checked += 1
    assert checked > 10
    monkeypatch.undo()
    assert driver.resume(RunFolder(begun), "pending").status.complete


def test_a_manifest_of_an_earlier_run_is_compared_by_its_rows(begun: Path) -> None:
    """Earlier versions recorded no digest of its bytes; the digest in its own metadata says nothing of its rows."""
    forget_files(begun)
    assert integrity.problems(RunFolder(begun), ()) == []
    path = begun / "images.parquet"
    table = stored(path)
    paths = table.column("path").to_pylist()
    parquet.write_table(table.set_column(2, "path", pa.array([paths[1], paths[0], *paths[2:]])), path)
    (problem,) = integrity.problems(RunFolder(begun), ())
    assert (problem.key, "rows are not those" in problem.what) == ("images.parquet", True)
    with pytest.raises(errors.StoreError, match=r"nothing is encoded: images\.parquet"):
        driver.resume(RunFolder(begun), "pending")


def stored(path: Path) -> pa.Table:
    """A manifest with all of its metadata."""
    told = parquet.read_metadata(path).metadata
    return parquet.read_table(path).replace_schema_metadata({k: v for k, v in told.items() if k != b"ARROW:schema"})


def forget_files(root: Path) -> None:
    """Make a run one of an earlier version: without digests of what lies beside the group, and without seals.

    Its commit records repeat no digest of `store.json`.
    """
    path = root / store_keys.STORE_FILE
    content = json.loads(path.read_bytes())
    stored = {key: content[key] for key in ("plan", "created")}
    path.write_bytes(documents.dumps(content["schema"], stored))
    for committed in (root / store_keys.COMMITS).iterdir():
        commit = CommitRecord.from_json(committed.read_bytes())
        committed.write_bytes(dataclasses.replace(commit, store="").to_json())
    for record in (root / "provenance").rglob("*.json"):
        told = json.loads(record.read_bytes())
        told.pop("sha256", None)
        record.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n")


def test_a_run_of_an_earlier_version_is_intact_and_continued(begun: Path) -> None:
    forget_files(begun)
    assert status.verify_place(begun, content=True).ok
    assert driver.resume(RunFolder(begun), "pending").status.complete
    assert status.verify_place(begun, content=True).ok


def whole_or_lost(run: Path, lost: set[str]) -> None:
    """Repair says which records are lost, the run is intact from then on, and so it says itself."""
    done = status.repair_run(RunFolder(run))
    assert (set(done.lost), done.unrepaired, done.requeued) == (lost, (), ())
    assert all(session_log.is_lost(RunFolder(run).objects, name) for name in lost)
    assert status.verify_place(run, content=True).ok


@pytest.mark.slow
@pytest.mark.parametrize("earlier", [False, True], ids=["now", "earlier version"])
@pytest.mark.parametrize("folder", ["runs", "env"])
def test_missing_session_is_named(run: Path, folder: str, earlier: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an environment that is another by now, for the same can be recorded again."""
    if earlier:
        forget_files(run)
    (path,) = (run / "provenance" / folder).iterdir()
    name, data = str(path.relative_to(run)), path.read_bytes()
    for spoil in (Path.unlink, lambda path: shutil.rmtree(path.parent), folder_instead):
        spoil(path)
        found = status.verify_place(run).problems
        assert [problem.place for problem in found] == [name]
        with monkeypatch.context() as patch:
            patch.setattr(environment, "describe_environment", lambda: {"torch": "another"})
            whole_or_lost(run, {name})
        path.write_bytes(data)
    if folder == "env":
        path.unlink()
        whole_or_lost(run, set())
        assert json.loads(path.read_bytes()).items() >= json.loads(data).items()
    assert status.verify_place(run).ok


def test_a_session_that_committed_nothing_may_be_missing(run: Path) -> None:
    before = set((run / "provenance/runs").iterdir())
    driver.resume(RunFolder(run), "pending")
    (more,) = set((run / "provenance/runs").iterdir()) - before
    more.unlink()
    assert status.verify_place(run).ok


def test_the_session_of_a_record_that_was_healed_is_missed(run: Path) -> None:
    """Each of a shard's records names its own session, and that of the first made most rows."""
    folder = RunFolder(run)
    before = folder.store.record(0)
    assert before is not None
    healed = dataclasses.replace(
        before,
        generation=1,
        previous=transaction.record_digest(folder.objects, before),
        status_counts={**before.status_counts, "ok": before.status_counts["ok"] + 1},
        details={**before.details, "session": "another"},
    )
    (run / store_keys.record(0, 1)).write_bytes(healed.to_json())
    sessions: set[str] = set()
    verify.verify_store(folder.store, seen=lambda record: sessions.add(session_log.session_of(record)))
    assert sessions == {before.details["session"], "another"}


@pytest.mark.slow
@pytest.mark.parametrize("earlier", [False, True], ids=["now", "earlier version"])
def test_records_under_each_others_names_are_named_and_put_right(run: Path, earlier: bool) -> None:
    driver.resume(RunFolder(run), "pending")
    other = {**environment.describe_environment(), "genenc": "other"}
    objects = RunFolder(run).objects
    records.create_json(objects, session_log.environment_key(digests.ENVIRONMENT.hex_of_json(other)), other)
    for number, device in ((0, "cpu"), (1, "cuda:0")):
        RunFolder(run).note_failure(number, f"shard {number}", "s")
        records.create_json(objects, run_folder.batch_size_key(device), {"size": 4, "device": device})
    if earlier:
        forget_files(run)
    for folder, pattern in (("runs", "*"), ("env", "*"), ("failed", "*"), (".", "batch_size-*")):
        one, two = sorted((run / "provenance" / folder).glob(pattern))
        swapped = {str(path.relative_to(run)) for path in (one, two)}
        whole = [json.loads(path.read_bytes()) for path in (one, two)]
        one.rename(run / "kept")
        two.rename(one)
        (run / "kept").rename(two)
        found = status.verify_place(run).problems
        assert {problem.place for problem in found} == swapped
        assert all("holds the record that belongs in" in problem.what for problem in found)
        whole_or_lost(run, set())
        if folder in ("runs", "env"):
            assert all(
                json.loads(path.read_bytes()).items() >= was.items()
                for path, was in zip((one, two), whole, strict=True)
            )
        else:
            assert not one.exists()
            assert not two.exists()


@pytest.mark.parametrize("session", ["../../../outside", "a/b", "", 7, None, ["s"]])
def test_a_commit_record_names_no_file_but_a_sessions(run: Path, session: object) -> None:
    record = RunFolder(run).store.record(0)
    assert record is not None
    assert session_log.session_of(dataclasses.replace(record, details={"session": session})) == ""


@pytest.mark.slow
@pytest.mark.parametrize("content", [False, True])
def test_metadata_that_is_gone_is_named_and_restored(run: Path, content: bool) -> None:
    for name in ("features.zarr/features/zarr.json", "features.zarr/status/zarr.json", "features.zarr/zarr.json"):
        data = (run / name).read_bytes()
        for spoil in (lambda path: path.unlink(), lambda path: path.write_bytes(b"{}"), folder_instead):
            spoil(run / name)
            found = status.verify_place(run, content=content).problems
            assert {problem.place for problem in found} <= {name, f"{name}/x"}
            assert found
            done = status.repair_run(RunFolder(run), content=content)
            assert (done.unrepaired, done.requeued) == ((), ())
            assert (run / name).read_bytes() == data
    assert status.verify_place(run, content=True).ok


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


def kinds_of_files(root: Path) -> dict[str, list[str]]:
    """Return the files of a run by what they are: the objects of one array are alike, and the records of one folder."""
    kinds: dict[str, list[str]] = {}
    for name in files_of(root):
        path = Path(name)
        alike = len(path.parts) > 2 and (path.name.startswith("c.") or path.parts[-2] in ("commits", "runs", "env"))
        kinds.setdefault(str(path.parent) if alike else name, []).append(name)
    return kinds


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [folder_instead, sparse, pipe])
def test_what_is_no_file_of_its_size_is_refused_before_it_is_read(run: Path, spoil: Callable[[Path], None]) -> None:
    """In words, at once, and put right where it can be; of files that are alike one, and those that are mended."""
    kept, group = run.with_name("kept"), store_keys.GROUP
    mended = {
        status_cache.TALLY,
        store_keys.record(1),
        *(f"{group}/{key}" for key in ("zarr.json", "features/zarr.json")),
    }
    mended |= {f"{group}/{key}" for key in ("features/c.0.0", "status/c.1", "image_id/c.0")}
    shutil.copytree(run, kept)
    for name in sorted({names[-1] for names in kinds_of_files(kept).values()} | mended):
        shutil.rmtree(run)
        shutil.copytree(kept, run)
        spoil(run / name)
        assert name in said(lambda: status.verify_place(run)), name
        if name in mended or name.startswith(("provenance/runs", "provenance/env")):
            done = status.repair_run(RunFolder(run), content=True)
            assert done.unrepaired == (), name
            driver.resume(RunFolder(run), "pending")
            assert status.verify_place(run).ok, name


@pytest.mark.parametrize(
    "name", ["provenance/batch_size-cpu.json", "provenance/runs/0.json", "provenance/failed/s0.json"]
)
def test_an_empty_folder_in_place_of_a_record_is_named_and_set_aside(begun: Path, name: str) -> None:
    (begun / name).unlink(missing_ok=True)
    (begun / name).mkdir(parents=True)
    (problem,) = status.verify_place(begun).problems
    assert problem.place == name
    assert status.repair_run(RunFolder(begun)).unrepaired == ()
    assert status.verify_place(begun).ok
    assert driver.resume(RunFolder(begun), "pending").status.complete


def test_a_record_behind_the_last_shard_is_named_and_not_counted(run: Path) -> None:
    (run / store_keys.record(9)).write_bytes((run / store_keys.record(2)).read_bytes())
    found = status.survey(RunFolder(run))
    assert (found.status.committed, found.status.shards, found.foreign) == (3, 3, ("s0000009.json",))
    assert any("s0000009.json" in line for line in status.summary_lines(found, None))
    (problem,) = status.verify_place(run).problems
    assert (problem.place, problem.what) == (
        "_txn/commits/s0000009.json",
        "foreign file among the commit records; the run has shards 0 to 2",
    )
    assert status.repair_run(RunFolder(run)).set_aside == ("commits/s0000009.json",)
    assert status.verify_place(run).ok


def chain_broken(path: Path) -> None:
    shutil.copy(path, path.with_name(store_keys.record_name(1, 1)))


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"{}"), folder_instead, pipe, chain_broken])
def test_a_damaged_commit_record_is_named_and_the_others_counted(run: Path, spoil: Callable[[Path], None]) -> None:
    whole = status.run_status(RunFolder(run))
    spoil(run / store_keys.record(1))
    found = status.survey(RunFolder(run))
    assert (found.status.committed, found.status.damaged, found.status.pending) == (2, (1,), 0)
    assert (found.status.ok, found.status.complete, found.status.exit_code) == (whole.ok - 4, False, 1)
    assert [row.state for row in found.shards] == ["committed", "damaged", "committed"]
    assert "s0000001" in found.shards[1].reason
    assert f"shard 1 is damaged and not counted: {found.shards[1].reason}" in status.summary_lines(found, None)
    assert status.progress_summary(run).startswith("2 of 3 shards are stored")
    # What ends a session, or chooses rows, refuses it.
    for check in (
        lambda: status.run_status(RunFolder(run)),
        lambda: status.unreadable_rows(RunFolder(run), "all"),
        lambda: driver.resume(RunFolder(run), "pending"),
    ):
        with pytest.raises(errors.StoreError, match="s0000001"):
            check()


def test_a_damaged_record_of_unreadable_rows_is_not_counted_by_the_tally(run: Path) -> None:
    """Its line is of its size and time; only its reasons are read from the record itself."""
    path = run / store_keys.record(0)
    before = path.stat()
    record = RunFolder(run).store.record(0)
    counts = {"ok": 3, "unreadable": 1}
    path.write_bytes(dataclasses.replace(record, status_counts=counts).to_json())
    status_cache.note(RunFolder(run).objects, [RunFolder(run).store.record(0)])
    assert status.run_status(RunFolder(run)).unreadable == 1
    stamp, data = path.stat(), path.read_bytes()
    path.write_bytes(data.replace(b'"unreadable":1', b'"unreadable":2'))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert before.st_size != 0
    found = status.survey(RunFolder(run))
    assert (found.status.damaged, found.status.unreadable, found.status.committed) == ((0,), 0, 2)


def test_a_damaged_batch_size_is_refused(begun: Path) -> None:
    for record in (b"", b"{}", b"[]", b'{"size": "many"}', b'{"size": -1}', b'{"size": 1e9}', b"\xff"):
        (begun / "provenance/batch_size-cpu.json").write_bytes(record)
        with pytest.raises(errors.StoreError, match=r"batch_size-cpu\.json"):
            driver.resume(RunFolder(begun), "pending")


def test_a_manifest_with_damaged_metadata_is_refused(begun: Path) -> None:
    path = begun / "images.parquet"
    table = stored(path)
    for key in ("genenc.version", "genenc.root", "genenc.digest", "genenc.point_names"):
        for value in (None, b"\xff", b"[1]", b""):
            told = {**table.schema.metadata, key.encode(): value}
            parquet.write_table(table.replace_schema_metadata({k: v for k, v in told.items() if v is not None}), path)
            with pytest.raises(errors.StoreError, match=r"images\.parquet"):
                RunFolder(begun)


def test_a_manifest_without_a_column_is_refused(begun: Path) -> None:
    path = begun / "images.parquet"
    table = stored(path)
    for column in ("row", "image_id", "path", "bytes", "mtime_ns"):
        parquet.write_table(table.drop_columns([column]), path)
        with pytest.raises(errors.StoreError, match=f"the columns {column} are missing"):
            RunFolder(begun)


@pytest.mark.slow
@pytest.mark.parametrize("few", [0, 256], ids=["many shards", "few shards"])
def test_missing_objects_make_a_run_incomplete(run: Path, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_FEW", few)
    assert driver.resume(RunFolder(run)).asked == 0
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
                    driver.resume(RunFolder(run), shards)
            path.write_bytes(whole)
        assert driver.resume(RunFolder(run)).asked == 0
    shutil.rmtree(group / store.plan.arrays[0].name)
    with pytest.raises(errors.StoreError, match=r"genenc verify .* --repair"):
        driver.resume(RunFolder(run))


def test_a_record_replaced_while_it_is_checked_is_intact(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [record] = (run / session_log.RUNS).iterdir()
    read, reasons = local.LocalObjects.read, iter(range(100))

    def read_and_end(objects: local.LocalObjects, key: str, **most: int | None) -> bytes:
        data = read(objects, key, **most)
        if key == session_log.record_key(record.stem):
            changed = {**json.loads(data), "reason": f"reason {next(reasons)}"}
            objects.replace(key, records.dumps(changed))
        return data

    monkeypatch.setattr(local.LocalObjects, "read", read_and_end)
    assert status.verify_run(RunFolder(run)).problems == ()
    assert next(reasons) > 0


def test_a_record_that_a_listing_leaves_out_is_not_missing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = local.LocalObjects.names

    def without_sessions(objects: local.LocalObjects, folder: str, prefix: str = "") -> list[str]:
        return [] if folder == session_log.RUNS else names(objects, folder, prefix)

    monkeypatch.setattr(local.LocalObjects, "names", without_sessions)
    assert status.verify_run(RunFolder(run)).problems == ()


def test_a_tally_line_that_is_being_written_is_no_damage(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, cuts = local.LocalObjects.read, iter((40, 15, 0))

    def read_begun(objects: local.LocalObjects, key: str, **most: int | None) -> bytes:
        data = read(objects, key, **most)
        return data[: len(data) - next(cuts)] if key == status_cache.TALLY else data

    monkeypatch.setattr(local.LocalObjects, "read", read_begun)
    assert status_cache.damaged_lines(RunFolder(run).objects) == 0
