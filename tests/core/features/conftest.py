"""Drawn images with labels, a short way to extract them, and a dataset of three versions."""

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import labelled_photos
import pictures
import s3_server
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
def grown(tmp_path: Path, photos: Path, labels: Path) -> Path:
    """Return a dataset of three versions and parts: images are added, changed, renamed, removed, one is unreadable."""

    def update(**more: Any) -> api.Dataset:
        return api.update(str(tmp_path / "dataset"), str(photos), points=str(labels), **labelled_photos.MODEL, **more)

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
