"""Drawn images with labels, and short ways to extract their maps and to probe these."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pictures
from genenc_core import api

SIZES = ((80, 60), (50, 70))
"""Width and height of the images, in turn."""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of 11 PNG images of two sizes."""
    return pictures.write_folder(tmp_path / "photos", 11, sizes=SIZES)


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Return a points file: two points in most images, some missing, outside the image, or at its far corner."""
    drawn = np.random.default_rng(7)
    lines = ["image,point,x,y"]
    for index in range(10):
        width, height = SIZES[index % 2]
        for point in ("nose", "tail"):
            x, y = drawn.uniform(0, 1, 2) * (width, height)
            if (index, point) == (3, "tail"):
                continue
            if (index, point) == (4, "nose"):
                x, y = width + 3, 5
            if (index, point) == (5, "nose"):
                x, y = width, height
            lines.append(f"img_{index:03d}.png,{point},{x:.2f},{y:.2f}")
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def extract(tmp_path: Path, photos: Path) -> Callable[..., api.Run]:
    """Return a call that extracts to a folder, or a place on S3, with a tiny model, 4 images a shard, 3 a batch."""

    def run(out: str, *products: str, **changes: Any) -> api.Run:
        given: dict[str, Any] = {"model": "tiny_models:conv", "weights": "random:0", "image_size": "32", "fit": "pad"}
        small = {"shard_rows": 4, "batch_size": 3, "device": "cpu", "decode_workers": 1, "trust": True}
        return api.extract(
            **{
                "images": str(photos),
                "out": out if "://" in out else str(tmp_path / out),
                "products": products,
                **given,
                **small,
                **changes,
            }
        )

    return run


@pytest.fixture
def probe(tmp_path: Path) -> Callable[..., api.Run]:
    """Return a call that probes a run of `extract`."""

    def run(source: str, out: str, *products: str, **options: Any) -> api.Run:
        return api.probe(tmp_path / source, str(tmp_path / out), products=products, **options)

    return run
