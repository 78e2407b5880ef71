"""Folders of drawn images and short ways to run on them."""

from collections.abc import Callable
from pathlib import Path

import pytest

import pictures
from genenc_core.run import driver
from genenc_core.run.parameters import ExtractParameters


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of 11 PNG images of two sizes."""
    return pictures.write_folder(tmp_path / "photos", 11, sizes=((80, 60), (50, 70)))


@pytest.fixture
def extract(tmp_path: Path, photos: Path) -> Callable[..., driver.Result]:
    """Return a call that extracts with a tiny model, 4 images a shard and 3 a batch, unless told otherwise."""

    def run(**changes: object) -> driver.Result:
        values = {
            "images": str(photos),
            "model": "tiny_models:conv",
            "weights": "random:0",
            "image_size": "32",
            "out": str(tmp_path / "run"),
            "shard_rows": 4,
            "batch_size": 3,
            "device": "cpu",
        }
        return driver.extract(ExtractParameters.model_validate({**values, **changes}))

    return run
