"""Volumes that go away, files that are others than planned, and rows that are tried again once they are mended."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import zarr

import scene
from genenc_core.run.folder import RunFolder

ROW = "img_005.png"


@pytest.fixture
def planned(at: scene.Scene) -> scene.Scene:
    """A run that is planned and of which nothing is stored, in shards of 4, 4 and 3 rows."""
    shutil.copytree(at.whole, at.root)
    for folder in ("_txn/commits", "features.zarr/features", "features.zarr/status"):
        for path in (at.root / folder).iterdir():
            if path.name != "zarr.json":
                path.unlink()
    for array in at.arrays:
        for path in (at.root / "features.zarr" / array).glob("c.*"):
            path.unlink()
    (at.root / "provenance" / "tally.jsonl").unlink()
    assert RunFolder(at.root).store.committed() == set()
    return at


@pytest.fixture
def photos(at: scene.Scene) -> Sequence[tuple[Path, bytes, os.stat_result]]:
    """The images as they are, put back at the end."""
    kept = [(path, path.read_bytes(), path.stat()) for path in sorted(at.photos.iterdir())]
    yield kept  # type: ignore[misc]
    put_back(kept)


def put_back(kept: Sequence[tuple[Path, bytes, os.stat_result]]) -> None:
    kept[0][0].parent.mkdir(exist_ok=True)
    for path, data, status in kept:
        path.write_bytes(data)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def resume(at: scene.Scene, *more: str) -> scene.Said:
    return at.genenc(["resume", str(at.root), "--plain", *more])


def features(at: scene.Scene) -> np.ndarray:
    return np.asarray(zarr.open_group(at.root / "features.zarr", mode="r")["features"][:])


def state(at: scene.Scene) -> list[int]:
    return np.asarray(zarr.open_group(at.root / "features.zarr", mode="r")["status"][:]).tolist()


Kept = Sequence[tuple[Path, bytes, os.stat_result]]


def empty(kept: Kept) -> None:
    for path, _, _ in kept:
        path.unlink()


def exchanged(kept: Kept) -> None:
    """Another data set under the same names: other images of other sizes."""
    for (path, _, _), (_, other, _) in zip(kept, reversed(kept), strict=True):
        path.write_bytes(other + b"x")


def copied(kept: Kept) -> None:
    """The same bytes with the times of a copy."""
    for path, _, _ in kept:
        os.utime(path, (1_600_000_000, 1_600_000_000))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [(empty, "restore the folder"), (exchanged, "--accept-changed"), (copied, "rsync -t")],
    ids=["unmounted", "another data set", "copied without times"],
)
def test_what_happens_to_all_images_is_recorded_for_none(
    planned: scene.Scene, photos: Kept, change: Callable[[Kept], None], words: str
) -> None:
    change(photos)
    said = resume(planned, "--max-failures", "100%")
    assert (said.code, words in said.err) == (1, True), said.err
    assert scene.problems_of(said) == []
    assert RunFolder(planned.root).store.committed() == set()
    put_back(photos)
    assert resume(planned).code == 0
    assert (features(planned) == planned.final["features"]).all()


def test_shard_without_most_files_fails(planned: scene.Scene, photos: Kept) -> None:
    for name in ("img_001.png", "img_004.png", "img_005.png", "img_006.png"):
        (planned.photos / name).unlink()
    said = resume(planned)
    assert said.code == 1
    assert "3 of its 4 files cannot be read" in said.err
    assert state(planned) == [1, 2, 1, 1, 0, 0, 0, 0, 1, 1, 1]
    assert resume(planned, "--accept-changed").code == 3
    assert state(planned) == [1, 2, 1, 1, 2, 2, 2, 1, 1, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["size", "time", "content"])
def test_unplanned_file_needs_accept_changed(planned: scene.Scene, photos: Kept, kind: str) -> None:
    path, data, status = photos[5]
    assert path.name == ROW
    if kind == "size":
        path.write_bytes(data + b"more")
    elif kind == "content":
        path.write_bytes(photos[7][1])
    else:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**10))
    said = resume(planned)
    assert said.code == 3
    assert "row 5: img_005.png: changed since planned: " in said.out
    assert state(planned)[5] == 2
    accepted = resume(planned, "--shards", "unreadable", "--accept-changed")
    assert accepted.code == 0
    assert "1 stored from files that changed since the run was planned" in accepted.out
    told = json.loads(planned.genenc(["status", str(planned.root), "--json"]).out)
    assert (told["ok"], told["unreadable"], told["changed"]) == (11, 0, 1)
    assert planned.genenc(["verify", str(planned.root), "--content"]).code == 0


@pytest.mark.slow
def test_unreadable_rows_are_tried_again_and_no_other_row_changes(planned: scene.Scene, photos: Kept) -> None:
    for at in (1, 5, 9):
        photos[at][0].unlink()
    assert resume(planned).code == 3
    before = features(planned)
    first = {path.name: path.read_bytes() for path in (planned.root / "_txn" / "commits").iterdir()}
    nothing = resume(planned, "--shards", "unreadable")
    assert nothing.code == 3
    assert {path.name for path in (planned.root / "_txn" / "commits").iterdir()} == set(first)
    put_back(photos)
    one = resume(planned, "--shards", "unreadable:5,7-8")
    assert one.code == 3
    assert state(planned) == [1, 2, 1, 1, 1, 1, 1, 1, 1, 2, 1]
    rest = resume(planned, "--shards", "unreadable")
    assert rest.code == 0
    after = features(planned)
    others = [row for row in range(scene.IMAGES) if row not in (1, 5, 9)]
    assert (after[others] == before[others]).all()
    np.testing.assert_allclose(after, planned.final["features"], rtol=1e-5, atol=1e-6)
    for name, data in first.items():
        assert (planned.root / "_txn" / "commits" / name).read_bytes() == data
    assert planned.genenc(["verify", str(planned.root), "--content"]).code == 0
    assert "nothing to do" in resume(planned, "--shards", "unreadable").out
    told = json.loads(planned.genenc(["status", str(planned.root), "--json"]).out)
    assert (told["ok"], told["unreadable"]) == (11, 0)
    assert not list((planned.root / "_txn" / "staging").iterdir())


def test_rows_to_try_again_that_are_none_are_refused(planned: scene.Scene) -> None:
    for text in ("unreadable:", "unreadable:x", "unreadable:11", "unreadables", "unreadable:3-1"):
        said = resume(planned, "--shards", text)
        assert said.code == 2, said
        assert scene.problems_of(said) == []
