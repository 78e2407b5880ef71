"""Drawn images with labels, a short way to extract them, and a dataset of three versions."""

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pictures
import s3_server
from genenc_core import api

SIZES = ((80, 60), (50, 70))
"""Width and height of the images, in turn."""
MODEL: dict[str, Any] = {
    "model": "tiny_models:conv",
    "weights": "random:0",
    "image_size": "32",
    "fit": "pad",
    "shard_rows": 4,
    "batch_size": 3,
    "device": "cpu",
    "decode_workers": 1,
    "trust": True,
}


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
        return api.extract(
            **{
                "images": str(photos),
                "out": out if "://" in out else str(tmp_path / out),
                "products": products,
                **MODEL,
                **changes,
            }
        )

    return run


@pytest.fixture
def grown(tmp_path: Path, photos: Path, labels: Path) -> Path:
    """Return a dataset of three versions and parts: images are added, changed, renamed, removed, one is unreadable."""

    def update(**more: Any) -> api.Dataset:
        return api.update(str(tmp_path / "dataset"), str(photos), points=str(labels), **MODEL, **more)

    update()
    pictures.write_folder(tmp_path / "more", 3, seed=90)
    shutil.move(tmp_path / "more" / "img_000.png", photos / "new_0.png")
    shutil.move(tmp_path / "more" / "img_001.png", photos / "img_003.png")
    (photos / "bad.png").write_bytes(b"no image")
    update(max_failures="100%")
    shutil.move(photos / "img_010.png", photos / "renamed.png")
    (photos / "img_001.png").unlink()
    shutil.move(tmp_path / "more" / "img_002.png", photos / "new_1.png")
    assert update(by="content", max_failures="100%").version == 3
    return tmp_path / "dataset"


@pytest.fixture
def bucket(s3: s3_server.Server) -> str:
    """Return an unused prefix on S3."""
    return f"s3://{s3.bucket}/tests/{uuid.uuid4().hex[:12]}"


@pytest.fixture
def unchanged() -> Callable[[Path], Callable[[], None]]:
    """Return a call that remembers a folder's files; what it returns asserts that they are the same."""

    def remember(root: Path) -> Callable[[], None]:
        def files() -> dict[str, bytes]:
            return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

        before = files()

        def check() -> None:
            assert files() == before

        return check

    return remember
