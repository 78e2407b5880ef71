"""One scene for the tests of a module: drawn images and the run that nothing happened to."""

from collections.abc import Iterator

import pytest

import scene


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> scene.Scene:
    """Images, and a run of them without a fault."""
    return scene.Scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture
def at(stage: scene.Scene) -> Iterator[scene.Scene]:
    """The scene, with no run in it."""
    stage.clear()
    yield stage
    stage.clear()
