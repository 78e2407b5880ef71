"""Datasets that store integers: values of all parts as one, compaction bit for bit, other chunks in each part."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from genenc_core import api, errors
from genenc_core.dataset import compact, update, verify
from genenc_core.dataset.folder import DatasetFolder

pytestmark = pytest.mark.slow
ASKED = ("features=global_avg_pool", "maps=none@int8")


def read(place: Path, *, raw: bool) -> dict[str, np.ndarray]:
    opened = api.Dataset.open(place).arrays(raw=raw)
    return {str(name): np.asarray(opened[name].values) for name in opened.variables}


@pytest.fixture
def grown(updated: Callable[..., update.Updated], add: Callable[..., Path], photos: Path, tmp_path: Path) -> Path:
    """A dataset of three parts, whose chunks have different numbers of channels; one image was replaced."""
    updated(dtype="uint8", products=ASKED, chunk_channels=4)
    add("img_010.png", 70)
    (photos / "img_001.png").unlink()
    add("img_001.png", 71)
    updated(chunk_channels=2)
    add("img_011.png", 72)
    updated()
    return tmp_path / "dataset"


def test_parts_are_read_as_values_or_as_stored(grown: Path, photos: Path, tmp_path: Path) -> None:
    folder = DatasetFolder(grown)
    tails = [
        {array.name: array.chunk_tail for array in folder.part(part.name).store.plan.arrays}["features"]
        for part in folder.version().parts
    ]
    assert tails == [(4,), (2,), (2,)]
    values, raw = (read(grown, raw=each) for each in (False, True))
    assert set(raw) - set(values) == {"features_scale", "features_offset", "maps_scale"}
    assert (raw["features"].dtype, raw["maps"].dtype) == (np.uint8, np.int8)
    np.testing.assert_array_equal(
        values["features"],
        raw["features"].astype(np.float32) * raw["features_scale"][:, None] + raw["features_offset"][:, None],
    )
    np.testing.assert_array_equal(values["maps"], raw["maps"].astype(np.float32) * raw["maps_scale"][:, None])
    # Those of one run over all images.
    model = {"model": "tiny_models:conv", "weights": "random:0", "image_size": "32", "trust": True}
    run = api.extract(str(photos), out=str(tmp_path / "run"), products=ASKED, dtype="float32", **model)  # type: ignore[arg-type]
    one = api.Dataset.open(tmp_path / "run").arrays().features.sel(image_id=values["image_id"]).values
    assert np.abs(one - values["features"]).max() <= raw["features_scale"].max() * (0.5 + 2**-15)
    assert run.status().quantized.keys() == {"maps"}
    some = api.Dataset.open(grown).arrays().features.sel(image_id=["img_011.png", "img_000.png"])[:, 1:3]
    rows = [list(values["image_id"]).index(name) for name in ("img_011.png", "img_000.png")]
    np.testing.assert_array_equal(some.values, values["features"][rows, 1:3])


def test_compaction_copies_integers_and_scales(grown: Path) -> None:
    before = {raw: read(grown, raw=raw) for raw in (False, True)}
    done = compact.compact(DatasetFolder(grown), below=100)
    assert len(done.made) == 1
    for raw, arrays in before.items():
        now = read(grown, raw=raw)
        assert now.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(now[name], array)
    assert verify.verify(DatasetFolder(grown), content=True).ok


def test_another_type_is_another_dataset(grown: Path, updated: Callable[..., update.Updated]) -> None:
    with pytest.raises(errors.GenencError, match="products"):
        updated(dtype="int8")
