"""Files of one size and time, as an archive of uncompressed frames leaves them, are not taken for one another."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import grown_datasets
from genenc_core import errors
from genenc_core.dataset import compact, comparison, update

Update = Callable[..., update.Updated]
WHEN = 1_700_000_000


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Return a folder of 4 BMP frames in 2 folders, all of one size and time."""
    draw = np.random.default_rng(3)
    for number in range(4):
        path = tmp_path / "frames" / "ab"[number // 2] / f"f{number % 2}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (20, 20, 3), np.uint8)).save(path)
        os.utime(path, (WHEN, WHEN))
    return tmp_path / "frames"


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def fresh(updated: Update, tmp_path: Path, **given: object) -> dict[str, np.ndarray]:
    """Return the vectors of a new dataset."""
    return grown_datasets.vectors(updated(out=str(tmp_path / "fresh"), **given))


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert sorted(one) == sorted(other)
    for name, values in one.items():
        np.testing.assert_allclose(values, other[name], rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("by", ["stat", "content"])
@pytest.mark.parametrize("what", ["files", "folders", "renumbered", "behind links"])
def test_renamed_files_are_seen(updated: Update, frames: Path, tmp_path: Path, what: str, by: str) -> None:
    images = frames
    if what == "behind links":
        images = tmp_path / "links"
        images.mkdir()
        for path in frames.rglob("*.bmp"):
            (images / f"{path.parent.name}-{path.name}").symlink_to(path)
    updated(images=str(images))
    if what == "folders":
        swap(frames / "a", frames / "b")
    elif what == "renumbered":
        (frames / "a" / "f1.bmp").replace(frames / "a" / "f0.bmp")
    else:
        swap(frames / "a" / "f0.bmp", frames / "b" / "f0.bmp")
    with pytest.warns(update.FilesMayBeOthers, match="encoded again; .*content"):
        done = updated(images=str(images), by=by)
    assert_equal(grown_datasets.vectors(done), fresh(updated, tmp_path, images=str(images)))
    again = updated(images=str(images), by=by)
    assert again.before == again.version.version  # type: ignore[union-attr]


def test_files_swapped_before_a_compaction_are_seen(updated: Update, frames: Path, tmp_path: Path) -> None:
    """The compacted part is listed as early as the first of its parts."""
    updated(images=str(frames / "a"))
    swap(frames / "a/f0.bmp", frames / "a/f1.bmp")
    later = tmp_path / "later"
    later.mkdir()
    shutil.copy2(frames / "b/f0.bmp", later / "f2.bmp")
    made = updated(images=str(later), vanished="keep")
    with pytest.raises(errors.InputError, match="are other files in"):
        updated(images=str(frames / "a"), vanished="keep")
    compact.compact(made.folder)
    with pytest.raises(errors.InputError, match="are other files in"):
        updated(images=str(frames / "a"), vanished="keep")


@pytest.mark.parametrize("by", ["stat", "content"])
def test_another_folder_with_the_same_names_is_not_the_datasets(
    updated: Update, frames: Path, tmp_path: Path, by: str
) -> None:
    updated(images=str(frames))
    other = tmp_path / "other"
    for number, path in enumerate(sorted(frames.rglob("*.bmp"))):
        copy = other / path.relative_to(frames)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(sorted(frames.rglob("*.bmp"))[(number + 1) % 4], copy)
    if by == "stat":
        with pytest.raises(errors.InputError, match="--vanished withdraw"):
            updated(images=str(other), by=by)
    done = updated(images=str(other), by=by, vanished="withdraw")
    assert_equal(grown_datasets.vectors(done), fresh(updated, tmp_path, images=str(other)))


def test_a_folder_that_was_moved_or_copied_is_the_datasets(updated: Update, frames: Path, tmp_path: Path) -> None:
    updated(images=str(frames))
    copy = shutil.copytree(frames, tmp_path / "copy")
    assert updated(images=str(copy), by="content").results == ()
    link = tmp_path / "link"
    link.symlink_to(frames)
    assert updated(images=str(link), by="stat").results == ()


def write_days(folder: Path) -> tuple[Path, Path]:
    """Write two folders with the same names, sizes and times."""
    for number, day in enumerate(("day1", "day2")):
        (folder / day).mkdir()
        for name in range(4):
            path = folder / day / f"{name}.bmp"
            Image.fromarray(np.full((20, 20, 3), 60 * number + 10 * name, np.uint8)).save(path)
            os.utime(path, (WHEN, WHEN))
    return folder / "day1", folder / "day2"


@pytest.mark.parametrize("alone", [False, True])
def test_another_folder_in_place_of_one_that_is_gone(updated: Update, tmp_path: Path, *, alone: bool) -> None:
    first, second = write_days(tmp_path)
    for path in [*first.iterdir(), *second.iterdir()] if alone else ():
        os.utime(path, (WHEN + int(path.stem), WHEN + int(path.stem)))
    updated(images=str(first))
    shutil.rmtree(first)
    for by in ("stat", "content"):
        with pytest.raises(errors.InputError, match="4 of the dataset's 4 images are other files in"):
            updated(images=str(second), by=by)
    done = updated(images=str(second), vanished="withdraw")
    assert done.version is not None
    assert done.version.counts["changed"] == 4
    assert_equal(grown_datasets.vectors(done), fresh(updated, tmp_path, images=str(second)))


@pytest.mark.parametrize("inside", [False, True])
def test_a_folder_that_is_mounted_elsewhere_is_the_datasets(
    updated: Update, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, inside: bool
) -> None:
    """Nothing of it was touched since it was listed; of files with images inside three images are read."""
    first, second = write_days(tmp_path)
    for path in second.iterdir():
        shutil.copy2(first / path.name, path)
    names = ""
    if inside:
        names = "/*.npy"
        for folder in (first, second):
            for number, path in enumerate(sorted(folder.iterdir())):
                np.save(path.with_suffix(".npy"), np.full((5, 20, 20, 3), number, np.uint8))
                os.utime(path.with_suffix(".npy"), (WHEN, WHEN))
    updated(images=f"{first}{names}")
    shutil.rmtree(first)
    read: list[int] = []
    digests_of = comparison._Files.digests

    def counted(files: comparison._Files, rows: np.ndarray) -> list[str]:
        read.append(len(rows))
        return digests_of(files, rows)

    monkeypatch.setattr(comparison._Files, "digests", counted)
    done = updated(images=f"{second}{names}")
    assert (done.made, done.results) == ((), ())
    assert sum(read) == (12 if inside else 4)
    if inside:
        np.save(second / "0.npy", np.full((5, 20, 20, 3), 9, np.uint8))
        os.utime(second / "0.npy", (WHEN, WHEN))
        assert updated(images=f"{second}{names}").version.counts["changed"] == 5  # type: ignore[union-attr]


def test_missing_files_of_a_list_are_not_taken_for_renamed_ones(
    updated: Update, frames: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    (tmp_path / "list.csv").write_text("path\nframes/a/f0.bmp\nframes/gone1.bmp\nframes/gone2.bmp\n")
    updated(images=str(tmp_path / "list.csv"), max_failures="100%")
    swap(frames / "a", frames / "b")
    swap(frames / "a", frames / "b")
    updated(images=str(tmp_path / "list.csv"), max_failures="100%")
    assert not [item for item in recwarn if item.category is update.FilesMayBeOthers]


def test_touched_files_of_the_same_content_are_not_encoded_by_content(updated: Update, frames: Path) -> None:
    updated(images=str(frames))
    for path in frames.rglob("*.bmp"):
        path.chmod(0o600)
    done = updated(images=str(frames), by="content")
    assert (done.made, done.results) == ((), ())
    assert len(updated(images=str(frames), by="stat").results) == 1


def test_files_of_other_sizes_or_times_are_not_looked_at(updated: Update, photos: Path) -> None:
    updated()
    for number, path in enumerate(sorted(photos.iterdir())):
        os.utime(path, (WHEN + number, WHEN + number))
    updated()
    for path in photos.iterdir():
        path.chmod(0o600)
    done = updated()
    assert done.made == ()


@pytest.mark.parametrize("by", ["stat", "content"])
def test_a_list_that_names_another_file_is_seen(updated: Update, frames: Path, tmp_path: Path, by: str) -> None:
    table = tmp_path / "list.csv"

    def write(*paths: object) -> str:
        lines = (f"{name},{path}" for name, path in zip("ABC", paths, strict=True))
        table.write_text("\n".join(["image_id,path", *lines]) + "\n")
        return str(table)

    a, b = frames / "a", frames / "b"
    updated(images=write(a / "f0.bmp", a / "f1.bmp", b / "f0.bmp"))
    done = updated(images=write(a / "f1.bmp", a / "f0.bmp", "frames/b/f0.bmp"), by=by)
    assert done.version is not None
    assert {name: count for name, count in done.version.counts.items() if count} == {"rows": 3, "changed": 2}
    assert_equal(grown_datasets.vectors(done), fresh(updated, tmp_path, images=str(table)))


def test_a_list_that_names_a_copy_of_a_file_keeps_its_row_by_content(
    updated: Update, frames: Path, tmp_path: Path
) -> None:
    table, copy = tmp_path / "list.csv", tmp_path / "copy.bmp"
    shutil.copy2(frames / "a" / "f0.bmp", copy)
    table.write_text("image_id,path\nA,frames/a/f0.bmp\n")
    updated(images=str(table))
    table.write_text("image_id,path\nA,copy.bmp\n")
    done = updated(images=str(table), by="content")
    assert done.results == ()
    assert done.version is not None
    assert done.version.counts["touched"] == 1
    assert updated(images=str(table), by="content").made == ()
