"""JPEGs decoded on a device: which ones is decided by the file, and every promise about a row holds as on the CPU."""

import errno
import importlib.util
import io
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import simulated_gpu
from genenc_core import errors, spec
from genenc_core.images.decode import decode, geometry, gpu_decode, headers
from genenc_core.images.decode.limits import Limits
from genenc_core.images.load import decode_pool, gpu_check, loader
from genenc_core.images.sources import image_source, manifest
from loading import Row, fork_workers, own_time, rows_of
from simulated_gpu import SimulatedGpu

__all__ = ["fork_workers"]
GPU = spec.Preprocessing(height=90, width=120, fit="crop", resize_short=100, interpolation="bicubic", decode="gpu")
CPU = GPU.model_copy(update={"decode": "full"})
Fork = Callable[[], None]


def jpeg(photo: np.ndarray, *, mode: str = "RGB", size: tuple[int, int] = (160, 120), **options: object) -> bytes:
    """Return a JPEG."""
    file = io.BytesIO()
    Image.fromarray(photo).resize(size).convert(mode).save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch, fork_workers: Fork) -> Callable[[type[SimulatedGpu]], None]:
    """Return what makes a simulated decoder that of the workers."""

    def install(kind: type[SimulatedGpu]) -> None:
        monkeypatch.setattr(gpu_decode, "NvJpeg", kind)
        fork_workers()

    return install


def listed_of(place: Path, files: dict[str, bytes]) -> manifest.Manifest:
    root = place / "images"
    root.mkdir()
    for name, data in files.items():
        (root / name).write_bytes(data)
    return manifest.write_manifest(place / "m.parquet", image_source.open_source(str(root)))


def load(
    listed: manifest.Manifest, preprocessing: spec.Preprocessing = GPU, *, workers: int = 1, batch: int = 64
) -> tuple[dict[str, Row], set[str]]:
    """Return all rows by name, and the names of those that the device decoded."""
    names = listed.read(0, listed.rows).image_ids
    rows: dict[str, Row] = {}
    on_gpu: set[str] = set()
    with loader.ImageLoader(
        listed, preprocessing, workers=workers, batch=batch, device="gpu:0", limits=Limits(accept_changed=True)
    ) as images:
        for found in images.iter_batches(0, listed.rows):
            on_gpu |= {names[row] for row in found.rows[found.on_gpu]}
            rows |= {names[row.row]: row for row in rows_of(found, {}, {})}
            found.release()
    assert list(rows) == list(names)
    return rows, on_gpu


@pytest.mark.slow
def test_the_file_alone_decides_who_decodes_it(
    tmp_path: Path, photo: np.ndarray, simulated: Callable[[type[SimulatedGpu]], None]
) -> None:
    """All else of a row is as on the CPU; the number of workers and the batch do not matter to a bit."""
    good = jpeg(photo)
    png = io.BytesIO()
    Image.fromarray(photo).save(png, "PNG")
    for_the_gpu = {
        "444.jpg": jpeg(photo, subsampling=0),
        "422.jpg": jpeg(photo, subsampling=1),
        "420.jpg": good,
        "grey.jpg": jpeg(photo, mode="L"),
        "odd.jpg": jpeg(photo, size=(131, 97)),
        "restarts.jpg": jpeg(photo, restart_marker_blocks=3),
        **{f"turned{each}.jpg": jpeg(photo, exif=turned(each)) for each in (2, 5, 6, 8)},
    }
    files = {
        **for_the_gpu,
        "progressive.jpg": jpeg(photo, progressive=True),
        "cmyk.jpg": jpeg(photo, mode="CMYK"),
        "rgb.jpg": jpeg(photo, keep_rgb=True),
        "small.jpg": jpeg(photo, size=(160, 63)),
        "trailing.jpg": good + b"more",
        "refused.jpg": jpeg(photo, comment=simulated_gpu.REFUSED),
        "left_out.jpg": jpeg(photo, comment=simulated_gpu.LEFT_OUT),
        "white.jpg": jpeg(np.full_like(photo, 255)),
        "a.png": png.getvalue(),
        "x_cut.jpg": good[: len(good) // 2],
        "x_empty.jpg": b"",
        "x_head.jpg": good[:200] + b"\xff\xd9",
    }
    simulated(SimulatedGpu)
    listed = listed_of(tmp_path, files)
    (tmp_path / "images" / "odd.jpg").write_bytes(jpeg(photo, size=(131, 97), quality=80))  # changed since planned
    exact, none = load(listed, CPU)
    assert not none
    found, on_gpu = load(listed, workers=3, batch=5)
    assert on_gpu == set(for_the_gpu)
    assert {name for name, row in exact.items() if row.failure} == {name for name in files if name.startswith("x_")}
    for name, row in found.items():
        told = exact[name]
        assert (row.height, row.width, row.orientation, row.affine) == (
            *(told.height, told.width, told.orientation, told.affine),
        )
        assert (row.sha256, row.failure, row.cause, row.changed) == (
            *(told.sha256, told.failure, told.cause, told.changed),
        )
        if row.pixels is None or told.pixels is None:
            assert row.pixels is told.pixels is None
        elif name in on_gpu:
            apart = row.pixels.short() - told.pixels.short()
            assert apart.float().mean() == pytest.approx(0.5, abs=0.1)
            assert apart.abs().max() <= 3
        else:
            assert row.pixels.equal(told.pixels)
    assert found["odd.jpg"].changed is not None
    again, same = load(listed)
    assert same == on_gpu
    for name, row in again.items():
        assert row.pixels is found[name].pixels is None or (
            row.pixels is not None and row.pixels.equal(found[name].pixels)
        )


@pytest.mark.parametrize(
    "preprocessing",
    [
        GPU,
        spec.Preprocessing(height=240, width=300, fit="pad", decode="gpu"),
        spec.Preprocessing(height=50, width=50, fit="stretch", antialias=False, decode="gpu"),
        spec.Preprocessing(height=120, width=160, fit="stretch", interpolation="bicubic", decode="gpu"),
    ],
    ids=spec.Preprocessing.describe,
)
def test_pictures_are_resized_as_on_the_cpu(photo: np.ndarray, preprocessing: spec.Preprocessing) -> None:
    """Within the rounding of torch's resize of bytes; sharp edges overshoot and are cut off, not wrapped."""
    board = np.kron(np.indices((12, 16)).sum(axis=0) % 2, np.ones((10, 10))).astype(np.uint8)[..., None] * 255
    fitter = geometry.Fitter(preprocessing)
    gpu = gpu_decode.GpuDecoder(simulated_gpu.Other("gpu:0"), preprocessing, fitter.hint, 10**9)
    for picture in (photo, np.repeat(board, 3, axis=2)):
        data = bytearray(jpeg(picture, exif=turned(6)))
        header = gpu.header(data)
        assert header is not None
        (image,) = gpu.decode([(data, header)])
        assert image is not None
        found, affine = fitter.fit(image)
        expected, same = fitter.fit(decode.decode_image(data))
        assert affine == same
        assert (found.short() - expected.short()).abs().max() <= 2


@pytest.mark.slow
def test_the_devices_memory_is_bounded(photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few pixels are decoded at a time; too large pictures, and too much reduction or enlargement, are the CPU's."""
    monkeypatch.setattr(gpu_decode, "LARGEST_PIXELS", 3 * 120 * 160)
    fitter = geometry.Fitter(GPU)
    decoder = SimulatedGpu("gpu:0")
    gpu = gpu_decode.GpuDecoder(decoder, GPU, fitter.hint, 10**9)
    files = [bytearray(jpeg(photo)) for _ in range(8)]
    heads = [gpu.header(each) for each in files]
    images = gpu.decode([(data, head) for data, head in zip(files, heads, strict=True) if head is not None])
    assert [image is not None for image in images] == [True] * 8
    assert decoder.sizes == [3, 3, 2]
    assert gpu.header(jpeg(photo, size=(320, 181))) is None
    assert gpu_decode.GpuDecoder(decoder, GPU, fitter.hint, 120 * 160 - 1).header(files[0]) is None
    for height, width in ((3, 120), (250, 250)):
        other = geometry.Fitter(spec.Preprocessing(height=height, width=width, decode="gpu"))
        assert gpu_decode.GpuDecoder(decoder, GPU, other.hint, 10**9).header(files[0]) is None


def test_one_refused_file_costs_no_other_its_decoder(photo: np.ndarray) -> None:
    fitter = geometry.Fitter(GPU)
    gpu = gpu_decode.GpuDecoder(SimulatedGpu("gpu:0"), GPU, fitter.hint, 10**9)
    files = [bytearray(jpeg(photo)), bytearray(jpeg(photo, comment=simulated_gpu.REFUSED)), bytearray(jpeg(photo))]
    heads = [gpu.header(each) for each in files]
    images = gpu.decode([(data, head) for data, head in zip(files, heads, strict=True) if head is not None])
    assert [image is not None for image in images] == [True, False, True]


def test_a_fault_of_the_device_is_no_images(
    tmp_path: Path, photo: np.ndarray, simulated: Callable[[type[SimulatedGpu]], None]
) -> None:
    """Nor does the CPU decode in its place, with other pixels."""
    simulated(SimulatedGpu)
    listed = listed_of(tmp_path, {"a.jpg": jpeg(photo), "b.jpg": jpeg(photo, comment=simulated_gpu.FAILS)})
    with pytest.raises(OSError, match="simulated: gpu:0 failed"):
        load(listed)


@pytest.mark.parametrize(
    ("told", "number"), [("CUDA out of memory. Tried", errno.ENOMEM), ("CUDA error: misaligned", errno.EIO)]
)
def test_so_is_one_while_it_resizes(photo: np.ndarray, monkeypatch: pytest.MonkeyPatch, told: str, number: int) -> None:
    def fails(*_arguments: object, **_named: object) -> None:
        raise RuntimeError(told)

    monkeypatch.setattr(torch.nn.functional, "interpolate", fails)
    gpu = gpu_decode.GpuDecoder(SimulatedGpu("gpu:0"), GPU, geometry.Fitter(GPU).hint, 10**9)
    data = bytearray(jpeg(photo))
    header = gpu.header(data)
    assert header is not None
    with pytest.raises(OSError, match=told) as caught:
        list(gpu.decode([(data, header)]))
    assert caught.value.errno == number


def test_a_file_that_ends_the_devices_process_is_a_row(
    tmp_path: Path, photo: np.ndarray, simulated: Callable[[type[SimulatedGpu]], None]
) -> None:
    simulated(SimulatedGpu)
    files = {f"{at}.jpg": jpeg(photo, comment=simulated_gpu.ABORTS if at == 2 else b"") for at in range(5)}
    found, on_gpu = load(listed_of(tmp_path, files), batch=2)
    assert on_gpu == {"0.jpg", "1.jpg", "3.jpg", "4.jpg"}
    assert "crashes its decoder (SIGABRT" in str(found["2.jpg"].failure)


@pytest.mark.slow
def test_a_device_that_takes_its_time_to_start_costs_no_row(
    tmp_path: Path, photo: np.ndarray, simulated: Callable[[type[SimulatedGpu]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is an image's; a context on a GPU takes seconds, here twice the limit."""
    starting, go, ticks = tmp_path / "starting", tmp_path / "go", []
    simulated(simulated_gpu.slow_to_start(starting, go))
    listed, given_up = listed_of(tmp_path, {"a.jpg": jpeg(photo)}), []
    bounds = Limits(accept_changed=True, seconds=0.2)

    def passes(_pool: decode_pool.DecodePool) -> bool:
        if go.exists() or not starting.exists():
            return False
        ticks.append(2 * decode_pool._TICK)
        if sum(ticks[:-1]) > 2 * bounds.seconds:
            go.touch()
        return True

    own_time(monkeypatch, passes)
    with loader.ImageLoader(listed, GPU, workers=1, device="gpu:0", limits=bounds) as images:
        monkeypatch.setattr(decode_pool.DecodePool, "_kill_hung", lambda _self, worker: given_up.append(worker.process))
        (found,) = images.iter_batches(0, 1)
        assert (found.rows.tolist(), found.on_gpu.tolist()) == ([0], [True])
        found.release()
    assert not given_up


def test_gpu_decoding_needs_a_device(tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = listed_of(tmp_path, {"a.jpg": jpeg(photo)})
    with pytest.raises(errors.InputError, match="needs a device"):
        loader.ImageLoader(listed, GPU)
    with pytest.raises(errors.InputError, match=r"--decode gpu needs a CUDA device.*'cpu'.*--device cuda:0"):
        gpu_decode.require("cpu")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(errors.InputError, match=r"pip install 'genenc\[gpu\]'"):
        gpu_decode.require("cuda:0")


class Cuda:
    """torch's CUDA and torchcodec's decoder, which fails as it is told to."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.error: Exception | None = None
        self.broken = False

    def synchronize(self, _device: torch.device) -> None:
        self.said.append("waited")
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    def decode_jpeg(self, files: list[torch.Tensor], *, mode: str, device: torch.device) -> list[torch.Tensor]:
        assert (mode, device) == ("RGB", torch.device("cuda", 1))
        self.said.append(f"decoded {len(files)}")
        if self.error is not None:
            self.broken = "CUDA error" in str(self.error)
            raise self.error
        return [torch.zeros(3, 2, 2)] * len(files)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    found = Cuda()
    decoders = types.ModuleType("torchcodec.decoders")
    decoders.decode_jpeg = found.decode_jpeg  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", found.synchronize)
    yield found
    torch.use_deterministic_algorithms(False)


def test_nvjpeg_begins_when_the_device_is_idle(cuda: Cuda) -> None:
    """Its hardware writes at once to memory that work before it may still read; and unwritten memory is known."""
    decoder = gpu_decode.NvJpeg("cuda:1")
    assert torch.are_deterministic_algorithms_enabled()
    cuda.said.clear()
    found = decoder.decode([b"one", bytearray(b"two")])
    assert found is not None
    assert len(found) == 2
    assert cuda.said == ["waited", "decoded 2", "waited"]


@pytest.mark.parametrize(
    "told",
    [
        "decode_software, src/DecodeJpegCuda.cpp:411, nvjpegDecode failed: 4",
        "allocate_output, src/DecodeJpegCuda.cpp:208, Failed to get image info: 3",
        "decode_batched_hardware, src/DecodeJpegCuda.cpp:377, Failed to decode batch: 6\nException raised from ...",
        "allocate_output, src/DecodeJpegCuda.cpp:213, Unknown chroma subsampling",
    ],
)
def test_what_nvjpeg_says_of_a_file_is_a_refusal(cuda: Cuda, told: str) -> None:
    decoder = gpu_decode.NvJpeg("cuda:1")
    cuda.error = RuntimeError(told)
    assert decoder.decode([b"one"]) is None


@pytest.mark.parametrize(
    ("error", "number", "told"),
    [
        (RuntimeError("Failed to decode batch: 5"), errno.EIO, "nvJPEG failed on cuda:1: Failed to decode batch: 5"),
        (RuntimeError("Failed to initialize nvjpeg with default backend: 7"), errno.EIO, "backend: 7"),
        (RuntimeError("Failed to create nvjpeg state: 6"), errno.EIO, "state: 6"),
        (RuntimeError("CUDA out of memory. Tried to allocate 20 MiB (originally from aoti"), errno.ENOMEM, "fewer"),
        (RuntimeError("something else"), errno.EIO, "something else"),
        (torch.OutOfMemoryError("CUDA out of memory"), errno.ENOMEM, "fewer --decode-workers"),
    ],
)
def test_all_else_is_a_fault_of_the_device(cuda: Cuda, error: Exception, number: int, told: str) -> None:
    decoder = gpu_decode.NvJpeg("cuda:1")
    cuda.error = error
    with pytest.raises(OSError, match=told) as caught:
        decoder.decode([b"one"])
    assert caught.value.errno == number


def test_a_process_ends_whose_cuda_does_not_work_any_more(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its last words are why."""
    decoder = gpu_decode.NvJpeg("cuda:1")

    def end(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", end)
    cuda.error = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(SystemExit):
        decoder.decode([b"one"])
    assert capsys.readouterr().err.startswith("CUDA error: an illegal memory access")


def test_a_device_that_does_not_work_is_told_at_once(cuda: Cuda) -> None:
    cuda.broken = True
    with pytest.raises(OSError, match=r"cannot decode JPEGs on cuda:1 \(--decode gpu\): CUDA error") as caught:
        gpu_decode.NvJpeg("cuda:1")
    assert caught.value.errno == errno.ENODEV


def test_a_worker_without_a_device_tells_it(tmp_path: Path, photo: np.ndarray, fork_workers: Fork) -> None:
    """The decoder itself, on a machine that has none."""
    fork_workers()
    with pytest.raises(OSError, match=r"cannot decode JPEGs on gpu:0 \(--decode gpu\): "):
        load(listed_of(tmp_path, {"a.jpg": jpeg(photo)}))


@pytest.mark.slow
def test_a_decoder_is_checked_before_it_is_used(simulated: Callable[[type[SimulatedGpu]], None]) -> None:
    simulated(SimulatedGpu)
    first = gpu_check.check(GPU, "gpu:0")
    assert gpu_check.check(GPU, "gpu:0") == first
    simulated(simulated_gpu.Other)
    assert gpu_check.check(GPU, "gpu:0") != first


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (
            simulated_gpu.Shifted,
            r"gpu:0 decodes a synthetic JPEG \(.*jpg\) to pixels that differ from the CPU's by \d.* \d+",
        ),
        (simulated_gpu.Refusing, r"synthetic JPEGs \(34 of 34 are left to the CPU at the model's size, 90 x 120\)"),
        (simulated_gpu.Unsteady, r"gpu:0 decodes a JPEG to different pixels depending on its batch"),
    ],
)
def test_a_wrong_decoder_is_refused_with_the_figures(
    simulated: Callable[[type[SimulatedGpu]], None], kind: type[SimulatedGpu], told: str
) -> None:
    simulated(kind)
    with pytest.raises(errors.InputError, match=told):
        gpu_check.check(GPU, "gpu:0")


@pytest.mark.slow
def test_a_model_too_small_for_the_device_is_told_so(simulated: Callable[[type[SimulatedGpu]], None]) -> None:
    simulated(SimulatedGpu)
    with pytest.raises(errors.InputError, match="10 of 34 are left to the CPU at the model's size, 28 x 28"):
        gpu_check.check(GPU.model_copy(update={"height": 28, "width": 28, "fit": "stretch"}), "gpu:0")


def test_which_jpegs_are_usual(photo: np.ndarray) -> None:
    usual = jpeg(photo)
    assert headers.is_usual_baseline(usual)
    frame = usual.index(b"\xff\xc0")
    for at, value in {1: 0xC1, 10: 0x52, 11: 0x41, 14: 0x22}.items():  # kind, first component, samplings
        other = bytearray(usual)
        other[frame + at] = value
        assert not headers.is_usual_baseline(other), at
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"
    assert headers.is_usual_baseline(usual[:2] + adobe + b"\1" + usual[2:])
    assert not headers.is_usual_baseline(usual[:2] + adobe + b"\0" + usual[2:])
    assert not headers.is_usual_baseline(usual[:frame])
    assert not headers.is_usual_baseline(b"\xff\xd8\xff\xc0\0\x02\xff\xd9"), "a frame that ends before its numbers"


def test_exif_is_hidden_from_decoders_that_would_turn_by_it(photo: np.ndarray) -> None:
    data = jpeg(photo, exif=turned(6))
    bare = headers.without_exif(data)
    assert headers.jpeg_orientation(data) == 6
    assert headers.jpeg_orientation(bare) == 1
    assert len(bare) == len(data)
    plain = jpeg(photo)
    assert headers.without_exif(plain) is plain
