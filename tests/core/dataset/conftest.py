"""A folder of images that changes between updates of one dataset."""

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

import grown_datasets
import pictures
from genenc_core.dataset import update
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.dataset.parameters import UpdateParameters
from genenc_core.store.backends.objects import Root

MODEL = {
    "model": "tiny_models:conv",
    "weights": "random:0",
    "image_size": "32",
    "device": "cpu",
    "batch_size": 4,
    "decode_workers": 1,
    "trust": True,
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of 6 PNG images of different content."""
    return pictures.write_folder(tmp_path / "photos", 6)


@pytest.fixture
def add(photos: Path) -> Callable[..., Path]:
    """Return a call that writes one more image."""

    def write(name: str, seed: int = 50) -> Path:
        made = pictures.write_folder(photos.parent / f"made-{name}", 1, seed=seed)
        shutil.move(made / "img_000.png", photos / name)
        return photos / name

    return write


@pytest.fixture
def updated(tmp_path: Path, photos: Path) -> Callable[..., update.Updated]:
    """Return a call that updates the dataset `tmp_path`/dataset from the photos."""

    def run(**changes: object) -> update.Updated:
        values = {**MODEL, "images": str(photos), "out": str(tmp_path / "dataset"), **changes}
        return update.update(UpdateParameters.model_validate(values))

    return run


@pytest.fixture(scope="session")
def grown_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a `dataset` of five parts and versions, and its `photos`; not to be changed."""
    work = tmp_path_factory.mktemp("grown")
    grown_datasets.make(work / "dataset", work)
    return work


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """Where datasets of the test lie: `local`, or what `s3_server.ON_BOTH` says."""
    return str(getattr(request, "param", "local"))


@pytest.fixture
def grown(backend: str, grown_once: Path, request: pytest.FixtureRequest, tmp_path: Path) -> DatasetFolder:
    """Return a copy of the dataset that `grown_datasets.make` makes."""
    place: Root = tmp_path / "grown"
    if backend == "s3":
        place = f"s3://{request.getfixturevalue('s3').bucket}/tests/{uuid.uuid4().hex[:12]}"
    return grown_datasets.copy(grown_once / "dataset", place)


@pytest.fixture
def grow(grown: DatasetFolder, grown_once: Path, tmp_path: Path) -> Callable[..., update.Updated]:
    """Return a call that updates the copy with more images."""
    photos = shutil.copytree(grown_once / "photos", tmp_path / "grown-photos")
    shutil.copy(grown_once / "points.csv", tmp_path)

    def run(*names: str, gone: str = "", **changes: object) -> update.Updated:
        grown_datasets.write(photos, *names)
        if gone:
            (photos / gone).unlink()
        return grown_datasets.grow(grown.root, photos, **changes)

    return run
