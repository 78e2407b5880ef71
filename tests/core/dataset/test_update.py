"""Every way in which images change between two updates has one stated outcome; nothing is encoded twice."""

import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from PIL import Image

import grown_datasets
import pictures
import s3_server
import tiny_models
from genenc_core import api, errors
from genenc_core.cli import state
from genenc_core.dataset import compact, documents, folder, parts, rows, update, verify
from genenc_core.dataset.parameters import UpdateParameters
from genenc_core.images.labels.point_table import LabelsNotUsed
from genenc_core.run import driver, model_cache, records, status, worker
from genenc_core.run.folder import RunFolder
from genenc_core.run.parameters import Changes, ExtractParameters

Update = Callable[..., update.Updated]
Add = Callable[..., Path]


def test_what_is_of_one_update_is_not_taken_from_a_file() -> None:
    before = {"images": "photos", "model": "m", "fit": "pad", "out": "elsewhere"}
    told = {"trust": True, "limit": 1, "accept_changed": True, "retry_unreadable": True}
    given = UpdateParameters(out="set").completed({**before, **told})
    assert (given.out, given.fit) == ("set", "pad")
    assert not any(getattr(given, name) for name in told)


def test_options_of_a_cluster_are_not_those_of_threads() -> None:
    before = {"images": "photos", "model": "m", "engine": "dask", "engine_workers": 2, "engine_address": "tcp://x:1"}
    given = UpdateParameters(out="set", engine="threads").completed(before)
    assert (given.engine_workers, given.engine_address) == (None, None)
    assert UpdateParameters(out="set").completed(before).engine_workers == 2


def test_a_dataset_cannot_say_that_its_code_is_trusted(
    updated: Update, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = updated()
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    settings = {**records.read_json(done.folder.objects, documents.SETTINGS), "trust": True, "model": "evil:model"}
    records.write_json(done.folder.objects, documents.SETTINGS, settings)
    with pytest.raises(errors.InputError, match="--trust"):
        update.update(UpdateParameters(out=str(tmp_path / "dataset")))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("by", ["", "stat", "content"])
@pytest.mark.parametrize("vanished", ["", "auto", "keep"])
def test_a_value_of_the_form_counts_and_an_empty_one_is_as_before(by: str, vanished: str) -> None:
    before = {"images": "photos", "model": "m", "by": "content", "vanished": "keep"}
    form = UpdateParameters(out="set")
    every = {name: getattr(form, name) for name in UpdateParameters.model_fields}
    given = UpdateParameters.model_validate({**every, "by": by, "vanished": vanished}).as_given().completed(before)
    assert (given.by, given.vanished) == (by or "content", vanished or "keep")
    first = UpdateParameters(images="photos", model="m", out="set").completed({})
    assert (first.by, first.vanished) == ("stat", "auto")


def touch(path: Path) -> None:
    """Give a file another time."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


def counts(done: update.Updated) -> dict[str, int]:
    assert done.version is not None
    return {name: count for name, count in done.version.counts.items() if count}


def part_sizes(done: update.Updated) -> list[int]:
    assert done.version is not None
    return [part.rows for part in done.version.parts]


def assert_like_a_run(done: update.Updated, photos: Path, tmp_path: Path) -> None:
    """The current rows are those of a new run over the images that are there."""
    given = {**vars(done.results[0].run.given), "images": str(photos), "out": str(tmp_path / "whole"), "trust": True}
    run = driver.extract(ExtractParameters.model_validate({**given, "max_failures": "100%"})).run
    group: Any = zarr.open_group(f"{run.root}/features.zarr", mode="r")
    expected = dict(zip(group["image_id"][:].tolist(), np.asarray(group["features"][:]), strict=True))
    found = grown_datasets.vectors(done)
    assert sorted(found) == sorted(expected)
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_first_update_is_a_run_and_a_version(updated: Update, photos: Path, tmp_path: Path) -> None:
    done = updated()
    assert counts(done) == {"rows": 6, "new": 6}
    assert done.exit_code == 0
    assert (tmp_path / "dataset" / "README.md").exists()
    assert_like_a_run(done, photos, tmp_path)


def test_nothing_new_writes_nothing(updated: Update, tmp_path: Path) -> None:
    updated()
    before = stamps(tmp_path / "dataset")
    again = updated()
    assert (again.before, again.version and again.version.version, again.results) == (1, 1, ())
    assert stamps(tmp_path / "dataset") == before


def stamps(place: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in place.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_new_changed_and_vanished_images(updated: Update, photos: Path, add: Add, tmp_path: Path) -> None:
    first = updated()
    old = grown_datasets.vectors(first)
    add("new.png", seed=60)
    add("img_001.png", seed=61)
    (photos / "img_005.png").unlink()
    second = updated()
    assert counts(second) == {"rows": 6, "new": 1, "changed": 1, "withdrawn": 1}
    assert part_sizes(second) == [6, 2]
    assert_like_a_run(second, photos, tmp_path)
    # The first version is what it was, and reads the same.
    kept = grown_datasets.vectors(second, 1)
    assert sorted(kept) == sorted(old)
    assert all(np.array_equal(kept[name], old[name]) for name in old)


@pytest.mark.slow
def test_a_mended_image_heals(updated: Update, photos: Path, add: Add, tmp_path: Path) -> None:
    (photos / "img_002.png").write_bytes(b"no image")
    first = updated()
    assert counts(first) == {"rows": 6, "new": 6, "unreadable": 1}
    assert first.exit_code == 3
    assert updated().results == ()
    add("img_002.png", seed=2)
    second = updated()
    assert counts(second) == {"rows": 6, "changed": 1}
    assert second.exit_code == 0
    assert_like_a_run(second, photos, tmp_path)


@pytest.mark.slow
def test_unreadable_images_are_tried_again_on_request(updated: Update, photos: Path) -> None:
    (photos / "img_002.png").write_bytes(b"no image")
    updated()
    again = updated(retry_unreadable=True)
    assert counts(again) == {"rows": 6, "unreadable": 1, "retried": 1}
    assert part_sizes(again) == [6, 1]


@pytest.mark.slow
def test_a_run_of_another_meaning_is_no_part(updated: Update, photos: Path, add: Add, tmp_path: Path) -> None:
    done = updated()
    given = {**vars(done.results[0].run.given), "weights": "random:1", "trust": True, "images": str(photos)}
    inside = str(tmp_path / "dataset" / "parts" / "p000002")
    with pytest.raises(errors.InputError, match="is a part of the dataset"):
        driver.extract(ExtractParameters.model_validate({**given, "out": inside}))
    add("new.png")
    with pytest.raises(errors.StoreError, match="is a run of another model or other options than the dataset"):
        updated()


def test_a_part_does_not_heal_in_place(updated: Update, photos: Path, tmp_path: Path) -> None:
    (photos / "img_002.png").write_bytes(b"no image")
    run = updated().results[0].run
    with pytest.raises(errors.InputError, match=r"genenc update .* --retry-unreadable"):
        driver.resume(run, "unreadable", Changes(trust=True))
    (tmp_path / "part").symlink_to(run.root)
    (tmp_path / "all").symlink_to(tmp_path / "dataset" / "parts")
    for link in (tmp_path / "part", tmp_path / "all" / "p000001"):
        with pytest.raises(errors.InputError, match="is a part of the dataset"):
            driver.resume(RunFolder(link), "unreadable", Changes(trust=True))
        with pytest.raises(errors.InputError, match="is a part of the dataset"):
            api.Run.open(link).repair()
    said = "\n".join(status.summary_lines(status.survey(run), None))
    assert f"to retry them: genenc update {tmp_path / 'dataset'} for files" in said
    (victim, *_) = (Path(run.root) / "features.zarr" / "features").glob("c*")
    victim.write_bytes(b"x")
    with pytest.raises(errors.StoreError, match="restore this part of the dataset"):
        status.require_intact(run)
    (lines,) = state._advice(run.root, status.verify_run(run))
    commands = re.findall("genenc [a-z]+", f"{said} {lines}")
    assert {*commands} == {"genenc update"}  # resume and verify --repair are refused
    words = Path(run.root, "README.md").read_text()
    assert re.findall("genenc [a-z]+ [^`]*", words) == ["genenc verify ../..", "genenc update ../.."]


@pytest.mark.slow
def test_a_touched_file_is_encoded_again_by_time(updated: Update, photos: Path) -> None:
    updated()
    touch(photos / "img_003.png")
    assert counts(updated()) == {"rows": 6, "changed": 1}


@pytest.mark.slow
def test_by_content_a_touched_file_keeps_its_row(updated: Update, photos: Path) -> None:
    updated()
    touch(photos / "img_003.png")
    second = updated(by="content")
    assert counts(second) == {"rows": 6, "touched": 1}
    assert part_sizes(second) == [6]
    assert updated().results == ()  # the new time is recorded


@pytest.mark.slow
def test_by_content_a_renamed_file_keeps_its_row(updated: Update, photos: Path, tmp_path: Path) -> None:
    first = updated()
    old = grown_datasets.vectors(first)
    (photos / "img_003.png").rename(photos / "other.png")
    second = updated(by="content")
    assert counts(second) == {"rows": 6, "renamed": 1}
    assert part_sizes(second) == [6]
    assert np.array_equal(grown_datasets.vectors(second)["other.png"], old["img_003.png"])
    assert "img_003.png" not in grown_datasets.vectors(second)
    # Renamed once more, then deleted: each outcome replaces the one before.
    (photos / "other.png").rename(photos / "third.png")
    assert np.array_equal(grown_datasets.vectors(updated(by="content"))["third.png"], old["img_003.png"])
    (photos / "third.png").unlink()
    last = updated(by="content")
    assert counts(last) == {"rows": 5, "withdrawn": 1}
    assert len(grown_datasets.vectors(last)) == 5


@pytest.mark.slow
def test_by_content_a_name_that_went_to_another_file_is_changed(updated: Update, photos: Path, tmp_path: Path) -> None:
    updated()
    one, other = photos / "img_000.png", photos / "img_001.png"
    one.rename(photos / "between.png")
    other.rename(one)
    (photos / "between.png").rename(other)
    second = updated(by="content")
    assert counts(second)["rows"] == 6
    assert_like_a_run(second, photos, tmp_path)


@pytest.mark.slow
def test_an_image_under_a_new_name_is_in_a_version_once(
    updated: Update, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part planned by time is continued by an update that compares by content."""
    updated()
    (photos / "img_003.png").rename(photos / "other.png")
    with monkeypatch.context() as patched:
        patched.setattr(update.Update, "encode", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            updated()
    done = updated(by="content")
    names = rows.current(done.folder, done.folder.version()).table.column("image_id").to_pylist()
    assert sorted(names) == sorted(path.name for path in photos.iterdir())


@pytest.mark.slow
def test_an_image_that_is_kept_keeps_its_row(updated: Update, photos: Path, tmp_path: Path) -> None:
    """Another folder has a file of the same content, such as a dark frame."""
    updated()
    (tmp_path / "second").mkdir()
    shutil.copy2(photos / "img_000.png", tmp_path / "second" / "dark.png")
    done = updated(images=str(tmp_path / "second"), by="content", vanished="keep")
    assert counts(done) == {"rows": 7, "new": 1}
    assert {"img_000.png", "dark.png"} < grown_datasets.vectors(done).keys()


@pytest.mark.slow
def test_a_continued_update_is_up_to_date(
    updated: Update, photos: Path, add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image changes after the shard with it was committed, and before the update is continued."""
    with monkeypatch.context() as patched:
        patched.setattr(update.Update, "make_version", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            updated()
    add("img_001.png", seed=77)
    done = updated()
    assert counts(done) == {"rows": 6, "changed": 1}
    assert_like_a_run(done, photos, tmp_path)


@pytest.mark.slow
def test_rows_of_a_version_are_read_once(
    updated: Update, photos: Path, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left after a version of its own part is known without them."""
    updated()
    add("new.png", seed=60)
    add("img_001.png", seed=61)
    (photos / "img_005.png").unlink()
    read: list[int] = []
    current = rows.current

    def noted(folder: Any, version: Any) -> rows.CurrentRows:
        read.append(version.version)
        return current(folder, version)

    monkeypatch.setattr(rows, "current", noted)
    assert counts(updated()) == {"rows": 6, "new": 1, "changed": 1, "withdrawn": 1}
    assert read == [1]


@pytest.mark.slow
def test_most_images_gone_is_refused(updated: Update, photos: Path, tmp_path: Path) -> None:
    updated()
    elsewhere = pictures.write_folder(tmp_path / "elsewhere", 2, seed=30)
    for path in elsewhere.iterdir():
        path.rename(elsewhere / f"more_{path.name}")
    with pytest.raises(errors.InputError, match=r"6 of the dataset's 6 images are not in.*--vanished keep"):
        updated(images=str(elsewhere))
    kept = updated(images=str(elsewhere), vanished="keep")
    assert counts(kept) == {"rows": 8, "new": 2}
    assert counts(updated(images=str(elsewhere), vanished="withdraw")) == {"rows": 2, "withdrawn": 6}


@pytest.mark.slow
@pytest.mark.parametrize("points", [False, True])
def test_all_images_are_withdrawn_only_if_that_is_asked_for(
    updated: Update, photos: Path, add: Add, tmp_path: Path, points: bool
) -> None:
    (tmp_path / "points.csv").write_text("image,point,x,y\nimg_000.png,nose,20,30\nnew.png,nose,21,31\n")
    given = {"points": str(tmp_path / "points.csv")} if points else {}
    updated(**given)
    for path in photos.iterdir():
        path.unlink()
    for vanished in ("auto", "keep"):
        with pytest.raises(errors.InputError, match=r"no images found .* has 6: .* --vanished withdraw"):
            updated(vanished=vanished, **given)
    gone = updated(vanished="withdraw", **given)
    assert counts(gone) == {"withdrawn": 6}
    assert api.Dataset.open(str(tmp_path / "dataset")).arrays().sizes["image"] == 0
    assert verify.verify(gone.folder).ok
    assert updated(**given).results == ()
    add("new.png", seed=60)
    assert counts(updated(**given)) == {"rows": 1, "new": 1}
    assert api.Dataset.open(str(tmp_path / "dataset"), version=1).arrays().sizes["image"] == 6


@pytest.mark.slow
def test_weights_are_stored_once_and_may_go(updated: Update, add: Add, tmp_path: Path) -> None:
    """Parts share the file by hard links, each with a name of its own; the next update takes it from there."""
    weights = tmp_path / "weights.pt"
    torch.save(tiny_models.conv().state_dict(), weights)
    first = updated(weights=str(weights))
    for name, left in (("b.png", True), ("c.png", False)):
        add(name, seed=70)
        if not left:
            weights.unlink()
        model_cache.CACHE.clear()
        update.update(UpdateParameters(out=str(tmp_path / "dataset"), trust=True))
    assert counts(updated(weights=str(weights))) == {"rows": 8, "new": 1}  # named again, and gone
    copies = [tmp_path / "dataset" / "parts" / f"p00000{at}" / "model" / "weights.pt" for at in (1, 2, 3)]
    assert len({copy.stat().st_ino for copy in copies}) == 1
    copies[0].unlink()
    assert status.verify_place(copies[2].parents[1]).ok
    # A file that has other weights by now is not those of the dataset, unless they are asked for.
    torch.save(tiny_models.conv().state_dict(), weights)
    add("d.png", seed=71)
    update.update(UpdateParameters(out=str(tmp_path / "dataset"), trust=True))
    for named in (weights, tmp_path / "other.pt"):
        with pytest.raises(errors.OtherRunError, match="weights"):
            updated(weights=str(weights if named == weights else weights.rename(named)))
    assert documents.read_version(first.folder.objects, 4).version.counts["rows"] == 9


@pytest.mark.slow
def test_weights_on_s3_are_copied_by_the_server(
    updated: Update, add: Add, tmp_path: Path, s3: s3_server.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genenc_core.store.backends import s3_objects

    weights = tmp_path / "weights.pt"
    torch.save(tiny_models.conv().state_dict(), weights)
    out = f"s3://{s3.bucket}/tests/{uuid.uuid4().hex[:12]}/dataset"
    updated(weights=str(weights), out=out)
    written: list[str] = []
    put = s3_objects.S3Objects._put

    def noted(self: s3_objects.S3Objects, key: str, data: Any) -> None:
        written.append(key)
        put(self, key, data)

    monkeypatch.setattr(s3_objects.S3Objects, "_put", noted)
    add("b.png", seed=70)
    weights.unlink()
    model_cache.CACHE.clear()
    done = update.update(UpdateParameters(out=out, trust=True))
    assert counts(done) == {"rows": 7, "new": 1}
    assert "model_spec.json" in written
    assert [key for key in written if "model/" in key] == []
    one, other = (done.folder.objects.read(f"parts/p00000{at}/model/weights.pt") for at in (1, 2))
    assert one == other
    assert verify.verify(done.folder).ok


@pytest.mark.slow
def test_weights_are_copied_where_there_are_no_hard_links(
    updated: Update, add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(tiny_models.conv().state_dict(), tmp_path / "weights.pt")
    updated(weights=str(tmp_path / "weights.pt"))
    add("b.png", seed=70)
    link = os.link

    def refused(source: Any, target: Any, **more: Any) -> None:
        if Path(source).name == "weights.pt":
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(source, target, **more)

    monkeypatch.setattr(os, "link", refused)
    updated(weights=str(tmp_path / "weights.pt"))
    copies = [tmp_path / "dataset" / "parts" / f"p00000{at}" / "model" / "weights.pt" for at in (1, 2)]
    assert len({copy.stat().st_ino for copy in copies}) == 2
    assert copies[0].read_bytes() == copies[1].read_bytes()


@pytest.mark.slow
def test_later_updates_need_no_options(updated: Update, add: Add, tmp_path: Path) -> None:
    updated()
    add("new.png", seed=70)
    given = UpdateParameters(out=str(tmp_path / "dataset"), trust=True)
    assert counts(update.update(given)) == {"rows": 7, "new": 1}


@pytest.mark.slow
def test_keeping_what_vanished_and_comparing_by_content_are_remembered(updated: Update, tmp_path: Path) -> None:
    updated()
    more = pictures.write_folder(tmp_path / "more", 2, seed=30)
    for path in sorted(more.iterdir()):
        path.rename(more / f"more_{path.name}")
    updated(images=str(more), vanished="keep", by="content")
    touch(more / "more_img_000.png")
    again = update.update(UpdateParameters(out=str(tmp_path / "dataset"), trust=True))
    assert counts(again) == {"rows": 8, "touched": 1}


@pytest.mark.slow
def test_withdrawing_most_is_asked_for_each_time(updated: Update, photos: Path, tmp_path: Path) -> None:
    updated()
    for path in sorted(photos.iterdir())[:4]:
        path.unlink()
    assert counts(updated(vanished="withdraw")) == {"rows": 2, "withdrawn": 4}
    for path in sorted(photos.iterdir()):
        path.rename(path.with_stem(f"other_{path.stem}"))
    with pytest.raises(errors.InputError, match="--vanished withdraw"):
        update.update(UpdateParameters(out=str(tmp_path / "dataset"), trust=True))


@pytest.mark.slow
def test_relative_places_are_of_the_folder_where_they_were_given(
    updated: Update, photos: Path, add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "points.csv").write_text("image,point,x,y\nimg_000.png,nose,20,30\n")
    updated(images="photos", points="points.csv")
    pictures.write_folder(tmp_path / "elsewhere" / "photos", 6, seed=70)
    monkeypatch.chdir(tmp_path / "elsewhere")
    add("new.png", seed=90)
    done = update.update(UpdateParameters(out=str(tmp_path / "dataset"), trust=True))
    assert counts(done) == {"rows": 7, "new": 1}


@pytest.mark.slow
def test_a_place_that_only_moved_is_remembered(updated: Update, photos: Path, tmp_path: Path) -> None:
    updated()
    moved = photos.rename(tmp_path / "moved")
    assert updated(images=str(moved)).results == ()
    shutil.copy(moved / "img_000.png", moved / "new.png")
    done = update.update(UpdateParameters(out=str(tmp_path / "dataset"), trust=True))
    assert counts(done) == {"rows": 7, "new": 1}


@pytest.mark.slow
def test_a_limit_is_of_one_update(updated: Update, photos: Path, add: Add, tmp_path: Path) -> None:
    assert counts(updated(limit=2)) == {"rows": 2, "new": 2}
    assert counts(updated(limit=3)) == {"rows": 5, "new": 3}
    (photos / "img_000.png").unlink()
    add("img_001.png", seed=90)
    assert counts(updated(limit=1)) == {"rows": 5, "changed": 1}
    whole = update.update(UpdateParameters(out=str(tmp_path / "dataset"), trust=True))
    assert counts(whole) == {"rows": 5, "new": 1, "withdrawn": 1}
    with pytest.raises(errors.InputError, match="--limit 0"):
        updated(limit=0)


@pytest.mark.slow
@pytest.mark.parametrize("vanished", ["auto", "keep"])
def test_other_files_of_the_same_names_elsewhere_are_refused(updated: Update, tmp_path: Path, vanished: str) -> None:
    """A folder per day or camera, each with the same names; or the wrong volume."""
    first = updated()
    other = pictures.write_folder(tmp_path / "other", 6, seed=60)
    with pytest.raises(errors.InputError, match=r"6 images are other files in .*other.*such as 'img_000\.png'"):
        updated(images=str(other), vanished=vanished)
    assert first.folder.versions() == [1]
    assert counts(updated(images=str(other), vanished="withdraw")) == {"rows": 6, "changed": 6}


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_other_files_of_the_same_names_are_found_after_a_compaction(
    updated: Update, tmp_path: Path, times: int
) -> None:
    """Of equal size and time too, as out of an archive: the rows of a compacted part come from several folders."""

    def day(number: int, *names: str) -> str:
        folder = tmp_path / f"day{number}"
        folder.mkdir()
        for at, name in enumerate(names):
            Image.new("RGB", (32, 32), (10 * number + at, 0, 0)).save(folder / name)
            os.utime(folder / name, ns=(10**18, 10**18))
        return str(folder)

    updated(images=day(1, "a0.bmp", "a1.bmp"))
    for number in range(2, 2 + times):
        made = updated(images=day(number, f"b{number}.bmp"), vanished="keep")
        compact.compact(made.folder)
    known = rows.current(made.folder, made.folder.version())
    days = [known.roots[code].name for code in known.root_of]
    assert days == ["day1", "day1", *(f"day{number}" for number in range(2, 2 + times))]
    other = day(5, "a0.bmp", "a1.bmp", "c.bmp")
    with pytest.raises(errors.InputError, match=r"2 of the dataset's \d images are other files in"):
        updated(images=other, vanished="keep")
    assert counts(updated(images=other, vanished="withdraw")) == {
        "rows": 3,
        "new": 1,
        "changed": 2,
        "withdrawn": times,
    }


def test_recorded_code_needs_trust(updated: Update, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    updated()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user's"))
    with pytest.raises(errors.InputError, match="--trust"):
        update.update(UpdateParameters(out=str(tmp_path / "dataset")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": "64"}, "preprocessing.height: 32 -> 64"),
        ({"weights": "random:1"}, "weights"),
        ({"fit": "crop"}, "preprocessing.fit"),
        ({"products": ("other=global_avg_pool",)}, "products"),
        ({"dtype": "float16"}, "products"),
    ],
)
def test_another_meaning_is_refused(updated: Update, tmp_path: Path, changes: Mapping[str, object], words: str) -> None:
    updated()
    before = stamps(tmp_path / "dataset")
    with pytest.raises(errors.OtherRunError, match=words):
        updated(**changes)
    assert stamps(tmp_path / "dataset") == before


def labels(place: Path, lines: Mapping[str, str]) -> str:
    place.write_text("\n".join(["image,point,x,y", *(f"{name},{rest}" for name, rest in lines.items())]) + "\n")
    return str(place)


@pytest.mark.slow
def test_labels_that_change_are_encoded_again(updated: Update, add: Add, tmp_path: Path) -> None:
    table = {f"img_{at:03d}.png": f"nose,{20 + at},30" for at in range(6)}
    points = labels(tmp_path / "points.csv", table)
    updated(points=points)
    table["img_004.png"] = "nose,50,31"
    add("new.png", seed=80)
    table["new.png"] = "nose,11,12"
    done = updated(points=labels(tmp_path / "points.csv", table))
    assert counts(done) == {"rows": 7, "new": 1, "points_changed": 1}


@pytest.mark.slow
def test_other_points_are_refused_and_fewer_are_missing(updated: Update, add: Add, tmp_path: Path) -> None:
    both = [f"img_{at:03d}.png,{point},20,30" for at in range(6) for point in ("nose", "tail")]
    (tmp_path / "points.csv").write_text("\n".join(["image,point,x,y", *both]) + "\n")
    updated(points=str(tmp_path / "points.csv"))
    add("new.png", seed=81)
    (tmp_path / "points.csv").write_text("\n".join(["image,point,x,y", "new.png,tail,9,9", *both]) + "\n")
    done = updated(points=str(tmp_path / "points.csv"))  # tail comes first in the file now
    assert counts(done) == {"rows": 7, "new": 1}
    assert rows.current(done.folder, done.version).points[-1].tolist()[1] == [9, 9]
    (tmp_path / "points.csv").write_text("\n".join(["image,point,x,y", *both, "new.png,paw,9,9"]) + "\n")
    with pytest.raises(errors.OtherRunError, match="points: nose, tail -> nose, tail, paw"):
        updated(points=str(tmp_path / "points.csv"))


@pytest.mark.slow
@pytest.mark.parametrize("earlier", [False, True])
def test_labels_of_an_individual_are_no_others(
    updated: Update, add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    """Refused, but in datasets that were made when the column of individuals was not read: taken, with a warning."""
    place = tmp_path / "points.csv"

    def without(identity: Mapping[str, Any], points: list[str], *_more: Any) -> dict[str, Any]:
        return {"schema": documents.DATASET_SCHEMA, "identity": dict(identity), "points": points}

    place.write_text("image,point,x,y\nimg_000.png,nose,20,30\n")
    with monkeypatch.context() as before:
        if earlier:
            before.setattr(documents, "meaning_to_json", without)
        updated(points=str(place))
    add("new.png", seed=81)
    place.write_text("image,point,x,y,individual\nimg_000.png,nose,20,30,m1\nnew.png,nose,9,9,m1\n")
    if earlier:
        with pytest.warns(LabelsNotUsed, match="the labels of m1 are taken as those of nose, since this dataset"):
            assert counts(updated(points=str(place))) == {"rows": 7, "new": 1}
        return
    with pytest.raises(errors.OtherRunError, match=r"points: nose -> m1\.nose"):
        updated(points=str(place))


@pytest.mark.slow
def test_shards_that_fail_are_left_to_the_next_update(
    updated: Update, photos: Path, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in range(3):
        (photos / f"img_{at:03d}.png").write_bytes(b"no image")
    done = updated(shard_rows=3, max_failures="0")
    assert [failure.shard for failure in done.failures] == [0]
    assert done.exit_code == 1
    assert counts(done) == {"rows": 3, "new": 3, "not_encoded": 3}
    for at in range(3):
        add(f"img_{at:03d}.png", seed=at)
    healed = updated(shard_rows=3, max_failures="0")
    assert counts(healed) == {"rows": 6, "new": 3}
    assert part_sizes(healed) == [6, 3]


@pytest.mark.slow
def test_an_update_that_was_killed_goes_on(
    updated: Update, photos: Path, add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = worker.Worker.encode

    def killed(self: worker.Worker, shard: int, *given: Any, **more: Any) -> Any:
        if shard == 2:
            raise KeyboardInterrupt
        return encode(self, shard, *given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(worker.Worker, "encode", killed)
        with pytest.raises(KeyboardInterrupt):
            updated(shard_rows=2)
    assert folder.DatasetFolder(tmp_path / "dataset").versions() == []
    add("new.png", seed=90)  # what came meanwhile is a further part
    done = updated(shard_rows=2)
    # Of the two shards that were worked on when it was killed the other may be stored.
    assert [result.asked for result in done.results] in ([1, 1], [2, 1])
    assert part_sizes(done) == [6, 1]
    assert done.version is not None
    assert done.version.version == 2
    assert_like_a_run(done, photos, tmp_path)


@pytest.mark.slow
def test_a_part_whose_files_are_gone_is_planned_again(
    updated: Update, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(update.Update, "encode", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            updated()
    for at in range(2):
        (photos / f"img_{at:03d}.png").unlink()
    done = updated()
    assert counts(done) == {"rows": 4, "new": 4}
    assert done.version is not None
    assert [part.name for part in done.version.parts] == ["p000002"]


def test_a_kill_between_part_and_version_encodes_nothing_again(
    updated: Update, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(folder.DatasetFolder, "create_version", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            updated()
    done = updated()
    assert [result.asked for result in done.results] == [0]
    assert counts(done) == {"rows": 6, "new": 6}


@pytest.mark.slow
def test_of_two_that_make_a_version_one_wins_and_the_other_looks_again(
    updated: Update, photos: Path, add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another update makes the version while this one is about to: the part is not encoded twice, no row is lost."""
    updated()
    add("new.png", seed=91)
    create = folder.DatasetFolder.create_version
    others: list[update.Updated] = []

    def late(self: folder.DatasetFolder, version: documents.Version) -> bool:
        monkeypatch.setattr(folder.DatasetFolder, "create_version", create)
        add("newer.png", seed=92)
        add("img_001.png", seed=93)
        others.append(updated())
        return create(self, version)

    monkeypatch.setattr(folder.DatasetFolder, "create_version", late)
    done = updated()
    (other,) = others
    assert [result.asked for result in other.results] == [0, 1]
    assert part_sizes(other) == [6, 1, 2]
    assert done.version == other.version
    assert other.version is not None
    assert other.version.changes is not None
    kept = [path.name for path in (tmp_path / "dataset" / "versions").glob("*.parquet")]
    assert kept == [other.version.changes.file]


@pytest.mark.slow
def test_a_part_that_is_made_while_another_looks_for_one_is_shared(
    updated: Update, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    updated()
    add("new.png", seed=91)
    unfinished = parts.unfinished

    def late(*given: Any, **more: Any) -> Any:
        found = unfinished(*given, **more)
        monkeypatch.setattr(parts, "unfinished", unfinished)
        updated()
        return found

    monkeypatch.setattr(parts, "unfinished", late)
    done = updated()
    assert [result.asked for result in done.results] == [0]
    assert part_sizes(done) == [6, 1]
    assert done.folder.parts() == [1, 2]


@pytest.mark.slow
def test_versions_are_chained(updated: Update, add: Add) -> None:
    first = updated()
    add("new.png", seed=93)
    second = updated()
    assert second.version is not None
    assert second.version.previous == documents.read_version(first.folder.objects, 1).digest


@pytest.mark.parametrize(
    ("name", "words"),
    [("features.zarr", "holds a run: give"), ("notes.txt", r"not a dataset .it holds 'notes\.txt'")],
)
def test_a_folder_with_something_else_is_left_alone(updated: Update, tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / name).write_text("mine")
    with pytest.raises(errors.InputError, match=words):
        updated()
    assert [path.name for path in (tmp_path / "dataset").iterdir()] == [name]


def test_a_failed_first_update_leaves_no_folder(updated: Update, tmp_path: Path) -> None:
    with pytest.raises(errors.InputError):
        updated(image_size="0")
    with pytest.raises(errors.InputError):
        updated(products=("a=no_such_module",))
    assert not (tmp_path / "dataset").exists()


def test_a_first_update_needs_images_and_a_model(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(errors.InputError, match="IMAGES is missing"):
        update.update(UpdateParameters(out=str(tmp_path / "d"), model="resnet18"))
    with pytest.raises(errors.InputError, match="--model is missing"):
        update.update(UpdateParameters(out=str(tmp_path / "d"), images=str(photos)))


def test_a_damaged_document_is_named(updated: Update, tmp_path: Path) -> None:
    updated()
    document = tmp_path / "dataset" / "versions" / "v000001.json"
    document.write_text(json.dumps({**json.loads(document.read_text()), "last_part": 7}))
    with pytest.raises(errors.StoreError, match=r"v000001\.json.* was changed after it was written"):
        updated()
