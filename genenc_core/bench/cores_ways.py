"""Programs of the suite `cores`, whose decoders sleep and return the same pixels for every file."""

import contextlib
import time
import unittest.mock
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from genenc_core.bench import data_ways
from genenc_core.bench.cores import BATCH, SHARD_ROWS, SIDE
from genenc_core.bench.data_ways import Once
from genenc_core.images.decode import decode, decoded
from genenc_core.images.load import decode_server

HERE = "genenc_core.bench.cores_ways"
SETTINGS = {"model": f"{HERE}:small_pool", "shard_rows": SHARD_ROWS}


def small_pool() -> nn.Module:
    """Return a mean-pooling network at the size of the tiny images, so that none is resized."""
    return data_ways.AveragePool(SIDE)


class SleptFiles(data_ways.PlainFiles):
    """`PlainFiles` whose decoding only sleeps."""

    def __init__(self, folder: str, seconds: float) -> None:
        super().__init__(folder, short=SIDE, side=SIDE)
        self._seconds = seconds
        self._pixels = _pixels().numpy()

    def opened(self, path: Path) -> Image.Image:
        """Read a file, sleep, and return constant pixels."""
        path.read_bytes()
        time.sleep(self._seconds)
        return Image.fromarray(self._pixels)


class BareFiles(SleptFiles):
    """Untransformed pixels, uint8 [3, H, W]: the minimal work of a DataLoader."""

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self.opened(self._paths[index]))).permute(2, 0, 1)


def plain_loader(folder: str, workers: int, seconds: float) -> contextlib.AbstractContextManager[Once]:
    """Iterate over a DataLoader."""
    return _looped(SleptFiles(folder, seconds), workers)


def bare_loader(folder: str, workers: int, seconds: float) -> contextlib.AbstractContextManager[Once]:
    """Iterate over a DataLoader of untransformed pixels."""
    return _looped(BareFiles(folder, seconds), workers)


@contextlib.contextmanager
def _looped(files: SleptFiles, workers: int) -> Iterator[Once]:
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than cores
    torch.set_num_threads(1)
    yield lambda: float(sum(map(len, DataLoader(files, batch_size=BATCH, num_workers=workers))))


@contextlib.contextmanager
def loading(folder: str, workers: int, seconds: float, out: str) -> Iterator[Once]:
    """Load the rows of a planned run, as in the suite `data`."""
    with _sleeping_decoders(seconds), data_ways.loading(folder, workers, out, batch=BATCH, **SETTINGS) as once:
        yield once


@contextlib.contextmanager
def extraction(folder: str, workers: int, seconds: float, out: str) -> Iterator[Once]:
    """Extract into a new run folder each time, as in the suite `data`."""
    with _sleeping_decoders(seconds), data_ways.extraction(folder, workers, out, batch_size=BATCH, **SETTINGS) as once:
        yield once


@contextlib.contextmanager
def _sleeping_decoders(seconds: float) -> Iterator[None]:
    """Make decode workers, which are forked from this process, sleep instead of decoding."""
    pixels = _pixels().permute(2, 0, 1)

    def sleep(_data: bytes, *, max_pixels: int, hint: decoded.ResizeHint) -> decoded.Decoded:  # noqa: ARG001
        time.sleep(seconds)
        return decoded.Decoded(pixels=pixels, orientation=1, size=(SIDE, SIDE))

    with unittest.mock.patch.object(decode, "decode_image", sleep):
        if not decode_server.prepare():
            raise RuntimeError("decode workers cannot be forked from this process, so decoding cannot be simulated")
        yield


def _pixels() -> torch.Tensor:
    return torch.zeros((SIDE, SIDE, 3), dtype=torch.uint8)
