"""Rows in the order of text, which is not that of the numbers in their names, are warned of."""

import io
import tarfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import containers
from genenc_core.dataset import update
from genenc_core.dataset.parameters import UpdateParameters
from genenc_core.images.sources import image_source, manifest, text_order
from genenc_core.inspection import inspect
from genenc_core.inspection.parameters import InspectParameters
from genenc_core.run import parameters, planning

PIXELS = containers.frames(1, 8, 8)[0]


def said(images: Path | str, folder: Path, *, frames: str | None = None) -> str:
    """Return the words of the warning of a source; "" without one."""
    source = image_source.open_source(str(images), frames=frames)
    listed = manifest.write_manifest(folder / "listed.manifest", source)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        text_order.check(source, listed)
    assert len(caught) <= 1
    return "".join(str(each.message) for each in caught)


def write(folder: Path, names: Sequence[str]) -> Path:
    """Write images, or stacks of two."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npy":
            np.save(path, np.stack([PIXELS, PIXELS]))
        else:
            path.write_bytes(containers.png(PIXELS))
    return folder


def write_tar(path: Path, names: Sequence[str]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(containers.png(PIXELS))
            archive.addfile(info, io.BytesIO(containers.png(PIXELS)))
    return path


@pytest.mark.parametrize(
    ("names", "out_of_order"),
    [
        (("frame1.png", "frame2.png", "frame10.png"), "'frame10.png' comes before 'frame2.png': join other tables by"),
        (("frame01.png", "frame02.png", "frame10.png"), ""),
        (("a10/1.png", "a9/1.png"), "'a10/1.png' comes before 'a9/1.png'"),
        (("b.png", "a.png"), ""),
    ],
)
def test_images(tmp_path: Path, names: Sequence[str], out_of_order: str) -> None:
    write(tmp_path / "photos", names)
    for images in ("photos", "photos/**/*.png"):
        words = said(tmp_path / images, tmp_path)
        assert out_of_order in words
        assert bool(words) == bool(out_of_order)


def test_stacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_order, "CHECKED_NAMES", 3)  # of images in the first stack, but of all stacks
    write(tmp_path / "v", ["s1.npy", "s2.npy", "s10.npy"])
    wanted = "'s10.npy' comes before 's2.npy'"
    assert wanted in said(tmp_path / "v/*.npy", tmp_path)
    assert wanted in said(tmp_path / "v", tmp_path, frames="all")
    write(tmp_path / "w", [f"s{at}.npy" for at in (8, 9, 10, 11)])
    assert not said(f"{tmp_path}/w/s{{8..11}}.npy", tmp_path)  # in the order in which they are named
    long = np.zeros((12, 8, 8), np.uint8)
    np.save(tmp_path / "long.npy", long)
    assert not said(tmp_path / "long.npy", tmp_path)


def test_members_of_archives(tmp_path: Path) -> None:
    assert "'a.tar/i10.png' comes before 'a.tar/i2.png'" in said(
        write_tar(tmp_path / "a.tar", ["i1.png", "i10.png", "i2.png"]), tmp_path
    )
    # The order of an archive that is not that of text is its writer's.
    assert not said(write_tar(tmp_path / "b.tar", ["i10.png", "i2.png", "i1.png"]), tmp_path)
    assert "'c10.tar' comes before 'c2.tar'" in said(
        write_tar(tmp_path / "c10.tar", ["i1.png"]).with_name("*.tar"), write_tar(tmp_path / "c2.tar", ["x.png"]).parent
    )


def test_runs_datasets_and_inspections_say_so(tmp_path: Path) -> None:
    stacks = str(write(tmp_path / "v", ["s2.npy", "s10.npy"]) / "*.npy")
    found = inspect.inspect(InspectParameters(images=stacks, decode_workers=1))
    assert any("'s10.npy' comes before 's2.npy'" in words for words in found.warnings)
    given = {"images": stacks, "model": "tiny_models:conv", "weights": "random:0", "image_size": "32"}
    with pytest.warns(text_order.TextOrder):
        planning.create_run(parameters.ExtractParameters.model_validate({**given, "out": str(tmp_path / "run")}))
    with pytest.warns(text_order.TextOrder):
        update.update(UpdateParameters.model_validate({**given, "out": str(tmp_path / "dataset")}))
    with warnings.catch_warnings():
        warnings.simplefilter("error", text_order.TextOrder)
        update.update(UpdateParameters(out=str(tmp_path / "dataset"), trust=True))
