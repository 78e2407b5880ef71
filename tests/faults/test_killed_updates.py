"""`genenc update` ended by Ctrl-C or SIGKILL at any step says so and leaves nothing; the next one continues."""

import json
import os
import signal
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

import pictures
from genenc_core.dataset import verify
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.store.backends.objects import Root, to_root
from stopped_commands import Ended, Run, Step, run

__all__ = ["run"]
STEPS = (
    Step("genenc_core.images.sources.manifest", "write_manifest"),
    Step("genenc_core.run.planning", "publish"),
    Step("genenc_core.run.worker", "Worker.encode", after=1),
    Step("genenc_core.dataset.folder", "DatasetFolder.create_version"),
)
MODEL = ["--model", "tiny_models:conv", "--weights", "random:0", "--image-size", "32", "--device", "cpu"]
WORK = ["--shard-rows", "2", "--batch-size", "2", "--decode-workers", "1", "--plain", "--json"]
Update = Callable[..., Ended]


@pytest.fixture
def update(run: Run, place: Root, tmp_path: Path) -> Update:
    photos = pictures.write_folder(tmp_path / "photos", 6)
    return lambda **stop: run(["update", str(place), str(photos), *MODEL, *WORK], **stop)


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    """Where the dataset is made."""
    if request.param == "local":
        return tmp_path / "dataset"
    return to_root(f"s3://{request.getfixturevalue('s3').bucket}/tests/{uuid.uuid4().hex[:12]}/dataset")


def left(tmp_path: Path) -> list[str]:
    """Return temporary folders; those of killed processes are taken for ones that were just made at first."""
    found = list((tmp_path / "tmp").iterdir())
    for folder in found:
        os.utime(folder, (1, 1))
    return sorted(folder.name for folder in found)


def assert_whole(place: Root, ended: Ended, tmp_path: Path) -> None:
    """One version with all images; each encoded once."""
    assert ended.code == 0, ended.told
    said = json.loads(ended.out)
    assert (said["version"], said["counts"]["rows"]) == (1, 6), ended.told
    folder = DatasetFolder(place)
    assert folder.parts() == [1]
    assert folder.part("p000001").store.committed() == {0, 1, 2}
    assert verify.verify(folder, content=True).ok
    if isinstance(place, Path):
        assert [str(path) for path in place.rglob(".*")] == []
    assert left(tmp_path) == []


@pytest.mark.slow
def test_killed_at_every_step(update: Update, place: Root, tmp_path: Path) -> None:
    for step in STEPS:
        ended = update(at=step, by=signal.SIGKILL)
        assert (ended.code, ended.out) == (-signal.SIGKILL, "")
        assert any(name.startswith("genenc-update-") for name in left(tmp_path))
    assert DatasetFolder(place).versions() == []
    assert_whole(place, update(), tmp_path)


@pytest.mark.slow
def test_interrupted_at_every_step(update: Update, place: Root, tmp_path: Path) -> None:
    for step in STEPS[:3]:
        ended = update(at=step, by=signal.SIGINT)
        assert (ended.code, json.loads(ended.out)) == (130, {"stopped": True})
        assert ended.told.endswith("stopped: complete shards are kept; the same command continues\n")
        assert left(tmp_path) == []
    # The version is about to be made: nothing is left to stop.
    assert_whole(place, update(at=STEPS[3], by=signal.SIGINT), tmp_path)
