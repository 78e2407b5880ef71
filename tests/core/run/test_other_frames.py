"""Frames of one size and one time that are renamed or replaced in the middle of a run."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genenc_core.run import driver, planning, status
from genenc_core.run.folder import RunFolder
from genenc_core.run.parameters import Changes, ExtractParameters

TIME = 1_700_000_000 * 10**9
FRAMES = 12


def renumber(folder: Path) -> None:
    (folder / "00.bmp").unlink()
    for at in range(1, FRAMES):
        (folder / f"{at:02}.bmp").rename(folder / f"{at - 1:02}.bmp")


def replace(folder: Path) -> None:
    """As a tool does that writes in place and keeps times."""
    for at in range(FRAMES - 1):
        shutil.copy2(folder / f"{at + 1:02}.bmp", folder / f"{at:02}.bmp")


def touch(folder: Path) -> None:
    for path in folder.iterdir():
        path.chmod(0o600)


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    for at in range(FRAMES):
        Image.fromarray(np.full((32, 32, 3), at * 20, np.uint8)).save(folder / f"{at:02}.bmp")
    return folder


def planned(frames: Path, step: int) -> ExtractParameters:
    """Plan a run whose frames were written every `step` nanoseconds."""
    for at, path in enumerate(sorted(frames.iterdir())):
        os.utime(path, ns=(TIME + at * step, TIME + at * step))
    given = ExtractParameters.model_validate(
        {
            "images": str(frames),
            "model": "tiny_models:conv",
            "weights": "random:0",
            "image_size": "32",
            "out": str(frames.parent / "run"),
            "shard_rows": 4,
            "batch_size": 3,
            "device": "cpu",
        }
    )
    planning.create_run(given)
    return given


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 5 * 10**6, 5 * 10**8, 500], ids=str)
@pytest.mark.parametrize("change", [renumber, replace])
def test_a_frame_is_not_stored_from_its_neighbour(frames: Path, change: Callable[[Path], None], step: int) -> None:
    given = planned(frames, step)
    change(frames)
    root = Path(given.out)
    done = driver.resume(RunFolder(root), "pending")
    assert done.status.ok <= (0 if change is renumber else 1)  # the last frame was not replaced
    assert "--accept-changed" in done.failures[0].reason
    accepted = driver.resume(RunFolder(root), "pending", Changes(accept_changed=True))
    assert accepted.status.changed == FRAMES - 1


def test_frames_that_were_only_touched_are_stored_where_their_times_differ(frames: Path) -> None:
    given = planned(frames, 33_366_701)
    touch(frames)
    root = Path(given.out)
    done = driver.resume(RunFolder(root), "pending")
    assert (done.status.ok, done.status.changed) == (FRAMES, 0)


def test_frames_of_one_time_that_were_not_touched_are_stored(frames: Path) -> None:
    given = planned(frames, 0)
    root = Path(given.out)
    done = driver.resume(RunFolder(root), "pending")
    assert (done.status.ok, done.status.changed) == (FRAMES, 0)


@pytest.mark.slow
@pytest.mark.parametrize("above", [False, True])
def test_folders_that_change_places_are_noticed(frames: Path, above: bool) -> None:
    """A rename touches the folder, not the files in it."""
    source, one = frames, frames
    if above:
        one, source = frames.parent / "source" / "day", frames.parent / "source"
        source.mkdir()
        frames.rename(one)
    other = frames.parent / "other"
    shutil.copytree(one, other)
    for at, path in enumerate(sorted(other.iterdir())):
        Image.fromarray(np.full((32, 32, 3), 255 - at * 20, np.uint8)).save(path)
        os.utime(path, ns=(TIME, TIME))
    given = planned(one, 0)
    shutil.rmtree(given.out)
    given = given.model_copy(update={"images": str(source)})
    planning.create_run(given)
    one.rename(frames.parent / "aside")
    other.rename(one)
    root = Path(given.out)
    done = driver.resume(RunFolder(root), "pending")
    assert done.status.ok == 0
    assert "a parent folder was renamed" in done.failures[0].reason


@pytest.mark.parametrize("retargeted", [True, False])
@pytest.mark.parametrize("way", ["links to files", "links to links", "links through a linked folder"])
def test_links_that_lead_elsewhere_are_noticed(frames: Path, way: str, *, retargeted: bool) -> None:
    """What they led to is as it was; links that nobody touched are no reason for doubt."""
    other, day, middle, links = (frames.parent / name for name in ("other", "day", "middle", "links"))
    shutil.copytree(frames, other)
    for folder in (middle, links):
        folder.mkdir()
    names = sorted(path.name for path in frames.iterdir())
    renumbered = dict(zip(names, [*names[1:], names[0]], strict=True))

    def link(folder: Path, to: str, targets: Mapping[str, str]) -> None:
        for name, target in targets.items():
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(Path("..") / to / target)

    same = {name: name for name in names}
    day.symlink_to("frames")
    link(middle, "frames", same)
    link(links, {"links to files": "frames", "links to links": "middle"}.get(way, "day"), same)
    for path in other.iterdir():
        os.utime(path, ns=(TIME, TIME))
    given = planned(links, 0)
    if retargeted:
        link(links if way == "links to files" else middle, "frames", renumbered)
        day.unlink()
        day.symlink_to("other")
    root = Path(given.out)
    done = driver.resume(RunFolder(root), "pending")
    assert done.status.ok == (0 if retargeted else FRAMES)


@pytest.mark.slow
def test_a_record_of_a_twin_run_is_damage(frames: Path) -> None:
    """Made by the same command from a folder with the same names, sizes and times: only `store.json` differs."""
    given = planned(frames, 0)
    root, twin = Path(given.out), frames.parent / "twin"
    assert driver.resume(RunFolder(root), "pending").status.complete
    driver.extract(given.model_copy(update={"out": str(twin)}))
    copied = frames.parent / "copied"
    shutil.copytree(root, copied)
    shard = "_txn/commits/s0000001.json"
    shutil.copy2(root / shard, copied / shard)
    assert status.verify_place(copied, content=True).ok, "a copy is the same run"
    shutil.copy2(twin / shard, root / shard)
    found = status.verify_place(root)
    assert not found.ok
    assert "created by the same command" in str(found.problems[0])
