"""Labels scaled by `--points-scale` give the rows of labels that were scaled by hand."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray

from genenc_core import errors
from genenc_core.images.decode import decode
from genenc_core.run import driver, integrity, status
from genenc_core.run.folder import RunFolder

Extract = Callable[..., driver.Result]
NAMES = ("paw", "nose")


def labels(photos: Path, place: Path, change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> str:
    """Write two points an image, changed by a function of the points and their image's (width, height)."""
    draw = np.random.default_rng(0)
    with place.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "point", "x", "y"))
        for photo in sorted(photos.iterdir()):
            size = np.array(decode.size_and_orientation(photo.read_bytes())[0], dtype=np.float64)
            for name, xy in zip(NAMES, draw.uniform(0.1, 0.95, (2, 2)) * size, strict=True):
                writer.writerow((photo.name, name, *map(float, change(xy, size))))
    return str(place)


def rows(root: Path) -> xarray.Dataset:
    return xarray.open_zarr(root / "features.zarr", consolidated=False).load()


CHANGES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "2": lambda xy, _: xy / 2,
    "1/4": lambda xy, _: xy * 4,
    "2,1/2": lambda xy, _: xy * (1 / 2, 2),
    "normalized": lambda xy, size: xy / size,
    "percent": lambda xy, size: xy / size * 100,
    "1": lambda xy, _: xy,
}


@pytest.mark.slow
def test_scaled_labels_are_labels_scaled_by_hand(extract: Extract, photos: Path, tmp_path: Path) -> None:
    extract(points=labels(photos, tmp_path / "by_hand.csv", lambda xy, _: xy), out=str(tmp_path / "by_hand"))
    by_hand = rows(tmp_path / "by_hand")
    for number, (scale, change) in enumerate(CHANGES.items()):
        run = tmp_path / f"scaled{number}"
        given = {"points": labels(photos, tmp_path / "scaled.csv", change), "points_scale": scale, "out": str(run)}
        extract(**given)
        check_scaled(run, scale, by_hand)
    extract(**given)  # goes on with it


def check_scaled(run: Path, scale: str, by_hand: xarray.Dataset) -> None:
    found = rows(run)
    np.testing.assert_allclose(found.probes, by_hand.probes, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found.point_status, 1)
    relative = scale in ("normalized", "percent")
    assert found.point_x.units == ("1" if relative else "pixel")
    sides = (found.image_width, found.image_height) if relative else (1, 1)
    np.testing.assert_allclose(found.point_x * sides[0], by_hand.point_x)
    np.testing.assert_allclose(found.point_y * sides[1], by_hand.point_y)

    folder = RunFolder(run)
    recorded = None if scale == "1" else scale
    assert folder.identity.get("points_scale") == recorded
    assert folder.manifest.points_scale.text == recorded
    assert json.loads((run / "provenance/parameters.json").read_text())["points_scale"] == scale
    said = "\n".join(status.summary_lines(status.survey(RunFolder(run)), None))
    for words in (said, (run / "README.md").read_text()):
        assert ("coordinates of the points file were" in words) == (scale != "1")
    assert status.verify_place(run, content=True).ok


@pytest.mark.slow
def test_metadata_is_repaired_with_its_scale(extract: Extract, photos: Path, tmp_path: Path) -> None:
    extract(points=labels(photos, tmp_path / "p.csv", CHANGES["percent"]), points_scale="percent")
    metadata = tmp_path / "run/features.zarr/point_x/zarr.json"
    before = metadata.read_bytes()
    metadata.unlink()
    status.repair_run(RunFolder(tmp_path / "run"))
    assert metadata.read_bytes() == before
    assert not [*integrity.problems(RunFolder(tmp_path / "run"), ())]


@pytest.mark.slow
def test_another_scale_is_another_run(extract: Extract, photos: Path, tmp_path: Path) -> None:
    points = labels(photos, tmp_path / "p.csv", lambda xy, _: xy)
    extract(points=points)
    with pytest.raises(errors.OtherRunError, match=r"points_scale: 'none' -> '1/2'"):
        extract(points=points, points_scale="0.5")


@pytest.mark.slow
def test_labels_are_looked_at_before_anything_is_made(extract: Extract, photos: Path, tmp_path: Path) -> None:
    points = labels(photos, tmp_path / "p.csv", CHANGES["normalized"])
    with pytest.raises(errors.InputError, match="--points-scale normalized"):
        extract(points=points)
    assert not (tmp_path / "run").exists()
    extract(points=points, points_scale="1")
    extract(points=points)  # a run that is there is not looked at again: it means what it meant


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"points_scale": "2"}, "needs --points"), ({"points": "p.csv", "points_scale": "x"}, "factor")],
)
def test_a_scale_that_cannot_be_is_refused_at_once(extract: Extract, changes: dict[str, str], said: str) -> None:
    with pytest.raises(errors.InputError, match=said):
        extract(model="no_such_model", **changes)


@pytest.mark.slow
def test_points_that_no_product_takes_are_said(
    extract: Extract, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "p.csv").write_text("image,point,x,y\nimg_000.png,tip,40,30\n")
    extract(points=str(tmp_path / "p.csv"), products=("v=global_avg_pool",))
    assert "no product uses the points" in caplog.text
    caplog.clear()
    extract(
        points=str(tmp_path / "p.csv"),
        products=("v=global_avg_pool", "t=spatial_point(cell)"),
        out=str(tmp_path / "other"),
    )
    assert "no product uses" not in caplog.text
