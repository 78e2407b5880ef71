"""The ways of the suite `data`: each prepares, and then does its work once per call; see `worker.py`."""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import io, transforms
from torchvision.transforms.v2 import functional

from genenc_core.bench.measure import Running, Way
from genenc_core.images import loader
from genenc_core.run import driver, planning
from genenc_core.run.folder import RunFolder
from genenc_core.run.parameters import ExtractParameters

Once = Callable[[], float]
HERE = "genenc_core.bench.data_ways"
BATCH = 32


class AveragePool(nn.Module):
    """The mean of each channel: a network that costs next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.genenc = {"image_size": 224, "fit": "crop", "interpolation": "bilinear"}

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return [B, 3, 1, 1] of [B, 3, H, W]."""
        return nn.functional.adaptive_avg_pool2d(pixels, 1)


def average_pool() -> nn.Module:
    """Return the network."""
    return AveragePool()


@contextlib.contextmanager
def decoding(folder: str, threads: int) -> Iterator[Once]:
    """Read and decode every file."""
    with _every_file(folder, threads, lambda path: io.decode_jpeg(io.read_file(str(path)))) as once:
        yield once


@contextlib.contextmanager
def resizing(folder: str, threads: int) -> Iterator[Once]:
    """Read, decode, resize the shorter side to 256 and cut out 224 x 224, with torchvision on uint8."""

    def fitted(path: Path) -> object:
        pixels = functional.resize(io.decode_jpeg(io.read_file(str(path))), [256], antialias=True)
        return functional.center_crop(pixels, [224, 224])

    with _every_file(folder, threads, fitted) as once:
        yield once


@contextlib.contextmanager
def plain_loader(folder: str, threads: int) -> Iterator[Once]:
    """Loop over a DataLoader with torchvision's evaluation transform on Pillow images, as people write it."""
    steps = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
    transform = transforms.Compose([*steps, transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
    paths = sorted(Path(folder).iterdir())

    class Files(Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            with Image.open(paths[index]) as image:
                return transform(image.convert("RGB"))  # type: ignore[no-any-return]

    def once() -> float:
        with torch.inference_mode():
            loader = DataLoader(Files(), batch_size=BATCH, num_workers=threads)
            return float(sum(len(nn.functional.adaptive_avg_pool2d(batch, 1)) for batch in loader))

    torch.set_num_threads(1)
    yield once


@contextlib.contextmanager
def loading(folder: str, threads: int, out: str) -> Iterator[Once]:
    """Load the rows of a planned run, in their order: read, hash, decode, resize and cut out."""
    _alone(out)
    run = RunFolder(planning.create_run(parameters(folder, out, threads)))
    with loader.ImageLoader(run.manifest, run.preprocessing, workers=threads, batch=BATCH) as images:

        def once() -> float:
            count = 0
            for batch in images.iter_batches(0, run.manifest.rows):
                count += len(batch)
                batch.release()
            return float(count)

        yield once


@contextlib.contextmanager
def extraction(folder: str, threads: int, out: str) -> Iterator[Once]:
    """Extract into a new run folder each time: planning, decoding, encoding, commits and verification."""
    numbers = itertools.count()

    def once() -> float:
        # Other processes may have run this way, too.
        root = f"{out}-{os.getpid()}-{next(numbers)}"
        return float(driver.extract(parameters(folder, root, threads)).status.rows)

    _alone(out)
    yield once


@contextlib.contextmanager
def sharing(folder: str, processes: int, threads: int, shard_rows: int, out: str) -> Iterator[Once]:
    """Plan a run each time and let processes that are up already share its shards, each on cores of its own."""
    numbers = itertools.count()
    with contextlib.ExitStack() as stack:
        helpers = [Running(_helper(out, [at * threads + core for core in range(threads)])) for at in range(processes)]
        for process in helpers:
            stack.callback(process.close)
            process.prepared()
        _alone(out)

        def once() -> float:
            root = planning.create_run(parameters(folder, f"{out}-{next(numbers)}", threads, shard_rows=shard_rows))
            for process in helpers:
                process.start()
            for process in helpers:
                process.cost()
            return float(RunFolder(root).store.plan.rows)

        yield once


@contextlib.contextmanager
def resuming(out: str, cores: list[int]) -> Iterator[Once]:
    """Continue the next run of a series that another process plans, on some of this machine's cores."""
    numbers = itertools.count()
    if hasattr(os, "sched_setaffinity"):  # elsewhere they share all cores
        usable = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {usable[core % len(usable)] for core in cores})

    def once() -> float:
        root = f"{out}-{next(numbers)}"
        return float(driver.resume(root, "pending", driver.options_for(root, trust=True)).status.rows)

    _alone(out)
    yield once


def parameters(folder: str, out: str, threads: int, **more: object) -> ExtractParameters:
    """Return an extraction with the network that costs nothing."""
    return ExtractParameters.model_validate(
        {
            "images": folder,
            "model": f"{HERE}:average_pool",
            "out": out,
            "batch_size": BATCH,
            "decode_workers": threads,
            "device": "cpu",
            **more,
        }
    )


def _helper(out: str, cores: list[int]) -> Way:
    return Way(name="helper", program=f"{HERE}:resuming", arguments={"out": out, "cores": cores})


def _alone(out: str) -> None:
    """Make the folder of the runs; torch computes on one thread."""
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)


@contextlib.contextmanager
def _every_file(folder: str, threads: int, work: Callable[[Path], object]) -> Iterator[Once]:
    """Do a piece of work for every file of a folder, in threads when more than one is asked for."""
    paths = sorted(Path(folder).iterdir())
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:

        def share(part: int) -> int:
            with torch.inference_mode():
                return sum(work(path) is not None for path in paths[part::threads])

        yield lambda: float(sum(pool.map(share, range(threads))))
