"""What genenc offers to tests of others: its examples, and that its checks find what they are for."""

import doctest
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

from genenc_core import api, testing


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_the_examples_of_the_docstrings() -> None:
    failed, tried = doctest.testmod(testing)
    assert tried > 10
    assert failed == 0


@pytest.mark.slow
def test_the_vector_at_a_point_is_the_colour_of_its_cell(tmp_path: Path) -> None:
    labels = testing.sample_images("photos", 3, size=(64, 64))
    run = api.extract("photos", out="run", points=str(labels), fit="stretch", **testing.options()).arrays()
    image = np.asarray(Image.open("photos/img_001.png"))
    x, y = (int(run[name].sel(point="nose").values[1]) // testing.CELL for name in ("point_x", "point_y"))
    cell = image[y * 8 : y * 8 + 8, x * 8 : x * 8 + 8].reshape(-1, 3).mean(axis=0) / 255
    np.testing.assert_allclose(run.probes.sel(point="nose").values[1], cell, atol=1e-5)


@pytest.mark.slow
def test_a_difference_of_regions_names_their_image() -> None:
    testing.sample_images("photos")
    regions = testing.sample_regions("photos")
    assert regions.parent == Path()
    for out in ("one", "other"):
        api.extract("photos", out=out, regions=[str(regions)], **testing.options())
    testing.assert_runs_equal("one", "other")
    opened = zarr.open_array("other/features.zarr/regions", mode="r+")
    opened[3] = opened[3] + 1
    with pytest.raises(AssertionError, match=r"regions: row 1 \(img_002.png\) differs"):
        testing.assert_runs_equal("one", "other")


def test_images_differ_by_seed_and_are_the_same_again() -> None:
    for folder, seed in (("one", 0), ("again", 0), ("other", 1)):
        testing.sample_images(f"{folder}/photos", 2, seed=seed)
    one, again, other = (Path(f"{name}/photos/img_001.png").read_bytes() for name in ("one", "again", "other"))
    assert one == again != other


@pytest.mark.slow
@pytest.mark.parametrize("array", ["features", "status", "image_width"])
def test_a_difference_is_named(array: str) -> None:
    testing.sample_images("photos")
    for out in ("one", "other"):
        api.extract("photos", out=out, **testing.options())
    opened = zarr.open_array(f"other/features.zarr/{array}", mode="r+")
    opened[3] = opened[3] + 1
    with pytest.raises(AssertionError, match=rf"{array}: row 3 \(img_003.png\) differs"):
        testing.assert_runs_equal("one", "other")
    if array == "features":
        testing.assert_runs_equal("one", "other", atol=1.5)


@pytest.mark.slow
def test_other_products_are_a_difference() -> None:
    testing.sample_images("photos")
    api.extract("photos", out="one", **testing.options())
    api.extract("photos", out="other", **testing.options(products=("mean=global_avg_pool",)))
    with pytest.raises(AssertionError, match="arrays differ"):
        testing.assert_runs_equal("one", "other")
