"""The ways themselves, in this process and on a few images: each does all of its work each time it is called."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from genenc_core.bench import data_ways, images, model_ways, start_ways
from genenc_core.run import status
from genenc_core.run.folder import RunFolder


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Restore torch's threads, which ways set for their whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(images.draw(tmp_path_factory.mktemp("drawn") / "photos", 5, broken_every=5))


def test_drawn_images_have_the_size_of_photographs_and_are_always_the_same(tmp_path: Path) -> None:
    one, two = (images.draw(tmp_path / name, 4) for name in ("one", "two"))
    sizes = [path.stat().st_size for path in sorted(one.iterdir())]
    assert 80_000 < sum(sizes) / len(sizes) < 100_000
    assert [path.read_bytes() for path in sorted(one.iterdir())] == [
        path.read_bytes() for path in sorted(two.iterdir())
    ]


def test_drawn_images_repeat_and_some_are_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "DISTINCT", 2)
    found = [path.read_bytes() for path in sorted(images.draw(tmp_path / "some", 6, broken_every=3).iterdir())]
    assert found[0] != found[1] == found[3]
    assert found[4] == found[0]
    assert (found[2], found[5]) == (found[0][: len(found[0]) // 2], found[1][: len(found[1]) // 2])


@pytest.mark.slow
def test_an_extraction_commits_every_image_and_says_which_are_broken(photos: str, tmp_path: Path) -> None:
    with data_ways.extraction(photos, workers=1, out=str(tmp_path / "runs" / "run")) as once:
        assert [once(), once()] == [5.0, 5.0]
    runs = sorted((tmp_path / "runs").iterdir())
    assert len(runs) == 2
    for found in map(status.run_status, map(RunFolder, runs)):
        assert (found.ok, found.unreadable, found.complete) == (4, 1, True)


def test_the_loader_alone_gives_every_image_that_can_be_read(photos: str, tmp_path: Path) -> None:
    with data_ways.loading(photos, workers=2, out=str(tmp_path / "runs" / "run")) as once:
        assert [once(), once()] == [4.0, 4.0]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_floors_touch_every_image(tmp_path: Path, workers: int) -> None:
    good = str(images.draw(tmp_path / "good", 3))
    for way in (data_ways.decoding, data_ways.resizing):
        with way(good, workers) as once:
            assert once() == 3.0


def test_a_floor_does_not_pass_over_what_it_cannot_decode(photos: str) -> None:
    with data_ways.decoding(photos, 1) as once, pytest.raises(ValueError, match="is truncated"):
        once()


def test_the_network_of_the_data_suite_averages() -> None:
    pixels = torch.arange(2 * 3 * 64 * 64, dtype=torch.float32).reshape(2, 3, 64, 64)
    assert torch.allclose(data_ways.average_pool()(pixels)[:, :, 0, 0], pixels.mean((2, 3)))


def test_the_engine_and_the_bare_forward_do_the_same_images() -> None:
    for way in (model_ways.bare, model_ways.engine_alone):
        with way(f"{data_ways.HERE}:average_pool", batch=2, batches=3) as once:
            assert once() == 6.0


def test_the_search_for_a_batch_size_tells_the_size() -> None:
    with model_ways.searching(f"{data_ways.HERE}:average_pool", images=2000) as once:
        assert once() in (1, 2, 4, 8, 16)


@pytest.mark.slow
def test_runs_are_carried_out_by_the_runner_that_is_named(photos: str, tmp_path: Path) -> None:
    given = {"model": f"{data_ways.HERE}:average_pool", "batch_size": 2}
    runner = "genenc_core.cli.runners:PlainRunner"
    with model_ways.runs(photos, str(tmp_path / "runs" / "run"), runner, **given) as once:
        assert once() == 5.0


def test_a_command_that_fails_is_no_figure(tmp_path: Path) -> None:
    left = tmp_path / "left"
    left.mkdir()
    with start_ways.command(["sh", "-c", f"test ! -e {left} && mkdir {left}"], str(left)) as once:
        assert [once(), once()] == [1.0, 1.0]
    with start_ways.command(["sh", "-c", "echo words >&2; exit 3"], None) as once, pytest.raises(RuntimeError) as error:
        once()
    assert str(error.value) == "exit code 3: words"
