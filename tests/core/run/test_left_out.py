"""Files of a folder that are not images are said when the run is made, and whenever somebody asks later."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import pictures
from genenc_core import errors
from genenc_core.cli import state
from genenc_core.images.decode import heif
from genenc_core.images.sources import folders
from genenc_core.run import driver, parameters, status
from genenc_core.run.folder import RunFolder


def given(tmp_path: Path, **more: object) -> parameters.ExtractParameters:
    values = {
        "images": str(tmp_path / "photos"),
        "model": "tiny_models:conv",
        "weights": "random:0",
        "image_size": "32",
    }
    return parameters.ExtractParameters.model_validate({**values, "out": str(tmp_path / "run"), **more})


def test_at_planning_in_status_and_in_the_readme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = pictures.write_folder(tmp_path / "photos", 3)
    for name in ("c.hdr", "d.jp2", "b_noext"):
        (photos / name).write_bytes(b"x")
    words = (
        "3 files are not images that genenc can read: 1 without an extension (b_noext), 1 .hdr (c.hdr), 1 .jp2 (d.jp2)"
    )
    with pytest.warns(folders.FilesLeftOut) as told:
        driver.extract(given(tmp_path))
    assert [str(item.message) for item in told if item.category is folders.FilesLeftOut] == [words]
    assert f"left out: {words}" in status.summary_lines(status.survey(RunFolder(tmp_path / "run")), None)
    assert words in (tmp_path / "run/README.md").read_text().replace("\\", "")
    state.status(tmp_path / "run", as_json=True)
    found = json.loads(capsys.readouterr().out)["left_out"]
    assert found[".hdr"] == {"files": 1, "first": ["c.hdr"]}
    # They are no part of what the run means.
    (photos / "e.hdr").write_bytes(b"x")
    with pytest.warns(folders.FilesLeftOut, match="4 files"):
        driver.extract(given(tmp_path))


def test_a_folder_of_nothing_else_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.hdr").write_bytes(b"x")
    with pytest.raises(
        errors.InputError, match=r"no images found.*1 file is not an image that genenc can read: 1 \.hdr"
    ):
        driver.extract(given(tmp_path))


@pytest.mark.slow
def test_a_decoder_that_is_installed_later_changes_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = pictures.write_folder(tmp_path / "photos", 3)
    (photos / "c.heic").write_bytes(b"x")
    monkeypatch.setattr(heif, "is_installed", lambda _: False)
    with pytest.warns(folders.FilesLeftOut, match=r"1 \.heic .*; for \.heic install"):
        driver.extract(given(tmp_path))
    monkeypatch.setattr(heif, "is_installed", lambda _: True)
    with pytest.warns(folders.FilesLeftOut, match=r"1 \.heic"):
        again = driver.extract(given(tmp_path))
    assert again.asked == 0


def test_images_beside_stacks_are_images(tmp_path: Path) -> None:
    photos = pictures.write_folder(tmp_path / "photos", 2)
    (photos / "c.hdr").write_bytes(b"x")
    words = "2 image files are not taken by --frames, which reads videos, arrays and TIFFs: 2 .png (img_000.png, "
    with pytest.raises(errors.InputError) as refused:
        driver.extract(given(tmp_path, frames="all"))
    assert words in str(refused.value)
    assert "; 1 file is not an image that genenc can read: 1 .hdr" in str(refused.value)
    np.save(photos / "stack.npy", np.zeros((2, 32, 32), np.uint8))
    with pytest.warns(folders.FilesLeftOut, match=re.escape(words)):
        run = driver.extract(given(tmp_path, frames="all")).run
    assert f"left out: {words}" in "\n".join(status.summary_lines(status.survey(run), None))
