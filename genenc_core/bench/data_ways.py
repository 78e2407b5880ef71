"""Programs of the suite `data`: each prepares, then does its work once per call; see `worker.py`."""

import contextlib
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from genenc_core import spec
from genenc_core.bench.measure import Running, Way
from genenc_core.encoding import engine
from genenc_core.images.decode import decoded, geometry
from genenc_core.images.load import loader
from genenc_core.run import driver, engine_setup, planning, records
from genenc_core.run.folder import RunFolder
from genenc_core.run.parameters import Changes, ExtractParameters

Once = Callable[[], float]
HERE = "genenc_core.bench.data_ways"
BATCH = 32
SIDE = 224
_END = b"\xff\xd9"


class AveragePool(nn.Module):
    """Mean of each channel: a network with negligible cost."""

    def __init__(self, side: int = SIDE) -> None:
        super().__init__()
        self.genenc = {"image_size": side, "fit": "crop", "interpolation": "bilinear"}

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the channel means [B, 3, 1, 1] of [B, 3, H, W]."""
        return nn.functional.adaptive_avg_pool2d(pixels, 1)


def average_pool() -> nn.Module:
    """Return the network."""
    return AveragePool()


@contextlib.contextmanager
def decoding(folder: str, workers: int) -> Iterator[Once]:
    """Read and decode every file with genenc's decoder."""
    with _every_file(folder, workers, _decoded) as once:
        yield once


@contextlib.contextmanager
def resizing(folder: str, workers: int) -> Iterator[Once]:
    """Read, decode, resize and crop to the network's input with genenc's operators."""
    fitter = geometry.Fitter(spec.Preprocessing(height=SIDE, width=SIDE, fit="crop", interpolation="bilinear"))

    def fitted(path: Path) -> object:
        pixels = _decoded(path)
        _, height, width = pixels.shape
        return fitter.fit(decoded.Decoded(pixels=pixels, orientation=1, size=(height, width)))

    with _every_file(folder, workers, fitted) as once:
        yield once


class PlainFiles(Dataset[torch.Tensor]):
    """Images of a folder with torchvision's usual evaluation transform on Pillow images."""

    def __init__(self, folder: str, *, short: int = 256, side: int = SIDE) -> None:
        self._paths = sorted(Path(folder).iterdir())
        steps = [transforms.Resize(short), transforms.CenterCrop(side), transforms.ToTensor()]
        self._transform = transforms.Compose(
            [*steps, transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
        )

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._transform(self.opened(self._paths[index]))  # type: ignore[no-any-return]

    def opened(self, path: Path) -> Image.Image:
        """Return a file's pixels."""
        with Image.open(path) as image:
            return image.convert("RGB")


@contextlib.contextmanager
def plain_loader(folder: str, workers: int) -> Iterator[Once]:
    """Iterate over a plain DataLoader."""
    files = PlainFiles(folder)

    def once() -> float:
        with torch.inference_mode():
            loader = DataLoader(files, batch_size=BATCH, num_workers=workers)
            return float(sum(len(nn.functional.adaptive_avg_pool2d(batch, 1)) for batch in loader))

    torch.set_num_threads(1)
    yield once


@contextlib.contextmanager
def loading(folder: str, workers: int, out: str, *, batch: int = BATCH, **more: object) -> Iterator[Once]:
    """Load the rows of a planned run in order: read, hash, decode, resize and crop."""
    _prepare(out)
    run = planning.create_run(parameters(folder, out, workers, batch_size=batch, **more))
    with loader.ImageLoader(run.manifest, run.preprocessing, workers=workers, batch=batch) as images:

        def once() -> float:
            count = 0
            for batch in images.iter_batches(0, run.manifest.rows):
                count += len(batch)
                batch.release()
            return float(count)

        yield once


@contextlib.contextmanager
def network(folder: str, workers: int, out: str) -> Iterator[Once]:
    """Encode as many images as the folder has from memory: the cost of the engine and its forward pass."""
    _prepare(out)
    run = planning.create_run(parameters(folder, out, workers))
    with contextlib.closing(engine_setup.make_engine(run, records.Options.of(run.given))) as runner:
        pixels = torch.randint(0, 256, (BATCH, 3, SIDE, SIDE), dtype=torch.uint8)
        batch = engine.Batch(pixels=pixels, points=torch.zeros(BATCH, 0, 2), valid=torch.zeros(BATCH, 0).bool())

        def once() -> float:
            count = run.manifest.rows // BATCH
            for _ in range(count):
                runner.encode(batch)
            return float(count * BATCH)

        yield once


@contextlib.contextmanager
def extraction(folder: str, workers: int, out: str, **more: object) -> Iterator[Once]:
    """Extract into a new run folder each time: planning, decoding, encoding, commits and verification."""
    numbers = itertools.count()

    def once() -> float:
        # Other processes may have run this program too.
        root = f"{out}-{os.getpid()}-{next(numbers)}"
        return float(driver.extract(parameters(folder, root, workers, **more)).status.rows)

    _prepare(out)
    yield once


@contextlib.contextmanager
def sharing(folder: str, processes: int, workers: int, shard_rows: int, out: str) -> Iterator[Once]:
    """Plan a run each time and share its shards among running processes, each on its own cores."""
    numbers = itertools.count()
    with contextlib.ExitStack() as stack:
        helpers = [Running(_helper(out, [at * workers + core for core in range(workers)])) for at in range(processes)]
        for process in helpers:
            stack.callback(process.close)
            process.prepared()
        _prepare(out)

        def once() -> float:
            run = planning.create_run(parameters(folder, f"{out}-{next(numbers)}", workers, shard_rows=shard_rows))
            for process in helpers:
                process.start()
            for process in helpers:
                process.cost()
            return float(run.store.plan.rows)

        yield once


@contextlib.contextmanager
def resuming(out: str, cores: list[int]) -> Iterator[Once]:
    """Resume the next run of a series that another process plans, pinned to some of this machine's cores."""
    numbers = itertools.count()
    if hasattr(os, "sched_setaffinity"):  # elsewhere they share all cores
        usable = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {usable[core % len(usable)] for core in cores})

    def once() -> float:
        root = f"{out}-{next(numbers)}"
        return float(driver.resume(RunFolder(root), "pending", Changes(trust=True)).status.rows)

    _prepare(out)
    yield once


def parameters(folder: str, out: str, workers: int, **more: object) -> ExtractParameters:
    """Return the parameters of an extraction with the mean network."""
    return ExtractParameters.model_validate(
        {
            "images": folder,
            "model": f"{HERE}:average_pool",
            "out": out,
            "batch_size": BATCH,
            "decode_workers": workers,
            "device": "cpu",
            **more,
        }
    )


def _helper(out: str, cores: list[int]) -> Way:
    return Way(name="helper", program=f"{HERE}:resuming", arguments={"out": out, "cores": cores})


def _prepare(out: str) -> None:
    """Create the runs' parent folder and limit torch to one thread."""
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)


def _decoded(path: Path) -> torch.Tensor:
    """Decode to uint8 [3, H, W] in channels-last memory; libjpeg itself would pad a truncated file with grey."""
    data = path.read_bytes()
    if not data.endswith(_END):
        raise ValueError(f"{path} is truncated")
    return torch.from_numpy(imagecodecs.jpeg8_decode(data, outcolorspace="RGB")).permute(2, 0, 1)


@contextlib.contextmanager
def _every_file(folder: str, workers: int, work: Callable[[Path], object]) -> Iterator[Once]:
    """Apply `work` to every file of a folder, in forked processes if `workers` > 1."""
    paths = sorted(Path(folder).iterdir())
    torch.set_num_threads(1)
    if workers == 1:
        yield lambda: float(_done(work, paths))
        return
    with multiprocessing.get_context("fork").Pool(workers, _SHARE.extend, [(work, paths, workers)]) as pool:
        yield lambda: float(sum(pool.map(_done_share, range(workers), chunksize=1)))


_SHARE: list[Any] = []
"""In a forked process: the work, all paths and the number of processes."""


def _done_share(part: int) -> int:
    work, paths, workers = _SHARE
    return _done(work, paths[part::workers])


def _done(work: Callable[[Path], object], paths: Sequence[Path]) -> int:
    with torch.inference_mode():
        return sum(work(path) is not None for path in paths)
