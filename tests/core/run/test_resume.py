"""A run folder: continued from itself alone, refused when it means something else, the same bytes after any kill."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

import pictures
import tiny_models
from genenc_core import errors
from genenc_core.encoding import control
from genenc_core.run import driver, planning, records, status, worker
from genenc_core.run.parameters import ExtractParameters


def objects(root: Path) -> dict[str, bytes]:
    """Return every file of a run's Zarr group by its relative name."""
    store = root / "features.zarr"
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}


def sessions(root: Path) -> dict[int, str]:
    """Return which session committed each shard."""
    store = worker.RunFolder(root).store
    return {shard: str(store.record(shard).details["session"]) for shard in sorted(store.committed())}


def test_second_call_does_nothing(extract: Callable[..., driver.Result], tmp_path: Path) -> None:
    first = extract()
    before = objects(tmp_path / "run")
    second = extract()
    assert (first.asked, second.asked) == (3, 0)
    assert second.status == first.status
    assert objects(tmp_path / "run") == before


def test_same_bytes_for_any_lanes_and_order(extract: Callable[..., driver.Result], tmp_path: Path) -> None:
    extract(out=str(tmp_path / "one"))
    extract(out=str(tmp_path / "two"), limit=None, decode_threads=1)
    assert objects(tmp_path / "one") == objects(tmp_path / "two")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"weights": "random:1"}, "weights"),
        ({"model": "tiny_models:two_maps"}, "model"),
        ({"image_size": "40"}, r"preprocessing.height: 32 -> 40"),
        ({"fit": "pad"}, r"preprocessing.fit: 'stretch' -> 'pad'"),
        ({"maps": True}, "products"),
        ({"dtype": "float16"}, "products"),
        ({"limit": 5}, "6 images removed"),
    ],
)
def test_another_meaning_is_refused_naming_the_difference(
    extract: Callable[..., driver.Result], tmp_path: Path, change: dict[str, object], word: str
) -> None:
    extract()
    before = objects(tmp_path / "run")
    with pytest.raises(errors.StoreError, match=word):
        extract(**change)
    assert objects(tmp_path / "run") == before
    assert extract().asked == 0


def test_changed_images_are_refused_naming_them(extract: Callable[..., driver.Result], photos: Path) -> None:
    extract()
    pictures.write_folder(photos.parent / "more", 1, seed=99)
    (photos.parent / "more" / "img_000.png").rename(photos / "new.png")
    (photos / "img_003.png").unlink()
    with pytest.raises(errors.StoreError, match=r"1 image added \(new.png\).*1 removed \(img_003.png\)"):
        extract()


def test_resume_needs_the_run_folder_alone(extract: Callable[..., driver.Result], tmp_path: Path, photos: Path) -> None:
    """Interrupted after a shard, the folder moved, the model named nowhere but in it."""
    extract(out=str(tmp_path / "whole"))
    watch = control.Control()
    watch.on_rows = lambda _done, _failed: watch.stop()
    with control.use(watch), pytest.raises(errors.Stopped):
        extract()
    assert not status.run_status(tmp_path / "run").complete
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    options = worker.options_of(moved, device="cpu")
    assert options.batch_size == 3
    result = driver.resume(moved, "pending", options)
    assert result.status.complete
    assert objects(moved) == objects(tmp_path / "whole")


def test_stop_leaves_only_whole_shards(extract: Callable[..., driver.Result], tmp_path: Path) -> None:
    watch = control.Control()
    watch.stop()
    with control.use(watch), pytest.raises(errors.Stopped):
        extract()
    found = status.run_status(tmp_path / "run")
    assert (found.committed, found.ok) == (0, 0)
    assert (zarr.open_group(tmp_path / "run" / "features.zarr", mode="r")["status"][:] == 0).all()
    (session,) = (tmp_path / "run" / "provenance" / "runs").iterdir()
    assert json.loads(session.read_text())["state"] == "cancelled"


def test_killed_anywhere_the_same_command_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """kill -9 after one, two, ... commits; what was committed is not encoded again."""
    photos = pictures.write_folder(tmp_path / "photos", 40)
    command = [sys.executable, "-m", "flows.entry", "extract", str(photos), "--plain", "--model", "tiny_models:conv"]
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
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(pictures.__file__).parent), "OMP_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, "--out", str(whole)], env=environment, check=True, capture_output=True)
    kills = 0
    for wanted in (1, 5, 12):
        with subprocess.Popen([*command, "--out", str(killed)], env=environment, stdout=subprocess.DEVNULL) as process:
            commits = killed / "_txn" / "commits"
            while process.poll() is None and not (commits.exists() and len(list(commits.glob("s*.json"))) >= wanted):
                time.sleep(0.001)
            kills += process.poll() is None
            process.send_signal(signal.SIGKILL)
    assert kills == 3
    before = sessions(killed)
    assert 12 <= len(before) < 20
    done = subprocess.run([*command, "--out", str(killed)], env=environment, check=True, capture_output=True, text=True)
    assert "40 of 40 images stored" in done.stdout
    after = sessions(killed)
    assert {shard: after[shard] for shard in before} == before
    assert len(set(after.values()) - set(before.values())) == 1
    assert objects(killed) == objects(whole)
    assert status.verify_run(killed, content=True).ok


def test_a_kill_while_planning_leaves_a_folder_that_can_be_made_again(
    extract: Callable[..., driver.Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "run").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(planning.run_store.RunStore, "create", die)
        with pytest.raises(KeyboardInterrupt):
            extract()
    assert (tmp_path / "run" / "images.parquet").exists()
    assert extract(limit=5).status.rows == 5


def test_the_batch_size_that_was_found_is_kept_for_the_run(
    extract: Callable[..., driver.Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.batching, "find_size", lambda *_arguments, **_options: 2)
    watch = control.Control()
    watch.on_rows = lambda _done, _failed: watch.stop()
    with control.use(watch), pytest.raises(errors.Stopped):
        extract(batch_size="auto")
    monkeypatch.setattr(worker.batching, "find_size", lambda *_arguments, **_options: 4)
    extract(batch_size="auto")
    store = worker.RunFolder(tmp_path / "run").store
    sizes = [set(store.record(shard).details["batch_sizes"]) for shard in range(3)]
    assert sizes == [{"2"}, {"2"}, {"1", "2"}]


def test_provenance_tells_what_made_every_row(
    extract: Callable[..., driver.Result], tmp_path: Path, photos: Path
) -> None:

    extract()
    root = tmp_path / "run"
    record = worker.RunFolder(root).store.record(1)
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


def test_a_manifest_of_another_run_is_found(extract: Callable[..., driver.Result], tmp_path: Path) -> None:
    extract()
    extract(out=str(tmp_path / "other"), limit=4)
    (tmp_path / "other" / "images.parquet").replace(tmp_path / "run" / "images.parquet")
    with pytest.raises(errors.StoreError, match="not the manifest this run was made with"):
        worker.RunFolder(tmp_path / "run")


def test_a_local_weights_file_travels_with_the_run(extract: Callable[..., driver.Result], tmp_path: Path) -> None:

    torch.manual_seed(7)
    weights = tmp_path / "weights.pt"
    torch.save(tiny_models.conv().state_dict(), weights)
    watch = control.Control()
    watch.on_rows = lambda _done, _failed: watch.stop()
    with control.use(watch), pytest.raises(errors.Stopped):
        extract(weights=str(weights))
    weights.unlink()
    worker.encoders.CACHE.clear()
    result = driver.resume(tmp_path / "run", "pending", worker.options_of(tmp_path / "run", device="cpu"))
    assert result.status.complete
    extract(out=str(tmp_path / "seeded"), weights="random:7")
    first, second = (zarr.open_group(tmp_path / name / "features.zarr")["features"][:] for name in ("run", "seeded"))
    assert np.array_equal(first, second)


def test_options_are_read_from_parameters() -> None:
    given = ExtractParameters(images="a", model="m", out="o", batch_size=5, max_failures="2", device="cpu")
    options = records.Options.of(given)
    assert (options.batch_size, options.max_failures, options.device) == (5, "2", "cpu")
