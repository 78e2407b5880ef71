"""File names of every kind, and images at the limits, through a whole run."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from genenc_core.images.sources import folders
from genenc_core.run import driver, status
from genenc_core.run.folder import RunFolder

Extract = Callable[..., driver.Result]

ODD = [
    b"\xff\xfe.png",
    b"caf\xe9.png",
    rb"caf\xe9.png",
    "日本語.png".encode(),
    "e\u0301.png".encode(),
    "é.png".encode(),
    "\u202egnp.exe.png".encode(),
    b"new\nline.png",
    b"tab\t\x1b[31m.png",
    b" space .png",
    b"%s {} $(x) <b>&'\".png",
    ("ä" * 125 + "x.png").encode(),
    b"n" * 251 + b".png",
]


def test_odd_names_are_traceable_from_row_to_file(extract: Extract, tmp_path: Path, photos: Path) -> None:
    """Manifest, Zarr, commit records and status give one text, and it leads back to the file's bytes."""
    source = sorted(photos.iterdir())
    root = tmp_path / "odd"
    root.mkdir()
    for index, name in enumerate(ODD):
        shutil.copy(source[index % len(source)], root / os.fsdecode(name))
    (root / os.fsdecode(b"broken\xff\n.png")).write_bytes(b"no image")
    result = extract(images=str(root))
    assert (result.status.ok, result.status.unreadable) == (len(ODD), 1)
    folder = RunFolder(tmp_path / "run")
    group = zarr.open_group(tmp_path / "run" / "features.zarr", mode="r")
    ids = [str(value) for value in group["image_id"][:]]
    assert ids == folder.manifest.read(0, len(ODD) + 1).image_ids
    assert {os.fsencode(folders.to_path(text)) for text in ids} == {*ODD, b"broken\xff\n.png"}
    for row, path in enumerate(folder.manifest.read(0, len(ids)).paths):
        assert path == str(root / folders.to_path(ids[row]))
        assert Path(path).is_file()
    survey = status.survey(RunFolder(tmp_path / "run"))
    (broken,) = json.loads(json.dumps(survey.unreadable, ensure_ascii=False).encode().decode())
    assert broken["image_id"] == "broken\\xff\n.png"
    assert status.verify_place(tmp_path / "run", content=True).ok


@pytest.mark.slow
def test_ten_thousand_points_in_one_image(extract: Extract, tmp_path: Path, photos: Path) -> None:
    """A point per row of the table, each with the vector of its own cell."""
    count, image = 10_000, sorted(photos.iterdir())[0].name
    x, y = np.arange(count) % 80 + 0.5, np.arange(count) // 80 % 60 + 0.5
    lines = [f"{image},p{index},{x[index]},{y[index]}" for index in range(count)]
    (tmp_path / "points.csv").write_text("image,point,x,y\n" + "\n".join(lines))
    products = ("tips=spatial_point(cell)", "m=none@float32")
    result = extract(model="tiny_models:colours", points=str(tmp_path / "points.csv"), products=products, fit="stretch")
    assert result.status.points["ok"] == count
    group = zarr.open_group(tmp_path / "run" / "features.zarr", mode="r")
    tips, maps = np.asarray(group["tips"][0]), np.asarray(group["m"][0])
    assert tips.shape[0] == count
    rows, columns = maps.shape[1:]
    cells = maps[:, (y * rows / 60).astype(int), (x * columns / 80).astype(int)].T
    np.testing.assert_array_equal(tips, cells)


@pytest.mark.slow
def test_limits_are_the_runs_options_and_no_part_of_what_it_means(extract: Extract, tmp_path: Path) -> None:
    """Of images of 80 x 60 and 50 x 70 pixels only the smaller pass; another limit does not make it another run."""
    result = extract(max_megapixels=0.004, image_timeout=30)
    assert (result.status.ok, result.status.unreadable) == (5, 6)
    assert all("--max-megapixels" in item["reason"] for item in status.survey(RunFolder(tmp_path / "run")).unreadable)
    assert extract(image_timeout=20).asked == 0
    assert extract(out=str(tmp_path / "whole")).status.unreadable == 0
