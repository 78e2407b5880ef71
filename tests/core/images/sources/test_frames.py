"""Files with several frames or pages are named when a run is made; the first of each counts."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import pictures
from genenc_core.cli import state
from genenc_core.images.decode import further
from genenc_core.images.sources import frames, image_source, manifest
from genenc_core.run import driver, parameters
from genenc_core.run.folder import RunFolder

PAGE = np.zeros((16, 16), np.uint8)


def seen(folder: Path, tmp_path: Path) -> list[str]:
    found = manifest.write_manifest(tmp_path / "images.parquet", image_source.open_source(str(folder)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frames.check(found)
    return [str(one.message) for one in caught if issubclass(one.category, frames.MultipleFrames)]


def write(path: Path, pages: int, subfiletype: int = 0) -> None:
    """Write a TIFF whose pages after the first have a subfile type."""
    with tifffile.TiffWriter(path) as file:
        for page in range(pages):
            file.write(PAGE, photometric="minisblack", subfiletype=subfiletype if page else 0, contiguous=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "photos"
    place.mkdir()
    Image.fromarray(PAGE).save(place / "one.gif")
    Image.fromarray(PAGE).save(place / "one.webp")
    write(place / "one.tif", 1)
    write(place / "pyramid.tif", 2, subfiletype=1)
    (place / "broken.tif").write_bytes(b"II*\0\xff\xff\xff\xff")
    return place


def test_single_frames_and_pyramids_pass(folder: Path, tmp_path: Path) -> None:
    assert seen(folder, tmp_path) == []


@pytest.mark.parametrize("name", ["a.tif", "a.TIFF", "a.gif", "a.webp"])
def test_more_frames_are_named(folder: Path, tmp_path: Path, name: str) -> None:
    if "tif" in name.lower():
        write(folder / name, 3)
    else:
        options: Mapping[str, object] = {"lossless": True} if name.endswith("webp") else {}
        second = [Image.fromarray(PAGE + 200)]
        Image.fromarray(PAGE).save(folder / name, save_all=True, append_images=second, duration=40, **options)
    (said,) = seen(folder, tmp_path)
    assert said.startswith("1 of 6 TIFF, GIF and WebP files checked hold several frames")
    assert repr(name) in said


@pytest.mark.parametrize("imagej", [True, False])
def test_planes_behind_a_single_page_are_named(folder: Path, tmp_path: Path, *, imagej: bool) -> None:
    stack = np.zeros((5, 16, 16), np.uint8)
    tifffile.imwrite(folder / "stack.tif", stack, photometric="minisblack", imagej=imagej, truncate=True)
    (said,) = seen(folder, tmp_path)
    assert "'stack.tif'" in said


def test_many_files_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "photos"
    place.mkdir()
    for number in range(300):
        (place / f"{number:03}.gif").touch()
    looked: list[str] = []
    monkeypatch.setattr(frames, "_has_more", lambda path, _: looked.append(path))
    assert seen(place, tmp_path) == []
    assert frames.SAMPLED_FILES <= len(looked) < 2 * frames.SAMPLED_FILES
    assert looked[-1].endswith(("299.gif", "298.gif", "297.gif", "296.gif"))


def test_kinds_of_files_that_alternate_are_all_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    looked: list[str] = []
    monkeypatch.setattr(frames, "_has_more", lambda path, _: looked.append(path))
    for number in range(1100):
        (folder / f"{number:05}.tif").touch()
        if number + 1 in (200, 256, 500, 1100):
            looked.clear()
            place = tmp_path / f"{number}.parquet"
            frames.check(manifest.write_manifest(place, image_source.open_source(str(folder))))
            numbers = [int(Path(path).stem) for path in looked]
            assert frames.SAMPLED_FILES <= len({*numbers}) == len(numbers) < 2 * frames.SAMPLED_FILES
            assert numbers == sorted(numbers)
            assert numbers[-1] > 0.9 * number
            for period in (2, 4, 8):
                assert {each % period for each in numbers} == {*range(period)}


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("layout", [{}, {"tile": (16, 16)}, {"rowsperstrip": 8, "compression": "zlib"}])
def test_every_kind_of_tiff(tmp_path: Path, byteorder: str, *, bigtiff: bool, layout: dict[str, object]) -> None:
    pages = np.random.default_rng(0).integers(0, 255, (3, 64, 48), np.uint8)
    for count in (1, 3):
        path = tmp_path / f"{count}.tif"
        with tifffile.TiffWriter(path, byteorder=byteorder, bigtiff=bigtiff) as file:
            for page in pages[:count]:
                file.write(page, photometric="minisblack", contiguous=False, **layout)
        with path.open("rb") as opened:
            assert further.has_more(opened, None) == (count > 1)


def test_each_file_is_looked_at_as_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(frames, "_sample", lambda _: [])
    photos = pictures.write_folder(tmp_path / "photos", 3)
    for name in ("a.tif", "d.tif"):
        tifffile.imwrite(photos / name, np.zeros((2, 32, 32), np.uint8), photometric="minisblack")
    given = {"images": str(photos), "model": "tiny_models:conv", "weights": "random:0", "image_size": "32"}
    made = driver.extract(parameters.ExtractParameters.model_validate({**given, "out": str(tmp_path / "run")}))
    assert (made.status.further_frames, made.status.unreadable) == (2, 0)
    assert state.status(tmp_path / "run", as_json=False) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 images stored from files with further frames or pages, which are not, such as 'a.tif'" in said
    record = RunFolder(tmp_path / "run").store.record(0)
    assert record is not None
    assert record.details["further_frames"] == [0, 1]
    (tmp_path / "run/provenance/tally.jsonl").unlink()
    assert state.status(tmp_path / "run", as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["further_frames"] == 2
