"""Thumbnails of unreadable images, and of files that no decoder should meet in the flow's process."""

import contextlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pictures
from genenc_core.report import broken
from genenc_tasks import thumbnails

Show = Callable[..., str]


@pytest.fixture
def shown(tmp_path: Path) -> Show:
    """Return a call that shows files of the given contents as unreadable images."""

    def show(**contents: bytes) -> str:
        for name, data in contents.items():
            (tmp_path / name).write_bytes(data)
        paths = [str(tmp_path / name) for name in contents]
        run: Any = SimpleNamespace(
            manifest=SimpleNamespace(read=lambda start, stop: SimpleNamespace(paths=paths[start:stop]))
        )
        items = [{"row": row, "image_id": name, "reason": f"{name} is broken"} for row, name in enumerate(contents)]
        return thumbnails.markdown(run, items)

    return show


@pytest.fixture
def image(tmp_path: Path) -> bytes:
    return next(pictures.write_folder(tmp_path / "photos", 1).iterdir()).read_bytes()


@pytest.mark.slow
def test_what_can_be_decoded_is_shown_with_its_reason(shown: Show, image: bytes) -> None:
    lines = shown(whole=image, cut=image[:-40], empty=b"", text=b"no image").splitlines()
    assert lines[:2] == ["| image | reason | what can be drawn |", "|---|---|---|"]
    assert [line.partition(" | ![](data:image/png;base64,")[0] for line in lines[2:]] == [
        "| whole | whole is broken",
        "| cut | cut is broken",
    ]


@pytest.mark.slow
def test_nothing_is_shown_if_nothing_can_be_decoded(shown: Show) -> None:
    assert shown(empty=b"", text=b"no image") == ""


@pytest.mark.slow
def test_a_name_cannot_leave_its_cell(shown: Show, image: bytes) -> None:
    (line,) = shown(**{"a|b](x)<img>": image}).splitlines()[2:]
    assert line.startswith("| a\\|b\\]\\(x\\)&lt;img&gt; |")


@pytest.mark.slow
def test_a_file_that_hangs_costs_those_after_it(
    shown: Show, image: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child's time is over once it has opened the pipe and what it wrote before was read."""
    pipe, asked = [], []

    def now() -> float:
        if not pipe:
            with contextlib.suppress(OSError):
                pipe.append(os.open(tmp_path / "pipe", os.O_WRONLY | os.O_NONBLOCK))
        asked.extend(pipe)
        return 1e9 if len(asked) > 10 else 0.0

    monkeypatch.setattr(broken, "SECONDS", 0.05)
    monkeypatch.setattr(subprocess, "_time", now)
    own = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: own(path, data) if data else os.mkfifo(path))
    lines = shown(first=image, pipe=b"", last=image).splitlines()[2:]
    os.close(*pipe)
    assert [line.split()[1] for line in lines] == ["first"]
