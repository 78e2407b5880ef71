"""A run with maps and points on drawn images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pictures
from genenc_core import api
from reported import MODEL


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of 9 PNG images, in two folders, of two sizes."""
    pictures.write_folder(tmp_path / "photos" / "day", 5, sizes=((80, 60), (50, 70)))
    pictures.write_folder(tmp_path / "photos" / "night", 4, seed=50, sizes=((80, 60),))
    return tmp_path / "photos"


@pytest.fixture
def labels(tmp_path: Path, photos: Path) -> Path:
    """Return a points file: two points in each image."""
    lines = ["image,point,x,y"]
    for number, path in enumerate(sorted(photos.rglob("*.png"))):
        name = path.relative_to(photos).as_posix()
        lines += [f"{name},nose,{10 + number},20", f"{name},tail,{40 - number},{30 + number}"]
    made = tmp_path / "labels.csv"
    made.write_text("\n".join(lines) + "\n")
    return made


@pytest.fixture
def extract(tmp_path: Path, photos: Path) -> Callable[..., api.Run]:
    """Return a call that extracts to a folder with a tiny model."""

    def run(out: str = "run", **changes: Any) -> api.Run:
        return api.extract(**{"images": str(photos), "out": str(tmp_path / out), **MODEL, **changes})

    return run


@pytest.fixture
def mapped(extract: Callable[..., api.Run], labels: Path) -> api.Run:
    """Return a run with maps and points."""
    return extract(maps=True, points=str(labels))
