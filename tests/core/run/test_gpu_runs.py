"""Runs whose JPEGs are decoded on a device: recorded, checked in every session, never mixed with other pixels."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

import pictures
import simulated_gpu
from genenc_core import errors
from genenc_core.encoding import cancellation
from genenc_core.images.decode import gpu_decode
from genenc_core.run import driver, gpu_pixels
from genenc_core.run.folder import RunFolder
from genenc_core.run.parameters import Changes
from loading import fork_workers

__all__ = ["fork_workers"]
Extract = Callable[..., driver.Result]
Use = Callable[[type[simulated_gpu.SimulatedGpu]], None]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of 7 JPEGs, two PNGs, and one file that is no image."""
    folder = pictures.write_folder(tmp_path / "photos", 9, sizes=((80, 70), (70, 90)))
    for at, file in enumerate(sorted(folder.iterdir())[2:]):
        with Image.open(file) as image:
            exif = Image.Exif()
            exif[0x0112] = 1 + at
            image.convert("RGB").save(file.with_suffix(".jpg"), exif=exif)
        file.unlink()
    (folder / "page.jpg").write_bytes(b"<html>")
    return folder


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, fork_workers: Callable[[], None]) -> Use:
    """Return what makes a simulated decoder that of this machine's device, here the CPU."""

    def install(kind: type[simulated_gpu.SimulatedGpu]) -> None:
        monkeypatch.setattr(gpu_decode, "NvJpeg", kind)
        monkeypatch.setattr(gpu_decode, "require", lambda _device: None)
        monkeypatch.setattr(gpu_decode, "describe", lambda _device: kind.__name__)
        fork_workers()

    return install


def values(run: Path) -> dict[str, np.ndarray]:
    group = zarr.open_group(run / "features.zarr", mode="r")
    return {name: np.asarray(array[:]) for name, array in group.arrays()}


def test_without_a_device_it_is_refused_before_anything_is_made(extract: Extract, tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match=r"--decode gpu needs a CUDA device, but this run uses 'cpu'"):
        extract(decode="gpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_same_bits_for_any_workers_and_other_than_the_cpus(extract: Extract, tmp_path: Path, use: Use) -> None:
    """Files that are the CPU's have its bits; geometry, points and statuses are as without."""
    points = tmp_path / "points.csv"
    names = [f"img_{at:03d}.{'png' if at < 2 else 'jpg'}" for at in range(9)]
    points.write_text(
        "image,point,x,y\n" + "".join(f"{name},tip,{20 + at},{30 - at}\n" for at, name in enumerate(names))
    )
    use(simulated_gpu.SimulatedGpu)
    told = {"points": str(points), "max_failures": "100%"}
    extract(decode="gpu", decode_workers=1, out=str(tmp_path / "one"), **told)
    extract(decode="gpu", decode_workers=3, out=str(tmp_path / "three"), **told)
    extract(out=str(tmp_path / "cpu"), **told)
    one, three, cpu = (values(tmp_path / name) for name in ("one", "three", "cpu"))
    for name, array in one.items():
        np.testing.assert_array_equal(array, three[name], err_msg=name)
    for name in ("status", "image_affine", "image_orientation", "image_height", "image_width", "point_status"):
        np.testing.assert_array_equal(one[name], cpu[name], err_msg=name)
    differ = (one["features"] != cpu["features"]).any(axis=1) & (cpu["status"] == 1)
    assert differ.tolist() == [False, False, *[True] * 7, False]
    assert "JPEG decoded on a GPU" in (tmp_path / "one" / "README.md").read_text()
    record = json.loads((tmp_path / "one" / gpu_pixels.RECORD).read_text())
    assert record["device"] == "SimulatedGpu"
    assert not (tmp_path / "cpu" / gpu_pixels.RECORD).exists()


@pytest.mark.slow
def test_resume_needs_same_pixels(extract: Extract, tmp_path: Path, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    run, told = tmp_path / "run", {"decode": "gpu", "max_failures": "100%"}
    real = gpu_decode.require
    use(simulated_gpu.SimulatedGpu)
    extract(out=str(tmp_path / "whole"), **told)
    watch = cancellation.Control()
    watch.on_rows = lambda _done, _failed: watch.stop()
    with cancellation.use(watch), pytest.raises(errors.Stopped):
        extract(**told)
    with pytest.raises(errors.StoreError, match=r"preprocessing.decode: 'gpu' -> 'none'"):
        extract(max_failures="100%")
    use(simulated_gpu.Other)
    with pytest.raises(errors.StoreError, match="Other decodes JPEGs to other pixels than SimulatedGpu"):
        driver.resume(RunFolder(run), "pending", Changes(device="cpu"))
    use(simulated_gpu.Shifted)
    with pytest.raises(errors.InputError, match="differ from the CPU's by"):
        driver.resume(RunFolder(run), "pending", Changes(device="cpu"))
    monkeypatch.setattr(gpu_decode, "require", real)
    with pytest.raises(errors.InputError, match="needs a CUDA device"):
        driver.resume(RunFolder(run), "pending", Changes(device="cpu"))
    use(simulated_gpu.SimulatedGpu)
    assert driver.resume(RunFolder(run), "pending", Changes(device="cpu")).status.complete
    for name, array in values(run).items():
        np.testing.assert_array_equal(array, values(tmp_path / "whole")[name], err_msg=name)


@pytest.mark.slow
def test_failing_device_costs_no_row(extract: Extract, tmp_path: Path, photos: Path, use: Use) -> None:
    use(simulated_gpu.SimulatedGpu)
    with Image.open(photos / "img_005.jpg") as image:
        image.save(photos / "img_005.jpg", comment=simulated_gpu.FAILS)
    found = extract(decode="gpu", max_failures="100%")
    assert list(found.status.failed) == [1]
    assert "simulated: cpu failed" in str(found.failures[0])
