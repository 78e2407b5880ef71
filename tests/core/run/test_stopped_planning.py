"""A stop that is asked for while images are listed ends the listing, and leaves no run behind."""

from pathlib import Path

import pytest

import pictures
from genenc_core import errors
from genenc_core.encoding import cancellation
from genenc_core.images.sources import listing, manifest_rows
from genenc_core.run import parameters, planning


def test_a_stop_ends_the_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_rows, "GROUP_ROWS", 1)
    control, ask, asked = cancellation.Control(), listing._stat_all, 0

    def stopping(paths: list[str]) -> tuple[list[int], list[int]]:
        nonlocal asked
        asked += len(paths)
        control.stop()
        return ask(paths)

    monkeypatch.setattr(listing, "_stat_all", stopping)
    given = parameters.ExtractParameters(
        images=str(pictures.write_folder(tmp_path / "photos", 40)),
        model="tiny_models:conv",
        weights="random:0",
        image_size="32",
        out=str(tmp_path / "run"),
    )
    with cancellation.use(control), pytest.raises(errors.Stopped):
        planning.create_run(given)
    assert 0 < asked < 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]
