"""Drawn images with labels, and short ways to extract their maps and to probe these."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import labelled_photos
from genenc_core import api


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of 11 PNG images of two sizes."""
    return labelled_photos.write_photos(tmp_path / "photos")


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Return a points file of most of the images."""
    return labelled_photos.write_labels(tmp_path / "labels.csv")


@pytest.fixture
def extract(tmp_path: Path, photos: Path) -> Callable[..., api.Run]:
    """Return a call that extracts to a folder, or a place on S3, with a tiny model, 4 images a shard, 3 a batch."""

    def run(out: str, *products: str, **changes: Any) -> api.Run:
        return api.extract(**labelled_photos.parameters(tmp_path, photos, out, *products, **changes))

    return run


@pytest.fixture
def probe(tmp_path: Path) -> Callable[..., api.Run]:
    """Return a call that probes a run of `extract`."""

    def run(source: str, out: str, *products: str, **options: Any) -> api.Run:
        return api.probe(tmp_path / source, str(tmp_path / out), products=products, **options)

    return run
