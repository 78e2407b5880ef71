"""Datasets of images inside files and on S3: new members become a part, by the mark of their file or by content."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest

import containers
import pictures
import s3_server
from genenc_core import api, errors
from genenc_core.dataset import compact, update, verify
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.system import s3 as access

pytestmark = pytest.mark.slow
FRAMES = containers.frames(8)
Update = Callable[..., update.Updated]
KINDS: dict[str, dict[str, Any]] = {name: {"frames": "all"} if name == "tiff" else {} for name in containers.WRITERS}


@pytest.fixture(params=list(containers.WRITERS))
def kind(request: pytest.FixtureRequest) -> str:
    """A kind of container that can be read here."""
    if request.param in containers.NEEDS:
        pytest.importorskip(containers.NEEDS[request.param])
    return str(request.param)


def counts(done: update.Updated) -> dict[str, int]:
    assert done.version is not None
    return {name: count for name, count in done.version.counts.items() if count}


def vectors(place: Path) -> dict[str, np.ndarray]:
    rows = api.Dataset.open(place).arrays()
    return dict(zip(rows.image_id.values.tolist(), rows.features.values, strict=True))


def rewrite(kind: str, folder: Path, shown: Any) -> Path:
    """Write a container anew, with another time than before."""
    if (folder / "stack.zarr").exists():
        shutil.rmtree(folder / "stack.zarr")
    path = containers.WRITERS[kind](folder, shown)
    if path.is_file():
        os.utime(path, ns=(10**18, 10**18 + len(shown) * 10**9))
    return path


@pytest.mark.parametrize("by", ["stat", "content"])
def test_members_that_are_added_become_a_part(updated: Update, tmp_path: Path, kind: str, by: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    path = rewrite(kind, folder, FRAMES[:4])
    given: dict[str, Any] = {"images": str(path), "by": by, **KINDS[kind]}
    assert counts(updated(**given)) == {"rows": 4, "new": 4}
    first = vectors(tmp_path / "dataset")
    assert updated(**given).made == ()

    rewrite(kind, folder, FRAMES[:6])
    done = updated(**given)
    # The mark of the file is all that is known of a member, unless it is read.
    kept = {"touched": 4} if by == "content" else {"changed": 4}
    assert counts(done) == {"rows": 6, "new": 2, **kept}
    assert sum(result.status.rows for result in done.results) == (2 if by == "content" else 6)
    assert updated(**given).made == ()
    now = vectors(tmp_path / "dataset")
    assert len(now) == 6
    for name, vector in first.items():
        np.testing.assert_allclose(now[name], vector, rtol=1e-4, atol=1e-6)

    run = api.extract(str(path), "tiny_models:conv", str(tmp_path / "run"), trust=True, **KINDS[kind], **MODEL)
    of_run = dict(zip(run.arrays().image_id.values.tolist(), run.arrays().features.values, strict=True))
    assert of_run.keys() == now.keys()
    for name, vector in of_run.items():
        np.testing.assert_allclose(now[name], vector, rtol=1e-4, atol=1e-6)
    assert verify.verify(DatasetFolder(tmp_path / "dataset"), content=True).ok


MODEL: dict[str, Any] = {"weights": "random:0", "image_size": "32", "device": "cpu"}


@pytest.mark.parametrize("by", ["stat", "content"])
def test_a_changed_member_and_one_that_went(updated: Update, tmp_path: Path, by: str) -> None:
    path = rewrite("tar", tmp_path, FRAMES[:6])
    given: dict[str, Any] = {"images": str(path), "by": by}
    updated(**given)
    rewrite("tar", tmp_path, [*FRAMES[:2], FRAMES[7], FRAMES[3]])
    found = counts(updated(**given))
    if by == "content":
        assert found == {"rows": 4, "withdrawn": 2, "changed": 1, "touched": 3}
    else:
        assert found == {"rows": 4, "withdrawn": 2, "changed": 4}


def test_another_file_is_a_part_of_its_own(updated: Update, tmp_path: Path) -> None:
    for number in range(2):
        shutil.move(containers.write_tar(tmp_path, FRAMES[3 * number : 3 * number + 3]), tmp_path / f"{number}.tar")
    given: dict[str, Any] = {"images": str(tmp_path / "*.tar")}
    assert counts(updated(**given)) == {"rows": 6, "new": 6}
    shutil.move(containers.write_tar(tmp_path, FRAMES[6:]), tmp_path / "2.tar")
    done = updated(**given)
    assert counts(done) == {"rows": 8, "new": 2}
    run = done.results[0].run
    assert run.manifest.read(0, 2).image_ids == ["2.tar/n/000.png", "2.tar/n/001.png"]
    assert [bool(member) for member in run.manifest.read(0, 2).members] == [True, True]
    (tmp_path / "0.tar").rename(tmp_path / "9.tar")
    assert counts(updated(**given, by="content")) == {"rows": 8, "renamed": 3}
    before = vectors(tmp_path / "dataset")
    assert {name.partition("/")[0] for name in before} == {"9.tar", "1.tar", "2.tar"}
    made = compact.compact(DatasetFolder(tmp_path / "dataset"), below=100).made
    assert len(made) == 1
    after = vectors(tmp_path / "dataset")
    assert list(after) == list(before)
    np.testing.assert_array_equal(list(after.values()), list(before.values()))
    part = DatasetFolder(tmp_path / "dataset").part(made[0].part)
    assert part.manifest.has_members
    assert all(part.manifest.read(0, 8).members)
    assert updated(**given, by="content").made == ()
    assert verify.verify(DatasetFolder(tmp_path / "dataset"), content=True).ok


def test_unreadable_members_are_tried_again(updated: Update, tmp_path: Path) -> None:
    path = containers.write_tar(tmp_path, FRAMES[:3], more={"n/9.png": b"no image"})
    given: dict[str, Any] = {"images": str(path)}
    assert counts(updated(**given)) == {"rows": 4, "new": 4, "unreadable": 1}
    assert updated(**given).made == ()
    assert counts(updated(**given, retry_unreadable=True)) == {"rows": 4, "retried": 1, "unreadable": 1}


def test_a_dataset_is_of_one_kind(updated: Update, tmp_path: Path, photos: Path) -> None:
    path = containers.write_tar(tmp_path, FRAMES[:3])
    updated(images=str(path))
    with pytest.raises(errors.InputError, match="holds image files, and this dataset is of images inside files"):
        updated(images=str(photos), vanished="keep")
    other = {"out": str(tmp_path / "other")}
    updated(**other)
    with pytest.raises(errors.InputError, match="holds images inside files, or on S3, and this dataset is of image"):
        updated(images=str(path), vanished="keep", **other)


def test_labels_of_members(updated: Update, tmp_path: Path) -> None:
    path = containers.write_tar(tmp_path, FRAMES[:3])
    table = tmp_path / "points.csv"
    table.write_text("image,point,x,y\nimages.tar/n/000.png,tip,3,4\nimages.tar/n/001.png,tip,5,6\n")
    given: dict[str, Any] = {"images": str(path), "points": str(table)}
    updated(**given)
    table.write_text("image,point,x,y\nimages.tar/n/000.png,tip,3,4\nimages.tar/n/001.png,tip,9,6\n")
    assert counts(updated(**given)) == {"rows": 3, "points_changed": 1}
    probes = api.Dataset.open(tmp_path / "dataset").arrays().point_x
    assert probes.sel(image_id="images.tar/n/001.png", point="tip") == 9


@pytest.fixture
def prefix(s3: s3_server.Server) -> Iterator[tuple[str, Any]]:
    """A prefix of a bucket with three images, and its store."""
    key = f"images/{uuid.uuid4().hex[:12]}"
    store = access.open_store(s3.bucket, key)
    for at in range(3):
        obstore.put(store, f"a/{at}.png", containers.png(FRAMES[at]))
    yield f"s3://{s3.bucket}/{key}", store
    obstore.delete(store, [item["path"] for page in obstore.list(store) for item in page])


@pytest.mark.parametrize("by", ["stat", "content"])
def test_objects(updated: Update, prefix: tuple[str, Any], tmp_path: Path, by: str) -> None:
    images, store = prefix
    given: dict[str, Any] = {"images": images, "by": by}
    assert counts(updated(**given)) == {"rows": 3, "new": 3}
    assert updated(**given).made == ()
    obstore.put(store, "a/3.png", containers.png(FRAMES[3]))
    obstore.put(store, "a/1.png", containers.png(FRAMES[5]))  # perhaps of the same size, in the same second
    obstore.delete(store, "a/0.png")
    assert counts(updated(**given)) == {"rows": 3, "new": 1, "changed": 1, "withdrawn": 1}
    assert updated(**given).made == ()
    assert sorted(vectors(tmp_path / "dataset")) == ["a/1.png", "a/2.png", "a/3.png"]
    for at in (1, 2):
        data = bytes(obstore.get(store, f"a/{at}.png").bytes())
        own = pictures.write_folder(tmp_path / f"one-{at}", 1) / "img_000.png"
        own.write_bytes(data)
        alone = api.encode([own], "tiny_models:conv", trust=True, **MODEL)["features"][0]
        np.testing.assert_allclose(vectors(tmp_path / "dataset")[f"a/{at}.png"], alone, rtol=1e-4, atol=1e-6)


def test_frames_of_other_channels(updated: Update, tmp_path: Path) -> None:
    """Which axes of an array are channels is known from the model; by content frames are compared as they are read."""
    np.save(tmp_path / "six.npy", np.random.default_rng(0).integers(0, 9, (3, 6, 32, 32), np.uint8))
    given = {"images": str(tmp_path / "six.npy"), "model": "tiny_models:six_bands", "image_size": None}
    assert counts(updated(**given)) == {"rows": 3, "new": 3}
    os.utime(tmp_path / "six.npy")
    assert counts(updated(**given, by="content")) == {"rows": 3, "touched": 3}
