"""A run's images are those that it was made of, not others of the same names, sizes and times."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from genenc_core import errors
from genenc_core.run import driver, planning
from genenc_core.run.parameters import ExtractParameters

Extract = Callable[..., driver.Result]


def given(images: Path, out: Path) -> ExtractParameters:
    return ExtractParameters(
        images=str(images), model="tiny_models:conv", weights="random:1", image_size="32", out=str(out), device="cpu"
    )


def test_another_folder_that_seems_the_same_is_refused(extract: Extract, photos: Path, tmp_path: Path) -> None:
    other = shutil.copytree(photos, tmp_path / "other")  # with its times
    extract()
    with pytest.raises(errors.OtherRunError, match=r"photos/img_000.png', which still exists, .*other/img_000.png'"):
        extract(images=str(other))


def test_the_same_folder_by_another_name_goes_on(extract: Extract, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(photos)
    assert extract().status.complete
    assert extract(images=str(tmp_path / "link")).status.complete


def test_another_folder_in_place_of_the_runs_is_refused(extract: Extract, photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for folder, colour in ((photos, 10), (other, 90)):
        folder.mkdir(exist_ok=True)
        for path in sorted(photos.iterdir()):
            place = folder / path.with_suffix(".bmp").name
            Image.new("RGB", (40, 30), (colour, 0, 0)).save(place)
            os.utime(place, (1_700_000_000, 1_700_000_000))
    for path in photos.glob("*.png"):
        path.unlink()
    assert extract(images=str(photos)).status.complete
    shutil.rmtree(photos)
    with pytest.raises(errors.OtherRunError, match=r"which is gone, and '.*other/img_000.bmp' has another content"):
        extract(images=str(other))


@pytest.mark.slow
def test_images_that_were_moved_are_the_runs_own(extract: Extract, photos: Path, tmp_path: Path) -> None:
    assert extract().status.complete
    os.rename(photos, tmp_path / "moved")  # noqa: PTH104
    assert extract(images=str(tmp_path / "moved")).status.complete


@pytest.mark.slow
def test_an_unfinished_run_says_where_it_reads_moved_images_and_goes_on_by_a_link(photos: Path, tmp_path: Path) -> None:
    planning.create_run(given(photos, tmp_path / "run"))
    moved = photos.rename(tmp_path / "moved")
    begun = driver.extract(given(moved, tmp_path / "run"))
    assert "always reads its images from the folder it was created with" in str(begun.failures[0])
    assert str(photos) in str(begun.failures[0])
    photos.symlink_to(moved)
    again = driver.extract(given(moved, tmp_path / "run"))
    assert again.status.complete
    assert again.status.unreadable == 0
