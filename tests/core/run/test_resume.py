"""A run folder: continued from itself alone, refused when it means something else, the same bytes after any kill."""

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import zarr
from PIL import Image

import forked
import pictures
import tiny_models
from genenc_core import errors
from genenc_core.encoding import batch_size, cancellation
from genenc_core.encoding.shard_encoding import FailureBudget
from genenc_core.images.sources import image_source
from genenc_core.run import driver, model_cache, planning, records, status
from genenc_core.run.folder import RunFolder
from genenc_core.run.parameters import Changes, ExtractParameters
from genenc_core.system import locks

Extract = Callable[..., driver.Result]


def objects(root: Path) -> dict[str, bytes]:
    """Return every file of a run's Zarr group by its relative name."""
    store = root / "features.zarr"
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}


def sessions(root: Path) -> dict[int, str]:
    """Return which session committed each shard."""
    store = RunFolder(root).store
    return {shard: str(store.record(shard).details["session"]) for shard in sorted(store.committed())}


def test_second_call_does_nothing(extract: Extract, tmp_path: Path) -> None:
    first = extract()
    before = objects(tmp_path / "run")
    second = extract()
    assert (first.asked, second.asked) == (3, 0)
    assert second.status == first.status
    assert objects(tmp_path / "run") == before


@pytest.mark.slow
def test_same_bytes_for_any_lanes_and_order(extract: Extract, tmp_path: Path) -> None:
    extract(out=str(tmp_path / "one"))
    extract(out=str(tmp_path / "two"), limit=None, decode_workers=1)
    assert objects(tmp_path / "one") == objects(tmp_path / "two")


OTHER_MEANINGS: tuple[tuple[dict[str, object], str], ...] = (
    ({"weights": "random:1"}, "weights"),
    ({"model": "tiny_models:two_maps"}, "model"),
    ({"image_size": "40"}, r"preprocessing.height: 32 -> 40"),
    ({"fit": "pad"}, r"preprocessing.fit: 'stretch' -> 'pad'"),
    ({"decode": "scaled"}, r"preprocessing.decode: 'none' -> 'scaled'"),
    ({"maps": True}, "products"),
    ({"dtype": "float16"}, "products"),
    ({"limit": 5}, "6 images removed"),
)


@pytest.mark.slow
def test_another_meaning_is_refused_naming_the_difference(extract: Extract, tmp_path: Path) -> None:
    extract()
    before = objects(tmp_path / "run")
    for change, word in OTHER_MEANINGS:
        with pytest.raises(errors.StoreError, match=word):
            extract(**change)
        assert objects(tmp_path / "run") == before
    assert extract().asked == 0


@pytest.mark.slow
def test_changed_images_are_refused_naming_them(extract: Extract, photos: Path) -> None:
    extract()
    pictures.write_folder(photos.parent / "more", 1, seed=99)
    (photos.parent / "more" / "img_000.png").rename(photos / "new.png")
    (photos / "img_003.png").unlink()
    with pytest.raises(errors.StoreError, match=r"1 image added \(new.png\).*1 removed \(img_003.png\)"):
        extract()


def test_same_command_keeps_earlier_globs_list(extract: Extract, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier versions also took `phot.png` for a file of `phot*/**`."""
    shutil.copy(photos / "img_000.png", photos.with_name("phot.png"))
    wanted = str(photos.parent / "phot*/**")
    given = image_source.open_source(wanted)
    with monkeypatch.context() as patch:
        patch.setattr(image_source, "open_source", lambda *_, **__: dataclasses.replace(given, earlier_glob=True))
        rows = extract(images=wanted).status.rows
    again = extract(images=wanted)
    assert (again.status.rows, again.asked) == (rows, 0)
    assert sum(1 for path in photos.iterdir() if path.is_file()) == rows - 1


@pytest.mark.slow
def test_resume_needs_the_run_folder_alone(extract: Extract, tmp_path: Path, photos: Path) -> None:
    """Interrupted after a shard, the folder moved, the model named nowhere but in it."""
    extract(out=str(tmp_path / "whole"))
    watch = cancellation.Control()
    watch.on_rows = lambda _done, _failed: watch.stop()
    with cancellation.use(watch), pytest.raises(errors.Stopped):
        extract()
    assert not status.run_status(RunFolder(tmp_path / "run")).complete
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    result = driver.resume(RunFolder(moved), "pending", Changes(device="cpu"))
    assert result.status.complete
    assert objects(moved) == objects(tmp_path / "whole")


def test_stop_while_planning_leaves_nothing(extract: Extract, tmp_path: Path) -> None:
    watch = cancellation.Control()
    watch.stop()
    with cancellation.use(watch), pytest.raises(errors.Stopped):
        extract()
    assert not (tmp_path / "run").exists()


def test_stop_leaves_only_whole_shards(extract: Extract, tmp_path: Path) -> None:
    watch = cancellation.Control()
    watch.on_plan = lambda _to_do, _all: watch.stop()
    with cancellation.use(watch), pytest.raises(errors.Stopped):
        extract()
    found = status.run_status(RunFolder(tmp_path / "run"))
    assert (found.committed, found.ok) == (0, 0)
    assert (zarr.open_group(tmp_path / "run" / "features.zarr", mode="r")["status"][:] == 0).all()
    (session,) = (tmp_path / "run" / "provenance" / "runs").iterdir()
    assert json.loads(session.read_text())["state"] == "cancelled"


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--dtype", "uint8", "--maps", "--chunk-channels", "4"]], ids=["", "integers"])
def test_killed_anywhere_the_same_command_ends_with_the_same_bytes(tmp_path: Path, more: list[str]) -> None:
    """kill -9 after one, two, ... commits; what was committed is not encoded again."""
    photos = pictures.write_folder(tmp_path / "photos", 40)
    command = [
        sys.executable,
        "-m",
        "genenc_flows.entry",
        "extract",
        str(photos),
        "--plain",
        "--model",
        "tiny_models:conv",
    ]
    command += [
        "--weights",
        "random:0",
        "--image-size",
        "32",
        "--shard-rows",
        "2",
        "--batch-size",
        "2",
        "--device",
        "cpu",
        *more,
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(pictures.__file__).parent), "OMP_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    forked.run([*command, "--out", str(whole)], env=environment, check=True, capture_output=True)
    kills = 0
    for wanted in (1, 5, 12):
        with forked.Popen([*command, "--out", str(killed)], env=environment, stdout=forked.DEVNULL) as process:
            commits = killed / "_txn" / "commits"
            while process.poll() is None and not (commits.exists() and len(list(commits.glob("s*.json"))) >= wanted):
                time.sleep(0.001)
            kills += process.poll() is None
            process.send_signal(signal.SIGKILL)
    assert kills == 3
    before = sessions(killed)
    assert 12 <= len(before) < 20
    done = forked.run([*command, "--out", str(killed)], env=environment, check=True, capture_output=True, text=True)
    assert "40 of 40 images stored" in done.stdout
    after = sessions(killed)
    assert {shard: after[shard] for shard in before} == before
    assert len(set(after.values()) - set(before.values())) == 1
    assert objects(killed) == objects(whole)
    assert status.verify_place(killed, content=True).ok


def test_kill_while_planning_can_be_redone(extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "run").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(planning.run_store.RunStore, "create", die)
        with pytest.raises(KeyboardInterrupt):
            extract()
    assert (tmp_path / "run" / "images.parquet").exists()
    assert extract(limit=5).status.rows == 5


def test_found_batch_size_is_kept(extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "find_size", lambda *_arguments, **_options: 2)
    watch = cancellation.Control()
    watch.on_rows = lambda _done, _failed: watch.stop()
    with cancellation.use(watch), pytest.raises(errors.Stopped):
        extract(batch_size="auto")
    monkeypatch.setattr(batch_size, "find_size", lambda *_arguments, **_options: 4)
    extract(batch_size="auto")
    store = RunFolder(tmp_path / "run").store
    sizes = [set(store.record(shard).details["batch_sizes"]) for shard in range(3)]
    assert sizes == [{"2"}, {"2"}, {"1", "2"}]


def test_provenance_tells_what_made_every_row(extract: Extract, tmp_path: Path, photos: Path) -> None:

    extract()
    root = tmp_path / "run"
    record = RunFolder(root).store.record(1)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(photos.iterdir())[4:8]]
    assert record.details["input_sha256"] == digests
    session = json.loads((root / "provenance" / "runs" / f"{record.details['session']}.json").read_text())
    assert session["state"] == "completed"
    assert session["run"]["ok"] == 11
    environment = json.loads((root / "provenance" / "env" / f"{session['environment_sha256']}.json").read_text())
    assert environment["packages"]["torch"].startswith("2.")
    stored = json.loads((root / "model_spec.json").read_text())["genenc"]
    assert stored["source"] == {"kind": "python", "name": "tiny_models:conv", "weights": "random:0"}
    assert len(stored["weights_sha256"]) == 64


@pytest.mark.slow
def test_a_manifest_of_another_run_is_found(extract: Extract, tmp_path: Path) -> None:
    extract()
    extract(out=str(tmp_path / "other"), limit=4)
    (tmp_path / "other" / "images.parquet").replace(tmp_path / "run" / "images.parquet")
    with pytest.raises(errors.StoreError, match=r"images.parquet.*is not the file this run was made with"):
        RunFolder(tmp_path / "run")


@pytest.mark.slow
def test_a_local_weights_file_travels_with_the_run(extract: Extract, tmp_path: Path) -> None:

    torch.manual_seed(7)
    weights = tmp_path / "weights.pt"
    torch.save(tiny_models.conv().state_dict(), weights)
    watch = cancellation.Control()
    watch.on_rows = lambda _done, _failed: watch.stop()
    with cancellation.use(watch), pytest.raises(errors.Stopped):
        extract(weights=str(weights))
    weights.unlink()
    model_cache.CACHE.clear()
    result = driver.resume(RunFolder(tmp_path / "run"), "pending", Changes(device="cpu"))
    assert result.status.complete
    extract(out=str(tmp_path / "seeded"), weights="random:7")
    first, second = (zarr.open_group(tmp_path / name / "features.zarr")["features"][:] for name in ("run", "seeded"))
    assert np.array_equal(first, second)


def test_options_are_read_from_parameters() -> None:
    given = ExtractParameters(images="a", model="m", out="o", batch_size=5, max_failures="2", device="cpu")
    options = records.Options.of(given)
    assert (options.batch_size, options.max_failures, options.device) == (5, "2", "cpu")


@pytest.mark.slow
def test_another_models_spec_in_the_folder_is_found(extract: Extract, tmp_path: Path) -> None:
    """Weights of another run must never fill this one's rows."""
    extract()
    extract(out=str(tmp_path / "other"), weights="random:1")
    (tmp_path / "other" / "model_spec.json").replace(tmp_path / "run" / "model_spec.json")
    with pytest.raises(errors.StoreError, match=r"model_spec.json.*is not the file this run was made with"):
        RunFolder(tmp_path / "run")


@pytest.mark.slow
def test_of_two_commands_on_one_folder_one_is_refused(extract: Extract, tmp_path: Path) -> None:
    extract(out=str(tmp_path / "alone"))
    starting = threading.Barrier(2)

    def attempt(weights: str) -> driver.Result | errors.StoreError:
        starting.wait()
        try:
            return extract(weights=weights)
        except errors.StoreError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(attempt, ("random:0", "random:1")))
    assert sorted(isinstance(item, errors.StoreError) for item in ended) == [False, True]
    assert status.verify_place(tmp_path / "run", content=True).ok
    if isinstance(ended[0], driver.Result):
        assert objects(tmp_path / "run") == objects(tmp_path / "alone")


@pytest.mark.slow
def test_a_named_model_with_an_artifact_backend_is_exported_once(extract: Extract, tmp_path: Path) -> None:
    """An export is new bytes every time, so the run keeps the artifact that it was made with."""
    assert extract(backend="torchscript").asked == 3
    (artifact,) = (tmp_path / "run" / "model").glob("*.pt")
    before = artifact.read_bytes()
    assert extract(backend="torchscript").asked == 0
    with pytest.raises(errors.StoreError, match="weights"):
        extract(backend="torchscript", weights="random:1")
    assert artifact.read_bytes() == before
    assert list((tmp_path / "run" / "model").iterdir()) == [artifact]


@pytest.mark.slow
def test_absent_images_fail_shards_and_are_read_later(extract: Extract, tmp_path: Path, photos: Path) -> None:
    """An unmounted folder says nothing of its images: no row may be recorded as unreadable for it."""
    extract(out=str(tmp_path / "whole"))
    watch = cancellation.Control()
    watch.on_rows = lambda _done, _failed: watch.stop()
    with cancellation.use(watch), pytest.raises(errors.Stopped):
        extract()
    away = photos.rename(tmp_path / "away")
    any_failures = Changes(max_failures="100%")
    result = driver.resume(RunFolder(tmp_path / "run"), "pending", any_failures)
    assert len(result.failures) == result.status.pending > 0
    assert "the image folder does not exist" in result.failures[0].reason
    assert result.status.unreadable == 0
    away.rename(photos)
    assert driver.resume(RunFolder(tmp_path / "run"), "failed", any_failures).status.complete
    assert objects(tmp_path / "run") == objects(tmp_path / "whole")


@pytest.mark.slow
def test_a_model_that_raises_for_an_image_costs_that_row_only(extract: Extract, tmp_path: Path, photos: Path) -> None:
    Image.new("RGB", (40, 40)).save(photos / "img_005.png")
    result = extract(model="tiny_models:raises_for_dark", weights="random:0")
    assert result.failures == ()
    assert (result.status.unreadable, result.status.exit_code) == (1, 3)
    (told,) = status.survey(RunFolder(tmp_path / "run")).unreadable
    assert (told["row"], told["reason"]) == (5, "the encoder failed for this image: ValueError: too dark")
    whole = extract(model="tiny_models:colours", weights="random:0", out=str(tmp_path / "other")).status
    assert whole.unreadable == 0
    stored, other = (zarr.open_group(tmp_path / name / "features.zarr")["features"][:] for name in ("run", "other"))
    others = [row for row in range(len(stored)) if row != 5]
    assert np.isnan(stored[5]).all()
    np.testing.assert_allclose(stored[others], other[others], rtol=1e-6)


def test_model_raising_too_often_fails_its_shards_only(extract: Extract, tmp_path: Path, photos: Path) -> None:
    Image.new("RGB", (40, 40)).save(photos / "img_005.png")
    result = extract(model="tiny_models:raises_for_dark", weights="random:0", max_failures="0")
    (failure,) = result.failures
    assert (failure.shard, failure.reason) == (1, "ValueError: too dark")
    assert result.status.failed == (1,)
    (session,) = (tmp_path / "run" / "provenance" / "runs").iterdir()
    assert json.loads(session.read_text())["state"] == "failed"


def test_what_is_wrong_with_the_whole_run_is_said_once(extract: Extract, tmp_path: Path) -> None:
    watch = cancellation.Control()
    watch.on_rows = lambda _done, _failed: watch.stop()
    with cancellation.use(watch), pytest.raises(errors.Stopped):
        extract()
    with pytest.raises(errors.InputError, match="cuda:7"):
        driver.resume(RunFolder(tmp_path / "run"), "pending", Changes(device="cuda:7"))
    assert RunFolder(tmp_path / "run").failed() == []
    states = [json.loads(path.read_text()) for path in (tmp_path / "run" / "provenance" / "runs").iterdir()]
    assert sorted(item["state"] for item in states) == ["cancelled", "failed"]
    assert any("cuda:7" in item.get("reason", "") for item in states)


def test_resume_uses_the_runs_own_options(extract: Extract, tmp_path: Path) -> None:
    extract(max_failures="2")
    options = records.Options.to_continue(RunFolder(tmp_path / "run").given, Changes())
    assert (options.device, options.batch_size, options.max_failures) == ("cpu", 3, "2")


@pytest.mark.parametrize(
    ("text", "rows", "allowed"),
    [(None, 20, 10), (None, 1000, 50), ("5%", 20, 1), ("0%", 999, 0), ("0", 999, 0), ("7", 3, 7), ("0.5", 9, 4)],
)
def test_failure_budgets(text: str | None, rows: int, allowed: int) -> None:
    """The default always allows 10; what a person says is taken exactly."""
    assert FailureBudget.parse(text).allows(rows) == allowed


def test_a_run_made_by_another_version_can_be_read(extract: Extract, tmp_path: Path) -> None:
    extract()
    path = tmp_path / "run" / "provenance" / "parameters.json"
    told = json.loads(path.read_text())
    del told["sha256"]
    path.write_text(json.dumps({**told, "new_option": 1}))
    assert status.run_status(RunFolder(tmp_path / "run")).complete


@pytest.mark.slow
def test_a_creation_killed_before_its_store_stood_binds_nobody(extract: Extract, tmp_path: Path) -> None:
    """The claim of a dead creation must not refuse the next export, whose bytes are always new."""
    extract(backend="torchscript", limit=4)
    root = tmp_path / "run"
    shutil.rmtree(root / "features.zarr")
    for record in (root / "_txn" / "commits").iterdir():
        record.unlink()
    (root / ".plan-dead").mkdir()
    (root / ".README.md.dead.partial").write_text("x")
    (root / "_txn" / "creating-dead").mkdir()
    assert extract(backend="torchscript").status.rows == 11
    assert status.verify_place(root, content=True).ok
    assert [path.name for path in root.iterdir() if path.name.startswith(".")] == []
    assert list((root / "_txn").glob("creating-*")) == []


def test_unlockable_folder_is_told(extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with pytest.raises(errors.InputError, match="cannot be written: No locks available"):
        extract()


@pytest.mark.parametrize("gone", ["features.zarr", "_txn/store.json"])
def test_what_is_left_of_a_run_is_not_written_over(extract: Extract, tmp_path: Path, gone: str) -> None:
    """Another command at a run whose features were moved away leaves every file of it as it is."""
    extract()
    root, away = tmp_path / "run", tmp_path / "away"
    (root / gone).rename(away)
    before = {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
    with pytest.raises(errors.StoreError, match=r"restore (that|it)"):
        extract(weights="random:1", limit=5)
    assert {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()} == before
    away.rename(root / gone)
    assert extract().asked == 0


def test_folder_made_in_vain_is_removed(extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "run"

    def fail(*_: object, **__: object) -> None:
        (root / "notes.txt").write_text("mine")
        raise errors.InputError("no")

    monkeypatch.setattr(planning, "make_design", fail)
    with pytest.raises(errors.InputError):
        extract()
    assert [path.name for path in root.iterdir()] == ["notes.txt"]


def test_vanished_run_hides_no_error(extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first error is told, and nothing is made where the run was."""

    def vanish(*_: object, **__: object) -> None:
        (tmp_path / "run").rename(tmp_path / "moved")
        raise ValueError("the first error")

    monkeypatch.setattr(driver.Session, "encode_all", vanish)
    with pytest.raises(ValueError, match="the first error"):
        extract()
    assert not (tmp_path / "run").exists()


def test_another_shard_size_for_an_existing_run_is_refused(extract: Extract) -> None:
    assert extract().status.complete
    with pytest.raises(errors.OtherRunError, match="with shards of 4 images, but --shard-rows is 5"):
        extract(shard_rows=5)
    for same in (4, None):
        assert extract(shard_rows=same).asked == 0


def test_weights_behind_a_link_of_a_download_cache_go_with_the_run(
    extract: Callable[..., driver.Result], tmp_path: Path
) -> None:
    """Hugging Face's cache links `model.safetensors` to a blob without a suffix."""
    blob = tmp_path / "blobs" / "0123abcd"
    blob.parent.mkdir()
    safetensors.torch.save_file(tiny_models.conv().state_dict(), blob)
    (tmp_path / "model.safetensors").symlink_to(blob)
    done = extract(weights=str(tmp_path / "model.safetensors"), max_failures="100%")
    assert [path.name for path in (Path(done.run.root) / "model").iterdir()] == ["model.safetensors"]
    victim = next((Path(done.run.root) / "_txn" / "commits").glob("s*.json"))
    victim.unlink()
    blob.unlink()
    status.repair_run(RunFolder(done.run.root))
    assert driver.resume(RunFolder(done.run.root)).status.complete
